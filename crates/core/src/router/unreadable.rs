//! Records that can't be read: each is a dead letter with its reason, and nothing waits for it.

use bytes::Bytes;

use super::Config;
use crate::ids::*;
use crate::path::{Effect, Router, accept};
use crate::ports::peers::ToGateway;
use crate::record::*;
use crate::rows::EventRow;
use crate::sequencer::Verdict;

const CONVERSATION: ConversationId = ConversationId(5);
const USER: UserId = UserId(1);

fn joins() -> Bytes {
    let mut payload = Vec::new();
    let change = RoleChange {
        user: USER,
        role: Role::Member,
    };
    Record {
        conversation: CONVERSATION,
        content: Content::Membership(Membership {
            version: 1,
            by: USER,
            changes: vec![change],
            kind: ConversationKind::Group,
            title: String::new(),
        }),
    }
    .encode(&mut payload);
    payload.into()
}

fn send(counter: u64) -> Bytes {
    let send = Send {
        user: USER,
        sender: SenderId(2),
        grant: 1,
        counter,
        id: MessageKey(100 + counter),
        previous: MessageKey(if counter == 1 { 0 } else { 99 + counter }),
        once: false,
        kind: Kind::Text,
        encoding: Encoding::Identity,
        body: Bytes::from_static(b"hello"),
        origin: Origin {
            gateway: GatewayId(1),
            session: SessionId(9),
        },
        taken: 0,
    };
    accept(CONVERSATION, send).payload
}

/// Everything a router did with these payloads: rows, letters, verdicts. The store is empty.
struct Done {
    rows: Vec<EventRow>,
    letters: Vec<(u64, Micros, Option<ConversationId>, String, Bytes)>,
    verdicts: Vec<Verdict>,
    router: Router,
}

fn route(payloads: &[Bytes]) -> Done {
    let start = Position {
        epoch: 1,
        offset: 0,
    };
    let mut done = Done {
        rows: Vec::new(),
        letters: Vec::new(),
        verdicts: Vec::new(),
        router: Router::new(Partition(0), start, start, Config::default()),
    };
    let records = payloads
        .iter()
        .zip(0..)
        .map(|(payload, offset)| Committed {
            position: Position { offset, ..start },
            appended: 1_000 + offset,
            payload: payload.clone(),
        })
        .collect();
    done.router.records(records, 1);
    done.perform();
    done
}

impl Done {
    /// Performs effects until there are none.
    fn perform(&mut self) {
        loop {
            let effects: Vec<Effect> = self.router.effects().collect();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                self.perform_one(effect);
            }
        }
    }

    fn perform_one(&mut self, effect: Effect) {
        match effect {
            Effect::ReadState { load, keys, .. } => {
                let nothing = vec![None; keys.len()];
                self.router.state_read(load, Some(nothing), 1);
            }
            Effect::ReadSince { load, .. } => self.router.since_read(load, Some(vec![]), 1),
            Effect::PutEvents { flight, rows } => {
                self.rows.extend(rows);
                self.router.events_stored(flight, true, 1);
            }
            Effect::PutState { flight, .. } => self.router.state_stored(flight, true, 1),
            Effect::DeadLetter {
                position,
                appended,
                conversation,
                reason,
                payload,
            } => {
                let letter = (position.offset, appended, conversation, reason, payload);
                self.letters.push(letter);
            }
            Effect::Send {
                message: ToGateway::Answer { answer, .. },
                ..
            } => self.verdicts.push(answer.verdict),
            _ => {}
        }
    }
}

#[test]
fn a_bad_record_is_a_dead_letter_with_its_reason_and_blocks_nothing() {
    let foreign = Bytes::from_static(b"?");
    let newer = {
        let mut bytes = vec![77];
        bytes.extend_from_slice(&CONVERSATION.0.to_le_bytes());
        Bytes::from(bytes)
    };
    let cut = send(2).slice(..30);
    let payloads = [
        foreign.clone(),
        joins(),
        send(1),
        newer.clone(),
        cut.clone(),
        send(2),
        send(3),
    ];
    let mut done = route(&payloads);
    let here = Some(CONVERSATION);
    let letters = [
        (
            0,
            1_000,
            None,
            "1 bytes are too few for a record: its conversation takes 9".to_owned(),
            foreign,
        ),
        (
            3,
            1_003,
            here,
            "a record of type 77, which this version does not know".to_owned(),
            newer,
        ),
        (
            4,
            1_004,
            here,
            "log record: bytes end early or hold an unknown value, seen after 25 of them"
                .to_owned(),
            cut,
        ),
    ];
    assert_eq!(done.letters, letters);
    assert_eq!(done.router.counters.dead_letters, 3);
    // The messages before and behind are answered, and those that can't be read are empty.
    assert_eq!(done.verdicts, [Verdict::Accepted; 3]);
    let kinds: Vec<(Seq, Kind)> = done.rows.iter().map(|row| (row.seq, row.kind)).collect();
    let want = [
        Kind::Members,
        Kind::Text,
        Kind::Empty,
        Kind::Empty,
        Kind::Text,
        Kind::Text,
    ];
    assert_eq!(kinds, (1..).zip(want).collect::<Vec<_>>());
    done.router.leave(1);
    done.perform();
    assert!(done.router.leave(1), "everything read is settled");
}

#[test]
fn a_replayed_send_is_accepted_once_behind_the_empty_event() {
    // What a later version appended couldn't be read here. Read at last and replayed, it is a
    // message of its own; replayed again, it is known; and nothing behind it was renumbered.
    let unread = {
        let mut bytes = send(2).to_vec();
        bytes[0] = 77;
        Bytes::from(bytes)
    };
    let done = route(&[joins(), send(1), unread, send(2), send(2)]);
    let verdicts = [Verdict::Accepted, Verdict::Accepted, Verdict::Duplicate];
    assert_eq!(done.verdicts, verdicts);
    let seqs: Vec<Seq> = done.rows.iter().map(|row| row.seq).collect();
    assert_eq!(seqs, [1, 2, 3, 4]);
    assert_eq!(done.rows[3].id, MessageKey(102));
    assert_eq!(done.rows[2].kind, Kind::Empty);
}
