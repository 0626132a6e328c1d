//! The rebinding guard (I6): addresses that no public name may open.
//!
//! Some are never learned: what belongs to the machine itself. Others, private by nature, are learned only when the
//! operator lists their network, for all names or for a pattern. Addresses embedded in IPv6 are judged as well.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::name::Name;
use super::pattern::{Bare, Pattern, PatternTrie};

/// Why an address is not learned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Guarded {
    /// 127.0.0.0/8 (RFC 1122), ::1.
    Loopback,
    /// 169.254.0.0/16 (RFC 3927), fe80::/10.
    LinkLocal,
    /// 0.0.0.0/8, ::/96 with the IPv4-compatible addresses (RFC 4291 section 2.5.5.1).
    Unspecified,
    /// 224.0.0.0/4, ff00::/8.
    Multicast,
    /// 240.0.0.0/4 with the limited broadcast (RFC 1112).
    Reserved,
    /// A cloud's metadata service.
    Metadata,
    /// An address of this node.
    OwnNode,
    /// ::ffff:0:0/96: a host would send it as IPv4.
    Mapped,
    /// 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 (RFC 1918), 100.64.0.0/10 (RFC 6598), fc00::/7 (RFC 4193), fec0::/10,
    /// 64:ff9b:1::/48 (RFC 8215).
    Private,
    /// The cluster's pods or services.
    Cluster,
}

impl Guarded {
    /// The word for metrics, flows and the text of the reply.
    pub fn reason(self) -> &'static str {
        match self {
            Guarded::Loopback => "loopback",
            Guarded::LinkLocal => "link-local",
            Guarded::Unspecified => "unspecified",
            Guarded::Multicast => "multicast",
            Guarded::Reserved => "reserved",
            Guarded::Metadata => "metadata",
            Guarded::OwnNode => "own node",
            Guarded::Mapped => "IPv4-mapped",
            Guarded::Private => "private",
            Guarded::Cluster => "pods or services",
        }
    }
}

/// Metadata services outside the link-local ranges: Azure's wire server, Alibaba Cloud, Oracle Cloud; AWS, Google Cloud
/// and Scaleway over IPv6.
const METADATA: [IpAddr; 6] = [
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
];

/// What the operator and the cluster say about addresses.
#[derive(Clone, Debug)]
pub struct Guard {
    own_node: Vec<IpAddr>,
    cluster: Vec<IpNet>,
    cluster_addresses: Arc<HashSet<IpAddr>>,
    allowed: Vec<IpNet>,
    allowed_for: PatternTrie<IpNet>,
    cluster_domain: Name,
}

impl Guard {
    /// The guard of a node with these addresses, in a cluster with this domain.
    pub fn new(own_node: Vec<IpAddr>, cluster_domain: Name) -> Guard {
        Guard {
            own_node,
            cluster: Vec::new(),
            cluster_addresses: Arc::default(),
            allowed: Vec::new(),
            allowed_for: PatternTrie::new(Bare::Valid),
            cluster_domain,
        }
    }

    /// Networks of pods and services: refused like private ones, also where they are public addresses.
    #[must_use]
    pub fn with_cluster(mut self, networks: Vec<IpNet>) -> Guard {
        self.cluster = networks;
        self
    }

    /// The same for single addresses, however many.
    #[must_use]
    pub fn with_addresses(mut self, addresses: Arc<HashSet<IpAddr>>) -> Guard {
        self.cluster_addresses = addresses;
        self
    }

    /// Lets every name open addresses of `network`, unless they are never learned.
    pub fn allow(&mut self, network: IpNet) {
        self.allowed.push(network);
    }

    /// Lets the names that `pattern` matches open addresses of `network`, unless they are never learned.
    pub fn allow_for(&mut self, pattern: Pattern, network: IpNet) {
        self.allowed_for.insert(pattern, network, None);
    }

