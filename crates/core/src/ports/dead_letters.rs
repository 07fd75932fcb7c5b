//! Dead letters: records of the log that can't be read, set aside with the reason.
//!
//! A router that meets such a record goes on (`core::path`): the conversation gets an empty event in
//! its place. The record itself is kept here, where an operator finds it, and may be replayed by a
//! program that can read it.

use std::time::Duration;

use bytes::Bytes;

use super::BoxFuture;
use crate::ids::{ConversationId, Micros, Partition, Position};
use crate::varint::{self, Malformed, Reader};

/// How long one [`DeadLetters::put`] may take. Several such tries fit into what the router's driver gives a
/// letter, during which its position isn't committed.
pub const PUT_DEADLINE: Duration = Duration::from_secs(3);

/// How long [`DeadLetters::list`] and [`DeadLetters::get`] may take: an implementation may have to read
/// through all there is.
pub const READ_DEADLINE: Duration = Duration::from_secs(60);

/// The most headings of one page: at 600 bytes each, well below a megabyte.
pub const PAGE_MAX: usize = 1000;

/// A reason is cut at this length.
pub const REASON_BYTES_MAX: usize = 500;

/// What a letter is found by, and the order of lists. A record has one key for ever, so whoever sets it aside
/// again, after a crash or beside another router, names the same letter.
pub type Key = (Partition, Position);

/// A letter without its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heading {
    /// Of which partition of the log.
    pub partition: Partition,
    /// Where it stood there, and in which log (the epoch).
    pub position: Position,
    /// When it was appended to the log.
    pub appended: Micros,
    /// Its conversation, if that much could be read.
    pub conversation: Option<ConversationId>,
    /// Why it couldn't be read, at most [`REASON_BYTES_MAX`] bytes.
    pub reason: String,
    /// How many bytes the record has.
    pub bytes: u64,
}

impl Heading {
    /// What it is found by.
    pub fn key(&self) -> Key {
        (self.partition, self.position)
    }
}

/// A record that was set aside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetter {
    /// What is known of it.
    pub heading: Heading,
    /// Its bytes, as they stood in the log.
    pub payload: Bytes,
}

/// Headings in the order of their keys.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// At most as many as were asked for.
    pub headings: Vec<Heading>,
    /// Whether there are more behind them.
    pub more: bool,
}

/// Why dead letters couldn't be set aside or read, sorted by remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeadLetterError {
    /// It may go better a moment later; whether a letter was set aside is not known, and a repeat is harmless.
    #[error("dead letters can't be reached now: {0}")]
    Unavailable(String),
    /// There is no room for it until an operator makes some.
    #[error("there is no room for more dead letters: {0}")]
    Full(String),
    /// It is there, but its stored bytes are damaged.
    #[error("the stored letter is damaged: {0}")]
    Damaged(String),
}

/// Where dead letters are kept.
///
/// - **Durable**: a letter whose put has returned `Ok` survives what the log survives.
/// - **Idempotent**: of several puts under one [`Key`] the first stays, and lists show one.
/// - **Bounded**: an implementation keeps letters for a time or up to a number, and says which.
/// - Lists are as of some moment during the call. Dropping a future may leave its work done.
pub trait DeadLetters: Send + Sync {
    /// Sets a letter aside.
    fn put(&self, letter: DeadLetter) -> BoxFuture<'_, Result<(), DeadLetterError>>;

    /// The headings behind `after`, or from the first, in the order of their keys; at most `limit`
    /// and [`PAGE_MAX`]. A stored letter that is damaged is listed, with that as its reason, or left out.
    fn list(
        &self,
        after: Option<Key>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Page, DeadLetterError>>;

    /// One letter; `None`: there is none under this key.
    fn get(&self, key: Key) -> BoxFuture<'_, Result<Option<DeadLetter>, DeadLetterError>>;
}

const VERSION: u8 = 1;

impl DeadLetter {
    /// The letter of a record.
    pub fn new(
        (partition, position): Key,
        appended: Micros,
        conversation: Option<ConversationId>,
        mut reason: String,
        payload: Bytes,
    ) -> DeadLetter {
        if reason.len() > REASON_BYTES_MAX {
            let end = reason.floor_char_boundary(REASON_BYTES_MAX);
            reason.truncate(end);
        }
        DeadLetter {
            heading: Heading {
                partition,
                position,
                appended,
                conversation,
                reason,
                bytes: payload.len() as u64,
            },
            payload,
        }
    }

