//! The messages of Cilium's `api/v1/flow/flow.proto` as far as records have them, in protojson with `UseProtoNames`: a
//! field that has its default is left out, an enum is its text, a 64-bit number a string.

use serde::Serialize;

/// The part of `GetFlowsResponse` that an export holds.
#[derive(Serialize)]
pub(super) struct Response<'a> {
    pub(super) flow: Flow,
    pub(super) node_name: &'a str,
    pub(super) time: String,
}

#[derive(Serialize, Default)]
pub(super) struct Flow {
    pub(super) time: String,
    pub(super) verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) drop_reason: Option<u32>,
    #[serde(rename = "IP", skip_serializing_if = "Option::is_none")]
    pub(super) ip: Option<Ip>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) l4: Option<Layer4>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<Endpoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) destination: Option<Endpoint>,
    #[serde(rename = "Type")]
    pub(super) kind: FlowType,
    pub(super) node_name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) source_names: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) destination_names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) l7: Option<Layer7>,
    pub(super) event_type: EventType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source_service: Option<Service>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) destination_service: Option<Service>,
    pub(super) traffic_direction: TrafficDirection,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) policy_match_type: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) trace_observation_point: Option<TracePoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) drop_reason_desc: Option<DropReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) is_reply: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) interface: Option<Interface>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) egress_allowed_by: Vec<Policy>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ingress_allowed_by: Vec<Policy>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) egress_denied_by: Vec<Policy>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ingress_denied_by: Vec<Policy>,
    #[serde(rename = "Summary")]
    pub(super) summary: String,
}

#[derive(Serialize, Default, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Verdict {
    #[default]
    #[serde(rename = "VERDICT_UNKNOWN")]
    Unknown,
    Forwarded,
    Dropped,
    Error,
    Audit,
    Redirected,
}

#[derive(Serialize, Default, Clone, Copy)]
pub(super) enum FlowType {
    #[default]
    #[serde(rename = "L3_L4")]
    L3L4,
    L7,
}

#[derive(Serialize, Default, Clone, Copy)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum TrafficDirection {
    #[default]
    #[serde(rename = "TRAFFIC_DIRECTION_UNKNOWN")]
    Unknown,
    Ingress,
    Egress,
}

#[derive(Serialize, Clone, Copy)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum TracePoint {
    ToProxy,
    ToEndpoint,
    FromEndpoint,
}

#[derive(Serialize)]
pub(super) struct Ip {
    pub(super) source: String,
    pub(super) destination: String,
    #[serde(rename = "ipVersion")]
    pub(super) version: IpVersion,
}

#[derive(Serialize)]
pub(super) enum IpVersion {
    IPv4,
    IPv6,
}

#[derive(Serialize)]
pub(super) enum Layer4 {
    #[serde(rename = "TCP")]
    Tcp {
        #[serde(flatten)]
        ports: Ports,
        #[serde(skip_serializing_if = "Option::is_none")]
        flags: Option<TcpFlags>,
    },
    #[serde(rename = "UDP")]
    Udp(Ports),
    #[serde(rename = "SCTP")]
    Sctp(Ports),
    ICMPv4(IcmpType),
    ICMPv6(IcmpType),
}

#[derive(Serialize)]
pub(super) struct Ports {
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) source_port: u32,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) destination_port: u32,
}

#[derive(Serialize)]
pub(super) struct IcmpType {
    #[serde(rename = "type", skip_serializing_if = "is_zero")]
    pub(super) number: u32,
}

/// Only those that are set, as protojson writes them.
#[derive(Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) struct TcpFlags {
    #[serde(skip_serializing_if = "is_false")]
    pub(super) fin: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) syn: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) rst: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) psh: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) ack: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) urg: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) ece: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) cwr: bool,
}

#[derive(Serialize, Default)]
pub(super) struct Endpoint {
    #[serde(rename = "ID", skip_serializing_if = "is_zero")]
    pub(super) id: u32,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) identity: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) namespace: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) labels: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) pod_name: String,
}

#[derive(Serialize)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) namespace: String,
}

#[derive(Serialize)]
pub(super) struct Interface {
    pub(super) index: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) name: String,
}

#[derive(Serialize)]
pub(super) struct Policy {
    pub(super) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) namespace: String,
    pub(super) labels: Vec<String>,
}

/// Numbers of Cilium's `pkg/monitor/api`.
#[derive(Serialize, Default)]
pub(super) struct EventType {
    #[serde(rename = "type")]
    pub(super) kind: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sub_type: Option<i32>,
}

impl EventType {
    pub(super) const DROP: i32 = 1;
    pub(super) const TRACE: i32 = 4;
    pub(super) const POLICY_VERDICT: i32 = 5;
    pub(super) const ACCESS_LOG: i32 = 129;
}

#[derive(Serialize)]
pub(super) struct Layer7 {
    #[serde(rename = "type")]
    pub(super) kind: Layer7Type,
    /// A 64-bit number is a string in protojson.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latency_ns: Option<String>,
    pub(super) dns: Dns,
}

#[derive(Serialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Layer7Type {
    Request,
    Response,
}

#[derive(Serialize)]
pub(super) struct Dns {
    pub(super) query: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ips: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) ttl: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) cnames: Vec<String>,
    pub(super) observation_source: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) rcode: u32,
    pub(super) qtypes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) rrtypes: Vec<&'static str>,
}

/// Why a packet was dropped, as flow.proto's `DropReason` has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DropReason {
    /// The source link-layer address is another one's.
    InvalidSourceMac = 130,
    /// The source address is another one's.
    InvalidSourceIp = 132,
    /// Default deny, and no rule allows it.
    PolicyDenied = 133,
    /// A header is wrong.
    InvalidPacketDropped = 134,
    /// A protocol that no rule can name.
    UnknownL4Protocol = 142,
    /// An address that may not be reached directly.
    UnknownL3TargetAddress = 150,
    /// No endpoint is known.
    NoMatchingLocalContainerFound = 152,
    /// No room for another conversation.
    CtMapInsertionFailed = 155,
    /// An IPv6 extension header that is not allowed.
    InvalidIpv6ExtensionHeader = 156,
    /// A fragment that no first can lead.
    IpFragmentationNotSupported = 157,
    /// It refers to no known conversation.
    UnknownConnectionTrackingState = 163,
    /// No policy yet.
    NoConfigurationAvailableToPerformPolicyDecision = 165,
    /// Neither IP nor ARP.
    UnsupportedL2Protocol = 166,
    /// A later fragment of no first that passed.
    FirstLogicalDatagramFragmentNotFound = 175,
    /// Neighbour discovery that is not allowed.
    ForbiddenIcmpv6Message = 176,
    /// A deny rule.
    PolicyDeny = 181,
    /// A VLAN tag.
    VlanFiltered = 182,
    /// A look-up that can't fail did.
    CtNoMapFound = 190,
}

impl TcpFlags {
    /// From the flags octet of a header (RFC 9293, 3.1).
    pub(super) fn of(octet: u8) -> TcpFlags {
        let bit = |number: u8| octet & (1 << number) != 0;
        TcpFlags {
            fin: bit(0),
            syn: bit(1),
            rst: bit(2),
            psh: bit(3),
            ack: bit(4),
            urg: bit(5),
            ece: bit(6),
            cwr: bit(7),
        }
    }

    pub(super) fn text(octet: u8) -> String {
        const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let set: Vec<_> =
            NAMES.iter().enumerate().filter(|(bit, _)| octet & (1 << bit) != 0).map(|(_, name)| *name).collect();
        if set.is_empty() { "none".to_owned() } else { set.join(", ") }
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !*flag
}