    /// Whether `name` is in the cluster's own domain: outside the guard, and never a grant. Pods and services are
    /// reached by endpoint and service rules.
    pub fn is_cluster_name(&self, name: &Name) -> bool {
        name.ends_with(&self.cluster_domain)
    }

    /// Whether `name` may open `address`.
    ///
    /// # Errors
    /// Why it may not.
    pub fn admit(&self, name: &Name, address: IpAddr) -> Result<(), Guarded> {
        match address {
            IpAddr::V4(v4) => self.judge(name, v4.into()),
            IpAddr::V6(v6) => {
                self.judge(name, address)?;
                embedded(v6, self.local_form(name, address)).iter().try_for_each(|v4| self.judge(name, (*v4).into()))
            }
        }
    }

    fn judge(&self, name: &Name, address: IpAddr) -> Result<(), Guarded> {
        if self.own_node.contains(&address) {
            return Err(Guarded::OwnNode);
        }
        match never(address) {
            Some(guarded) => Err(guarded),
            None if self.listed(name, address).next().is_some() => Ok(()),
            None if self.cluster_addresses.contains(&address) => Err(Guarded::Cluster),
            None if self.cluster.iter().any(|network| network.contains(&address)) => Err(Guarded::Cluster),
            None if private(address) => Err(Guarded::Private),
            None => Ok(()),
        }
    }

    /// The networks with `address` that the operator listed for `name`.
    fn listed<'a>(&'a self, name: &'a Name, address: IpAddr) -> impl Iterator<Item = &'a IpNet> + 'a {
        let for_name = self.allowed_for.matches(name).map(|found| found.value);
        self.allowed.iter().chain(for_name).filter(move |network| network.contains(&address))
    }

    /// The length of the NAT64 prefix in 64:ff9b:1::/48 that the operator listed: it says where IPv4 is embedded.
    fn local_form(&self, name: &Name, address: IpAddr) -> Option<u8> {
        self.listed(name, address).map(IpNet::prefix_len).find(|length| [48, 56, 64, 96].contains(length))
    }
}

/// Why an address is never learned, whatever anyone lists.
fn never(address: IpAddr) -> Option<Guarded> {
    if METADATA.contains(&address) {
        return Some(Guarded::Metadata);
    }
    match address {
        IpAddr::V4(address) => match address.octets() {
            [0, ..] => Some(Guarded::Unspecified),
            [127, ..] => Some(Guarded::Loopback),
            [169, 254, 169, 254] => Some(Guarded::Metadata),
            [169, 254, ..] => Some(Guarded::LinkLocal),
            [224..=239, ..] => Some(Guarded::Multicast),
            [240..=255, ..] | [192, 0, 0, _] => Some(Guarded::Reserved),
            _ => None,
        },
        IpAddr::V6(address) => match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 1] => Some(Guarded::Loopback),
            [0, 0, 0, 0, 0, 0, _, _] => Some(Guarded::Unspecified),
            [0, 0, 0, 0, 0, 0xffff, _, _] => Some(Guarded::Mapped),
            [0x100, 0, 0, 0, ..] => Some(Guarded::Reserved), // discarded (RFC 6666)
            [0xfe80..=0xfebf, ..] => Some(Guarded::LinkLocal),
            [0xff00..=0xffff, ..] => Some(Guarded::Multicast),
            _ => None,
        },
    }
}

fn private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_private() || matches!(address.octets(), [100, 64..=127, ..]),
        IpAddr::V6(address) => {
            matches!(address.segments(), [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] | [0x64, 0xff9b, 1, ..])
        }
    }
}

