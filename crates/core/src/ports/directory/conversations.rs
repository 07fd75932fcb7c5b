//! Conversations, their members, and the outbox of membership changes.
//!
//! The directory decides who may join or be removed; the log decides from which seq
//! on that holds. Every change of members is one transaction under the conversation's
//! row lock: the version goes up by one, the member rows change, and one outbox row
//! tells a relay what to append to the log (design.md, section 3). Version 1 is the
//! creation and names the founders.
//!
//! Who may do what: an actor needs [`Role::Admin`] to change others, touches only
//! members whose role is below the actor's own, and gives only roles below it; an owner
//! may also make owners. The user id 0 acts for the operator (a server with an API key) and may
//! do everything. To somebody who isn't a member a conversation that isn't open
//! doesn't exist: the answer is `NotFound(Conversation)`, as for an id never given out.

use sha2::{Digest, Sha256};

use super::Answer;
use crate::ids::{ConversationId, Micros, UserId};
use crate::ports::BoxFuture;
use crate::record::{self, ConversationKind, Role, RoleChange};

/// The longest title in bytes; a longer one is refused as invalid.
pub const TITLE_BYTES_MAX: usize = 256;

/// A pair's direct conversation: its id and the pair in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectId {
    /// Derived from the pair.
    pub conversation: ConversationId,
    /// The smaller id.
    pub low: UserId,
    /// The larger id.
    pub high: UserId,
}

/// The id of a pair's direct conversation, the same whoever asks: the first 8 bytes (big endian)
/// of SHA-256 over `tidings direct 1`, the smaller and the larger user id (8 bytes, big endian
/// each), without the top bit.
pub fn direct_conversation(a: UserId, b: UserId) -> DirectId {
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    let mut hash = Sha256::new();
    hash.update(b"tidings direct 1");
    hash.update(low.0.to_be_bytes());
    hash.update(high.0.to_be_bytes());
    let digest = hash.finalize();
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest[..8]);
    DirectId {
        conversation: ConversationId(u64::from_be_bytes(first) >> 1),
        low,
        high,
    }
}

/// A group or channel to create.
#[derive(Clone, Debug)]
pub struct NewConversation {
    /// [`ConversationKind::Group`] or [`ConversationKind::Channel`].
    pub kind: ConversationKind,
    /// Shown to members; may be empty.
    pub title: String,
    /// Who creates it and becomes its owner.
    pub creator: UserId,
    /// The other founders, as members; with the creator at most [`record::MEMBERS_PER_EVENT_MAX`].
    pub members: Vec<UserId>,
    /// The role that anybody may join with; [`Role::None`]: only who is added gets in.
    pub join_role: Role,
    /// A repeat by the same creator under the same key answers with the conversation made before;
    /// at most 128 bytes.
    pub idempotency_key: Option<String>,
}

/// A conversation as the directory knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConversationRecord {
    /// Its id.
    pub id: ConversationId,
    /// Its kind.
    pub kind: ConversationKind,
    /// Its title; empty for direct ones.
    pub title: String,
    /// The version of its last change of members.
    pub version: u64,
    /// The role that anybody may join with; [`Role::None`]: not open.
    pub join_role: Role,
    /// When it was created.
    pub created: Micros,
}

/// The answer to a creation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The conversation.
    pub conversation: ConversationRecord,
    /// False: it was there before.
    pub created: bool,
}

/// The answer to a change of members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The conversation's version now. An outbox row of this version exists or has been relayed.
    pub version: u64,
    /// What changed; empty: everything was already so.
    pub changes: Vec<RoleChange>,
}

/// One user's place in a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Who.
    pub user: UserId,
    /// As what.
    pub role: Role,
    /// The version that began this membership (not the last change of role).
    pub since: u64,
}

/// One conversation in a user's list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Membership {
    /// The conversation.
    pub conversation: ConversationRecord,
    /// The user's role in it.
    pub role: Role,
    /// The version that began the user's membership.
    pub since: u64,
}

/// What a server asks of a user who comes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lists {
    /// The user's conversations, ascending, at most [`super::PAGE_MAX`]: behind so many go on with
    /// [`Conversations::conversations_of`].
    pub conversations: Vec<ConversationId>,
    /// Whom the user has blocked, ascending: all, of which there are at most [`super::BLOCKS_PER_USER_MAX`].
    pub blocked: Vec<UserId>,
}

/// A change that still has to be appended to the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutboxEntry {
    /// The conversation it is of.
    pub conversation: ConversationId,
    /// What the record says, version included.
    pub change: record::Membership,
}

