//! Which local address of the proxy stands for which resolver.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::Dns;
use crate::engine::endpoint::EndpointId;

/// Where NodeLocal DNSCache listens on every node: the node's own cache of the cluster's DNS.
pub(super) const NODE_LOCAL_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));
/// How many servers that only pods name may have a local address, of IPv6.
const UNNAMED_V6: usize = 1_024;
/// How many servers that nothing names one workload may have steered: resolv.conf holds three.
const UNNAMED: usize = 8;

/// Whoever asked it, before the start.
const EARLIER: EndpointId = EndpointId(0);

/// Servers that nothing names and a workload asked (`dns.unknown_resolvers = "pool"`), each with who asked first.
#[derive(Debug, Default)]
pub(super) struct Pool {
    servers: BTreeMap<IpAddr, EndpointId>,
    /// Who has had more than it may.
    told: BTreeSet<EndpointId>,
}

impl Pool {
    /// Those of an earlier run go on: what is steered stays so over a restart.
    pub fn inherit(&mut self, servers: impl Iterator<Item = IpAddr>) {
        self.servers.extend(servers.map(|server| (server, EARLIER)));
    }

    /// Takes a server in. False: it is in already, or the workload has as many as it may.
    pub fn take(&mut self, server: IpAddr, asker: EndpointId) -> bool {
        if !can_be_resolver(server) || is_link_local(server) || self.servers.contains_key(&server) {
            return false;
        }
        if self.servers.values().filter(|other| **other == asker).count() >= UNNAMED {
            if self.told.insert(asker) {
                tracing::warn!(endpoint = %asker, %server, "it has asked {UNNAMED} servers that nothing names: queries to others are dropped");
            }
            return false;
        }
        self.servers.insert(server, asker);
        true
    }

    /// Those that are steered now, for workloads that are still there.
    pub fn servers(&mut self, is_there: impl Fn(EndpointId) -> bool) -> impl Iterator<Item = IpAddr> {
        self.servers.retain(|_, asker| *asker == EARLIER || is_there(*asker));
        self.told.retain(|asker| is_there(*asker));
        self.servers.keys().copied()
    }
}

/// What is steered now.
#[derive(Debug, Default)]
pub(super) struct Steering {
    /// Resolver and local address.
    pub pairs: Vec<(IpAddr, IpAddr)>,
    /// The node has the address of NodeLocal DNSCache: what answers there is the node's own.
    pub node_cache: bool,
    /// Why a resolver is not steered to, for status and log.
    pub problems: Vec<String>,
    /// Where the cluster's own DNS servers and the configured ones are: pods that have these addresses are not steered.
    pub servers: BTreeSet<IpAddr>,
}

/// A local address for every resolver: the one it has had, or the next free of the range. First for those that the
/// configuration, the cluster and policies name; `others`, which pods bring up, have half of the range at most.
///
/// `taken` are addresses of this machine that are not ours. An old pair that is not wanted now is kept in `known` for as long as
/// there is room: its address must not come to mean another resolver while a reply may be on its way.
pub(super) fn assign(
    named: &BTreeSet<IpAddr>,
    others: &BTreeSet<IpAddr>,
    known: &mut BTreeMap<IpAddr, IpAddr>,
    taken: &BTreeSet<IpAddr>,
    settings: &Dns,
) -> Steering {
    let (range4, range6) = (settings.local_addresses_v4, settings.local_addresses_v6);
    known.retain(|_, local| match local {
        IpAddr::V4(local) => range4.contains(&*local),
        IpAddr::V6(local) => range6.contains(&*local),
    });
    let mut steering = Steering::default();
    let half_v4 = (1usize << (32 - range4.prefix_len())) / 2 - 1;
    let half = |v4: bool| if v4 { half_v4 } else { UNNAMED_V6 };
    let mut brought_up = [0, 0];
    for (resolver, is_named) in
        named.iter().map(|one| (one, true)).chain(others.difference(named).map(|one| (one, false)))
    {
        let range = if resolver.is_ipv4() { range4.to_string() } else { range6.to_string() };
        let brought_up = &mut brought_up[usize::from(resolver.is_ipv4())];
        if !is_named && *brought_up >= half(resolver.is_ipv4()) {
            let half = format!(
                "resolver {resolver}: half of {range} is of servers that only pods name; queries to it are dropped"
            );
            steering.problems.push(half);
            continue;
        }
        *brought_up += usize::from(!is_named);
        if let Some(local) = known.get(resolver) {
            steering.pairs.push((*resolver, *local));
            continue;
        }
        let used: BTreeSet<IpAddr> = known.values().chain(taken).copied().collect();
        let free = |local: &IpAddr| !used.contains(local);
        let local = match resolver {
            IpAddr::V4(_) => range4.hosts().map(IpAddr::V4).find(free),
            IpAddr::V6(_) => range6.hosts().skip(1).take(65_536).map(IpAddr::V6).find(free),
        };
        let local = local.or_else(|| {
            let is_idle = |other: &IpAddr| !named.contains(other) && !others.contains(other);
            let idle = known.keys().find(|other| other.is_ipv4() == resolver.is_ipv4() && is_idle(other)).copied()?;
            known.remove(&idle)
        });
        match local {
            Some(local) => {
                known.insert(*resolver, local);
                steering.pairs.push((*resolver, local));
            }
            None => {
                steering
                    .problems
                    .push(format!("resolver {resolver}: no free local address in {range}; queries to it are dropped"));
            }
        }
    }
    steering
}

