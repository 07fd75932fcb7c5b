//! What a client keeps, in a folder: a log of operations that survives being killed.
//!
//! One file, `outbox-<generation>`: 8 bytes naming the format, then records of length (u32,
//! little-endian), CRC-32 of the payload (u32) and payload. The first record is a whole
//! state, every other one an operation on the state before it (`format` has their bytes).
//!
//! 1. [`Store::append`] returns when its records are on disk (written, then fsynced).
//! 2. A record that is cut off or damaged ends the file: it and all behind it were never
//!    reported as durable, so they are cut when the store is opened.
//! 3. A file grown to several times its state is replaced: the state is written to a new
//!    generation under another name, fsynced, renamed, and only then the old one removed.
//! 4. A failed write or fsync ends the store: what the disk holds then is unknown, and
//!    trying again would report as durable what may not be.
//! 5. The folder is locked. Two clients on one outbox would be copies of each other.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::saved::{PersistOp, Saved};

mod format;

/// What every format begins with; two decimal digits are the format's number.
const NAME: &[u8; 6] = b"tdgcli";
const MAGIC: &[u8; 8] = b"tdgcli01";
const FORMAT: u32 = 1;
const PREFIX: &str = "outbox-";
const TEMPORARY: &str = "outbox.tmp";
const LOCK: &str = "lock";

/// A file is replaced when it is this many times as long as its state was …
const COMPACT_FACTOR: u64 = 4;
/// … and at least this long: below, replacing costs more than reading it at the start.
const COMPACT_BYTES_MIN: u64 = 256 * 1024;
/// The longest record: a whole state of a full outbox.
const RECORD_BYTES_MAX: usize = 256 << 20;

/// Why a store can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another client uses the folder: use another one, or end that client.
    #[error("another client uses this folder")]
    Locked,
    /// The files aren't what a client of this version wrote: restore them or begin anew
    /// in another folder.
    #[error("the outbox is damaged: {0}")]
    Corrupt(&'static str),
    /// A later client wrote it, and nothing was changed: use that one, or begin anew in another folder.
    #[error(
        "the outbox file {file} is of format {format}, which this client doesn't read: \
         a later one wrote it; use that one, or another folder"
    )]
    Newer {
        /// The file's name in the folder.
        file: String,
        /// Its format.
        format: u32,
    },
    /// The operating system refused; after a refused write the store must be opened again.
    #[error("the outbox can't be {0}: {1}")]
    Io(&'static str, #[source] std::io::Error),
    /// An earlier write failed, so what is on disk is unknown: open the store again.
    #[error("an earlier write to the outbox failed")]
    Failed,
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> StoreError {
    move |e| StoreError::Io(what, e)
}

/// A client's state in a folder, or in memory only.
#[derive(Debug)]
pub struct Store {
    saved: Saved,
    /// `None`: in memory.
    disk: Option<Disk>,
}

#[derive(Debug)]
struct Disk {
    folder: PathBuf,
    file: File,
    generation: u64,
    bytes: u64,
    compact_at: u64,
    cut: u64,
    failed: bool,
    /// Held for as long as the store lives.
    _lock: File,
}

impl Store {
    /// A store that forgets everything when it is dropped: for load tools.
    pub fn volatile() -> Store {
        Store::volatile_from(Saved::default())
    }

    /// A store in memory that goes on from what another client had saved and, having ended,
    /// uses no more: as good as a copy of a folder, with all that makes of it.
    pub fn volatile_from(saved: Saved) -> Store {
        Store { saved, disk: None }
    }

    /// Opens the store in this folder, which is made if need be. Blocks on the disk.
    pub fn open(folder: impl AsRef<Path>) -> Result<Store, StoreError> {
        let folder = folder.as_ref().to_path_buf();
        fs::create_dir_all(&folder).map_err(io("made"))?;
        let lock = File::create(folder.join(LOCK)).map_err(io("locked"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StoreError::Locked),
            Err(fs::TryLockError::Error(e)) => return Err(StoreError::Io("locked", e)),
        }
        let generations = generations(&folder)?;
        let Some(&newest) = generations.last() else {
            let saved = Saved::default();
            let (file, bytes) = begin(&folder, 1, &saved)?;
            return Ok(Store::on_disk(
                saved,
                folder,
                file,
                1,
                (bytes, bytes, 0),
                lock,
            ));
        };
        let path = folder.join(name(newest));
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .open(&path)
            .map_err(io("opened"))?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(io("read"))?;
        if let Some(format) = format_of(&content)
            && format > FORMAT
        {
            let file = name(newest);
            return Err(StoreError::Newer { file, format });
        }
        let (saved, first, good) = replay(&content)?;
        let cut = (content.len() - good) as u64;
        if cut > 0 {
            file.set_len(good as u64).map_err(io("cut"))?;
            file.sync_all().map_err(io("cut"))?;
        }
        // What a crash between renaming and removing left behind.
        for &old in &generations[..generations.len() - 1] {
            fs::remove_file(folder.join(name(old))).map_err(io("tidied"))?;
        }
        let sizes = (first as u64, good as u64, cut);
        Ok(Store::on_disk(saved, folder, file, newest, sizes, lock))
    }

    fn on_disk(
        saved: Saved,
        folder: PathBuf,
        file: File,
        generation: u64,
        (first, bytes, cut): (u64, u64, u64),
        lock: File,
    ) -> Store {
        let compact_at = compact_at(first);
        let disk = Disk {
            folder,
            file,
            generation,
            bytes,
            compact_at,
            cut,
            failed: false,
            _lock: lock,
        };
        Store {
            saved,
            disk: Some(disk),
        }
    }

    /// The state after everything appended.
    pub fn saved(&self) -> &Saved {
        &self.saved
    }

    /// Bytes at the file's end that were cut when it was opened; never more than what was
    /// being written when the client was killed.
    pub fn cut_bytes(&self) -> u64 {
        self.disk.as_ref().map_or(0, |d| d.cut)
    }

    /// Whether appending touches a disk.
    pub fn is_durable(&self) -> bool {
        self.disk.is_some()
    }

    /// Appends operations; they are durable on return. Blocks on the disk.
    pub fn append(&mut self, ops: &[PersistOp]) -> Result<(), StoreError> {
        for op in ops {
            self.saved.apply(op);
        }
        match &mut self.disk {
            Some(disk) if !ops.is_empty() => disk.append(ops, &self.saved),
            _ => Ok(()),
        }
    }
}

impl Disk {
    fn append(&mut self, ops: &[PersistOp], saved: &Saved) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::Failed);
        }
        // Until all is done, and so also if this returns early.
        self.failed = true;
        let mut out = Vec::new();
        for op in ops {
            record(&mut out, |payload| format::put_op(payload, op));
        }
        self.file.write_all(&out).map_err(io("written"))?;
        self.file.sync_data().map_err(io("synced"))?;
        self.bytes += out.len() as u64;
        if self.bytes > self.compact_at {
            let (file, bytes) = begin(&self.folder, self.generation + 1, saved)?;
            let old = self.folder.join(name(self.generation));
            (self.file, self.bytes, self.compact_at) = (file, bytes, compact_at(bytes));
            self.generation += 1;
            fs::remove_file(old).map_err(io("tidied"))?;
        }
        self.failed = false;
        Ok(())
    }
}

