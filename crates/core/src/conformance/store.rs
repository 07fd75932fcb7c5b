//! What every [`Store`] promises, checked over the trait.
//!
//! [`all`] runs everything; each check makes conversations of its own from `run`, so a store that
//! holds other rows will do. A broken promise is a panic. Nothing here is bounded in time: the
//! caller puts a deadline around it.

use bytes::Bytes;

use crate::ids::{ConversationId, MessageKey, Partition, Position, SenderId, Seq, UserId};
use crate::ports::store::Store;
use crate::record::{ConversationKind, Encoding, Kind, Role};
use crate::rows::{
    Before, CursorRow, EventRow, GrantState, HeadState, MemberChange, MemberRows, MembersBody,
    SenderState, StateKey, StateRow, StateValue,
};

const P: Partition = Partition(0);

/// More than any page here holds.
const ALL: usize = usize::MAX;

/// Runs every check of this module. `run` differs from run to run on a store that lasts.
pub async fn all(store: &dyn Store, run: u64) {
    events_of_every_form_come_back_as_they_were_put(store, run).await;
    an_event_written_twice_is_one_row(store, run).await;
    a_range_gives_what_exists_in_it(store, run).await;
    a_page_ends_when_its_bytes_are_full(store, run).await;
    a_long_conversation_is_read_across_its_buckets(store, run).await;
    events_since_a_position_are_exactly_those(store, run).await;
    the_state_of_the_later_position_stays(store, run).await;
    state_comes_back_in_the_order_asked(store, run).await;
    cursors_only_grow(store, run).await;
    members_rows_are_all_or_none(store, run).await;
    what_was_never_put_is_not_there(store, run).await;
    conversations_dont_mix(store, run).await;
    a_settled_position_is_at_most_the_one_given(store, run).await;
}

/// An id that no other check and no other run uses.
fn conversation(run: u64, check: u64) -> ConversationId {
    ConversationId(run.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(check))
}

fn at(offset: u64) -> Position {
    Position { epoch: 1, offset }
}

/// The time of a seq.
fn ts(seq: Seq) -> u64 {
    1_790_000_000_000_000 + seq * 250
}

/// A text event at the position of ten times its seq.
fn event(conversation: ConversationId, seq: Seq) -> EventRow {
    EventRow {
        conversation,
        seq,
        position: at(seq * 10),
        ts: ts(seq),
        ts_before: if seq == 1 { 0 } else { ts(seq - 1) },
        user: UserId(70 + seq % 3),
        sender: SenderId(0xabc0 + seq % 3),
        grant: 1,
        counter: seq / 3 + 1,
        id: MessageKey(seq.wrapping_mul(0xd6e8_feb8_6659_fd93)),
        before: if seq > 3 {
            Before::Seq(seq - 3)
        } else {
            Before::Nothing
        },
        kind: Kind::Text,
        encoding: Encoding::Identity,
        body: Bytes::from(format!("message {seq} of a conversation")),
        members: None,
    }
}

fn events(conversation: ConversationId, seqs: impl IntoIterator<Item = Seq>) -> Vec<EventRow> {
    seqs.into_iter()
        .map(|seq| event(conversation, seq))
        .collect()
}

async fn put(store: &dyn Store, rows: &[EventRow]) {
    store
        .put_events(P, rows.to_vec())
        .await
        .expect("the events are put");
}

async fn read(
    store: &dyn Store,
    conversation: ConversationId,
    from: Seq,
    to: Seq,
) -> Vec<EventRow> {
    store
        .read_events(conversation, from, to, ALL)
        .await
        .expect("the events are read")
}

async fn state(store: &dyn Store, conversation: ConversationId, key: StateKey) -> Option<StateRow> {
    let rows = store
        .read_state(conversation, vec![key])
        .await
        .expect("the state is read");
    assert_eq!(rows.len(), 1, "one answer for each key asked");
    rows[0]
}

