//! Whose an interface is, where no endpoint is named: every pod of this node is an endpoint, from the moment that the
//! kernel tells of its interface.
//!
//! ```text
//!  a link appears ─▶ no veth, both ends here, an uplink, left alone? ─▶ nothing of ours
//!        │ no
//!        ▼
//!  the CNI's cache names its pod ─▶ else a route to one of its pod's addresses ─▶ else unknown: shut, both ways
//!        │ in the snapshot, on this node, of the same uid
//!        ▼
//!  its pod's endpoint: row, programs, floor
//! ```
//!
//! Nothing that a pod can write says who it is (I2): not its packets, nor what a bridge learned from them. So a bridged pod
//! is known by the CNI's cache alone. Who was found to be behind an interface is so until it is gone, or until the cache says
//! otherwise; an interface that is new gets an endpoint's number that is new, and inherits nothing.

mod places;
mod pods;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::attachments::Attachment;
use crate::clock;
use crate::config::Config;
use crate::engine::endpoint::{EndpointId, PodRef};
use crate::host::cni::Cache;
use crate::host::floor::InterfaceNames;
use crate::host::links::{Link, Peer};
use crate::host::paths::Paths;
use crate::kernel::attach::Method;
use crate::kernel::rules::EndpointRow;

pub(super) use watch::{CacheWatch, Told};

/// How often all interfaces, routes and files are looked at, whatever was told of them.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long what an interface changed waits for more of it, before the policy is reckoned with it.
const SETTLE: Duration = Duration::from_millis(100);
/// How long an interface may be unknown before that is said: a CNI writes its result down last.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of pods and interfaces.
pub(super) struct Discovery {
    pub cache: Cache,
    pub watch: CacheWatch,
    pub paths: Paths,
    /// Interfaces whose pod is not known, by number: nothing passes.
    pub unknown: BTreeMap<u32, Unknown>,
    /// Interfaces that are none of ours: no veths, uplinks, and those that the operator leaves alone.
    pub excepted: BTreeSet<u32>,
    /// This node's pods that have a network of their own, as the snapshot says; none: there was no snapshot yet.
    here: Option<BTreeMap<PodRef, Option<String>>>,
    /// The same pods by their addresses.
    at: BTreeMap<IpAddr, BTreeSet<PodRef>>,
    /// Pods that had an interface which is gone, with uid and addresses as the snapshot had them then: what leads to these
    /// addresses now may be another pod's, of which the snapshot does not know yet.
    spent: BTreeMap<PodRef, (Option<String>, BTreeSet<IpAddr>)>,
    /// Pods whose interface an earlier run had, and which is gone.
    lost: Vec<PodRef>,
    /// Pods on the node's own network that a policy selects: nothing enforces it.
    pub unprotected: Vec<PodRef>,
    /// What that was reckoned from.
    unprotected_by: pods::Basis,
    /// Numbers and slots of endpoints that are no more. Neither is given out before what is left of them is gone.
    gone: Vec<(EndpointId, u32)>,
    /// When the policy is to be reckoned anew with what was found.
    pub reload_at: Option<Instant>,
    /// Whether the proxy does not know yet what was found.
    unpublished: bool,
    look_again_at: Instant,
}

/// An interface whose pod is not known.
pub(super) struct Unknown {
    pub interface: String,
    /// Why it is not.
    pub why: String,
    /// How programs are on it; none: they could not be attached, and the floor alone shuts it.
    pub method: Option<Method>,
    since: Instant,
    told: bool,
}

/// A further interface of an endpoint: the same number, policy and names, and addresses of its own.
#[derive(Clone, Debug)]
pub(super) struct Also {
    pub interface: String,
    pub at: Attachment,
    /// The file of the pod's network namespace, as the CNI's cache has it.
    pub namespace: Option<PathBuf>,
    pub addresses: Vec<IpAddr>,
    pub written: Option<EndpointRow>,
    /// Why it is not as it should be.
    pub problem: String,
    pub damage: String,
}

