//! Patterns that span less than they seem to, or more.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};

use super::together::{Place, Together};
use super::{Advice, Scene};
use crate::engine::name::Name;
use crate::engine::pattern::{Bare, Pattern, PatternTrie};
use crate::engine::policy::{NameRule, Peers, Ports};

pub(super) const ONE_LABEL: &str = "pattern-one-label";
pub(super) const NO_DOT: &str = "pattern-without-dot";
pub(super) const STARS_INSIDE: &str = "pattern-stars-inside";
pub(super) const PUBLIC_SUFFIX: &str = "public-suffix";
pub(super) const NAME_OF_CLUSTER: &str = "name-of-cluster";

/// The cluster's domain, unless `dns.cluster_domain` is another: its names never grant.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// Suffixes under which anyone can register, below domains that a provider's own services stand in, too: `**.amazonaws.com`
/// spans one. Each must be a public suffix.
const TENANTS: [&str; 3] = ["s3.amazonaws.com", "blob.core.windows.net", "servicebus.windows.net"];

/// The bundles that open names which are one label before another name, by that one.
pub(super) struct Opened(HashMap<String, Vec<usize>>);

impl Opened {
    pub(super) fn new(together: &Together<'_>) -> Opened {
        let mut all: HashMap<String, Vec<usize>> = HashMap::new();
        for place in &together.places {
            for item in &place.rule.egress.allow {
                let Peers::Names(names) = &item.peers else { continue };
                for rest in names.iter().filter_map(|name| one_label_before(&name.pattern)) {
                    let bundles = all.entry(rest).or_default();
                    if bundles.last() != Some(&place.bundle) {
                        bundles.push(place.bundle);
                    }
                }
            }
        }
        Opened(all)
    }

    /// Whether a pod of the bundle reaches names that are one label before `rest`.
    fn has(&self, together: &Together<'_>, bundle: usize, rest: &str) -> bool {
        self.0.get(rest).is_some_and(|others| others.iter().any(|other| together.meet(bundle, *other)))
    }
}

/// What all names of a pattern have after exactly one label.
fn one_label_before(pattern: &Pattern) -> Option<String> {
    let folded = pattern.as_str().to_ascii_lowercase();
    let (first, rest) = folded.strip_suffix('.').unwrap_or(&folded).split_once('.')?;
    let several = first.len() > 1 && first.bytes().all(|octet| octet == b'*');
    (!several).then(|| rest.to_owned())
}

/// The names that stand in one list.
struct List<'a> {
    names: &'a [NameRule],
    trie: OnceCell<PatternTrie<()>>,
}

