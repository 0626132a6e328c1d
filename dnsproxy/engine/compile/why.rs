//! Which items speak of a packet, and how near the others come: what a rule set's verdict rests on, for people.

use std::net::IpAddr;

use super::{Compiler, selecting};
use crate::engine::endpoint::PodRef;
use crate::engine::labels::Match;
use crate::engine::name::Name;
use crate::engine::pattern::{Bare, PatternTrie};
use crate::engine::policy::{Item, Peers, Rule};
use crate::engine::port::{PortBlock, covers, opens};
use crate::engine::ruleset::{Direction, Protocol};
use crate::engine::verdict::RuleRef;
use crate::engine::world::Holder;

/// What one item says of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spoken {
    /// The item.
    pub at: RuleRef,
    /// Whether it denies.
    pub deny: bool,
    /// Whether it means the other side.
    pub peers: bool,
    /// Whether it means the port, there: a name is looked up, a `service` must hold.
    pub ports: bool,
    /// What it demands that namegate can't enforce: it allows nothing.
    pub unenforced: Option<String>,
    /// It stands in a policy that could not be read, or that may not select the workload: it only denies.
    pub in_doubt: bool,
}

impl Spoken {
    /// Whether the verdict rests on it.
    pub fn decides(&self) -> bool {
        self.peers && self.ports && self.unenforced.is_none() && (self.deny || !self.in_doubt)
    }
}

impl<'w> Compiler<'w> {
    /// The rules that select a workload, each with whether they surely do.
    pub fn selecting(&self, subject: &PodRef) -> Vec<(RuleRef, Match)> {
        self.rules_of(subject).into_iter().map(|(rule, found)| (rule.at.clone(), found)).collect()
    }

    /// What each item of the rules that select `subject` says of a packet of no flow, in the order in which they stand.
    ///
    /// `port`: the responder's; ICMP: type << 8. `names`: the names for which the workload was granted the address. Of a
    /// Service's address they don't speak: ask for its backends.
    pub fn spoken(
        &self,
        subject: &PodRef,
        direction: Direction,
        address: IpAddr,
        (protocol, port): (Protocol, u16),
        names: &[Name],
    ) -> Vec<Spoken> {
        let rules = self.rules_of(subject);
        let narrow = (protocol, PortBlock::one(port));
        let says = |item: &'w Item, deny: bool, unenforced: Option<String>, in_doubt: bool| {
            let entries = self.entries(subject, direction, item, deny);
            let ports = self.ports_at(&entries, address, deny);
            Spoken {
                at: item.at.clone(),
                deny,
                peers: self.is_meant(&item.peers, address, deny) || selects(&item.peers, names),
                ports: ports.into_iter().any(|wide| if deny { covers(wide, narrow) } else { opens(wide, narrow) }),
                unenforced,
                in_doubt,
            }
        };
        let mut spoken = Vec::new();
        for (rule, found) in &rules {
            let section = rule.section(direction);
            let in_doubt = *found != Match::Yes;
            spoken.extend(section.deny.iter().map(|item| says(item, true, None, in_doubt)));
            spoken.extend(section.allow.iter().map(|item| says(item, false, None, in_doubt)));
            let unenforced = section.unenforced.iter();
            spoken.extend(unenforced.map(|u| says(&u.item, false, Some(u.what.clone()), in_doubt)));
        }
        spoken
    }
}

impl<'w> Compiler<'w> {
    fn rules_of(&self, subject: &PodRef) -> Vec<(&'w Rule, Match)> {
        selecting(self.world, subject, &self.world.labels(&Holder::Pod(subject.clone())))
    }
}

fn selects(peers: &Peers, names: &[Name]) -> bool {
    let Peers::Names(rules) = peers else { return false };
    let mut trie = PatternTrie::new(Bare::Valid);
    for rule in rules {
        trie.insert(rule.pattern.clone(), (), None);
    }
    names.iter().any(|name| trie.matches(name).next().is_some())
}
