//! A circuit breaker before each engine: while an engine fails or is too slow, calls fail at once, and
//! one call a second looks whether it is back.
//!
//! It opens when most calls of the last seconds failed or took longer than `slow`, or when many failed in a
//! row. One slow node of several doesn't open it: the drivers ask another one, and what counts here is
//! what their callers see. The state machine is a library's; what is here is the rule for slowness, one
//! probe at a time, and figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use failsafe::backoff::{Constant, constant};
use failsafe::failure_policy::{
    ConsecutiveFailures, OrElse, SuccessRateOverTimeWindow, consecutive_failures,
    success_rate_over_time_window,
};
use failsafe::{FailurePolicy, Instrument, StateMachine};

/// How long it stays open before a call may look again.
const OPEN_FOR: Duration = Duration::from_secs(1);
/// Over how long the share of good calls is looked at.
const WINDOW: Duration = Duration::from_secs(10);
/// Fewer calls than this in the window say nothing.
const CALLS_MIN: u32 = 20;
/// Below this share of good calls it opens.
const GOOD_MIN: f64 = 0.5;
/// Failures in a row that open it, however few calls there are.
const FAILURES_MAX: u32 = 10;

/// What a breaker does with calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// All go through.
    Closed = 0,
    /// One goes through, to see.
    HalfOpen = 1,
    /// None does.
    Open = 2,
}

/// Figures of a breaker.
#[derive(Debug, Default)]
pub struct BreakerMetrics {
    state: AtomicU8,
    /// Times it opened.
    pub opened: AtomicU64,
    /// Calls that failed at once because it was open.
    pub rejected: AtomicU64,
}

impl BreakerMetrics {
    /// What it does now.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            0 => State::Closed,
            1 => State::HalfOpen,
            _ => State::Open,
        }
    }
}

struct Watch {
    name: &'static str,
    metrics: Arc<BreakerMetrics>,
}

impl Watch {
    fn set(&self, state: State) {
        let before = self.metrics.state.swap(state as u8, Ordering::Relaxed);
        if before != state as u8 {
            tracing::warn!(engine = self.name, ?state, "circuit breaker");
        }
    }
}

impl Instrument for Watch {
    fn on_call_rejected(&self) {
        self.metrics.rejected.fetch_add(1, Ordering::Relaxed);
    }

    fn on_open(&self) {
        self.metrics.opened.fetch_add(1, Ordering::Relaxed);
        self.set(State::Open);
    }

    fn on_half_open(&self) {
        self.set(State::HalfOpen);
    }

    fn on_closed(&self) {
        self.set(State::Closed);
    }
}

type Policy = OrElse<SuccessRateOverTimeWindow<Constant>, ConsecutiveFailures<Constant>>;

/// The breaker of one engine, or of one kind of its calls.
pub struct Breaker {
    machine: StateMachine<Policy, Watch>,
    slow: Duration,
    probing: AtomicBool,
    metrics: Arc<BreakerMetrics>,
}

/// The breaker is open: the call was not made.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("not asked, as it failed or was too slow lately; looked at once a second")]
pub struct IsOpen;

impl Breaker {
    /// A closed one. A call that takes longer than `slow` counts as failed, whatever it answers.
    pub fn new(name: &'static str, slow: Duration) -> Breaker {
        let metrics = Arc::<BreakerMetrics>::default();
        let policy = success_rate_over_time_window(GOOD_MIN, CALLS_MIN, WINDOW, constant(OPEN_FOR))
            .or_else(consecutive_failures(FAILURES_MAX, constant(OPEN_FOR)));
        let watch = Watch {
            name,
            metrics: Arc::clone(&metrics),
        };
        Breaker {
            machine: StateMachine::new(policy, watch),
            slow,
            probing: AtomicBool::new(false),
            metrics,
        }
    }

    /// Lets a call through, which says through the pass how it ended.
    ///
    /// # Errors
    /// [`IsOpen`] when it shall not be made.
    pub fn enter(&self) -> Result<Pass<'_>, IsOpen> {
        let mut is_probe = false;
        if self.metrics.state() != State::Closed {
            is_probe = !self.probing.swap(true, Ordering::AcqRel);
            if !is_probe {
                self.metrics.rejected.fetch_add(1, Ordering::Relaxed);
                return Err(IsOpen);
            }
        }
        let mut pass = Pass {
            breaker: self,
            begun: Instant::now(),
            is_probe,
            is_open: true,
        };
        if self.machine.is_call_permitted() {
            return Ok(pass);
        }
        // Nothing was asked, so nothing is to be counted.
        pass.is_open = false;
        Err(IsOpen)
    }

    /// One of several requests of a call that was let through: counted like a call, and not refused. What they say counts,
    /// and not how the call ends ([`Pass::done`]): else a call whose first request is the probe would fail by its
    /// second, and the probe with it, for good.
    pub fn part(&self) -> Pass<'_> {
        Pass {
            breaker: self,
            begun: Instant::now(),
            is_probe: false,
            is_open: true,
        }
    }

    /// Opens it now, whatever the calls said.
    pub fn trip(&self) {
        for _ in 0..FAILURES_MAX {
            if self.metrics.state() == State::Open {
                return;
            }
            self.machine.on_error();
        }
    }

    /// Its figures.
    pub fn metrics(&self) -> &Arc<BreakerMetrics> {
        &self.metrics
    }
}

