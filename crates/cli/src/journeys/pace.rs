//! An open loop: what is due is sent when it is due, whatever became of what was sent before.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use super::meter::Span;
use crate::replay::random_after;

/// One stream of sends.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// Sends a second.
    pub rate: f64,
    /// The first and the last moment, by the run's clock.
    pub from: u64,
    pub to: u64,
    pub seed: u64,
}

impl Pace {
    /// Calls `due` at each due time with that time and a random number, until it says that it ends or
    /// the last moment is reached; blocks its thread.
    ///
    /// A send is due at a random moment of each interval, so that it meets no other rhythm's beat.
    pub fn run(self, span: &Arc<Span>, mut due: impl FnMut(u64, u64) -> ControlFlow<()>) {
        if self.rate <= 0.0 {
            return;
        }
        let interval = 1e6 / self.rate;
        let mut seed = self.seed;
        for interval_at in 0_u64.. {
            let within = random_after(&mut seed) as f64 / u64::MAX as f64;
            let at = self.from + ((interval_at as f64 + within) * interval) as u64;
            if at >= self.to {
                return;
            }
            let wait = at.saturating_sub(span.now());
            if wait > 0 {
                std::thread::sleep(Duration::from_micros(wait));
            }
            if due(at, random_after(&mut seed)).is_break() {
                return;
            }
        }
    }
}
