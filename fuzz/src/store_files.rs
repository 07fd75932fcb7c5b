//! The store's files out of the fuzzer's bytes. What would only be a wall to it is made here: checksums,
//! lengths, places. What is inside of columns, frames and the manifest is its own.
//!
//! The layouts are those of `tidings_backends::lsm`: `manifest`, `journal`, `segment`, `columns`.

use std::io;

use tidings_core::ids::ConversationId;
use tidings_core::ports::disk::Disk;
use tidings_core::varint::{self, Malformed, Reader};

use crate::log_files::write_file;
use crate::{Input, put_piece};

const SEGMENTS_MAX: u8 = 4;
const BLOCKS_MAX: u8 = 6;
const EVENT_COLUMNS: usize = 23;
const ROW_COLUMNS: usize = 12;
const FORMAT: [u8; 4] = 1u32.to_le_bytes();
const TRAILER: usize = 28;

/// How a block's entry in the index comes about.
const ENTRY_LIES: u8 = 1;
/// One column says of itself what the input wants.
const COLUMN_LIES: u8 = 2;
/// The block is one of state rows.
const ROWS: u8 = 4;

/// A filter that may hold everything.
const FILTER: [u8; 8] = [0xff; 8];

/// Writes the files that the input tells, all synced; the conversations that their indexes name.
pub fn write(disk: &dyn Disk, input: &mut Input<'_>) -> io::Result<Vec<ConversationId>> {
    let mut conversations = Vec::new();
    let how = input.byte();
    let mut segments = Vec::new();
    for _ in 0..input.byte() % (SEGMENTS_MAX + 1) {
        let number = u64::from(input.byte());
        let content = segment(input, &mut conversations);
        write_file(disk, &format!("{number:010}.seg"), &content)?;
        segments.retain(|(other, _)| *other != number);
        segments.push((number, content.len() as u64));
    }
    if how & 1 != 0 {
        let number = input.u64();
        let content = journal(input, how & 2 != 0);
        write_file(disk, &format!("cursors-{number:010}"), &content)?;
    }
    let fields = input.rest();
    let manifest = match how >> 2 & 3 {
        0 => manifest(&settled(&segments, fields)),
        1 => manifest(fields),
        2 => fields.to_vec(),
        _ => return disk.sync_names().map(|()| conversations),
    };
    write_file(disk, "manifest", &manifest)?;
    disk.sync_names()?;
    Ok(conversations)
}

/// The manifest's fields for these very segments; the settled positions are the input's.
fn settled(segments: &[(u64, u64)], positions: &[u8]) -> Vec<u8> {
    let mut fields = Vec::new();
    varint::put(&mut fields, 1000);
    varint::put(&mut fields, segments.len() as u64);
    for (number, len) in segments {
        varint::put(&mut fields, *number);
        varint::put(&mut fields, *len);
    }
    if positions.is_empty() {
        fields.push(0);
    }
    fields.extend_from_slice(positions);
    fields
}

