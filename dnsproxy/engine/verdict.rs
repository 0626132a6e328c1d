//! May this workload ask this name of this server? A decision is a value that carries its reason.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::name::{Name, is_pattern_octet};
use super::pattern::{Miss, PatternTrie};
use super::port::{PortBlock, holds};
use super::ruleset::{DnsRule, Protocol, RuleSet, Servers};
use super::wire::CLASS_IN;

/// The rule behind a verdict, for people: policy, place in its file, what it says.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RuleRef(pub Arc<RuleText>);

/// The words of a [`RuleRef`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct RuleText {
    /// `CiliumNetworkPolicy` and so on.
    pub kind: String,
    /// Empty for a clusterwide policy.
    pub namespace: String,
    /// The policy's name.
    pub policy: String,
    /// `file:line:column` of the rule.
    pub place: String,
    /// The path inside the object, as `spec.egress[0].toPorts[0].rules.dns[1]`.
    pub path: String,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.namespace.is_empty() {
            write!(f, "{}/", self.0.namespace)?;
        }
        f.write_str(&self.0.policy)
    }
}

/// Why a query may be asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Allowance {
    /// A rule allows it.
    By(RuleRef),
    /// No rule speaks of it, and egress is not default deny: asked, and nothing is learned for it.
    Default,
}

impl Allowance {
    /// The rule, if one allows it.
    pub fn rule(self) -> Option<RuleRef> {
        match self {
            Allowance::By(rule) => Some(rule),
            Allowance::Default => None,
        }
    }
}

/// Why a query is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Denied {
    /// No rule lets the workload ask this server at all; the policies that make it default deny.
    Server(Vec<RuleRef>),
    /// The server may be asked, but not for this name.
    Name(Missed),
    /// A label holds an octet that no pattern matches, or one that is refused always (a dot, a NUL).
    Label,
    /// The type is ANY, AXFR or IXFR.
    Type,
    /// The class is not IN.
    Class,
}

/// A name that no rule allows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missed {
    /// The rules that allow other names at this server, the one that came nearest first.
    pub rules: Vec<RuleRef>,
    /// What whoever wrote the nearest one may have meant instead.
    pub hint: Option<String>,
}

impl Denied {
    /// The rules that speak of it, the nearest first.
    pub fn rules(&self) -> &[RuleRef] {
        match self {
            Denied::Server(rules) | Denied::Name(Missed { rules, .. }) => rules,
            Denied::Label | Denied::Type | Denied::Class => &[],
        }
    }

    /// What helps the one who wonders why `name` was refused: which pattern just misses it, or which label none can match.
    pub fn hint(&self, name: &Name) -> Option<String> {
        match self {
            Denied::Name(missed) => missed.hint.clone(),
            Denied::Label => odd_label(name),
            Denied::Server(_) | Denied::Type | Denied::Class => None,
        }
    }

    /// Whether it is policy that says so: what an audit lets through. Types, classes and labels that are refused always
    /// are so under any policy.
    pub fn is_policy(&self, name: &Name) -> bool {
        match self {
            Denied::Server(_) | Denied::Name(_) => true,
            Denied::Label => !name.is_refused_always(),
            Denied::Type | Denied::Class => false,
        }
    }

    /// The word for metrics and flows.
    pub fn reason(&self) -> &'static str {
        match self {
            Denied::Server(_) => "server",
            Denied::Name(_) => "name",
            Denied::Label => "label",
            Denied::Type => "type",
            Denied::Class => "class",
        }
    }
}

/// See [`RuleSet::judge`]. Without any rule only where egress is open: no rule denies it, or a policy was just taken away.
pub(super) fn judge(
    rules: &RuleSet,
    server: SocketAddr,
    protocol: Protocol,
    (name, qtype, qclass): (&Name, u16, u16),
) -> Result<Option<RuleRef>, Denied> {
    if qclass != CLASS_IN {
        return Err(Denied::Class);
    }
    // 128 to 255 are questions and meta types (RFC 6895 section 3.1): ANY, AXFR and IXFR among them. So is OPT.
    if matches!(qtype, 0 | 41 | 128..=255) {
        return Err(Denied::Type);
    }
    if name.is_refused_always() {
        return Err(Denied::Label);
    }
    if !rules.steered() && !rules.deny_egress {
        return Ok(None);
    }
    may_ask(rules, server.ip(), protocol, server.port(), name).map(Allowance::rule)
}

