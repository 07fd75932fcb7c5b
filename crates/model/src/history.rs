//! A log of a few small entries, and what the code says to each of them.
//!
//! The verdicts are those of `tidings_core::sequencer`: nothing is decided here. Small numbers stand
//! for the code's types, so that states are small and hash fast; a grant is the real seq of the event
//! that gave it.

use tidings_core::ids::{ConversationId, MessageKey, Micros, SenderId, UserId};
use tidings_core::record::{ConversationKind, Membership, Role, RoleChange, Send};
use tidings_core::rows::{DAY, GrantState, HeadState, SenderState};
use tidings_core::sequencer::{self, Answer, Before, Verdict};

/// The only conversation.
pub const CONVERSATION: ConversationId = ConversationId(1);

/// The seq of the founding event, and so the first grant.
pub const FOUNDING: u8 = 1;

/// When the conversation was founded. Not 0, which stands for "never".
const FOUNDED_AT: Micros = DAY;

/// When the day with this number begins, in log time.
pub fn day(number: u16) -> Micros {
    FOUNDED_AT + Micros::from(number) * DAY
}

/// A user's send.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Rec {
    /// Whose; 0 is the one who may be removed.
    pub user: u8,
    /// Through which outbox.
    pub sender: u8,
    /// The grant's seq.
    pub grant: u8,
    /// The counter, from 1.
    pub counter: u8,
    /// The message; 0: none.
    pub id: u8,
    /// The message under the counter before.
    pub previous: u8,
    /// A single-use sender.
    pub once: bool,
}

impl Rec {
    /// As the code has it.
    pub fn send(&self) -> Send {
        Send {
            user: UserId(u64::from(self.user) + 1),
            sender: SenderId(u64::from(self.sender) + 1),
            grant: u64::from(self.grant),
            counter: u64::from(self.counter),
            id: MessageKey(u64::from(self.id)),
            previous: MessageKey(u64::from(self.previous)),
            once: self.once,
            kind: Default::default(),
            encoding: Default::default(),
            body: Default::default(),
            origin: Default::default(),
            taken: 0,
        }
    }
}

/// What stands in the log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Entry {
    /// A message.
    Send(Rec),
    /// User 0 is no member any more.
    Remove,
    /// User 0 is one again.
    Add,
}

/// What an entry became.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// The answer to a send.
    Sent(Answer),
    /// The verdict on a change of members, and its seq if it was accepted.
    Members(Verdict, u64),
}

/// The state that decisions are made of: what the log so far says.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// The head's row.
    pub head: HeadState,
    /// The grant of user 0, and that of all others.
    pub grants: [GrantState; 2],
    pub(crate) senders: Vec<(u8, SenderState)>,
}

impl Conversation {
    /// Just founded, all users members.
    pub fn founded() -> Conversation {
        let nothing = HeadState::default();
        let change = change(1, Role::Member);
        assert_eq!(
            sequencer::decide_membership(&nothing, &change),
            Verdict::Accepted
        );
        let head = sequencer::accept_membership(&nothing, &change, FOUNDED_AT, 2, 0);
        let grant = sequencer::grant_after(&GrantState::default(), &change, Role::Member, head.seq);
        assert_eq!(grant.grant, u64::from(FOUNDING));
        Conversation {
            head,
            grants: [grant; 2],
            senders: vec![],
        }
    }

    /// The state that the code decides a send by.
    pub fn before(&self, rec: &Rec) -> Before {
        let row = self.senders.iter().find(|s| s.0 == rec.sender);
        Before {
            head: self.head,
            grant: self.grants[usize::from(rec.user.min(1))],
            sender: row.map(|s| s.1).unwrap_or_default(),
        }
    }

    /// The grant of user 0; 0: none.
    pub fn grant(&self) -> u8 {
        self.grants[0].grant as u8
    }

    /// Takes the log's next entry.
    pub fn take(&mut self, entry: &Entry, appended: Micros) -> Taken {
        let role = match entry {
            Entry::Send(rec) => {
                let (before, send) = (self.before(rec), rec.send());
                let answer = sequencer::decide(CONVERSATION, &before, &send, appended);
                if answer.verdict == Verdict::Accepted {
                    let (head, row) = sequencer::accept(&before, &send, &answer);
                    self.head = head;
                    match self.senders.iter_mut().find(|s| s.0 == rec.sender) {
                        Some(known) => known.1 = row,
                        None => self.senders.push((rec.sender, row)),
                    }
                }
                return Taken::Sent(answer);
            }
            Entry::Remove => Role::None,
            Entry::Add => Role::Member,
        };
        // The directory numbers its changes, and here sends each once.
        let change = change(self.head.version + 1, role);
        let (joined, left) = (u32::from(role.is_member()), u32::from(!role.is_member()));
        let verdict = sequencer::decide_membership(&self.head, &change);
        self.head = sequencer::accept_membership(&self.head, &change, appended, joined, left);
        self.grants[0] = sequencer::grant_after(&self.grants[0], &change, role, self.head.seq);
        Taken::Members(verdict, self.head.seq)
    }
}

/// A directory's change of user 0.
pub fn change(version: u64, role: Role) -> Membership {
    let user = UserId(1);
    Membership {
        version,
        by: UserId(0),
        changes: vec![RoleChange { user, role }],
        kind: ConversationKind::Group,
        title: String::new(),
    }
}
