//! Hands records to whoever watches.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use super::sink::{Sink, Target};
use super::{Counted, Observer, PacketRecord, QueryRecord, flow, human};
use crate::clock;
use crate::config::{Observe, Output};
use crate::engine::endpoint::{EndpointId, PodRef};
use crate::engine::labels::{CLUSTER, NAMESPACE, NAMESPACE_LABELS, SERVICE_ACCOUNT};
use crate::engine::world::{Holder, World};
use crate::operate::metrics::{Lost, Metrics};

/// Who is known by which address: what makes an address in a record a pod, a Service or the node.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Pods by their addresses.
    pub workloads: HashMap<IpAddr, Arc<Workload>>,
    /// Services by their addresses.
    pub services: HashMap<IpAddr, PodRef>,
    /// This node's own addresses, as the cluster has them.
    pub host: HashSet<IpAddr>,
    /// The same, as its interfaces have them.
    pub own: Arc<HashSet<IpAddr>>,
    /// Other nodes' addresses.
    pub nodes: HashSet<IpAddr>,
}

impl Known {
    /// What a snapshot tells; `endpoint` knows the numbers of this node's endpoints.
    pub fn of_world(world: &World, endpoint: impl Fn(&PodRef) -> Option<EndpointId>) -> Known {
        let mut known = Known::default();
        for (address, holders) in world.holders() {
            known.put(address, &holders, world, &endpoint);
        }
        known.services = services(world);
        known
    }

    /// The same for the world after `old`, of which this is what was known, and where the numbers of these pods changed; `None`
    /// when too much changed. `holders`: those of `world`.
    pub fn next(
        &self,
        (old, world): (&World, &World),
        holders: &BTreeMap<IpAddr, BTreeSet<Holder>>,
        renumbered: &BTreeSet<PodRef>,
        endpoint: impl Fn(&PodRef) -> Option<EndpointId>,
    ) -> Option<Known> {
        let settings = |world: &World| (world.own_node.clone(), world.cluster.clone(), world.apiserver());
        let same = settings(old) == settings(world)
            && world.nodes.changes(&old.nodes).is_empty()
            && world.namespaces.changes(&old.namespaces).is_empty();
        if !same {
            return None;
        }
        let mut known = self.clone();
        let changed = world.pods.changes(&old.pods).into_iter().flat_map(|(_, was, is)| was.into_iter().chain(is));
        let renumbered = renumbered.iter().filter_map(|pod| world.pods.get(pod));
        let addresses: BTreeSet<IpAddr> = changed.chain(renumbered).flat_map(|pod| pod.addresses.clone()).collect();
        for address in addresses {
            known.workloads.remove(&address);
            if let Some(holders) = holders.get(&address) {
                known.put(address, holders, world, &endpoint);
            }
        }
        if !world.services.changes(&old.services).is_empty() {
            known.services = services(world);
        }
        Some(known)
    }

    fn put(
        &mut self,
        address: IpAddr,
        holders: &BTreeSet<Holder>,
        world: &World,
        endpoint: impl Fn(&PodRef) -> Option<EndpointId>,
    ) {
        // An address that two pods claim is shown as neither's.
        let mut holders = holders.iter();
        match (holders.next(), holders.next()) {
            (Some(Holder::Host | Holder::HostApiserver), _) => _ = self.host.insert(address),
            (Some(Holder::Node(_) | Holder::NodeApiserver(_) | Holder::Apiserver), _) => _ = self.nodes.insert(address),
            (Some(Holder::Pod(pod)), None) => {
                let workload = Workload { endpoint: endpoint(pod), pod: pod.clone(), labels: labels_of(world, pod) };
                self.workloads.insert(address, Arc::new(workload));
            }
            _ => (),
        }
    }
}

fn services(world: &World) -> HashMap<IpAddr, PodRef> {
    let mut services = HashMap::new();
    for ((namespace, name), service) in &world.services {
        let service_ref = PodRef { namespace: namespace.clone(), name: name.clone() };
        services.extend(service.addresses.iter().map(|address| (*address, service_ref.clone())));
    }
    services
}

/// A pod's labels with their source, sorted, as Cilium shows them.
fn labels_of(world: &World, pod: &PodRef) -> Vec<String> {
    let Some(found) = world.pods.get(pod) else { return Vec::new() };
    let mut labels = found.labels.clone();
    for (key, value) in world.namespaces.get(&pod.namespace).into_iter().flat_map(|namespace| &namespace.labels) {
        labels.insert(format!("{NAMESPACE_LABELS}{key}"), value.clone());
    }
    if let Some(account) = &found.service_account {
        labels.insert(SERVICE_ACCOUNT.to_owned(), account.clone());
    }
    // Last, so that no label of the pod's own can pretend to be one of these.
    labels.insert(CLUSTER.to_owned(), world.cluster.clone());
    labels.insert(NAMESPACE.to_owned(), pod.namespace.clone());
    labels.iter().map(|(key, value)| format!("k8s:{key}={value}")).collect()
}

/// A pod as records name it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// Its number, if it is an endpoint of this node.
    pub endpoint: Option<EndpointId>,
    /// Its namespace and name.
    pub pod: PodRef,
    /// Its labels with their source, as Cilium writes them: `k8s:app=reports`.
    pub labels: Vec<String>,
}

/// A record on its way to the writers.
pub enum Record {
    /// A query and when it ended.
    Query(SystemTime, QueryRecord),
    /// A packet.
    Packet(PacketRecord),
}

/// Everyone who watches. Counts every record and writes it wherever the operator wants it.
pub struct Watchers {
    known: Arc<ArcSwap<Known>>,
    metrics: Arc<Metrics>,
    flows: Option<Sink<Arc<Record>>>,
    lines: Option<Sink<Arc<Record>>>,
}

