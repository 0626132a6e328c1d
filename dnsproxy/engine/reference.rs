//! The policies' meaning, said as plainly as possible: no groups, no bits, no rows, no numbers. What the compiler makes is
//! held against this.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::endpoint::PodRef;
use super::labels::{Labels, Match};
use super::name::Name;
use super::pattern::{Bare, PatternTrie};
use super::policy::{Block, BlockOf, Entity, Item, NameRule, Peers, Port, PortRule, Ports, Rule, ServicePeer};
use super::ruleset::{Direction, PacketVerdict, Protocol};
use super::world::{Enforcement, Holder, Service, World};

/// One packet that belongs to no flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attempt<'a> {
    /// Who opens it.
    pub direction: Direction,
    /// The other side.
    pub address: IpAddr,
    /// TCP, UDP, SCTP, ICMP.
    pub protocol: Protocol,
    /// The responder's port. ICMP: type << 8.
    pub port: u16,
    /// The names for which the workload was granted this address, still live.
    pub granted: &'a [Name],
}

/// What the policies say, asked one after the other.
///
/// `None`: the world has no such pod.
pub fn verdict(world: &World, subject: &PodRef, attempt: Attempt<'_>) -> Option<PacketVerdict> {
    world.pods.get(subject)?;
    let rules = selecting(world, subject);
    if rules.is_empty() && world.enforcement != Enforcement::Always {
        return Some(PacketVerdict::DefaultAllowed);
    }
    Some(Asked { world, subject, rules: &rules, attempt }.verdict())
}

/// Whether the policies let `subject` ask a server that is no Service's address for `name`: `None` if not, else whether a
/// rule says so. What the rule set says of a workload that is steered.
pub fn may_ask(world: &World, subject: &PodRef, server: Attempt<'_>, name: &Name) -> Option<bool> {
    let rules = selecting(world, subject);
    let asked = Asked { world, subject, rules: &rules, attempt: server };
    let (mut by_plain, mut by_names, mut is_ruled) = (false, false, false);
    for (rule, allows) in &rules {
        if rule.egress.deny.iter().any(|item| asked.means(item, true) && asked.on_port(item, true)) {
            return None;
        }
        for item in rule.egress.allow.iter().filter(|item| *allows && asked.means(item, false)) {
            // Without `rules.dns` a server that is open on the port of DNS may be asked anything there.
            by_plain |= server.port == 53 && asked.on_port(item, false);
            let Ports::These(entries) = &item.ports else { continue };
            for entry in entries {
                let Some(names) = &entry.dns else { continue };
                if asked.on_entry(item, entry, false) {
                    is_ruled = true;
                    by_names |= any_matches(names, Bare::Every, name) || asked.is_merged(item, entry);
                }
            }
        }
    }
    let by_rule = if is_ruled { by_names } else { by_plain };
    let shut = world.enforcement == Enforcement::Always || rules.iter().any(|(rule, _)| rule.egress.default_deny);
    (by_rule || !shut).then_some(by_rule)
}

/// The rules that select the pod, each with whether what it allows holds: a policy that could not be read, or whose
/// selector asks for labels that are not known, only denies.
fn selecting<'w>(world: &'w World, subject: &PodRef) -> Vec<(&'w Rule, bool)> {
    let labels = world.labels(&Holder::Pod(subject.clone()));
    let mut rules: Vec<(&Rule, bool)> = Vec::new();
    if world.enforcement == Enforcement::Never {
        return rules;
    }
    for (policies, refused) in [(&world.policies, false), (&world.refused, true)] {
        for rule in policies.iter().flat_map(|policy| &policy.rules) {
            let here = rule.subject.namespace.as_ref().is_none_or(|namespace| *namespace == subject.namespace);
            match rule.subject.selector.matches(&labels) {
                Match::Yes if here => rules.push((rule, !refused)),
                Match::Maybe if here => rules.push((rule, false)),
                _ => {}
            }
        }
    }
    rules
}

/// One attempt and everything it is judged by.
#[derive(Clone, Copy)]
struct Asked<'a> {
    world: &'a World,
    subject: &'a PodRef,
    rules: &'a [(&'a Rule, bool)],
    attempt: Attempt<'a>,
}