impl<'a> List<'a> {
    fn new(names: &'a [NameRule]) -> List<'a> {
        List { names, trie: OnceCell::new() }
    }

    fn selects(&self, text: &str) -> bool {
        let trie = self.trie.get_or_init(|| {
            let mut trie = PatternTrie::new(Bare::Valid);
            self.names.iter().for_each(|name| trie.insert(name.pattern.clone(), (), None));
            trie
        });
        Name::parse(text).is_ok_and(|name| trie.matches(&name).next().is_some())
    }
}

/// `asked`: of each bundle, whether all names of its pods' toFQDNs may be asked for.
pub(super) fn advise(scene: &Scene<'_>, asked: &[bool], place: &Place<'_>, all: &mut Vec<Advice>) {
    let mut opened: HashSet<&str> = HashSet::new();
    for item in &place.rule.egress.allow {
        if let Peers::Names(names) = &item.peers {
            opened.extend(names.iter().map(|name| name.pattern.as_str()));
            let list = List::new(names);
            names.iter().for_each(|name| open(&list, name, all));
            names.iter().for_each(|name| of_cluster(name, all));
        }
    }
    let entries = place.rule.egress.allow.iter().filter_map(|item| match &item.ports {
        Ports::These(entries) => Some(entries),
        Ports::All => None,
    });
    // A name that is asked for and may be, and none that may not: what a pattern leaves out, nobody misses.
    let will_do = |rest: &str| asked[place.bundle] && scene.names.has(&scene.together, place.bundle, rest);
    for names in entries.flatten().filter_map(|entry| entry.dns.as_ref()) {
        let list = List::new(names);
        // What toFQDNs says the same way is told there.
        let own = names.iter().filter(|name| !opened.contains(name.pattern.as_str()));
        own.for_each(|name| span(&list, name, will_do, all));
    }
}

/// A name of toFQDNs: what it spans, and whom it opens.
fn open(list: &List<'_>, name: &NameRule, all: &mut Vec<Advice>) {
    let text = &name.pattern;
    if let Some(suffix) = anyone(text) {
        let text = match suffix {
            Anyone::Everything => {
                format!("\"{text}\" opens every name there is: whoever chooses names chooses addresses")
            }
            Anyone::Under(suffix) => {
                format!(
                    "anyone can register names under {suffix}, so \"{text}\" opens what strangers put there; write the \
                     names that are yours"
                )
            }
            Anyone::Spanned(suffix) => {
                format!("\"{text}\" spans {suffix}, where anyone can register names; write the names that are meant")
            }
        };
        all.push(Advice { at: name.at.clone(), kind: PUBLIC_SUFFIX, text });
    }
    span(list, name, |_| false, all);
}

/// A name of toFQDNs below the cluster's own domain.
fn of_cluster(name: &NameRule, all: &mut Vec<Advice>) {
    let folded = name.pattern.as_str().to_ascii_lowercase();
    let body = folded.strip_suffix('.').unwrap_or(&folded);
    if body.strip_suffix(CLUSTER_DOMAIN).is_some_and(|before| before.is_empty() || before.ends_with('.')) {
        let text = format!(
            "\"{}\" is of the cluster's own domain, whose names open nothing: name the pods by toEndpoints, or the \
             Service by toServices",
            name.pattern
        );
        all.push(Advice { at: name.at.clone(), kind: NAME_OF_CLUSTER, text });
    }
}

/// What a pattern spans that it seems not to, or doesn't that it seems to; `will_do`: one label before this is all that is
/// wanted.
fn span(list: &List<'_>, name: &NameRule, will_do: impl Fn(&str) -> bool, all: &mut Vec<Advice>) {
    let pattern = &name.pattern;
    if pattern.is_bare() || pattern.exact().is_some() {
        return;
    }
    let folded = pattern.as_str().to_ascii_lowercase();
    let body = folded.strip_suffix('.').unwrap_or(&folded);
    let (first, rest) = body.split_once('.').unwrap_or((body, ""));
    let after = first.trim_start_matches('*');
    let mut found = |kind, text| all.push(Advice { at: name.at.clone(), kind, text });

    // Right under a public suffix one label is what strangers register, and what was meant.
    if first == "*" && !rest.contains('*') && !of_one_namespace(rest) && !is_public(rest) {
        let deeper = !list.selects(&format!("zq.zq.{rest}"));
        let apex = !list.selects(rest);
        let missing = match (deeper, apex) {
            (true, true) => format!("neither a.b.{rest} nor {rest} itself"),
            (true, false) => format!("not a.b.{rest}"),
            (false, true) => format!("not {rest} itself"),
            (false, false) => return,
        };
        if will_do(rest) {
            return;
        }
        let more = if deeper { format!("; \"**.{rest}\" is one label or more") } else { format!("; add \"{rest}\"") };
        found(ONE_LABEL, format!("\"{pattern}\" is one label before {rest}, {missing}{more}"));
    } else if first.starts_with('*') && after.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        let name = &body[first.len() - after.len()..];
        let strangers = if is_registrable(name) {
            format!(", but other people's names as not{name}, which anyone can register")
        } else {
            String::new()
        };
        let text =
            format!("\"{pattern}\" is {name} and names that end alike in the same label: no name below it{strangers}");
        found(NO_DOT, format!("{text}; \"**.{name}\" is all below it"));
    }
    let inner = if after.is_empty() && first.len() > 1 { rest } else { body };
    if inner.contains("**") {
        found(
            STARS_INSIDE,
            format!("** inside \"{pattern}\" is one star, which crosses no dot; only a leading \"**.\" spans labels"),
        );
    }
}

/// `NAMESPACE.svc.cluster.local`: names of Services have one label before that, and there is no other.
fn of_one_namespace(rest: &str) -> bool {
    rest.strip_suffix(".svc.cluster.local").is_some_and(|namespace| !namespace.contains('.'))
}

