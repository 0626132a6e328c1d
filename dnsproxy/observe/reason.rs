//! Why the kernel let a frame pass or not, as `enum reason` of bpf/include/abi.h has it.

use super::flow::DropReason;

macro_rules! reasons {
    ($($variant:ident $text:literal $($drop:ident)?, $doc:literal;)*) => {
        /// Why a frame passed or not. The numbers are those of `enum reason`; zero refuses.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Reason {
            $(#[doc = $doc] $variant,)*
        }

        impl Reason {
            /// Every reason, by number.
            pub const ALL: &[Reason] = &[$(Reason::$variant),*];

            /// The word for metrics, flows and logs.
            pub fn text(self) -> &'static str {
                match self { $(Reason::$variant => $text,)* }
            }

            /// What Hubble calls such a drop; `None` for what passed.
            pub fn drop_reason(self) -> Option<DropReason> {
                match self { $(Reason::$variant => reasons!(@drop $($drop)?),)* }
            }
        }
    };
    (@drop) => { None };
    (@drop $drop:ident) => { Some(DropReason::$drop) };
}

reasons! {
    NoEndpoint "no_endpoint" NoMatchingLocalContainerFound, "No endpoint is known on the interface.";
    EndpointClosed "endpoint_closed" NoConfigurationAvailableToPerformPolicyDecision, "The endpoint has no policy or no addresses yet.";
    Malformed "malformed" InvalidPacketDropped, "A header is cut off or contradicts itself.";
    Ethertype "ethertype" UnsupportedL2Protocol, "Neither IP nor ARP.";
    Tagged "tagged" VlanFiltered, "An 802.1Q or 802.1ad tag.";
    SourceRoute "source_route" InvalidPacketDropped, "An IPv4 option or routing header that steers.";
    ExtensionHeader "extension_header" InvalidIpv6ExtensionHeader, "An IPv6 extension header that is not allowed.";
    FragmentLone "fragment_lone" FirstLogicalDatagramFragmentNotFound, "A later fragment of no first that passed.";
    FragmentTiny "fragment_tiny" InvalidPacketDropped, "A first fragment without its whole L4 header.";
    FragmentOverlap "fragment_overlap" InvalidPacketDropped, "A fragment that reaches into the first, or is a second first.";
    FragmentMalformed "fragment_malformed" InvalidPacketDropped, "A fragment of a length that no datagram has, or of what is never fragmented.";
    FragmentAtomic "fragment_atomic" IpFragmentationNotSupported, "An IPv6 fragment that is first and last.";
    FragmentSteered "fragment_steered" IpFragmentationNotSupported, "A fragment of a query to a resolver.";
    FragmentBudget "fragment_budget" CtMapInsertionFailed, "The endpoint has as many datagrams in fragments under way as it may have.";
    Protocol "protocol" UnknownL4Protocol, "A protocol that no rule can name.";
    SpoofedAddress "spoofed_address" InvalidSourceIp, "A source address that is not the endpoint's.";
    SpoofedMac "spoofed_mac" InvalidSourceMac, "A source link-layer address that is not the endpoint's.";
    OtherDestination "other_destination" NoMatchingLocalContainerFound, "The destination is not one of the endpoint's addresses.";
    ArpSpoofed "arp_spoofed" InvalidSourceIp, "ARP that claims what is not the endpoint's.";
    NdSpoofed "nd_spoofed" ForbiddenIcmpv6Message, "Neighbour discovery that claims what is not the endpoint's.";
    UnknownResolver "unknown_resolver" PolicyDenied, "A query to a resolver that is not configured.";
    SteeringAddress "steering_address" UnknownL3TargetAddress, "A packet straight to one of the proxy's local addresses.";
    NoGrant "no_grant" PolicyDenied, "Default deny, and nothing allows it.";
    Expired "expired" PolicyDenied, "A grant was there; its time is over.";
    PolicyDeny "policy_deny" PolicyDeny, "A deny rule.";
    NotAReply "not_a_reply" PolicyDenied, "It belongs to a flow but opens the other direction.";
    FlowBudget "flow_budget" CtMapInsertionFailed, "The endpoint has as many flows as it may have.";
    FlowTable "flow_table" CtMapInsertionFailed, "The table of flows is full.";
    IcmpUnrelated "icmp_unrelated" UnknownConnectionTrackingState, "An ICMP error that quotes no live flow.";
    Internal "internal" CtNoMapFound, "A look-up that can't fail did.";
    Flow "flow", "A known flow.";
    Granted "granted", "A live grant: the endpoint resolved a name that its policy selects.";
    Cidr "cidr", "A CIDR rule.";
    Peer "peer", "An endpoint or entity rule.";
    Service "service", "Every ready backend of the Service is allowed.";
    DefaultAllow "default_allow", "No policy makes this direction default deny.";
    Host "host", "This node's own traffic.";
    Steered "steered", "A query, sent to the proxy; or its reply.";
    Arp "arp", "ARP.";
    Nd "nd", "Neighbour discovery.";
    IcmpRelated "icmp_related", "An ICMP error that quotes a live flow.";
    FragmentFollows "fragment_follows", "A later fragment of a first that passed.";
    Unenforced "unenforced", "No policy selects the endpoint.";
    Audit "audit", "Would have been dropped.";
    Proxy "proxy", "The proxy's own queries, beside the workload; or their answers.";
    Adopted "adopted", "A TCP connection that was open before the first start (`enforcement.adopt`).";
}

impl Reason {
    /// The reason with this number; an unknown one is [`Reason::Internal`], which refuses.
    pub fn from_number(number: u8) -> Reason {
        Reason::ALL.get(usize::from(number)).copied().unwrap_or(Reason::Internal)
    }

    /// Whether the frame passed.
    pub fn passed(self) -> bool {
        self > Reason::Internal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of `enum reason` in the order of bpf/include/abi.h, without `REASON_`.
    fn of_abi() -> Vec<String> {
        let abi = include_str!("../../bpf/include/abi.h");
        let body = abi.split("enum reason {").nth(1).unwrap().split("};").next().unwrap();
        body.lines()
            .filter_map(|line| line.trim().strip_prefix("REASON_"))
            .map(|line| line.split([',', ' ']).next().unwrap().to_ascii_lowercase())
            .filter(|name| name != "last_drop" && name != "count")
            .collect()
    }

    #[test]
    fn the_reasons_are_those_of_the_kernel_programs() {
        let ours: Vec<_> = Reason::ALL.iter().map(|reason| reason.text().to_owned()).collect();
        assert_eq!(ours, of_abi());
        for (number, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(Reason::from_number(u8::try_from(number).unwrap()), *reason);
        }
    }

    #[test]
    fn what_did_not_pass_has_a_drop_reason_and_what_passed_has_none() {
        for reason in Reason::ALL {
            assert_eq!(reason.passed(), reason.drop_reason().is_none(), "{reason:?}");
        }
        assert!(!Reason::from_number(0).passed() && !Reason::from_number(255).passed());
    }
}
