//! Which of a document's objects are namegate's business, also where their kind or group is misspelt: a policy that nobody
//! reads shuts nobody.

use super::{Kind, objects};
use crate::cluster::tree::{Node, TreeError, Value};

/// The most edits that make a kind or a group out of a misspelt one.
const EDITS: usize = 2;

/// A kind with fewer octets has one at most: `Job` is no misspelt `Pod`.
const SHORT: usize = 6;

/// A kind or group with more octets is none that is known.
const KIND_OCTETS: usize = 100;

/// The kinds that are looked for under other spellings: policies, and what policies speak of.
const SOUGHT: [Kind; 14] = [
    Kind::CiliumNetworkPolicy,
    Kind::CiliumClusterwideNetworkPolicy,
    Kind::CiliumCidrGroup,
    Kind::NetworkPolicy,
    Kind::AdminNetworkPolicy,
    Kind::BaselineAdminNetworkPolicy,
    Kind::ClusterNetworkPolicy,
    Kind::Pod,
    Kind::Namespace,
    Kind::Service,
    Kind::Endpoints,
    Kind::Node,
    Kind::ConfigMap,
    Kind::EndpointSlice,
];

/// What else people call a kind: the short names of `kubectl`, and names with a word left out.
const ALSO_CALLED: [(&str, Kind); 7] = [
    ("CNP", Kind::CiliumNetworkPolicy),
    ("CiliumPolicy", Kind::CiliumNetworkPolicy),
    ("CiliumNetwork", Kind::CiliumNetworkPolicy),
    ("CCNP", Kind::CiliumClusterwideNetworkPolicy),
    ("CiliumClusterwidePolicy", Kind::CiliumClusterwideNetworkPolicy),
    ("CiliumClusterPolicy", Kind::CiliumClusterwideNetworkPolicy),
    ("NetPol", Kind::NetworkPolicy),
];

/// What is left of Kubernetes' groups when a part of them is missing.
const PARTS_OF_NETWORKING: [&str; 2] = ["networking.k8s", "networking.io"];
const PARTS_OF_DISCOVERY: [&str; 2] = ["discovery.k8s", "discovery.io"];

/// What a document or an item of a list turns out to be.
#[derive(Debug)]
pub enum Found<'t> {
    /// An object to read. Its kind and version may be misspelt: reading it tells.
    Object(Kind, &'t Node),
    /// A kind that is none of namegate's business.
    Other,
    /// Nobody can tell what it is, and why.
    Stray(&'t Node, String),
}

/// What a document holds: one object, or the objects of a `List` or `*List`.
///
/// # Errors
/// A key that tells where an object begins stands twice in one: then there are two objects or more, and nobody can tell what
/// else the file holds.
pub fn found(document: &Node) -> Result<Vec<Found<'_>>, TreeError> {
    let mut all = Vec::new();
    collect(document, None, &mut all)?;
    Ok(all)
}

fn collect<'t>(node: &'t Node, inherited: Option<(&str, &str)>, all: &mut Vec<Found<'t>>) -> Result<(), TreeError> {
    once(node, "kind")?;
    once(node, "apiVersion")?;
    let text = |key| node.get(key).and_then(Node::as_text);
    let version = text("apiVersion").or(inherited.map(|(version, _)| version));
    let kind = text("kind").or(inherited.map(|(_, kind)| kind));
    let (Some(version), Some(kind)) = (version, kind) else {
        if node.value != Value::Null || inherited.is_some() {
            all.push(Found::Stray(node, "no object; apiVersion and kind are needed, as text".to_owned()));
        }
        return Ok(());
    };
    if let Some(items) = node.get("items") {
        match Listed::of(version, kind) {
            Listed::Items(of) => {
                once(node, "items")?;
                // The items of `PodList` carry no kind of their own; those of `List` do.
                let inherited = (!of.is_empty()).then_some((version, of));
                match &items.value {
                    Value::List(items) => items.iter().try_for_each(|item| collect(item, inherited, all))?,
                    Value::Null => {}
                    _ => all.push(Found::Stray(items, format!("{}; a list is allowed", items.value.describe()))),
                }
                return Ok(());
            }
            Listed::Misspelt(meant) => {
                all.push(Found::Stray(node, format!("{kind:?} of {version:?} is no list; did you mean {meant}")));
                return Ok(());
            }
            Listed::Nothing => {}
        }
    } else if Listed::is_surely(version, kind) {
        let text = match node.get("item") {
            Some(_) => format!("\"item\" of a {kind}; did you mean items"),
            None => format!("a {kind} without items; items are needed, [] if it has none"),
        };
        all.push(Found::Stray(node, text));
        return Ok(());
    }
    all.push(match kind_of(version, kind) {
        Some(Kind::ConfigMap) if !objects::is_cilium_config(node) => Found::Other,
        Some(kind) => Found::Object(kind, node),
        None => Found::Other,
    });
    Ok(())
}