fn compact_at(state_bytes: u64) -> u64 {
    (state_bytes * COMPACT_FACTOR).max(COMPACT_BYTES_MIN)
}

fn name(generation: u64) -> String {
    format!("{PREFIX}{generation:016x}")
}

/// The generations in the folder, rising; more than one only after a crash.
fn generations(folder: &Path) -> Result<Vec<u64>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(io("read"))? {
        let name = entry.map_err(io("read"))?.file_name();
        let digits = name.to_str().and_then(|n| n.strip_prefix(PREFIX));
        found.extend(digits.and_then(|d| u64::from_str_radix(d, 16).ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// Writes a file that begins with this state, durable with its name; gives it and its length.
fn begin(folder: &Path, generation: u64, saved: &Saved) -> Result<(File, u64), StoreError> {
    let mut out = MAGIC.to_vec();
    record(&mut out, |payload| format::put_saved(payload, saved));
    let temporary = folder.join(TEMPORARY);
    let mut file = File::create(&temporary).map_err(io("begun"))?;
    file.write_all(&out).map_err(io("written"))?;
    file.sync_all().map_err(io("synced"))?;
    let path = folder.join(name(generation));
    fs::rename(&temporary, &path).map_err(io("renamed"))?;
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(io("synced"))?;
    let file = OpenOptions::new()
        .append(true)
        .open(&path)
        .map_err(io("opened"))?;
    Ok((file, out.len() as u64))
}

fn record(out: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 8]);
    put(out);
    let payload = &out[at + 8..];
    let length = u32::try_from(payload.len()).expect("an outbox is bounded far below 4 GiB");
    let crc = crc32fast::hash(payload);
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
    out[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
}

/// The payload of the record at the front, and what follows it; `None`: cut off or damaged.
fn next_record(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, rest) = content.split_first_chunk::<8>()?;
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    if length > RECORD_BYTES_MAX || length > rest.len() {
        return None;
    }
    let (payload, rest) = rest.split_at(length);
    (crc32fast::hash(payload) == crc).then_some((payload, rest))
}

/// The format that a file's first bytes name.
fn format_of(content: &[u8]) -> Option<u32> {
    let digits = content.strip_prefix(NAME)?.first_chunk::<2>()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The state a file holds, the length of its beginning, and the length of what is whole.
fn replay(content: &[u8]) -> Result<(Saved, usize, usize), StoreError> {
    let rest = content
        .strip_prefix(MAGIC)
        .ok_or(StoreError::Corrupt("another format"))?;
    // The beginning was durable before the file got its name, so it isn't a torn tail.
    let (payload, mut rest) =
        next_record(rest).ok_or(StoreError::Corrupt("its beginning isn't whole"))?;
    let mut saved =
        format::saved(payload).ok_or(StoreError::Corrupt("its beginning can't be read"))?;
    let first = content.len() - rest.len();
    while let Some((payload, behind)) = next_record(rest) {
        // Whole, but unknown: a later version's, which this one must not cut.
        let op = format::op(payload).ok_or(StoreError::Corrupt("an unknown operation"))?;
        saved.apply(&op);
        rest = behind;
    }
    Ok((saved, first, content.len() - rest.len()))
}

#[cfg(test)]
mod tests;
