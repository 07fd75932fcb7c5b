//! What clients record: one [`Record`] an occurrence, one JSON object a line in files.
//!
//! Ids are `u64` (0: none) and appear in JSON as 16 lower-case hex digits; counts, seqs and times
//! are numbers. `at` is in microseconds of one clock that all recorders of a history share
//! (virtual in a simulation). It is used for real-time rules only: the order of a device's own
//! records is the order in which they were recorded.
//!
//! Use the structs by their module (`history::Send`), so that `Send` stays the marker trait.

use serde::{Deserialize, Serialize};

/// One occurrence of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The client numbered a message.
    Send(Send),
    /// The client got an answer to a send.
    Ack(Ack),
    /// The client told its user that a numbered message will never be sent.
    Failed(Failed),
    /// The client told its user that it can't be known whether a numbered message was sent.
    Unknown(Unknown),
    /// An event was handed to the application on a device.
    Deliver(Deliver),
    /// The server said that a range is not for this device's user.
    Hidden(Hidden),
    /// The server gave a newer page first; this range comes on demand.
    Later(Later),
    /// The server ended a sync.
    Synced(Synced),
    /// The server told a device's own delivered cursor.
    Cursor(Cursor),
    /// The server told a device how far a member has come.
    Receipt(Receipt),
    /// The server told a device how many events wait for its user.
    Unread(Unread),
    /// What a user may see of a conversation.
    Member(Member),
    /// The log was lost and began anew: nothing from before holds.
    Epoch(Epoch),
    /// A part was killed or restarted; for the reader only.
    Restart(Restart),
    /// A device lost what it had not stored.
    DeviceReset(DeviceReset),
    /// What a device still had after its reset.
    Resumed(Resumed),
    /// The run has ended and this device is expected to be complete.
    Final(Final),
}

/// The client numbered a message: from here on it may have been sent.
///
/// Recorded again with another `id` under the same counter when the message is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Send {
    /// When, in microseconds.
    pub at: u64,
    /// Who writes.
    #[serde(with = "hex")]
    pub user: u64,
    /// On which device.
    #[serde(with = "hex")]
    pub device: u64,
    /// Where.
    #[serde(with = "hex")]
    pub conversation: u64,
    /// The outbox.
    #[serde(with = "hex")]
    pub sender: u64,
    /// The seq of the event that let the user write.
    pub grant: u64,
    /// 1, 2, 3, … per (conversation, sender, grant).
    pub counter: u64,
    /// The message's own id, never 0.
    #[serde(with = "hex")]
    pub id: u64,
    /// [`body_hash`](crate::body_hash) of the text.
    #[serde(with = "hex")]
    pub body_hash: u64,
}

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Accepted, now or earlier.
    Sent,
    /// A counter before this one is missing.
    Gap,
    /// The grant has ended: what is above the answer's counter never comes.
    Over,
    /// The message before is another one.
    Fork,
    /// The sender uses a later grant.
    Stale,
}

/// An answer to a send. Cumulative, whatever its status: all up to `counter` are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// When, in microseconds.
    pub at: u64,
    /// To whom.
    #[serde(with = "hex")]
    pub user: u64,
    /// To which device.
    #[serde(with = "hex")]
    pub device: u64,
    /// Where.
    #[serde(with = "hex")]
    pub conversation: u64,
    /// The outbox.
    #[serde(with = "hex")]
    pub sender: u64,
    /// The grant.
    pub grant: u64,
    /// The last accepted counter; 0: none.
    pub counter: u64,
    /// The id under that counter; 0: none.
    #[serde(with = "hex")]
    pub id: u64,
    /// The seq of that counter's event; 0: not told.
    pub seq: u64,
    /// Its time, microseconds since 1970; 0: not told.
    pub ts: u64,
    /// Whether the server had it before.
    pub duplicate: bool,
    /// The verdict.
    pub status: Status,
}

/// The client gave a numbered message up: its user was told "not sent", or it was numbered anew
/// under another sender or grant. It must never appear under this numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// When, in microseconds.
    pub at: u64,
    /// Who wrote.
    #[serde(with = "hex")]
    pub user: u64,
    /// On which device.
    #[serde(with = "hex")]
    pub device: u64,
    /// Where.
    #[serde(with = "hex")]
    pub conversation: u64,
    /// The outbox.
    #[serde(with = "hex")]
    pub sender: u64,
    /// The grant.
    pub grant: u64,
    /// The counter.
    pub counter: u64,
    /// The message's id.
    #[serde(with = "hex")]
    pub id: u64,
}