/// Conversations, their members, and the outbox. See [`super`] for what holds for every method.
pub trait Conversations: Send + Sync {
    /// The direct conversation of a pair, created at first sight. Both may create it; a repeat
    /// answers with the one there is. `Conflict(DirectId)`: another conversation has the derived id
    /// (2^-63 a pair). A block doesn't matter here (design.md, "Who sees what").
    fn create_direct(&self, by: UserId, other: UserId) -> Answer<'_, Opened>;

    /// Creates a group or channel with its founders as version 1. Under an idempotency key a repeat
    /// is harmless, and a different request is `Conflict(IdempotencyKey)`; without one a repeat
    /// makes another conversation.
    fn create_conversation(&self, new: NewConversation) -> Answer<'_, Opened>;

    /// Changes the title; admins and owners. No version: titles aren't part of the log's decisions.
    fn set_title(&self, conversation: ConversationId, by: UserId, title: String) -> Answer<'_, ()>;

    /// Enters an open conversation. A member already: no change.
    fn join(&self, conversation: ConversationId, user: UserId) -> Answer<'_, Change>;

    /// Leaves. When the last owner leaves, the longest-standing of the highest role that is left
    /// becomes owner in the same change. Not a member: `NotFound(Conversation)`.
    fn leave(&self, conversation: ConversationId, user: UserId) -> Answer<'_, Change>;

    /// Adds up to [`record::MEMBERS_PER_EVENT_MAX`] users with a role. Who is a member already
    /// stays as they are. A banned or disabled user refuses the whole call.
    fn add_members(
        &self,
        conversation: ConversationId,
        by: UserId,
        users: Vec<UserId>,
        role: Role,
    ) -> Answer<'_, Change>;

    /// Removes a member; gone already: no change. An operator who removes the last owner leaves
    /// a successor, as in [`Conversations::leave`].
    fn remove_member(
        &self,
        conversation: ConversationId,
        by: UserId,
        user: UserId,
    ) -> Answer<'_, Change>;

    /// Gives a member another role (not [`Role::None`]). A repeat changes nothing.
    fn set_role(
        &self,
        conversation: ConversationId,
        by: UserId,
        user: UserId,
        role: Role,
    ) -> Answer<'_, Change>;

    /// Removes a user, member or not, and keeps them out. A repeat changes nothing.
    fn ban(&self, conversation: ConversationId, by: UserId, user: UserId) -> Answer<'_, Change>;

    /// Lifts a ban; no membership comes back with it. A repeat is harmless.
    fn unban(&self, conversation: ConversationId, by: UserId, user: UserId) -> Answer<'_, ()>;

    /// A conversation.
    fn conversation(&self, id: ConversationId) -> Answer<'_, Option<ConversationRecord>>;

    /// A user's conversations and blocks in one question, as every sign-in needs them.
    fn lists_of(&self, user: UserId) -> Answer<'_, Lists>;

    /// A user's conversations by id from behind `after` (0: the first), at most `limit`.
    fn conversations_of(
        &self,
        user: UserId,
        after: ConversationId,
        limit: usize,
    ) -> Answer<'_, Vec<Membership>>;

    /// The open channels by id from behind `after`, at most `limit`: what a newcomer can join.
    fn open_conversations(
        &self,
        after: ConversationId,
        limit: usize,
    ) -> Answer<'_, Vec<ConversationRecord>>;

    /// Members by user id from behind `after` (0: the first), at most `limit`.
    fn members(
        &self,
        conversation: ConversationId,
        after: UserId,
        limit: usize,
    ) -> Answer<'_, Vec<Member>>;

    /// A user's place; none: not a member, or no such conversation.
    fn member(&self, conversation: ConversationId, user: UserId) -> Answer<'_, Option<Member>>;

    /// Changes that haven't been reported done, at most `limit`: of one conversation in the order of
    /// their versions and without a hole, oldest changes first. Reading takes nothing away: two
    /// relays may read the same rows, and the log drops the repeats.
    fn outbox_pending(&self, limit: usize) -> Answer<'_, Vec<OutboxEntry>>;

    /// Changes of a conversation up to this version have been accepted by the router. A repeat, or an
    /// older version, is harmless.
    fn outbox_done(&self, conversation: ConversationId, version: u64) -> Answer<'_, ()>;

    /// Ends when changes may have been added since the last end: a hint to read
    /// [`Conversations::outbox_pending`], for one waiter a process. Changes made by other processes
    /// may not be noticed, so a relay also reads on a timer.
    fn outbox_wait(&self) -> BoxFuture<'_, ()>;
}