/// What an interface is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Class {
    /// None of ours. Whether the operator said so.
    NotOurs(bool),
    /// Both ends of a pair are here: as long as that is so, nobody else is behind it.
    BothHere,
    /// A pod's.
    Pod(Found),
    /// Somebody's.
    Unknown(String),
}

/// A pod behind an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Found {
    pod: PodRef,
    /// As the CNI's cache has it.
    uid: Option<String>,
    /// Its sandbox, and when that was written down; none: it was found by a route.
    sandbox: Option<(String, SystemTime)>,
    /// The file of its network namespace.
    namespace: Option<PathBuf>,
    /// Its addresses on this interface.
    addresses: Vec<IpAddr>,
}

impl Discovery {
    pub fn new(config: &Config) -> Discovery {
        let cache = Cache::new(&config.discovery.cni_cache);
        let watch = CacheWatch::start(cache.directory());
        Discovery {
            cache,
            watch,
            paths: Paths::default(),
            unknown: BTreeMap::new(),
            excepted: BTreeSet::new(),
            here: None,
            at: BTreeMap::new(),
            spent: BTreeMap::new(),
            lost: Vec::new(),
            unprotected: Vec::new(),
            unprotected_by: pods::Basis::default(),
            gone: Vec::new(),
            reload_at: None,
            unpublished: false,
            look_again_at: clock::now() + LOOK_AGAIN,
        }
    }

    fn identify(&self, link: &Link, leave_alone: &[InterfaceNames]) -> Class {
        match link.veth {
            None => return Class::NotOurs(false),
            _ if leave_alone.iter().any(|names| names.holds(&link.name)) => return Class::NotOurs(true),
            Some(Peer::Here(_)) => return Class::BothHere,
            Some(Peer::Elsewhere) => (),
        }
        if self.paths.is_way_out(link.index) {
            return Class::NotOurs(false);
        }
        if let Some((cached, written)) = self.cache.of(&link.name) {
            return Class::Pod(Found {
                pod: cached.pod.clone(),
                uid: cached.uid.clone(),
                sandbox: Some((cached.container.clone(), written)),
                namespace: cached.namespace.clone(),
                addresses: cached.addresses.clone(),
            });
        }
        if self.paths.uplink(link.index).is_some() {
            return Class::NotOurs(false);
        }
        // A route leads to an address, and whose that is the snapshot says late: who can say it at once is waited for.
        let since = self.unknown.get(&link.index).map(|unknown| unknown.since);
        if self.cache.is_used() && since.is_none_or(|since| clock::now() < since + PATIENCE) {
            return Class::Unknown("the CNI's cache does not say whose it is".to_owned());
        }
        let behind = self.paths.hosts_behind(link.index);
        let pods = behind.iter().filter_map(|address| self.at.get(address)).flatten();
        let mut pods: BTreeSet<&PodRef> = pods.filter(|pod| !self.spent.contains_key(pod)).collect();
        match (pods.pop_first(), pods.pop_first()) {
            (Some(pod), None) => Class::Pod(Found {
                pod: pod.clone(),
                uid: None,
                sandbox: None,
                namespace: None,
                addresses: behind.into_iter().filter(|address| self.at.contains_key(address)).collect(),
            }),
            (Some(one), Some(other)) => Class::Unknown(format!("routes lead to {one} and to {other} over it")),
            _ => Class::Unknown("neither the CNI's cache nor a route to a pod's address says whose it is".to_owned()),
        }
    }

    /// Why a pod that was found can't be an endpoint yet.
    fn why_not(&self, found: &Found) -> Option<String> {
        let by = if found.sandbox.is_some() { "the CNI's cache" } else { "a route" };
        let Some(here) = &self.here else { return Some("no snapshot has been read yet".to_owned()) };
        let Some(uid) = here.get(&found.pod) else {
            return Some(format!("it is that of {} by {by}, which is no pod of this node in the snapshot", found.pod));
        };
        match (uid, &found.uid) {
            (Some(is), Some(was)) if is != was => Some(format!(
                "it is that of {} with uid {was} by {by}; the snapshot has another one with uid {is}",
                found.pod
            )),
            _ => None,
        }
    }

