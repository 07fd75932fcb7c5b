//! The fast checker against one that compares every record with every other, on small histories:
//! valid runs with a few random faults in them.

mod common;

use common::{ALICE, ALICE_PHONE, BOB, BOB_PHONE, Message, deliver, end, ts};
use proptest::prelude::*;
use std::collections::BTreeSet;
use tidings_verify::history::{self, Status};
use tidings_verify::{Kind, Record, check};

const CHECKED: [Kind; 12] = [
    Kind::Lost,
    Kind::Duplicate,
    Kind::ShownTwice,
    Kind::OrderDifference,
    Kind::TimeOrder,
    Kind::ShownOutOfOrder,
    Kind::AckOrder,
    Kind::Ghost,
    Kind::Gap,
    Kind::TailLost,
    Kind::CompleteLie,
    Kind::ReceiptRegress,
];

type Key = (u64, u64, u64, u64);

struct Reference {
    sends: Vec<history::Send>,
    acks: Vec<history::Ack>,
    shown: Vec<history::Deliver>,
    finals: Vec<history::Final>,
    synced: Vec<history::Synced>,
    cursors: Vec<history::Cursor>,
}

fn sent_key(s: &history::Send) -> Key {
    (s.user, s.sender, s.grant, s.counter)
}

fn shown_key(d: &history::Deliver) -> Key {
    (d.author, d.sender, d.grant, d.counter)
}

impl Reference {
    fn new(history: &[Record]) -> Reference {
        macro_rules! all {
            ($kind:ident) => {
                history.iter().filter_map(|r| match r {
                    Record::$kind(one) => Some(*one),
                    _ => None,
                })
            };
        }
        Reference {
            sends: all!(Send).collect(),
            acks: all!(Ack).collect(),
            shown: all!(Deliver).collect(),
            finals: all!(Final).collect(),
            synced: all!(Synced).collect(),
            cursors: all!(Cursor).collect(),
        }
    }

    /// The first answer that names exactly this counter.
    fn exact(&self, s: &history::Send) -> Option<&history::Ack> {
        self.acks
            .iter()
            .find(|a| (a.user, a.sender, a.grant, a.counter) == sent_key(s))
    }

    /// The seq that an answer tells, unless one before it told of the same counter.
    fn named_first(&self, index: usize) -> Option<u64> {
        let of = |a: &history::Ack| (a.user, a.sender, a.grant, a.counter);
        let ack = &self.acks[index];
        self.acks[..index]
            .iter()
            .all(|a| of(a) != of(ack))
            .then_some(ack.seq)
    }

    fn acked_at(&self, s: &history::Send) -> Option<u64> {
        let covers = |a: &&history::Ack| {
            (a.user, a.sender, a.grant) == (s.user, s.sender, s.grant) && a.counter >= s.counter
        };
        self.acks.iter().filter(covers).map(|a| a.at).min()
    }

    fn events(&self, s: &history::Send) -> impl Iterator<Item = &history::Deliver> {
        let key = sent_key(s);
        self.shown.iter().filter(move |d| shown_key(d) == key)
    }

    fn lost(&self) -> bool {
        self.sends.iter().any(|s| {
            let exact = self.exact(s);
            self.acked_at(s).is_some()
                && !self.events(s).any(|d| exact.is_none_or(|a| a.id == d.id))
                && (!self.finals.is_empty()
                    || exact.is_some_and(|a| {
                        self.synced.iter().any(|c| c.head >= a.seq)
                            || self.shown.iter().any(|d| d.seq == a.seq)
                    }))
        })
    }

    fn pairs(&self, wrong: impl Fn(&history::Deliver, &history::Deliver) -> bool) -> bool {
        self.shown
            .iter()
            .any(|a| self.shown.iter().any(|b| wrong(a, b)))
    }

    fn duplicate(&self) -> bool {
        self.pairs(|a, b| {
            a.seq != b.seq
                && a.id != 0
                && b.id != 0
                && (a.id == b.id || shown_key(a) == shown_key(b))
        })
    }

    fn order_difference(&self) -> bool {
        self.pairs(|a, b| {
            let what = |d: &history::Deliver| (shown_key(d), d.id, d.body_hash, d.ts);
            a.seq == b.seq && what(a) != what(b)
        })
    }