impl Watchers {
    /// Opens the outputs that are configured.
    ///
    /// # Errors
    /// The file of flow records can't be opened.
    pub fn start(settings: &Observe, node_name: &str, metrics: Arc<Metrics>) -> io::Result<Watchers> {
        let known = Arc::new(ArcSwap::from_pointee(Known::default()));
        let flows = match &settings.flows {
            None => None,
            Some(output) => {
                let target = match output {
                    Output::Stdout => Target::Stdout,
                    Output::File(path) => Target::File(path.clone()),
                };
                let (known, node_name) = (Arc::clone(&known), node_name.to_owned());
                Some(Sink::start(target, move |record: &Arc<Record>, out| {
                    flow::write(record, &known.load(), &node_name, out);
                })?)
            }
        };
        let lines = if settings.verbose {
            let colour = human::colour_on_stderr();
            Some(Sink::start(Target::Stderr, move |record: &Arc<Record>, out| human::write(record, colour, out))?)
        } else {
            None
        };
        Ok(Watchers { known, metrics, flows, lines })
    }

    /// Takes over who is known by which address.
    pub fn know(&self, known: Arc<Known>) {
        self.known.store(known);
    }

    /// A packet verdict. Packets are counted in the kernel, not here.
    pub fn packet(&self, record: PacketRecord) {
        if self.watches() {
            self.put(Record::Packet(record));
        }
    }

    /// Tells the metrics how many records were lost. Cheap; call it now and then.
    pub fn count_lost(&self) {
        let lost = |sink: &Option<Sink<_>>| sink.as_ref().map_or(0, Sink::lost);
        self.metrics.lost(Lost::FlowRecord, lost(&self.flows));
        self.metrics.lost(Lost::VerboseLine, lost(&self.lines));
    }

    /// Writes what is waiting, `patience` at most for each output.
    pub fn stop(&self, patience: Duration) {
        for sink in [&self.flows, &self.lines].into_iter().flatten() {
            sink.stop(patience);
        }
    }

    fn put(&self, record: Record) {
        let record = Arc::new(record);
        for sink in [&self.flows, &self.lines].into_iter().flatten() {
            sink.put(Arc::clone(&record));
        }
    }
}

impl Observer for Watchers {
    fn query(&self, counted: &Counted, whole: &dyn Fn() -> QueryRecord) {
        self.metrics.query(counted);
        if self.watches() {
            self.put(Record::Query(clock::wall(), whole()));
        }
    }

    fn watches(&self) -> bool {
        self.flows.is_some() || self.lines.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::engine::world::{Namespace, Node, Pod, Search, Service};

    fn pod(address: &str) -> Pod {
        Pod {
            uid: None,
            labels: [("app", "reports"), (NAMESPACE, "forged")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            service_account: Some("robot".to_owned()),
            addresses: vec![address.parse().unwrap()],
            node: Some("node-1".to_owned()),
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

    fn reference(name: &str) -> PodRef {
        PodRef { namespace: "payments".to_owned(), name: name.to_owned() }
    }

    fn node(address: &str) -> Node {
        Node { labels: BTreeMap::new(), addresses: vec![address.parse().unwrap()], place: String::new() }
    }

    #[test]
    fn a_snapshot_tells_who_is_behind_an_address() {
        let team = [("team".to_owned(), "money".to_owned())].into();
        let addresses = BTreeSet::from(["198.18.0.10".parse().unwrap()]);
        let world = World {
            own_node: Some("node-1".to_owned()),
            cluster: "default".to_owned(),
            pods: [("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", "192.0.2.2")]
                .map(|(name, address)| (reference(name), pod(address)))
                .into(),
            namespaces: [("payments".to_owned(), Namespace { labels: team, mode: None, place: String::new() })].into(),
            services: [(
                ("kube-system".to_owned(), "kube-dns".to_owned()),
                Service {
                    labels: BTreeMap::new(),
                    selector: BTreeMap::new(),
                    addresses,
                    ports: Vec::new(),
                    readable: true,
                    place: String::new(),
                },
            )]
            .into(),
            nodes: [("node-1".to_owned(), node("198.51.100.1")), ("node-2".to_owned(), node("198.51.100.2"))].into(),
            ..World::default()
        };
        let known = Known::of_world(&world, |pod| (pod.name == "a").then_some(EndpointId(7)));
        let labels = [
            "k8s:app=reports",
            "k8s:io.cilium.k8s.namespace.labels.team=money",
            "k8s:io.cilium.k8s.policy.cluster=default",
            "k8s:io.cilium.k8s.policy.serviceaccount=robot",
            "k8s:io.kubernetes.pod.namespace=payments",
        ];
        let workload =
            Workload { endpoint: Some(EndpointId(7)), pod: reference("a"), labels: labels.map(str::to_owned).into() };
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(known.workloads[&address("192.0.2.1")].as_ref(), &workload);
        assert!(!known.workloads.contains_key(&address("192.0.2.2")), "two pods claim it");
        assert_eq!(known.services[&address("198.18.0.10")].to_string(), "kube-system/kube-dns");
        // A pod's number that is another's: as if all were seen for the first time.
        let number = |pod: &PodRef| (pod.name == "a").then_some(EndpointId(8));
        let next = known.next((&world, &world), &world.holders(), &[reference("a")].into(), number).unwrap();
        assert_eq!(next.workloads, Known::of_world(&world, number).workloads);
        assert_eq!(next.workloads[&address("192.0.2.1")].endpoint, Some(EndpointId(8)));
        assert_eq!((known.host, known.nodes), ([address("198.51.100.1")].into(), [address("198.51.100.2")].into()));
    }
}
