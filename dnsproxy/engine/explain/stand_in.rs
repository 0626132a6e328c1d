//! What a question speaks of and the snapshot doesn't have: pods by their labels, this node, another one, the API server.
//!
//! Their addresses are out of ranges that nobody has: 240.0.0.0/4 (RFC 1112) and 100::/64 (RFC 6666).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::question::Like;
use crate::engine::endpoint::PodRef;
use crate::engine::world::{ContainerPort, EndpointSlice, Namespace, Node, Pod, Search, World};

/// The label that Kubernetes puts on every namespace.
pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The name of this node where the snapshot doesn't say which one it is.
pub const OWN_NODE: &str = "(this node)";
/// The name of another node where the snapshot has none.
pub const OTHER_NODE: &str = "(another node)";

/// Gives out stand-ins for one world.
#[derive(Debug, Default)]
pub struct StandIns {
    given: u32,
    pods: BTreeMap<(Like, Vec<ContainerPort>), PodRef>,
}

impl StandIns {
    /// For a world that has stand-ins already: the next address is nobody's.
    pub fn beside(world: &World) -> StandIns {
        let pods = world.pods.values().flat_map(|pod| pod.addresses.iter().copied());
        let nodes = world.nodes.values().flat_map(|node| node.addresses.iter().copied());
        let services = world.services.values().flat_map(|service| service.addresses.iter().copied());
        let taken: BTreeSet<IpAddr> = pods.chain(nodes).chain(services).chain(world.apiserver()).collect();
        let given = (0..0x0fff_ffff).find(|given| numbered(given + 1).iter().all(|address| !taken.contains(address)));
        StandIns { given: given.unwrap_or_default(), ..StandIns::default() }
    }

    /// A pod with these labels and named ports, the same one for the same.
    ///
    /// Its namespace counts as known, with no labels but its name, if it isn't there.
    pub fn pod(&mut self, world: &mut World, like: &Like, ports: &[ContainerPort]) -> PodRef {
        let key = (like.clone(), ports.to_vec());
        if let Some(known) = self.pods.get(&key) {
            return known.clone();
        }
        know_namespace(world, &like.namespace);
        let labels: Vec<String> = like.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let shown = format!("({})", labels.join(","));
        let mut pod = PodRef { namespace: like.namespace.clone(), name: shown.clone() };
        let mut count = 1;
        while world.pods.contains_key(&pod) {
            count += 1;
            pod.name = format!("{shown}#{count}");
        }
        let addresses = self.addresses().to_vec();
        world.pods.insert(
            pod.clone(),
            Pod {
                uid: None,
                labels: like.labels.clone(),
                service_account: like.service_account.clone(),
                addresses,
                node: None,
                host_network: false,
                finished: false,
                search: Search::default(),
                nameservers: Vec::new(),
                ports: ports.to_vec(),
                mode: None,
                readable: true,
                place: String::new(),
            },
        );
        self.pods.insert(key, pod.clone());
        pod
    }

    /// Addresses for every pod that has none yet, so that it can be asked about before it runs.
    pub fn place(&mut self, world: &mut World) {
        let homeless =
            world.pods.iter().filter(|(_, pod)| pod.addresses.is_empty() && !pod.host_network && !pod.finished);
        for pod in homeless.map(|(pod, _)| pod.clone()).collect::<Vec<_>>() {
            let addresses = self.addresses().to_vec();
            world.pods.get_mut(&pod).into_iter().for_each(|pod| pod.addresses.clone_from(&addresses));
        }
    }

    /// An address of this node.
    pub fn own_node(&mut self, world: &mut World) -> IpAddr {
        let name = world.own_node.get_or_insert_with(|| OWN_NODE.to_owned()).clone();
        self.node(world, &name)
    }

    /// An address of another node.
    pub fn other_node(&mut self, world: &mut World) -> IpAddr {
        let own = world.own_node.as_ref();
        let there = world.nodes.iter().find(|(name, node)| own != Some(name) && !node.addresses.is_empty());
        match there {
            Some((_, node)) => node.addresses[0],
            None => self.node(world, OTHER_NODE),
        }
    }

    /// An address at which the API server listens.
    pub fn apiserver(&mut self, world: &mut World) -> IpAddr {
        if let Some(address) = world.apiserver().into_iter().next() {
            return address;
        }
        let addresses = self.addresses();
        let slice = EndpointSlice {
            service: Some("kubernetes".to_owned()),
            ports: Vec::new(),
            endpoints: vec![(addresses.to_vec(), true)],
            readable: true,
            place: String::new(),
        };
        world.endpoint_slices.insert(("default".to_owned(), "(kubernetes)".to_owned()), slice);
        addresses[0]
    }

    fn node(&mut self, world: &mut World, name: &str) -> IpAddr {
        if let Some(address) = world.nodes.get(name).and_then(|node| node.addresses.first()) {
            return *address;
        }
        let addresses = self.addresses();
        let node = Node { labels: BTreeMap::new(), addresses: addresses.to_vec(), place: String::new() };
        world.nodes.insert(name.to_owned(), node);
        addresses[0]
    }

    fn addresses(&mut self) -> [IpAddr; 2] {
        self.given += 1;
        numbered(self.given)
    }
}

fn numbered(number: u32) -> [IpAddr; 2] {
    let v6 = (0x0100_u128 << 112) | u128::from(number);
    [Ipv4Addr::from_bits(0xf000_0000 | number).into(), Ipv6Addr::from_bits(v6).into()]
}

/// A namespace that isn't there counts as known; every one has the label of its name.
pub fn know_namespace(world: &mut World, name: &str) {
    let known = world.namespaces.get(name);
    if known.is_some_and(|namespace| namespace.labels.contains_key(NAMESPACE_NAME)) {
        return;
    }
    let empty = || Namespace { labels: BTreeMap::new(), mode: None, place: String::new() };
    let mut namespace = known.cloned().unwrap_or_else(empty);
    namespace.labels.insert(NAMESPACE_NAME.to_owned(), name.to_owned());
    world.namespaces.insert(name.to_owned(), namespace);
}
