//! A block's outer form: columns, each stored the shortest of three ways, and a checksum.
//!
//! ```text
//! block  = count, { raw length, form, stored length } × count, stored bytes × count, crc32
//! form   = 0 as it is | 1 one byte repeated | 2 a zstd frame
//! ```
//!
//! Numbers are varints, the checksum is little-endian and covers all before it. Columns
//! have a frame of their own each, because random ids and text under one Huffman table
//! would spoil it for the text.

use std::cell::RefCell;

use bytes::Bytes;
use tidings_core::varint::{self, Malformed, Reader};

const PLAIN: u8 = 0;
const CONSTANT: u8 = 1;
const ZSTD: u8 = 2;

const WHAT: &str = "block";

/// Shorter columns are not worth a frame's header.
const COMPRESS_MIN: usize = 24;

/// No block of ours is longer when inflated: what claims to be is damaged. The longest is one
/// event with the longest body that a record can carry.
const RAW_MAX: u64 = 64 << 20;

/// Nor are all columns of a block together: room for the four of a footer.
const RAW_SUM_MAX: u64 = 4 * RAW_MAX;

/// No layout has more columns.
const COLUMNS_MAX: usize = 24;

/// No block of ours has more rows, since a row takes much more memory than a byte that is said to be
/// repeated so often.
pub const ROWS_MAX: usize = 1 << 18;

thread_local! {
    /// A context is 100 KB and more: made once for each thread that reads.
    static INFLATE: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Frees the calling thread's context, until it reads the next block.
pub fn forget_context() {
    INFLATE.take();
}

/// Makes stored blocks of columns; holds the compressor's memory.
pub struct Sealer {
    compressor: zstd::bulk::Compressor<'static>,
    frame: Vec<u8>,
}

impl Sealer {
    /// A sealer for one zstd level.
    pub fn new(level: i32) -> std::io::Result<Sealer> {
        let compressor = zstd::bulk::Compressor::new(level)?;
        Ok(Sealer {
            compressor,
            frame: Vec::new(),
        })
    }

    /// Appends one block to `out` and returns its length.
    pub fn seal(&mut self, columns: &[&[u8]], out: &mut Vec<u8>) -> std::io::Result<usize> {
        assert!(
            columns.len() <= COLUMNS_MAX,
            "the layouts have fewer columns"
        );
        let start = out.len();
        let mut head = Vec::with_capacity(columns.len() * 6);
        let mut body = Vec::new();
        varint::put(&mut head, columns.len() as u64);
        for column in columns {
            let (form, stored) = self.shortest(column)?;
            varint::put(&mut head, column.len() as u64);
            head.push(form);
            varint::put(&mut head, stored.len() as u64);
            body.extend_from_slice(stored);
        }
        out.extend_from_slice(&head);
        out.extend_from_slice(&body);
        let sum = crc32fast::hash(&out[start..]);
        out.extend_from_slice(&sum.to_le_bytes());
        Ok(out.len() - start)
    }

    fn shortest<'a>(&'a mut self, column: &'a [u8]) -> std::io::Result<(u8, &'a [u8])> {
        if let Some((first, rest)) = column.split_first()
            && !rest.is_empty()
            && rest.iter().all(|b| b == first)
        {
            return Ok((CONSTANT, &column[..1]));
        }
        if column.len() >= COMPRESS_MIN {
            self.frame.clear();
            self.frame
                .reserve(zstd::zstd_safe::compress_bound(column.len()));
            self.compressor
                .compress_to_buffer(column, &mut self.frame)?;
            // A frame that saves next to nothing would only cost time to inflate.
            if self.frame.len() + column.len() / 64 < column.len() {
                return Ok((ZSTD, &self.frame));
            }
        }
        Ok((PLAIN, column))
    }
}

/// Where a column lies in a stored block.
struct Stored<'a> {
    /// Its length when inflated.
    raw: usize,
    form: u8,
    bytes: &'a [u8],
}

/// Takes a stored block apart. Fails on a wrong checksum, and on a layout that can't be.
pub fn unseal(stored: &Bytes) -> Result<Vec<Bytes>, Malformed> {
    let damaged = Malformed::of(WHAT);
    let open = |column: Stored<'_>| match column.form {
        PLAIN if column.raw == column.bytes.len() => Ok(stored.slice_ref(column.bytes)),
        CONSTANT if column.bytes.len() == 1 => Ok(vec![column.bytes[0]; column.raw].into()),
        ZSTD => inflate(column.bytes, column.raw)
            .map(Bytes::from)
            .ok_or(damaged),
        _ => Err(damaged),
    };
    layout(stored)?.into_iter().map(open).collect()
}

