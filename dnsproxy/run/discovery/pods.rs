//! What the snapshot says of this node's pods: which are endpoints, and what an endpoint that comes or goes means.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::super::checkpoint;
use super::super::node::{Endpoint, Node};
use super::super::state::State;
use crate::engine::compile::is_selected;
use crate::engine::endpoint::{EndpointId, PodRef};
use crate::engine::policy::Policy;
use crate::engine::world::{Pod, World};

/// The greatest number that an endpoint can have (`endpoint_and_protocol` of `struct flow_key` has 24 bits for it).
const MAX_ID: u32 = (1 << 24) - 1;

/// What it rests on who is unprotected.
#[derive(Default)]
pub struct Basis {
    policies: Vec<Arc<Policy>>,
    pods: Vec<(PodRef, BTreeMap<String, String>)>,
}

impl Basis {
    fn is_as(&self, other: &Basis) -> bool {
        let same = |(one, other): (&Arc<Policy>, &Arc<Policy>)| Arc::ptr_eq(one, other);
        self.pods == other.pods
            && self.policies.len() == other.policies.len()
            && self.policies.iter().zip(&other.policies).all(same)
    }
}

impl Node {
    /// A snapshot is about to be put in force: its pods of this node become endpoints, and those that are no more and have no
    /// interface any more are none. Addresses that only the CNI has said yet are put into it.
    pub async fn follow_pods(&mut self, world: &mut World) {
        let Some(discovery) = &mut self.discovery else { return };
        let wrong = wrong_node_name(&self.config.node_name, world);
        if let Some(why) = wrong.as_ref().filter(|why| !self.readiness.reasons().contains(why)) {
            tracing::warn!("{why}");
        }
        self.readiness.set("node_name", wrong.into_iter().collect());
        let own = Some(&self.config.node_name);
        let mut here = BTreeMap::new();
        let mut at: BTreeMap<IpAddr, BTreeSet<PodRef>> = BTreeMap::new();
        for (pod, object) in world.pods.iter().filter(|(_, pod)| pod.node.as_ref() == own && has_own_network(pod)) {
            here.insert(pod.clone(), object.uid.clone());
            for address in &object.addresses {
                at.entry(*address).or_default().insert(pod.clone());
            }
        }
        (discovery.here, discovery.at) = (Some(here.clone()), at);
        // Whose interface went while nobody looked.
        for pod in std::mem::take(&mut discovery.lost) {
            discovery.spend(&pod);
        }
        discovery.forget_spent();
        let is_gone = |endpoint: &Endpoint| endpoint.attachment.is_none() && !here.contains_key(&endpoint.pod);
        let gone: Vec<String> =
            self.endpoints.iter().filter(|(_, endpoint)| is_gone(endpoint)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.retire(&key);
        }
        for (pod, uid) in &here {
            self.expect_pod(pod, uid.as_ref());
        }
        // Interfaces that waited for the snapshot, and those whose pod is another one of the same name now.
        let of_others = self.endpoints.values().filter(|endpoint| self.is_of_another(endpoint));
        let renamed: Vec<u32> = of_others.flat_map(Endpoint::interfaces).map(|(index, _)| index).collect();
        for index in &renamed {
            self.give_up(*index);
        }
        let waiting = self.discovery.iter().flat_map(|discovery| discovery.unknown.keys().copied());
        for index in waiting.chain(renamed).collect::<Vec<_>>() {
            self.place(index).await;
        }
        for endpoint in self.endpoints.values() {
            let given = endpoint.given.iter().chain(endpoint.also.iter().flat_map(|also| &also.addresses));
            if !endpoint.given.is_empty()
                && world.pods.get(&endpoint.pod).is_some_and(|pod| pod.addresses.is_empty())
                && let Some(pod) = world.pods.get_mut(&endpoint.pod)
            {
                pod.addresses = given.copied().collect();
            }
        }
        self.see_unprotected(world);
        self.tell_slots();
    }

    /// The kernel sweeps by itself while no namegate runs, and has to know whose budget a flow was charged to.
    fn tell_slots(&self) {
        let of_gone = self.discovery.iter().flat_map(|discovery| discovery.gone.iter().copied());
        let slots: Vec<(EndpointId, u32)> =
            self.endpoints.values().map(|each| (each.id, each.slot)).chain(of_gone).collect();
        if let Err(error) = self.kernel.set_slots(&slots) {
            tracing::warn!(error = &error as &dyn std::error::Error, "flows that end while namegate is dead will stay");
        }
    }

