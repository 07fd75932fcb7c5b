//! A map that costs next to nothing when it is small, as nearly all are.
//!
//! A router holds the rows of every conversation that is in use. Most have a few members: a hash
//! table for each takes two to four times the bytes of the rows (measured: 26 MB for 15,000
//! sessions in five conversations each, 9 MB so).

use std::collections::HashMap;
use std::hash::Hash;

/// Up to this many entries are a sorted list. Adding in its middle moves half of it: a microsecond
/// or two at most, while a million members need a table.
const FEW_MAX: usize = 1024;

/// Values by key.
#[derive(Debug)]
pub(crate) enum RowsMap<K, V> {
    /// Sorted by key.
    Few(Vec<(K, V)>),
    Many(HashMap<K, V>),
}

impl<K, V> Default for RowsMap<K, V> {
    fn default() -> Self {
        RowsMap::Few(Vec::new())
    }
}

impl<K: Copy + Ord + Hash, V: Default> RowsMap<K, V> {
    pub fn len(&self) -> usize {
        match self {
            RowsMap::Few(list) => list.len(),
            RowsMap::Many(table) => table.len(),
        }
    }

    pub fn get(&self, key: K) -> Option<&V> {
        match self {
            RowsMap::Few(list) => {
                let at = list.binary_search_by_key(&key, |e| e.0).ok()?;
                Some(&list[at].1)
            }
            RowsMap::Many(table) => table.get(&key),
        }
    }

    pub fn each(&mut self, mut visit: impl FnMut(K, &mut V)) {
        match self {
            RowsMap::Few(list) => list.iter_mut().for_each(|(k, v)| visit(*k, v)),
            RowsMap::Many(table) => table.iter_mut().for_each(|(k, v)| visit(*k, v)),
        }
    }

    /// The value under a key; a default one is put there if there is none.
    pub fn entry(&mut self, key: K) -> &mut V {
        if let RowsMap::Few(list) = self
            && list.len() >= FEW_MAX
        {
            *self = RowsMap::Many(std::mem::take(list).into_iter().collect());
        }
        match self {
            RowsMap::Few(list) => {
                let at = match list.binary_search_by_key(&key, |e| e.0) {
                    Ok(at) => at,
                    Err(at) => {
                        if list.len() == list.capacity() {
                            list.reserve_exact(list.len() / 4 + 1);
                        }
                        list.insert(at, (key, V::default()));
                        at
                    }
                };
                &mut list[at].1
            }
            RowsMap::Many(table) => table.entry(key).or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_holds_what_a_table_would(keys in prop::collection::vec(0..3_000_u64, 0..6_000)) {
            let (mut rows, mut table) = (RowsMap::<u64, usize>::default(), HashMap::new());
            for (i, key) in keys.into_iter().enumerate() {
                *rows.entry(key) = i;
                table.insert(key, i);
            }
            prop_assert_eq!(rows.len(), table.len());
            for key in 0..3_000 {
                prop_assert_eq!(rows.get(key), table.get(&key));
            }
        }
    }
}
