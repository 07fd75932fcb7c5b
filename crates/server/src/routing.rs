//! Performing a router's effects: log, store and peers around `core::path`.
//!
//! The router decides and does no I/O; here every effect becomes a call of a port and its
//! result the router's next input. Calls that answer at once (the embedded store does) never
//! become tasks. A call that stays out longer than its deadline is dropped: the router asks
//! again by itself.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tidings_core::ids::{GatewayId, Micros, Partition, Position};
use tidings_core::in_process::rest;
use tidings_core::path::{Effect, Router};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::dead_letters::DeadLetter;
use tidings_core::ports::directory::Directory;
use tidings_core::ports::log::{Log, LogError};
use tidings_core::ports::peers::{Peers, ToRouter};
use tidings_core::ports::store::{STORE_DEADLINE, Store, StoreResult};
use tidings_core::router::{Config, Counters};
use tidings_core::rows::{CursorRow, EventRow, MemberRows, StateRow};
use tidings_gateway::seldom::Seldom;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use crate::aside::{Aside, Letters};
use crate::waiting::Waiting;

/// How many bytes of records one read of the log gathers at most.
const READ_BYTES_MAX: usize = 1 << 20;

/// How often the router hears the time.
const TICK: Duration = Duration::from_millis(100);

/// Conversations whose cursors are read at once.
const CURSOR_READS_MAX: usize = 32;

/// How many ticks after which it is looked whether the log knows what is durable: the store
/// flushes by itself too, and when no records come nobody would tell.
const SETTLE_TICKS: u32 = 50;

/// How long the log may take to say where it ends before it is asked again, and how long until then.
const END_WITHIN: Duration = Duration::from_secs(1);
const END_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// How long it may take to store and settle what was read; without it more is applied again.
const SETTLE_AT_END_MAX: Duration = Duration::from_secs(1);

/// What routers work with.
#[derive(Clone)]
pub struct Parts {
    /// Where records come from.
    pub log: Arc<dyn Log>,
    /// Where rows go.
    pub store: Arc<dyn Store>,
    /// Whose outbox hears what became an event.
    pub directory: Arc<dyn Directory>,
    /// The way to gateways.
    pub peers: Arc<dyn Peers>,
    /// What is done for members without a session.
    pub waiting: Arc<Waiting>,
    /// Where records go that can't be read.
    pub aside: Arc<Aside>,
    /// Microseconds since 1970.
    pub clock: fn() -> Micros,
    /// The router's bounds.
    pub config: Config,
}

/// Messages of gateways, as a router takes them.
pub trait Requests: Send {
    /// Waits until there is at least one, then moves all into `into`; dropping it loses nothing.
    fn receive<'a>(&'a mut self, into: &'a mut Vec<(GatewayId, ToRouter)>) -> BoxFuture<'a, ()>;
}

/// What a router shows of itself.
#[derive(Default)]
pub struct Gauge {
    counters: std::sync::Mutex<Counters>,
    /// Records committed and not yet stored.
    pub backlog_records: AtomicU64,
    /// The offset routing has come to.
    pub routed: AtomicU64,
    /// The offset behind which everything is stored.
    pub settled: AtomicU64,
}

