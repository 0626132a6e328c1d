//! Which rules hold together for some pod. Rules with the same subject are one bundle: whatever is asked of one of them and
//! of all others is asked once.

use std::collections::{BTreeMap, HashMap};

use super::index::Selectors;
use crate::engine::endpoint::PodRef;
use crate::engine::labels::{Labels, Selector};
use crate::engine::policy::Rule;
use crate::engine::world::{Holder, World};

/// All rules, by their subjects and by the pods that these select.
pub(super) struct Together<'w> {
    /// Pods with a network of their own that have not ended, by namespace and name.
    pub pods: Vec<(&'w PodRef, Labels)>,
    /// All rules, as they are read.
    pub places: Vec<Place<'w>>,
    pub bundles: Vec<Bundle>,
    /// First those of pods, in the order of their rules, then those that stand in for pods that aren't there.
    pub sets: Vec<Set>,
}

/// A rule, and the bundle that it is in.
pub(super) struct Place<'w> {
    pub rule: &'w Rule,
    pub bundle: usize,
}

/// Rules with the same subject.
pub(super) struct Bundle {
    /// Their numbers in `places`.
    pub rules: Vec<usize>,
    /// The sets that it is in: one for each kind of pod that it selects. Where the snapshot has no such pod, one of those
    /// bundles whose subjects take in this one's. Never empty.
    pub sets: Vec<usize>,
    /// Whether a pod of the snapshot is selected.
    pub has_pods: bool,
    /// Those whose subjects take in this one's, itself among them: they are in all its sets.
    pub everywhere: Vec<usize>,
}

/// Bundles that hold together.
pub(super) struct Set {
    /// Their numbers, sorted.
    pub bundles: Vec<usize>,
    /// One of the pods that they select.
    pub pod: Option<PodRef>,
}

impl<'w> Together<'w> {
    pub(super) fn new(world: &'w World) -> Together<'w> {
        let mut bundles: Vec<Bundle> = Vec::new();
        let mut subjects: Vec<(Option<&str>, &Selector)> = Vec::new();
        let mut places = Vec::new();
        let mut known: HashMap<(Option<&str>, &Selector), usize> = HashMap::new();
        for (number, rule) in world.policies.iter().flat_map(|policy| &policy.rules).enumerate() {
            let subject = (rule.subject.namespace.as_deref(), &rule.subject.selector);
            let bundle = *known.entry(subject).or_insert_with(|| {
                subjects.push(subject);
                bundles.push(Bundle { rules: Vec::new(), sets: Vec::new(), has_pods: false, everywhere: Vec::new() });
                bundles.len() - 1
            });
            bundles[bundle].rules.push(number);
            places.push(Place { rule, bundle });
        }
        let own_network = world.pods.iter().filter(|(_, pod)| !pod.host_network && !pod.finished);
        let pods: Vec<(&PodRef, Labels)> =
            own_network.map(|(pod, _)| (pod, world.labels(&Holder::Pod(pod.clone())))).collect();

        let selectors = Selectors::new(subjects.clone());
        let mut of_pods: BTreeMap<Vec<usize>, &PodRef> = BTreeMap::new();
        for (pod, labels) in &pods {
            of_pods.entry(selectors.selecting(&pod.namespace, labels)).or_insert(pod);
        }
        let mut sets: Vec<Set> =
            of_pods.into_iter().map(|(bundles, pod)| Set { bundles, pod: Some(pod.clone()) }).collect();
        // What is said of a rule names the first set that shows it, so the order is that of rules, not of bundles.
        sets.sort_by_cached_key(|set| {
            let mut rules: Vec<usize> =
                set.bundles.iter().flat_map(|bundle| &bundles[*bundle].rules).copied().collect();
            rules.sort_unstable();
            rules
        });
        for (index, set) in sets.iter().enumerate() {
            for bundle in &set.bundles {
                bundles[*bundle].sets.push(index);
                bundles[*bundle].has_pods = true;
            }
        }
        for (bundle, (namespace, selector)) in bundles.iter_mut().zip(&subjects) {
            bundle.everywhere = selectors.wider(*namespace, selector);
            if !bundle.has_pods {
                bundle.sets.push(sets.len());
                sets.push(Set { bundles: bundle.everywhere.clone(), pod: None });
            }
        }
        Together { pods, places, bundles, sets }
    }

    /// The rules of a bundle, with their numbers.
    pub(super) fn rules(&self, bundle: usize) -> impl Iterator<Item = (usize, &'w Rule)> {
        self.bundles[bundle].rules.iter().map(|number| (*number, self.places[*number].rule))
    }

    /// Whether some pod of one bundle is one of the other's, too, or would be.
    pub(super) fn meet(&self, bundle: usize, other: usize) -> bool {
        let (one, two) = (&self.bundles[bundle], &self.bundles[other]);
        if two.everywhere.binary_search(&bundle).is_ok() {
            return true;
        }
        if one.has_pods && two.has_pods && two.sets.len() < one.sets.len() {
            return two.sets.iter().any(|set| one.sets.binary_search(set).is_ok());
        }
        one.sets.iter().any(|set| self.sets[*set].bundles.binary_search(&other).is_ok())
    }

    /// Asks each set once, and joins the answers for each bundle.
    pub(super) fn over_sets<A: Clone>(&self, ask: impl Fn(&Set) -> A, join: impl Fn(&A, &A) -> A) -> Vec<A> {
        let answers: Vec<A> = self.sets.iter().map(ask).collect();
        let of = |bundle: &Bundle| bundle.sets.iter().map(|set| answers[*set].clone()).reduce(|a, b| join(&a, &b));
        self.bundles.iter().filter_map(of).collect()
    }
}