/// The IPv4 addresses that a translator or a tunnel would take out of `address`.
///
/// In 64:ff9b:1::/48 the prefix is the operator's own; unless its length is known as `local_form`, every place that
/// RFC 6052 section 2.2 allows is read, but for 0.0.0.0/8, which the unused places hold.
fn embedded(address: Ipv6Addr, local_form: Option<u8>) -> Vec<Ipv4Addr> {
    let o = address.octets();
    let at = |places: [usize; 4]| Ipv4Addr::from(places.map(|place| o[place]));
    let last = at([12, 13, 14, 15]);
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => vec![last],
        [0x64, 0xff9b, 1, ..] => {
            let forms = [(48, at([6, 7, 9, 10])), (56, at([7, 9, 10, 11])), (64, at([9, 10, 11, 12])), (96, last)];
            let wanted = forms.into_iter().filter(|(length, v4)| match local_form {
                Some(form) => form == *length,
                None => v4.octets()[0] != 0,
            });
            wanted.map(|(_, v4)| v4).collect()
        }
        [0x2002, ..] => vec![at([2, 3, 4, 5])],
        // IPv4-translated (RFC 7915 section 1.1; ::ffff:0:0:0/96 of RFC 2765) and ISATAP (RFC 5214 section 6.1).
        [0, 0, 0, 0, 0xffff, 0, ..] => vec![last],
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => vec![last],
        // Teredo (RFC 4380 section 4): the server, and the client with its bits turned over.
        [0x2001, 0, ..] => vec![at([4, 5, 6, 7]), Ipv4Addr::from(!u32::from(last))],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        let own = vec!["198.51.100.1".parse().expect("an address"), "2001:db8::1".parse().expect("an address")];
        Guard::new(own, Name::parse("cluster.local").expect("a name")).with_cluster(vec![
            "198.18.0.0/16".parse().expect("a network"),
            "2001:db8:18::/64".parse().expect("a network"),
        ])
    }

    #[track_caller]
    fn judges(guard: &Guard, name: &str, address: &str, expected: Result<(), Guarded>) {
        let name = Name::parse(name).expect("a name");
        assert_eq!(guard.admit(&name, address.parse().expect("an address")), expected, "{address}");
    }

    #[track_caller]
    fn refuses(address: &str, why: Guarded) {
        judges(&guard(), "api.example.com", address, Err(why));
    }

    #[track_caller]
    fn admits(address: &str) {
        judges(&guard(), "api.example.com", address, Ok(()));
    }

    #[test]
    fn public_addresses_are_learned() {
        for address in
            ["192.0.2.1", "8.8.8.8", "172.15.255.255", "172.32.0.0", "100.63.0.1", "100.128.0.1", "223.255.255.255"]
        {
            admits(address);
        }
        for address in ["2001:db8::2", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1", "64:ff9b:0:1::1"] {
            admits(address);
        }
    }

    #[test]
    fn what_belongs_to_a_machine_is_never_learned() {
        refuses("0.0.0.0", Guarded::Unspecified);
        refuses("0.1.2.3", Guarded::Unspecified);
        refuses("127.0.0.1", Guarded::Loopback);
        refuses("169.254.1.1", Guarded::LinkLocal);
        refuses("169.254.169.254", Guarded::Metadata);
        refuses("168.63.129.16", Guarded::Metadata);
        refuses("224.0.0.1", Guarded::Multicast);
        refuses("255.255.255.255", Guarded::Reserved);
        refuses("198.51.100.1", Guarded::OwnNode);
        refuses("2001:db8::1", Guarded::OwnNode);
        refuses("::", Guarded::Unspecified);
        refuses("::1", Guarded::Loopback);
        refuses("::c000:201", Guarded::Unspecified);
        refuses("fe80::1", Guarded::LinkLocal);
        refuses("febf::1", Guarded::LinkLocal);
        refuses("ff02::1", Guarded::Multicast);
        refuses("fd00:ec2::254", Guarded::Metadata);
    }

    #[test]
    fn private_and_cluster_networks_wait_for_the_operator() {
        for address in [
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.1.1",
            "fd12::1",
            "fec0::1",
        ] {
            refuses(address, Guarded::Private);
        }
        refuses("198.18.0.10", Guarded::Cluster);
        refuses("2001:db8:18::a", Guarded::Cluster);
    }

    #[test]
    fn addresses_embedded_in_ipv6_are_judged_as_what_they_are() {
        refuses("::ffff:127.0.0.1", Guarded::Mapped);
        refuses("::ffff:192.0.2.1", Guarded::Mapped);
        refuses("64:ff9b::a9fe:a9fe", Guarded::Metadata);
        refuses("::ffff:0:a9fe:a9fe", Guarded::Metadata);
        refuses("2001:db8:2::5efe:a9fe:a9fe", Guarded::Metadata);
        refuses("2001:db8:2::200:5efe:10.0.0.1", Guarded::Private);
        refuses("100::1", Guarded::Reserved);
        refuses("192.0.0.1", Guarded::Reserved);
        refuses("64:ff9b::a00:1", Guarded::Private);
        refuses("64:ff9b::c633:6401", Guarded::OwnNode);
        refuses("64:ff9b::c612:a", Guarded::Cluster);
        refuses("2002:7f00:1::", Guarded::Loopback);
        refuses("2002:a00:1::5", Guarded::Private);
        refuses("2001:0:7f00:1::", Guarded::Loopback);
        refuses("2001:0:808:808:0:0:80ff:fffe", Guarded::Loopback);
        refuses("64:ff9b:1::a9fe:a9fe", Guarded::Private);
    }

    #[test]
    fn a_local_translation_prefix_is_read_as_the_operator_listed_it() {
        let mut open = guard();
        open.allow("64:ff9b:1:fffe::/96".parse().expect("a network"));
        judges(&open, "api.example.com", "64:ff9b:1:fffe::808:808", Ok(()));
        judges(&open, "api.example.com", "64:ff9b:1:fffe::a9fe:a9fe", Err(Guarded::Metadata));
        let mut whole = guard();
        whole.allow("64:ff9b:1::/40".parse().expect("a network"));
        judges(&whole, "api.example.com", "64:ff9b:1::808:808", Ok(()));
        judges(&whole, "api.example.com", "64:ff9b:1::7f:0:100:0", Err(Guarded::Loopback));
        judges(&whole, "api.example.com", "64:ff9b:1:a9fe:a9:fe00::1", Err(Guarded::Metadata));
    }

    #[test]
    fn a_listed_network_opens_for_all_names_or_for_a_pattern_and_never_what_is_never_learned() {
        let mut open = guard();
        open.allow("10.1.0.0/16".parse().expect("a network"));
        open.allow("169.254.0.0/16".parse().expect("a network"));
        open.allow("127.0.0.0/8".parse().expect("a network"));
        open.allow_for(
            Pattern::pattern("*.corp.example").expect("a pattern"),
            "192.168.7.0/24".parse().expect("a network"),
        );
        judges(&open, "api.example.com", "10.1.2.3", Ok(()));
        judges(&open, "api.example.com", "64:ff9b::a01:203", Ok(()));
        judges(&open, "api.example.com", "10.2.0.1", Err(Guarded::Private));
        judges(&open, "api.example.com", "192.168.7.1", Err(Guarded::Private));
        judges(&open, "db.corp.example", "192.168.7.1", Ok(()));
        judges(&open, "db.corp.example", "192.168.8.1", Err(Guarded::Private));
        judges(&open, "db.corp.example", "169.254.169.254", Err(Guarded::Metadata));
        judges(&open, "db.corp.example", "127.0.0.1", Err(Guarded::Loopback));
    }

    #[test]
    fn the_clusters_own_names_are_told_apart_on_label_boundaries() {
        let is = |name: &str| guard().is_cluster_name(&Name::parse(name).expect("a name"));
        assert!(is("kubernetes.default.svc.cluster.local") && is("cluster.local") && is("A.CLUSTER.LOCAL."));
        assert!(!is("evilcluster.local") && !is("cluster.local.example.com"));
    }
}