    /// The endpoint has a pod of another uid in the snapshot than the one it was found for.
    fn is_of_another(&self, endpoint: &Endpoint) -> bool {
        let Some(here) = self.discovery.as_ref().and_then(|discovery| discovery.here.as_ref()) else { return false };
        let is = here.get(&endpoint.pod).and_then(Option::as_ref);
        is.zip(endpoint.uid.as_ref()).is_some_and(|(is, was)| is != was)
    }

    /// A pod of this node has an endpoint, from the moment that it is scheduled.
    fn expect_pod(&mut self, pod: &PodRef, uid: Option<&String>) {
        let key = pod.to_string();
        if !self.endpoints.contains_key(&key) {
            self.create(pod);
        }
        if let Some(endpoint) = self.endpoints.get_mut(&key)
            && (endpoint.attachment.is_none() || endpoint.uid.is_none())
        {
            endpoint.uid = uid.cloned();
        }
    }

    /// A new endpoint, under a number that nothing refers to. False: there is no room.
    pub(super) fn create(&mut self, pod: &PodRef) -> bool {
        let max = self.config.enforcement.max_endpoints;
        let Some(discovery) = &self.discovery else { return false };
        let held_back: Vec<(EndpointId, u32)> = discovery.held_back().collect();
        let Some((id, slot)) = number(&mut self.state, &held_back, max) else {
            tracing::error!(%pod, "no room for one more endpoint; enforcement.max_endpoints is {max}: its interface is shut");
            return false;
        };
        let endpoint = Endpoint::numbered(&mut self.state, pod, id, slot);
        self.endpoints.insert(pod.to_string(), endpoint);
        true
    }

    /// The endpoint is no more. What the kernel has under its number is removed with the next upkeep, and only then may the
    /// number and its row of `budgets` be another's.
    pub(super) fn retire(&mut self, key: &str) {
        let Some(old) = self.endpoints.remove(key) else { return };
        self.state.endpoints.remove(key);
        checkpoint::forget(&self.config.state_dir, old.id);
        if let Some(discovery) = &mut self.discovery {
            discovery.gone.push((old.id, old.slot));
        }
        tracing::info!(pod = key, id = old.id.0, "no endpoint any more");
    }

    /// All interfaces of an endpoint are gone: whatever comes next under its name begins anew.
    pub(super) fn begin_anew(&mut self, key: &str) {
        let Some(endpoint) = self.endpoints.get(key) else { return };
        let (pod, was) = (endpoint.pod.clone(), endpoint.uid.clone());
        self.retire(key);
        let Some(discovery) = &mut self.discovery else { return };
        discovery.reload_soon();
        let uid = discovery.here.as_ref().and_then(|here| here.get(&pod)).cloned();
        // What the snapshot says may already be of the next pod of this name, which has lost nothing.
        let is_another = was.zip(uid.clone().flatten()).is_some_and(|(was, is)| was != is);
        if !is_another {
            discovery.spend(&pod);
        }
        if let Some(uid) = uid {
            self.expect_pod(&pod, uid.as_ref());
        }
    }

    /// Removes what is left of endpoints that are no more: flows, grants, counts.
    pub(super) fn clear_away(&mut self) {
        let Some(discovery) = &self.discovery else { return };
        if discovery.gone.is_empty() {
            return;
        }
        let known: Vec<EndpointId> = self.endpoints.values().map(|endpoint| endpoint.id).collect();
        let slots: Vec<(EndpointId, u32)> = self.endpoints.values().map(|each| (each.id, each.slot)).collect();
        let cleared = self.sweep_flows() && {
            let cleared = self.kernel.delete_grants_except(&known).and_then(|_| self.kernel.set_slots(&slots));
            if let Err(error) = &cleared {
                tracing::warn!(
                    error = error as &dyn std::error::Error,
                    "what is left of endpoints that are no more stays"
                );
            }
            cleared.is_ok()
        };
        if cleared && let Some(discovery) = &mut self.discovery {
            for (_, slot) in discovery.gone.drain(..) {
                self.budgets.clear(slot);
            }
        }
    }

