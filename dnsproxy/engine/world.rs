//! The cluster as the engine sees it: typed, already checked.

mod objects;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::endpoint::PodRef;
use super::labels::Labels;
use super::name::Name;
use super::policy::Policy;
use super::ruleset::{PeerId, Protocol};
pub use objects::Objects;

/// Everything that one generation of the snapshot says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct World {
    /// This node's name: its addresses are the host, not just another node.
    pub own_node: Option<String>,
    /// The cluster's name, as pods carry it in a label; Cilium's `cluster-name`.
    pub cluster: String,
    /// By namespace and name.
    pub pods: Objects<PodRef, Pod>,
    /// By name.
    pub namespaces: Objects<String, Namespace>,
    /// By namespace and name.
    pub services: Objects<(String, String), Service>,
    /// By namespace and name.
    pub endpoint_slices: Objects<(String, String), EndpointSlice>,
    /// Endpoints objects by namespace and name (the Service's), each as the slices that it says the same as. For Services
    /// that have no slice of their own.
    pub endpoints: Objects<(String, String), Vec<EndpointSlice>>,
    /// By name.
    pub nodes: Objects<String, Node>,
    /// CiliumCIDRGroups by name.
    pub cidr_groups: Objects<String, CidrGroup>,
    /// `data` of the ConfigMap `cilium-config`.
    pub cilium_config: BTreeMap<String, String>,
    /// Whom policies shut.
    pub enforcement: Enforcement,
    /// Whether what policy would drop passes all the same, unless a pod or its namespace says otherwise.
    pub mode: Mode,
    /// Whether that of a pod or its namespace counts.
    pub own_modes: bool,
    /// Policies that were read, by kind, namespace and name.
    pub policies: Vec<Arc<Policy>>,
    /// What still holds of policies that could not be read (I10).
    pub refused: Vec<Arc<Policy>>,
}

/// Whom policies shut: Cilium's `enable-policy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Enforcement {
    /// Those whom one selects, in the directions that it speaks of.
    #[default]
    Default,
    /// Everyone, in both directions.
    Always,
    /// Nobody: no policy means anything.
    Never,
}

/// What becomes of what policy would drop.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// It is dropped.
    #[default]
    Enforce,
    /// It passes, is counted and told: Cilium's `policy-audit-mode`.
    Audit,
}

/// A pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// `metadata.uid`: another one for a pod of the same name that is made anew.
    pub uid: Option<String>,
    /// Its own labels.
    pub labels: BTreeMap<String, String>,
    /// The account it runs under.
    pub service_account: Option<String>,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// The node it runs on.
    pub node: Option<String>,
    /// It shares its node's network and addresses: in policies it is its node.
    pub host_network: bool,
    /// It has ended (Succeeded or Failed): its addresses may already be another's.
    pub finished: bool,
    /// Under which suffixes its resolver library looks for a name.
    pub search: Search,
    /// `dnsConfig.nameservers`.
    pub nameservers: Vec<IpAddr>,
    /// The named ports of its containers.
    pub ports: Vec<ContainerPort>,
    /// `namegate.io/mode`, if it has it.
    pub mode: Option<Mode>,
    /// Whether all of it could be read. If not, nothing that asks for its labels allows it, and every denial meets it.
    pub readable: bool,
    /// `file:line:column`.
    pub place: String,
}

/// A port of a container that has a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ContainerPort {
    /// Its name.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// `containerPort`.
    pub port: u16,
}

/// A CiliumCIDRGroup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CidrGroup {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `externalCIDRs`.
    pub networks: Vec<IpNet>,
    /// Whether all of it could be read. If not, it allows nothing, and a denial by it means every address outside.
    pub readable: bool,
    /// `file:line:column`.
    pub place: String,
}

/// The suffixes that a pod's resolver library tries, as far as its object says.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Search {
    /// `dnsPolicy` keeps those of the cluster out: `None`, `Default`, and `ClusterFirst` for a pod on its node's network.
    pub only_own: bool,
    /// `dnsConfig.searches`.
    pub own: Vec<Name>,
}

