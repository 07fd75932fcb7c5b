//! Log lines that an outage would write by the thousand: one a second, and how many were left out.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lets one through in each second. One for each place that logs, as a `static`.
#[derive(Debug)]
pub struct Seldom {
    /// The second after the one of the last line.
    next: AtomicU64,
    left_out: AtomicU64,
}

impl Seldom {
    /// None was let through yet.
    #[allow(clippy::new_without_default, reason = "only for statics")]
    pub const fn new() -> Seldom {
        Seldom {
            next: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// How many were left out since the last one that wasn't; none: this one is left out, too.
    pub fn turn(&self) -> Option<u64> {
        static STARTED: OnceLock<Instant> = OnceLock::new();
        let started = STARTED.get_or_init(Instant::now);
        self.turn_at(started.elapsed().as_secs())
    }

    fn turn_at(&self, second: u64) -> Option<u64> {
        if self.next.fetch_max(second + 1, Ordering::Relaxed) > second {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_second_and_the_others_are_counted() {
        let seldom = Seldom::new();
        let turns = [0, 0, 0, 1, 3, 3, 9].map(|second| seldom.turn_at(second));
        assert_eq!(
            turns,
            [Some(0), None, None, Some(2), Some(0), None, Some(1)]
        );
    }
}
