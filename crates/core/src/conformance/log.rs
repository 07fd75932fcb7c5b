//! What every [`Log`] promises, checked over the trait.
//!
//! [`all`] runs everything; each check makes conversations of its own from `run`, so a log
//! that already holds records will do, but nobody else may append to it meanwhile. A broken promise is a panic.
//! Nothing here is bounded in time: the caller puts a deadline around it.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::ids::{ConversationId, Partition, Position, SLOTS};
use crate::ports::log::{Append, Log, LogError};
use crate::record::Committed;

/// What is asked for in one read: small, so that a test's records need several.
const READ_BYTES: usize = 400;

/// Runs every check of this module. `run` differs from run to run on a log that lasts.
pub async fn all(log: &dyn Log, run: u64) {
    partitions_are_stable(log);
    records_keep_their_order(log, run).await;
    every_position_can_be_read_from(log, run).await;
    a_read_waits_for_the_next_record(log, run).await;
    a_position_outside_the_log_is_refused(log).await;
    a_commit_is_remembered_and_never_lowered(log, run).await;
    concurrent_callers_keep_their_orders(log, run).await;
    reports_say_what_was_appended(log, run, 200, 2_000).await;
}

/// An append's result as a future; the report may come from any thread.
pub fn append(log: &dyn Log, records: Vec<Append>) -> Appending {
    let shared = Arc::new(Mutex::new(Shared::default()));
    let reported = Arc::clone(&shared);
    log.append(
        records,
        Box::new(move |result| {
            let mut shared = reported.lock().unwrap_or_else(PoisonError::into_inner);
            assert!(shared.result.is_none(), "a second report for one call");
            shared.result = Some(result);
            if let Some(waker) = shared.waker.take() {
                waker.wake();
            }
        }),
    );
    Appending(shared)
}

/// What [`append`] gives.
pub struct Appending(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    result: Option<Result<(), LogError>>,
    waker: Option<Waker>,
}

