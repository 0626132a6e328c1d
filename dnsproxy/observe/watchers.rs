//! Hands records to whoever watches.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use super::sink::{Sink, Target};
use super::{Observer, PacketRecord, QueryRecord, flow, human};
use crate::clock;
use crate::config::{Observe, Output};
use crate::engine::endpoint::{EndpointId, PodRef};
use crate::operate::metrics::{Lost, Metrics};

/// Who is known by which address: what makes an address in a record a pod, a Service or the node.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Pods by their addresses.
    pub workloads: HashMap<IpAddr, Arc<Workload>>,
    /// Services by their addresses.
    pub services: HashMap<IpAddr, PodRef>,
    /// This node's own addresses.
    pub host: HashSet<IpAddr>,
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
    pub fn know(&self, known: Known) {
        self.known.store(Arc::new(known));
    }

    /// A packet verdict. Packets are counted in the kernel, not here.
    pub fn packet(&self, record: PacketRecord) {
        if self.flows.is_some() || self.lines.is_some() {
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
    fn query(&self, record: &QueryRecord) {
        self.metrics.query(record);
        if self.flows.is_some() || self.lines.is_some() {
            self.put(Record::Query(clock::wall(), record.clone()));
        }
    }
}