    /// By the first event shown at each seq.
    fn time_order(&self) -> bool {
        let first = |d: &history::Deliver| {
            self.shown
                .iter()
                .find(|other| other.seq == d.seq)
                .map(|other| other.ts)
        };
        self.pairs(|a, b| {
            a.seq < b.seq && first(a) >= first(b) && {
                // Judged from one known seq to the next.
                !self.shown.iter().any(|c| a.seq < c.seq && c.seq < b.seq)
            }
        })
    }

    fn on_device(&self, twice: bool) -> bool {
        let before = |index: usize| {
            let device = self.shown[index].device;
            self.shown[..index]
                .iter()
                .filter(move |d| d.device == device)
        };
        (0..self.shown.len()).any(|index| {
            let seq = self.shown[index].seq;
            let again = before(index).any(|d| d.seq == seq);
            if twice {
                again
            } else {
                !again && before(index).any(|d| d.seq > seq)
            }
        })
    }

    fn placed(&self, s: &history::Send) -> Option<(u64, u64)> {
        let event = self.events(s).min_by_key(|d| (d.seq, d.id));
        event
            .map(|d| (d.seq, d.id))
            .or_else(|| self.exact(s).map(|a| (a.seq, a.id)))
    }

    /// When it was numbered first.
    fn numbered_at(&self, s: &history::Send) -> u64 {
        let same = self
            .sends
            .iter()
            .filter(|o| sent_key(o) == sent_key(s) && o.id == s.id);
        same.map(|o| o.at).min().unwrap_or(s.at)
    }

    fn ack_order(&self) -> bool {
        self.sends.iter().any(|a| {
            self.sends.iter().any(|b| {
                let (Some(acked), Some(at_a), Some(at_b)) =
                    (self.acked_at(a), self.placed(a), self.placed(b))
                else {
                    return false;
                };
                at_b.1 == b.id && acked < self.numbered_at(b) && at_a.0 > at_b.0
            })
        })
    }

    fn ghost(&self) -> bool {
        let sent = |d: &history::Deliver| {
            self.sends
                .iter()
                .any(|s| sent_key(s) == shown_key(d) && s.id == d.id)
        };
        self.shown.iter().any(|d| d.id != 0 && !sent(d))
    }

    /// Gap, tail lost, complete lie.
    fn missing(&self) -> [bool; 3] {
        let mut found = [false; 3];
        for device in [ALICE_PHONE, BOB_PHONE] {
            let shown: BTreeSet<u64> = self
                .shown
                .iter()
                .filter(|d| d.device == device)
                .map(|d| d.seq)
                .collect();
            let last = shown.last().copied().unwrap_or(0);
            let of = |d: u64| d == device;
            let ended = self
                .finals
                .iter()
                .filter(|f| of(f.device))
                .map(|f| f.head)
                .max();
            let synced = self
                .synced
                .iter()
                .filter(|c| of(c.device))
                .map(|c| c.head)
                .max();
            for seq in (1..20).filter(|seq| !shown.contains(seq)) {
                found[0] |= seq < last;
                found[1] |= seq > last && ended.max(synced) >= Some(seq);
                let exists = self.shown.iter().any(|d| d.seq == seq)
                    || (0..self.acks.len()).any(|index| self.named_first(index) == Some(seq));
                found[2] |= synced >= Some(seq) && exists;
            }
        }
        found
    }

    fn regress(&self) -> bool {
        (0..self.cursors.len()).any(|later| {
            let cursor = self.cursors[later];
            self.cursors[..later]
                .iter()
                .any(|c| c.device == cursor.device && c.seq > cursor.seq)
        })
    }

    fn found(&self) -> BTreeSet<Kind> {
        let [gap, tail, lie] = self.missing();
        let all = [
            self.lost(),
            self.duplicate(),
            self.on_device(true),
            self.order_difference(),
            self.time_order(),
            self.on_device(false),
            self.ack_order(),
            self.ghost(),
            gap,
            tail,
            lie,
            self.regress(),
        ];
        CHECKED
            .into_iter()
            .zip(all)
            .filter_map(|(kind, found)| found.then_some(kind))
            .collect()
    }
}