/// Bodies of all kinds and encodings, empty and large; every form of `before`; membership events.
pub async fn events_of_every_form_come_back_as_they_were_put(store: &dyn Store, run: u64) {
    let c = conversation(run, 1);
    let mut rows = Vec::new();
    for kind in [Kind::Text, Kind::Json, Kind::Empty] {
        for encoding in [Encoding::Identity, Encoding::Zstd] {
            let bodies = [
                Bytes::new(),
                Bytes::from_static(&[0, 0xff, b'x']),
                vec![7; 20_000].into(),
            ];
            for body in bodies {
                let seq = rows.len() as Seq + 1;
                rows.push(EventRow {
                    kind,
                    encoding,
                    body,
                    ..event(c, seq)
                });
            }
        }
    }
    let earlier = SenderState {
        grant: 3,
        counter: 9,
        id: MessageKey(u64::MAX),
        seq: 5,
        ts: ts(5),
    };
    rows[7].before = Before::Row(earlier);
    rows[8].before = Before::Nothing;
    let seq = rows.len() as Seq + 1;
    rows.push(members_event(c, seq, vec![]));
    rows.push(members_event(
        c,
        seq + 1,
        vec![GrantState::default(), ended_grant()],
    ));
    rows.push(members_event(c, seq + 2, vec![ended_grant(); 1000]));
    put(store, &rows).await;
    assert_eq!(read(store, c, 1, 100).await, rows);
}

fn ended_grant() -> GrantState {
    GrantState {
        grant: 4,
        role: Role::Admin,
        visible_from: 2,
        visible_to: 17,
    }
}

fn members_event(c: ConversationId, seq: Seq, before: Vec<GrantState>) -> EventRow {
    let change = |(i, before)| MemberChange {
        user: UserId(70 + i as u64),
        role: Role::Reader,
        before,
    };
    let members = MembersBody {
        version: seq * 2,
        kind: ConversationKind::Channel,
        title: "Größe, 日本".into(),
        changes: before.into_iter().enumerate().map(change).collect(),
    };
    EventRow {
        user: UserId(70),
        sender: SenderId(0),
        grant: 0,
        counter: 0,
        id: MessageKey(0),
        before: Before::Nothing,
        kind: Kind::Members,
        body: Bytes::new(),
        members: Some(Box::new(members)),
        ..event(c, seq)
    }
}

/// A router that takes over writes all again from the committed position.
pub async fn an_event_written_twice_is_one_row(store: &dyn Store, run: u64) {
    let c = conversation(run, 2);
    let rows = events(c, 1..=20);
    put(store, &rows).await;
    put(store, &rows[5..15]).await;
    let backwards: Vec<EventRow> = rows.iter().rev().cloned().collect();
    put(store, &backwards).await;
    assert_eq!(read(store, c, 1, 20).await, rows);
}

/// Reads don't hide that a row is missing, and don't invent one.
pub async fn a_range_gives_what_exists_in_it(store: &dyn Store, run: u64) {
    let c = conversation(run, 3);
    put(store, &events(c, (1..=30).filter(|seq| *seq != 12))).await;
    assert_eq!(read(store, c, 10, 14).await, events(c, [10, 11, 13, 14]));
    assert_eq!(read(store, c, 30, 30).await, events(c, [30]));
    assert_eq!(read(store, c, 29, Seq::MAX).await, events(c, [29, 30]));
    assert_eq!(read(store, c, 0, 2).await, events(c, [1, 2]));
    for (from, to) in [(12, 12), (31, 90), (9, 8)] {
        assert_eq!(read(store, c, from, to).await, [], "{from}..={to}");
    }
}

/// Pages follow each other without a gap, whatever their size.
pub async fn a_page_ends_when_its_bytes_are_full(store: &dyn Store, run: u64) {
    let c = conversation(run, 4);
    let rows: Vec<EventRow> = (1..=40)
        .map(|seq| EventRow {
            body: vec![b'x'; 100].into(),
            ..event(c, seq)
        })
        .collect();
    put(store, &rows).await;
    for bytes_max in [0, 1, 350, 100_000] {
        let mut all = Vec::new();
        while (all.len() as Seq) < 40 {
            let from = all.len() as Seq + 1;
            let page = store
                .read_events(c, from, 40, bytes_max)
                .await
                .expect("the page is read");
            assert!(
                !page.is_empty(),
                "a page of {bytes_max} bytes holds at least the first event"
            );
            let bytes: usize = page.iter().map(|row| row.body.len()).sum();
            assert!(
                bytes <= bytes_max + 200,
                "{bytes} bytes where {bytes_max} were asked for"
            );
            all.extend(page);
        }
        assert_eq!(all, rows, "pages of {bytes_max} bytes");
    }
}