impl Gauge {
    /// The router's counters, at most one turn old.
    pub fn counters(&self) -> Counters {
        *self
            .counters
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

enum Input {
    EventsStored(u64, bool),
    StateStored(u64, bool),
    StateRead(u64, Option<Vec<Option<StateRow>>>),
    MembersRead(u64, Option<Option<MemberRows>>),
    SinceRead(u64, Option<Vec<EventRow>>),
    EventsRead(u64, Option<Vec<EventRow>>),
    CursorsRead(u64, Option<Vec<CursorRow>>),
    /// What was put, and what to tell of the same members now.
    CursorsStored(Vec<CursorRow>, Vec<CursorRow>),
    CursorsRefused(Vec<CursorRow>),
    /// The dead letter of this position is set aside or given up.
    SetAside(Position),
    Done,
}

/// What a router has asked for and has no answer to.
struct Open {
    tasks: FuturesUnordered<BoxFuture<'static, Input>>,
    letters: Letters,
}

/// Routes one partition until `stop` says so, then settles what is stored.
///
/// # Errors
/// When the log can't be read where it must be: an operator has to look.
pub async fn run(
    partition: Partition,
    parts: &Parts,
    requests: &mut impl Requests,
    gauge: Arc<Gauge>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), LogError> {
    let committed = parts.log.committed(partition).await?;
    let end = parts.log.end(partition);
    let mut router = Router::new(partition, committed, end, parts.config.clone());
    parts.peers.took_over(partition, end);
    let mut open = Open {
        tasks: FuturesUnordered::new(),
        letters: Letters::new(parts.aside.clone()),
    };
    let mut reading: Option<BoxFuture<'static, _>> = None;
    let mut messages = Vec::new();
    // While another router may be at work: messages that wait until it is known where the log ends after
    // they came, and how many of them the question under way is for.
    let (mut held, mut asked) = (VecDeque::new(), 0);
    let mut asking: Option<BoxFuture<'static, Option<Position>>> = None;
    let mut tick = tokio::time::interval_at(next_tick(), TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut ticks: u32 = 0;
    tracing::info!(?committed, ?end, "routing from the committed position");
    loop {
        if reading.is_none() && router.wants_records() {
            let (log, from) = (parts.log.clone(), router.next_position());
            reading = Some(Box::pin(async move {
                log.read(partition, from, READ_BYTES_MAX).await
            }));
        }
        if asking.is_none() && !held.is_empty() {
            asked = held.len();
            asking = Some(end_now(parts.log.clone(), partition));
        }
        // Not biased: under load there are always records, and requests and ticks have their turn too.
        tokio::select! {
            records = async { reading.as_mut().expect("guarded").await }, if reading.is_some() => {
                reading = None;
                let records = records?;
                let _span = tracing::debug_span!("route", records = records.len(), from = router.next_position().offset).entered();
                router.records(records, (parts.clock)());
            }
            () = requests.receive(&mut messages) => {
                if router.is_in_doubt() || !held.is_empty() {
                    held.extend(messages.drain(..));
                    // Whoever asks asks again, and events that were lost are found.
                    held.truncate(parts.config.early_max);
                }
                for (from, message) in messages.drain(..) {
                    router.peer(from, message, (parts.clock)());
                }
            }
            end = async { asking.as_mut().expect("guarded").await }, if asking.is_some() => {
                asking = None;
                if let Some(end) = end {
                    router.log_ends_at(end);
                    for (from, message) in held.drain(..asked) {
                        router.peer(from, message, (parts.clock)());
                    }
                }
            }
            Some(input) = open.tasks.next(), if !open.tasks.is_empty() => apply(&mut router, input, parts, &mut open.letters),
            _ = tick.tick() => {
                router.tick((parts.clock)());
                ticks = ticks.wrapping_add(1);
                if ticks.is_multiple_of(SETTLE_TICKS) {
                    rest();
                    let settled = open.letters.committable(router.settled_position());
                    let again = settle_again(settled, partition, parts);
                    if let Some(input) = now_or_later(again, &mut open.tasks) {
                        apply(&mut router, input, parts, &mut open.letters);
                    }
                }
            }
            _ = stop.changed() => break,
        }
        perform(&mut router, partition, parts, &mut open);
        show(&router, &gauge, parts, partition);
    }
    parts.peers.resigned(partition);
    // What is accepted is in the log. Whoever goes on begins at what is settled: the less is behind it,
    // the less is applied again.
    let leaving = async {
        while !router.leave((parts.clock)()) {
            perform(&mut router, partition, parts, &mut open);
            match open.tasks.next().await {
                Some(input) => apply(&mut router, input, parts, &mut open.letters),
                None => break,
            }
        }
        perform(&mut router, partition, parts, &mut open);
        while let Some(input) = open.tasks.next().await {
            apply(&mut router, input, parts, &mut open.letters);
            start_letters(&mut router, parts, &mut open);
        }
        let settled = open.letters.committable(router.settled_position());
        settle_again(settled, partition, parts).await
    };
    _ = tokio::time::timeout(SETTLE_AT_END_MAX, leaving).await;
    Ok(())
}

/// Where the log ends now, or nothing when it can't say.
fn end_now(log: Arc<dyn Log>, partition: Partition) -> BoxFuture<'static, Option<Position>> {
    Box::pin(async move {
        // Its answer makes `end` cover all that anybody could read before.
        match tokio::time::timeout(END_WITHIN, log.committed(partition)).await {
            Ok(Ok(_)) => Some(log.end(partition)),
            _ => {
                tokio::time::sleep(END_AGAIN_AFTER).await;
                None
            }
        }
    })
}

/// The next tick of all routers here: those that share a thread wake it once.
fn next_tick() -> Instant {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let (first, now) = (*FIRST.get_or_init(Instant::now), Instant::now());
    let gone = (now - first).as_millis() / TICK.as_millis();
    first + TICK * u32::try_from(gone + 1).unwrap_or(u32::MAX)
}

fn show(router: &Router, gauge: &Gauge, parts: &Parts, partition: Partition) {
    *gauge
        .counters
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner()) = router.counters;
    let routed = router.next_position().offset;
    gauge.routed.store(routed, Ordering::Relaxed);
    gauge
        .settled
        .store(router.settled_position().offset, Ordering::Relaxed);
    gauge.backlog_records.store(
        parts
            .log
            .end(partition)
            .offset
            .saturating_sub(router.settled_position().offset),
        Ordering::Relaxed,
    );
}

fn apply(router: &mut Router, input: Input, parts: &Parts, letters: &mut Letters) {
    let now = (parts.clock)();
    match input {
        Input::EventsStored(flight, ok) => router.events_stored(flight, ok, now),
        Input::StateStored(flight, ok) => router.state_stored(flight, ok, now),
        Input::StateRead(load, rows) => router.state_read(load, rows, now),
        Input::MembersRead(load, rows) => router.members_read(load, rows, now),
        Input::SinceRead(load, rows) => router.since_read(load, rows, now),
        Input::EventsRead(load, rows) => router.events_read(load, rows, now),
        Input::CursorsRead(load, rows) => router.cursors_read(load, rows, now),
        Input::CursorsStored(rows, stored) => router.cursors_stored(rows, &stored, now),
        Input::CursorsRefused(rows) => router.cursors_refused(rows, now),
        Input::SetAside(position) => letters.done(position),
        Input::Done => {}
    }
}

/// Performs effects until there are none; what doesn't answer at once becomes a task.
fn perform(router: &mut Router, partition: Partition, parts: &Parts, open: &mut Open) {
    loop {
        start_letters(router, parts, open);
        let effects: Vec<Effect> = router.effects().collect();
        if effects.is_empty() {
            return;
        }
        for effect in effects {
            let call = match effect {
                Effect::Send { to, message } => {
                    parts.peers.to_gateway(partition, to, message);
                    continue;
                }
                Effect::Broadcast(message) => {
                    parts.peers.broadcast(partition, message);
                    continue;
                }
                Effect::FannedOut { row, is_small } => {
                    parts.waiting.told(&row, is_small);
                    continue;
                }
                Effect::DeadLetter {
                    position,
                    appended,
                    conversation,
                    reason,
                    payload,
                } => {
                    let bytes = payload.len();
                    tracing::error!(
                        ?partition,
                        ?position,
                        bytes,
                        reason,
                        "a record can't be read"
                    );
                    let key = (partition, position);
                    let letter = DeadLetter::new(key, appended, conversation, reason, payload);
                    open.letters.take(letter);
                    continue;
                }
                Effect::Settle(position) => {
                    settle(open.letters.committable(position), partition, parts)
                }
                effect => call(effect, partition, parts),
            };
            if let Some(input) = now_or_later(call, &mut open.tasks) {
                apply(router, input, parts, &mut open.letters);
            }
        }
    }
}

/// Begins with the letters that have their turn.
fn start_letters(router: &mut Router, parts: &Parts, open: &mut Open) {
    while let Some(call) = open.letters.start() {
        let call = Box::pin(async move { Input::SetAside(call.await) });
        if let Some(input) = now_or_later(call, &mut open.tasks) {
            apply(router, input, parts, &mut open.letters);
        }
    }
}

fn now_or_later(
    mut call: BoxFuture<'static, Input>,
    tasks: &mut FuturesUnordered<BoxFuture<'static, Input>>,
) -> Option<Input> {
    match Pin::new(&mut call).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(input) => Some(input),
        Poll::Pending => {
            tasks.push(call);
            None
        }
    }
}