/// A valid run: two senders, messages accepted in the given order, both devices shown all.
fn valid(order: &[bool], lag: usize) -> Vec<Record> {
    let mut history = Vec::new();
    let mut counters = [0, 0];
    let mut answers = Vec::new();
    let people = [(ALICE, ALICE_PHONE), (BOB, BOB_PHONE)];
    for (index, &bob) in order.iter().enumerate() {
        let (seq, who, at) = (index as u64 + 1, usize::from(bob), 100 * (index as u64 + 1));
        let (user, device) = people[who];
        counters[who] += 1;
        let (sender, counter, id) = (50 + who as u64, counters[who], 1000 + seq);
        let message = Message {
            author: user,
            sender,
            counter,
            id,
            body_hash: seq,
        };
        let (conversation, grant) = (common::ROOM, 1);
        let send = history::Send {
            at,
            user,
            device,
            conversation,
            sender,
            grant,
            counter,
            id,
            body_hash: seq,
        };
        history.push(Record::from(send));
        let status = Status::Sent;
        let (at, ts, duplicate) = (at + 10 + 100 * lag as u64, ts(seq), false);
        let ack = history::Ack {
            at,
            user,
            device,
            conversation,
            sender,
            grant,
            counter,
            id,
            seq,
            ts,
            duplicate,
            status,
        };
        answers.push(Record::from(ack));
        for (user, device) in people {
            history.push(deliver(user, device, seq, message).into());
            let cursor = history::Cursor {
                at,
                user,
                device,
                conversation,
                seq,
            };
            history.push(cursor.into());
        }
    }
    history.extend(answers);
    let head = order.len() as u64;
    let (user, device, conversation, at) = (BOB, BOB_PHONE, common::ROOM, 900);
    let synced = history::Synced {
        at,
        asked: 0,
        user,
        device,
        conversation,
        head,
        complete: true,
    };
    history.extend([
        synced.into(),
        end(ALICE, ALICE_PHONE, head),
        end(BOB, BOB_PHONE, head),
    ]);
    history
}

/// One fault at a random place: something lost, repeated, reordered or changed.
fn fault(history: &mut Vec<Record>, what: u8, place: usize, other: usize, by: u64) {
    if history.is_empty() {
        return;
    }
    let (place, other) = (place % history.len(), other % history.len());
    match what {
        0 => drop(history.remove(place)),
        1 => history.swap(place, other),
        2 => history.insert(other, history[place]),
        3 => history.retain(|r| !matches!(r, Record::Final(_))),
        4 => history.retain(|r| !common::shown_at(by)(r)),
        _ => match &mut history[place] {
            Record::Send(send) if by.is_multiple_of(2) => send.at = by * 100,
            Record::Send(send) => send.id += by,
            Record::Ack(ack) if by.is_multiple_of(2) => ack.seq = by.max(1),
            Record::Ack(ack) => ack.at = ack.at.saturating_sub(by * 100),
            Record::Deliver(deliver) => match by % 4 {
                0 => deliver.seq = by.max(1),
                1 => deliver.id = 1000 + by,
                2 => deliver.counter = by,
                _ => deliver.ts = ts(by),
            },
            Record::Synced(synced) => synced.head = by,
            Record::Final(end) => end.head = by,
            Record::Cursor(cursor) => cursor.seq = by,
            _ => {}
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_fast_checker_agrees_with_the_obvious_one(
        order in prop::collection::vec(any::<bool>(), 0..7),
        lag in 0usize..3,
        faults in prop::collection::vec(
            (0u8..9, any::<u16>(), any::<u16>(), 0u64..9), 0..5),
    ) {
        let mut history = valid(&order, lag);
        if faults.is_empty() {
            let report = check(&history);
            prop_assert!(report.is_clean(), "{report}");
        }
        for (what, place, other, by) in faults {
            fault(&mut history, what, place.into(), other.into(), by);
        }
        let report = check(&history);
        let fast: BTreeSet<Kind> =
            report.anomalies.keys().copied().filter(|kind| CHECKED.contains(kind)).collect();
        prop_assert_eq!(fast, Reference::new(&history).found(), "{}\n{:#?}", report, history);
    }
}

#[test]
fn the_random_faults_reach_every_checked_kind() {
    // Else the comparison above would compare nothing with nothing.
    let mut reached = BTreeSet::new();
    for seed in 0..6000u64 {
        let mut history = valid(&[false, true, seed % 2 == 0, false, true], 0);
        let mix = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let part = |shift: u32| usize::from((mix >> shift) as u16);
        fault(
            &mut history,
            (mix >> 8) as u8 % 9,
            part(16),
            part(32),
            (mix >> 48) % 9,
        );
        reached.extend(Reference::new(&history).found());
    }
    assert_eq!(reached, CHECKED.into_iter().collect());
}
