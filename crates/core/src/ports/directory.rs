//! The directory: who exists, what they may use, and who is a member of what.
//!
//! One port in three subjects, each a trait of about a dozen methods: [`Accounts`]
//! (users, their devices, blocks), [`Credentials`] (refresh tokens, API keys,
//! revocations) and [`Conversations`] (conversations, members, the outbox that
//! makes the directory a sender). [`Directory`] is all three.
//!
//! What holds for every method, unless it says otherwise:
//!
//! - **Durable on return.** What an `Ok` reports survives a crash and power loss.
//! - **A writer reads its own writes**: a call made after another's answer sees it.
//!   Reads are never older than the last answered write of the same directory.
//! - **One transaction a call.** An `Err` changed nothing, but for
//!   [`DirectoryError::Unavailable`], after which the change may or may not have
//!   been made; each method says what its repeat does then.
//! - **Bounded in time.** A call answers within its implementation's deadline
//!   (5 s by default) or says `Unavailable`.
//! - **A dropped future** leaves its call running: the change is made, or not, as
//!   if the answer had been lost.
//! - **Ids** are random, made by the directory, and below 2^63, so that a signed
//!   64-bit column holds them.
//! - **Secrets** come and go as hashes only; the directory never sees a token, a key
//!   or a password.

use std::time::Duration;

use super::BoxFuture;

mod accounts;
mod conversations;
mod credentials;

pub use accounts::{
    Accounts, BLOCKS_PER_USER_MAX, BULK_USERS_MAX, DEVICES_PER_USER_MAX, Device, ExternalSubject,
    LoginName, NewUser, PasswordHash, StoredPassword, User,
};
pub use conversations::{
    Change, ConversationRecord, Conversations, DirectId, Lists, Member, Membership,
    NewConversation, Opened, OutboxEntry, TITLE_BYTES_MAX, direct_conversation,
};
pub use credentials::{
    ApiKey, ApiKeyId, Credentials, NewApiKey, NewSignIn, Revocation, RevocationSubject, Rotation,
    SecretHash, SignIn, SignInId,
};

/// What every call of a directory answers.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, DirectoryError>>;

/// Users, credentials and conversations in one place with one order of transactions.
pub trait Directory: Accounts + Credentials + Conversations {}

impl<T: Accounts + Credentials + Conversations + ?Sized> Directory for T {}

/// The most rows one page of any listing holds; a larger limit is lowered to it.
pub const PAGE_MAX: usize = 1_000;

/// Why a call wasn't carried out, sorted by what the caller can do about it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The named thing doesn't exist, or isn't for the caller to know of: don't repeat.
    #[error("{0} not found")]
    NotFound(What),
    /// Something else already stands there: choose another name or read what is there.
    #[error("{0} already taken")]
    Conflict(What),
    /// The rules don't allow it: a repeat is refused again until a role, a ban or the request changes.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// Overloaded, starting or past the deadline: repeat after this time.
    /// A change may have been made nevertheless.
    #[error("directory unavailable, retry after {} ms", retry_after.as_millis())]
    Unavailable {
        /// How long to wait before the next try.
        retry_after: Duration,
    },
    /// The disk is full: nothing was changed, reads go on; repeat when there is room.
    #[error("no room left for the directory")]
    Full,
    /// The stored data or its schema isn't what this program wrote: an operator must look.
    #[error("directory damaged: {0}")]
    Corrupt(String),
}

/// What a [`DirectoryError`] is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum What {
    /// A user.
    User,
    /// A login name, or one that looks like it.
    LoginName,
    /// A device.
    Device,
    /// A sign-in.
    SignIn,
    /// An API key.
    ApiKey,
    /// A conversation: it doesn't exist, or the acting user isn't in it.
    Conversation,
    /// A member of a conversation.
    Member,
    /// The id that a pair's direct conversation would have.
    DirectId,
    /// An idempotency key, used before with another request.
    IdempotencyKey,
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            What::User => "user",
            What::LoginName => "login name",
            What::Device => "device",
            What::SignIn => "sign-in",
            What::ApiKey => "API key",
            What::Conversation => "conversation",
            What::Member => "member",
            What::DirectId => "direct conversation id",
            What::IdempotencyKey => "idempotency key",
        })
    }
}

/// Which rule stands against a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// The acting member's role doesn't allow it.
    Role,
    /// The user is banned here.
    Banned,
    /// A direct conversation's members never change.
    Direct,
    /// The last owner can't step down while others stay; make another one first.
    LastOwner,
    /// The user is disabled.
    Disabled,
    /// More than the stated number at once.
    TooMany(usize),
    /// The request contradicts itself, for instance a direct conversation with oneself.
    Invalid,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Role => f.write_str("the member's role doesn't allow it"),
            Refusal::Banned => f.write_str("the user is banned"),
            Refusal::Direct => f.write_str("a direct conversation's members don't change"),
            Refusal::LastOwner => f.write_str("the last owner can't step down"),
            Refusal::Disabled => f.write_str("the user is disabled"),
            Refusal::TooMany(max) => write!(f, "more than {max} at once"),
            Refusal::Invalid => f.write_str("the request contradicts itself"),
        }
    }
}
