//! How long a worker takes to come to what it is told: the time that a message waits for its turn.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One question to all workers at a time.
#[derive(Default)]
pub(super) struct Probe {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    asked: Option<Instant>,
    /// Workers that haven't come to it.
    waiting: usize,
    worst: Duration,
}

impl Probe {
    /// Begins a question to so many workers; none while one hasn't been answered by all.
    pub fn begin(&self, workers: usize) -> Option<Instant> {
        let mut state = self.state();
        if state.waiting > 0 || workers == 0 {
            return None;
        }
        let now = Instant::now();
        state.asked = Some(now);
        state.waiting = workers;
        state.worst = Duration::ZERO;
        Some(now)
    }

    /// A worker has come to it.
    pub fn answered(&self, asked: Instant) {
        let mut state = self.state();
        if state.asked == Some(asked) {
            state.waiting = state.waiting.saturating_sub(1);
            state.worst = state.worst.max(asked.elapsed());
        }
    }

    /// What the slowest worker took, or takes already.
    pub fn worst(&self) -> Duration {
        let state = self.state();
        match state.asked {
            Some(asked) if state.waiting > 0 => state.worst.max(asked.elapsed()),
            _ => state.worst,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_worker_counts_also_while_it_has_not_answered() {
        let probe = Probe::default();
        assert_eq!(probe.begin(0), None);
        let asked = probe.begin(2).expect("nothing was asked before");
        probe.answered(asked);
        assert_eq!(probe.begin(2), None, "one has not answered");
        let once = probe.worst();
        while probe.worst() <= once {}
        probe.answered(asked);
        let told = probe.worst();
        assert!(told > once);
        assert_eq!(probe.worst(), told);
        assert!(probe.begin(2).is_some());
    }
}
