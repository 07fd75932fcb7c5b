//! An event in borrowed parts, as stores and recent caches hold it.

use crate::wire::{self, Encoding, Kind, Members};

/// An event ready to be encoded, without a [`wire::Event`] being made first.
///
/// `members` is given exactly for events of kind [`Kind::Members`].
#[derive(Debug, Clone, Copy)]
pub struct EventRef<'a> {
    /// The conversation it belongs to.
    pub conversation: u64,
    /// Its place there, from 1.
    pub seq: u64,
    /// Microseconds since 1970.
    pub ts: u64,
    /// Who wrote it.
    pub user: u64,
    /// The outbox it came from.
    pub sender: u64,
    /// The grant it was written under.
    pub grant: u64,
    /// Its number under (conversation, sender, grant).
    pub counter: u64,
    /// The message's own 8 bytes.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// How `body` is encoded.
    pub encoding: Encoding,
    /// The body as stored.
    pub body: &'a [u8],
    /// The change of members; `None` for every other kind.
    pub members: Option<&'a Members>,
}

impl<'a> EventRef<'a> {
    /// The parts of a message of the schema. A kind or encoding this version
    /// does not know shows as an empty event.
    pub fn of(event: &'a wire::Event) -> Self {
        let known = Kind::try_from(event.kind)
            .ok()
            .zip(Encoding::try_from(event.encoding).ok());
        let (kind, encoding) = known.unwrap_or((Kind::Empty, Encoding::Identity));
        EventRef {
            conversation: event.conversation,
            seq: event.seq,
            ts: event.ts,
            user: event.user,
            sender: event.sender,
            grant: event.grant,
            counter: event.counter,
            id: event.id,
            kind,
            encoding,
            body: if known.is_some() { &event.body } else { &[] },
            members: event.members.as_ref(),
        }
    }
}

/// The two updates that carry a list of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// [`wire::SyncPage`].
    Sync,
    /// [`wire::HistoryPage`].
    History,
}
