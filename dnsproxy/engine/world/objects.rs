//! Objects of one kind, shared between generations: the next world copies none that has not changed.

use std::borrow::Borrow;
use std::collections::{BTreeMap, btree_map};
use std::ops::{Index, RangeBounds};
use std::sync::Arc;

/// Objects by key, sorted. A clone shares all of them; a change of the clone copies the changed one and the keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Objects<K: Ord, V> {
    rows: Arc<BTreeMap<K, Arc<V>>>,
}

impl<K: Ord + Clone, V> Objects<K, V> {
    /// None.
    pub fn new() -> Objects<K, V> {
        Objects::default()
    }

    /// Puts an object in; what was under this key before.
    pub fn insert(&mut self, key: K, object: impl Into<Arc<V>>) -> Option<Arc<V>> {
        Arc::make_mut(&mut self.rows).insert(key, object.into())
    }

    /// Takes an object out.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
    {
        if self.rows.contains_key(key) { Arc::make_mut(&mut self.rows).remove(key) } else { None }
    }

    /// Keeps those of which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        Arc::make_mut(&mut self.rows).retain(|key, object| keep(key, object));
    }

    /// An object to change; a shared one is copied first.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        V: Clone,
    {
        Arc::make_mut(&mut self.rows).get_mut(key).map(Arc::make_mut)
    }
}

impl<K: Ord, V> Objects<K, V> {
    /// The object under this key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.rows.get(key).map(|object| &**object)
    }

    /// Whether there is one.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.rows.contains_key(key)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All, by key.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> + Clone {
        self.rows.iter().map(|(key, object)| (key, &**object))
    }

    /// All keys, sorted.
    pub fn keys(&self) -> btree_map::Keys<'_, K, Arc<V>> {
        self.rows.keys()
    }

    /// All, in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.rows.values().map(|object| &**object)
    }

    /// Those within a range of keys.
    pub fn range<Q: Ord + ?Sized>(&self, range: impl RangeBounds<Q>) -> impl DoubleEndedIterator<Item = (&K, &V)>
    where
        K: Borrow<Q>,
    {
        self.rows.range(range).map(|(key, object)| (key, &**object))
    }

    /// Every key under which the two differ, each with what was there and what is there, sorted. What both share is not
    /// compared.
    pub fn changes<'a>(&'a self, older: &'a Objects<K, V>) -> Vec<(&'a K, Option<&'a V>, Option<&'a V>)>
    where
        V: PartialEq,
    {
        let mut changes = Vec::new();
        if Arc::ptr_eq(&self.rows, &older.rows) {
            return changes;
        }
        let (mut was, mut is) = (older.rows.iter().peekable(), self.rows.iter().peekable());
        loop {
            match (was.peek(), is.peek()) {
                (None, None) => return changes,
                (Some((gone, _)), Some((key, _))) if gone == key => {
                    if let (Some((_, old)), Some((key, new))) = (was.next(), is.next())
                        && !Arc::ptr_eq(old, new)
                        && old != new
                    {
                        changes.push((key, Some(&**old), Some(&**new)));
                    }
                }
                (Some((gone, _)), other) if other.is_none_or(|(key, _)| gone < key) => {
                    changes.extend(was.next().map(|(key, old)| (key, Some(&**old), None)));
                }
                _ => changes.extend(is.next().map(|(key, new)| (key, None, Some(&**new)))),
            }
        }
    }
}

impl<K: Ord, V> Default for Objects<K, V> {
    fn default() -> Objects<K, V> {
        Objects { rows: Arc::default() }
    }
}

impl<K: Ord + Borrow<Q>, Q: Ord + ?Sized, V> Index<&Q> for Objects<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        &self.rows[key]
    }
}

impl<K: Ord, V, O: Into<Arc<V>>> FromIterator<(K, O)> for Objects<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, O)>>(rows: I) -> Objects<K, V> {
        Objects { rows: Arc::new(rows.into_iter().map(|(key, object)| (key, object.into())).collect()) }
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for Objects<K, V> {
    fn from(rows: [(K, V); N]) -> Objects<K, V> {
        rows.into_iter().collect()
    }
}

impl<K: Ord + Clone, V, O: Into<Arc<V>>> Extend<(K, O)> for Objects<K, V> {
    fn extend<I: IntoIterator<Item = (K, O)>>(&mut self, rows: I) {
        Arc::make_mut(&mut self.rows).extend(rows.into_iter().map(|(key, object)| (key, object.into())));
    }
}

/// By key.
pub struct Iter<'a, K, V>(btree_map::Iter<'a, K, Arc<V>>);

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<(&'a K, &'a V)> {
        self.0.next().map(|(key, object)| (key, &**object))
    }
}

impl<'a, K: Ord, V> IntoIterator for &'a Objects<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        Iter(self.rows.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_a_clone_leaves_the_first_as_it_was_and_is_all_that_differs() {
        let first: Objects<&str, u32> = [("a", 1), ("b", 2), ("d", 4)].into();
        let mut second = first.clone();
        assert_eq!(second.changes(&first), []);
        second.insert("b", 20);
        second.insert("c", 3);
        second.insert("a", 1);
        second.remove("d");
        assert_eq!(
            second.changes(&first),
            [(&"b", Some(&2), Some(&20)), (&"c", None, Some(&3)), (&"d", Some(&4), None)]
        );
        assert_eq!(first.iter().collect::<Vec<_>>(), [(&"a", &1), (&"b", &2), (&"d", &4)]);
        assert_eq!(first.changes(&Objects::default()).len(), 3);
        assert_eq!(Objects::default().changes(&first).len(), 3);
    }
}
