//! Making a frame from items that are already encoded.
//!
//! An item is one update (or command) as [`crate::encode_update`] and its like
//! append it. The same bytes serve every session of a format, and a frame is
//! put together around them:
//!
//! | | one item | several |
//! |---|---|---|
//! | protobuf | the item | the items, one behind the other |
//! | JSON | the item | `[` items with `,` between them `]` |
//!
//! So a frame of one item is that item in both formats, nothing copied; a
//! frame of more is [`open`], the items with [`BETWEEN_JSON`] between them
//! (protobuf: nothing), and [`close`], which suits a gathering write as well as
//! a buffer ([`compose`]). [`payload_len`] gives the length for the WebSocket
//! header before anything is written.

use crate::Format;

/// What stands between two JSON items of one frame.
pub const BETWEEN_JSON: &[u8] = b",";

/// What stands before the first of `items` items.
pub const fn open(format: Format, items: usize) -> &'static [u8] {
    match format {
        Format::Json if items != 1 => b"[",
        _ => b"",
    }
}

/// What stands between two items.
pub const fn between(format: Format) -> &'static [u8] {
    match format {
        Format::Json => BETWEEN_JSON,
        Format::Proto => b"",
    }
}

/// What stands behind the last of `items` items.
pub const fn close(format: Format, items: usize) -> &'static [u8] {
    match format {
        Format::Json if items != 1 => b"]",
        _ => b"",
    }
}

/// The bytes of a frame of `items` items that have `items_bytes` bytes together.
pub const fn payload_len(format: Format, items: usize, items_bytes: usize) -> usize {
    let around = open(format, items).len() + close(format, items).len();
    items_bytes + around + between(format).len() * items.saturating_sub(1)
}

/// Appends the frame of `items` to `out`.
pub fn compose<T: AsRef<[u8]>>(format: Format, items: &[T], out: &mut Vec<u8>) {
    out.extend_from_slice(open(format, items.len()));
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.extend_from_slice(between(format));
        }
        out.extend_from_slice(item.as_ref());
    }
    out.extend_from_slice(close(format, items.len()));
}
