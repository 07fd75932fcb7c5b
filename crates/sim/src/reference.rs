//! What the log says, decided in one go with everything in memory: no rows, no crash, no cache.
//!
//! The rows of a run must be those of this reading, and who may see what is taken from it.

use std::collections::BTreeMap;

use tidings_core::ids::{ConversationId, Micros, Position, SenderId, Seq, UserId};
use tidings_core::record::{Content, Record, Role};
use tidings_core::rows::{GrantState, HeadState, SenderState};
use tidings_core::sequencer::{self, Verdict};

use crate::log::SimLog;

/// What identifies an event, for comparison with its row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fact {
    pub seq: Seq,
    pub position: Position,
    pub ts: Micros,
    pub user: UserId,
    pub sender: SenderId,
    pub counter: u64,
    pub id: u64,
}

/// One conversation.
#[derive(Default)]
pub(crate) struct Room {
    pub head: HeadState,
    pub facts: Vec<Fact>,
    pub grants: BTreeMap<UserId, GrantState>,
    senders: BTreeMap<(UserId, SenderId), SenderState>,
    /// First and last seq that a user may see, for each time of being a member; last 0: still is.
    pub visible: BTreeMap<UserId, Vec<(Seq, Seq)>>,
}

/// Reads the whole log of every partition.
pub(crate) fn read(logs: &[SimLog]) -> BTreeMap<ConversationId, Room> {
    let mut rooms: BTreeMap<ConversationId, Room> = BTreeMap::new();
    for (position, appended, payload) in logs.iter().flat_map(SimLog::history) {
        let record = Record::decode(payload).expect("the simulation appends whole records");
        let room = rooms.entry(record.conversation).or_default();
        match record.content {
            Content::Send(send) => room.send(record.conversation, position, appended, &send),
            Content::Membership(change) => room.change(position, appended, &change),
        }
    }
    rooms
}

impl Room {
    fn send(
        &mut self,
        conversation: ConversationId,
        position: Position,
        appended: Micros,
        send: &tidings_core::record::Send,
    ) {
        let key = (send.user, send.sender);
        let before = sequencer::Before {
            head: self.head,
            grant: self.grants.get(&send.user).copied().unwrap_or_default(),
            sender: self.senders.get(&key).copied().unwrap_or_default(),
        };
        let answer = sequencer::decide(conversation, &before, send, appended);
        if answer.verdict != Verdict::Accepted {
            return;
        }
        let (head, sender) = sequencer::accept(&before, send, &answer);
        self.head = head;
        self.senders.insert(key, sender);
        self.facts.push(Fact {
            seq: answer.seq,
            position,
            ts: answer.ts,
            user: send.user,
            sender: send.sender,
            counter: send.counter,
            id: send.id.0,
        });
    }

    fn change(
        &mut self,
        position: Position,
        appended: Micros,
        change: &tidings_core::record::Membership,
    ) {
        if sequencer::decide_membership(&self.head, change) != Verdict::Accepted {
            return;
        }
        let seq = self.head.seq + 1;
        let (mut joined, mut left) = (0, 0);
        for one in &change.changes {
            let before = self.grants.get(&one.user).copied().unwrap_or_default();
            let after = sequencer::grant_after(&before, change, one.role, seq);
            let visible = self.visible.entry(one.user).or_default();
            match (before.role == Role::None, one.role == Role::None) {
                (true, false) => {
                    joined += 1;
                    visible.push((after.visible_from, 0));
                }
                (false, true) => {
                    left += 1;
                    if let Some(last) = visible.last_mut() {
                        last.1 = seq;
                    }
                }
                _ => {}
            }
            self.grants.insert(one.user, after);
        }
        self.head = sequencer::accept_membership(&self.head, change, appended, joined, left);
        self.facts.push(Fact {
            seq,
            position,
            ts: self.head.ts,
            user: change.by,
            sender: SenderId(0),
            counter: 0,
            id: 0,
        });
    }
}
