//! What is measured on the way: at each client, from its own frames and events.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hdrhistogram::Histogram;
use tidings_client::Traffic;
use tidings_protocol::wire::{Ack, Encoding, Event, Kind, command, update};
use tidings_protocol::{body, limits};
use tokio::sync::watch;

use super::ledger::Ledger;
use crate::witness::{History, Watcher};

/// The longest time that is told apart from longer ones, in microseconds: ten minutes.
const LONGEST: u64 = 600_000_000;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Times of one kind, in microseconds.
pub(super) struct Samples(Mutex<Histogram<u64>>);

impl Samples {
    pub fn new() -> Arc<Samples> {
        let histogram = Histogram::new_with_bounds(1, LONGEST, 3).expect("bounds that fit");
        Arc::new(Samples(Mutex::new(histogram)))
    }

    pub fn add(&self, micros: u64) {
        lock(&self.0).saturating_record(micros.clamp(1, LONGEST));
    }

    pub fn histogram(&self) -> Histogram<u64> {
        lock(&self.0).clone()
    }
}

/// The clock of a run, and which messages count.
pub(super) struct Span {
    history: History,
    from: AtomicU64,
    to: AtomicU64,
}

impl Span {
    /// Nothing counts until [`Span::count`].
    pub fn new(history: History) -> Arc<Span> {
        Arc::new(Span {
            history,
            from: AtomicU64::new(u64::MAX),
            to: AtomicU64::new(u64::MAX),
        })
    }

    /// Microseconds, the same for senders and receivers, never going back.
    pub fn now(&self) -> u64 {
        self.history.now_us()
    }

    /// What is meant to be sent from `from` on and before `to` counts.
    pub fn count(&self, from: u64, to: u64) {
        self.to.store(to, Ordering::Relaxed);
        self.from.store(from, Ordering::Relaxed);
    }

    /// Whether what is meant to be sent then counts.
    pub fn counts(&self, at: u64) -> bool {
        at >= self.from.load(Ordering::Relaxed) && at < self.to.load(Ordering::Relaxed)
    }
}

/// A message's text: when it was meant to be sent, and words up to the usual length of a chat line.
pub(super) fn text(intended: u64) -> String {
    format!("{intended} is when this message was meant to be sent")
}

fn intended(encoding: i32, bytes: &[u8]) -> Option<u64> {
    let encoding = Encoding::try_from(encoding).unwrap_or_default();
    let plain = body::inflate(encoding, bytes, limits::INFLATED_BYTES_MAX).ok()?;
    let text = std::str::from_utf8(&plain).ok()?;
    text.split(' ').next()?.parse().ok()
}

/// How far one member has read, until its friend has been told.
#[derive(Default)]
pub(super) struct Marks {
    /// By seq, when the user read it, and when the cursor went out.
    acts: Mutex<BTreeMap<u64, u64>>,
    sent: Mutex<BTreeMap<u64, u64>>,
}

/// Where times of read marks go: from the user's act, and from the cursor's frame.
#[derive(Clone)]
pub(super) struct ReadSamples {
    pub from_act: Arc<Samples>,
    pub from_frame: Arc<Samples>,
}

/// A member's part in read marks.
pub(super) struct Reading {
    pub own: Arc<Marks>,
    pub friend: Arc<Marks>,
    /// Told the seq that the user has read; somebody marks it.
    pub marker: watch::Sender<u64>,
    pub samples: ReadSamples,
}

/// The longest times of one conversation, in microseconds.
#[derive(Default)]
pub(super) struct Pause {
    pub ack: AtomicU64,
    pub delivery: AtomicU64,
}

/// One connection that ended, and the next that was ready.
#[derive(Clone, Copy)]
pub(super) struct Reconnection {
    /// When the server said to come back elsewhere; 0: it didn't.
    pub told: u64,
    pub gone: u64,
    pub back: u64,
    /// The code of the close; 0: it ended without one.
    pub code: u16,
}

/// Coming back: when, to which head, and what is taken down.
pub(super) struct Return {
    pub since: AtomicU64,
    pub head: AtomicU64,
    pub first_page: Arc<Samples>,
    pub complete: Arc<Samples>,
}

impl Return {
    pub fn new(first_page: &Arc<Samples>, complete: &Arc<Samples>) -> Arc<Return> {
        Arc::new(Return {
            since: AtomicU64::new(0),
            head: AtomicU64::new(u64::MAX),
            first_page: first_page.clone(),
            complete: complete.clone(),
        })
    }

    /// It comes back now, and has everything when it has this head.
    pub fn begin(&self, now: u64, head: u64) {
        self.head.store(head, Ordering::Relaxed);
        self.since.store(now, Ordering::Release);
    }
}

/// What one client is asked to measure.
#[derive(Default)]
pub(super) struct Wanted {
    pub deliveries: Option<Arc<Samples>>,
    pub acks: Option<Arc<Samples>>,
    pub reading: Option<Reading>,
    pub coming_back: Option<Arc<Return>>,
    pub pause: Option<Arc<Pause>>,
    pub reconnections: Option<Arc<Mutex<Vec<Reconnection>>>>,
    pub ledger: Option<Arc<Ledger>>,
}

#[derive(Default)]
struct Link {
    told: u64,
    gone: u64,
    code: u16,
}

