//! What a core is told to do, and what it tells.

use tidings_protocol::body::BodyError;
use tidings_protocol::wire::{
    ClientFrame, ConversationKind, Event, Feature, FeatureState, Presence, Role, UserPresence,
};

use crate::saved::PersistOp;

/// The client's own number for a message, unique within one outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalId(pub u64);

/// What the driver does, in the order given.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Apply this to what is kept. It must be on disk before the driver acts on any later
    /// output; several in a row may share one write and one fsync.
    Persist(PersistOp),
    /// Write this frame to the connection; without one it is dropped.
    Frame(ClientFrame),
    /// Tell the app.
    App(AppEvent),
    /// Connect after this time, then call `connected` or `disconnected`.
    Connect {
        /// Microseconds from now.
        after: u64,
    },
    /// Drop the connection. `Connect` follows; `disconnected` need not be called.
    Disconnect,
    /// A fresh token is needed: call `set_token`.
    NeedToken,
    /// The server said not to come back: connect again only on the user's wish.
    GiveUp {
        /// The close code.
        code: u16,
    },
}

/// Why a message failed: it is not accepted and never will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailReason {
    /// Longer than the server's published limit.
    TooLong,
    /// Refused by the server for good, with this error code.
    Refused(String),
    /// Withdrawn by the user before it was numbered.
    Withdrawn,
}

/// What a sync said of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationInfo {
    /// Which one.
    pub conversation: u64,
    /// Its kind.
    pub kind: ConversationKind,
    /// Its title; may be empty.
    pub title: String,
    /// Its last seq.
    pub head: u64,
    /// The user's role in it.
    pub role: Role,
    /// Whether the user may write.
    pub may_write: bool,
    /// The first seq the user may see.
    pub visible_from: u64,
    /// The user's read cursor.
    pub read: u64,
}

/// News for the app.
#[derive(Debug, Clone, PartialEq)]
pub enum AppEvent {
    /// Signed in on a new connection; a sync is under way.
    Ready {
        /// The user.
        user: u64,
        /// The device.
        device: u64,
        /// The session.
        session: u64,
    },
    /// The connection is gone.
    Disconnected {
        /// The close code; `None`: it ended without one.
        code: Option<u16>,
    },
    /// A conversation as a sync described it.
    Conversation(ConversationInfo),
    /// The next event of a conversation, in the order of seqs: a message of the user or of another.
    Message(Event),
    /// The next event of a conversation: a change of its members.
    Members(Event),
    /// Older seqs are left out for now; ask for them with `fetch_older`.
    Hole {
        /// Where.
        conversation: u64,
        /// The first seq left out.
        from: u64,
        /// The last seq left out.
        to: u64,
    },
    /// Events out of a hole: the range is complete, what isn't in `events` is hidden from this user.
    Older {
        /// Where.
        conversation: u64,
        /// The first seq of the range.
        from: u64,
        /// The last seq of the range.
        to: u64,
        /// The events, rising.
        events: Vec<Event>,
    },
    /// All up to the head a sync named has been given to the app.
    Synced {
        /// Where.
        conversation: u64,
        /// That head.
        head: u64,
    },
    /// A sync has been answered; what is missing is being fetched.
    SyncDone {
        /// False: the server could not answer for a part, it is asked again.
        complete: bool,
    },
    /// The server's log is another one: everything known of conversations is void.
    Reset,
    /// A message is sent: the server has it for good.
    Sent {
        /// Where.
        conversation: u64,
        /// Which message.
        local: LocalId,
        /// Its seq; 0: not told yet, the event itself follows.
        seq: u64,
        /// Its identity.
        message_id: [u8; 16],
    },
    /// A message isn't sent and never will be.
    Failed {
        /// Where.
        conversation: u64,
        /// Which message.
        local: LocalId,
        /// Why.
        reason: FailReason,
    },
    /// The user's grant ended before this message was accepted. It goes out under the
    /// next grant unless it is withdrawn.
    Offered {
        /// Where.
        conversation: u64,
        /// Which message.
        local: LocalId,
    },
    /// It can't be known whether the message was sent: the outbox is a copy, or might be an old
    /// backup since the message waited when the client started, and the part of the history
    /// that could tell is hidden from the user. It isn't sent again.
    Unknown {
        /// Where.
        conversation: u64,
        /// Which message.
        local: LocalId,
    },
    /// This outbox was found to be a copy of another one and goes on under a fresh sender id.
    CopyNoticed {
        /// Where it was noticed.
        conversation: u64,
        /// The sender id that it had.
        old: u64,
        /// The one from here on.
        new: u64,
    },
    /// Cursors of another member, or of the user's other devices, went on.
    Receipt {
        /// Where.
        conversation: u64,
        /// Whose.
        user: u64,
        /// All up to this seq is on a device of the user.
        delivered: u64,
        /// All up to this seq was read.
        read: u64,
    },
    /// Somebody types, or stopped.
    Typing {
        /// Where.
        conversation: u64,
        /// Who.
        user: u64,
        /// Whether.
        on: bool,
    },
    /// Presence of watched users.
    Presence(Vec<UserPresence>),
    /// Members who are online haven't confirmed this message of the user; it waits for them.
    Delayed {
        /// Where.
        conversation: u64,
        /// Its seq.
        seq: u64,
    },
    /// A feature works otherwise from now on: with a part of the server down, or overloaded, it is less.
    Mode {
        /// Which.
        feature: Feature,
        /// How it is.
        state: FeatureState,
        /// When that began, microseconds since 1970.
        since: u64,
    },
    /// The client read too slowly; it syncs again.
    Lagging,
    /// The server refused or can't do something; numbered messages are handled without the app.
    Error {
        /// The error code.
        code: String,
        /// A sentence for developers.
        message: String,
        /// Where; 0: not about a conversation.
        conversation: u64,
    },
}

/// Why a message isn't taken into the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The body is longer than the limit, in bytes.
    #[error("the body is longer than {0} bytes")]
    TooLong(usize),
    /// The outbox is full: try again when something was sent.
    #[error("the outbox is full")]
    OutboxFull,
    /// A body that isn't what its kind says, or a kind that users don't send.
    #[error(transparent)]
    Body(#[from] BodyError),
}

/// Presence that the user wants to show.
pub(super) type Shown = Option<Presence>;
