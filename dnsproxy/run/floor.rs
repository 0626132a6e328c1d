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
        let own = |name: &str| self.endpoints.values().any(|endpoint| endpoint.interface == name);
        let found =
            |index: u32| self.discovery.is_some() && self.endpoints.values().any(|endpoint| endpoint.is_on(index));
        self.ground.inherited = links
            .iter()
            .filter(|link| {
                (own(&link.name) || found(link.index)) && self.kernel.has_programs(link.index).unwrap_or(false)
            })
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
            let more = &self.config.enforcement.floor_interfaces;
            let is_prefix = |names: &&InterfaceNames| matches!(names, InterfaceNames::Prefix(_));
            let is_covered = |name: &str| more.iter().filter(is_prefix).any(|names| names.holds(name));
            let endpoints = self.endpoints.values();
            let also = endpoints.clone().flat_map(|endpoint| &endpoint.also);
            let unknown = self.discovery.iter().flat_map(|discovery| discovery.unknown.values());
            let own = endpoints.clone().map(|endpoint| &endpoint.interface);
            let own =
                own.chain(also.clone().map(|also| &also.interface)).chain(unknown.map(|unknown| &unknown.interface));
            // Where they are found, many come and go; those whose names begin so are shut anyway.
            let own = own.filter(|name| !name.is_empty() && (self.discovery.is_none() || !is_covered(name)));
            let guarding = endpoints.filter_map(|endpoint| endpoint.attachment).chain(also.map(|also| also.at));
            let guarding = guarding.filter(|at| at.in_place).map(|at| at.ifindex);
            let excepted = self.discovery.iter().flat_map(|discovery| &discovery.excepted).copied();
            let is_meant = |index: &u32| {
                self.links.get(index).is_some_and(|link| more.iter().any(|names| names.holds(&link.name)))
            };
            Wanted {
                names: own.map(|name| InterfaceNames::One(name.clone())).chain(more.iter().cloned()).collect(),
                guarded: guarding.chain(self.ground.inherited.iter().copied()).collect(),
                excepted: excepted.filter(is_meant).collect(),
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
