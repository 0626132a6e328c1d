//! What leads over which interface: the machine's own way out, and the ways to single addresses behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressHeaderFlags, AddressMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType};

/// What leads somewhere over an interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Path {
    /// A route to one address.
    Host(Way, IpAddr),
    /// A default route, other than one that a router advertised: what is behind the interface could have sent that.
    Default(Way),
    /// An address of this machine with a network around it, which did not come from an advertisement either.
    Network(IpAddr),
}

/// Which of several routes to the same place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Way {
    /// Whether it is IPv4's.
    pub v4: bool,
    /// The table that it is in.
    pub table: u32,
    /// Its metric.
    pub metric: u32,
}

/// What leads over which interface, by their numbers.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Paths {
    hosts: BTreeMap<(IpAddr, Way), BTreeSet<u32>>,
    hosts_over: BTreeMap<u32, BTreeSet<(IpAddr, Way)>>,
    /// Default routes and networks.
    wide: BTreeMap<u32, BTreeSet<Path>>,
}

impl Paths {
    /// Takes what is there.
    pub fn new(found: impl IntoIterator<Item = (u32, Path)>) -> Paths {
        let mut paths = Paths::default();
        for (over, path) in found {
            paths.add(over, path);
        }
        paths
    }

    /// These lead there now, or don't any more. A new route to an address takes the place of the one of the same metric.
    pub fn change(&mut self, paths: &[(u32, Path)], now: bool) {
        for (over, path) in paths {
            match path {
                Path::Host(way, to) if now => {
                    for old in self.hosts.get(&(*to, *way)).cloned().unwrap_or_default() {
                        self.remove(old, &(*to, *way));
                    }
                    self.add(*over, *path);
                }
                _ if now => self.add(*over, *path),
                Path::Host(way, to) => self.remove(*over, &(*to, *way)),
                _ => take(&mut self.wide, over, path),
            }
        }
    }

    /// The interface is gone, and with it what led over it: the kernel does not tell of each.
    pub fn forget(&mut self, over: u32) {
        self.wide.remove(&over);
        for host in self.hosts_over.get(&over).cloned().unwrap_or_default() {
            self.remove(over, &host);
        }
    }

    fn remove(&mut self, over: u32, host: &(IpAddr, Way)) {
        take(&mut self.hosts, host, &over);
        take(&mut self.hosts_over, &over, host);
    }

    /// Why the interface is the machine's own way to others, if it is.
    pub fn uplink(&self, over: u32) -> Option<String> {
        let path = self.wide.get(&over)?.first()?;
        Some(match path {
            Path::Default(_) => "a default route goes over it".to_owned(),
            Path::Network(address) | Path::Host(_, address) => {
                format!("it has the address {address} with a network around it")
            }
        })
    }

    /// Whether a default route goes over the interface.
    pub fn is_way_out(&self, over: u32) -> bool {
        self.wide.get(&over).is_some_and(|paths| paths.iter().any(|path| matches!(path, Path::Default(_))))
    }

    /// Single addresses that are behind the interface, and behind no other.
    pub fn hosts_behind(&self, over: u32) -> BTreeSet<IpAddr> {
        let hosts = self.hosts_over.get(&over).into_iter().flatten();
        hosts.map(|(to, _)| *to).filter(|to| self.only(*to) == Some(over)).collect()
    }

    /// The one interface that an address is behind; none: no route to it alone, or several that disagree.
    fn only(&self, to: IpAddr) -> Option<u32> {
        let least = Way { v4: false, table: 0, metric: 0 };
        let of = self.hosts.range((to, least)..).take_while(|((address, _), _)| *address == to);
        let mut over = of.flat_map(|(_, over)| over.iter().copied());
        let first = over.next()?;
        over.all(|other| other == first).then_some(first)
    }

    fn add(&mut self, over: u32, path: Path) {
        match path {
            Path::Host(way, to) => {
                self.hosts.entry((to, way)).or_default().insert(over);
                self.hosts_over.entry(over).or_default().insert((to, way));
            }
            _ => drop(self.wide.entry(over).or_default().insert(path)),
        }
    }
}

