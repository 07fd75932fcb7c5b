//! One coarse timer wheel per worker.
//!
//! A session is in at most one slot, by links inside its slab entry, so arming allocates nothing.
//! Arming is lazy: a session is moved only to an earlier tick. One that fires too early is looked
//! at and armed again, which costs less than moving it at each byte it receives.

use slab::Slab;

/// No tick, and no slab entry.
pub(super) const NEVER: u32 = u32::MAX;

/// How many ticks the wheel sees ahead: 512 s at the default grain. Later ones go into the last
/// slot and are armed again from there.
const SLOTS: u32 = 512;

/// A session's place in the wheel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    at: u32,
    next: u32,
    prev: u32,
}

impl Default for Link {
    fn default() -> Self {
        Link {
            at: NEVER,
            next: NEVER,
            prev: NEVER,
        }
    }
}

/// Something that has a place in the wheel.
pub(super) trait Linked {
    fn link(&mut self) -> &mut Link;
}

pub(super) struct Wheel {
    heads: Box<[u32]>,
    /// Every tick up to this one has fired.
    now: u32,
}

impl Wheel {
    pub(super) fn new() -> Self {
        Wheel {
            heads: vec![NEVER; SLOTS as usize].into_boxed_slice(),
            now: 0,
        }
    }

    /// Makes entry `key` fire at tick `at` or before.
    pub(super) fn arm<T: Linked>(&mut self, entries: &mut Slab<T>, key: usize, at: u32) {
        if at >= entries[key].link().at {
            return;
        }
        self.disarm(entries, key);
        let at = at.clamp(self.now + 1, self.now + SLOTS - 1);
        let head = &mut self.heads[(at % SLOTS) as usize];
        let next = std::mem::replace(head, key as u32);
        *entries[key].link() = Link {
            at,
            next,
            prev: NEVER,
        };
        if next != NEVER {
            entries[next as usize].link().prev = key as u32;
        }
    }

    /// Takes entry `key` out.
    pub(super) fn disarm<T: Linked>(&mut self, entries: &mut Slab<T>, key: usize) {
        let Link { at, next, prev } = std::mem::take(entries[key].link());
        if at == NEVER {
            return;
        }
        match prev {
            NEVER => self.heads[(at % SLOTS) as usize] = next,
            prev => entries[prev as usize].link().next = next,
        }
        if next != NEVER {
            entries[next as usize].link().prev = prev;
        }
    }

    /// Moves on to tick `now` and puts the entries that fire into `fired`, out of the wheel.
    pub(super) fn advance<T: Linked>(
        &mut self,
        entries: &mut Slab<T>,
        now: u32,
        fired: &mut Vec<u32>,
    ) {
        // All armed ticks lie within one round, so a longer sleep needs no more than one.
        let first = (self.now + 1).max((now + 1).saturating_sub(SLOTS));
        for tick in first..=now {
            let mut key = std::mem::replace(&mut self.heads[(tick % SLOTS) as usize], NEVER);
            while key != NEVER {
                let link = std::mem::take(entries[key as usize].link());
                fired.push(key);
                key = link.next;
            }
        }
        self.now = self.now.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Linked for Link {
        fn link(&mut self) -> &mut Link {
            self
        }
    }

    fn fired(wheel: &mut Wheel, entries: &mut Slab<Link>, now: u32) -> Vec<u32> {
        let mut fired = Vec::new();
        wheel.advance(entries, now, &mut fired);
        fired.sort_unstable();
        fired
    }

    #[test]
    fn entries_fire_at_their_tick_and_once() {
        let mut wheel = Wheel::new();
        let mut entries = Slab::new();
        for at in [3, 5, 5, 5, 9] {
            let key = entries.insert(Link::default());
            wheel.arm(&mut entries, key, at);
        }
        wheel.arm(&mut entries, 4, 7);
        wheel.arm(&mut entries, 0, 8);
        wheel.disarm(&mut entries, 2);
        wheel.disarm(&mut entries, 2);
        assert_eq!(fired(&mut wheel, &mut entries, 2), [0u32; 0]);
        assert_eq!(
            fired(&mut wheel, &mut entries, 3),
            [0],
            "never moved to a later tick"
        );
        assert_eq!(fired(&mut wheel, &mut entries, 6), [1, 3]);
        assert_eq!(
            fired(&mut wheel, &mut entries, 7),
            [4],
            "moved to an earlier tick"
        );
        assert_eq!(fired(&mut wheel, &mut entries, 9000), [0u32; 0]);
    }

    #[test]
    fn a_past_tick_fires_next_and_a_far_one_within_a_round() {
        let mut wheel = Wheel::new();
        let mut entries = Slab::new();
        assert_eq!(fired(&mut wheel, &mut entries, 100), [0u32; 0]);
        for at in [50, 100_000] {
            let key = entries.insert(Link::default());
            wheel.arm(&mut entries, key, at);
        }
        assert_eq!(fired(&mut wheel, &mut entries, 101), [0]);
        assert_eq!(fired(&mut wheel, &mut entries, 610), [0u32; 0]);
        assert_eq!(fired(&mut wheel, &mut entries, 611), [1]);
    }
}
