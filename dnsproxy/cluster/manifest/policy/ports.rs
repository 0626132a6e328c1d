//! The ports of an item: `toPorts`, `icmps`, and the names that `rules.dns` lets through.

use std::collections::BTreeSet;

use super::{Owner, Side, layer7, peers};
use crate::cluster::fields::Field;
use crate::cluster::tree::Value;
use crate::engine::pattern::Pattern;
use crate::engine::policy::{NameRule, Port, PortRule, Ports};
use crate::engine::port::PortBlock;
use crate::engine::ruleset::Protocol;

/// The most ports in one entry of `toPorts`, and fields in one of `icmps`, as in Cilium.
const PORTS: usize = 40;
/// The most characters of a port's name. RFC 6335, 5.1.
const NAME_CHARS: usize = 15;

/// Protocols without ports, which Cilium knows where its `enable-extended-ip-protocols` is set.
const EXTENDED: [&str; 7] = ["VRRP", "IGMP", "GRE", "IPIP", "IPV6", "ESP", "AH"];

/// One entry of `ports`.
pub(super) struct Entry {
    /// What it stands for.
    ports: Vec<(Protocol, Port)>,
    /// As it is written.
    pub text: String,
    /// Whether `protocol` is TCP and nothing else.
    pub tcp: bool,
    /// Whether it means every port.
    pub every: bool,
    range: bool,
    sctp: bool,
}

/// The ports of an item.
pub(super) fn ports(side: &Side<'_>, item: &Field<'_>, demands: &mut Vec<String>) -> Ports {
    let ports = item.get("toPorts");
    let icmps = item.get("icmps");
    let count = |field: &Option<Field<'_>>| field.as_ref().and_then(Field::list).map_or(0, |list| list.len());
    if let (Some(field), true) = (&icmps, count(&ports) > 0 && count(&icmps) > 0) {
        field.fault("icmps with toPorts; one of them in an item is allowed");
        return Ports::All;
    }
    let entries: Vec<PortRule> = match (&ports, &icmps) {
        (Some(field), _) if count(&ports) > 0 => {
            field.list().into_iter().flatten().map(|entry| port_rule(side, &entry, demands)).collect()
        }
        (_, Some(field)) if field.list().is_some() => {
            field.list().into_iter().flatten().map(|entry| icmp_rule(side.owner, &entry)).collect()
        }
        _ => return Ports::All,
    };
    // Cilium takes `icmps: []` for none, and so for every port: here an allowance opens nothing with it. A denial that names no
    // port means every port.
    if side.deny && entries.iter().all(|entry| entry.ports.is_empty()) {
        return Ports::All;
    }
    Ports::These(entries)
}

fn port_rule(side: &Side<'_>, entry: &Field<'_>, demands: &mut Vec<String>) -> PortRule {
    let at = side.owner.rule(entry);
    let mut rule = PortRule { at, ports: BTreeSet::new(), service: None, dns: None };
    let known: &[&str] = match side.deny {
        true => &["ports"],
        false => &["ports", "rules", "service", "serverNames", "listener", "terminatingTLS", "originatingTLS"],
    };
    entry.only(known);
    let mut entries = Vec::new();
    if let Some(field) = entry.get("ports")
        && let Some(list) = field.list()
    {
        if list.len() > PORTS {
            field.fault(format!("{} ports; up to {PORTS} are allowed", list.len()));
        }
        entries = list.filter_map(|field| port(side, &field, demands)).collect();
        rule.ports = entries.iter().flat_map(|entry| entry.ports.iter().cloned()).collect();
    }
    if side.deny {
        return rule;
    }
    if let Some(service) = entry.get("service") {
        let name = peers::object_name(&service);
        match (&side.owner.namespace, name) {
            (None, _) if side.owner.clusterwide() => {
                service.fault("service in a clusterwide policy, which has no namespace; toServices is allowed");
            }
            (Some(namespace), Some(name)) => rule.service = Some((namespace.clone(), name)),
            _ => {}
        }
        if entries.is_empty() {
            service.fault("service without ports; they are needed, port \"0\" is every port");
        }
    }
    layer7::port_rule(side, entry, &entries, demands);
    let rules = entry.get("rules");
    if let Some(dns) = rules.as_ref().and_then(|rules| rules.get("dns")) {
        rule.dns = dns_rules(side, &dns, &entries);
    }
    rule
}