/// A namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `namegate.io/mode`, if it has it: that of its pods that have none.
    pub mode: Option<Mode>,
    /// `file:line:column`.
    pub place: String,
}

/// A Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Which pods are behind it; empty: what its slices say is.
    pub selector: BTreeMap<String, String>,
    /// Cluster, external and load balancer addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Whether all of it could be read. If not, its addresses are known and nothing opens them.
    pub readable: bool,
    /// `file:line:column`.
    pub place: String,
}

/// One port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// The name by which slices refer to it; may be empty.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port at the Service's address.
    pub port: u16,
}

/// Some of a Service's backends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// The Service, in the slice's namespace; `None` when it belongs to none, or can't be read.
    pub service: Option<String>,
    /// Where its backends listen.
    pub ports: Vec<SlicePort>,
    /// Addresses, and whether they are ready.
    pub endpoints: Vec<(Vec<IpAddr>, bool)>,
    /// Whether all of it could be read. If not, nothing opens its Service (or any of its namespace).
    pub readable: bool,
    /// `file:line:column`.
    pub place: String,
}

/// One port of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// The Service port's name; may be empty.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The target port; `None`: any.
    pub port: Option<u16>,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Internal and external addresses.
    pub addresses: Vec<IpAddr>,
    /// `file:line:column`.
    pub place: String,
}

/// Who is behind an address of the cluster.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Holder {
    /// This node.
    Host,
    /// This node, at an address at which the API server listens.
    HostApiserver,
    /// Another node.
    Node(String),
    /// Another node, at an address at which the API server listens.
    NodeApiserver(String),
    /// The API server, at an address that is no node's.
    Apiserver,
    /// A pod.
    Pod(PodRef),
}

/// Numbers of peers: a name keeps its number for as long as it is there, and no number is ever given twice.
///
/// Part of the state that outlives the process: pinned rows hold these numbers.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(from = "Numbers", into = "Numbers")]
pub struct PeerIds {
    next: u32,
    /// Shared with copies until one changes.
    ids: Arc<BTreeMap<String, u32>>,
}

/// [`PeerIds`] in writing.
#[derive(serde::Serialize, serde::Deserialize)]
struct Numbers {
    next: u32,
    ids: BTreeMap<String, u32>,
}

impl From<Numbers> for PeerIds {
    fn from(Numbers { next, ids }: Numbers) -> PeerIds {
        PeerIds { next, ids: Arc::new(ids) }
    }
}

impl From<PeerIds> for Numbers {
    fn from(PeerIds { next, ids }: PeerIds) -> Numbers {
        Numbers { next, ids: Arc::unwrap_or_clone(ids) }
    }
}

impl Default for PeerIds {
    fn default() -> PeerIds {
        PeerIds { next: PeerId::FIRST.0, ids: Arc::default() }
    }
}

impl PeerIds {
    /// The number of `key`, as `pod/shop/web-0` or `node/a`, if it has one.
    pub fn get(&self, key: &str) -> Option<PeerId> {
        self.ids.get(key).copied().map(PeerId)
    }

    /// The number of `key`, a new one if it has none.
    pub(super) fn give(&mut self, key: &str) -> PeerId {
        if let Some(id) = self.get(key) {
            return id;
        }
        let id = self.next;
        self.next += 1;
        Arc::make_mut(&mut self.ids).insert(key.to_owned(), id);
        PeerId(id)
    }

    /// Nobody has the key any more.
    pub(super) fn forget(&mut self, key: &str) {
        if self.ids.contains_key(key) {
            Arc::make_mut(&mut self.ids).remove(key);
        }
    }
}

impl Default for World {
    fn default() -> World {
        World {
            own_node: None,
            cluster: "default".to_owned(),
            pods: Objects::new(),
            namespaces: Objects::new(),
            services: Objects::new(),
            endpoint_slices: Objects::new(),
            endpoints: Objects::new(),
            nodes: Objects::new(),
            cidr_groups: Objects::new(),
            cilium_config: BTreeMap::new(),
            enforcement: Enforcement::default(),
            mode: Mode::default(),
            own_modes: true,
            policies: Vec::new(),
            refused: Vec::new(),
        }
    }
}

