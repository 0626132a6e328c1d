//! Names: whether they may be asked for, and what they may open.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::answer::{Answer, Connection, Line, QueryAnswer};
use super::question::Question;
use super::{Explainer, type_of, words};
use crate::engine::bits::Bits;
use crate::engine::endpoint::PodRef;
use crate::engine::name::Name;
use crate::engine::policy::Peers;
use crate::engine::ruleset::{Direction, PeerId, Protocol, RuleSet, Servers};
use crate::engine::verdict;
use crate::engine::wire::CLASS_IN;

/// The port of DNS.
const DNS: u16 = 53;

impl Explainer<'_> {
    /// The query for a name, and the connections to what it stands for.
    pub(super) fn name(&self, question: &Question, rules: &RuleSet, name: &Name, answer: &mut Answer) {
        let (from, port) = (&question.from, question.port);
        answer.queries = self.queries(from, rules, (name, question.qtype), question.resolver);
        if self.surroundings.guard.is_cluster_name(name) {
            answer.queries.iter_mut().for_each(|query| query.grants = false);
            answer
                .notes
                .push("a name of the cluster grants nothing: rules for endpoints and Services speak".to_owned());
            let addresses = self.cluster_addresses(name);
            if addresses.is_empty() {
                answer.notes.push(format!("the snapshot has no Service {name}"));
            }
            for address in addresses {
                answer.connections.extend(self.reach(from, rules, address, port));
            }
            return;
        }
        let held = self.held.get(from).into_iter().flatten();
        let addresses: BTreeSet<IpAddr> =
            held.filter(|held| held.name.as_ref() == Some(name)).map(|held| held.address).collect();
        for address in &addresses {
            answer.connections.extend(self.reach(from, rules, *address, port));
        }
        if addresses.is_empty() {
            answer.connections.push(self.once_resolved(from, rules, name, port, &answer.queries));
        }
    }

    /// Whether the name may be asked for, at each server that the workload would ask.
    pub fn queries(
        &self,
        from: &PodRef,
        rules: &RuleSet,
        (name, qtype): (&Name, u16),
        resolver: Option<IpAddr>,
    ) -> Vec<QueryAnswer> {
        let servers = match resolver {
            Some(server) => vec![server],
            None if !self.surroundings.cluster_dns.is_empty() => self.surroundings.cluster_dns.clone(),
            None => self.servers(rules),
        };
        let shown = name.to_string().trim_end_matches('.').to_owned();
        if servers.is_empty() {
            let hint = "there is no Service kube-system/kube-dns and no rule names a server; --resolver names one";
            return vec![QueryAnswer {
                name: shown,
                qtype: type_of(qtype),
                port: words::port(Protocol::Udp, DNS),
                reason: "no server".to_owned(),
                by: self.shut_by(from, Direction::Egress),
                hint: Some(hint.to_owned()),
                ..QueryAnswer::default()
            }];
        }
        let assumed = resolver.is_none() && self.surroundings.cluster_dns.is_empty() && self.surroundings.assume_dns;
        let ask = |server| {
            let proxied = assumed || self.is_proxied(rules, server);
            let [udp, tcp] = [Protocol::Udp, Protocol::Tcp].map(|protocol| {
                let mut answer = self.query(from, rules, (server, protocol, proxied), (name, qtype));
                answer.name.clone_from(&shown);
                answer
            });
            if tcp.allowed && !udp.allowed { tcp } else { udp }
        };
        let mut answers: Vec<QueryAnswer> = servers.into_iter().map(ask).collect();
        // Of servers that nobody named, one that may be asked is enough.
        if resolver.is_none() && self.surroundings.cluster_dns.is_empty() {
            answers.sort_by_key(|answer| !answer.allowed);
            answers.truncate(1);
        }
        answers
    }

    /// The servers that rules let the workload ask: those that they name, else one that stands for them.
    fn servers(&self, rules: &RuleSet) -> Vec<IpAddr> {
        let mut servers: BTreeSet<IpAddr> = BTreeSet::new();
        for rule in &rules.dns {
            match &rule.servers {
                Servers::Addresses(addresses) | Servers::Entity(addresses) => servers.extend(addresses),
                Servers::Networks(networks) => {
                    let free = networks.iter().filter_map(|network| {
                        network.hosts().take(256).find(|address| !rules.known.contains_key(address))
                    });
                    servers.extend(free);
                }
                Servers::Carved(networks) => {
                    let free = networks.iter().filter_map(|(network, except)| {
                        let mut hosts = network.hosts().take(256);
                        let carved = |address: &IpAddr| except.iter().any(|except| except.contains(address));
                        hosts.find(|address| !carved(address) && !rules.known.contains_key(address))
                    });
                    servers.extend(free);
                }
                Servers::Any => drop(servers.insert(self.outside(rules, false))),
            }
        }
        if !rules.steered() {
            // Past the proxy: whoever is reached on port 53.
            let open = |address: &IpAddr| {
                [Protocol::Udp, Protocol::Tcp]
                    .into_iter()
                    .any(|protocol| rules.evaluate(Direction::Egress, *address, protocol, DNS, Bits::NONE).passes())
            };
            let networks = rules.cidrs.iter().map(|(network, _)| network.addr());
            let candidates = rules.known.keys().copied().chain(networks).chain([self.outside(rules, false)]);
            servers.extend(candidates.filter(open).take(1));
        }
        servers.into_iter().collect()
    }

    fn query(
        &self,
        from: &PodRef,
        rules: &RuleSet,
        (server, protocol, proxied): (IpAddr, Protocol, bool),
        (name, qtype): (&Name, u16),
    ) -> QueryAnswer {
        let mut answer = QueryAnswer {
            qtype: type_of(qtype),
            resolver: Some(server),
            port: words::port(protocol, DNS),
            ..QueryAnswer::default()
        };
        if !rules.steered() {
            let side = self.side((from, rules), Direction::Egress, server, Some((protocol, DNS)), (&[], Bits::NONE));
            (answer.allowed, answer.by) = (side.allowed, side.by);
            answer.reason = if side.allowed { "unsteered" } else { "server" }.to_owned();
            return answer;
        }
        if !proxied {
            answer.reason = "unknown resolver".to_owned();
            answer.by = self.shut_by(from, Direction::Egress);
            let hint = "the proxy stands in for servers that a rule names by endpoint, Service, /32 or /128, for the \
                        cluster's DNS and for dns.resolvers; queries to others are dropped";
            answer.hint = Some(hint.to_owned());
            return answer;
        }
        match rules.judge(SocketAddr::new(server, DNS), protocol, (name, qtype, CLASS_IN)) {
            Ok(rule) => {
                (answer.allowed, answer.reason) = (true, "rule".to_owned());
                answer.by = rule.iter().map(|rule| self.line(rule, "lets it be asked".to_owned())).collect();
                answer.grants = self.surroundings.trusted.contains(&server) || rules.trusts(server, protocol, DNS);
            }
            Err(denied) => {
                answer.reason = denied.reason().to_owned();
                answer.hint = denied.hint(name);
                answer.by = denied.rules().iter().map(|rule| self.line(rule, String::new())).collect();
                answer.by.dedup();
            }
        }
        answer
    }

    /// What becomes of a connection to whatever the name comes to stand for.
    fn once_resolved(
        &self,
        from: &PodRef,
        rules: &RuleSet,
        name: &Name,
        port: Option<(Protocol, u16)>,
        queries: &[QueryAnswer],
    ) -> Connection {
        let learns = queries.iter().any(|query| query.grants);
        let selected = rules.groups_of(name);
        let (bits, names) = if learns { (selected, std::slice::from_ref(name)) } else { (Bits::NONE, &[][..]) };
        let v6 = port.is_some_and(|(protocol, _)| protocol == Protocol::Icmpv6);
        let address = self.outside(rules, v6);
        let mut side = self.side((from, rules), Direction::Egress, address, port, (names, bits));
        side.peer = None;
        side.peer_is = "whatever it resolves to".to_owned();
        if !side.allowed && selected.is_empty() {
            let near = self.nearest_names(rules, name);
            side.nearest.retain(|line| !near.iter().any(|name| name.path.starts_with(&line.path)));
            side.nearest.splice(0..0, near);
        }
        if !side.allowed && !selected.is_empty() && !learns {
            side.notes.push(match queries.iter().find(|query| query.allowed) {
                Some(query) => format!(
                    "toFQDNs selects the name, but answers of {} grant nothing: no rule names that server by endpoint, \
                     Service, /32 or /128, and dns.resolvers does not list it",
                    query.resolver.map_or_else(|| "that server".to_owned(), |server| server.to_string())
                ),
                None => "toFQDNs selects the name, but it can't be asked for".to_owned(),
            });
        }
        let denied = rules.ports.iter().filter(|row| row.direction == Direction::Egress && !row.deny.is_empty());
        let denied = denied.fold(Bits::NONE, |bits, row| bits | row.deny);
        if side.allowed && rules.cidrs.iter().any(|(_, bits)| bits.meets(denied)) {
            side.notes.push("unless it resolves to an address that egressDeny names".to_owned());
        }
        side
    }

    /// The toFQDNs selector that just misses a name.
    fn nearest_names(&self, rules: &RuleSet, name: &Name) -> Vec<Line> {
        let Some((miss, found)) = rules.names.nearest(name) else { return Vec::new() };
        let hint = verdict::hint(miss, found.pattern.as_str());
        found
            .rule
            .map(|rule| self.line(rule, format!("allows the names {}; {hint}", found.pattern)))
            .into_iter()
            .collect()
    }

    /// What the cluster's DNS says of one of its own names, `SERVICE.NAMESPACE.svc.DOMAIN`: the Service's addresses, or
    /// those of the ready backends of one that has none.
    fn cluster_addresses(&self, name: &Name) -> Vec<IpAddr> {
        let labels: Vec<String> =
            name.labels().take(3).map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
        let [service, namespace, kind] = labels.as_slice() else { return Vec::new() };
        let Some(found) = self.world.services.get(&(namespace.clone(), service.clone())).filter(|_| kind == "svc")
        else {
            return Vec::new();
        };
        if !found.addresses.is_empty() {
            return found.addresses.iter().copied().collect();
        }
        let slices = self.world.slices_of(namespace, service).flat_map(|slice| &slice.endpoints);
        let ready = slices.filter(|(_, ready)| *ready).flat_map(|(addresses, _)| addresses);
        ready.copied().collect::<BTreeSet<IpAddr>>().into_iter().collect()
    }

    /// Whether a name that resolved to this address would be granted it, and why not.
    ///
    /// # Errors
    /// The reason.
    pub fn grants(&self, rules: &RuleSet, name: &Name, address: IpAddr) -> Result<Bits, String> {
        let bits = rules.groups_of(name);
        if bits.is_empty() {
            return Err(format!("no toFQDNs selects {name}"));
        }
        if self.surroundings.guard.is_cluster_name(name) {
            return Err(format!("{name} is a name of the cluster, which grants nothing"));
        }
        if rules.known.get(&address) == Some(&PeerId::SERVICE) {
            return Err(format!("{address} is a Service's address"));
        }
        match self.surroundings.guard.admit(name, address) {
            Ok(()) => Ok(bits),
            Err(guarded) => Err(format!("{address} is guarded: {}", guarded.reason())),
        }
    }

    /// The toFQDNs selectors of a pod, sorted.
    pub fn patterns(&self, pod: &PodRef) -> BTreeSet<String> {
        let selecting = self.compiler.selecting(pod);
        let rules = selecting.iter().filter_map(|(at, _)| self.written().rules.get(at));
        let items = rules.flat_map(|rule| &rule.egress.allow);
        let names = items.filter_map(|item| if let Peers::Names(names) = &item.peers { Some(names) } else { None });
        names.flatten().map(|name| name.pattern.to_string()).collect()
    }
}