/// A call under way. Dropped without a word, as when its caller gave up, it counts as failed if it was slow.
#[must_use = "the breaker wants to know how the call ended"]
pub struct Pass<'a> {
    breaker: &'a Breaker,
    begun: Instant,
    is_probe: bool,
    is_open: bool,
}

impl Pass<'_> {
    /// The call is over; how it went its requests have said ([`Breaker::part`]).
    pub fn done(mut self) {
        self.is_open = false;
    }

    /// The engine answered (`good`, also when the answer is a no), or it failed.
    pub fn end(mut self, good: bool) {
        self.is_open = false;
        if good && self.begun.elapsed() < self.breaker.slow {
            self.breaker.machine.on_success();
        } else {
            self.breaker.machine.on_error();
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_open && self.begun.elapsed() >= self.breaker.slow {
            self.breaker.machine.on_error();
        }
        if self.is_probe {
            self.breaker.probing.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker(slow_ms: u64) -> Breaker {
        Breaker::new("test", Duration::from_millis(slow_ms))
    }

    fn call(breaker: &Breaker, good: bool) -> bool {
        breaker.enter().map(|pass| pass.end(good)).is_ok()
    }

    fn wait_until_it_may_be_asked(breaker: &Breaker) -> Pass<'_> {
        let end = Instant::now() + 3 * OPEN_FOR;
        loop {
            match breaker.enter() {
                Ok(pass) => return pass,
                Err(IsOpen) => assert!(Instant::now() < end, "never half open"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_probe_closes_it() {
        let breaker = breaker(60_000);
        for _ in 0..FAILURES_MAX {
            assert!(call(&breaker, false));
        }
        assert!(!call(&breaker, true), "open: not even asked");
        assert_eq!(breaker.metrics.state(), State::Open);
        let probe = wait_until_it_may_be_asked(&breaker);
        assert_eq!(breaker.metrics.state(), State::HalfOpen);
        assert!(breaker.enter().is_err(), "one at a time");
        probe.end(true);
        assert!(call(&breaker, true));
        assert_eq!(breaker.metrics.state(), State::Closed);
        assert_eq!(breaker.metrics.opened.load(Ordering::Relaxed), 1);
        assert!(breaker.metrics.rejected.load(Ordering::Relaxed) >= 2);
    }

    #[test]
    fn a_probe_that_fails_leaves_it_open() {
        let breaker = breaker(60_000);
        breaker.trip();
        wait_until_it_may_be_asked(&breaker).end(false);
        assert!(!call(&breaker, true));
        assert_eq!(breaker.metrics.opened.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_probe_that_was_given_up_early_leaves_room_for_another() {
        let breaker = breaker(60_000);
        breaker.trip();
        drop(wait_until_it_may_be_asked(&breaker));
        wait_until_it_may_be_asked(&breaker).end(true);
        assert_eq!(breaker.metrics.state(), State::Closed);
    }

    #[test]
    fn a_call_of_several_requests_is_a_probe_as_a_whole() {
        let breaker = breaker(60_000);
        breaker.trip();
        let call = wait_until_it_may_be_asked(&breaker);
        let requests = [breaker.part(), breaker.part()];
        assert!(breaker.enter().is_err(), "another call");
        for (request, good) in requests.into_iter().zip([true, false]) {
            request.end(good);
        }
        call.done();
        assert_eq!(breaker.metrics.state(), State::Closed);
        for _ in 0..FAILURES_MAX {
            breaker.part().end(false);
        }
        assert!(breaker.enter().is_err());
    }

    #[test]
    fn slow_answers_open_it_and_so_do_slow_calls_that_were_given_up() {
        for given_up in [false, true] {
            let breaker = breaker(0);
            for _ in 0..FAILURES_MAX {
                let pass = breaker.enter().expect("closed until now");
                if given_up {
                    drop(pass);
                } else {
                    pass.end(true);
                }
            }
            assert!(breaker.enter().is_err());
        }
    }

    #[test]
    fn failures_between_good_calls_do_not_open_it_while_most_are_good() {
        let breaker = breaker(60_000);
        for n in 0..1_000 {
            assert!(call(&breaker, n % 4 != 0), "call {n}");
        }
        assert_eq!(breaker.metrics.state(), State::Closed);
    }
}
