//! `namegate explain`, `policy` and `endpoint`: of the running node, on the admin server's thread; and what they need to
//! know around the policies of a snapshot.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use super::packets::People;
use super::publish::guard;
use super::reload::cluster_dns;
use crate::clock;
use crate::cluster::snapshot::{LastGood, read};
use crate::config::Config;
use crate::engine::endpoint::PodRef;
use crate::engine::explain::question::{Asked, Asker, pod};
use crate::engine::explain::stand_in::StandIns;
use crate::engine::explain::{Explainer, Held, Surroundings, diff, overview};
use crate::engine::grant::MonoNs;
use crate::engine::guard::Guard;
use crate::engine::world::World;
use crate::operate::explain::{Compared, Policies, PolicyAsked};
use crate::operate::{RefusalStatus, Status};
use crate::serve::Served;

/// What is in force, for those who ask.
#[derive(Debug)]
pub(super) struct Seen {
    /// The cluster.
    pub world: Arc<World>,
    /// What holds around its policies.
    pub surroundings: Surroundings,
}

/// What holds around the policies of a snapshot, by what the operator set and what the cluster has. `own`: addresses of the
/// machine.
pub fn surroundings(config: &Config, world: &World, own: Vec<IpAddr>) -> Surroundings {
    surroundings_with(config, world, guard(config, world, own))
}

/// The same with a guard that is there already.
pub(super) fn surroundings_with(config: &Config, world: &World, guard: Guard) -> Surroundings {
    let cluster_dns = cluster_dns(world);
    let trusted = config.dns.resolvers.iter().chain(&cluster_dns).copied().collect();
    Surroundings {
        guard,
        proxied: cluster_dns.iter().chain(&config.dns.resolvers).copied().collect(),
        trusted,
        cluster_dns,
        assume_dns: false,
    }
}

/// One page, in JSON.
///
/// # Errors
/// What is wrong with the question.
pub(super) fn page(people: &People, config: &Config, status: &Status, asked: &PolicyAsked) -> Result<Vec<u8>, String> {
    let seen = people.seen().ok_or("no snapshot is in force yet")?;
    match asked {
        PolicyAsked::Explain(asked) => explain(people, &seen, asked),
        PolicyAsked::Policies => {
            let refused: Vec<RefusalStatus> = status.policy.refusals.clone();
            json(&Policies { policies: overview::policies(&seen.world), refused })
        }
        PolicyAsked::Selectors => json(&overview::selectors(&seen.world)),
        PolicyAsked::Endpoints => {
            let explainer = explainer(people, &seen);
            let rows = people.everyone().into_iter().map(|(_, served)| {
                let mut row = overview::endpoint(&explainer, &served.pod);
                row.learned = Some(served.table().grants());
                row
            });
            json(&rows.collect::<Vec<_>>())
        }
        PolicyAsked::Diff(dir) => {
            if !dir.is_dir() {
                return Err(format!(
                    "{}: found no directory; allowed is a directory of Kubernetes objects",
                    dir.display()
                ));
            }
            let snapshot = read(dir, &LastGood::default(), config.policy.on_invalid.into());
            let mut new = snapshot.world;
            new.own_node.clone_from(&seen.world.own_node);
            new.cluster.clone_from(&seen.world.cluster);
            (new.enforcement, new.mode, new.own_modes) =
                (seen.world.enforcement, seen.world.mode, seen.world.own_modes);
            let mut old = (*seen.world).clone();
            let mut stand_ins = StandIns::default();
            stand_ins.place(&mut old);
            stand_ins.place(&mut new);
            let [before, after] = [&old, &new].map(|world| surroundings(config, world, Vec::new()));
            json(&Compared {
                diff: diff::diff(&Explainer::new(&old, before), &Explainer::new(&new, after)),
                refused: snapshot.refusals.iter().map(RefusalStatus::from).collect(),
                refused_before: status.policy.refusals.clone(),
            })
        }
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, String> {
    serde_json::to_vec(value).map_err(|error| error.to_string())
}

fn explain(people: &People, seen: &Seen, asked: &Asked) -> Result<Vec<u8>, String> {
    let mut world = seen.world.clone();
    let from = match &asked.from {
        Asker::Pod(text) => pod(text)?,
        Asker::Like(like) => StandIns::default().pod(Arc::make_mut(&mut world), like, &[]),
    };
    let question = asked.typed(from.clone())?;
    let seen = Seen { world, surroundings: seen.surroundings.clone() };
    let mut explainer = explainer(people, &seen);
    let served = people.everyone().into_iter().map(|(_, served)| served).find(|served| served.pod == from);
    if let Some(served) = served {
        explainer.running(from, served.rules.load_full(), held(&served, clock::mono()));
    }
    let mut answer = explainer.explain(&question)?;
    answer.id.clone_from(&asked.id);
    json(&answer)
}

/// With the rule sets that are in force.
fn explainer<'s>(people: &People, seen: &'s Seen) -> Explainer<'s> {
    let mut explainer = Explainer::new(&seen.world, seen.surroundings.clone());
    for (_, served) in people.everyone() {
        let pod: PodRef = served.pod.clone();
        explainer.running(pod, served.rules.load_full(), Vec::new());
    }
    explainer
}

/// Everything that a workload has learned.
fn held(served: &Served, now: MonoNs) -> Vec<Held> {
    let left = |until: MonoNs| until.0.saturating_sub(now.0).div_ceil(1_000_000_000);
    let table = served.table();
    let named = table.claims().map(|(address, claim)| Held {
        name: Some(claim.name.clone()),
        address,
        bits: claim.bits,
        seconds_left: left(claim.until),
        connections: table.is_live(address),
    });
    let unnamed = table.unnamed().flat_map(|(address, slots)| {
        let live = table.is_live(address);
        slots.iter().map(move |slot| Held {
            name: None,
            address,
            bits: slot.bits,
            seconds_left: left(slot.until),
            connections: live,
        })
    });
    named.chain(unnamed).collect()
}