impl World {
    /// The rows of the kernel's `peers` map, sorted: pods, nodes and Services by their exact addresses. Pods that share
    /// their node's network have none of their own. IPv4 and IPv6 addresses of a pod or node have a number each, so that
    /// one can be open and the other shut; this node has one for both.
    ///
    /// Gives numbers to who has none yet, and forgets those of who is gone.
    pub fn peers(&self, ids: &mut PeerIds) -> Vec<(IpAddr, PeerId)> {
        self.number(&self.holders(), ids).into_iter().collect()
    }

    /// [`World::peers`] for who already knows the holders.
    pub(super) fn number(
        &self,
        holders: &BTreeMap<IpAddr, BTreeSet<Holder>>,
        ids: &mut PeerIds,
    ) -> BTreeMap<IpAddr, PeerId> {
        let mut rows: BTreeMap<IpAddr, PeerId> =
            self.service_addresses().map(|address| (address, PeerId::SERVICE)).collect();
        let mut keys = BTreeSet::new();
        for (address, holders) in holders {
            let key = peer_key(*address, holders);
            let id = number_of(holders, key.as_deref(), ids);
            keys.extend(key);
            // A pod's or node's own address that is also a Service's (a load balancer on the node) stays its own.
            rows.insert(*address, id);
        }
        if ids.ids.keys().any(|key| !keys.contains(key)) {
            Arc::make_mut(&mut ids.ids).retain(|key, _| keys.contains(key));
        }
        rows
    }

    /// Who is behind each address. More than one holder means that the snapshot is between two states; such an address
    /// is opened only by what opens all of them, and shut by what shuts one.
    pub fn holders(&self) -> BTreeMap<IpAddr, BTreeSet<Holder>> {
        let mut holders: BTreeMap<IpAddr, BTreeSet<Holder>> = BTreeMap::new();
        let mut apiserver = self.apiserver();
        for (name, node) in &self.nodes {
            let own = self.own_node.as_ref() == Some(name);
            for address in &node.addresses {
                holders.entry(*address).or_default().insert(match (own, apiserver.contains(address)) {
                    (true, true) => Holder::HostApiserver,
                    (true, false) => Holder::Host,
                    (false, true) => Holder::NodeApiserver(name.clone()),
                    (false, false) => Holder::Node(name.clone()),
                });
            }
        }
        for (reference, pod) in &self.pods {
            if pod.host_network || pod.finished {
                continue;
            }
            for address in &pod.addresses {
                holders.entry(*address).or_default().insert(Holder::Pod(reference.clone()));
            }
        }
        apiserver.retain(|address| !holders.contains_key(address));
        holders.extend(apiserver.into_iter().map(|address| (address, BTreeSet::from([Holder::Apiserver]))));
        holders
    }

    /// The labels of a node's object, as `toNodes` and `fromNodes` see them. Those of this node they don't see: in Cilium
    /// it is the host, and they select other nodes.
    pub fn node_labels(&self, holder: &Holder) -> Option<Labels> {
        match holder {
            Holder::Node(name) => Some(Labels::of_node(&self.nodes.get(name)?.labels, &["remote-node"])),
            Holder::NodeApiserver(name) => {
                Some(Labels::of_node(&self.nodes.get(name)?.labels, &["remote-node", "kube-apiserver"]))
            }
            Holder::Host | Holder::HostApiserver | Holder::Apiserver | Holder::Pod(_) => None,
        }
    }

    /// Where the API server listens: what is behind Service `default/kubernetes`.
    pub fn apiserver(&self) -> BTreeSet<IpAddr> {
        let slices = self.slices_of("default", "kubernetes");
        slices.flat_map(|slice| &slice.endpoints).flat_map(|(addresses, _)| addresses).copied().collect()
    }