/// Stores that split a conversation do it each 5,000 seqs (design.md, section 4).
pub async fn a_long_conversation_is_read_across_its_buckets(store: &dyn Store, run: u64) {
    let c = conversation(run, 5);
    for start in (1..=10_100).step_by(500) {
        put(store, &events(c, start..(start + 500).min(10_101))).await;
    }
    for (from, to) in [
        (4_990, 5_010),
        (4_999, 4_999),
        (5_000, 5_000),
        (9_999, 10_001),
    ] {
        assert_eq!(read(store, c, from, to).await, events(c, from..=to));
    }
    let seqs: Vec<Seq> = read(store, c, 1, 10_100)
        .await
        .iter()
        .map(|row| row.seq)
        .collect();
    assert_eq!(seqs, (1..=10_100).collect::<Vec<_>>());
    let since = store
        .read_events_since(c, at(49_980))
        .await
        .expect("the events are read");
    assert_eq!(since.len(), 10_100 - 4_998 + 1);
    assert_eq!((since[0].seq, since[since.len() - 1].seq), (4_998, 10_100));
}

/// What a cold row of state is undone with.
pub async fn events_since_a_position_are_exactly_those(store: &dyn Store, run: u64) {
    let c = conversation(run, 6);
    let mut rows = events(c, 1..=50);
    // From 41 on the log is another one, whose offsets begin anew.
    for row in &mut rows[40..] {
        row.position = Position {
            epoch: 2,
            offset: row.seq,
        };
    }
    put(store, &rows).await;
    let later = Position {
        epoch: 2,
        offset: 45,
    };
    for (from, first) in [
        (at(0), 1),
        (at(300), 30),
        (at(301), 31),
        (at(9_999), 41),
        (later, 45),
    ] {
        let found = store
            .read_events_since(c, from)
            .await
            .expect("the events are read");
        assert_eq!(found, rows[first - 1..], "since {from:?}");
    }
    let behind = Position {
        epoch: 2,
        offset: 51,
    };
    assert_eq!(
        store
            .read_events_since(c, behind)
            .await
            .expect("the events are read"),
        []
    );
}

fn head_row(c: ConversationId, position: Position, seq: Seq) -> StateRow {
    let head = HeadState {
        seq,
        ts: ts(seq),
        version: 7,
        kind: ConversationKind::Group,
        members: 3,
    };
    StateRow {
        conversation: c,
        key: StateKey::Head,
        position,
        ts: ts(seq),
        value: StateValue::Head(head),
    }
}

fn sender_row(c: ConversationId, user: UserId, sender: SenderId, seq: Seq) -> StateRow {
    let state = SenderState {
        grant: 1,
        counter: seq,
        id: MessageKey(seq << 40),
        seq,
        ts: ts(seq),
    };
    let key = StateKey::Sender(user, sender);
    StateRow {
        conversation: c,
        key,
        position: at(seq * 10),
        ts: ts(seq),
        value: StateValue::Sender(state),
    }
}

fn grant_row(c: ConversationId, user: UserId, seq: Seq) -> StateRow {
    let grant = GrantState {
        grant: seq,
        role: Role::Member,
        visible_from: 1,
        visible_to: 0,
    };
    let key = StateKey::Grant(user);
    StateRow {
        conversation: c,
        key,
        position: at(seq * 10),
        ts: ts(seq),
        value: StateValue::Grant(grant),
    }
}

