//! From a changed file to the kernel: a full load of a large cluster, and the change of one pod of it.

use std::collections::BTreeMap;
use std::time::Instant;

use namegate::cluster::files;
use namegate::cluster::snapshot::{LastGood, OnInvalid, assemble};
use namegate::engine::compile::Compiler;
use namegate::engine::endpoint::PodRef;
use namegate::engine::world::PeerIds;
use serde_json::{Value, json};

use super::lab::clock::now;
use super::{print, round};
use objects::{Cluster, Layout, PODS};

#[path = "snapshot/objects.rs"]
mod objects;

/// How many pods of the cluster are this node's: those whose policy is put in force here.
const ENDPOINTS: usize = 100;

pub fn measure() {
    for layout in [Layout::Single, Layout::Shards] {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let cluster = Cluster::write(directory.path(), layout);
        drop(cluster);
        let mut watch = Watch::default();
        let files = watch.time("read", || files::read(directory.path()).unwrap());
        let octets: usize = files.iter().map(|file| file.content.as_ref().unwrap().len()).sum();
        let snapshot = watch.time("assemble", || assemble(&files, &LastGood::default(), OnInvalid::Refuse));
        assert_eq!(snapshot.refusals, []);
        let mut world = snapshot.world.clone();
        world.own_node = Some("node-0".into());
        let mut ids = PeerIds::default();
        let compiler = watch.time("compiler", || Compiler::new(&world, &mut ids));
        let local: Vec<PodRef> = local();
        let sets = watch.time("compile", || {
            local.iter().take(10).map(|pod| compiler.compile(pod, &[]).unwrap()).collect::<Vec<_>>()
        });
        let rows: usize = sets.iter().map(|set| set.peers.len()).sum();
        let json = watch.time("last good as JSON", || serde_json::to_vec(&snapshot.last_good).unwrap());
        print(
            "snapshot_load_ms",
            layout.name(),
            None,
            json!({"octets": octets, "peer_rows": rows, "json": json.len(), "ms": watch.values}),
        );
    }
}

/// The pods of this node.
fn local() -> Vec<PodRef> {
    let here = (0..PODS).filter(|pod| objects::node_of(*pod) == 0).take(ENDPOINTS);
    here.map(objects::name).map(|(namespace, name)| PodRef { namespace, name }).collect()
}

#[derive(Default)]
struct Watch {
    values: BTreeMap<&'static str, Value>,
}

impl Watch {
    fn time<T>(&mut self, what: &'static str, run: impl FnOnce() -> T) -> T {
        let start: Instant = now();
        let result = run();
        self.values.insert(what, round(start.elapsed().as_secs_f64() * 1000.0, 2).into());
        result
    }
}