fn once(node: &Node, key: &str) -> Result<(), TreeError> {
    let Value::Map(entries) = &node.value else { return Ok(()) };
    let mut places = entries.iter().filter(|(known, _)| &*known.text == key).map(|(known, _)| known.at);
    match (places.next(), places.next()) {
        (Some(first), Some(at)) => {
            let text = format!(
                "{key} a second time in one object, the first at {first}; --- is missing between two documents"
            );
            Err(TreeError { at, text })
        }
        _ => Ok(()),
    }
}

/// What an object with `items` is.
enum Listed<'k> {
    /// A list of this kind; of any, if that is empty.
    Items(&'k str),
    /// A list, but for its spelling: what was meant.
    Misspelt(String),
    /// No list.
    Nothing,
}

impl<'k> Listed<'k> {
    fn of(version: &str, kind: &'k str) -> Listed<'k> {
        let group = group_of(version);
        let name = kind.strip_suffix("List");
        let meant = match name {
            Some(name) => kind_of(version, name),
            None => {
                SOUGHT.into_iter().find(|known| known.may_be_in(group) && edits(kind, &format!("{known}List")) <= EDITS)
            }
        };
        match (name, meant) {
            (Some(name), Some(meant)) if name == meant.name() && meant.api_versions().contains(&version) => {
                Listed::Items(name)
            }
            (_, Some(meant)) => Listed::Misspelt(format!("{meant}List of {}", meant.api_versions()[0])),
            (Some(name), None) => Listed::Items(name),
            (None, None) if group.is_empty() && edits(kind, "List") <= EDITS => {
                Listed::Misspelt("List of v1".to_owned())
            }
            (None, None) => Listed::Nothing,
        }
    }

    /// Whether a kind is that of a list also where it has no `items`. Kinds of others may end in List, and be none.
    fn is_surely(version: &str, kind: &str) -> bool {
        let of = kind.strip_suffix("List");
        of.is_some_and(|of| kind_of(version, of).is_some() || of.is_empty() && group_of(version).is_empty())
    }
}

impl Kind {
    /// Whether a kind of this group that is spelt like this one was meant to be it. Other engines have policies, too.
    fn may_be_in(self, group: &str) -> bool {
        let like = |known: &str| edits(group, known) <= EDITS;
        match self {
            // Nobody else's kinds have that name.
            Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy | Kind::CiliumCidrGroup => true,
            // Kubernetes' own groups have no dot, or end in its domain.
            Kind::NetworkPolicy => {
                !group.contains('.')
                    || is_of_kubernetes(group)
                    || like("networking.k8s.io")
                    || PARTS_OF_NETWORKING.into_iter().any(like)
                    || is_like_cilium(group)
            }
            Kind::EndpointSlice => {
                !group.contains('.')
                    || is_of_kubernetes(group)
                    || like("discovery.k8s.io")
                    || PARTS_OF_DISCOVERY.into_iter().any(like)
            }
            // Theirs is the group without a name.
            Kind::Pod | Kind::Namespace | Kind::Service | Kind::Endpoints | Kind::Node | Kind::ConfigMap => {
                !group.contains('.') || ["k8s.io", "core.k8s.io"].contains(&group)
            }
            Kind::AdminNetworkPolicy | Kind::BaselineAdminNetworkPolicy | Kind::ClusterNetworkPolicy => {
                group.ends_with("networking.k8s.io") || like("policy.networking.k8s.io")
            }
        }
    }