/// The answer, or nothing when it failed or didn't come in time.
async fn within<T>(what: &'static str, call: impl Future<Output = StoreResult<T>>) -> Option<T> {
    static REFUSED: Seldom = Seldom::new();
    static LATE: Seldom = Seldom::new();
    let call = call.instrument(tracing::debug_span!("store", what));
    match tokio::time::timeout(STORE_DEADLINE, call).await {
        Ok(Ok(value)) => Some(value),
        Ok(Err(error)) => {
            if let Some(left_out) = REFUSED.turn() {
                tracing::warn!(%error, what, left_out, "the store refused");
            }
            None
        }
        Err(_) => {
            if let Some(left_out) = LATE.turn() {
                tracing::warn!(what, left_out, "the store did not answer in time");
            }
            None
        }
    }
}

/// Tells the store what may be settled, and the log what is.
fn settle(position: Position, partition: Partition, parts: &Parts) -> BoxFuture<'static, Input> {
    let (store, log) = (parts.store.clone(), parts.log.clone());
    Box::pin(async move {
        if let Some(durable) = within("settle", store.settle(partition, position)).await
            && durable > Position::default()
            && let Err(error) = log.commit(partition, durable).await
        {
            tracing::warn!(%error, "the log's position was not committed; it will be with the next one");
        }
        Input::Done
    })
}

