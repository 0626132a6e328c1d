//! Selectors and what carries labels, found by one label instead of one by one.
//!
//! A requirement that a label is there, or has one of some values, is looked up; of several the one that fewest share.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::engine::labels::{Known, Labels, Match, NAMESPACE_LABELS, Operator, Requirement, Selector, Source};

/// A label by its key, and its value if that matters.
type Label<'w> = (&'w str, Option<&'w str>);

/// The labels of which an object has one if a requirement holds and the object's own labels are known; `None`: any may do.
fn labels_of(requirement: &Requirement) -> Option<Vec<Label<'_>>> {
    // Labels of namespaces may be unknown where others aren't.
    if requirement.source == Source::Reserved || requirement.key.starts_with(NAMESPACE_LABELS) {
        return None;
    }
    let key = requirement.key.as_str();
    match &requirement.operator {
        Operator::In(values) if !values.is_empty() => {
            Some(values.iter().map(|value| (key, Some(value.as_str()))).collect())
        }
        Operator::Exists => Some(vec![(key, None)]),
        Operator::In(_) | Operator::NotIn(_) | Operator::DoesNotExist => None,
    }
}

/// Objects with their labels, in an order that stays.
pub(super) struct Carriers<T> {
    all: Vec<(T, Labels)>,
    keys: HashMap<String, Key>,
    /// Those of whose own labels nothing is known: any requirement may hold.
    odd: Vec<u32>,
}

/// Who has a label of this key: all of them, and those of each value.
#[derive(Default)]
struct Key {
    all: Vec<u32>,
    values: HashMap<String, Vec<u32>>,
}

impl<T> Carriers<T> {
    pub(super) fn new(all: impl Iterator<Item = (T, Labels)>) -> Carriers<T> {
        let all: Vec<(T, Labels)> = all.collect();
        let mut keys: HashMap<String, Key> = HashMap::new();
        let mut odd = Vec::new();
        for (number, (_, labels)) in (0..).zip(&all) {
            if labels.known() == Known::Namespace {
                odd.push(number);
            }
            for (key, value) in labels.pairs() {
                let key = keys.entry(key.to_owned()).or_default();
                key.all.push(number);
                key.values.entry(value.to_owned()).or_default().push(number);
            }
        }
        Carriers { all, keys, odd }
    }

    pub(super) fn all(&self) -> &[(T, Labels)] {
        &self.all
    }

    /// Whoever a selector selects, or may select, in order.
    pub(super) fn selected<'a>(&'a self, selector: &'a Selector) -> impl Iterator<Item = &'a (T, Labels)> {
        let lists = |requirement| {
            let labels: Vec<Label<'_>> = labels_of(requirement)?;
            Some(labels.into_iter().filter_map(|label| self.with(label)).collect::<Vec<_>>())
        };
        let count = |lists: &Vec<&[u32]>| lists.iter().map(|list| list.len()).sum::<usize>();
        let few = match selector.requirements.iter().filter_map(lists).min_by_key(count).as_deref() {
            None => None,
            Some([one]) if self.odd.is_empty() => Some(Cow::Borrowed(*one)),
            Some(lists) => {
                let mut all = lists.iter().copied().chain([self.odd.as_slice()]).flatten().copied().collect::<Vec<_>>();
                all.sort_unstable();
                all.dedup();
                Some(Cow::Owned(all))
            }
        };
        let length = few.as_ref().map_or(self.all.len(), |few| few.len());
        let number = move |at: usize| few.as_ref().map_or(at, |few| few[at] as usize);
        let near = (0..length).map(move |at| &self.all[number(at)]);
        near.filter(|(_, labels)| selector.matches(labels) != Match::No)
    }

    fn with(&self, (key, value): Label<'_>) -> Option<&[u32]> {
        let key = self.keys.get(key)?;
        value.map_or(Some(key.all.as_slice()), |value| key.values.get(value).map(Vec::as_slice))
    }
}

/// Different selectors, each for one namespace or for all, numbered from 0.
#[derive(Default)]
pub(super) struct Selectors<'w> {
    all: Vec<(Option<&'w str>, &'w Selector)>,
    by_label: HashMap<(Option<&'w str>, Label<'w>), Vec<u32>>,
    /// Those that demand no label.
    rest: HashMap<Option<&'w str>, Vec<u32>>,
}

impl<'w> Selectors<'w> {
    /// Each must be another one.
    pub(super) fn new(all: Vec<(Option<&'w str>, &'w Selector)>) -> Selectors<'w> {
        let mut shared: HashMap<(Option<&str>, Label<'_>), usize> = HashMap::new();
        for (namespace, selector) in &all {
            for label in selector.requirements.iter().filter_map(labels_of).flatten() {
                *shared.entry((*namespace, label)).or_default() += 1;
            }
        }
        let (mut by_label, mut rest) = (HashMap::<_, Vec<u32>>::new(), HashMap::<_, Vec<u32>>::new());
        for (number, (namespace, selector)) in (0..).zip(&all) {
            let sharing =
                |labels: &Vec<Label<'w>>| labels.iter().map(|label| shared[&(*namespace, *label)]).sum::<usize>();
            match selector.requirements.iter().filter_map(labels_of).min_by_key(sharing) {
                Some(labels) => {
                    labels.into_iter().for_each(|label| by_label.entry((*namespace, label)).or_default().push(number))
                }
                None => rest.entry(*namespace).or_default().push(number),
            }
        }
        Selectors { all, by_label, rest }
    }

