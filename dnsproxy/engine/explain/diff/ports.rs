//! Ports whose verdict is another, as the widest ranges there are.
//!
//! Verdicts change only where a block of a rule begins or ends, so it is enough to ask for the first port between two such
//! places.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::explain::words;
use crate::engine::port::{PortBlock, asking_types};
use crate::engine::ruleset::{Direction, Protocol, RuleSet};

/// The port of DNS.
pub(super) const DNS: u16 = 53;
const TRANSPORT: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Ports with their protocols, sorted, the first and the last included.
pub(super) type Ranges = Vec<(Protocol, u16, u16)>;

/// Ports that opened and ports that closed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Delta {
    opened: Ranges,
    shut: Ranges,
}

impl Delta {
    /// Those that opened, or those that closed.
    pub fn of(&self, allowed: bool) -> &Ranges {
        if allowed { &self.opened } else { &self.shut }
    }
}

/// By protocol, the ports at which the verdict may be another than at the port before.
pub(super) struct Cuts(BTreeMap<Protocol, BTreeSet<u16>>);

impl Cuts {
    /// Of two rule sets.
    pub fn new(both: [&RuleSet; 2], direction: Direction) -> Cuts {
        let mut cuts = Cuts(BTreeMap::new());
        let protocols = TRANSPORT.into_iter().chain([Protocol::Icmp, Protocol::Icmpv6]);
        protocols.for_each(|protocol| cuts.add((protocol, PortBlock::ANY)));
        for rules in both {
            let rows = rules.ports.iter().filter(|row| row.direction == direction && row.protocol != Protocol::Any);
            rows.for_each(|row| cuts.add((row.protocol, row.ports)));
        }
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            cuts.add((protocol, PortBlock::one(DNS)));
        }
        for protocol in [Protocol::Icmp, Protocol::Icmpv6] {
            asking_types(protocol).iter().for_each(|number| cuts.add((protocol, PortBlock::icmp_type(*number))));
        }
        cuts
    }

    fn add(&mut self, (protocol, block): (Protocol, PortBlock)) {
        let cuts = self.0.entry(protocol).or_default();
        cuts.insert(block.first());
        cuts.extend(block.last().checked_add(1));
    }

    /// What changes at one peer. `more`: single ports beside those of the rules; `passes`: before and now.
    pub fn delta(
        &self,
        v6: bool,
        more: &BTreeSet<(Protocol, u16)>,
        passes: impl Fn((Protocol, u16)) -> (bool, bool),
    ) -> Delta {
        let mut delta = Delta::default();
        for protocol in TRANSPORT.into_iter().chain([icmp(v6)]) {
            let more = more.iter().filter(|(of, _)| *of == protocol).map(|(_, port)| *port);
            let more = more.flat_map(|port| [Some(port), port.checked_add(1)]).flatten();
            let cuts: BTreeSet<u16> = self.0.get(&protocol).into_iter().flatten().copied().chain(more).collect();
            let mut cuts = cuts.into_iter().peekable();
            while let Some(first) = cuts.next() {
                let last = cuts.peek().map_or(u16::MAX, |next| next - 1);
                let list = match passes((protocol, first)) {
                    (false, true) => &mut delta.opened,
                    (true, false) => &mut delta.shut,
                    _ => continue,
                };
                match list.last_mut() {
                    Some((of, _, end)) if *of == protocol && end.checked_add(1) == Some(first) => *end = last,
                    _ => list.push((protocol, first, last)),
                }
            }
        }
        delta
    }
}

/// The ICMP of a family.
fn icmp(v6: bool) -> Protocol {
    if v6 { Protocol::Icmpv6 } else { Protocol::Icmp }
}

/// Those that are no ICMP: what can be the same in both families.
pub(super) fn of_both(ranges: &Ranges) -> impl Iterator<Item = &(Protocol, u16, u16)> {
    ranges.iter().filter(|(protocol, ..)| TRANSPORT.contains(protocol))
}

/// Ranges for people. `families`: those that the peer has, IPv4 and IPv6. `every port` is what a rule without ports opens:
/// all of TCP, UDP and SCTP, and the ICMP that asks.
pub(super) fn text(ranges: &Ranges, families: [bool; 2]) -> Vec<String> {
    let holds = |protocol, first, last| ranges.contains(&(protocol, first, last));
    let asks = |protocol: Protocol| {
        let inside = |number: &u8| {
            let block = PortBlock::icmp_type(*number);
            ranges.iter().any(|(of, first, last)| *of == protocol && *first <= block.first() && block.last() <= *last)
        };
        asking_types(protocol).iter().all(inside)
    };
    let has = [false, true].into_iter().zip(families).filter(|(_, has)| *has);
    let every =
        TRANSPORT.into_iter().all(|protocol| holds(protocol, 0, u16::MAX)) && has.map(|(v6, _)| icmp(v6)).all(asks);
    if !every {
        return words::ranges(ranges);
    }
    // What asks nothing only a rule that names it opens: it is told beside.
    let asking = |(protocol, first, last): &&(Protocol, u16, u16)| {
        TRANSPORT.contains(protocol)
            || asking_types(*protocol).iter().any(|number| (*first, *last) == block_of(*number))
    };
    let beside: Ranges = ranges.iter().filter(|range| !asking(range)).copied().collect();
    std::iter::once("every port".to_owned()).chain(words::ranges(&beside)).collect()
}

fn block_of(number: u8) -> (u16, u16) {
    let block = PortBlock::icmp_type(number);
    (block.first(), block.last())
}