impl Future for Appending {
    type Output = Result<(), LogError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match shared.result.clone() {
            Some(result) => Poll::Ready(result),
            None => {
                shared.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// A conversation of `partition`.
pub fn conversation_in(log: &dyn Log, partition: Partition, run: u64) -> ConversationId {
    (run << 20..)
        .map(ConversationId)
        .find(|conversation| log.partition_of(*conversation) == partition)
        .expect("each partition has slots")
}

/// A record whose payload tells `text` and is padded to at least `len` bytes.
pub fn record(conversation: ConversationId, text: &str, len: usize) -> Append {
    let mut payload = text.as_bytes().to_vec();
    payload.resize(len.max(payload.len()), b'.');
    Append {
        conversation,
        payload: Bytes::from(payload),
    }
}

/// Reads on from a position until there are `count` records or more.
pub async fn read_on(
    log: &dyn Log,
    partition: Partition,
    mut from: Position,
    count: usize,
) -> Vec<Committed> {
    let mut found: Vec<Committed> = Vec::new();
    while found.len() < count {
        let more = log
            .read(partition, from, READ_BYTES)
            .await
            .expect("what was reported can be read");
        assert!(!more.is_empty(), "a read gives at least one record");
        for record in more {
            assert!(
                record.position >= from,
                "asked from {from:?}, got {:?}",
                record.position
            );
            from = record.position.next();
            found.push(record);
        }
    }
    found
}

fn texts(records: &[Committed]) -> Vec<Bytes> {
    records
        .iter()
        .map(|record| record.payload.clone())
        .collect()
}

fn partitions(log: &dyn Log) -> impl Iterator<Item = Partition> + use<> {
    (0..log.partitions()).map(Partition)
}

/// A conversation's partition is its slot's, and exists.
pub fn partitions_are_stable(log: &dyn Log) {
    let count = log.partitions();
    assert!((1..=SLOTS).contains(&count));
    for id in 0..1000 {
        let conversation = ConversationId(id * 0x1_0001);
        let partition = log.partition_of(conversation);
        assert_eq!(partition, Partition(conversation.slot() % count));
        assert_eq!(partition, log.partition_of(conversation));
    }
    assert_eq!(log.partitions(), count);
}

/// Records come back in the order and with the bytes appended, to two readers alike.
pub async fn records_keep_their_order(log: &dyn Log, run: u64) {
    for partition in partitions(log) {
        let from = log.end(partition);
        let conversation = conversation_in(log, partition, run);
        let mut sent = Vec::new();
        let mut pending = Vec::new();
        for call in 0..20 {
            let records: Vec<Append> = (0..1 + call % 4)
                .map(|i| record(conversation, &format!("{run} order {call} {i}"), call * 7))
                .collect();
            sent.extend(records.iter().map(|record| record.payload.clone()));
            pending.push(append(log, records));
        }
        for report in pending {
            report.await.expect("the log takes records");
        }
        let once = read_on(log, partition, from, sent.len()).await;
        let again = read_on(log, partition, from, sent.len()).await;
        assert_eq!(texts(&once), sent);
        assert_eq!(once, again, "two readers see the same");
        assert!(
            once.windows(2)
                .all(|pair| pair[0].position < pair[1].position)
        );
        assert!(
            once.iter()
                .all(|record| record.position.epoch == from.epoch && record.appended > 0)
        );
        assert!(log.end(partition) > once[once.len() - 1].position);
    }
}

/// Reading begins at whichever position is asked for, and `bytes_max` bounds it but for one record.
pub async fn every_position_can_be_read_from(log: &dyn Log, run: u64) {
    for partition in partitions(log) {
        let from = log.end(partition);
        let conversation = conversation_in(log, partition, run);
        for call in 0..10 {
            let records = (0..3)
                .map(|i| record(conversation, &format!("{run} from {call} {i}"), 100))
                .collect();
            append(log, records).await.expect("the log takes records");
        }
        let all = read_on(log, partition, from, 30).await;
        for (i, expected) in all.iter().enumerate() {
            let found = read_on(log, partition, expected.position, all.len() - i).await;
            assert_eq!(found, all[i..]);
        }
        let one = log.read(partition, from, 1).await.expect("it can be read");
        assert_eq!(
            one,
            all[..1],
            "a record larger than asked for is given alone"
        );
        let some = log
            .read(partition, from, 250)
            .await
            .expect("it can be read");
        assert!(
            some.len() <= 3,
            "250 bytes asked for, {} records of 100 given",
            some.len()
        );
    }
}

/// A read at the end waits, may be dropped, and gets the next record.
pub async fn a_read_waits_for_the_next_record(log: &dyn Log, run: u64) {
    for partition in partitions(log) {
        let end = log.end(partition);
        let conversation = conversation_in(log, partition, run);
        let mut dropped = log.read(partition, end, READ_BYTES);
        let mut reading = log.read(partition, end, READ_BYTES);
        for read in [&mut dropped, &mut reading] {
            let early = poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await;
            assert!(early.is_pending(), "nothing was appended: {early:?}");
        }
        drop(dropped);
        let next = record(conversation, &format!("{run} wait"), 0);
        let payload = next.payload.clone();
        let report = append(log, vec![next]);
        let found = reading.await.expect("it can be read");
        assert_eq!(texts(&found), [payload]);
        report.await.expect("what could be read was appended");
    }
}

/// A position that isn't there gives an error that tells what is.
pub async fn a_position_outside_the_log_is_refused(log: &dyn Log) {
    for partition in partitions(log) {
        let end = log.end(partition);
        let beyond = Position {
            offset: end.offset + 1_000_000,
            ..end
        };
        let other = Position {
            epoch: end.epoch + 1,
            ..end
        };
        for asked in [beyond, other] {
            match log.read(partition, asked, READ_BYTES).await {
                Err(LogError::Gone { asked: told, .. }) => assert_eq!(told, asked),
                other => panic!("asked for {asked:?} and got {other:?}"),
            }
        }
    }
}

/// The committed position is the highest given, and what lies behind it stays readable.
pub async fn a_commit_is_remembered_and_never_lowered(log: &dyn Log, run: u64) {
    for partition in partitions(log) {
        let from = log.end(partition);
        let conversation = conversation_in(log, partition, run);
        let records = (0..5)
            .map(|i| record(conversation, &format!("{run} commit {i}"), 10))
            .collect();
        append(log, records).await.expect("the log takes records");
        let all = read_on(log, partition, from, 5).await;
        let before = log.committed(partition).await.expect("it is known");
        assert!(before <= from, "{before:?} was never committed");
        let third = all[2].position;
        log.commit(partition, third).await.expect("it is taken");
        assert_eq!(log.committed(partition).await, Ok(third));
        log.commit(partition, from)
            .await
            .expect("a lower one is no error");
        assert_eq!(log.committed(partition).await, Ok(third));
        assert_eq!(read_on(log, partition, third, 3).await, all[2..]);
        let end = all[4].position.next();
        log.commit(partition, end).await.expect("it is taken");
        assert_eq!(log.committed(partition).await, Ok(end));
    }
}

/// Each thread's calls keep their order among those of others, and each call stays together.
pub async fn concurrent_callers_keep_their_orders(log: &dyn Log, run: u64) {
    const CALLERS: u64 = 4;
    const CALLS: u64 = 50;
    for partition in partitions(log) {
        let from = log.end(partition);
        let pending: Vec<Appending> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..CALLERS)
                .map(|caller| {
                    scope.spawn(move || {
                        let conversation = conversation_in(log, partition, run + caller);
                        let call = |call: u64| {
                            let text = |i: u64| format!("{caller} {:04}", call * 2 + i);
                            append(
                                log,
                                (0..2).map(|i| record(conversation, &text(i), 0)).collect(),
                            )
                        };
                        (0..CALLS).map(call).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().expect("it doesn't panic"))
                .collect()
        });
        for report in pending {
            report.await.expect("the log takes records");
        }
        let found = read_on(log, partition, from, (CALLERS * CALLS * 2) as usize).await;
        let mut of_caller: BTreeMap<u8, Vec<Bytes>> = BTreeMap::new();
        for payload in texts(&found) {
            of_caller.entry(payload[0]).or_default().push(payload);
        }
        assert_eq!(of_caller.len() as u64, CALLERS);
        for (caller, payloads) in of_caller {
            assert_eq!(payloads.len() as u64, CALLS * 2);
            assert!(payloads.is_sorted(), "the order of caller {caller}");
        }
    }
}

/// Many calls at once, perhaps more than the queue takes: `Ok` means all of a call's records,
/// `Unknown` all or a prefix of them, any other error none.
///
/// `calls` and `bytes` (of each record) let an implementation with a small queue be provoked.
pub async fn reports_say_what_was_appended(log: &dyn Log, run: u64, calls: usize, bytes: usize) {
    for partition in partitions(log) {
        let from = log.end(partition);
        let conversation = conversation_in(log, partition, run);
        let payload =
            |call: usize, i: usize| record(conversation, &format!("{call:06} {i}"), bytes);
        let pending: Vec<Appending> = (0..calls)
            .map(|call| append(log, (0..3).map(|i| payload(call, i)).collect()))
            .collect();
        let mut results = Vec::with_capacity(calls);
        for report in pending {
            results.push(report.await);
        }
        // Marks the end of what has to be read; a log that was full may take a few tries.
        let last = Bytes::from_static(b"the last");
        for tries in 1.. {
            match append(
                log,
                vec![Append {
                    conversation,
                    payload: last.clone(),
                }],
            )
            .await
            {
                Ok(()) => break,
                Err(error) => assert!(tries < 1000, "the log doesn't come back: {error}"),
            }
        }
        let mut found: Vec<Bytes> = Vec::new();
        let mut next = from;
        while found.last() != Some(&last) {
            let record = read_on(log, partition, next, 1).await;
            next = record[record.len() - 1].position.next();
            found.extend(texts(&record));
        }
        found.pop();
        let mut found = found.into_iter().peekable();
        for (call, result) in results.iter().enumerate() {
            let count = (0..3)
                .take_while(|i| found.next_if(|f| *f == payload(call, *i).payload).is_some())
                .count();
            match result {
                Ok(()) => assert_eq!(count, 3, "call {call}"),
                Err(LogError::Unknown(_)) => {}
                Err(error) => assert_eq!(count, 0, "call {call}: {error}"),
            }
        }
        assert_eq!(
            found.next(),
            None,
            "a record that was never appended, or out of order"
        );
    }
}