/// The watcher of one client.
pub(super) struct Meter {
    user: u64,
    span: Arc<Span>,
    wanted: Wanted,
    /// By counter: when the messages without an answer were meant to be sent.
    waiting: Mutex<(u64, BTreeMap<u64, u64>)>,
    link: Mutex<Link>,
    paged: AtomicU64,
}

impl Meter {
    pub fn new(user: u64, span: Arc<Span>, wanted: Wanted) -> Meter {
        Meter {
            user,
            span,
            wanted,
            waiting: Mutex::default(),
            link: Mutex::default(),
            paged: AtomicU64::new(0),
        }
    }

    fn answered(&self, ack: &Ack, now: u64) {
        let acked = {
            let mut waiting = lock(&self.waiting);
            let (upto, messages) = &mut *waiting;
            *upto = ack.counter.max(*upto);
            let later = messages.split_off(&(*upto + 1));
            std::mem::replace(messages, later)
        };
        for at in acked.into_values().filter(|&at| self.span.counts(at)) {
            let took = now.saturating_sub(at);
            if let Some(ledger) = &self.wanted.ledger {
                ledger.acked(self.user, at, now);
            }
            if let Some(acks) = &self.wanted.acks {
                acks.add(took);
            }
            if let Some(pause) = &self.wanted.pause {
                pause.ack.fetch_max(took, Ordering::Relaxed);
            }
        }
    }

    fn receipt(&self, reading: &Reading, read: u64, now: u64) {
        for (marks, samples) in [
            (&reading.friend.acts, &reading.samples.from_act),
            (&reading.friend.sent, &reading.samples.from_frame),
        ] {
            let told = {
                let mut marks = lock(marks);
                let later = marks.split_off(&(read + 1));
                std::mem::replace(&mut *marks, later)
            };
            for at in told.into_values().filter(|&at| self.span.counts(at)) {
                samples.add(now.saturating_sub(at));
            }
        }
    }

    fn ready(&self, now: u64) {
        let link = std::mem::take(&mut *lock(&self.link));
        if let (Some(all), 1..) = (&self.wanted.reconnections, link.gone) {
            lock(all).push(Reconnection {
                told: link.told,
                gone: link.gone,
                back: now,
                code: link.code,
            });
        }
    }

    fn page(&self, now: u64) {
        if let Some(coming) = &self.wanted.coming_back {
            let since = coming.since.load(Ordering::Acquire);
            if since > 0 && self.paged.swap(since, Ordering::Relaxed) != since {
                coming.first_page.add(now.saturating_sub(since));
            }
        }
    }
}

impl Watcher for Meter {
    fn traffic(&self, traffic: &Traffic<'_>) {
        let now = self.span.now();
        match traffic {
            Traffic::Out(frame) => {
                for command in &frame.commands {
                    match &command.command {
                        Some(command::Command::Send(send)) => {
                            if let Some(at) = intended(send.encoding, &send.body) {
                                let mut waiting = lock(&self.waiting);
                                if send.counter > waiting.0 {
                                    waiting.1.entry(send.counter).or_insert(at);
                                }
                            }
                        }
                        Some(command::Command::Read(read)) => {
                            if let Some(reading) = &self.wanted.reading {
                                lock(&reading.own.sent).entry(read.seq).or_insert(now);
                            }
                        }
                        _ => {}
                    }
                }
            }
            Traffic::In(frame) => {
                for update in &frame.updates {
                    match &update.update {
                        Some(update::Update::Ack(ack)) => self.answered(ack, now),
                        Some(update::Update::Error(error)) if error.counter > 0 => {
                            if let Some(ledger) = &self.wanted.ledger {
                                ledger.refused(self.user, now);
                            }
                        }
                        Some(update::Update::Receipts(receipts)) => {
                            if let Some(reading) = &self.wanted.reading {
                                let others =
                                    receipts.receipts.iter().filter(|r| r.user != self.user);
                                let read = others.map(|r| r.read).max();
                                self.receipt(reading, read.unwrap_or(0), now);
                            }
                        }
                        Some(update::Update::Reconnect(_)) => lock(&self.link).told = now,
                        Some(update::Update::Ready(_)) => self.ready(now),
                        Some(update::Update::SyncPage(page)) if !page.events.is_empty() => {
                            self.page(now);
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    fn shown(&self, event: &Event) {
        let now = self.span.now();
        if let Some(coming) = &self.wanted.coming_back {
            let since = coming.since.load(Ordering::Acquire);
            if since > 0 && event.seq == coming.head.load(Ordering::Relaxed) {
                coming.complete.add(now.saturating_sub(since));
            }
        }
        if event.user == self.user || event.kind != i32::from(Kind::Text) {
            return;
        }
        let Some(at) = intended(event.encoding, &event.body) else {
            return;
        };
        if self.span.counts(at) {
            let took = now.saturating_sub(at);
            if let Some(ledger) = &self.wanted.ledger {
                ledger.shown(event.user, at, now);
            }
            if let Some(deliveries) = &self.wanted.deliveries {
                deliveries.add(took);
            }
            if let Some(pause) = &self.wanted.pause {
                pause.delivery.fetch_max(took, Ordering::Relaxed);
            }
        }
        if let Some(reading) = &self.wanted.reading {
            lock(&reading.own.acts).entry(event.seq).or_insert(now);
            reading.marker.send_replace(event.seq);
        }
    }

    fn disconnected(&self, code: Option<u16>) {
        let mut link = lock(&self.link);
        link.gone = self.span.now();
        link.code = code.unwrap_or(0);
    }
}