/// How many stored bytes each column of a block takes.
pub fn stored_lengths(stored: &[u8]) -> Result<Vec<usize>, Malformed> {
    Ok(layout(stored)?
        .iter()
        .map(|column| column.bytes.len())
        .collect())
}

fn layout(stored: &[u8]) -> Result<Vec<Stored<'_>>, Malformed> {
    let damaged = Malformed::of(WHAT);
    let body_len = stored.len().checked_sub(4).ok_or(damaged)?;
    let (body, sum) = stored.split_at(body_len);
    if crc32fast::hash(body).to_le_bytes() != sum {
        return Err(Malformed::of("block (its checksum is wrong)"));
    }
    let mut r = Reader::new(body, WHAT);
    let count = r.varint()? as usize;
    if count > COLUMNS_MAX {
        return Err(damaged);
    }
    let mut heads = Vec::with_capacity(count);
    for _ in 0..count {
        let raw = r.varint()?;
        let form = r.byte()?;
        let len = r.varint()?;
        if raw > RAW_MAX || len > RAW_MAX {
            return Err(damaged);
        }
        heads.push((raw as usize, form, len as usize));
    }
    if heads.iter().map(|(raw, ..)| *raw as u64).sum::<u64>() > RAW_SUM_MAX {
        return Err(damaged);
    }
    let mut columns = Vec::with_capacity(count);
    for (raw, form, len) in heads {
        columns.push(Stored {
            raw,
            form,
            bytes: r.take(len)?,
        });
    }
    if r.is_empty() {
        Ok(columns)
    } else {
        Err(damaged)
    }
}

fn inflate(frame: &[u8], raw: usize) -> Option<Vec<u8>> {
    INFLATE.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = zstd::bulk::Decompressor::new().ok();
        }
        let mut out = Vec::with_capacity(raw);
        slot.as_mut()?.decompress_to_buffer(frame, &mut out).ok()?;
        (out.len() == raw).then_some(out)
    })
}

/// The distance from `old` to `new`, either way, small where they are near.
pub fn delta(new: u64, old: u64) -> u64 {
    let d = new.wrapping_sub(old) as i64;
    ((d << 1) ^ (d >> 63)) as u64
}

/// Undoes [`delta`].
pub fn undelta(code: u64, old: u64) -> u64 {
    let d = (code >> 1) as i64 ^ -((code & 1) as i64);
    old.wrapping_add(d as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_gives_its_columns_back_and_any_changed_byte_is_noticed() {
        let text = b"the same words again and again, the same words again and again".as_slice();
        let columns: [&[u8]; 5] = [b"", b"\x07", &[9; 500], text, &[1, 2, 3]];
        let mut stored = Vec::new();
        let mut sealer = Sealer::new(3).unwrap();
        sealer.seal(&columns, &mut stored).unwrap();
        assert!(
            stored.len() < 110,
            "constant and repeated columns are stored short: {}",
            stored.len()
        );
        let back = unseal(&stored.clone().into()).unwrap();
        assert_eq!(back, columns);
        for i in 0..stored.len() {
            let mut damaged = stored.clone();
            damaged[i] ^= 0x10;
            assert!(unseal(&damaged.into()).is_err(), "byte {i}");
        }
    }

    #[test]
    fn a_block_cannot_claim_more_than_any_has() {
        let block = |columns: u8, raw: u64| {
            let mut out = vec![columns];
            for _ in 0..columns {
                varint::put(&mut out, raw);
                out.extend_from_slice(&[CONSTANT, 1]);
            }
            out.resize(out.len() + usize::from(columns), 0);
            let sum = crc32fast::hash(&out);
            out.extend_from_slice(&sum.to_le_bytes());
            out
        };
        let lengths = |columns, raw| stored_lengths(&block(columns, raw)).map(|all| all.len());
        assert_eq!(lengths(4, RAW_MAX), Ok(4));
        assert_eq!(lengths(1, RAW_MAX + 1).ok(), None, "one column");
        assert_eq!(lengths(23, RAW_MAX).ok(), None, "all of them together");
    }

    #[test]
    fn deltas_round_trip_at_the_edges() {
        for (a, b) in [(0, 0), (0, u64::MAX), (u64::MAX, 0), (5, 9), (1 << 63, 3)] {
            assert_eq!(undelta(delta(a, b), b), a);
        }
        assert!(delta(8, 9) < 128 && delta(9, 8) < 128);
    }
}
