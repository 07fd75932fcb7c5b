//! Identifiers: newtypes over `u64`, so that one kind can't be passed for another.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            /// 16 lower-case hexadecimal digits, as in the JSON protocol.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:x})"), self.0)
            }
        }
    };
}

id!(
    /// An account.
    UserId
);
id!(
    /// One client of a user.
    DeviceId
);
id!(
    /// One live connection of a device.
    SessionId
);
id!(
    /// One ordered history with members.
    ConversationId
);
id!(
    /// A client's outbox: 64 random bits, scoped by user.
    SenderId
);
id!(
    /// The client's 8 random bytes for one message; 0 stands for "none before".
    MessageKey
);

/// One gateway worker of one server: where frames for its sessions are sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct GatewayId(pub u32);

impl GatewayId {
    /// The place of a server's HTTP API among its workers.
    pub const HTTP: u8 = 255;

    /// A worker of a server. Servers are told apart by 24 random bits, made at each start, so that
    /// nothing meant for a former process reaches the next one; 0: this server has no others.
    pub fn new(server: u32, worker: u8) -> GatewayId {
        GatewayId(server << 8 | u32::from(worker))
    }

    /// The server it belongs to.
    pub fn server(self) -> u32 {
        self.0 >> 8
    }
}

/// A conversation's dense event number, from 1; 0 stands for "nothing yet".
pub type Seq = u64;

/// Microseconds since 1970.
pub type Micros = u64;

/// Where a record sits in the log: which log, and how far.
///
/// Positions of different epochs compare by epoch first; the epoch changes only
/// when a log is ever lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position {
    /// Which log.
    pub epoch: u32,
    /// The record's number in its partition, from 0; holes are allowed.
    pub offset: u64,
}

impl Position {
    /// The position behind this one.
    pub fn next(self) -> Position {
        Position {
            offset: self.offset + 1,
            ..self
        }
    }
}

/// One of the log's independent orders; a conversation belongs to exactly one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Partition(pub u32);

/// The number of slots that conversations are spread over, for ever.
pub const SLOTS: u32 = 4096;

impl ConversationId {
    /// The conversation's slot: fixed for ever, whatever the number of partitions.
    pub fn slot(self) -> u32 {
        (twox_hash::XxHash3_64::oneshot(&self.0.to_le_bytes()) % u64::from(SLOTS)) as u32
    }
}