    /// The slices of a Service, or what its Endpoints object says if it has none.
    pub fn slices_of<'w>(&'w self, namespace: &'w str, service: &'w str) -> impl Iterator<Item = &'w EndpointSlice> {
        let first = (namespace.to_owned(), String::new());
        let there = self.endpoint_slices.range(first..).take_while(move |((other, _), _)| other == namespace);
        let slices: Vec<&EndpointSlice> =
            there.map(|(_, slice)| slice).filter(|slice| slice.service.as_deref() == Some(service)).collect();
        let endpoints = if slices.is_empty() {
            self.endpoints.get(&(namespace.to_owned(), service.to_owned())).map_or(&[][..], Vec::as_slice)
        } else {
            &[]
        };
        slices.into_iter().chain(endpoints)
    }

    /// The labels that policies see on who is behind an address.
    pub fn labels(&self, holder: &Holder) -> Labels {
        match holder {
            Holder::Host => Labels::reserved(&["host"]),
            Holder::HostApiserver => Labels::reserved(&["host", "kube-apiserver"]),
            Holder::Node(_) => Labels::reserved(&["remote-node"]),
            // Cilium's identity of an API server elsewhere carries both, on a node or not.
            Holder::NodeApiserver(_) | Holder::Apiserver => Labels::reserved(&["remote-node", "kube-apiserver"]),
            Holder::Pod(reference) => match self.pods.get(reference) {
                Some(pod) if pod.readable => Labels::of_pod(
                    &pod.labels,
                    &reference.namespace,
                    self.namespaces.get(&reference.namespace).map(|namespace| &namespace.labels),
                    pod.service_account.as_deref(),
                    &self.cluster,
                ),
                _ => Labels::unreadable(&reference.namespace),
            },
        }
    }

    /// What becomes of what policy would drop for this pod: its own word, else its namespace's, else everyone's.
    pub fn mode_of(&self, pod: &PodRef) -> Mode {
        let own = self.pods.get(pod).and_then(|pod| pod.mode);
        let namespace = || self.namespaces.get(&pod.namespace).and_then(|namespace| namespace.mode);
        own.or_else(namespace).filter(|_| self.own_modes).unwrap_or(self.mode)
    }

    pub(super) fn service_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.services.values().flat_map(|service| service.addresses.iter().copied())
    }
}

/// The number of who is behind an address, by its [`peer_key`]; a new one if there is none.
pub(super) fn number_of(holders: &BTreeSet<Holder>, key: Option<&str>, ids: &mut PeerIds) -> PeerId {
    match key {
        Some(key) => ids.give(key),
        None if holders.contains(&Holder::HostApiserver) => PeerId::HOST_APISERVER,
        None => PeerId::HOST,
    }
}

