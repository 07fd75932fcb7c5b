//! A map that holds so much and no more, and forgets what wasn't touched the longest.

use std::collections::HashMap;
use std::hash::Hash;

/// Two generations: entries touched go into the young one; when that is full it becomes
/// the old one, and what the old one still held is forgotten. So at least the last
/// `capacity / 2` entries touched are here, at most `capacity`, and nothing is ever scanned.
pub(super) struct Bounded<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
}

impl<K: Hash + Eq, V> Bounded<K, V> {
    pub(super) fn new(capacity: usize) -> Bounded<K, V> {
        Bounded {
            young: HashMap::new(),
            old: HashMap::new(),
            half: (capacity / 2).max(1),
        }
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// The entry, which counts as touched.
    pub(super) fn get(&mut self, key: &K) -> Option<&mut V>
    where
        K: Clone,
    {
        if let Some(value) = self.old.remove(key) {
            self.insert(key.clone(), value);
        }
        self.young.get_mut(key)
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        self.young.remove(key).or_else(|| self.old.remove(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched_stays_and_the_bound_holds() {
        let mut map = Bounded::new(8);
        for i in 0..1000 {
            map.insert(i, i);
            assert!(map.get(&0).is_some(), "touched at each step");
            assert!(map.young.len() + map.old.len() <= 8);
        }
        assert_eq!(map.get(&998), Some(&mut 998));
        assert_eq!(map.get(&500), None);
        assert_eq!(map.remove(&999), Some(999));
        assert_eq!(map.get(&999), None);
    }
}
