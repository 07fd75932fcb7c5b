//! A map that holds so much and no more, and forgets what wasn't touched the longest.

use std::hash::{BuildHasher, Hash, RandomState};

use hashbrown::HashTable;

/// Two generations: entries touched go into the young one; when that is full it becomes
/// the old one, and what the old one still held is forgotten. So at least the last
/// `capacity / 2` entries touched are here, at most `capacity`, and nothing is ever scanned.
pub(super) struct Bounded<K, V> {
    young: Dense<K, V>,
    old: Dense<K, V>,
    half: usize,
}

impl<K: Hash + Eq, V> Bounded<K, V> {
    pub(super) fn new(capacity: usize) -> Bounded<K, V> {
        Bounded {
            young: Dense::default(),
            old: Dense::default(),
            half: (capacity / 2).max(1),
        }
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.entries.len() >= self.half && self.young.get_mut(&key).is_none() {
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

/// A map whose entries lie one behind the other; only the table of their places has holes. With
/// entries of some 50 bytes that is half the memory of a table that holds them itself.
struct Dense<K, V> {
    entries: Vec<(K, V)>,
    places: HashTable<u32>,
    hasher: RandomState,
}

impl<K, V> Default for Dense<K, V> {
    fn default() -> Self {
        Dense {
            entries: Vec::new(),
            places: HashTable::new(),
            hasher: RandomState::new(),
        }
    }
}

impl<K: Hash + Eq, V> Dense<K, V> {
    fn place(&self, key: &K) -> Option<usize> {
        let entries = &self.entries;
        let found = self.places.find(self.hasher.hash_one(key), |&place| {
            entries[place as usize].0 == *key
        });
        found.map(|&place| place as usize)
    }

    fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let place = self.place(key)?;
        Some(&mut self.entries[place].1)
    }

    fn insert(&mut self, key: K, value: V) {
        if let Some(there) = self.get_mut(&key) {
            *there = value;
            return;
        }
        let place = self.entries.len();
        if place == self.entries.capacity() {
            // Doubling would leave a quarter of it empty on average.
            self.entries.reserve_exact(4 + place / 8);
        }
        let hash = self.hasher.hash_one(&key);
        self.entries.push((key, value));
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.places.insert_unique(hash, place as u32, |&p| {
            hasher.hash_one(&entries[p as usize].0)
        });
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        let entries = &self.entries;
        let entry = self.places.find_entry(self.hasher.hash_one(key), |&place| {
            entries[place as usize].0 == *key
        });
        let (place, _) = entry.ok()?.remove();
        // The last one comes into its place.
        let last = entries.len() - 1;
        if place as usize != last {
            let moved = self.hasher.hash_one(&entries[last].0);
            if let Some(of_last) = self.places.find_mut(moved, |&p| p as usize == last) {
                *of_last = place;
            }
        }
        Some(self.entries.swap_remove(place as usize).1)
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
            assert!(map.young.entries.len() + map.old.entries.len() <= 8);
        }
        assert_eq!(map.get(&998), Some(&mut 998));
        assert_eq!(map.get(&500), None);
        assert_eq!(map.remove(&999), Some(999));
        assert_eq!(map.get(&999), None);
    }

    #[test]
    fn whatever_is_removed_the_others_are_found() {
        for removed in 0..50 {
            let mut map = Dense::default();
            for i in 0..50 {
                map.insert(i, i * 2);
            }
            map.insert(7, 14);
            assert_eq!(map.remove(&removed), Some(removed * 2));
            assert_eq!(map.remove(&removed), None);
            for i in 0..50 {
                let expected = (i != removed).then_some(i * 2);
                assert_eq!(map.get_mut(&i).copied(), expected);
            }
        }
    }
}