/// The names of `rules.dns`. An empty list is none: every name may be asked for.
fn dns_rules(side: &Side<'_>, dns: &Field<'_>, ports: &[Entry]) -> Option<Vec<NameRule>> {
    let list = dns.list()?;
    if list.len() == 0 {
        return None;
    }
    if !side.egress() {
        dns.fault("rules.dns in ingress; only egress asks for names");
    }
    if ports.is_empty() {
        dns.fault("rules.dns without ports; the port of the DNS server is needed, mostly \"53\"");
    }
    if ports.iter().any(|port| port.every) {
        dns.fault("rules.dns on port 0; the port of the DNS server is needed, mostly \"53\"");
    }
    if let Some(port) = ports.iter().find(|port| port.range) {
        dns.fault(format!("rules.dns on the range {}; single ports are allowed", port.text));
    }
    if ports.iter().any(|port| port.sctp) {
        dns.fault("rules.dns over SCTP; allowed: UDP, TCP, ANY");
    }
    Some(list.filter_map(|field| name_rule(side.owner, &field)).collect())
}

/// One port with its protocols; `None` if it is wrong, or of a protocol without ports.
fn port(side: &Side<'_>, field: &Field<'_>, demands: &mut Vec<String>) -> Option<Entry> {
    const ANY: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    field.only(&["port", "endPort", "protocol"]);
    let protocol = field.get("protocol");
    let name = protocol.as_ref().map_or(Some("ANY"), |protocol| protocol.text());
    let protocols: Option<&[Protocol]> = match name? {
        "ANY" => Some(&ANY),
        "TCP" => Some(&ANY[..1]),
        "UDP" => Some(&ANY[1..2]),
        "SCTP" => Some(&ANY[2..]),
        extended if EXTENDED.contains(&extended) => {
            let bare = field.get("port").is_none_or(|port| matches!(port.node.as_text(), Some("0")));
            if !bare || field.get("endPort").is_some() {
                field.fault(format!("a port of protocol {extended}; it has none, no port or \"0\" is allowed"));
            }
            side.demand(field, "protocol", &format!("protocol {extended}"), demands);
            return None;
        }
        other => {
            if let Some(protocol) = &protocol {
                protocol.fault(format!("protocol {other:?}; allowed: TCP, UDP, SCTP, ANY"));
            }
            None
        }
    };
    let number = field.need("port")?;
    let first = port_text(&number)?;
    let end = match field.get("endPort") {
        Some(end) => u16::try_from(end.whole(0..=65535)?).ok().filter(|end| *end > 0),
        None => None,
    };
    let mut text = number.node.as_text().unwrap_or_default().to_owned();
    let ports = match (&first, end) {
        (Port::Block(PortBlock::ANY), Some(end)) => {
            field.fault(format!("endPort {end} with port 0; write port \"1\", or leave endPort out for every port"));
            return None;
        }
        (Port::Block(block), Some(end)) => {
            if end < block.first() {
                field.fault(format!(
                    "endPort {end} below port {}; the last port of the range is allowed",
                    block.first()
                ));
                return None;
            }
            if end > block.first() {
                text = format!("{text}-{end}");
            }
            PortBlock::of_range(block.first(), end).into_iter().map(Port::Block).collect()
        }
        // A name has no end, in Cilium too.
        _ => vec![first.clone()],
    };
    let protocols = protocols?;
    Some(Entry {
        text: format!("{text}/{}", name?),
        tcp: protocols == [Protocol::Tcp],
        every: first == Port::Block(PortBlock::ANY),
        range: matches!((&first, end), (Port::Block(block), Some(end)) if end > block.first()),
        sctp: protocols == [Protocol::Sctp],
        ports: protocols.iter().flat_map(|protocol| ports.iter().map(|port| (*protocol, port.clone()))).collect(),
    })
}

fn port_text(field: &Field<'_>) -> Option<Port> {
    let text = field.text()?;
    if !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit()) {
        if text.len() > 1 && text.starts_with('0') {
            let text = format!("{text:?} starts with 0, which Cilium reads as octal; write the number without it");
            field.fault(text);
            return None;
        }
        let port = text.parse::<u16>().ok();
        if port.is_none() {
            field.fault(format!("port {text}; a number from 0 to 65535 is allowed, 0 for every port"));
        }
        return port.map(|port| Port::Block(PortBlock::from(port)));
    }
    if is_port_name(text) {
        return Some(Port::Named(text.to_ascii_lowercase()));
    }
    field.fault(format!(
        "port {text:?}; a number from 0 to 65535 is allowed, 0 for every port, or a name: up to {NAME_CHARS} letters, digits \
         and single -, a letter among them"
    ));
    None
}

