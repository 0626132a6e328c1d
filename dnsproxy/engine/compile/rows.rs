//! From what covers what to rows of which the narrowest says all: one look-up in the kernel is enough.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::engine::bits::Bits;
use crate::engine::port::{PortBlock, is_unasked};
use crate::engine::ruleset::{Direction, PortRow, Protocol};

/// A network less some, and the groups that it belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Covered<'a> {
    pub network: IpNet,
    pub except: &'a [IpNet],
    pub bits: Bits,
}

/// The rows of `cidr4` and `cidr6`: a row for each network and each exception, with the bits of all networks that cover it
/// and whose exceptions don't. A row that says what the next wider one says is left out.
pub(super) fn cidrs(covered: &[Covered<'_>]) -> Vec<(IpNet, Bits)> {
    // Those without exceptions add up; the others stay apart, for an exception ends only its own network.
    let mut plain: BTreeMap<IpNet, Bits> = BTreeMap::new();
    let mut carved: BTreeMap<IpNet, Vec<&Covered<'_>>> = BTreeMap::new();
    let mut ends: BTreeSet<IpNet> = BTreeSet::new();
    for one in covered {
        if one.except.is_empty() {
            *plain.entry(one.network).or_default() |= one.bits;
        } else {
            carved.entry(one.network).or_default().push(one);
            ends.extend(one.except.iter().map(IpNet::trunc).filter(|except| one.network.contains(except)));
        }
    }
    let places: BTreeSet<IpNet> = plain.keys().chain(carved.keys()).chain(&ends).copied().collect();
    // Sorted, a network comes after all that cover it: their chain is a stack.
    let mut chain: Vec<Place<'_, '_>> = Vec::new();
    let mut rows = Vec::with_capacity(places.len());
    for network in places {
        while chain.last().is_some_and(|wider| !wider.network.contains(&network)) {
            chain.pop();
        }
        let (plain_above, mut alive, above) = match chain.last() {
            Some(wider) => (wider.plain, wider.alive.clone(), wider.bits),
            None => (Bits::NONE, Vec::new(), Bits::NONE),
        };
        alive.extend(carved.get(&network).into_iter().flatten());
        alive.retain(|one| !one.except.iter().any(|except| except.contains(&network)));
        let plain = plain_above | plain.get(&network).copied().unwrap_or_default();
        let bits = alive.iter().fold(plain, |bits, one| bits | one.bits);
        if bits != above {
            rows.push((network, bits));
        }
        chain.push(Place { network, plain, alive, bits });
    }
    rows
}

/// A network while the narrower ones are made.
struct Place<'a, 'c> {
    network: IpNet,
    plain: Bits,
    /// Networks with exceptions that cover it.
    alive: Vec<&'a Covered<'c>>,
    bits: Bits,
}

/// What is opened and shut on which ports.
#[derive(Default)]
pub(super) struct Opened(BTreeMap<(Direction, Protocol, PortBlock), [Bits; 2]>);

impl Opened {
    /// Opens or shuts ports for these groups.
    pub fn add(&mut self, direction: Direction, deny: bool, (protocol, ports): (Protocol, PortBlock), bits: Bits) {
        self.0.entry((direction, protocol, ports)).or_default()[usize::from(deny)] |= bits;
    }

    /// The port rows, sorted, each the union of all that cover it.
    pub fn rows(&self) -> Vec<PortRow> {
        self.0
            .keys()
            .map(|(direction, protocol, ports)| {
                let mut row = PortRow {
                    direction: *direction,
                    protocol: *protocol,
                    ports: *ports,
                    allow: Bits::NONE,
                    deny: Bits::NONE,
                };
                for length in 0..=ports.length() {
                    let wider = PortBlock::around(ports.first(), length);
                    if let Some([allow, deny]) = self.0.get(&(*direction, *protocol, wider)) {
                        row.allow |= *allow;
                        row.deny |= *deny;
                    }
                }
                // Rules without ports; those of ICMP that ask nothing they don't open.
                if let Some([allow, deny]) = self.0.get(&(*direction, Protocol::Any, PortBlock::ANY)) {
                    row.deny |= *deny;
                    if !is_unasked(*protocol, *ports) {
                        row.allow |= *allow;
                    }
                }
                row
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn bits(numbers: &[u8]) -> Bits {
        numbers.iter().fold(Bits::NONE, |bits, number| bits | Bits::of(*number))
    }

    #[track_caller]
    fn come_to(covered: &[(&str, &[&str], u8)], rows: &[(&str, &[u8])]) {
        let except: Vec<Vec<IpNet>> = covered.iter().map(|one| one.1.iter().map(|text| net(text)).collect()).collect();
        let covered: Vec<Covered<'_>> = covered
            .iter()
            .zip(&except)
            .map(|((network, _, bit), except)| Covered { network: net(network), except, bits: bits(&[*bit]) })
            .collect();
        let rows: Vec<_> = rows.iter().map(|(network, numbers)| (net(network), bits(numbers))).collect();
        assert_eq!(cidrs(&covered), rows);
    }

    #[test]
    fn a_row_of_networks_is_the_union_of_all_that_cover_it() {
        come_to(
            &[
                ("0.0.0.0/0", &[], 1),
                ("10.0.0.0/8", &[], 2),
                ("10.1.0.0/16", &[], 3),
                ("10.2.0.0/16", &[], 1),
                ("11.0.0.0/8", &[], 4),
                ("::/0", &[], 5),
            ],
            &[
                ("0.0.0.0/0", &[1]),
                ("10.0.0.0/8", &[1, 2]),
                ("10.1.0.0/16", &[1, 2, 3]),
                ("11.0.0.0/8", &[1, 4]),
                ("::/0", &[5]),
            ],
        );
    }

    #[test]
    fn an_exception_ends_its_own_network_and_no_other() {
        come_to(
            &[
                ("10.0.0.0/8", &["10.1.0.0/16", "10.2.0.0/16"], 1),
                ("10.0.0.0/8", &["10.2.0.0/16"], 2),
                ("10.1.2.0/24", &[], 3),
                ("10.2.3.0/24", &["10.2.3.4/32"], 1),
            ],
            &[
                ("10.0.0.0/8", &[1, 2]),
                ("10.1.0.0/16", &[2]),
                ("10.1.2.0/24", &[2, 3]),
                ("10.2.0.0/16", &[]),
                ("10.2.3.0/24", &[1]),
                ("10.2.3.4/32", &[]),
            ],
        );
    }

    #[test]
    fn a_network_that_is_all_exception_is_nothing() {
        come_to(&[("10.0.0.0/8", &["0.0.0.0/0"], 1), ("10.0.0.0/8", &["10.0.0.0/8"], 2)], &[]);
    }

    #[test]
    fn a_row_of_ports_is_the_union_of_all_that_cover_it() {
        let mut opened = Opened::default();
        let tcp = |first, last| PortBlock::of_range(first, last).into_iter().map(|block| (Protocol::Tcp, block));
        for (ports, bit) in [(1024, 2047), (1024, 4095), (1500, 1500)].iter().zip(1..) {
            tcp(ports.0, ports.1).for_each(|port| opened.add(Direction::Egress, false, port, Bits::of(bit)));
        }
        opened.add(Direction::Egress, false, (Protocol::Any, PortBlock::ANY), Bits::of(4));
        opened.add(Direction::Egress, true, (Protocol::Tcp, PortBlock::ANY), Bits::of(5));
        opened.add(Direction::Egress, false, (Protocol::Icmp, PortBlock::icmp_type(8)), Bits::of(6));
        opened.add(Direction::Egress, false, (Protocol::Icmp, PortBlock::icmp_type(3)), Bits::of(7));
        opened.add(Direction::Ingress, false, (Protocol::Tcp, PortBlock::one(1500)), Bits::of(8));
        let rows = opened.rows();
        let row = |protocol, ports| {
            let found =
                rows.iter().find(|r| (r.direction, r.protocol, r.ports) == (Direction::Egress, protocol, ports));
            found.map(|row| (row.allow, row.deny)).unwrap()
        };
        assert_eq!(row(Protocol::Tcp, PortBlock::one(1500)), (bits(&[1, 2, 3, 4]), bits(&[5])));
        assert_eq!(row(Protocol::Tcp, PortBlock::of_range(1024, 2047)[0]), (bits(&[1, 2, 4]), bits(&[5])));
        assert_eq!(row(Protocol::Tcp, PortBlock::of_range(2048, 4095)[0]), (bits(&[2, 4]), bits(&[5])));
        assert_eq!(row(Protocol::Any, PortBlock::ANY), (bits(&[4]), Bits::NONE));
        assert_eq!(row(Protocol::Icmp, PortBlock::icmp_type(8)), (bits(&[4, 6]), Bits::NONE));
        assert_eq!(row(Protocol::Icmp, PortBlock::icmp_type(3)), (bits(&[7]), Bits::NONE), "I11");
        assert_eq!(rows.iter().filter(|row| row.direction == Direction::Ingress).count(), 1);
        assert!(rows.is_sorted());
    }
}