/// The addresses in a Service's slices.
struct Behind {
    known: bool,
    ready: BTreeSet<IpAddr>,
    all: BTreeSet<IpAddr>,
}

impl Asked<'_> {
    fn verdict(self) -> PacketVerdict {
        let direction = self.attempt.direction;
        let shut = self.world.enforcement == Enforcement::Always
            || self.rules.iter().any(|(rule, _)| rule.section(direction).default_deny);
        // Point 7 of cilium.md 3.7; and ICMP that asks nothing is never open by default.
        let default = if shut || self.is_unasked() { PacketVerdict::NotAllowed } else { PacketVerdict::DefaultAllowed };
        if direction == Direction::Egress && self.is_service() {
            return self.service_verdict().unwrap_or(default);
        }
        let mut allowed = false;
        for (rule, allows) in self.rules {
            let section = rule.section(direction);
            if section.deny.iter().any(|item| self.means(item, true) && self.on_port(item, true)) {
                return PacketVerdict::Denied;
            }
            allowed |= *allows && section.allow.iter().any(|item| self.means(item, false) && self.on_port(item, false));
        }
        let own_node = matches!(self.holders().as_slice(), [Holder::Host | Holder::HostApiserver]);
        match allowed {
            true => PacketVerdict::Allowed,
            false if direction == Direction::Ingress && own_node && !self.is_unasked() => PacketVerdict::Host,
            false => default,
        }
    }

    /// A Service's address: asked of every ready backend behind that port; `None` where that says nothing.
    fn service_verdict(self) -> Option<PacketVerdict> {
        let mut verdicts = Vec::new();
        let mut sure = true;
        for ((namespace, name), service) in &self.world.services {
            let here = |port: u16, protocol| port == self.attempt.port && protocol == self.attempt.protocol;
            let ports = service.ports.iter().filter(|port| here(port.port, port.protocol));
            for port in ports.filter(|_| service.addresses.contains(&self.attempt.address)) {
                sure &= self.behind(namespace, name).is_some_and(|behind| behind.known);
                for slice in self.world.slices_of(namespace, name) {
                    let targets = slice.ports.iter().filter(|t| t.name == port.name && t.protocol == port.protocol);
                    for target in targets {
                        sure &= target.port.is_some();
                        let ready = slice.endpoints.iter().filter(|(_, ready)| *ready).flat_map(|(all, _)| all);
                        for address in ready.filter(|a| a.is_ipv4() == self.attempt.address.is_ipv4()) {
                            let Some(port) = target.port else { continue };
                            let attempt = Attempt { address: *address, port, granted: &[], ..self.attempt };
                            let backend = Asked { attempt, ..self };
                            // A backend that is itself a Service's address stands for nothing further.
                            let nothing = backend.is_service();
                            verdicts.push(if nothing { PacketVerdict::NotAllowed } else { backend.verdict() });
                        }
                    }
                }
            }
        }
        if verdicts.contains(&PacketVerdict::Denied) {
            return Some(PacketVerdict::Denied);
        }
        let all = sure && !verdicts.is_empty() && verdicts.iter().all(|verdict| *verdict == PacketVerdict::Allowed);
        all.then_some(PacketVerdict::Allowed)
    }

    /// Whether the item's peers are who is at the address.
    fn means(&self, item: &Item, deny: bool) -> bool {
        let holders = self.holders();
        match &item.peers {
            Peers::Any => true,
            Peers::Entities(entities) if entities.contains(&Entity::All) => true,
            Peers::Names(names) => self.attempt.granted.iter().any(|granted| any_matches(names, Bare::Valid, granted)),
            // A Service's address is neither a pod's nor outside.
            _ if holders.is_empty() => !self.is_service() && self.means_outside(&item.peers, deny),
            // One of those who claim the address for a denial, all of them for an allowance.
            peers if deny => holders.iter().any(|holder| {
                // A name may lead to an API server out of the cluster, as to any address there.
                let is_outside = *holder == Holder::Apiserver && self.means_outside(peers, true);
                is_outside || self.means_holder(peers, holder, true)
            }),
            peers => holders.iter().all(|holder| self.means_holder(peers, holder, false)),
        }
    }

    fn means_holder(&self, peers: &Peers, holder: &Holder, deny: bool) -> bool {
        let pod = matches!(holder, Holder::Pod(_));
        match peers {
            Peers::Endpoints(selectors) => selectors.iter().any(|selector| {
                let labels = self.world.labels(holder);
                match selector.matches(&labels) {
                    Match::Yes => deny || pod || selector.names_reserved(),
                    Match::Maybe => deny,
                    Match::No => false,
                }
            }),
            Peers::Nodes(selectors) => {
                let labels = self.world.node_labels(holder);
                labels.is_some_and(|labels| selectors.iter().any(|s| s.matches(&labels) == Match::Yes))
            }
            Peers::Entities(entities) => entities.iter().any(|entity| match entity {
                Entity::All | Entity::Cluster | Entity::ClusterMesh => true,
                Entity::Host => matches!(holder, Holder::Host | Holder::HostApiserver),
                Entity::RemoteNode => !pod && !matches!(holder, Holder::Host | Holder::HostApiserver),
                Entity::KubeApiserver => {
                    matches!(holder, Holder::HostApiserver | Holder::NodeApiserver(_) | Holder::Apiserver)
                }
                Entity::World | Entity::Ingress | Entity::Init | Entity::Health | Entity::Unmanaged | Entity::None => {
                    false
                }
            }),
            Peers::Services(services) => self.services(services, deny).into_iter().any(|(namespace, _, service)| {
                let Holder::Pod(reference) = holder else { return false };
                let Some(pod) = self.world.pods.get(reference) else { return false };
                let here = reference.namespace == namespace;
                match (service.readable, service.selector.is_empty(), pod.readable) {
                    (true, true, _) => false,
                    (true, false, true) => here && service.selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v)),
                    (false, ..) | (true, false, false) => here && deny,
                }
            }),
            Peers::Any | Peers::Networks(_) | Peers::Names(_) => false,
        }
    }

    fn means_outside(&self, peers: &Peers, deny: bool) -> bool {
        match peers {
            Peers::Networks(blocks) => blocks.iter().any(|block| self.in_block(block, deny)),
            Peers::Entities(entities) => entities.contains(&Entity::World),
            Peers::Endpoints(selectors) => {
                let world = Labels::reserved(&["world"]);
                let mut meant = selectors.iter().filter(|selector| selector.matches(&world) == Match::Yes);
                meant.any(|selector| deny || selector.names_reserved())
            }
            Peers::Services(services) => self.services(services, deny).into_iter().any(|(namespace, name, service)| {
                let behind = self.behind(namespace, name);
                let known = service.readable && behind.as_ref().is_some_and(|behind| behind.known);
                if service.readable && !service.selector.is_empty() {
                    return false;
                }
                if known { behind.is_some_and(|b| b.all.contains(&self.attempt.address)) } else { deny }
            }),
            Peers::Any | Peers::Nodes(_) | Peers::Names(_) => false,
        }
    }

    fn in_block(&self, block: &Block, deny: bool) -> bool {
        let address = self.attempt.address;
        let in_one = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&address));
        let groups = self.world.cidr_groups.iter();
        let within = match &block.of {
            BlockOf::Here(network) => in_one(&[*network]),
            BlockOf::Group(wanted) => groups
                .filter(|(name, _)| *name == wanted)
                .any(|(_, group)| if group.readable { in_one(&group.networks) } else { deny }),
            BlockOf::Groups(selector) => groups.map(|(_, group)| group).any(|group| match group.readable {
                true => selector.matches(&Labels::of_object(&group.labels)) == Match::Yes && in_one(&group.networks),
                false => deny,
            }),
        };
        within && !in_one(&block.except)
    }

    /// Whether the item means the port, without `rules.dns`: those ports are the proxy's.
    fn on_port(&self, item: &Item, deny: bool) -> bool {
        match &item.ports {
            Ports::All => deny || !self.is_unasked(),
            Ports::These(entries) => {
                entries.iter().filter(|entry| entry.dns.is_none()).any(|entry| self.on_entry(item, entry, deny))
            }
        }
    }

    /// Whether a rule without `rules.dns` has a selector and a port in common with this entry, and these mean the attempt.
    fn is_merged(&self, item: &Item, entry: &PortRule) -> bool {
        let allows = self.rules.iter().filter(|(_, allows)| *allows).flat_map(|(rule, _)| &rule.egress.allow);
        for other in allows {
            let Ports::These(entries) = &other.ports else { continue };
            for plain in entries.iter().filter(|plain| plain.dns.is_none() && plain.service == entry.service) {
                let ports = plain.ports.intersection(&entry.ports).cloned().collect();
                let common = PortRule { ports, dns: None, ..plain.clone() };
                for peers in common_selectors(&item.peers, &other.peers) {
                    let both = Item { peers, ..other.clone() };
                    if self.means(&both, false) && self.on_entry(&both, &common, false) {
                        return true;
                    }
                }
            }
        }
        false
    }

    fn on_entry(&self, item: &Item, entry: &PortRule, deny: bool) -> bool {
        let Attempt { protocol, port, .. } = self.attempt;
        let by_number = |(wide, ports): &(Protocol, Port)| {
            *wide == protocol && matches!(ports, Port::Block(block) if block.holds(port))
        };
        let by_name = |reference: &PodRef| {
            let Some(pod) = self.world.pods.get(reference) else { return false };
            entry.ports.iter().any(|(wide, name)| {
                let Port::Named(name) = name else { return false };
                let has = || pod.ports.iter().any(|p| p.name == *name && p.protocol == protocol && p.port == port);
                *wide == protocol && if pod.readable { has() } else { deny }
            })
        };
        let of_holder = |holder: &Holder| matches!(holder, Holder::Pod(pod) if by_name(pod));
        let holders = self.holders();
        let named = match self.attempt.direction {
            // A name stands for who is outside, and who is outside has no containers.
            _ if matches!(item.peers, Peers::Names(_)) => false,
            // The subject listens.
            Direction::Ingress => by_name(self.subject),
            Direction::Egress if deny => holders.iter().any(of_holder),
            Direction::Egress => !holders.is_empty() && holders.iter().all(of_holder),
        };
        (named || entry.ports.iter().any(by_number)) && self.service_holds(entry, deny)
    }

    /// `service`: what is asked for must be one of its addresses.
    fn service_holds(&self, entry: &PortRule, deny: bool) -> bool {
        let Some((namespace, name)) = &entry.service else { return true };
        let Some(behind) = self.behind(namespace, name) else { return false };
        if !behind.known {
            return deny;
        }
        let addresses = if deny { behind.all } else { behind.ready };
        let holders = self.holders();
        if self.is_service() || (!deny && holders == [Holder::Host]) {
            // This node has more addresses than the snapshot knows of.
            return false;
        }
        // Addresses of one family that have the same holder are open or shut together; those of this node all are.
        let mut together = BTreeSet::from([self.attempt.address]);
        let own_node = matches!(holders.as_slice(), [Holder::Host | Holder::HostApiserver]);
        for (address, others) in self.world.holders() {
            let same_family = own_node || address.is_ipv4() == self.attempt.address.is_ipv4();
            if same_family && !holders.is_empty() && others.into_iter().collect::<Vec<_>>() == holders {
                together.insert(address);
            }
        }
        let holds = |remote: &IpAddr| match self.attempt.direction {
            Direction::Egress => addresses.contains(remote),
            Direction::Ingress => {
                let own = self.world.pods.get(self.subject).map_or(&[][..], |pod| &pod.addresses);
                let mut own = own.iter().filter(|own| own.is_ipv4() == remote.is_ipv4()).peekable();
                match deny {
                    true => own.any(|own| addresses.contains(own)),
                    false => own.peek().is_some() && own.all(|own| addresses.contains(own)),
                }
            }
        };
        if deny { together.iter().any(holds) } else { together.iter().all(holds) }
    }

    /// What is behind a Service, if there is such a Service.
    fn behind(&self, namespace: &str, name: &str) -> Option<Behind> {
        let service = self.world.services.get(&(namespace.to_owned(), name.to_owned()))?;
        let slices = || self.world.slices_of(namespace, name);
        // A slice whose Service can't be read may be any's of its namespace; one without a namespace, anyone's.
        let unread = self.world.endpoint_slices.iter().any(|((there, _), slice)| {
            !slice.readable && slice.service.is_none() && (there == namespace || there.is_empty())
        });
        let endpoints = || slices().flat_map(|slice| &slice.endpoints);
        Some(Behind {
            known: service.readable && !unread && slices().all(|slice| slice.readable),
            ready: endpoints().filter(|(_, ready)| *ready).flat_map(|(all, _)| all).copied().collect(),
            all: endpoints().flat_map(|(all, _)| all).copied().collect(),
        })
    }

    fn services(&self, wanted: &[ServicePeer], deny: bool) -> Vec<(&str, &str, &Service)> {
        let meant = |there: &str, name: &str, service: &Service| {
            wanted.iter().any(|wanted| match wanted {
                ServicePeer::Named { namespace, name: wanted } => namespace == there && wanted == name,
                ServicePeer::Selected { namespace, selector } => {
                    let labels = Labels::of_object(&service.labels);
                    namespace.as_ref().is_none_or(|namespace| namespace == there)
                        && if service.readable { selector.matches(&labels) == Match::Yes } else { deny }
                }
            })
        };
        let all = self.world.services.iter().map(|((namespace, name), s)| (namespace.as_str(), name.as_str(), s));
        all.filter(|(namespace, name, service)| meant(namespace, name, service)).collect()
    }

    fn holders(&self) -> Vec<Holder> {
        self.world.holders().remove(&self.attempt.address).into_iter().flatten().collect()
    }

    fn is_service(&self) -> bool {
        let services = self.world.services.values();
        self.holders().is_empty() && services.into_iter().any(|s| s.addresses.contains(&self.attempt.address))
    }

    /// ICMP that asks nothing: neither an echo, nor a timestamp, nor an extended echo.
    fn is_unasked(&self) -> bool {
        match self.attempt.protocol {
            Protocol::Icmp => ![8, 13, 42].contains(&(self.attempt.port >> 8)),
            Protocol::Icmpv6 => ![128, 160].contains(&(self.attempt.port >> 8)),
            Protocol::Any | Protocol::Tcp | Protocol::Udp | Protocol::Sctp => false,
        }
    }
}

