//! Blobs: immutable objects (media, backups, archives), bounded in size.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::BoxFuture;

/// The longest key in bytes.
pub const BLOB_KEY_BYTES_MAX: usize = 200;

/// The most keys one page of a listing holds; a larger limit is lowered to it.
pub const BLOB_PAGE_MAX: usize = 1_000;

/// What every call answers.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, BlobError>>;

/// The name of an object, made by the server and never by a user.
///
/// One to eight parts joined by `/`; a part is 1–64 of `a-z 0-9 - _ .` and doesn't begin with a
/// dot, so no key can name a parent folder, a hidden file or a part of another key's path twice
/// over on file systems that ignore case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlobKey(String);

impl BlobKey {
    /// Checks a name; `None` when it isn't of the form above.
    pub fn new(name: &str) -> Option<BlobKey> {
        let good_part = |part: &str| {
            (1..=64).contains(&part.len())
                && !part.starts_with('.')
                && part
                    .bytes()
                    .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'))
        };
        let good = name.len() <= BLOB_KEY_BYTES_MAX
            && name.split('/').count() <= 8
            && name.split('/').all(good_part);
        good.then(|| BlobKey(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where an object's bytes come from, a piece at a time; nothing is held but the piece at hand.
pub trait BlobSource: Send {
    /// The next piece; `None` at the end. An error ends the put with [`BlobError::Source`].
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, String>>;
}

impl BlobSource for Option<Bytes> {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, String>> {
        let piece = self.take();
        Box::pin(std::future::ready(Ok(piece)))
    }
}

/// Why a call wasn't carried out, sorted by remedy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BlobError {
    /// No such object.
    #[error("no such object")]
    NotFound,
    /// Larger than the given bound; nothing was kept.
    #[error("object larger than {max} bytes")]
    TooLarge {
        /// The bound.
        max: u64,
    },
    /// The asked-for bytes lie outside the object.
    #[error("range outside the object of {size} bytes")]
    Range {
        /// The object's size.
        size: u64,
    },
    /// The source failed; nothing was kept.
    #[error("source failed: {0}")]
    Source(String),
    /// No room: nothing was kept; repeat when there is some.
    #[error("no room left for objects")]
    Full,
    /// Out of reach: repeat after this time. A put may have been made nevertheless.
    #[error("objects out of reach, retry after {} ms: {cause}", retry_after.as_millis())]
    Unavailable {
        /// How long to wait.
        retry_after: Duration,
        /// What happened, for operators.
        cause: String,
    },
}

/// The answer to a put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// The object is stored, with this many bytes.
    Stored(u64),
    /// An object of this key was there before, with this many bytes; it stays as it is.
    Existed(u64),
}

/// A page of keys.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BlobPage {
    /// In byte order.
    pub keys: Vec<BlobKey>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

/// Immutable objects. An object is there whole or not at all, and never changes.
pub trait Blobs: Send + Sync {
    /// Stores an object of at most `bytes_max` under a key that has none yet.
    ///
    /// Durable on return, with its name. Of two writers at the same time one stores and the
    /// other finds it existed. A repeat answers `Existed`. A dropped future keeps nothing, but
    /// for a leftover that is never listed and removed at the next start.
    fn put_if_absent<'a>(
        &'a self,
        key: &'a BlobKey,
        source: &'a mut dyn BlobSource,
        bytes_max: u64,
    ) -> Answer<'a, Put>;

    /// Bytes of an object: all of `range`, which must lie inside it. The caller bounds the range,
    /// since the answer is held in memory.
    fn get<'a>(&'a self, key: &'a BlobKey, range: Range<u64>) -> Answer<'a, Bytes>;

    /// An object's size in bytes; `None`: no such object.
    fn head<'a>(&'a self, key: &'a BlobKey) -> Answer<'a, Option<u64>>;

    /// Removes an object; whether there was one. A repeat is harmless. Durable on return.
    fn delete<'a>(&'a self, key: &'a BlobKey) -> Answer<'a, bool>;

    /// Keys that begin with `prefix`, in byte order from behind `after`, at most `limit`.
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a BlobKey>,
        limit: usize,
    ) -> Answer<'a, BlobPage>;
}