/// The client told its user that it can't be known whether a numbered message was sent: its outbox
/// was a copy, and the part of the history that could tell is hidden from the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    /// When, in microseconds.
    pub at: u64,
    /// Who wrote.
    #[serde(with = "hex")]
    pub user: u64,
    /// On which device.
    #[serde(with = "hex")]
    pub device: u64,
    /// Where.
    #[serde(with = "hex")]
    pub conversation: u64,
    /// The outbox.
    #[serde(with = "hex")]
    pub sender: u64,
    /// The grant.
    pub grant: u64,
    /// The counter.
    pub counter: u64,
    /// The message's id.
    #[serde(with = "hex")]
    pub id: u64,
}

/// What an event holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A text message.
    Text,
    /// A message of the application's own shape.
    Json,
    /// Stands for a message that was refused or couldn't be stored.
    Empty,
    /// A change of members.
    Members,
}

/// An event was handed to the application, after the client library dropped repeats.
///
/// A device's own messages are events for it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deliver {
    /// When, in microseconds.
    pub at: u64,
    /// Whose device.
    #[serde(with = "hex")]
    pub user: u64,
    /// To which device.
    #[serde(with = "hex")]
    pub device: u64,
    /// Where.
    #[serde(with = "hex")]
    pub conversation: u64,
    /// At which seq.
    pub seq: u64,
    /// The event's time, microseconds since 1970.
    pub ts: u64,
    /// Who wrote it; 0 for events of the server's own.
    #[serde(with = "hex")]
    pub author: u64,
    /// Under which outbox; 0 for events of the server's own.
    #[serde(with = "hex")]
    pub sender: u64,
    /// Under which grant.
    pub grant: u64,
    /// Under which counter.
    pub counter: u64,
    /// The message's id; 0: no client sent this event (membership, service messages).
    #[serde(with = "hex")]
    pub id: u64,
    /// What it holds.
    pub kind: EventKind,
    /// [`body_hash`](crate::body_hash) of the body.
    #[serde(with = "hex")]
    pub body_hash: u64,
}

/// The server said that `from..=to` is not for this device's user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hidden {
    /// When, in microseconds.
    pub at: u64,
    /// Whose device.
    #[serde(with = "hex")]
    pub user: u64,
    /// To which device.
    #[serde(with = "hex")]
    pub device: u64,
    /// Where.
    #[serde(with = "hex")]
    pub conversation: u64,
    /// First seq of the range.
    pub from: u64,
    /// Last seq of the range.
    pub to: u64,
}

/// The server gave a newer page first and said that `from..=to` can be had on demand: its events
/// may be shown after newer ones, or not until [`Final`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Later {
    /// When, in microseconds.
    pub at: u64,
    /// Whose device.
    #[serde(with = "hex")]
    pub user: u64,
    /// To which device.
    #[serde(with = "hex")]
    pub device: u64,
    /// Where.
    #[serde(with = "hex")]
    pub conversation: u64,
    /// First seq of the range.
    pub from: u64,
    /// Last seq of the range.
    pub to: u64,
}

/// The server ended a sync of this conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synced {
    /// When the answer came, in microseconds.
    pub at: u64,
    /// When the device asked; 0: unknown (then the head is not held against acks before it).
    #[serde(default)]
    pub asked: u64,
    /// Whose device.
    #[serde(with = "hex")]
    pub user: u64,
    /// To which device.
    #[serde(with = "hex")]
    pub device: u64,
    /// Where.
    #[serde(with = "hex")]
    pub conversation: u64,
    /// The last seq, as the server says.
    pub head: u64,
    /// Whether the server says that the device has all up to `head`.
    pub complete: bool,
}

/// The server told how far a device has confirmed delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// When, in microseconds.
    pub at: u64,
    /// Whose device.
    #[serde(with = "hex")]
    pub user: u64,
    /// The device whose cursor it is.
    #[serde(with = "hex")]
    pub device: u64,
    /// Where.
    #[serde(with = "hex")]
    pub conversation: u64,
    /// It has all up to here.
    pub seq: u64,
}

/// The server told `device` how far `user` has come.
///
/// It may not be ahead of what that user's devices were shown, so a user of whom any device is
/// recorded must have all of them recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// When, in microseconds.
    pub at: u64,
    /// The device that was told.
    #[serde(with = "hex")]
    pub device: u64,
    /// Where.
    #[serde(with = "hex")]
    pub conversation: u64,
    /// The member it is about.
    #[serde(with = "hex")]
    pub user: u64,
    /// The member's devices have all up to here.
    pub delivered: u64,
    /// The member has read up to here.
    pub read: u64,
}

/// The server told a device how many events wait: those in `read + 1 ..= head` that its user may
/// see, of whatever kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// When, in microseconds.
    pub at: u64,
    /// Whose device.
    #[serde(with = "hex")]
    pub user: u64,
    /// The device that was told.
    #[serde(with = "hex")]
    pub device: u64,
    /// Where.
    #[serde(with = "hex")]
    pub conversation: u64,
    /// The user's read cursor, as told with it.
    pub read: u64,
    /// The conversation's head, as told with it.
    pub head: u64,
    /// How many.
    pub count: u64,
}

