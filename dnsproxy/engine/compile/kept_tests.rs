//! One world after another: what is kept and changed must be what is made anew.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::base::Base;
use super::tests::wanted;
use super::tests::worlds::world;
use super::{Compiler, Kept};
use crate::engine::endpoint::PodRef;
use crate::engine::ruleset::{Group, RuleSet};
use crate::engine::world::{Objects, PeerIds, World};

/// What the next world takes from another one, by kind and place.
#[derive(Clone, Debug)]
enum Change {
    Pod(usize),
    PodGone(usize),
    /// A pod gets the labels of another one.
    Labels(usize),
    Namespaces,
    Services,
    Slices,
    Policy(usize),
    PolicyGone(usize),
    Refused,
    Nodes,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0..8usize).prop_map(Change::Pod),
        2 => (0..8usize).prop_map(Change::PodGone),
        6 => (0..8usize).prop_map(Change::Labels),
        1 => Just(Change::Namespaces),
        2 => Just(Change::Services),
        3 => Just(Change::Slices),
        2 => (0..4usize).prop_map(Change::Policy),
        1 => (0..4usize).prop_map(Change::PolicyGone),
        1 => Just(Change::Refused),
        1 => Just(Change::Nodes),
    ]
}

fn nth<K: Clone + Ord, V: Clone>(objects: &Objects<K, V>, at: usize) -> Option<(K, V)> {
    let at = at.checked_rem(objects.len())?;
    objects.iter().nth(at).map(|(key, object)| (key.clone(), object.clone()))
}

fn apply(world: &mut World, other: &World, change: &Change) {
    match change {
        Change::Pod(at) => world.pods.extend(nth(&other.pods, *at)),
        Change::PodGone(at) => {
            if let Some((key, _)) = nth(&world.pods, *at) {
                world.pods.remove(&key);
            }
        }
        Change::Labels(at) => {
            if let (Some((key, _)), Some((_, pod))) = (nth(&world.pods, *at), nth(&other.pods, *at))
                && let Some(changed) = world.pods.get_mut(&key)
            {
                changed.labels = pod.labels;
            }
        }
        Change::Namespaces => world.namespaces = other.namespaces.clone(),
        Change::Services => world.services = other.services.clone(),
        Change::Slices => world.endpoint_slices = other.endpoint_slices.clone(),
        Change::Policy(at) => {
            if let Some(at) = at.checked_rem(other.policies.len()) {
                world.policies.push(Arc::new((*other.policies[at]).clone()));
            }
        }
        Change::PolicyGone(at) => {
            if let Some(at) = at.checked_rem(world.policies.len()) {
                world.policies.remove(at);
            }
        }
        Change::Refused => world.refused = other.refused.clone(),
        Change::Nodes => {
            world.nodes.retain(|name, _| name == "here");
        }
    }
}

#[test]
fn what_is_kept_from_world_to_world_equals_what_is_made_anew() {
    let (asked, same) = (Cell::new(0u32), Cell::new(0u32));
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(wanted() / 30) });
    let steps = prop::collection::vec(prop::collection::vec(change(), 1..3), 1..8);
    runner
        .run(&(world(), world(), steps), |(first, other, steps)| {
            let mut world = first;
            let (mut kept, mut ids) = (Kept::default(), PeerIds::default());
            let mut history: BTreeMap<PodRef, Vec<Group>> = BTreeMap::new();
            let mut before: BTreeMap<PodRef, Arc<RuleSet>> = BTreeMap::new();
            for step in std::iter::once(vec![]).chain(steps) {
                step.iter().for_each(|change| apply(&mut world, &other, change));
                kept.next(&world, &mut ids);
                let mut fresh = ids.clone();
                let compiler = Compiler::new(&world, &mut fresh);
                prop_assert_eq!(&fresh, &ids);
                prop_assert_eq!(&kept.base, &Base::new(&world, &mut fresh));
                for subject in world.pods.keys() {
                    let history = history.entry(subject.clone()).or_default();
                    let (found, wanted) = (kept.rules(subject, history), compiler.compile(subject, history));
                    prop_assert_eq!(found.as_deref(), wanted.as_ref(), "{} after {:?}", subject, step);
                    if let Ok(set) = found {
                        history.clone_from(&set.groups);
                        asked.set(asked.get() + 1);
                        let was = before.insert(subject.clone(), set.clone());
                        same.set(same.get() + u32::from(was.is_some_and(|was| Arc::ptr_eq(&was, &set))));
                    }
                }
            }
            // As when a line is put in above all of them.
            for key in world.pods.keys().cloned().collect::<Vec<_>>() {
                world.pods.get_mut(&key).unwrap().place.push('1');
            }
            kept.next(&world, &mut ids);
            for (subject, set) in before.iter().filter(|(subject, _)| world.pods.contains_key(*subject)) {
                if let Ok(found) = kept.rules(subject, &history[subject]) {
                    prop_assert!(Arc::ptr_eq(&found, set), "{} only stands elsewhere", subject);
                }
            }
            Ok(())
        })
        .unwrap();
    // Else it would be a test of nothing.
    assert!(same.get() * 6 > asked.get(), "{} of {} were kept as they are", same.get(), asked.get());
}
