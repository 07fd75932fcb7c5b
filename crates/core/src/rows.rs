//! Every row of the store: what it says, and which one wins when it is written twice.
//!
//! Each accepted record leaves one event row. The head, sender and grant rows are
//! what the next decision needs; they hold the position they are of, so that a
//! router that reads them can tell whether they say what the log *before* its
//! record says (design.md, "State: written, read, forgotten"). A write of an older
//! position never replaces a newer one, whoever writes late.

use bytes::Bytes;

use crate::ids::{ConversationId, MessageKey, Micros, Position, SenderId, Seq, UserId};
use crate::record::{ConversationKind, Encoding, Kind, Role};

/// The sender's row before an event, so that the event can be undone exactly.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Before {
    /// The sender had no row.
    #[default]
    Nothing,
    /// The sender's last accepted event is this seq of the same conversation: read it.
    Seq(Seq),
    /// That event may have been archived by the time it is asked for, so here is the row.
    Row(SenderState),
}

/// Events further back than this are not named by seq but carried whole ([`Before::Row`]).
/// Half a year: well below the shortest retention of event rows, one year.
pub const BEFORE_BY_SEQ_MAX: Micros = 180 * DAY;

/// A day in microseconds.
pub const DAY: Micros = 24 * 3600 * 1_000_000;

/// What the last accepted record of a sender says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SenderState {
    /// Under which grant.
    pub grant: Seq,
    /// n: the last accepted counter of that grant.
    pub counter: u64,
    /// The id under n.
    pub id: MessageKey,
    /// The seq of n.
    pub seq: Seq,
    /// The time of n.
    pub ts: Micros,
}

/// A user's right to write or read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GrantState {
    /// The seq of the event that gave it; 0: none.
    pub grant: Seq,
    /// The user's role; [`Role::None`]: no member.
    pub role: Role,
    /// The first seq the user may see.
    pub visible_from: Seq,
    /// The seq of the event that ended the membership; 0 while it lasts.
    pub visible_to: Seq,
}

/// What a membership event did to one user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemberChange {
    /// Whose place changed.
    pub user: UserId,
    /// The new role.
    pub role: Role,
    /// The user's whole grant before the event, so that it can be undone.
    pub before: GrantState,
}

/// The members' part of a membership event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MembersBody {
    /// The conversation's directory version.
    pub version: u64,
    /// The conversation's kind.
    pub kind: ConversationKind,
    /// The conversation's title at that version.
    pub title: String,
    /// At most 1,000.
    pub changes: Vec<MemberChange>,
}

/// An entry of a conversation's history. Written twice it is the same row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventRow {
    /// Key, first part.
    pub conversation: ConversationId,
    /// Key, second part.
    pub seq: Seq,
    /// The record it was made of.
    pub position: Position,
    /// The event's time: strictly increasing with seq.
    pub ts: Micros,
    /// The time of `seq - 1`; 0 for the first.
    pub ts_before: Micros,
    /// The author; for membership events who decided it.
    pub user: UserId,
    /// The outbox; 0 for membership events, as are the next four.
    pub sender: SenderId,
    /// The grant it was sent under.
    pub grant: Seq,
    /// The counter under that grant.
    pub counter: u64,
    /// The message's own bytes.
    pub id: MessageKey,
    /// The sender's row before this event.
    pub before: Before,
    /// What the body is.
    pub kind: Kind,
    /// How the body is written.
    pub encoding: Encoding,
    /// The body.
    pub body: Bytes,
    /// Present exactly in membership events.
    pub members: Option<Box<MembersBody>>,
}

impl EventRow {
    /// The event that says nothing: it only keeps the numbers whole. Other kinds without an outbox
    /// are made of it.
    pub fn empty(
        conversation: ConversationId,
        seq: Seq,
        position: Position,
        ts: Micros,
        ts_before: Micros,
    ) -> EventRow {
        EventRow {
            conversation,
            seq,
            position,
            ts,
            ts_before,
            user: Default::default(),
            sender: Default::default(),
            grant: 0,
            counter: 0,
            id: Default::default(),
            before: Before::Nothing,
            kind: Kind::Empty,
            encoding: Default::default(),
            body: Default::default(),
            members: None,
        }
    }
}

/// The last accepted event of a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HeadState {
    /// The last seq; 0: no events.
    pub seq: Seq,
    /// Its time.
    pub ts: Micros,
    /// The last accepted directory version.
    pub version: u64,
    /// The conversation's kind.
    pub kind: ConversationKind,
    /// How many members there are.
    pub members: u32,
}

/// Names a row of state; the conversation is named beside it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum StateKey {
    /// The conversation's head.
    Head,
    /// A user's grant.
    Grant(UserId),
    /// A sender's last accepted record.
    Sender(UserId, SenderId),
}

/// The value of a row of state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateValue {
    /// Of [`StateKey::Head`].
    Head(HeadState),
    /// Of [`StateKey::Grant`].
    Grant(GrantState),
    /// Of [`StateKey::Sender`].
    Sender(SenderState),
}

/// A row of state as it is written: of two, the one with the later position stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateRow {
    /// The conversation.
    pub conversation: ConversationId,
    /// Which row.
    pub key: StateKey,
    /// The record that made it so.
    pub position: Position,
    /// The ts of that record's event: what the row is stamped with.
    pub ts: Micros,
    /// What it says.
    pub value: StateValue,
}

/// How far a member has come. Each number only ever grows, whatever order it is written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CursorRow {
    /// The conversation.
    pub conversation: ConversationId,
    /// The member.
    pub user: UserId,
    /// Some device of the user has stored all up to here.
    pub delivered: Seq,
    /// The user has read all up to here.
    pub read: Seq,
}

/// The rows of state and the cursors of a conversation's members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberRows {
    /// The head's row and the grants there are, in any order.
    pub state: Vec<StateRow>,
    /// The cursors there are, in any order.
    pub cursors: Vec<CursorRow>,
}