    /// Whether what else it is called means it in this group.
    fn may_be_called_otherwise_in(self, group: &str) -> bool {
        match self {
            Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => {
                !group.contains('.') || is_like_cilium(group)
            }
            _ => self.may_be_in(group),
        }
    }
}

/// The kind that is meant; none if it is nothing that is read.
fn kind_of(version: &str, kind: &str) -> Option<Kind> {
    let group = group_of(version);
    Some(match (group, kind) {
        ("", "Pod") => Kind::Pod,
        ("", "Namespace") => Kind::Namespace,
        ("", "Service") => Kind::Service,
        ("", "Endpoints") => Kind::Endpoints,
        ("", "Node") => Kind::Node,
        ("", "ConfigMap") => Kind::ConfigMap,
        ("discovery.k8s.io", "EndpointSlice") => Kind::EndpointSlice,
        ("cilium.io", "CiliumNetworkPolicy") => Kind::CiliumNetworkPolicy,
        ("cilium.io", "CiliumClusterwideNetworkPolicy") => Kind::CiliumClusterwideNetworkPolicy,
        ("cilium.io", "CiliumCIDRGroup") => Kind::CiliumCidrGroup,
        ("networking.k8s.io" | "extensions", "NetworkPolicy") => Kind::NetworkPolicy,
        ("policy.networking.k8s.io", "AdminNetworkPolicy") => Kind::AdminNetworkPolicy,
        ("policy.networking.k8s.io", "BaselineAdminNetworkPolicy") => Kind::BaselineAdminNetworkPolicy,
        ("policy.networking.k8s.io", "ClusterNetworkPolicy") => Kind::ClusterNetworkPolicy,
        _ => return misspelt(group, kind),
    })
}

fn misspelt(group: &str, kind: &str) -> Option<Kind> {
    // In Cilium's group nothing else is called a network policy.
    let surely = is_like_cilium(group) && ends_with_ignoring_case(kind, "NetworkPolicy");
    let singular = kind.strip_suffix("ies").map(|stem| format!("{stem}y"));
    let kind = singular.as_deref().unwrap_or(kind);
    let names = SOUGHT.into_iter().filter(|known| known.may_be_in(group)).map(|known| (known.name(), known));
    let others = ALSO_CALLED.into_iter().filter(|(_, known)| known.may_be_called_otherwise_in(group));
    let edited = names.chain(others).map(|(name, known)| (edits(kind, name), name, known));
    let few = |(edits, name, _): &(usize, &str, Kind)| *edits <= if name.len() < SHORT { 1 } else { EDITS };
    if let Some((_, _, meant)) = edited.clone().filter(few).min_by_key(|(edits, ..)| *edits) {
        return Some(meant);
    }
    let network_policies = edited.filter(|(_, _, known)| known.name().ends_with("NetworkPolicy"));
    network_policies.min_by_key(|(edits, ..)| *edits).filter(|_| surely).map(|(_, _, meant)| meant)
}

fn is_of_kubernetes(group: &str) -> bool {
    group == "k8s.io" || group.ends_with(".k8s.io")
}

fn group_of(version: &str) -> &str {
    version.split_once('/').map_or("", |(group, _)| group)
}

fn is_like_cilium(group: &str) -> bool {
    group.starts_with("cilium") || edits(group, "cilium.io") <= EDITS
}

fn ends_with_ignoring_case(text: &str, end: &str) -> bool {
    text.len().checked_sub(end.len()).and_then(|at| text.get(at..)).is_some_and(|found| found.eq_ignore_ascii_case(end))
}

/// How many characters have to be put in, taken out, changed or swapped to make `text` into `known`; case doesn't count.
fn edits(text: &str, known: &str) -> usize {
    // It may be megabytes.
    if text.len() > KIND_OCTETS {
        return usize::MAX;
    }
    strsim::osa_distance(&text.to_ascii_lowercase(), &known.to_ascii_lowercase())
}