/// [`settle`], if the log doesn't know of this position.
fn settle_again(
    position: Position,
    partition: Partition,
    parts: &Parts,
) -> BoxFuture<'static, Input> {
    let log = parts.log.clone();
    let settle = settle(position, partition, parts);
    Box::pin(async move {
        match log.committed(partition).await {
            Ok(committed) if committed < position => settle.await,
            _ => Input::Done,
        }
    })
}

/// What the store has of the members of these rows.
async fn read_back(store: &dyn Store, rows: &[CursorRow]) -> StoreResult<Vec<CursorRow>> {
    let mut reads = Vec::new();
    for of_one in rows.chunk_by(|a, b| a.conversation == b.conversation) {
        let users = of_one.iter().map(|row| row.user).collect();
        reads.push(store.read_cursors(of_one[0].conversation, users));
    }
    let mut stored = Vec::with_capacity(rows.len());
    let mut reads = futures_util::stream::iter(reads).buffered(CURSOR_READS_MAX);
    while let Some(read) = reads.next().await {
        stored.extend(read?);
    }
    Ok(stored)
}

async fn put_cursors(
    store: &dyn Store,
    partition: Partition,
    rows: &[CursorRow],
    check: bool,
) -> StoreResult<Vec<CursorRow>> {
    store.put_cursors(partition, rows.to_vec()).await?;
    match check {
        true => read_back(store, rows).await,
        false => Ok(rows.to_vec()),
    }
}

fn call(effect: Effect, partition: Partition, parts: &Parts) -> BoxFuture<'static, Input> {
    let store = parts.store.clone();
    match effect {
        Effect::PutEvents { flight, rows } => Box::pin(async move {
            Input::EventsStored(
                flight,
                within("put events", store.put_events(partition, rows))
                    .await
                    .is_some(),
            )
        }),
        Effect::PutState { flight, rows } => Box::pin(async move {
            Input::StateStored(
                flight,
                within("put state", store.put_state(partition, rows))
                    .await
                    .is_some(),
            )
        }),
        Effect::PutCursors { rows, check } => Box::pin(async move {
            let put = put_cursors(&*store, partition, &rows, check);
            match within("put cursors", put).await {
                Some(stored) => Input::CursorsStored(rows, stored),
                None => Input::CursorsRefused(rows),
            }
        }),
        Effect::ReadState {
            load,
            conversation,
            keys,
        } => Box::pin(async move {
            Input::StateRead(
                load,
                within("read state", store.read_state(conversation, keys)).await,
            )
        }),
        Effect::ReadMembers { load, conversation } => Box::pin(async move {
            let found = within("read members", store.read_members(conversation)).await;
            Input::MembersRead(load, found)
        }),
        Effect::ReadSince {
            load,
            conversation,
            from,
        } => Box::pin(async move {
            Input::SinceRead(
                load,
                within("read since", store.read_events_since(conversation, from)).await,
            )
        }),
        Effect::ReadEvents {
            load,
            conversation,
            seqs,
        } => Box::pin(async move {
            let mut found = Vec::with_capacity(seqs.len());
            for seq in seqs {
                match within(
                    "read event",
                    store.read_events(conversation, seq, seq, usize::MAX),
                )
                .await
                {
                    Some(rows) => found.extend(rows),
                    None => return Input::EventsRead(load, None),
                }
            }
            Input::EventsRead(load, Some(found))
        }),
        Effect::ReadCursors {
            load,
            conversation,
            users,
        } => Box::pin(async move {
            Input::CursorsRead(
                load,
                within("read cursors", store.read_cursors(conversation, users)).await,
            )
        }),
        Effect::Relayed {
            conversation,
            version,
        } => {
            let directory = parts.directory.clone();
            Box::pin(async move {
                // Not heard by the directory: the relay sends it again, and it is answered as a duplicate.
                if let Err(error) = directory.outbox_done(conversation, version).await {
                    tracing::warn!(%error, %conversation, version, "the directory's outbox was not told");
                }
                Input::Done
            })
        }
        Effect::Send { .. }
        | Effect::Broadcast(_)
        | Effect::FannedOut { .. }
        | Effect::Settle(_)
        | Effect::DeadLetter { .. } => {
            unreachable!("performed by the caller")
        }
    }
}