    /// What the snapshot says of a pod of this node.
    fn as_it_is(&self, pod: &PodRef) -> Option<(Option<String>, BTreeSet<IpAddr>)> {
        let uid = self.here.as_ref()?.get(pod)?.clone();
        let addresses = self.at.iter().filter(|(_, pods)| pods.contains(pod)).map(|(address, _)| *address).collect();
        Some((uid, addresses))
    }

    /// Of these the snapshot says something new, or nothing any more.
    fn forget_spent(&mut self) {
        let mut spent = std::mem::take(&mut self.spent);
        spent.retain(|pod, was| self.as_it_is(pod).as_ref() == Some(was));
        self.spent = spent;
    }

    /// The pod's interface is gone.
    fn spend(&mut self, pod: &PodRef) {
        if let Some(as_it_is) = self.as_it_is(pod) {
            self.spent.insert(pod.clone(), as_it_is);
        }
    }

    /// The policy is to be reckoned anew, with what else changes meanwhile.
    fn reload_soon(&mut self) {
        self.reload_at.get_or_insert(clock::now() + SETTLE);
    }

    /// Numbers and slots that must not be given out yet.
    fn held_back(&self) -> impl Iterator<Item = (EndpointId, u32)> + '_ {
        self.gone.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::paths::{Path, Way};

    const MAIN: Way = Way { v4: true, table: 254, metric: 0 };

    fn pod(name: &str) -> PodRef {
        PodRef { namespace: "shop".into(), name: name.into() }
    }

    fn link(veth: Option<Peer>) -> Link {
        Link { index: 7, name: "veth1".into(), up: true, mac: None, controller: None, bridge: false, veth }
    }

    fn address(last: u8) -> IpAddr {
        [198, 51, 100, last].into()
    }