/// A user may see `from_seq..=to_seq` of a conversation. A user with no such record may see all;
/// one with several, their union. A later record with the same `from_seq` replaces the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// When, in microseconds.
    pub at: u64,
    /// Where.
    #[serde(with = "hex")]
    pub conversation: u64,
    /// Who.
    #[serde(with = "hex")]
    pub user: u64,
    /// The first visible seq.
    pub from_seq: u64,
    /// The seq of the event that ended it; 0: still a member.
    pub to_seq: u64,
}

/// The log was lost and began anew. The first record of a higher epoch ends all that was before:
/// orders are judged up to there, and nothing is lost by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// When, in microseconds.
    pub at: u64,
    /// The new epoch.
    pub epoch: u64,
}

/// The parts that a run kills and restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The whole program.
    Server,
    /// A gateway.
    Gateway,
    /// A router.
    Router,
    /// The log.
    Log,
    /// The store.
    Store,
    /// The directory.
    Directory,
    /// The registry.
    Registry,
    /// The network between parts.
    Network,
    /// A client.
    Client,
}

/// A part was killed or restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// When, in microseconds.
    pub at: u64,
    /// What.
    pub part: Part,
}

/// A device crashed and lost what it had not stored: it may be shown again what it was shown
/// before. Say with [`Resumed`] what it kept, where that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReset {
    /// When, in microseconds.
    pub at: u64,
    /// Which.
    #[serde(with = "hex")]
    pub device: u64,
}

/// After its reset the device has all up to `kept` and must be shown everything above it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// When, in microseconds.
    pub at: u64,
    /// Whose device.
    #[serde(with = "hex")]
    pub user: u64,
    /// Which.
    #[serde(with = "hex")]
    pub device: u64,
    /// Where.
    #[serde(with = "hex")]
    pub conversation: u64,
    /// The stored cursor; 0: nothing was kept.
    pub kept: u64,
}

/// The run has ended, everything was given time to settle, and this device is expected to have
/// been shown all it may see up to `head`, and to know what became of all it numbered here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Final {
    /// When, in microseconds.
    pub at: u64,
    /// Whose device.
    #[serde(with = "hex")]
    pub user: u64,
    /// Which.
    #[serde(with = "hex")]
    pub device: u64,
    /// Where.
    #[serde(with = "hex")]
    pub conversation: u64,
    /// The last seq.
    pub head: u64,
}

macro_rules! records {
    ($($name:ident),*) => {
        impl Record {
            /// When it was recorded, in microseconds.
            pub fn at(&self) -> u64 {
                match self { $(Record::$name(record) => record.at),* }
            }
        }
        $(impl From<$name> for Record {
            fn from(record: $name) -> Record {
                Record::$name(record)
            }
        })*
    };
}

records!(
    Send,
    Ack,
    Failed,
    Unknown,
    Deliver,
    Hidden,
    Later,
    Synced,
    Cursor,
    Receipt,
    Unread,
    Member,
    Epoch,
    Restart,
    DeviceReset,
    Resumed,
    Final
);

impl Record {
    /// The device it is about; 0: none.
    pub fn device(&self) -> u64 {
        match self {
            Record::Send(r) => r.device,
            Record::Ack(r) => r.device,
            Record::Failed(r) => r.device,
            Record::Unknown(r) => r.device,
            Record::Deliver(r) => r.device,
            Record::Hidden(r) => r.device,
            Record::Later(r) => r.device,
            Record::Synced(r) => r.device,
            Record::Cursor(r) => r.device,
            Record::Receipt(r) => r.device,
            Record::Unread(r) => r.device,
            Record::DeviceReset(r) => r.device,
            Record::Resumed(r) => r.device,
            Record::Final(r) => r.device,
            Record::Member(_) | Record::Epoch(_) | Record::Restart(_) => 0,
        }
    }
}

/// Ids as 16 lower-case hex digits.
mod hex {
    use serde::de::{Error, Unexpected, Visitor};
    use serde::{Deserializer, Serializer};
    use std::fmt;

    pub fn serialize<S: Serializer>(id: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0u8; 16];
        for (place, digit) in text.iter_mut().enumerate() {
            *digit = DIGITS[(id >> (60 - 4 * place) & 15) as usize];
        }
        serializer.serialize_str(std::str::from_utf8(&text).expect("hex digits are ASCII"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        struct Hex;
        impl Visitor<'_> for Hex {
            type Value = u64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an id of 16 lower-case hex digits")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
                let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if text.len() == 16
                    && text.bytes().all(lower)
                    && let Ok(id) = u64::from_str_radix(text, 16)
                {
                    return Ok(id);
                }
                Err(E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Hex)
    }
}
