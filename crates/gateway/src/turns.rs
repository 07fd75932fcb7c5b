//! Turns of those who are sent away because too many come at once.
//!
//! Each is given a time of its own to come back, as far from the one before as letting one in takes. Were they only
//! spread, most would come too early and be sent away again, which costs nearly as much as letting them in.

use tidings_core::ids::Micros;

const SECOND: Micros = 1_000_000;

/// Taken for the rate until it has been measured.
const PER_SECOND: usize = 500;

/// It is never taken for less: too many who come too early cost less than few who come too late.
const PER_SECOND_MIN: usize = 100;

/// The latest time that is given; the rate of now says nothing of later.
const AWAY_MAX: Micros = 60 * SECOND;

#[derive(Debug)]
pub(crate) struct Turns {
    per_second: usize,
    /// The last time given.
    given: Micros,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns {
            per_second: PER_SECOND,
            given: 0,
        }
    }
}

impl Turns {
    /// How long so many take.
    pub(crate) fn of(&self, count: usize) -> Micros {
        count as Micros * SECOND / self.per_second as Micros
    }

    /// In how long one more may come, not before `wait` has passed; `hash` spreads those for whom there is no turn.
    pub(crate) fn give(&mut self, now: Micros, wait: Micros, hash: u64) -> Micros {
        let after = self.given.max(now + wait) + self.of(1) - now;
        if after > AWAY_MAX {
            return hash % AWAY_MAX;
        }
        self.given = now + after;
        after
    }

    /// So many were let in within a second while others waited. It falls slowly, as the first ones find all cold.
    pub(crate) fn measured(&mut self, per_second: usize) {
        self.per_second = per_second.max(self.per_second * 3 / 4).max(PER_SECOND_MIN);
    }

    /// Nobody waits any more.
    pub(crate) fn rest(&mut self) {
        self.per_second = PER_SECOND;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_turn_behind_the_one_before_and_the_rate_falls_slowly() {
        let mut turns = Turns::default();
        assert_eq!([(); 3].map(|()| turns.give(0, 0, 7)), [2_000, 4_000, 6_000]);
        assert_eq!(turns.give(SECOND, 0, 7), 2_000, "those have come");
        assert_eq!(turns.give(SECOND, SECOND, 7), SECOND + 2_000);
        turns.measured(1);
        assert_eq!(turns.of(375), SECOND);
        for _ in 0..20 {
            turns.measured(1);
        }
        assert_eq!(turns.of(100), SECOND);
        turns.measured(2_000);
        assert_eq!(turns.of(2_000), SECOND);
        turns.rest();
        assert_eq!(turns.of(500), SECOND);
    }

    #[test]
    fn beyond_a_minute_they_are_spread() {
        let mut turns = Turns::default();
        let most = (0..100_000).map(|hash| turns.give(0, 0, hash * SECOND));
        assert!(most.max() <= Some(AWAY_MAX));
    }
}