fn any_matches(names: &[NameRule], bare: Bare, name: &Name) -> bool {
    names.iter().any(|rule| {
        let mut trie = PatternTrie::new(bare);
        trie.insert(rule.pattern.clone(), (), None);
        trie.matches(name).next().is_some()
    })
}

/// The selectors that stand in both, each as peers of their own.
fn common_selectors(one: &Peers, other: &Peers) -> Vec<Peers> {
    fn both<T: Clone + PartialEq>(one: &[T], other: &[T], peers: impl Fn(Vec<T>) -> Peers) -> Vec<Peers> {
        one.iter().filter(|each| other.contains(each)).map(|each| peers(vec![each.clone()])).collect()
    }
    let is_all = |peers: &Peers| match peers {
        Peers::Any => true,
        Peers::Entities(entities) => entities.contains(&Entity::All),
        _ => false,
    };
    let mut common = match (one, other) {
        (Peers::Endpoints(one), Peers::Endpoints(other)) => both(one, other, Peers::Endpoints),
        (Peers::Nodes(one), Peers::Nodes(other)) => both(one, other, Peers::Nodes),
        (Peers::Networks(one), Peers::Networks(other)) => both(one, other, Peers::Networks),
        (Peers::Services(one), Peers::Services(other)) => both(one, other, Peers::Services),
        (Peers::Entities(one), Peers::Entities(other)) => {
            one.intersection(other).map(|entity| Peers::Entities([*entity].into())).collect()
        }
        _ => Vec::new(),
    };
    if is_all(one) && is_all(other) {
        common.push(Peers::Any);
    }
    common
}
