//! What may become of writes and reads that fail.

use bytes::Bytes;

use super::{Scenario, Seen, Subject, Way, calm, how_much, when};
use crate::ids::{ConversationId, Partition, Position, Seq, UserId};
use crate::ports::store::{Store, StoreError, StoreResult};
use crate::record::Kind;
use crate::rows::{CursorRow, EventRow, HeadState, StateKey, StateRow, StateValue};

const P: Partition = Partition(0);
const ALL: usize = usize::MAX;
const USER: UserId = UserId(5);

/// Rows in the write whose answer is lost.
const ROWS: usize = 6;

/// [`a_write_whose_answer_is_lost_is_there_or_not_and_stays`].
pub const ANSWER_LOST: Scenario = Scenario {
    name: "a write whose answer is lost",
    allowed: &["nothing", "a part", "all"],
};

/// [`a_write_held_up_comes_late_or_never`].
pub const HELD_UP: Scenario = Scenario {
    name: "a write that is held up",
    allowed: &["at once", "late", "never"],
};

/// [`an_older_row_never_overwrites_a_newer_one`].
pub const OLDER: Scenario = Scenario {
    name: "an older row that comes last",
    allowed: &["the newer stays"],
};

/// [`what_was_written_is_seen_with_one_node_away`].
pub const ONE_AWAY: Scenario = Scenario {
    name: "a write and a read with one node away",
    allowed: &["all is seen"],
};

fn conversation(run: u64, check: u64) -> ConversationId {
    ConversationId(run.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(check))
}

fn at(offset: u64) -> Position {
    Position { epoch: 1, offset }
}

fn event(conversation: ConversationId, seq: Seq) -> EventRow {
    let ts = |seq: Seq| 1_790_000_000_000_000 + seq * 1_000;
    let mut row = EventRow::empty(conversation, seq, at(seq * 2), ts(seq), ts(seq - 1));
    row.user = USER;
    row.kind = Kind::Text;
    row.body = Bytes::from(format!("text {seq}"));
    row
}

fn events(conversation: ConversationId, seqs: std::ops::RangeInclusive<Seq>) -> Vec<EventRow> {
    seqs.map(|seq| event(conversation, seq)).collect()
}

fn head(conversation: ConversationId, seq: Seq) -> StateRow {
    let ts = 1_790_000_000_000_000 + seq * 1_000;
    let state = HeadState {
        seq,
        ts,
        ..HeadState::default()
    };
    StateRow {
        conversation,
        key: StateKey::Head,
        position: at(seq * 2),
        ts,
        value: StateValue::Head(state),
    }
}

fn cursor(conversation: ConversationId, delivered: Seq, read: Seq) -> CursorRow {
    CursorRow {
        conversation,
        user: USER,
        delivered,
        read,
    }
}

/// Once more until the way is seen to be open again: writes and reads are harmless to repeat.
async fn until_done<T, F: Future<Output = StoreResult<T>>>(
    subject: &dyn Subject<dyn Store>,
    mut call: impl FnMut() -> F,
) -> T {
    loop {
        match call().await {
            Ok(done) => return done,
            Err(StoreError::Unavailable(_)) => subject.pause().await,
            Err(other) => panic!("{other}"),
        }
    }
}

fn fails<T: std::fmt::Debug>(result: StoreResult<T>) {
    assert!(
        matches!(result, Err(StoreError::Unavailable(_))),
        "no answer is no answer: {result:?}"
    );
}

async fn heads(store: &dyn Store, conversation: ConversationId) -> Option<StateRow> {
    let rows = store.read_state(conversation, vec![StateKey::Head]).await;
    rows.expect("the state is read")[0]
}