    /// The stored bytes: version 1, then partition, epoch, offset, time, conversation (0 or 1, then 8 bytes),
    /// reason and payload.
    pub fn encode(&self) -> Vec<u8> {
        let heading = &self.heading;
        let mut out = Vec::with_capacity(self.payload.len() + heading.reason.len() + 64);
        out.push(VERSION);
        varint::put(&mut out, u64::from(heading.partition.0));
        varint::put(&mut out, u64::from(heading.position.epoch));
        varint::put(&mut out, heading.position.offset);
        varint::put(&mut out, heading.appended);
        out.push(u8::from(heading.conversation.is_some()));
        if let Some(conversation) = heading.conversation {
            out.extend_from_slice(&conversation.0.to_le_bytes());
        }
        varint::put_bytes(&mut out, heading.reason.as_bytes());
        varint::put_bytes(&mut out, &self.payload);
        out
    }

    /// Takes stored bytes apart.
    ///
    /// # Errors
    /// When they aren't what [`DeadLetter::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<DeadLetter, Malformed> {
        let mut r = Reader::new(bytes, "dead letter");
        if r.byte()? != VERSION {
            return Err(r.malformed());
        }
        let partition = Partition(r.varint32()?);
        let position = Position {
            epoch: r.varint32()?,
            offset: r.varint()?,
        };
        let appended = r.varint()?;
        let conversation = match r.byte()? {
            0 => None,
            1 => Some(ConversationId(r.fixed64()?)),
            _ => return Err(r.malformed()),
        };
        // Shown, never compared: whatever isn't text is better shown than lost.
        let reason = String::from_utf8_lossy(r.bytes()?).into_owned();
        let payload = r.owned_bytes()?;
        let key = (partition, position);
        Ok(DeadLetter::new(
            key,
            appended,
            conversation,
            reason,
            payload,
        ))
    }
}

/// The smallest headings behind a key that fill a page, of those offered in any order, the first of each key;
/// never more than one above the page in memory.
#[derive(Debug)]
pub struct Smallest {
    after: Option<Key>,
    limit: usize,
    found: std::collections::BTreeMap<Key, Heading>,
}

impl Smallest {
    /// For a page of `limit` at most.
    pub fn new(after: Option<Key>, limit: usize) -> Smallest {
        Smallest {
            after,
            limit: limit.min(PAGE_MAX),
            found: Default::default(),
        }
    }

    /// Whether a letter of this key would be kept.
    pub fn wants(&self, key: Key) -> bool {
        let behind = self.after.is_none_or(|after| key > after);
        let fits = self.found.len() <= self.limit
            || self.found.last_key_value().is_some_and(|(l, _)| key < *l);
        behind && fits && !self.found.contains_key(&key)
    }

    /// Whether the page is full, so that partitions behind those offered can't add to it.
    pub fn is_full(&self) -> bool {
        self.found.len() > self.limit
    }

    /// Offers a heading.
    pub fn offer(&mut self, heading: Heading) {
        if !self.wants(heading.key()) {
            return;
        }
        self.found.insert(heading.key(), heading);
        if self.found.len() > self.limit + 1 {
            self.found.pop_last();
        }
    }

    /// The page.
    pub fn page(self) -> Page {
        let more = self.is_full();
        let headings = self.found.into_values().take(self.limit).collect();
        Page { headings, more }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_set_aside_is_what_is_read(partition: u32, epoch: u32, offset: u64, appended: u64, conversation: Option<u64>, reason in ".{0,300}", payload: Vec<u8>, cut: prop::sample::Index) {
            let key = (Partition(partition), Position { epoch, offset });
            let letter = DeadLetter::new(key, appended, conversation.map(ConversationId), reason, payload.into());
            prop_assert!(letter.heading.reason.len() <= REASON_BYTES_MAX);
            let bytes = letter.encode();
            prop_assert_eq!(DeadLetter::decode(&bytes), Ok(letter));
            prop_assert!(DeadLetter::decode(&bytes[..cut.index(bytes.len())]).is_err());
        }

        #[test]
        fn strange_bytes_are_an_error_and_nothing_worse(bytes: Vec<u8>) {
            _ = DeadLetter::decode(&bytes);
        }

        #[test]
        fn a_page_is_the_smallest_behind_a_key(offsets in prop::collection::vec(0..30u64, 0..40), after in prop::option::of(0..30u64), limit in 1..8usize) {
            let at = |offset| (Partition(1), Position { epoch: 1, offset });
            let mut smallest = Smallest::new(after.map(at), limit);
            for &offset in &offsets {
                smallest.offer(DeadLetter::new(at(offset), 0, None, String::new(), Bytes::new()).heading);
            }
            let mut want: Vec<u64> = offsets.into_iter().filter(|o| after.is_none_or(|a| *o > a)).collect();
            want.sort_unstable();
            want.dedup();
            let page = smallest.page();
            let found: Vec<u64> = page.headings.iter().map(|h| h.position.offset).collect();
            prop_assert_eq!(&found, &want[..want.len().min(limit)]);
            prop_assert_eq!(page.more, want.len() > limit);
        }
    }
}
