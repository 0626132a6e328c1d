//! What a policy means, for people: the chain from a question to its verdict, asked of the same rule sets that the kernel's
//! rows are made from.
//!
//! - [`question`]: what is asked; [`answer`]: the chain as a value; [`words`]: rules as short text
//! - `side`: one side of a connection; `names`: queries, and what a name may open
//! - [`stand_in`]: pods, nodes and addresses that a question speaks of and the snapshot doesn't have
//! - [`overview`]: policies, selectors and endpoints in lists; [`diff`]: what changes from one snapshot to another

pub mod answer;
pub mod diff;
mod names;
pub mod overview;
pub mod question;
mod side;
pub mod stand_in;
#[cfg(test)]
mod tests;
pub mod words;

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use answer::{Answer, Connection, Grant, Line, Selecting};
use ipnet::IpNet;
use question::{Question, Target};

use super::bits::Bits;
use super::compile::Compiler;
use super::endpoint::PodRef;
use super::guard::Guard;
use super::labels::Match;
use super::name::Name;
use super::policy::{Item, Rule};
use super::ruleset::{Direction, PeerId, Protocol, RuleSet};
use super::verdict::RuleRef;
use super::wire::type_text;
use super::world::{Holder, PeerIds, World};

/// What holds around the policies.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Which addresses a name may open.
    pub guard: Guard,
    /// The cluster's own DNS servers: whom a pod asks, unless told otherwise.
    pub cluster_dns: Vec<IpAddr>,
    /// Servers whose answers may be learned whatever policy says of them: the cluster's and the configured ones.
    pub trusted: BTreeSet<IpAddr>,
    /// Servers that the proxy stands in for, beside those that a rule of the workload names.
    pub proxied: BTreeSet<IpAddr>,
    /// Where the cluster has no DNS servers of its own, take it that those are its that a rule lets be asked: what policies
    /// say of names, whatever is in the snapshot.
    pub assume_dns: bool,
}

/// An address that a workload has learned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// For which name; `None` when it isn't known any more.
    pub name: Option<Name>,
    /// The address.
    pub address: IpAddr,
    /// The groups that it opens.
    pub bits: Bits,
    /// How long new connections are let by it.
    pub seconds_left: u64,
    /// Whether connections live.
    pub connections: bool,
}

/// Explains verdicts of one world.
pub struct Explainer<'w> {
    world: &'w World,
    compiler: Compiler<'w>,
    surroundings: Surroundings,
    holders: BTreeMap<IpAddr, BTreeSet<Holder>>,
    written: OnceCell<Written<'w>>,
    sets: RefCell<BTreeMap<PodRef, Result<Arc<RuleSet>, String>>>,
    held: BTreeMap<PodRef, Vec<Held>>,
}

/// The rules and items of all policies by their places.
struct Written<'w> {
    rules: BTreeMap<&'w RuleRef, &'w Rule>,
    items: BTreeMap<&'w RuleRef, &'w Item>,
}