/// In whatever order they come, in one call or several: a zombie's late write changes nothing.
pub async fn the_state_of_the_later_position_stays(store: &dyn Store, run: u64) {
    let newest = Position {
        epoch: 2,
        offset: 1,
    };
    let rows = |c| {
        [
            head_row(c, at(10), 1),
            head_row(c, at(90), 9),
            head_row(c, newest, 10),
        ]
    };
    let orders = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    for (i, order) in orders.into_iter().enumerate() {
        let c = conversation(run, 100 + i as u64);
        let mut latest = Position::default();
        for which in order {
            let row = rows(c)[which];
            store
                .put_state(P, vec![row])
                .await
                .expect("the state is put");
            latest = latest.max(row.position);
            let found = state(store, c, StateKey::Head)
                .await
                .expect("a row was put");
            assert_eq!(found.position, latest, "in the order {order:?}");
        }
        let c = conversation(run, 110 + i as u64);
        let batch = order.map(|which| rows(c)[which]);
        store
            .put_state(P, batch.to_vec())
            .await
            .expect("the state is put");
        assert_eq!(
            state(store, c, StateKey::Head).await,
            Some(rows(c)[2]),
            "together as {order:?}"
        );
    }
}

/// Each kind of row, and gaps where there is none.
pub async fn state_comes_back_in_the_order_asked(store: &dyn Store, run: u64) {
    let c = conversation(run, 7);
    let (a, b) = (UserId(1), UserId(u64::MAX));
    let (x, y) = (SenderId(5), SenderId(u64::MAX - 1));
    let rows = [
        head_row(c, at(80), 8),
        grant_row(c, a, 3),
        sender_row(c, a, x, 6),
        sender_row(c, b, x, 7),
    ];
    store
        .put_state(P, rows.to_vec())
        .await
        .expect("the state is put");
    let keys = vec![
        StateKey::Sender(b, x),
        StateKey::Grant(b),
        StateKey::Sender(a, x),
        StateKey::Head,
        StateKey::Sender(a, y),
        StateKey::Grant(a),
    ];
    let found = store.read_state(c, keys).await.expect("the state is read");
    assert_eq!(
        found,
        [
            Some(rows[3]),
            None,
            Some(rows[2]),
            Some(rows[0]),
            None,
            Some(rows[1])
        ]
    );
}

/// Each number by itself, whatever comes late.
pub async fn cursors_only_grow(store: &dyn Store, run: u64) {
    let c = conversation(run, 8);
    let user = UserId(4);
    let cursor = |delivered, read| CursorRow {
        conversation: c,
        user,
        delivered,
        read,
    };
    let steps = [
        (cursor(10, 4), cursor(10, 4)),
        (cursor(8, 6), cursor(10, 6)),
        (cursor(12, 0), cursor(12, 6)),
        (cursor(0, 0), cursor(12, 6)),
    ];
    for (given, expected) in steps {
        store
            .put_cursors(P, vec![given])
            .await
            .expect("the cursor is put");
        let found = store
            .read_cursors(c, vec![user])
            .await
            .expect("the cursor is read");
        assert_eq!(found, [expected], "after {given:?}");
    }
    let found = store
        .read_cursors(c, vec![UserId(5), user])
        .await
        .expect("the cursors are read");
    assert_eq!(
        found,
        [cursor(12, 6)],
        "a user without a cursor is left out"
    );
}