/// See [`RuleSet::may_ask`].
pub(super) fn may_ask(
    rules: &RuleSet,
    server: IpAddr,
    protocol: Protocol,
    port: u16,
    name: &Name,
) -> Result<Allowance, Denied> {
    if name.is_refused_always() {
        return Err(Denied::Label);
    }
    if let Some(rule) = denial_of(rules, server, protocol, port) {
        return Err(Denied::Server(vec![rule.clone()]));
    }
    let asked = |servers: &Servers, ports: &[(Protocol, PortBlock)]| {
        ports.iter().any(|wide| holds(*wide, protocol, port)) && servers.hold(server, &rules.known)
    };
    let mut there = Vec::new();
    for rule in rules.dns.iter().filter(|rule| asked(&rule.servers, &rule.ports)) {
        if let Some(found) = rule.patterns.matches(name).next() {
            return Ok(Allowance::By(found.rule.unwrap_or(&rule.rule).clone()));
        }
        there.push(rule);
    }
    if !rules.deny_egress {
        return Ok(Allowance::Default);
    }
    if there.is_empty() {
        return Err(Denied::Server(rules.deny_egress_by.clone()));
    }
    if !name.has_only_pattern_octets() {
        return Err(Denied::Label);
    }
    Err(Denied::Name(missed(&there, name)))
}

/// The rule that denies this server on this port, whatever allows it.
pub(super) fn denial_of(rules: &RuleSet, server: IpAddr, protocol: Protocol, port: u16) -> Option<&RuleRef> {
    let meant = |ports: &[(Protocol, PortBlock)]| ports.iter().any(|wide| holds(*wide, protocol, port));
    let mut denials = rules.dns_denied.iter();
    denials.find(|deny| meant(&deny.ports) && deny.servers.hold(server, &rules.known)).map(|deny| &deny.rule)
}

/// The rules, the one that most likely was meant first, and what its pattern lacks.
fn missed(rules: &[&DnsRule], name: &Name) -> Missed {
    let mut rules: Vec<(Option<(Miss, &str)>, &DnsRule)> =
        rules.iter().map(|rule| (nearest(&rule.patterns, name), *rule)).collect();
    rules.sort_by_key(|(miss, _)| std::cmp::Reverse(miss.map(|(miss, _)| miss)));
    let hint = rules.first().and_then(|(miss, _)| *miss).map(|(miss, pattern)| hint(miss, pattern));
    Missed { rules: rules.into_iter().map(|(_, rule)| rule.rule.clone()).collect(), hint }
}

/// What whoever wrote `pattern` may not have known.
pub(super) fn hint(miss: Miss, pattern: &str) -> String {
    match miss {
        Miss::Deep => format!("{pattern:?} spans one label; \"*{pattern}\" spans several"),
        Miss::Apex => {
            let apex = pattern.trim_start_matches(['*', '.']);
            format!("{pattern:?} is what is below {apex:?}, not {apex:?} itself")
        }
        Miss::Below => format!("{pattern:?} is that name alone; \"**.{pattern}\" is all below it"),
    }
}

fn nearest<'a>(patterns: &'a PatternTrie<()>, name: &Name) -> Option<(Miss, &'a str)> {
    patterns.nearest(name).map(|(miss, found)| (miss, found.pattern.as_str()))
}