/// Addresses that nobody should have: RFC 5737 and RFC 3849.
const DOCUMENTED_V4: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
];
/// The same of IPv6.
const DOCUMENTED_V6: [IpAddr; 1] = [IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
/// How many of a Service's backends are shown.
const BACKENDS: usize = 16;

impl<'w> Explainer<'w> {
    /// Of this world.
    pub fn new(world: &'w World, surroundings: Surroundings) -> Explainer<'w> {
        Explainer {
            world,
            compiler: Compiler::new(world, &mut PeerIds::default()),
            surroundings,
            holders: world.holders(),
            written: OnceCell::new(),
            sets: RefCell::default(),
            held: BTreeMap::new(),
        }
    }

    /// What is in force for a workload that runs, and what it has learned.
    pub fn running(&mut self, pod: PodRef, rules: Arc<RuleSet>, held: Vec<Held>) {
        self.sets.get_mut().insert(pod.clone(), Ok(rules));
        self.held.insert(pod, held);
    }

    /// The world.
    pub fn world(&self) -> &'w World {
        self.world
    }

    /// The rule set of a pod, compiled once.
    ///
    /// # Errors
    /// Why it has none.
    pub fn rules(&self, pod: &PodRef) -> Result<Arc<RuleSet>, String> {
        if let Some(known) = self.sets.borrow().get(pod) {
            return known.clone();
        }
        let set = self.compiler.compile(pod, &[]).map(Arc::new).map_err(|error| error.to_string());
        self.sets.borrow_mut().insert(pod.clone(), set.clone());
        set
    }

    /// The chain.
    ///
    /// # Errors
    /// The question can't be asked: no such pod, or one without a network of its own.
    pub fn explain(&self, question: &Question) -> Result<Answer, String> {
        let from = &question.from;
        let rules = self.rules(from)?;
        let mut answer = Answer {
            from: from.to_string(),
            to: match &question.to {
                Target::Name(name) => name.to_string().trim_end_matches('.').to_owned(),
                Target::Address(address) => address.to_string(),
                Target::Pod(pod) => pod.to_string(),
            },
            port: question.port.map(|(protocol, port)| words::port(protocol, port)),
            audit: rules.audit,
            steered: rules.steered(),
            selected_by: self.selected_by(from),
            ..Answer::default()
        };
        match &question.to {
            Target::Name(name) => self.name(question, &rules, name, &mut answer),
            Target::Address(address) => answer.connections = self.reach(from, &rules, *address, question.port),
            Target::Pod(pod) => self.pod(question, &rules, pod, &mut answer)?,
        }
        let asked = answer.queries.is_empty() || answer.queries.iter().any(|query| query.allowed);
        let reached = !answer.connections.is_empty() && answer.connections.iter().all(|one| one.allowed);
        answer.allowed = asked && reached;
        answer.why = sentence(&answer, asked);
        Ok(answer)
    }

    /// The rules that select a pod.
    pub fn selected_by(&self, pod: &PodRef) -> Vec<Selecting> {
        let selecting = self.compiler.selecting(pod).into_iter();
        let told = selecting.map(|(at, found)| {
            let rule = self.written().rules.get(&at);
            Selecting {
                policy: words::policy(&at),
                place: at.0.place.clone(),
                path: at.0.path.clone(),
                egress: rule.is_some_and(|rule| rule.egress.default_deny),
                ingress: rule.is_some_and(|rule| rule.ingress.default_deny),
                in_doubt: found != Match::Yes
                    || self.world.refused.iter().any(|policy| policy.rules.iter().any(|rule| rule.at == at)),
            }
        });
        told.collect()
    }

    /// A pod at each of its addresses that the asker can reach.
    fn pod(&self, question: &Question, rules: &RuleSet, to: &PodRef, answer: &mut Answer) -> Result<(), String> {
        let pod = self.world.pods.get(to);
        let pod = pod.ok_or_else(|| {
            format!("pod {to} is not in the snapshot; a Pod object of that namespace and name is needed")
        })?;
        if pod.finished {
            answer.notes.push(format!("pod {to} has ended: its addresses are nobody's"));
        }
        if pod.addresses.is_empty() {
            answer.notes.push(format!("pod {to} has no address (status.podIPs): nothing passes"));
        }
        let from = self.world.pods.get(&question.from).map_or(&[][..], |pod| &pod.addresses);
        let families = |address: &&IpAddr| from.is_empty() || from.iter().any(|own| own.is_ipv4() == address.is_ipv4());
        for address in pod.addresses.iter().filter(families) {
            answer.connections.extend(self.reach(&question.from, rules, *address, question.port));
        }
        Ok(())
    }

    /// Both sides of a connection to an address: what the asker's rules say, and what those of the pod behind it do.
    fn reach(&self, from: &PodRef, rules: &RuleSet, address: IpAddr, port: Option<(Protocol, u16)>) -> Vec<Connection> {
        if rules.known.get(&address) == Some(&PeerId::SERVICE) {
            return vec![self.service(from, rules, address, port)];
        }
        let (bits, names, grants) = self.held_at(from, address);
        let mut egress = self.side((from, rules), Direction::Egress, address, port, (&names, bits));
        egress.grants = grants;
        let mut sides = vec![egress];
        sides.extend(self.ingress(from, address, port));
        if port.is_none() && sides.len() > 1 && sides.iter().all(|side| side.allowed) {
            self.find_common_port(from, rules, address, bits, &mut sides);
        }
        sides
    }

    /// Each side opens some port: whether it is the same one.
    fn find_common_port(&self, from: &PodRef, rules: &RuleSet, address: IpAddr, bits: Bits, sides: &mut [Connection]) {
        let own = self.world.pods.get(from).map_or(&[][..], |pod| &pod.addresses);
        let Some(source) = own.iter().find(|own| own.is_ipv4() == address.is_ipv4()) else { return };
        let holders = self.holders.get(&address).into_iter().flatten();
        let pods = holders.filter_map(|holder| if let Holder::Pod(pod) = holder { self.rules(pod).ok() } else { None });
        let inside: Vec<Arc<RuleSet>> = pods.collect();
        let mut ports = side::candidates(rules, Direction::Egress);
        ports.extend(inside.iter().flat_map(|rules| side::candidates(rules, Direction::Ingress)));
        let passes = |(protocol, block): &(Protocol, super::port::PortBlock)| {
            let at = (*protocol, block.first());
            self.judge(rules, Direction::Egress, address, at, bits).passes()
                && inside.iter().all(|rules| self.judge(rules, Direction::Ingress, *source, at, Bits::NONE).passes())
        };
        if !ports.iter().any(passes)
            && let Some(last) = sides.last_mut()
        {
            last.allowed = false;
            last.verdict = answer::Verdict::NotAllowed;
            last.notes.push("no port that one side opens is open at the other".to_owned());
        }
    }

    /// What the rules of the pods behind an address say of this peer.
    fn ingress(&self, from: &PodRef, address: IpAddr, port: Option<(Protocol, u16)>) -> Vec<Connection> {
        let own = self.world.pods.get(from).map_or(&[][..], |pod| &pod.addresses);
        let source = own.iter().find(|own| own.is_ipv4() == address.is_ipv4());
        let holders = self.holders.get(&address).into_iter().flatten();
        let pods = holders.filter_map(|holder| if let Holder::Pod(pod) = holder { Some(pod) } else { None });
        pods.filter(|pod| *pod != from)
            .map(|pod| match (self.rules(pod), source) {
                (Ok(rules), Some(source)) => {
                    self.side((pod, &rules), Direction::Ingress, *source, port, (&[], Bits::NONE))
                }
                (rules, _) => {
                    let note = rules.err().unwrap_or_else(|| format!("pod {from} has no address of that family"));
                    let (direction, of) = (words::direction(Direction::Ingress).to_owned(), pod.to_string());
                    Connection {
                        direction,
                        of,
                        peer_is: format!("pod {from}"),
                        notes: vec![note],
                        ..Connection::default()
                    }
                }
            })
            .collect()
    }

    /// A Service's address stands for its ready backends.
    fn service(&self, from: &PodRef, rules: &RuleSet, address: IpAddr, port: Option<(Protocol, u16)>) -> Connection {
        let mut front = self.side((from, rules), Direction::Egress, address, port, (&[], Bits::NONE));
        let Some((protocol, number)) = port else {
            if front.open.is_empty() {
                let all = self.compiler.service_ports(address);
                let all: Vec<String> = all.into_iter().map(|(protocol, port)| words::port(protocol, port)).collect();
                front.notes.push(format!("its ports are {}", words::some(&all, ", ", "none")));
            }
            return front;
        };
        let Some(behind) = self.compiler.behind(address, protocol, number) else {
            let all = self.compiler.service_ports(address);
            let all: Vec<String> = all.into_iter().map(|(protocol, port)| words::port(protocol, port)).collect();
            front.notes.push(format!("the Service has no such port; it has {}", words::some(&all, ", ", "none")));
            return front;
        };
        if behind.backends.is_empty() {
            front.notes.push("no backend is ready".to_owned());
        }
        if !behind.complete {
            front.notes.push("not all of its backends are known: nothing opens it".to_owned());
        }
        if behind.backends.len() > BACKENDS {
            front.notes.push(format!("{} backends; the first {BACKENDS} are shown", behind.backends.len()));
        }
        for (backend, target) in behind.backends.into_iter().take(BACKENDS) {
            let port = Some((protocol, target));
            // A query is judged at the Service's address, which the proxy stands in for; the backend only has to let it in.
            if front.verdict != answer::Verdict::Proxied {
                front.behind.push(self.side((from, rules), Direction::Egress, backend, port, (&[], Bits::NONE)));
            }
            front.behind.extend(self.ingress(from, backend, port));
        }
        front.allowed &= front.behind.iter().all(|side| side.allowed);
        front
    }

    /// What a workload holds for an address: the groups, the names, and both for people.
    fn held_at(&self, pod: &PodRef, address: IpAddr) -> (Bits, Vec<Name>, Vec<Grant>) {
        let held = self.held.get(pod).into_iter().flatten().filter(|held| held.address == address);
        let (mut bits, mut names, mut grants) = (Bits::NONE, Vec::new(), Vec::new());
        for held in held {
            grants.push(Grant {
                name: held.name.as_ref().map_or_else(String::new, ToString::to_string),
                seconds_left: held.seconds_left,
                connections: held.connections,
            });
            if held.seconds_left > 0 {
                bits |= held.bits;
                names.extend(held.name.clone());
            }
        }
        (bits, names, grants)
    }

    fn written(&self) -> &Written<'w> {
        self.written.get_or_init(|| {
            let policies = self.world.policies.iter().chain(&self.world.refused);
            let all: Vec<&Rule> = policies.flat_map(|policy| &policy.rules).collect();
            let sections = all.iter().flat_map(|rule| [&rule.egress, &rule.ingress]);
            let items = sections.flat_map(|section| {
                let unenforced = section.unenforced.iter().map(|unenforced| &unenforced.item);
                section.allow.iter().chain(&section.deny).chain(unenforced)
            });
            Written {
                items: items.map(|item| (&item.at, item)).collect(),
                rules: all.iter().map(|rule| (&rule.at, *rule)).collect(),
            }
        })
    }

    /// A rule for people.
    fn line(&self, at: &RuleRef, says: String) -> Line {
        Line { policy: words::policy(at), place: at.0.place.clone(), path: at.0.path.clone(), says }
    }

    /// Who is behind an address.
    fn who(&self, address: IpAddr) -> String {
        if let Some(holders) = self.holders.get(&address) {
            return holders.iter().map(words::holder).collect::<Vec<_>>().join(" and ");
        }
        let mut services = self.world.services.iter();
        match services.find(|(_, service)| service.addresses.contains(&address)) {
            Some(((namespace, name), _)) => format!("Service {namespace}/{name}"),
            None => "outside the cluster".to_owned(),
        }
    }

    /// An address of nobody in the cluster that rules speak of as little as they can: in no block but, maybe, that of all
    /// addresses.
    pub fn outside(&self, rules: &RuleSet, v6: bool) -> IpAddr {
        let documented: &[IpAddr] = if v6 { &DOCUMENTED_V6 } else { &DOCUMENTED_V4 };
        let narrow = || rules.cidrs.iter().map(|(network, _)| network).filter(|network| network.prefix_len() > 0);
        let services = || self.world.services.values().flat_map(|service| &service.addresses);
        let is_nobodys = |address: &IpAddr| {
            address.is_ipv4() != v6
                && !rules.known.contains_key(address)
                && !self.holders.contains_key(address)
                && !services().any(|of| of == address)
        };
        // What is free begins somewhere: behind a block, or behind somebody.
        let candidates = || {
            let taken = rules.known.keys().chain(self.holders.keys()).chain(services()).copied();
            let behind = narrow().map(IpNet::broadcast).chain(taken).filter_map(after);
            documented.iter().copied().chain(behind).filter(is_nobodys)
        };
        let free = candidates().find(|address| !narrow().any(|network| network.contains(address)));
        free.or_else(|| candidates().next()).unwrap_or(documented[0])
    }
}

/// The verdict in a sentence.
fn sentence(answer: &Answer, asked: bool) -> String {
    if !asked && let Some(query) = answer.queries.first() {
        let to = query.resolver.map_or_else(String::new, |resolver| format!(" to {resolver}"));
        return format!("the query{to} is refused ({})", query.reason);
    }
    match answer.connections.iter().find(|one| !one.allowed) {
        Some(one) => {
            let inner = one.behind.iter().find(|side| !side.allowed).unwrap_or(one);
            format!("{} of {}: {}", inner.direction, inner.of, inner.verdict.text())
        }
        None if answer.connections.is_empty() => {
            answer.notes.last().cloned().unwrap_or_else(|| "there is nothing to connect to".to_owned())
        }
        None if answer.connections.iter().any(|one| one.peer.is_none()) => {
            "allowed once the name resolves to an address that may be granted".to_owned()
        }
        None => "allowed".to_owned(),
    }
}

/// The type of record as text.
fn type_of(qtype: u16) -> String {
    type_text(qtype)
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| std::net::Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| std::net::Ipv6Addr::from_bits(bits).into()),
    }
}