/// Metadata services, and the proxy's own addresses.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Whether an address can be a resolver that pods ask through their node.
pub(super) fn can_be_resolver(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_multicast() && !v4.is_unspecified() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_multicast() && v6 != Ipv6Addr::UNSPECIFIED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn settings(range4: &str) -> Dns {
        let mut settings = Config::default().dns;
        settings.local_addresses_v4 = range4.parse().unwrap();
        settings
    }

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_resolver_keeps_its_local_address() {
        let (settings, mut known) = (settings("198.18.0.0/29"), BTreeMap::new());
        let first = assign(&set(&["203.0.113.1", "203.0.113.2"]), &set(&[]), &mut known, &set(&[]), &settings);
        let second = assign(&set(&["203.0.113.2", "203.0.113.0"]), &set(&[]), &mut known, &set(&[]), &settings);
        let of = |steering: &Steering, resolver: &str| {
            let resolver: IpAddr = resolver.parse().unwrap();
            steering.pairs.iter().find(|pair| pair.0 == resolver).map(|pair| pair.1)
        };
        assert_eq!(of(&first, "203.0.113.2"), of(&second, "203.0.113.2"));
        assert_ne!(of(&first, "203.0.113.1"), of(&second, "203.0.113.0"), "not reused while remembered");
    }

    #[test]
    fn addresses_in_use_are_left_alone_and_a_full_range_is_said() {
        let (settings, mut known) = (settings("198.18.0.0/30"), BTreeMap::new());
        let taken = set(&["198.18.0.1"]);
        let steering = assign(&set(&["203.0.113.1", "203.0.113.2"]), &set(&[]), &mut known, &taken, &settings);
        assert_eq!(steering.pairs, [("203.0.113.1".parse().unwrap(), "198.18.0.2".parse().unwrap())]);
        assert_eq!(steering.problems.len(), 1);
        assert!(steering.problems[0].contains("203.0.113.2") && steering.problems[0].contains("198.18.0.0/30"));
    }

    #[test]
    fn one_workload_fills_no_more_than_its_part_of_the_pool() {
        let mut pool = Pool::default();
        let server = |last: u8| IpAddr::from([203, 0, 113, last]);
        for last in 1..=20 {
            assert_eq!(pool.take(server(last), EndpointId(1)), last <= 8, "{last}");
        }
        assert!(!pool.take(server(1), EndpointId(2)), "it is in");
        assert!(pool.take(server(30), EndpointId(2)));
        assert!(!pool.take(IpAddr::from([127, 0, 0, 1]), EndpointId(2)));
        assert_eq!(pool.servers(|id| id == EndpointId(2)).collect::<Vec<_>>(), [server(30)]);
        assert!(pool.take(server(9), EndpointId(1)), "it is new again");
    }

    #[test]
    fn what_pods_bring_up_leaves_room_for_what_is_named() {
        let settings = settings("198.18.0.0/28"); // 14
        let many = |from: u8| (from..from + 20).map(|last| IpAddr::from([203, 0, 113, last])).collect::<BTreeSet<_>>();
        let mut known = BTreeMap::new();
        let steering = assign(&set(&[]), &many(1), &mut known, &set(&[]), &settings);
        assert_eq!((steering.pairs.len(), steering.problems.len()), (7, 13));
        let steering = assign(&many(100), &many(1), &mut known, &set(&[]), &settings);
        assert_eq!(steering.pairs.iter().filter(|pair| many(100).contains(&pair.0)).count(), 7, "the rest is in use");
        // What nobody wants any more gives way.
        let steering = assign(&many(150), &set(&[]), &mut known, &set(&[]), &settings);
        assert_eq!((steering.pairs.len(), known.len()), (14, 14));
    }

    #[test]
    fn both_families_have_their_own_range() {
        let mut known = BTreeMap::new();
        let steering = assign(&set(&["2001:db8::53"]), &set(&[]), &mut known, &set(&[]), &settings("198.18.0.0/30"));
        assert!(steering.pairs[0].1.is_ipv6());
    }
}