    /// Pods on the node's own network that a policy selects: their traffic is the node's, and nothing is attached to that.
    fn see_unprotected(&mut self, world: &World) {
        let own = Some(&self.config.node_name);
        let on_node =
            world.pods.iter().filter(|(_, pod)| pod.node.as_ref() == own && pod.host_network && !pod.finished);
        let policies = world.policies.iter().chain(&world.refused).cloned().collect();
        let pods = on_node.map(|(pod, object)| (pod.clone(), object.labels.clone())).collect();
        let basis = Basis { policies, pods };
        let Some(discovery) = &mut self.discovery else { return };
        if discovery.unprotected_by.is_as(&basis) {
            return;
        }
        let unprotected: Vec<PodRef> =
            basis.pods.iter().map(|(pod, _)| pod).filter(|pod| is_selected(world, pod)).cloned().collect();
        for pod in unprotected.iter().filter(|pod| !discovery.unprotected.contains(pod)) {
            tracing::warn!(%pod, "unprotected: a policy selects it, but it is on the node's own network, where none is enforced");
        }
        (discovery.unprotected, discovery.unprotected_by) = (unprotected, basis);
    }
}

/// What is wrong with the node's name: under one that no Node has no pod is found, and every pod's interface is shut.
fn wrong_node_name(node_name: &str, world: &World) -> Option<String> {
    const SHOWN: usize = 3;
    if world.nodes.is_empty() || world.nodes.contains_key(node_name) {
        return None;
    }
    let more = if world.nodes.len() > SHOWN { ", …" } else { "" };
    let known: Vec<&str> = world.nodes.keys().map(String::as_str).take(SHOWN).collect();
    Some(format!(
        "the snapshot has no Node {node_name} (it has {}{more}), so none of its pods is known and each interface is shut; set \
         --node-name, or NODE_NAME from spec.nodeName",
        known.join(", ")
    ))
}

/// Whether a pod can have an interface of its own.
fn has_own_network(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished
}

/// A number and a row of `budgets` that nobody has.
fn number(state: &mut State, held_back: &[(EndpointId, u32)], max: u32) -> Option<(EndpointId, u32)> {
    let held = held_back.iter().copied();
    let taken: (BTreeSet<u32>, BTreeSet<u32>) =
        state.endpoints.values().map(|each| (each.id, each.slot)).chain(held).map(|(id, slot)| (id.0, slot)).unzip();
    let slot = (1..=max).find(|slot| !taken.1.contains(slot))?;
    let after = |id: u32| if id >= MAX_ID { 1 } else { id + 1 };
    let mut id = after(state.last_endpoint_id);
    while taken.0.contains(&id) {
        id = after(id);
    }
    state.last_endpoint_id = id;
    Some((EndpointId(id), slot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::world::Node;

    fn give(state: &mut State, name: &str, held_back: &[(EndpointId, u32)], max: u32) -> Option<(u32, u32)> {
        let pod = PodRef { namespace: "shop".into(), name: name.into() };
        let (id, slot) = number(state, held_back, max)?;
        Endpoint::numbered(state, &pod, id, slot);
        Some((id.0, slot))
    }

    #[test]
    fn numbers_are_new_and_rows_are_used_again_but_not_those_that_are_held_back() {
        let mut state = State::default();
        assert_eq!(give(&mut state, "a", &[], 3), Some((1, 1)));
        assert_eq!(give(&mut state, "b", &[], 3), Some((2, 2)));
        state.endpoints.remove("shop/a");
        assert_eq!(give(&mut state, "c", &[(EndpointId(1), 1)], 3), Some((3, 3)));
        assert_eq!(give(&mut state, "d", &[(EndpointId(1), 1)], 3), None, "no row is free");
        assert_eq!(give(&mut state, "d", &[], 3), Some((4, 1)));
        assert_eq!(state.last_endpoint_id, 4);
    }

    #[test]
    fn a_name_that_no_node_of_the_snapshot_has_is_told_with_some_that_there_are() {
        let mut world = World::default();
        assert_eq!(wrong_node_name("typo", &world), None, "a snapshot without nodes says nothing");
        for name in ["n1", "n2", "n3", "n4"] {
            let node = Node { labels: BTreeMap::new(), addresses: Vec::new(), place: String::new() };
            world.nodes.insert(name.to_owned(), node);
        }
        assert_eq!(wrong_node_name("n2", &world), None);
        let said = wrong_node_name("typo", &world).unwrap();
        assert!(
            said.starts_with("the snapshot has no Node typo (it has n1, n2, n3, …), so none of its pods"),
            "{said}"
        );
    }

    #[test]
    fn after_the_greatest_number_comes_the_least_that_nobody_has() {
        let mut state = State { last_endpoint_id: MAX_ID - 1, ..State::default() };
        assert_eq!(give(&mut state, "a", &[], 9), Some((MAX_ID, 1)));
        assert_eq!(give(&mut state, "b", &[(EndpointId(1), 5)], 9), Some((2, 2)));
        assert_eq!(give(&mut state, "c", &[], 9), Some((3, 3)));
    }
}