/// Under which key the holders of an address have their number; `None` for this node.
pub(super) fn peer_key(address: IpAddr, holders: &BTreeSet<Holder>) -> Option<String> {
    let key = |holder: &Holder| match holder {
        Holder::Host => "host".to_owned(),
        Holder::HostApiserver => "host/apiserver".to_owned(),
        Holder::Node(name) => format!("node/{name}"),
        Holder::NodeApiserver(name) => format!("node/{name}/apiserver"),
        Holder::Apiserver => "apiserver".to_owned(),
        Holder::Pod(pod) => format!("pod/{}/{}", pod.namespace, pod.name),
    };
    if holders.len() == 1 && (holders.contains(&Holder::Host) || holders.contains(&Holder::HostApiserver)) {
        return None;
    }
    let family = if address.is_ipv4() { "" } else { "/6" };
    Some(holders.iter().map(key).collect::<Vec<_>>().join("+") + family)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn pod(addresses: &[&str]) -> Pod {
        Pod {
            uid: None,
            labels: BTreeMap::new(),
            service_account: None,
            addresses: addresses.iter().map(|address| ip(address)).collect(),
            node: None,
            host_network: false,
            finished: false,
            search: Search::default(),
            nameservers: Vec::new(),
            ports: Vec::new(),
            mode: None,
            readable: true,
            place: String::new(),
        }
    }

    fn named(name: &str) -> PodRef {
        PodRef { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    fn world() -> World {
        let mut world = World { own_node: Some("here".to_owned()), ..World::default() };
        for (name, address) in [("here", "198.51.100.1"), ("there", "198.51.100.2")] {
            world.nodes.insert(
                name.to_owned(),
                Node { labels: BTreeMap::new(), addresses: vec![ip(address)], place: String::new() },
            );
        }
        world.pods.insert(named("a"), pod(&["203.0.113.1", "2001:db8::1"]));
        world.pods.insert(named("agent"), Pod { host_network: true, ..pod(&["198.51.100.1"]) });
        world.pods.insert(named("done"), Pod { finished: true, ..pod(&["203.0.113.9"]) });
        world.services.insert(
            ("shop".to_owned(), "web".to_owned()),
            Service {
                labels: BTreeMap::new(),
                selector: BTreeMap::new(),
                addresses: [ip("198.18.0.1"), ip("198.51.100.2")].into(),
                ports: vec![],
                readable: true,
                place: String::new(),
            },
        );
        world
    }

    #[test]
    fn peers_are_pods_nodes_and_services_by_exact_address() {
        let rows = world().peers(&mut PeerIds::default());
        assert_eq!(
            rows,
            [
                (ip("198.18.0.1"), PeerId::SERVICE),
                (ip("198.51.100.1"), PeerId::HOST),
                (ip("198.51.100.2"), PeerId(16)),
                (ip("203.0.113.1"), PeerId(17)),
                (ip("2001:db8::1"), PeerId(18)),
            ]
        );
    }

    #[test]
    fn a_number_is_kept_and_never_given_twice() {
        let mut ids = PeerIds::default();
        let mut world = world();
        let before = world.peers(&mut ids);
        world.pods.insert(named("0"), pod(&["203.0.113.2"]));
        let with_another = world.peers(&mut ids);
        assert!(before.iter().all(|row| with_another.contains(row)));
        assert_eq!(ids.get("pod/shop/0"), Some(PeerId(19)));
        world.pods.remove(&named("0"));
        world.peers(&mut ids);
        assert_eq!(ids.get("pod/shop/0"), None, "forgotten");
        world.pods.insert(named("1"), pod(&["203.0.113.2"]));
        world.peers(&mut ids);
        assert_eq!(ids.get("pod/shop/1"), Some(PeerId(20)), "19 is not given again");
        let text = serde_json::to_string(&ids).unwrap();
        assert_eq!(serde_json::from_str::<PeerIds>(&text).unwrap(), ids);
    }

    #[test]
    fn an_address_with_two_holders_is_neither_of_them() {
        let mut world = world();
        world.pods.insert(named("b"), pod(&["203.0.113.1"]));
        let mut ids = PeerIds::default();
        let rows: BTreeMap<_, _> = world.peers(&mut ids).into_iter().collect();
        assert_ne!(rows[&ip("203.0.113.1")], rows[&ip("2001:db8::1")]);
        assert_eq!(ids.get("pod/shop/a+pod/shop/b"), Some(rows[&ip("203.0.113.1")]));
    }

    #[test]
    fn a_pods_own_word_stands_above_its_namespaces_and_that_above_everyones() {
        let mut world = world();
        let mode = |world: &World| world.mode_of(&named("a"));
        assert_eq!(mode(&world), Mode::Enforce);
        world.mode = Mode::Audit;
        assert_eq!(mode(&world), Mode::Audit);
        let namespace = Namespace { labels: BTreeMap::new(), mode: Some(Mode::Enforce), place: String::new() };
        world.namespaces.insert("shop".to_owned(), namespace);
        assert_eq!(mode(&world), Mode::Enforce);
        world.pods.insert(named("a"), Pod { mode: Some(Mode::Audit), ..pod(&["203.0.113.1"]) });
        world.mode = Mode::Enforce;
        assert_eq!(mode(&world), Mode::Audit);
        world.own_modes = false;
        assert_eq!(mode(&world), Mode::Enforce, "the operator does not heed them");
    }
}
