//! A snapshot without a running namegate: what would hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use crate::cluster::snapshot::{LastGood, OnInvalid, Refusal, read};
use crate::config::{Config, Source, cilium};
use crate::engine::endpoint::PodRef;
use crate::engine::explain::answer::Answer;
use crate::engine::explain::question::{Asked, Asker, Question, Target, pod};
use crate::engine::explain::stand_in::StandIns;
use crate::engine::explain::{Explainer, Surroundings};
use crate::engine::world::World;
use crate::operate::RefusalStatus;
use crate::run;

/// A snapshot that was read.
pub(super) struct Offline {
    pub world: World,
    pub refusals: Vec<Refusal>,
    /// What would hold on a node, with what `cilium-config` of the snapshot says.
    pub config: Config,
    stand_ins: StandIns,
}

impl Offline {
    /// Reads a directory as the node would that starts with it. Pods without an address get one that stands for it.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn read(dir: &Path, source: &Source) -> Result<Offline, String> {
        if !dir.is_dir() {
            return Err(format!("{}: found no directory; allowed is a directory of Kubernetes objects", dir.display()));
        }
        let snapshot = read(dir, &LastGood::default(), OnInvalid::Refuse);
        let mut world = snapshot.world;
        let config = settle(&mut world, source)?;
        let mut stand_ins = StandIns::default();
        stand_ins.place(&mut world);
        Ok(Offline { world, refusals: snapshot.refusals, config, stand_ins })
    }

    /// The refusals as the running namegate tells them.
    pub fn refused(&self) -> Vec<RefusalStatus> {
        self.refusals.iter().map(RefusalStatus::from).collect()
    }

    /// What holds around its policies.
    pub fn surroundings(&self) -> Surroundings {
        run::surroundings(&self.config, &self.world, Vec::new())
    }

    /// Answers questions, each rule set compiled once.
    pub fn answer(mut self, asked: &[Result<Asked, String>]) -> Vec<Result<Answer, String>> {
        let questions: Vec<Result<Question, String>> = asked
            .iter()
            .map(|asked| {
                let asked = asked.as_ref().map_err(Clone::clone)?;
                let from = match &asked.from {
                    Asker::Pod(text) => pod(text)?,
                    Asker::Like(like) => self.stand_ins.pod(&mut self.world, like, &[]),
                };
                asked.typed(from)
            })
            .collect();
        let surroundings = self.surroundings();
        // Which node is the own one is the asker's matter, and of interest only where a node is asked for.
        let nodes: BTreeSet<IpAddr> = self
            .world
            .nodes
            .values()
            .flat_map(|node| node.addresses.iter().copied())
            .chain(self.world.apiserver())
            .collect();
        let node_behind = self.world.endpoint_slices.values().flat_map(|slice| &slice.endpoints);
        let node_behind = node_behind.flat_map(|(addresses, _)| addresses).any(|address| nodes.contains(address));
        let own_node = |question: &Question| {
            let matters = match &question.to {
                Target::Address(address) => nodes.contains(address) || node_behind,
                Target::Pod(pod) => self.world.pods.get(pod).is_some_and(|pod| pod.host_network),
                Target::Name(_) => node_behind,
            };
            self.world.pods.get(&question.from).filter(|_| matters).and_then(|pod| pod.node.clone())
        };
        let owns: Vec<Option<String>> =
            questions.iter().map(|question| question.as_ref().ok().and_then(own_node)).collect();
        let worlds: BTreeMap<Option<String>, World> = owns
            .iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .map(|own| (own.clone(), World { own_node: own.clone(), ..self.world.clone() }))
            .collect();
        let explainers: BTreeMap<&Option<String>, Explainer<'_>> =
            worlds.iter().map(|(own, world)| (own, Explainer::new(world, surroundings.clone()))).collect();
        let answers = questions.into_iter().zip(&owns).zip(asked).map(|((question, own), asked)| {
            let mut answer = explainers[own].explain(&question?)?;
            answer.id = asked.as_ref().ok().and_then(|asked| asked.id.clone());
            Ok(answer)
        });
        answers.collect()
    }

    /// One pod of the snapshot that can be an endpoint.
    pub fn endpoints(&self) -> Vec<PodRef> {
        crate::engine::explain::overview::endpoints_of(&self.world).map(|(pod, _)| pod.clone()).collect()
    }
}

/// Says of a world what the configuration says, with what its own `cilium-config` adds. Which node is the own one is open.
///
/// # Errors
/// The configuration is wrong.
pub(super) fn settle(world: &mut World, source: &Source) -> Result<Config, String> {
    let mut config = source.load().map_err(|errors| errors.to_string())?;
    if config.policy.cilium_config {
        let cluster = cilium::read(&world.cilium_config).settings;
        config = source.clone().with_cluster(cluster).load().unwrap_or(config);
    }
    run::settle(world, &config);
    world.own_node = None;
    Ok(config)
}
