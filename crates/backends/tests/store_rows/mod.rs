//! Rows for the store's tests: each is a function of its key (and position), so that whoever
//! reads one can tell whether it is right.

use bytes::Bytes;
use tidings_backends::disk::Rng;
use tidings_core::ids::{ConversationId, MessageKey, Position, SenderId, Seq, UserId};
use tidings_core::record::{ConversationKind, Encoding, Kind, Role};
use tidings_core::rows::{
    Before, EventRow, GrantState, HeadState, MemberChange, MembersBody, SenderState, StateKey,
    StateRow, StateValue,
};

/// Runs a future of the store.
pub fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without I/O needs nothing");
    runtime.block_on(future)
}

/// The event of a seq, with every form of every column among them.
pub fn event(conversation: ConversationId, seq: Seq, position: Position) -> EventRow {
    let mut rng = Rng::new(conversation.0 ^ seq.wrapping_mul(0x1_0001));
    let regular = rng.chance(3, 4);
    let who = rng.below(4);
    let members = rng.chance(1, 8).then(|| members(&mut rng));
    let length_max = if rng.chance(1, 10) { 3000 } else { 40 };
    let length = rng.below(length_max) as usize;
    let ts = 1_000_000 + seq * 1000;
    EventRow {
        conversation,
        seq,
        position,
        ts,
        ts_before: if regular { ts - 1000 } else { rng.next_u64() },
        user: UserId(who),
        sender: SenderId(if members.is_some() { 0 } else { who + 9 }),
        grant: if regular { 1 } else { rng.next_u64() },
        counter: if regular { seq } else { rng.next_u64() },
        id: MessageKey(if members.is_some() { 0 } else { rng.next_u64() }),
        before: before(seq, regular, &mut rng),
        kind: if members.is_some() {
            Kind::Members
        } else {
            Kind::Text
        },
        encoding: if rng.chance(1, 5) {
            Encoding::Zstd
        } else {
            Encoding::Identity
        },
        body: vec![b'a' + (seq % 20) as u8; length].into(),
        members,
    }
}

fn before(seq: Seq, regular: bool, rng: &mut Rng) -> Before {
    match rng.below(4) {
        _ if regular => Before::Seq(seq.saturating_sub(1)),
        0 => Before::Nothing,
        1 => Before::Seq(rng.next_u64()),
        2 => Before::Seq(seq),
        _ => Before::Row(SenderState {
            grant: rng.next_u64(),
            counter: rng.next_u64(),
            id: MessageKey(rng.next_u64()),
            seq: rng.next_u64(),
            ts: rng.next_u64(),
        }),
    }
}

fn members(rng: &mut Rng) -> Box<MembersBody> {
    let version = rng.below(99);
    let changes = (0..rng.below(4)).map(|user| MemberChange {
        user: UserId(user),
        role: Role::Owner,
        before: if rng.chance(1, 2) {
            GrantState::default()
        } else {
            grant(rng)
        },
    });
    let changes = changes.collect();
    Box::new(MembersBody {
        version,
        kind: ConversationKind::Channel,
        title: "títle".into(),
        changes,
    })
}

fn grant(rng: &mut Rng) -> GrantState {
    GrantState {
        grant: rng.below(1000),
        role: Role::Reader,
        visible_from: rng.next_u64(),
        visible_to: rng.below(9),
    }
}

/// A row of state as the record at `position` made it.
#[allow(dead_code, reason = "not every test binary puts state")]
pub fn state(conversation: ConversationId, key: StateKey, position: Position) -> StateRow {
    let mut rng = Rng::new(position.offset ^ (u64::from(position.epoch) << 32));
    let ts = rng.below(1 << 40);
    let value = match key {
        StateKey::Head => StateValue::Head(HeadState {
            seq: position.offset / 3,
            ts: if rng.chance(3, 4) { ts } else { rng.next_u64() },
            version: rng.below(1000),
            kind: ConversationKind::Group,
            members: rng.below(500) as u32,
        }),
        StateKey::Grant(_) => StateValue::Grant(grant(&mut rng)),
        StateKey::Sender(..) => StateValue::Sender(SenderState {
            grant: rng.below(100),
            counter: rng.next_u64(),
            id: MessageKey(rng.next_u64()),
            seq: rng.below(1 << 50),
            ts: if rng.chance(3, 4) { ts } else { rng.next_u64() },
        }),
    };
    StateRow {
        conversation,
        key,
        position,
        ts,
        value,
    }
}

/// A body that doesn't compress, of so many bytes.
#[allow(dead_code, reason = "not every test binary fills disks")]
pub fn noise(bytes: usize, rng: &mut Rng) -> Bytes {
    (0..bytes)
        .map(|_| rng.next_u64() as u8)
        .collect::<Vec<u8>>()
        .into()
}