/// Who else than its owner can have a name that a pattern selects.
enum Anyone {
    /// It selects everything.
    Everything,
    /// Anyone under this public suffix.
    Under(String),
    /// Among others anyone under this public suffix.
    Spanned(&'static str),
}

fn anyone(pattern: &Pattern) -> Option<Anyone> {
    if pattern.is_bare() {
        return Some(Anyone::Everything);
    }
    let folded = pattern.as_str().to_ascii_lowercase();
    let body = folded.strip_suffix('.').unwrap_or(&folded);
    // What stands right of all stars is what its owner has to do with.
    let labels: Vec<&str> = body.split('.').collect();
    let last = labels.iter().rposition(|label| label.contains('*'))?;
    let fixed = labels[last + 1..].join(".");
    if fixed.is_empty() {
        return Some(Anyone::Everything);
    }
    let glued = last == 0 && labels[0].starts_with('*') && !labels[0].bytes().all(|octet| octet == b'*');
    if is_public(&fixed) {
        // `*example.com` has a warning of its own, which says the same.
        return (!glued).then_some(Anyone::Under(fixed));
    }
    let several = labels[0].len() > 1 && labels[0].bytes().all(|octet| octet == b'*') && last == 0;
    let spanned = TENANTS.iter().find(|tenant| several && tenant.ends_with(&format!(".{fixed}")));
    spanned.map(|tenant| Anyone::Spanned(tenant))
}

/// Whether names right under `text` are registered by strangers. A top-level domain that nobody knows is somebody's own.
fn is_public(text: &str) -> bool {
    psl::suffix(text.as_bytes()).is_some_and(|suffix| suffix.is_known() && suffix.as_bytes() == text.as_bytes())
}

/// Whether `text` is a name that somebody registered: another one that ends alike is somebody else's.
fn is_registrable(text: &str) -> bool {
    psl::domain(text.as_bytes())
        .is_some_and(|domain| domain.suffix().is_known() && domain.as_bytes() == text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::verdict::RuleRef;

    #[track_caller]
    fn says(patterns: &[&str], expected: &[(&str, &str)]) {
        let at = RuleRef(std::sync::Arc::default());
        let rule = |text: &&str| NameRule { at: at.clone(), pattern: Pattern::pattern(text).unwrap() };
        let names: Vec<NameRule> = patterns.iter().map(rule).collect();
        let mut all = Vec::new();
        open(&List::new(&names), &names[0], &mut all);
        let found: Vec<(&str, &str)> = all.iter().map(|advice| (advice.kind, advice.text.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn one_star_is_one_label() {
        let text = "\"*.rds.example.com\" is one label before rds.example.com, neither a.b.rds.example.com nor \
                    rds.example.com itself; \"**.rds.example.com\" is one label or more";
        says(&["*.rds.example.com"], &[(ONE_LABEL, text)]);
        let text = "\"*.example.com\" is one label before example.com, not a.b.example.com; \"**.example.com\" is one \
                    label or more";
        says(&["*.example.com", "example.com"], &[(ONE_LABEL, text)]);
        let text = "\"*.example.com\" is one label before example.com, not example.com itself; add \"example.com\"";
        says(&["*.example.com", "**.example.com"], &[(ONE_LABEL, text)]);
        says(&["*.example.com", "**.example.com", "example.com"], &[]);
        says(&["**.example.com"], &[]);
        says(&["api-*.example.com"], &[]);
        says(&["*.shop.svc.cluster.local"], &[]);
        says(&["api.example.com"], &[]);
    }

    #[test]
    fn a_star_without_a_dot_means_other_peoples_names() {
        let text = "\"*example.com\" is example.com and names that end alike in the same label: no name below it, but \
                    other people's names as notexample.com, which anyone can register; \"**.example.com\" is all below it";
        says(&["*example.com"], &[(NO_DOT, text)]);
        let text = "\"*cdn.example.com\" is cdn.example.com and names that end alike in the same label: no name below \
                    it; \"**.cdn.example.com\" is all below it";
        says(&["*cdn.example.com"], &[(NO_DOT, text)]);
        says(&["*-prod.example.com"], &[]);
    }

    #[test]
    fn stars_inside_cross_no_dot() {
        let text =
            "** inside \"a.**.example.com\" is one star, which crosses no dot; only a leading \"**.\" spans labels";
        says(&["a.**.example.com"], &[(STARS_INSIDE, text)]);
        says(&["***.example.com"], &[]);
    }

    #[track_caller]
    fn opens_to_anyone(pattern: &str, expected: Option<&str>) {
        let found = anyone(&Pattern::pattern(pattern).unwrap()).map(|anyone| match anyone {
            Anyone::Everything => "everything".to_owned(),
            Anyone::Under(suffix) => suffix,
            Anyone::Spanned(suffix) => format!("spans {suffix}"),
        });
        assert_eq!(found.as_deref(), expected, "{pattern}");
    }

    #[test]
    fn under_a_public_suffix_anyone_can_register() {
        for (pattern, expected) in [
            ("*.s3.amazonaws.com", Some("s3.amazonaws.com")),
            ("shop-*.S3.amazonaws.com.", Some("s3.amazonaws.com")),
            ("*.github.io", Some("github.io")),
            ("*.com", Some("com")),
            ("**.co.uk", Some("co.uk")),
            ("*.*.com", Some("com")),
            ("**.amazonaws.com", Some("spans s3.amazonaws.com")),
            ("*.amazonaws.com", None),
            ("**.rds.amazonaws.com", None),
            ("*.example.com", None),
            ("example.com", None),
            ("*.corp.internal", None),
            ("**.cluster.local", None),
            ("*", Some("everything")),
            ("a*", Some("everything")),
        ] {
            opens_to_anyone(pattern, expected);
        }
    }

    #[test]
    fn every_suffix_that_tenants_share_is_public() {
        for suffix in TENANTS {
            assert!(is_public(suffix), "{suffix}");
        }
    }
}
