//! Bodies of messages: compressing them once, and looking inside with a bound.
//!
//! A body above 1 KiB is compressed by its sender, and stored and forwarded as
//! it is. Whoever inflates one holds to these rules, so that no body costs more
//! than its inflated limit, whatever its bytes claim:
//!
//! 1. It is exactly one zstd frame that states its inflated size.
//! 2. The stated size is checked before anything is allocated: at most the
//!    limit, and at most 100 times the compressed size.
//! 3. Inflating goes into a buffer of the stated size and fails beyond it.

use std::borrow::Cow;
use std::cell::RefCell;

use bytes::Bytes;
use zstd::bulk::Decompressor;
use zstd::zstd_safe;

use crate::codes::ErrorCode;
use crate::json;
use crate::limits::{COMPRESS_ABOVE_BYTES, INFLATE_RATIO_MAX, INFLATED_BYTES_MAX};
use crate::wire::{Encoding, Kind};

/// What every zstd frame begins with (RFC 8878 section 3.1.1).
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// zstd level: on bodies of a few KiB higher ones save nothing worth their time.
const LEVEL: i32 = 3;

/// Why a body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Above the limit, inflated.
    #[error("The body is longer than the limit.")]
    TooLong,
    /// A text that is not UTF-8.
    #[error("The body of a `text` is not UTF-8.")]
    NotUtf8,
    /// A JSON body that is not one JSON value, nests too deep or has a key twice.
    #[error("The body of a `json` is not one JSON value of at most 32 levels without double keys.")]
    NotJson,
    /// An empty message with a body.
    #[error("An `empty` has no body.")]
    NotEmpty,
    /// A kind that users do not send.
    #[error("`members` events are made by the server.")]
    NotSent,
    /// Not exactly one zstd frame that states its size truthfully and within reason.
    #[error("The compressed body is not one zstd frame stating its size.")]
    NotZstd,
}

impl BodyError {
    /// The error code that tells the client.
    pub fn code(self) -> ErrorCode {
        match self {
            BodyError::TooLong => ErrorCode::TooLong,
            _ => ErrorCode::BadRequest,
        }
    }
}

/// Compresses a body as its sender should; `None`: it is sent as it is.
///
/// That is so up to 1 KiB, where it would not become smaller, and where it
/// would shrink so much that receivers must refuse it.
pub fn compress_body(body: &[u8]) -> Option<Bytes> {
    if body.len() <= COMPRESS_ABOVE_BYTES {
        return None;
    }
    let packed = zstd::bulk::compress(body, LEVEL).ok()?;
    let fair = body.len() as u64 <= packed.len() as u64 * INFLATE_RATIO_MAX;
    (packed.len() < body.len() && fair).then(|| packed.into())
}

/// Checks that a body is what its kind says, and gives it back inflated.
///
/// `inflated_max` is the limit in force, in bytes; at most [`INFLATED_BYTES_MAX`] counts.
pub fn check_body(
    kind: Kind,
    encoding: Encoding,
    body: &[u8],
    inflated_max: usize,
) -> Result<Cow<'_, [u8]>, BodyError> {
    match kind {
        Kind::Members => return Err(BodyError::NotSent),
        Kind::Empty if body.is_empty() && encoding == Encoding::Identity => {
            return Ok(Cow::Borrowed(body));
        }
        Kind::Empty => return Err(BodyError::NotEmpty),
        Kind::Text | Kind::Json => {}
    }
    let plain = inflate(encoding, body, inflated_max)?;
    match kind {
        Kind::Json if json::check_value(&plain).is_err() => Err(BodyError::NotJson),
        Kind::Text if std::str::from_utf8(&plain).is_err() => Err(BodyError::NotUtf8),
        _ => Ok(plain),
    }
}

/// The plain bytes of a body of at most `inflated_max` bytes, whatever its kind.
pub fn inflate(
    encoding: Encoding,
    body: &[u8],
    inflated_max: usize,
) -> Result<Cow<'_, [u8]>, BodyError> {
    let inflated_max = inflated_max.min(INFLATED_BYTES_MAX);
    match encoding {
        Encoding::Identity if body.len() > inflated_max => Err(BodyError::TooLong),
        Encoding::Identity => Ok(Cow::Borrowed(body)),
        Encoding::Zstd => inflate_zstd(body, inflated_max).map(Cow::Owned),
    }
}

fn inflate_zstd(body: &[u8], inflated_max: usize) -> Result<Vec<u8>, BodyError> {
    thread_local! {
        // A context takes about 100 KB; one a thread, not one a body.
        static CONTEXT: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    }
    if !body.starts_with(&ZSTD_MAGIC) {
        return Err(BodyError::NotZstd);
    }
    let Ok(Some(size)) = zstd_safe::get_frame_content_size(body) else {
        return Err(BodyError::NotZstd);
    };
    if size > inflated_max as u64 {
        return Err(BodyError::TooLong);
    }
    if size > (body.len() as u64).saturating_mul(INFLATE_RATIO_MAX) {
        return Err(BodyError::TooLong);
    }
    // Several frames in a row would inflate one after the other.
    if zstd_safe::find_frame_compressed_size(body) != Ok(body.len()) {
        return Err(BodyError::NotZstd);
    }
    // Within `usize`, since it is not above `inflated_max`.
    let size = size as usize;
    let plain = CONTEXT.with_borrow_mut(|slot| {
        let context = match slot {
            Some(context) => context,
            None => slot.insert(Decompressor::new().ok()?),
        };
        context.decompress(body, size).ok()
    });
    match plain {
        Some(plain) if plain.len() == size => Ok(plain),
        _ => Err(BodyError::NotZstd),
    }
}