/// What is read of all members together is what is read of each, and never a part of it.
pub async fn members_rows_are_all_or_none(store: &dyn Store, run: u64) {
    let (c, next) = (conversation(run, 14), conversation(run, 17));
    let row = |conversation, key, value, offset| StateRow {
        conversation,
        key,
        position: at(offset),
        ts: ts(offset),
        value,
    };
    let grant = |conversation, user: u64| {
        let state = GrantState {
            role: Role::Member,
            grant: user,
            ..GrantState::default()
        };
        let key = StateKey::Grant(UserId(user));
        row(conversation, key, StateValue::Grant(state), 9)
    };
    let head = HeadState {
        seq: 3,
        ..HeadState::default()
    };
    let mut state = vec![row(c, StateKey::Head, StateValue::Head(head), 9)];
    // Ids of all sizes, as they are the names of rows.
    state.extend([1, 2, 0xff, 0x100, u64::MAX / 2].map(|user| grant(c, user)));
    let sender = StateKey::Sender(UserId(1), SenderId(1));
    let others = [
        row(c, sender, StateValue::Sender(SenderState::default()), 9),
        grant(next, 7),
    ];
    let cursor = |conversation, user, delivered| CursorRow {
        conversation,
        user: UserId(user),
        delivered,
        read: 1,
    };
    // Somebody who has left may have one, too.
    let cursors = vec![cursor(c, 2, 3), cursor(c, 5, 2)];
    let other = cursor(next, 7, 1);
    let all = state.iter().chain(&others).copied().collect();
    store.put_state(P, all).await.expect("put");
    let all = cursors.iter().chain([&other]).copied().collect();
    store.put_cursors(P, all).await.expect("put");

    let most = store.members_together();
    let found = store.read_members(c).await.expect("read");
    assert_eq!(found.is_some(), most >= 5);
    let Some(mut found) = found else { return };
    found.state.sort_by_key(|row| row.key);
    found.cursors.sort_by_key(|row| row.user);
    assert_eq!((found.state, found.cursors), (state, cursors));

    let nobody = conversation(run, 15);
    let found = store.read_members(nobody).await.expect("read");
    assert_eq!(found, Some(MemberRows::default()));

    let many = conversation(run, 16);
    let rows = (1..=most as u64).map(|user| grant(many, user)).collect();
    store.put_state(P, rows).await.expect("put");
    let found = store.read_members(many).await.expect("read");
    assert_eq!(found.map(|found| found.state.len()), Some(most));
    let one_more = vec![
        row(many, StateKey::Head, StateValue::Head(head), 9),
        grant(many, most as u64 + 1),
    ];
    store.put_state(P, one_more).await.expect("put");
    assert_eq!(store.read_members(many).await.expect("read"), None);
}

/// No row is not an error.
pub async fn what_was_never_put_is_not_there(store: &dyn Store, run: u64) {
    let c = conversation(run, 9);
    let keys = [
        StateKey::Head,
        StateKey::Grant(UserId(1)),
        StateKey::Sender(UserId(1), SenderId(1)),
    ];
    let found = store
        .read_state(c, keys.to_vec())
        .await
        .expect("the state is read");
    assert_eq!(found, [None, None, None]);
    assert_eq!(read(store, c, 1, Seq::MAX).await, []);
    assert_eq!(
        store
            .read_events_since(c, at(0))
            .await
            .expect("the events are read"),
        []
    );
    assert_eq!(
        store
            .read_cursors(c, vec![UserId(1)])
            .await
            .expect("the cursors are read"),
        []
    );
}

/// Rows of several conversations in one call, with the same seqs, users and senders.
pub async fn conversations_dont_mix(store: &dyn Store, run: u64) {
    let all = [20, 21, 22, 23].map(|check| conversation(run, check));
    let user = UserId(6);
    let mixed: Vec<EventRow> = (1..=9).flat_map(|seq| all.map(|c| event(c, seq))).collect();
    put(store, &mixed).await;
    let rows = all.map(|c| sender_row(c, user, SenderId(2), 1 + c.0 % 7));
    store
        .put_state(P, rows.to_vec())
        .await
        .expect("the state is put");
    for (c, row) in all.into_iter().zip(rows) {
        assert_eq!(read(store, c, 1, 100).await, events(c, 1..=9));
        assert_eq!(
            state(store, c, StateKey::Sender(user, SenderId(2))).await,
            Some(row)
        );
        assert_eq!(state(store, c, StateKey::Head).await, None);
    }
}

/// And never goes back.
pub async fn a_settled_position_is_at_most_the_one_given(store: &dyn Store, run: u64) {
    // A partition of its own for each run, where that is possible.
    let partition = Partition((run % 1_000_000) as u32 + 1);
    let mut last = Position::default();
    for offset in [5, 9, 40] {
        let settled = store
            .settle(partition, at(offset))
            .await
            .expect("the store settles");
        assert!(
            settled <= at(offset) && settled >= last,
            "{settled:?} after {last:?}"
        );
        last = settled;
    }
}