/// The rule for service names. RFC 6335, 5.1.
pub(super) fn is_port_name(text: &str) -> bool {
    text.len() <= NAME_CHARS
        && text.bytes().any(|octet| octet.is_ascii_alphabetic())
        && text.split('-').all(|part| !part.is_empty() && part.bytes().all(|octet| octet.is_ascii_alphanumeric()))
}

/// One entry of `icmps`.
fn icmp_rule(owner: &Owner, entry: &Field<'_>) -> PortRule {
    entry.only(&["fields"]);
    let mut ports = BTreeSet::new();
    if let Some(fields) = entry.get("fields")
        && let Some(list) = fields.list()
    {
        if list.len() > PORTS {
            fields.fault(format!("{} types; up to {PORTS} are allowed", list.len()));
        }
        ports.extend(list.filter_map(|field| icmp_type(&field)));
    }
    PortRule { at: owner.rule(entry), ports, service: None, dns: None }
}

fn icmp_type(field: &Field<'_>) -> Option<(Protocol, Port)> {
    field.only(&["family", "type"]);
    let family = field.get("family").map_or(Some("IPv4"), |family| family.one_of("family", &["IPv4", "IPv6"]));
    let number = field.need("type")?;
    let (protocol, names) = match family? {
        "IPv6" => (Protocol::Icmpv6, TYPES_V6.as_slice()),
        _ => (Protocol::Icmp, TYPES_V4.as_slice()),
    };
    let text = match &number.node.value {
        Value::Text(text) => text,
        _ => {
            let found = number.whole(0..=255)?;
            return Some((protocol, Port::Block(PortBlock::icmp_type(u8::try_from(found).ok()?))));
        }
    };
    let plain = text.bytes().all(|octet| octet.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    let found = match names.iter().find(|(name, _)| *name == &**text) {
        Some((_, found)) => Some(*found),
        None => text.parse::<u8>().ok().filter(|_| plain),
    };
    if found.is_none() {
        let names: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        number.fault(format!("ICMP type {text:?}; a number from 0 to 255 is allowed, or one of {}", names.join(", ")));
    }
    found.map(|found| (protocol, Port::Block(PortBlock::icmp_type(found))))
}

/// Cilium's names. <https://www.iana.org/assignments/icmp-parameters>
const TYPES_V4: [(&str, u8); 14] = [
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
];

/// Cilium's names. <https://www.iana.org/assignments/icmpv6-parameters>
const TYPES_V6: [(&str, u8); 27] = [
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
    ("RouterRenumbering", 138),
    ("ICMPNodeInformationQuery", 139),
    ("ICMPNodeInformationResponse", 140),
    ("InverseNeighborDiscoverySolicitation", 141),
    ("InverseNeighborDiscoveryAdvertisement", 142),
    ("HomeAgentAddressDiscoveryRequest", 144),
    ("HomeAgentAddressDiscoveryReply", 145),
    ("MobilePrefixSolicitation", 146),
    ("MobilePrefixAdvertisement", 147),
    ("DuplicateAddressRequestCodeSuffix", 157),
    ("DuplicateAddressConfirmationCodeSuffix", 158),
    ("ExtendedEchoRequest", 160),
    ("ExtendedEchoReply", 161),
];

/// A `matchName` or `matchPattern`.
pub(super) fn name_rule(owner: &Owner, field: &Field<'_>) -> Option<NameRule> {
    field.only(&["matchName", "matchPattern"]);
    let pattern = match (field.get("matchName"), field.get("matchPattern")) {
        (Some(name), None) => (Pattern::name(name.text()?), name),
        (None, Some(pattern)) => (Pattern::pattern(pattern.text()?), pattern),
        (Some(_), Some(_)) => {
            field.fault("matchName with matchPattern; one of them is allowed");
            return None;
        }
        (None, None) => {
            if matches!(field.node.value, Value::Map(_)) {
                field.fault("neither matchName nor matchPattern; one is needed");
            }
            return None;
        }
    };
    match pattern {
        (Ok(pattern), _) => Some(NameRule { at: owner.rule(field), pattern }),
        (Err(error), at) => {
            at.fault(error.to_string());
            None
        }
    }
}
