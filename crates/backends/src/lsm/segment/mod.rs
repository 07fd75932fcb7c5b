//! A segment: an immutable file of sorted rows.
//!
//! ```text
//! file    = event blocks, state blocks, footer, trailer
//! footer  = a block of four columns: event index, state index, filter, summary
//! trailer = footer's offset u64, its length u32, format u32, magic 8 bytes, crc32 of these
//! ```
//!
//! A file is complete or it isn't named by the manifest, so a damaged one is never the work of
//! a crash. Indexes and filter stay in memory: 60 bytes a block of about 500 events, and 8 to 16
//! bits for each row of state.

mod read;
mod write;

pub use read::{Events, Rows, Segment};
pub use write::{Codec, SegmentWriter};

use tidings_core::ids::{ConversationId, Position, Seq};
use tidings_core::varint::{self, Malformed, Reader};

use super::rows::RowKey;

const MAGIC: [u8; 8] = *b"tidingsS";
const FORMAT: u32 = 1;
const TRAILER_LEN: usize = 28;

/// The name of a segment's file.
pub fn name(number: u64) -> String {
    format!("{number:010}{SUFFIX}")
}

/// How the names of segments end.
pub const SUFFIX: &str = ".seg";

/// Where a block of events lies and what it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct EventEntry {
    first: (ConversationId, Seq),
    last: (ConversationId, Seq),
    /// The latest position of its rows.
    position_max: Position,
    offset: u64,
    len: u32,
}

/// Where a block of state rows lies and what it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct RowEntry {
    first: RowKey,
    last: RowKey,
    offset: u64,
    len: u32,
}

/// What is known of a segment as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// The number of events.
    pub events: u64,
    /// The number of state rows and cursors.
    pub rows: u64,
    /// The number of keys in the filter, at most.
    pub keys: u64,
    /// The latest position of its rows of state, over all partitions.
    pub state_position_max: Position,
}

impl Summary {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for number in [self.events, self.rows, self.keys] {
            varint::put(&mut out, number);
        }
        put_position(&mut out, self.state_position_max);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Summary, Malformed> {
        let mut r = Reader::new(bytes, "segment summary");
        Ok(Summary {
            events: r.varint()?,
            rows: r.varint()?,
            keys: r.varint()?,
            state_position_max: position(&mut r)?,
        })
    }
}

fn put_position(out: &mut Vec<u8>, position: Position) {
    varint::put(out, u64::from(position.epoch));
    varint::put(out, position.offset);
}

fn position(r: &mut Reader<'_>) -> Result<Position, Malformed> {
    Ok(Position {
        epoch: r.varint32()?,
        offset: r.varint()?,
    })
}

fn encode_event_index(entries: &[EventEntry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        for (conversation, seq) in [entry.first, entry.last] {
            out.extend_from_slice(&conversation.0.to_le_bytes());
            varint::put(&mut out, seq);
        }
        put_position(&mut out, entry.position_max);
        varint::put(&mut out, entry.offset);
        varint::put(&mut out, u64::from(entry.len));
    }
    out
}

fn decode_event_index(bytes: &[u8]) -> Result<Vec<EventEntry>, Malformed> {
    let mut r = Reader::new(bytes, "segment index");
    let mut entries = Vec::new();
    while !r.is_empty() {
        entries.push(EventEntry {
            first: (ConversationId(r.fixed64()?), r.varint()?),
            last: (ConversationId(r.fixed64()?), r.varint()?),
            position_max: position(&mut r)?,
            offset: r.varint()?,
            len: r.varint32()?,
        });
    }
    Ok(entries)
}

fn encode_row_index(entries: &[RowEntry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        entry.first.encode(&mut out);
        entry.last.encode(&mut out);
        varint::put(&mut out, entry.offset);
        varint::put(&mut out, u64::from(entry.len));
    }
    out
}

fn decode_row_index(bytes: &[u8]) -> Result<Vec<RowEntry>, Malformed> {
    let mut r = Reader::new(bytes, "segment index");
    let mut entries = Vec::new();
    while !r.is_empty() {
        entries.push(RowEntry {
            first: RowKey::decode(&mut r)?,
            last: RowKey::decode(&mut r)?,
            offset: r.varint()?,
            len: r.varint32()?,
        });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use tidings_core::ports::disk::Disk;
    use tidings_core::rows::EventRow;

    use super::super::columns::{Sealer, unseal};
    use super::*;
    use crate::disk::SimDisk;

    fn content(disk: &SimDisk, name: &str) -> Vec<u8> {
        let file = disk.open(name).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// The segment with other places in the index of its events, under right checksums.
    fn with_index(good: &[u8], change: impl Fn(&mut EventEntry)) -> Vec<u8> {
        let start = good.len() - TRAILER_LEN;
        let offset = u64::from_le_bytes(good[start..start + 8].try_into().unwrap());
        let footer = good[offset as usize..start].to_vec();
        let mut columns = unseal(&footer.into()).unwrap();
        let mut index = decode_event_index(&columns[0]).unwrap();
        index.iter_mut().for_each(change);
        columns[0] = encode_event_index(&index).into();
        let columns: Vec<&[u8]> = columns.iter().map(|column| &column[..]).collect();
        let mut out = good[..offset as usize].to_vec();
        let len = Sealer::new(1).unwrap().seal(&columns, &mut out).unwrap();
        let mut trailer = offset.to_le_bytes().to_vec();
        trailer.extend_from_slice(&(len as u32).to_le_bytes());
        trailer.extend_from_slice(&FORMAT.to_le_bytes());
        trailer.extend_from_slice(&MAGIC);
        let sum = crc32fast::hash(&trailer);
        trailer.extend_from_slice(&sum.to_le_bytes());
        out.extend_from_slice(&trailer);
        out
    }

    #[test]
    fn an_index_that_names_what_is_not_there_is_refused_before_room_is_made_for_it() {
        let disk = SimDisk::new();
        let codec = Codec {
            block_bytes: 100,
            level: 1,
        };
        let mut writer = SegmentWriter::create(&disk, &name(1), codec, 10).unwrap();
        for seq in 1..20 {
            let position = Position::default();
            let row = EventRow::empty(ConversationId(3), seq, position, seq, seq - 1);
            writer.event(row).unwrap();
        }
        writer.finish().unwrap();
        let good = content(&disk, &name(1));
        let open = |change: &dyn Fn(&mut EventEntry)| {
            let changed = with_index(&good, change);
            let file = disk.open(&name(2)).unwrap();
            file.set_len(0).unwrap();
            file.write_all_at(&changed, 0).unwrap();
            Segment::open(&disk, 2, changed.len() as u64).map(|segment| segment.event_blocks())
        };
        assert_eq!(open(&|_| ()), Ok(4));
        open(&|entry| entry.len = u32::MAX).unwrap_err();
        open(&|entry| entry.offset = u64::MAX).unwrap_err();
        open(&|entry| entry.offset = good.len() as u64).unwrap_err();
    }
}