/// Any rows of a write that was told failed may be there, and a read that fails is told as such,
/// never as nothing found. What is there once stays, and the write may be repeated.
pub async fn a_write_whose_answer_is_lost_is_there_or_not_and_stays(
    subject: &dyn Subject<dyn Store>,
    run: u64,
) -> Seen {
    let (here, there) = (subject.here(), subject.there());
    let c = conversation(run, 1);
    here.put_events(P, events(c, 1..=1)).await.expect("put");
    let lost = events(c, 2..=1 + ROWS as Seq);
    subject.set(Way::AnswersLost);
    fails(here.put_events(P, lost.clone()).await);
    fails(here.read_events(c, 1, 1, ALL).await);
    fails(here.read_state(c, vec![StateKey::Head]).await);
    fails(here.read_cursors(c, vec![USER]).await);
    subject.set(Way::Open);
    let read = || there.read_events(c, 1, Seq::MAX, ALL);
    let first = read().await.expect("read");
    assert_eq!(first[0], event(c, 1), "what was told is there");
    calm(subject).await;
    let later = read().await.expect("read");
    for row in first.iter().chain(&later) {
        assert_eq!(*row, event(c, row.seq), "a row is as it was written");
        assert!(later.contains(row), "a row that was read is gone");
    }
    until_done(subject, || here.put_events(P, lost.clone())).await;
    let all = read().await.expect("read");
    assert_eq!(all, events(c, 1..=1 + ROWS as Seq), "each row once");
    how_much(later.len() - 1, ROWS)
}

/// The caller is told that it failed, and then it is there after all.
pub async fn a_write_held_up_comes_late_or_never(
    subject: &dyn Subject<dyn Store>,
    run: u64,
) -> Seen {
    let (here, there) = (subject.here(), subject.there());
    let c = conversation(run, 2);
    subject.set(Way::Held);
    fails(here.put_state(P, vec![head(c, 3)]).await);
    let at_once = heads(there, c).await;
    subject.set(Way::Open);
    calm(subject).await;
    let later = heads(there, c).await;
    assert!(at_once.is_none() || at_once == later, "a row is gone");
    assert!(later.is_none() || later == Some(head(c, 3)), "{later:?}");
    when(at_once.is_some(), later.is_some())
}

/// A zombie's rows reach the store when its successor's are there: the later position stays, and
/// cursors only grow.
pub async fn an_older_row_never_overwrites_a_newer_one(
    subject: &dyn Subject<dyn Store>,
    run: u64,
) -> Seen {
    let (here, there) = (subject.here(), subject.there());
    let c = conversation(run, 3);
    here.put_state(P, vec![head(c, 2)]).await.expect("put");
    here.put_cursors(P, vec![cursor(c, 2, 1)])
        .await
        .expect("put");
    subject.set(Way::Held);
    fails(here.put_state(P, vec![head(c, 5)]).await);
    fails(here.put_cursors(P, vec![cursor(c, 5, 4)]).await);
    there.put_state(P, vec![head(c, 9)]).await.expect("put");
    there
        .put_cursors(P, vec![cursor(c, 9, 3)])
        .await
        .expect("put");
    subject.set(Way::Open);
    for _ in 0..12 {
        assert_eq!(heads(there, c).await, Some(head(c, 9)));
        let cursors = there.read_cursors(c, vec![USER]).await.expect("read");
        // The one that was held up has read further, which counts if it came.
        assert!(
            cursors == [cursor(c, 9, 3)] || cursors == [cursor(c, 9, 4)],
            "{cursors:?}"
        );
        subject.pause().await;
    }
    // And so when it is written once more by the one who doesn't know.
    until_done(subject, || here.put_state(P, vec![head(c, 5)])).await;
    until_done(subject, || here.put_cursors(P, vec![cursor(c, 5, 4)])).await;
    assert_eq!(heads(there, c).await, Some(head(c, 9)));
    let cursors = there.read_cursors(c, vec![USER]).await.expect("read");
    assert_eq!(cursors, [cursor(c, 9, 4)]);
    "the newer stays"
}

/// What one server was told to be written the other reads, while one node doesn't answer one of
/// them.
pub async fn what_was_written_is_seen_with_one_node_away(
    subject: &dyn Subject<dyn Store>,
    run: u64,
) -> Seen {
    let (here, there) = (subject.here(), subject.there());
    subject.set(Way::OneNodeAway);
    for n in 0..8 {
        let c = conversation(run, 10 + n);
        let (writer, reader) = match n % 2 {
            0 => (here, there),
            _ => (there, here),
        };
        for seq in 1..=3 {
            until_done(subject, || writer.put_events(P, events(c, seq..=seq))).await;
            until_done(subject, || writer.put_state(P, vec![head(c, seq)])).await;
            let found = until_done(subject, || reader.read_events(c, 1, 9, ALL)).await;
            assert_eq!(found, events(c, 1..=seq));
            let state = until_done(subject, || reader.read_state(c, vec![StateKey::Head])).await;
            assert_eq!(state, [Some(head(c, seq))]);
        }
    }
    subject.set(Way::Open);
    "all is seen"
}