/// Takes one out of a set; an empty one goes.
fn take<K: Ord, V: Ord>(sets: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

/// What a route means for the interfaces that it goes over.
pub(super) fn of_route(route: &RouteMessage) -> Vec<(u32, Path)> {
    let header = &route.header;
    if header.kind != RouteType::Unicast || header.protocol == RouteProtocol::Ra {
        return Vec::new();
    }
    let (mut over, mut to) = (Vec::new(), None);
    let v4 = header.address_family == AddressFamily::Inet;
    let mut way = Way { v4, table: u32::from(header.table), metric: 0 };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => over.push(*index),
            RouteAttribute::MultiPath(hops) => over.extend(hops.iter().map(|hop| hop.interface_index)),
            RouteAttribute::Priority(metric) => way.metric = *metric,
            RouteAttribute::Table(table) => way.table = *table,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = Some(IpAddr::V4(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => to = Some(IpAddr::V6(*address)),
            _ => (),
        }
    }
    let path = match (header.destination_prefix_length, to) {
        (0, _) => Path::Default(way),
        (32, Some(to)) if v4 => Path::Host(way, to),
        (128, Some(to)) => Path::Host(way, to),
        _ => return Vec::new(),
    };
    over.into_iter().map(|over| (over, path)).collect()
}

/// The same of an address of this machine.
pub(super) fn of_address(message: &AddressMessage, address: IpAddr) -> Option<Path> {
    let (whole, local) = match address {
        IpAddr::V4(address) => (32, address.is_link_local()),
        IpAddr::V6(address) => (128, address.is_unicast_link_local()),
    };
    let advertised = address.is_ipv6() && !message.header.flags.contains(AddressHeaderFlags::Permanent);
    let is_network = message.header.prefix_len < whole && !local && !advertised;
    is_network.then_some(Path::Network(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: Way = Way { v4: true, table: 254, metric: 0 };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn host(text: &str) -> Path {
        Path::Host(MAIN, address(text))
    }

    #[test]
    fn a_route_to_an_address_over_one_interface_says_who_is_behind_it() {
        let mut paths = Paths::new([(3, host("198.51.100.10")), (4, host("198.51.100.11"))]);
        assert_eq!(paths.hosts_behind(3), [address("198.51.100.10")].into());
        // Another table says otherwise: neither is believed.
        let elsewhere = Path::Host(Way { table: 100, ..MAIN }, address("198.51.100.10"));
        paths.change(&[(4, elsewhere)], true);
        assert_eq!(paths.hosts_behind(3), [].into());
        assert_eq!(paths.hosts_behind(4), [address("198.51.100.11")].into());
        paths.change(&[(4, elsewhere)], false);
        assert_eq!(paths.hosts_behind(3), [address("198.51.100.10")].into());
    }

    #[test]
    fn a_route_that_is_replaced_leads_nowhere_any_more() {
        let mut paths = Paths::new([(3, host("198.51.100.10"))]);
        paths.change(&[(5, host("198.51.100.10"))], true);
        assert_eq!(paths.hosts_behind(3), [].into());
        assert_eq!(paths.hosts_behind(5), [address("198.51.100.10")].into());
        paths.forget(5);
        assert_eq!(paths, Paths::default(), "nothing is left of an interface that is gone");
    }

    #[test]
    fn a_default_route_or_a_network_of_its_own_makes_an_uplink() {
        let mut paths = Paths::new([(2, Path::Default(MAIN)), (3, Path::Network(address("198.51.100.1")))]);
        assert_eq!(paths.uplink(2).as_deref(), Some("a default route goes over it"));
        assert_eq!(paths.uplink(3).as_deref(), Some("it has the address 198.51.100.1 with a network around it"));
        assert_eq!(paths.uplink(4), None);
        assert!(paths.is_way_out(2) && !paths.is_way_out(3));
        paths.change(&[(2, Path::Default(MAIN))], false);
        paths.forget(3);
        assert_eq!(paths, Paths::default());
    }
}