    /// One in whose cache `veth1` is that of the pod `cached`, if there is one.
    fn discovery(folder: &std::path::Path, cached: Option<&str>) -> Discovery {
        let mut config = Config::default();
        config.discovery.cni_cache = folder.to_owned();
        std::fs::create_dir_all(folder.join("results")).unwrap();
        if let Some(name) = cached {
            let text = format!(
                r#"{{"kind":"cniCacheV1","containerId":"0b1c","ifName":"eth0","cniArgs":[["K8S_POD_NAMESPACE","shop"],
                    ["K8S_POD_NAME","{name}"],["K8S_POD_UID","one"]],"result":{{"interfaces":[{{"name":"veth1"}}]}}}}"#
            );
            std::fs::write(folder.join("results/net-0b1c-eth0"), text).unwrap();
        }
        let mut discovery = Discovery::new(&config);
        discovery.cache.read("net-0b1c-eth0");
        discovery
    }

    /// The pod's name, or what it is else.
    fn found(discovery: &Discovery, link: &Link) -> String {
        match discovery.identify(link, &[]) {
            Class::Pod(found) => found.pod.name,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn what_is_no_veth_an_uplink_left_alone_or_a_pair_of_our_own_is_nobodys_whatever_the_cache_says() {
        let folder = tempfile::tempdir().unwrap();
        let mut discovery = discovery(folder.path(), Some("a"));
        let elsewhere = link(Some(Peer::Elsewhere));
        assert_eq!(found(&discovery, &elsewhere), "a");
        assert_eq!(found(&discovery, &link(None)), "NotOurs(false)");
        assert_eq!(found(&discovery, &link(Some(Peer::Here(8)))), "BothHere");
        let patterns = [InterfaceNames::Prefix("vet".into())];
        assert_eq!(discovery.identify(&elsewhere, &patterns), Class::NotOurs(true));
        // A plugin may give the host's side an address of the pods' network.
        discovery.paths.change(&[(7, Path::Network(address(9)))], true);
        assert_eq!(found(&discovery, &elsewhere), "a");
        let other = Link { name: "veth2".into(), ..elsewhere.clone() };
        assert_eq!(found(&discovery, &other), "NotOurs(false)");
        discovery.paths.change(&[(7, Path::Default(MAIN))], true);
        assert_eq!(found(&discovery, &elsewhere), "NotOurs(false)");
    }

    #[test]
    fn by_a_route_no_pod_is_known_whose_interface_has_gone_until_the_snapshot_says_something_new_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut discovery = discovery(folder.path(), None);
        discovery.paths.change(&[(7, Path::Host(MAIN, address(1)))], true);
        discovery.at.entry(address(1)).or_default().insert(pod("b"));
        discovery.here = Some([(pod("b"), Some("one".to_owned()))].into());
        let elsewhere = link(Some(Peer::Elsewhere));
        assert_eq!(found(&discovery, &elsewhere), "b");
        discovery.spend(&pod("b"));
        assert!(found(&discovery, &elsewhere).starts_with("Unknown"));
        discovery.forget_spent();
        assert!(found(&discovery, &elsewhere).starts_with("Unknown"), "the same as before");
        discovery.here = Some([(pod("b"), Some("two".to_owned()))].into());
        discovery.forget_spent();
        assert_eq!(found(&discovery, &elsewhere), "b");
    }

    #[test]
    fn where_the_cache_is_used_a_route_says_something_only_after_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let mut discovery = discovery(folder.path(), Some("a"));
        discovery.paths.change(&[(8, Path::Host(MAIN, address(1)))], true);
        discovery.at.entry(address(1)).or_default().insert(pod("b"));
        let other = Link { index: 8, name: "veth2".into(), ..link(Some(Peer::Elsewhere)) };
        assert!(found(&discovery, &other).starts_with("Unknown"));
        let since = clock::now().checked_sub(PATIENCE).unwrap();
        let why = String::new();
        let unknown = Unknown { interface: "veth2".into(), why, method: None, since, told: false };
        discovery.unknown.insert(8, unknown);
        assert_eq!(found(&discovery, &other), "b");
    }

    #[test]
    fn the_cache_stands_above_routes_and_routes_to_two_pods_say_nothing() {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        for (folder, cached) in folders.iter().zip([Some("a"), None]) {
            let mut discovery = discovery(folder.path(), cached);
            discovery.paths.change(&[(7, Path::Host(MAIN, address(1)))], true);
            discovery.at.entry(address(1)).or_default().insert(pod("b"));
            let elsewhere = link(Some(Peer::Elsewhere));
            assert_eq!(found(&discovery, &elsewhere), cached.unwrap_or("b"));
            discovery.paths.change(&[(7, Path::Host(MAIN, address(2)))], true);
            discovery.at.entry(address(2)).or_default().insert(pod("c"));
            let expected = cached.unwrap_or("Unknown(\"routes lead to shop/b and to shop/c over it\")");
            assert_eq!(found(&discovery, &elsewhere), expected);
        }
    }

    #[test]
    fn a_pod_of_another_uid_or_node_is_not_the_one_that_was_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut discovery = discovery(folder.path(), Some("a"));
        let Class::Pod(found) = discovery.identify(&link(Some(Peer::Elsewhere)), &[]) else { panic!("it is a pod's") };
        let why_not = |discovery: &Discovery| discovery.why_not(&found).unwrap_or_default();
        assert_eq!(why_not(&discovery), "no snapshot has been read yet");
        discovery.here = Some(BTreeMap::new());
        assert!(why_not(&discovery).contains("no pod of this node"), "{}", why_not(&discovery));
        for (uid, fits) in [(Some("one"), true), (None, true), (Some("two"), false)] {
            discovery.here = Some([(pod("a"), uid.map(str::to_owned))].into());
            assert_eq!(why_not(&discovery).is_empty(), fits, "{uid:?}: {}", why_not(&discovery));
        }
    }
}