    /// Those that select, or may select, an object of this namespace with these labels; sorted.
    pub(super) fn selecting(&self, namespace: &str, labels: &Labels) -> Vec<usize> {
        let here = |number: &usize| {
            let (of, selector) = self.all[*number];
            of.is_none_or(|of| of == namespace) && selector.matches(labels) != Match::No
        };
        if labels.known() == Known::Namespace {
            return (0..self.all.len()).filter(here).collect();
        }
        let own = labels.pairs().flat_map(|(key, value)| [(key, None), (key, Some(value))]);
        let mut found: Vec<usize> = self.near(Some(namespace), own).into_iter().filter(here).collect();
        found.dedup();
        found
    }

    /// Those that select whatever `narrow` does in a namespace, or in all, because they demand nothing that it doesn't;
    /// sorted.
    pub(super) fn wider(&self, namespace: Option<&str>, narrow: &Selector) -> Vec<usize> {
        let demanded = narrow.requirements.iter().filter_map(labels_of).flatten();
        let mut found: Vec<usize> = self.near(namespace, demanded).into_iter().collect();
        found.retain(|number| is_wider(self.all[*number].1, narrow));
        found.dedup();
        found
    }

    /// Those that demand none of the labels, or one of these.
    fn near<'a>(&'a self, namespace: Option<&'a str>, labels: impl Iterator<Item = Label<'a>>) -> Vec<usize> {
        let places = if namespace.is_some() { [Some(None), Some(namespace)] } else { [Some(None), None] };
        let places = places.into_iter().flatten();
        let mut found: Vec<u32> = places.clone().filter_map(|place| self.rest.get(&place)).flatten().copied().collect();
        for label in labels {
            found.extend(places.clone().filter_map(|place| self.by_label.get(&(place, label))).flatten());
        }
        found.sort_unstable();
        found.into_iter().map(|number| number as usize).collect()
    }
}

/// Whether `wide` demands nothing that `narrow` doesn't.
pub(super) fn is_wider(wide: &Selector, narrow: &Selector) -> bool {
    wide.requirements.iter().all(|requirement| narrow.requirements.contains(requirement))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn selectors() -> Vec<Selector> {
        let values = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<BTreeSet<_>>();
        let team = format!("{NAMESPACE_LABELS}team");
        let mut requirements = Vec::new();
        for key in ["app", "tier", team.as_str()] {
            for operator in [
                Operator::In(values(&["a"])),
                Operator::In(values(&["a", "b"])),
                Operator::NotIn(values(&["a"])),
                Operator::Exists,
                Operator::DoesNotExist,
            ] {
                requirements.push(Requirement { source: Source::Any, key: key.to_owned(), operator });
            }
        }
        requirements.push(Requirement { source: Source::Reserved, key: "all".to_owned(), operator: Operator::Exists });
        let mut all = vec![Selector::default()];
        for (index, one) in requirements.iter().enumerate() {
            all.push(Selector { requirements: vec![one.clone()] });
            let pairs = requirements[index + 1..].iter();
            all.extend(pairs.map(|other| Selector { requirements: vec![one.clone(), other.clone()] }));
        }
        all
    }

    /// Pods of namespaces that are known, not known, and pods that could not be read.
    fn pods() -> Vec<(&'static str, Labels)> {
        let teams = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        let mut all = vec![("shop", Labels::unreadable("shop")), ("pay", Labels::unreadable("pay"))];
        for labels in
            [&[][..], &[("app", "a")], &[("app", "b"), ("tier", "a")], &[("tier", "c")], &[("app", "a"), ("tier", "b")]]
        {
            let own = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            all.push(("shop", Labels::of_pod(&own, "shop", Some(&teams), None, "default")));
            all.push(("pay", Labels::of_pod(&own, "pay", None, None, "default")));
        }
        all
    }

    #[test]
    fn whoever_a_selector_selects_is_found_as_if_all_were_asked() {
        for pods in [pods(), pods().split_off(2)] {
            let carriers =
                Carriers::new(pods.clone().into_iter().enumerate().map(|(number, (_, labels))| (number, labels)));
            for selector in selectors() {
                let found: Vec<usize> = carriers.selected(&selector).map(|(number, _)| *number).collect();
                let asked = |number: &usize| selector.matches(&pods[*number].1) != Match::No;
                assert_eq!(found, (0..pods.len()).filter(asked).collect::<Vec<_>>(), "{selector:?}");
            }
        }
    }

    #[test]
    fn selectors_are_found_as_if_all_were_asked() {
        let all = selectors();
        let places = || [None, Some("shop"), Some("pay")].into_iter();
        let each: Vec<_> = all.iter().flat_map(|selector| places().map(move |place| (place, selector))).collect();
        let index = Selectors::new(each.clone());
        for (namespace, labels) in pods() {
            let asked = |number: &usize| {
                each[*number].0.is_none_or(|place| place == namespace) && each[*number].1.matches(&labels) != Match::No
            };
            let expected: Vec<usize> = (0..each.len()).filter(asked).collect();
            assert_eq!(index.selecting(namespace, &labels), expected, "{labels:?}");
        }
        for (namespace, narrow) in &each {
            let wider = |number: &usize| {
                let (place, wide) = each[*number];
                (place.is_none() || place == *namespace) && is_wider(wide, narrow)
            };
            let expected: Vec<usize> = (0..each.len()).filter(wider).collect();
            assert_eq!(index.wider(*namespace, narrow), expected, "{namespace:?} {narrow:?}");
        }
    }
}
