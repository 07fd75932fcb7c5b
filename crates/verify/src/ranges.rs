//! Sets of seqs as sorted, disjoint, never adjacent ranges.
//!
//! A device that is shown a conversation in order costs one range, however long it is.

/// A set of seqs. Ends are inclusive; `u64::MAX` stands for "open".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// The set of one range; empty if `from > to`.
    pub fn of(from: u64, to: u64) -> Ranges {
        let mut set = Ranges::default();
        set.insert_range(from, to);
        set
    }

    /// Adds one seq; false if it was there.
    pub fn insert(&mut self, seq: u64) -> bool {
        if let Some(last) = self.0.last_mut()
            && last.1.checked_add(1) == Some(seq)
        {
            last.1 = seq;
            return true;
        }
        if self.contains(seq) {
            return false;
        }
        self.insert_range(seq, seq);
        true
    }

    /// Adds `from..=to`; nothing if `from > to`.
    pub fn insert_range(&mut self, from: u64, to: u64) {
        if from > to {
            return;
        }
        let first = self.0.partition_point(|r| r.1.saturating_add(1) < from);
        let end = self.0.partition_point(|r| r.0 <= to.saturating_add(1));
        if first >= end {
            self.0.insert(first, (from, to));
            return;
        }
        let merged = (from.min(self.0[first].0), to.max(self.0[end - 1].1));
        self.0.splice(first..end, [merged]);
    }

    pub fn contains(&self, seq: u64) -> bool {
        let index = self.0.partition_point(|r| r.1 < seq);
        self.0.get(index).is_some_and(|r| r.0 <= seq)
    }

    /// The highest seq; 0 if empty.
    pub fn max(&self) -> u64 {
        self.0.last().map_or(0, |r| r.1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// How many seqs, saturating.
    pub fn len(&self) -> u64 {
        self.iter().fold(0, |sum, (from, to)| {
            sum.saturating_add((to - from).saturating_add(1))
        })
    }

    pub fn add(&mut self, other: &Ranges) {
        for (from, to) in other.iter() {
            self.insert_range(from, to);
        }
    }

    /// Forgets all above `seq`.
    pub fn cut_above(&mut self, seq: u64) {
        self.0.retain(|r| r.0 <= seq);
        if let Some(last) = self.0.last_mut() {
            last.1 = last.1.min(seq);
        }
    }

    /// The part within `from..=to`.
    pub fn within(&self, from: u64, to: u64) -> Ranges {
        let clip = |(a, b): (u64, u64)| (a.max(from), b.min(to));
        Ranges(self.iter().map(clip).filter(|r| r.0 <= r.1).collect())
    }

    /// What is here and not in `other`.
    pub fn minus(&self, other: &Ranges) -> Ranges {
        let mut left = Vec::new();
        let mut cuts = other.0.iter().peekable();
        for (mut from, to) in self.iter() {
            let mut rest = true;
            while let Some(&&(cut_from, cut_to)) = cuts.peek() {
                if cut_from > to {
                    break;
                }
                if cut_to >= from {
                    if cut_from > from {
                        left.push((from, cut_from - 1));
                    }
                    if cut_to >= to {
                        // It may reach into the next range too: keep it.
                        rest = false;
                        break;
                    }
                    from = cut_to + 1;
                }
                cuts.next();
            }
            if rest {
                left.push((from, to));
            }
        }
        Ranges(left)
    }

    /// What lies between the lowest and the highest seq and is not here.
    pub fn holes(&self) -> Ranges {
        Ranges(
            self.0
                .windows(2)
                .map(|pair| (pair[0].1 + 1, pair[1].0 - 1))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set_of(ranges: &Ranges) -> BTreeSet<u64> {
        ranges.iter().flat_map(|(from, to)| from..=to).collect()
    }

    proptest! {
        #[test]
        fn ranges_behave_as_sets(
            a in prop::collection::vec((1u64..40, 0u64..6), 0..12),
            b in prop::collection::vec((1u64..40, 0u64..6), 0..12),
            cut in 0u64..45,
        ) {
            let build = |list: &[(u64, u64)]| {
                let mut ranges = Ranges::default();
                let mut set = BTreeSet::new();
                for &(from, length) in list {
                    if length == 0 {
                        assert_eq!(ranges.insert(from), set.insert(from));
                    } else {
                        ranges.insert_range(from, from + length);
                        set.extend(from..=from + length);
                    }
                }
                (ranges, set)
            };
            let ((a, set_a), (b, set_b)) = (build(&a), build(&b));
            prop_assert_eq!(set_of(&a), set_a.clone());
            prop_assert!(a.0.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
            prop_assert_eq!(set_of(&a.minus(&b)), &set_a - &set_b);
            prop_assert_eq!(a.len(), set_a.len() as u64);
            prop_assert_eq!(set_of(&a.within(5, cut)),
                set_a.iter().copied().filter(|s| (5..=cut).contains(s)).collect());
            let mut low = a.clone();
            low.cut_above(cut);
            prop_assert_eq!(set_of(&low), set_a.iter().copied().filter(|s| *s <= cut).collect());
            let mut both = a.clone();
            both.add(&b);
            prop_assert_eq!(set_of(&both), &set_a | &set_b);
            for seq in 0..50 {
                prop_assert_eq!(a.contains(seq), set_a.contains(&seq));
            }
            if let (Some(&low), Some(&high)) = (set_a.first(), set_a.last()) {
                prop_assert_eq!(set_of(&a.holes()), (low..=high).filter(|s| !set_a.contains(s)).collect());
            }
        }
    }

    #[test]
    fn an_open_end_does_not_overflow() {
        let mut all = Ranges::of(1, u64::MAX);
        all.insert_range(5, u64::MAX);
        assert_eq!(all.minus(&Ranges::of(10, u64::MAX)), Ranges::of(1, 9));
        assert!(!all.insert(u64::MAX));
    }
}
