//! Who owns which partition: what every server tells the others, and which word counts.

use tidings_core::ids::{Micros, Partition, Position};

/// A take-over of a partition: of two, the greater is the later one. A router that starts sees at
/// least the end of the log that the one before it saw; where nothing was appended in between and
/// the two haven't heard of each other, the clocks decide.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Term {
    pub epoch: u32,
    pub offset: u64,
    pub since: Micros,
}

impl Term {
    pub fn new(end: Position, since: Micros) -> Term {
        Term {
            epoch: end.epoch,
            offset: end.offset,
            since,
        }
    }

    fn end(self) -> (u32, u64) {
        (self.epoch, self.offset)
    }

    /// The least term above it that begins now, whatever the clock says.
    fn next(self, now: Micros) -> Term {
        Term {
            since: now.max(self.since + 1),
            ..self
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Entry {
    /// The greatest term heard of, whatever became of its owner: what a router of a lower one says
    /// is never heard again.
    greatest: Term,
    /// The server of that term, while it is there.
    owner: Option<u32>,
    /// The term of this server's router, if it thinks that it owns the partition.
    mine: Option<Term>,
}

/// What a claim changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Claim {
    /// A new owner.
    New,
    /// The owner that was away is back: something may have been lost meanwhile.
    Back,
    /// Nothing: known already, or a greater term is known.
    Nothing,
}

/// All partitions' owners, as far as this server has heard.
pub(super) struct Owners {
    me: u32,
    entries: Vec<Entry>,
}

impl Owners {
    pub fn new(me: u32, partitions: u32) -> Owners {
        Owners {
            me,
            entries: vec![Entry::default(); partitions as usize],
        }
    }

    fn entry(&self, partition: Partition) -> Option<&Entry> {
        self.entries.get(partition.0 as usize)
    }

    /// This server's router takes over. Clocks differ: over who is known to have had it before, it
    /// wins all the same, unless that one is there and has seen more of the log. Then this is the
    /// late word of a former owner, or [`Owners::reclaim`] comes to it.
    pub fn take(&mut self, partition: Partition, end: Position, now: Micros) -> (Term, Claim) {
        let mut term = Term::new(end, now);
        if let Some(entry) = self.entries.get_mut(partition.0 as usize) {
            let next = entry.greatest.next(now);
            let is_free = entry.owner.is_none_or(|owner| owner == self.me);
            if is_free || term.end() == next.end() {
                term = term.max(next);
            }
            entry.mine = Some(term);
        }
        (term, self.claim(self.me, partition, term))
    }

    /// A new term, if this server's router owns a partition that another one claimed and gave up:
    /// a former owner's late word must not leave the true one unheard.
    pub fn reclaim(&mut self, partition: Partition, now: Micros) -> Option<Term> {
        let entry = self.entries.get_mut(partition.0 as usize)?;
        if entry.owner.is_some() || entry.mine.is_none() {
            return None;
        }
        let term = entry.greatest.next(now);
        (entry.greatest, entry.mine, entry.owner) = (term, Some(term), Some(self.me));
        Some(term)
    }

    /// A server's claim.
    pub fn claim(&mut self, server: u32, partition: Partition, term: Term) -> Claim {
        let Some(entry) = self.entries.get_mut(partition.0 as usize) else {
            return Claim::Nothing;
        };
        if term > entry.greatest {
            entry.greatest = term;
            entry.owner = Some(server);
            return Claim::New;
        }
        if term == entry.greatest && entry.owner.is_none() {
            entry.owner = Some(server);
            return Claim::Back;
        }
        Claim::Nothing
    }

    /// A server has given the partition up.
    pub fn resign(&mut self, server: u32, partition: Partition) {
        let me = self.me;
        let Some(entry) = self.entries.get_mut(partition.0 as usize) else {
            return;
        };
        if server == me {
            entry.mine = None;
        }
        if entry.owner == Some(server) {
            entry.owner = None;
        }
    }

    /// A server is gone, or out of reach.
    pub fn forget(&mut self, server: u32) {
        for entry in &mut self.entries {
            if entry.owner == Some(server) {
                entry.owner = None;
            }
        }
    }

    /// Where a partition's router is.
    pub fn owner(&self, partition: Partition) -> Option<u32> {
        self.entry(partition)?.owner
    }

    /// Whether what this server's router says counts.
    pub fn is_mine(&self, partition: Partition) -> bool {
        self.entry(partition)
            .is_some_and(|e| e.mine.is_some_and(|mine| mine == e.greatest))
    }

    /// Whether what the router of that term says counts.
    pub fn is_current(&self, partition: Partition, term: Term) -> bool {
        self.entry(partition).is_some_and(|e| term >= e.greatest)
    }

    /// Whether there is such a partition.
    pub fn contains(&self, partition: Partition) -> bool {
        self.entry(partition).is_some()
    }

    /// What this server tells the others when it meets them.
    pub fn mine(&self) -> Vec<(Partition, Term)> {
        let mine = |(at, e): (usize, &Entry)| e.mine.map(|term| (Partition(at as u32), term));
        self.entries.iter().enumerate().filter_map(mine).collect()
    }

    /// The partitions whose router is there.
    pub fn of(&self, server: u32) -> Vec<Partition> {
        let of =
            |(at, e): (usize, &Entry)| (e.owner == Some(server)).then_some(Partition(at as u32));
        self.entries.iter().enumerate().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Partition = Partition(1);

    fn term(offset: u64, since: Micros) -> Term {
        Term::new(Position { epoch: 1, offset }, since)
    }

    fn end(offset: u64) -> Position {
        Position { epoch: 1, offset }
    }

    #[test]
    fn the_later_take_over_wins_whichever_is_heard_first() {
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let claims = [(7, term(10, 5)), (8, term(10, 6)), (9, term(11, 1))];
            let mut owners = Owners::new(6, 2);
            for at in order {
                owners.claim(claims[at].0, P, claims[at].1);
            }
            assert_eq!(owners.owner(P), Some(9));
            assert!(!owners.is_current(P, term(10, 6)) && owners.is_current(P, term(11, 1)));
        }
    }

    #[test]
    fn who_goes_leaves_its_term_behind() {
        let mut owners = Owners::new(7, 2);
        assert_eq!(owners.claim(8, P, term(10, 5)), Claim::New);
        assert_eq!(owners.claim(8, P, term(10, 5)), Claim::Nothing);
        owners.forget(8);
        assert_eq!((owners.owner(P), owners.of(8)), (None, vec![]));
        assert_eq!(owners.claim(9, P, term(10, 4)), Claim::Nothing);
        assert_eq!(owners.claim(8, P, term(10, 5)), Claim::Back);
        assert_eq!(owners.claim(9, Partition(2), term(1, 1)), Claim::Nothing);
        assert_eq!(owners.take(Partition(2), end(1), 1).1, Claim::Nothing);
    }

    #[test]
    fn a_clock_behind_or_an_end_seen_early_makes_no_owner_unheard() {
        let mut owners = Owners::new(7, 2);
        owners.claim(8, P, term(10, 50));
        assert_eq!(owners.take(P, end(10), 5), (term(10, 51), Claim::New));
        assert!(owners.is_mine(P));
        owners.resign(8, P);
        assert!(owners.is_mine(P), "a former owner has nothing to give up");
        owners.resign(7, P);
        assert!(!owners.is_mine(P) && owners.owner(P).is_none());
        assert_eq!(
            owners.take(P, end(9), 60),
            (term(10, 60), Claim::New),
            "nobody has it"
        );

        // The late word of a former owner, which then finds out.
        owners.claim(8, P, term(12, 1));
        assert!(!owners.is_mine(P));
        assert_eq!(owners.mine(), [(P, term(10, 60))]);
        assert_eq!(owners.reclaim(P, 70), None, "the other is there");
        owners.resign(8, P);
        assert_eq!(owners.reclaim(P, 70), Some(term(12, 70)));
        assert!(owners.is_mine(P) && owners.owner(P) == Some(7));

        // A late word of this server's own.
        owners.claim(8, P, term(13, 1));
        assert_eq!(owners.take(P, end(12), 99).1, Claim::Nothing);
        assert_eq!(owners.owner(P), Some(8));
    }
}
