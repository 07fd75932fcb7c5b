//! Sends that wait for their answer, by the second in which they were taken: an answer may be lost, and after a while
//! nobody waits for it any longer.

use tidings_core::ids::Micros;

use super::settings::SECOND;

/// An answer that comes later than this is as good as lost: clients have sent again.
const SECONDS: usize = 16;

/// How many wait.
#[derive(Default)]
pub(super) struct Awaited {
    counts: [u32; SECONDS],
    newest: u64,
}

impl Awaited {
    /// How many there are.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|&count| u64::from(count)).sum()
    }

    /// Time goes on: how many are given up. When the clock was set back, all: their times say nothing then.
    pub fn advance(&mut self, now: Micros) -> u64 {
        let second = now / SECOND;
        let passed = match second.checked_sub(self.newest) {
            Some(passed) => passed.min(SECONDS as u64),
            None => SECONDS as u64,
        };
        let mut given_up = 0;
        for ahead in 1..=passed {
            let place = (self.newest + ahead) as usize % SECONDS;
            given_up += u64::from(std::mem::take(&mut self.counts[place]));
        }
        self.newest = second;
        given_up
    }

    /// One more, at the time given to [`Awaited::advance`] last.
    pub fn take(&mut self) {
        self.counts[self.newest as usize % SECONDS] += 1;
    }

    /// What was taken then is answered, or won't be: whether it was still awaited.
    pub fn end(&mut self, taken: Micros) -> bool {
        let second = taken / SECOND;
        let is_known = second <= self.newest && self.newest - second < SECONDS as u64;
        let count = &mut self.counts[second as usize % SECONDS];
        if !is_known || *count == 0 {
            return false;
        }
        *count -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn awaited(takes: &[Micros]) -> Awaited {
        let mut awaited = Awaited::default();
        for &now in takes {
            awaited.advance(now);
            awaited.take();
        }
        awaited
    }

    #[test]
    fn each_answer_ends_one_and_only_once() {
        let mut awaited = awaited(&[100 * SECOND, 100 * SECOND + 1, 101 * SECOND]);
        assert_eq!(awaited.total(), 3);
        assert!(awaited.end(100 * SECOND + 1));
        assert!(awaited.end(100 * SECOND));
        assert!(!awaited.end(100 * SECOND), "an answer came twice");
        assert!(!awaited.end(102 * SECOND), "of a time to come");
        assert_eq!(awaited.total(), 1);
    }

    #[test]
    fn what_is_never_answered_is_given_up() {
        let mut awaited = awaited(&[100 * SECOND, 101 * SECOND]);
        assert_eq!(awaited.advance(115 * SECOND), 0);
        assert_eq!(awaited.advance(116 * SECOND), 1);
        assert!(!awaited.end(100 * SECOND));
        assert_eq!(awaited.advance(1_000 * SECOND), 1);
        assert_eq!(awaited.total(), 0);
    }

    #[test]
    fn a_clock_that_is_set_back_holds_nothing() {
        let mut awaited = awaited(&[10_000 * SECOND]);
        assert_eq!(awaited.advance(6_400 * SECOND), 1);
        awaited.take();
        assert!(!awaited.end(10_000 * SECOND));
        assert!(awaited.end(6_400 * SECOND));
        assert_eq!(awaited.total(), 0);
    }
}