fn with_sum(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

fn manifest(fields: &[u8]) -> Vec<u8> {
    let length = (fields.len() as u32).to_le_bytes();
    with_sum([b"tidingsM", &FORMAT[..], &length, fields].concat())
}

fn journal(input: &mut Input<'_>, is_torn: bool) -> Vec<u8> {
    let mut out = with_sum([&b"tidingsC"[..], &FORMAT].concat());
    for _ in 0..input.byte() {
        let fields = input.piece();
        let length = (fields.len() as u32).to_le_bytes();
        let sum = crc32fast::hash(&[&length, fields].concat());
        out.extend_from_slice(&[&length, &sum.to_le_bytes(), fields].concat());
    }
    if is_torn {
        out.extend_from_slice(input.piece());
    }
    out
}

fn segment(input: &mut Input<'_>, conversations: &mut Vec<ConversationId>) -> Vec<u8> {
    let (mut out, mut events, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..input.byte() % (BLOCKS_MAX + 1) {
        let how = input.byte();
        let (columns, index, keys) = match how & ROWS {
            0 => (EVENT_COLUMNS, &mut events, 2 * (8 + 8) + 8),
            _ => (ROW_COLUMNS, &mut rows, 2 * 25),
        };
        // The keys of an entry, and what follows them but for place and length.
        let mut entry = input.take(keys).to_vec();
        entry.resize(keys, 0);
        for key in [0, keys / 2] {
            let mut id = [0; 8];
            id.copy_from_slice(&entry[key..key + 8]);
            conversations.push(ConversationId(u64::from_le_bytes(id)));
        }
        let offset = out.len() as u64;
        let block = block(input, columns, how & COLUMN_LIES != 0);
        let (offset, len) = match how & ENTRY_LIES {
            0 => (offset, block.len() as u64),
            _ => (input.u64(), u64::from(input.u16()) << (input.byte() % 17)),
        };
        if how & ROWS == 0 {
            put_event_keys(index, &entry);
        } else {
            index.extend_from_slice(&entry);
        }
        varint::put(index, offset);
        varint::put(index, len);
        out.extend_from_slice(&block);
    }
    let filter = match input.byte() {
        0 => &FILTER,
        _ => input.piece(),
    };
    let summary = [0, 0, 0, 0, 0];
    let offset = out.len() as u64;
    let footer = sealed(&[&events, &rows, filter, &summary], None);
    let trailer = [
        &offset.to_le_bytes(),
        &(footer.len() as u32).to_le_bytes()[..],
        &FORMAT,
        b"tidingsS",
    ];
    out.extend_from_slice(&footer);
    out.extend_from_slice(&with_sum(trailer.concat()));
    out
}

/// An entry of an event index has its numbers as varints: twice conversation and seq, then epoch and offset.
fn put_event_keys(out: &mut Vec<u8>, fixed: &[u8]) {
    let mut fixed = Input::new(fixed);
    for _ in 0..2 {
        out.extend_from_slice(fixed.take(8));
        varint::put(out, fixed.u64());
    }
    varint::put(out, u64::from(fixed.u16()));
    varint::put(out, u64::from(fixed.u16()) << 16 | u64::from(fixed.u16()));
}

fn block(input: &mut Input<'_>, columns: usize, lies: bool) -> Vec<u8> {
    let columns: Vec<&[u8]> = (0..columns).map(|_| input.piece()).collect();
    let lie = lies.then(|| {
        let which = usize::from(input.byte()) % columns.len();
        let raw = u64::from(input.u16()) << (input.byte() % 17);
        (which, raw, input.byte() % 4)
    });
    sealed(&columns, lie)
}

/// A block of columns as they are; one of them may claim another length and another form.
fn sealed(columns: &[&[u8]], lie: Option<(usize, u64, u8)>) -> Vec<u8> {
    let mut out = Vec::new();
    varint::put(&mut out, columns.len() as u64);
    for (i, column) in columns.iter().enumerate() {
        let (raw, form) = match lie {
            Some((which, raw, form)) if which == i => (raw, form),
            _ => (column.len() as u64, 0),
        };
        varint::put(&mut out, raw);
        out.push(form);
        varint::put(&mut out, column.len() as u64);
    }
    out.extend(columns.iter().flat_map(|column| column.iter()));
    with_sum(out)
}

/// The input that gives back, about, this segment of a real store.
///
/// # Errors
/// When it isn't one.
pub fn describe(segment: &[u8]) -> Result<Vec<u8>, Malformed> {
    let bad = Malformed::of("segment");
    let start = segment.len().checked_sub(TRAILER).ok_or(bad)?;
    let mut trailer = Reader::new(&segment[start..], "segment");
    let footer = trailer.fixed64()? as usize;
    let footer = columns(segment.get(footer..start).ok_or(bad)?)?;
    let (mut out, mut blocks) = (Vec::new(), 0);
    let mut put = |out: &mut Vec<u8>, how, keys: &[u8], offset: u64, len: u64| {
        let block = segment.get(offset as usize..(offset + len) as usize);
        out.push(how);
        out.extend_from_slice(keys);
        for column in columns(block.ok_or(bad)?)? {
            put_piece(out, &column);
        }
        blocks += 1;
        Ok::<(), Malformed>(())
    };
    let mut events = Reader::new(&footer[0], "segment");
    while !events.is_empty() {
        let mut keys = Vec::new();
        for _ in 0..2 {
            keys.extend_from_slice(events.take(8)?);
            keys.extend_from_slice(&events.varint()?.to_le_bytes());
        }
        keys.extend_from_slice(&(events.varint()? as u16).to_le_bytes());
        let offset = events.varint()? as u32;
        keys.extend_from_slice(&((offset >> 16) as u16).to_le_bytes());
        keys.extend_from_slice(&(offset as u16).to_le_bytes());
        keys.extend_from_slice(&[0; 2]);
        put(&mut out, 0, &keys, events.varint()?, events.varint()?)?;
    }
    let mut rows = Reader::new(&footer[1], "segment");
    while !rows.is_empty() {
        let keys = rows.take(50)?;
        put(&mut out, ROWS, keys, rows.varint()?, rows.varint()?)?;
    }
    out.insert(0, blocks);
    out.push(0);
    Ok(out)
}

/// The input for a store of these segments and this journal, made by [`describe`] and as stored.
pub fn describe_store(segments: &[Vec<u8>], journal: Option<&[u8]>) -> Result<Vec<u8>, Malformed> {
    let mut out = vec![u8::from(journal.is_some()), segments.len() as u8];
    for (number, segment) in (1..).zip(segments) {
        out.push(number);
        out.extend(describe(segment)?);
    }
    if let Some(journal) = journal {
        out.extend_from_slice(&1u64.to_le_bytes());
        let mut frames = Reader::new(journal.get(16..).unwrap_or_default(), "journal");
        let mut all = Vec::new();
        while !frames.is_empty() {
            let length = frames.take(4)?;
            frames.take(4)?;
            let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
            all.push(frames.take(length as usize)?);
        }
        out.push(all.len() as u8);
        all.iter().for_each(|fields| put_piece(&mut out, fields));
    }
    // One settled partition: 0, of epoch 1, up to 9.
    out.extend_from_slice(&[1, 0, 1, 9]);
    Ok(out)
}

/// The columns of a stored block, inflated.
fn columns(block: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let bad = Malformed::of("block");
    let body = block.get(..block.len().saturating_sub(4)).ok_or(bad)?;
    let mut r = Reader::new(body, "block");
    let mut heads = Vec::new();
    for _ in 0..r.varint()? {
        heads.push((r.varint()? as usize, r.byte()?, r.varint()? as usize));
    }
    let open = |(raw, form, len): (usize, u8, usize)| {
        let stored = r.take(len)?;
        match form {
            0 => Ok(stored.to_vec()),
            1 => Ok(vec![stored[0]; raw]),
            _ => zstd::bulk::decompress(stored, raw).map_err(|_| bad),
        }
    };
    heads.into_iter().map(open).collect()
}
