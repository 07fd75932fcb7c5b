//! The log's files out of the fuzzer's bytes, with right checksums where it asks for them: it would
//! never guess one, and behind them lies most of the code.
//!
//! The layout is that of `tidings_backends::file_log::format`.

use std::io;

use tidings_core::ports::disk::Disk;

use crate::{Input, put_piece};

/// A segment, its sums put right.
const SEGMENT: u8 = 0;
/// Both slots of the position file, their sums put right.
const POSITION: u8 = 2;
/// The position file as it comes.
const RAW_POSITION: u8 = 3;

/// With the one that is none of these: a segment as it comes.
const KINDS: u8 = 4;
const FILES_MAX: usize = 6;
const SEGMENT_HEADER: usize = 36;
const FRAME_HEADER: usize = 52;
const SLOT: usize = 36;
const SLOT_STRIDE: usize = 4096;

/// Writes the files that the input tells, all synced.
pub fn write(disk: &dyn Disk, input: &mut Input<'_>) -> io::Result<()> {
    for _ in 0..FILES_MAX {
        if input.is_empty() {
            break;
        }
        let (name, content) = file(input);
        write_file(disk, &name, &content)?;
    }
    disk.sync_names()
}

/// Replaces a file, and syncs it.
pub fn write_file(disk: &dyn Disk, name: &str, content: &[u8]) -> io::Result<()> {
    let file = disk.open(name)?;
    file.set_len(0)?;
    file.write_all_at(content, 0)?;
    file.sync()
}

fn file(input: &mut Input<'_>) -> (String, Vec<u8>) {
    let kind = input.byte() % KINDS;
    if matches!(kind, POSITION | RAW_POSITION) {
        let mut content = vec![0; 2 * SLOT_STRIDE];
        for at in [0, SLOT_STRIDE] {
            let slot = input.take(SLOT);
            content[at..at + slot.len()].copy_from_slice(slot);
            if kind == POSITION {
                seal(&mut content[at..at + SLOT]);
            }
        }
        return ("log-position".into(), content);
    }
    let first = input.u64();
    let mut content = input.piece().to_vec();
    if kind == SEGMENT {
        mend(&mut content);
    }
    (format!("log-{first:016x}.seg"), content)
}

/// The input that gives back these files of a log.
pub fn describe(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, content) in files {
        let first = name
            .strip_prefix("log-")
            .and_then(|name| name.strip_suffix(".seg"))
            .and_then(|digits| u64::from_str_radix(digits, 16).ok());
        match first {
            Some(first) => {
                out.push(SEGMENT);
                out.extend_from_slice(&first.to_le_bytes());
                put_piece(&mut out, content);
            }
            None => {
                out.push(POSITION);
                out.extend_from_slice(&content[..SLOT]);
                out.extend_from_slice(&content[SLOT_STRIDE..SLOT_STRIDE + SLOT]);
            }
        }
    }
    out
}

/// Puts the checksum of a slot or of a segment's header right.
fn seal(bytes: &mut [u8]) {
    let sum = crc32fast::hash(&bytes[..32]);
    bytes[32..36].copy_from_slice(&sum.to_le_bytes());
}

/// Puts all checksums of a segment right, as far as its lengths make sense.
fn mend(segment: &mut [u8]) {
    if segment.len() < SEGMENT_HEADER {
        return;
    }
    seal(&mut segment[..SEGMENT_HEADER]);
    let mut salt = [0; 8];
    salt.copy_from_slice(&segment[16..24]);
    let salted = |bytes: &[u8]| {
        let mut sum = crc32fast::Hasher::new();
        sum.update(&salt);
        sum.update(bytes);
        sum.finalize().to_le_bytes()
    };
    let mut rest = &mut segment[SEGMENT_HEADER..];
    while let Some((header, behind)) = rest.split_first_chunk_mut::<FRAME_HEADER>() {
        let length = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
        let whole = behind.split_at_mut_checked(length as usize);
        if let Some((body, _)) = &whole {
            header[44..48].copy_from_slice(&salted(body));
        }
        let sum = salted(&header[..48]);
        header[48..].copy_from_slice(&sum);
        match whole {
            Some((_, next)) => rest = next,
            None => return,
        }
    }
}