/// Which label has an octet that no pattern matches.
fn odd_label(name: &Name) -> Option<String> {
    let label = name.labels().find(|label| !label.iter().copied().all(is_pattern_octet))?;
    Some(format!("no pattern matches the label \"{}\"; only a-z 0-9 - _ can be matched", label.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::pattern::{Bare, Pattern};
    use crate::engine::ruleset::{DnsDeny, DnsRule, PeerId};

    fn rule(policy: &str) -> RuleRef {
        RuleRef(Arc::new(RuleText { policy: policy.to_owned(), ..RuleText::default() }))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn dns(policy: &str, servers: Servers, ports: &[(Protocol, PortBlock)], patterns: &[&str]) -> DnsRule {
        let mut trie = PatternTrie::new(Bare::Every);
        for pattern in patterns {
            trie.insert(Pattern::pattern(pattern).unwrap(), (), None);
        }
        DnsRule { rule: rule(policy), servers, ports: ports.to_vec(), patterns: Arc::new(trie), speaks_of_dns: true }
    }

    const UDP: &[(Protocol, PortBlock)] = &[(Protocol::Udp, PortBlock::one(53))];

    fn rules() -> RuleSet {
        RuleSet {
            selected: true,
            deny_egress: true,
            deny_egress_by: vec![rule("wall")],
            dns: vec![
                dns("far", Servers::Any, UDP, &["far.example"]),
                dns("near", Servers::Addresses(vec![ip("198.18.0.10")]), UDP, &["*.svc.example", "api.example"]),
                dns("out", Servers::Networks(vec!["203.0.113.0/24".parse().unwrap()]), UDP, &["*"]),
            ],
            dns_denied: vec![DnsDeny {
                rule: rule("no"),
                servers: Servers::Networks(vec!["203.0.113.66/32".parse().unwrap()]),
                ports: vec![(Protocol::Any, PortBlock::ANY)],
            }],
            known: Arc::new([(ip("203.0.113.53"), PeerId(16)), (ip("198.18.0.10"), PeerId::SERVICE)].into()),
            ..RuleSet::unselected()
        }
    }

    #[track_caller]
    fn asks(server: &str, protocol: Protocol, name: &str, verdict: Result<&str, Denied>) {
        let name = Name::parse(name).unwrap();
        let answer = rules().may_ask(ip(server), protocol, 53, &name);
        assert_eq!(answer.map(|by| by.rule().unwrap().to_string()), verdict.map(str::to_owned));
    }

    fn name(rules: &[&str], hint: Option<&str>) -> Denied {
        Denied::Name(Missed { rules: rules.iter().map(|policy| rule(policy)).collect(), hint: hint.map(str::to_owned) })
    }

    #[test]
    fn the_rule_that_lets_a_query_through_is_named() {
        asks("198.18.0.10", Protocol::Udp, "API.example", Ok("near"));
        asks("192.0.2.1", Protocol::Udp, "far.example", Ok("far"));
        asks("203.0.113.1", Protocol::Udp, "what.ever", Ok("out"));
    }

    #[test]
    fn a_refusal_names_the_policy_that_came_nearest() {
        asks("192.0.2.1", Protocol::Tcp, "far.example", Err(Denied::Server(vec![rule("wall")])));
        let hint = "\"*.svc.example\" spans one label; \"**.svc.example\" spans several";
        asks("198.18.0.10", Protocol::Udp, "a.b.svc.example", Err(name(&["near", "far"], Some(hint))));
        asks("192.0.2.1", Protocol::Udp, "x.example", Err(name(&["far"], None)));
    }

    #[test]
    fn a_network_never_means_a_pod() {
        asks("203.0.113.53", Protocol::Udp, "x.example", Err(name(&["far"], None)));
    }

    #[test]
    fn a_denied_server_is_denied_whatever_allows_it() {
        asks("203.0.113.66", Protocol::Udp, "far.example", Err(Denied::Server(vec![rule("no")])));
        assert!(rules().denies_server(ip("203.0.113.66"), Protocol::Tcp, 853));
        assert!(!rules().denies_server(ip("203.0.113.67"), Protocol::Tcp, 853));
    }

    #[test]
    fn where_egress_is_open_what_no_rule_denies_may_be_asked_by_none() {
        let rules = RuleSet { deny_egress: false, ..rules() };
        let asks = |server, name| rules.may_ask(ip(server), Protocol::Udp, 53, &Name::parse(name).unwrap());
        assert_eq!(asks("198.18.0.10", "api.example"), Ok(Allowance::By(rule("near"))));
        assert_eq!(asks("198.18.0.10", "other.test"), Ok(Allowance::Default));
        assert_eq!(asks("192.0.2.1", "a b.example"), Ok(Allowance::Default));
        assert_eq!(asks("203.0.113.66", "far.example"), Err(Denied::Server(vec![rule("no")])));
        assert_eq!(asks("192.0.2.1", "a\\.b.example"), Err(Denied::Label));
    }

    #[test]
    fn odd_labels_have_their_own_reason() {
        asks("198.18.0.10", Protocol::Udp, "a b.svc.example", Err(Denied::Label));
        asks("203.0.113.1", Protocol::Udp, "a b.example", Ok("out"));
        asks("203.0.113.1", Protocol::Udp, "a\\.b.example", Err(Denied::Label));
    }

    #[test]
    fn only_a_server_that_a_rule_names_is_trusted() {
        let rules = rules();
        assert!(rules.trusts(ip("198.18.0.10"), Protocol::Udp, 53));
        assert!(!rules.trusts(ip("198.18.0.10"), Protocol::Tcp, 53));
        assert!(!rules.trusts(ip("203.0.113.1"), Protocol::Udp, 53));
        assert!(!rules.trusts(ip("192.0.2.1"), Protocol::Udp, 53));
        assert_eq!(rules.resolvers(), [(ip("198.18.0.10"), Protocol::Udp, PortBlock::one(53))]);
    }

    #[track_caller]
    fn hints(name: &str, expected: Option<&str>) {
        let name = Name::parse(name).unwrap();
        let denied = rules().may_ask(ip("198.18.0.10"), Protocol::Udp, 53, &name).expect_err("denied");
        assert_eq!(denied.hint(&name).as_deref(), expected);
    }

    #[test]
    fn a_near_miss_says_what_would_have_matched() {
        hints("a.b.svc.example", Some("\"*.svc.example\" spans one label; \"**.svc.example\" spans several"));
        hints("svc.example", Some("\"*.svc.example\" is what is below \"svc.example\", not \"svc.example\" itself"));
        hints("v1.api.example", Some("\"api.example\" is that name alone; \"**.api.example\" is all below it"));
        hints("other.test", None);
    }

    #[test]
    fn an_odd_label_is_named() {
        hints("a b.svc.example", Some("no pattern matches the label \"a b\"; only a-z 0-9 - _ can be matched"));
        hints("a\\.b.example", Some("no pattern matches the label \"a.b\"; only a-z 0-9 - _ can be matched"));
        hints("\\000.svc.example", Some("no pattern matches the label \"\\x00\"; only a-z 0-9 - _ can be matched"));
    }
}
