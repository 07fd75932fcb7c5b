//! What waits for the disk: a bounded queue of append calls, and the committed position.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidings_core::ports::log::{Append, AppendReport, LogError};

use super::metrics::{Metrics, set};

/// One call of append.
pub(super) struct Call {
    pub records: Vec<Append>,
    pub report: AppendReport,
    bytes: usize,
}

/// What the log thread has to do next.
pub(super) enum Turn {
    /// Make these durable.
    Batch {
        calls: Vec<Call>,
        /// As it stands now.
        committed: u64,
    },
    /// Nothing waits, and this position isn't on the disk yet.
    SavePosition(u64),
    /// The queue was closed and is empty.
    End(u64),
}

pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    bytes_max: usize,
    records_max: usize,
}

struct State {
    calls: VecDeque<Call>,
    bytes: usize,
    records: usize,
    /// Why it takes nothing more.
    closed: Option<String>,
    committed: u64,
    /// The committed position that is on the disk.
    saved: u64,
    /// The log thread sleeps: only then is waking it worth a system call.
    asleep: bool,
    /// And it wakes up by itself in time to save the committed position.
    is_timed: bool,
}

impl Queue {
    pub fn new(bytes_max: usize, records_max: usize, committed: u64) -> Queue {
        let state = State {
            calls: VecDeque::new(),
            bytes: 0,
            records: 0,
            closed: None,
            committed,
            saved: committed,
            asleep: false,
            is_timed: false,
        };
        Queue {
            state: Mutex::new(state),
            filled: Condvar::new(),
            bytes_max,
            records_max,
        }
    }

    /// Queues a call, or gives it back with the reason.
    pub fn push(
        &self,
        records: Vec<Append>,
        report: AppendReport,
        metrics: &Metrics,
    ) -> Result<(), (AppendReport, String)> {
        let bytes = records.iter().map(|record| record.payload.len()).sum();
        let mut state = self.lock();
        if let Some(why) = &state.closed {
            return Err((report, why.clone()));
        }
        if state.bytes + bytes > self.bytes_max || state.records + records.len() > self.records_max
        {
            return Err((report, "too much waits for the disk".to_owned()));
        }
        state.bytes += bytes;
        state.records += records.len();
        state.calls.push_back(Call {
            records,
            report,
            bytes,
        });
        state.gauge(metrics);
        self.wake(state);
        Ok(())
    }

    /// Raises the committed position.
    pub fn commit(&self, committed: u64) {
        let mut state = self.lock();
        if committed > state.committed {
            state.committed = committed;
            // After a batch it comes by itself: one wake a batch less.
            if !state.is_timed {
                self.wake(state);
            }
        }
    }

    pub fn committed(&self) -> u64 {
        self.lock().committed
    }

    /// Takes nothing more; what waits is still given out.
    pub fn close(&self, why: &str) {
        let mut state = self.lock();
        state.closed.get_or_insert_with(|| why.to_owned());
        self.wake(state);
    }

    /// The next turn of the log thread; sleeps while there is none.
    ///
    /// A batch is everything that waits, but takes no further call after `batch_bytes`.
    pub fn next(&self, batch_bytes: usize, position_interval: Duration, metrics: &Metrics) -> Turn {
        let mut state = self.lock();
        let mut save_at = Instant::now() + position_interval;
        loop {
            if !state.calls.is_empty() {
                let (mut bytes, mut taken) = (0, 0);
                while taken < state.calls.len() && bytes < batch_bytes {
                    bytes += state.calls[taken].bytes;
                    taken += 1;
                }
                let calls: Vec<Call> = state.calls.drain(..taken).collect();
                state.bytes -= bytes;
                state.records -= calls.iter().map(|call| call.records.len()).sum::<usize>();
                state.gauge(metrics);
                return Turn::Batch {
                    calls,
                    committed: state.committed,
                };
            }
            if state.closed.is_some() {
                return Turn::End(state.committed);
            }
            let now = Instant::now();
            if now < save_at {
                (state.asleep, state.is_timed) = (true, true);
                let waited = self.filled.wait_timeout(state, save_at - now);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                state.is_timed = false;
            } else if state.committed > state.saved {
                return Turn::SavePosition(state.committed);
            } else {
                state.asleep = true;
                state = self
                    .filled
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                save_at = Instant::now() + position_interval;
            }
            state.asleep = false;
        }
    }

    /// Says which position is on the disk now.
    pub fn saved(&self, committed: u64) {
        let mut state = self.lock();
        state.saved = state.saved.max(committed);
    }

    /// Takes out everything that waits.
    pub fn drain(&self, metrics: &Metrics) -> Vec<Call> {
        let mut state = self.lock();
        state.bytes = 0;
        state.records = 0;
        let calls = state.calls.drain(..).collect();
        state.gauge(metrics);
        calls
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, state: MutexGuard<'_, State>) {
        let asleep = state.asleep;
        drop(state);
        if asleep {
            self.filled.notify_one();
        }
    }
}

impl State {
    fn gauge(&self, metrics: &Metrics) {
        set(&metrics.queue_records, self.records as u64);
        set(&metrics.queue_bytes, self.bytes as u64);
    }
}

/// Tells each caller of the same error.
pub(super) fn refuse(calls: Vec<Call>, error: &LogError) {
    for call in calls {
        (call.report)(Err(error.clone()));
    }
}
