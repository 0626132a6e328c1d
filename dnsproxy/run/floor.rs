//! When which interface is shut: [`crate::host::floor`] under the endpoints, as `enforcement.floor` wants it.

use std::collections::BTreeSet;

use super::node::Node;
use crate::config::Config;
use crate::host::floor::{self, Floor, InterfaceNames, Wanted};
use crate::operate::metrics::Repair;

/// The floor, and what is needed to keep it.
pub(super) struct Ground {
    pub floor: Floor,
    /// Interfaces that programs of an earlier run guard, until this run has put its own on them.
    inherited: BTreeSet<u32>,
    /// What was last said to be wrong.
    told: String,
}

impl Ground {
    pub fn new(config: &Config) -> Ground {
        let floor = Floor::new(&floor::table_of(&config.pin_dir));
        Ground { floor, inherited: BTreeSet::new(), told: String::new() }
    }
}

impl Node {
    /// First of all: nothing passes that no program guards. Where programs of an earlier run still do, traffic goes on.
    pub async fn lay_floor(&mut self) {
        if !self.config.enforcement.floor {
            if let Err(error) = floor::remove_all(&floor::table_of(&self.config.pin_dir)) {
                tracing::warn!(%error, "the floor of an earlier run can't be removed");
            }
            return;
        }
        let links = self.netlink.links().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "interfaces can't be listed: what is guarded is shut for a moment");
            Vec::new()
        });
        let ours = |name: &str| self.endpoints.values().any(|endpoint| endpoint.interface == name);
        self.ground.inherited = links
            .iter()
            .filter(|link| ours(&link.name) && self.kernel.has_programs(link.index).unwrap_or(false))
            .map(|link| link.index)
            .collect();
        self.keep_floor();
    }

    /// Every endpoint has been met: what guards is of this run.
    pub fn floor_is_of_this_run(&mut self) {
        self.ground.inherited.clear();
        self.keep_floor();
    }

    /// Makes the floor what settings and endpoints say now.
    pub fn keep_floor(&mut self) {
        let wanted = self.config.enforcement.floor.then(|| {
            let own = self.endpoints.values().map(|endpoint| InterfaceNames::One(endpoint.interface.clone()));
            let more = self.config.enforcement.floor_interfaces.iter().cloned();
            let guarding = self.endpoints.values().filter_map(|endpoint| endpoint.attachment);
            let guarding = guarding.filter(|at| at.in_place).map(|at| at.ifindex);
            Wanted {
                names: own.chain(more).collect(),
                guarded: guarding.chain(self.ground.inherited.iter().copied()).collect(),
            }
        });
        self.ground.floor.keep(wanted.as_ref());
        let inherited = self.ground.inherited.clone();
        self.keep_egress(&inherited);
        self.tell_of_floor();
    }

    /// Looks after it, and says in readiness what keeps guarded workloads from the network.
    pub fn look_at_floor(&mut self) {
        if self.ground.floor.check() {
            self.metrics.repaired(Repair::Floor);
            tracing::error!("someone else changed or removed the floor; it was written again");
        }
        self.keep_floor();
        self.readiness.set("floor", self.ground.floor.hindrance().map(str::to_owned).into_iter().collect());
    }

    fn tell_of_floor(&mut self) {
        let problem = self.ground.floor.status().problem;
        if problem != self.ground.told && !problem.is_empty() {
            tracing::warn!("no floor: a new interface may send before it is guarded: {problem}");
        }
        self.ground.told = problem;
    }
}
