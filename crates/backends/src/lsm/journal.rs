//! The journal of cursors: the one kind of row that the log can't give again after a crash.
//!
//! ```text
//! file   = magic 8 bytes, format u32, crc32 of both, frames
//! frame  = length u32, crc32 of length and rows, rows
//! row    = conversation, user, delivered, read: varints
//! ```
//!
//! A put of cursors puts its rows into the memtable first and then has a frame written and synced.
//! Invariants:
//!
//! 1. **One frame is written for each sync.** So a crash damages at most the last frame, and what
//!    is damaged before a good one is damage.
//! 2. **A file is closed before the table is frozen** that it covers. Rows of later tables are put
//!    after that, so their frames are in later files, and a flush may remove the closed ones.
//! 3. **Reading too much is harmless**, since cursors only grow: files need no order, and one that
//!    comes back after its removal brings nothing new.
//!
//! A file is made when a row comes, so a store that was closed has none.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use tidings_core::ids::{ConversationId, UserId};
use tidings_core::in_process::{REST_AFTER, rest};
use tidings_core::ports::disk::{Disk, DiskFile};
use tidings_core::ports::store::{StoreError, StoreResult};
use tidings_core::rows::CursorRow;
use tidings_core::varint::{self, Malformed, Reader};
use tokio::sync::oneshot;

use super::maintain::remove;
use super::{Trouble, lock};

const PREFIX: &str = "cursors-";
const MAGIC: [u8; 8] = *b"tidingsC";
const FORMAT: u32 = 1;
const HEAD_LEN: usize = 16;
const FRAME_HEAD_LEN: usize = 8;

/// A frame has at most so many rows; more are written and synced one frame after another.
const FRAME_ROWS_MAX: usize = 1 << 16;

/// Four varints of at most ten bytes a row.
const FRAME_LEN_MAX: usize = FRAME_ROWS_MAX * 40;

/// So many rows may wait for the disk, 2 MiB of memory. A call that has more waits alone.
const QUEUE_ROWS_MAX: usize = 1 << 16;

/// A put that waits for the disk.
pub struct Call {
    pub rows: Vec<CursorRow>,
    pub answer: oneshot::Sender<StoreResult<()>>,
}

/// See the module.
pub struct Journal {
    queue: Mutex<Queue>,
    filled: Condvar,
    files: Mutex<Files>,
    /// Of all files.
    bytes: AtomicU64,
}

#[derive(Default)]
struct Queue {
    calls: VecDeque<Call>,
    rows: usize,
    stopped: bool,
}

struct Files {
    next: u64,
    current: Option<Current>,
    /// Those that nothing is written to any more, by number.
    closed: Vec<u64>,
    closed_bytes: u64,
}

struct Current {
    number: u64,
    file: Box<dyn DiskFile>,
    /// Where the synced frames end.
    end: u64,
    /// There may be bytes behind `end`: they are cut off before anything is written.
    ragged: bool,
    /// The file's name is durable.
    named: bool,
}

impl Journal {
    /// Reads the journal files among `names`, cuts off what a crash left half written, and makes
    /// sure that what is read stays. Fails with [`StoreError::Corrupt`] on any other damage.
    pub fn open(disk: &dyn Disk, names: &[String]) -> StoreResult<(Journal, Vec<CursorRow>)> {
        let mut files = Files {
            next: 1,
            current: None,
            closed: Vec::new(),
            closed_bytes: 0,
        };
        let mut all = Vec::new();
        for number in names.iter().filter_map(|name| number(name)) {
            files.next = files.next.max(number + 1);
            let name = name(number);
            let (rows, end) = recover(disk, &name)?;
            if rows.is_empty() {
                remove(disk, &name);
                continue;
            }
            all.extend(rows);
            files.closed.push(number);
            files.closed_bytes += end;
        }
        let journal = Journal {
            queue: Mutex::default(),
            filled: Condvar::new(),
            bytes: AtomicU64::new(files.closed_bytes),
            files: Mutex::new(files),
        };
        Ok((journal, all))
    }

    /// The bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Queues rows for the thread that writes them, which answers when they are synced; `None`
    /// when too many wait already.
    pub fn queue(&self, rows: Vec<CursorRow>) -> Option<oneshot::Receiver<StoreResult<()>>> {
        let mut queue = lock(&self.queue);
        if queue.stopped || (queue.rows > 0 && queue.rows + rows.len() > QUEUE_ROWS_MAX) {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        queue.rows += rows.len();
        queue.calls.push_back(Call { rows, answer });
        drop(queue);
        self.filled.notify_one();
        Some(answered)
    }

    /// Waits for calls and takes all that queued; `None`: the store is closing.
    pub fn wait(&self) -> Option<VecDeque<Call>> {
        let is_waiting = |q: &mut Queue| !q.stopped && q.calls.is_empty();
        let (queue, waited) = self
            .filled
            .wait_timeout_while(lock(&self.queue), REST_AFTER, is_waiting)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            rest();
        }
        let mut queue = self
            .filled
            .wait_while(queue, is_waiting)
            .unwrap_or_else(PoisonError::into_inner);
        if queue.stopped {
            return None;
        }
        queue.rows = 0;
        Some(std::mem::take(&mut queue.calls))
    }

    /// Takes nothing more. What still waits is dropped, which its callers are told.
    pub fn stop(&self) {
        let mut queue = lock(&self.queue);
        queue.stopped = true;
        queue.calls.clear();
        drop(queue);
        self.filled.notify_all();
    }

    /// Makes rows durable that are in the memtable.
    pub fn append(&self, disk: &dyn Disk, rows: &[CursorRow]) -> Result<(), Trouble> {
        let mut files = lock(&self.files);
        for rows in rows.chunks(FRAME_ROWS_MAX) {
            let added = files.current(disk)?.append(disk, rows)?;
            self.bytes.fetch_add(added, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes no more to the file that covers the active table; called before it is frozen.
    pub fn close_file(&self) {
        let mut files = lock(&self.files);
        if let Some(current) = files.current.take() {
            files.closed.push(current.number);
            files.closed_bytes += current.end;
        }
    }

    /// Removes the closed files; called when the segments hold all that was put before they were
    /// closed.
    pub fn remove_closed(&self, disk: &dyn Disk) {
        let mut files = lock(&self.files);
        for number in std::mem::take(&mut files.closed) {
            remove(disk, &name(number));
        }
        let bytes = std::mem::take(&mut files.closed_bytes);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Files {
    fn current(&mut self, disk: &dyn Disk) -> Result<&mut Current, Trouble> {
        let current = match self.current.take() {
            Some(current) => current,
            None => {
                let current = Current {
                    number: self.next,
                    file: disk.open(&name(self.next))?,
                    end: 0,
                    ragged: true,
                    named: false,
                };
                self.next += 1;
                current
            }
        };
        Ok(self.current.insert(current))
    }
}

impl Current {
    /// The bytes added.
    fn append(&mut self, disk: &dyn Disk, rows: &[CursorRow]) -> Result<u64, Trouble> {
        self.cut()?;
        let mut bytes = if self.end == 0 { head() } else { Vec::new() };
        put_frame(&mut bytes, rows);
        self.ragged = true;
        if let Err(error) = self.file.write_all_at(&bytes, self.end) {
            // It gives back the room now when it can, or else is made up for by the next call.
            let _ = self.cut();
            return Err(error.into());
        }
        let sync = |error| Trouble::Sync(format!("syncing {}: {error}", name(self.number)));
        self.file.sync().map_err(sync)?;
        if !self.named {
            disk.sync_names().map_err(sync)?;
            self.named = true;
        }
        self.ragged = false;
        self.end += bytes.len() as u64;
        Ok(bytes.len() as u64)
    }

    fn cut(&mut self) -> Result<(), Trouble> {
        if self.ragged {
            self.file.set_len(self.end)?;
            self.ragged = false;
        }
        Ok(())
    }
}

fn name(number: u64) -> String {
    format!("{PREFIX}{number:010}")
}

fn number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    let number = digits.parse().ok().filter(|n| self::name(*n) == name);
    // There is a next one of each of ours.
    number.filter(|n| *n < u64::MAX)
}

/// Whether a file of this name is part of a journal.
pub fn is_journal(name: &str) -> bool {
    number(name).is_some()
}

/// The rows of a file and where they end.
fn recover(disk: &dyn Disk, name: &str) -> StoreResult<(Vec<CursorRow>, u64)> {
    let unavailable =
        |e: std::io::Error| StoreError::Unavailable(format!("recovering {name}: {e}"));
    let file = disk.open(name).map_err(unavailable)?;
    let mut bytes = vec![0; file.len().map_err(unavailable)? as usize];
    file.read_exact_at(&mut bytes, 0).map_err(unavailable)?;
    // Of format 0 there was none.
    if let Some(format) = format(&bytes)
        && format > FORMAT
    {
        return Err(StoreError::Newer(format!(
            "the store's journal {name} is of format {format}, this release reads {FORMAT}"
        )));
    }
    let (rows, end) =
        read(&bytes).map_err(|what| StoreError::Corrupt(format!("{name}: {what}")))?;
    if rows.is_empty() {
        return Ok((rows, 0));
    }
    if end < bytes.len() {
        tracing::info!(
            name,
            bytes = bytes.len() - end,
            "cut off what a crash left half written"
        );
        file.set_len(end as u64).map_err(unavailable)?;
    }
    // A process that was killed may have left rows unsynced: they must not go after they were read.
    file.sync().map_err(unavailable)?;
    disk.sync_names().map_err(unavailable)?;
    Ok((rows, end as u64))
}

fn head() -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&FORMAT.to_le_bytes());
    let sum = crc32fast::hash(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

fn put_frame(out: &mut Vec<u8>, rows: &[CursorRow]) {
    let mut fields = Vec::new();
    for row in rows {
        for number in [row.conversation.0, row.user.0, row.delivered, row.read] {
            varint::put(&mut fields, number);
        }
    }
    let length = (fields.len() as u32).to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&frame_sum(&length, &fields).to_le_bytes());
    out.extend_from_slice(&fields);
}

fn frame_sum(length: &[u8], fields: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(length);
    sum.update(fields);
    sum.finalize()
}

fn read(bytes: &[u8]) -> Result<(Vec<CursorRow>, usize), String> {
    let mut rows = Vec::new();
    let mut end = 0;
    if let Some(format) = format(bytes) {
        if format != FORMAT {
            return Err(format!("of format {format}, this version reads {FORMAT}"));
        }
        end = HEAD_LEN;
        while let Some(fields) = frame(&bytes[end..]) {
            decode(fields, &mut rows).map_err(|_| format!("damaged at byte {end}"))?;
            end += FRAME_HEAD_LEN + fields.len();
        }
    }
    match (end + 1..bytes.len()).find(|at| frame(&bytes[*at..]).is_some()) {
        Some(good) => Err(format!(
            "damaged at byte {end}, and whole again at byte {good}"
        )),
        None => Ok((rows, end)),
    }
}

/// The format that the head names, when the head is whole.
fn format(bytes: &[u8]) -> Option<u32> {
    let (head, sum) = bytes.get(..HEAD_LEN)?.split_at(HEAD_LEN - 4);
    let whole = head[..8] == MAGIC && crc32fast::hash(head).to_le_bytes() == sum;
    whole.then(|| u32::from_le_bytes(head[8..].try_into().expect("4 bytes")))
}

/// The rows of the frame at the start, when it is whole.
fn frame(bytes: &[u8]) -> Option<&[u8]> {
    let (head, rest) = bytes.split_at_checked(FRAME_HEAD_LEN)?;
    let (length, sum) = head.split_at(4);
    let len = u32::from_le_bytes(length.try_into().expect("4 bytes")) as usize;
    if len == 0 || len > FRAME_LEN_MAX {
        return None;
    }
    let fields = rest.get(..len)?;
    (frame_sum(length, fields).to_le_bytes() == sum).then_some(fields)
}

fn decode(fields: &[u8], rows: &mut Vec<CursorRow>) -> Result<(), Malformed> {
    let mut r = Reader::new(fields, "cursor journal");
    while !r.is_empty() {
        rows.push(CursorRow {
            conversation: ConversationId(r.varint()?),
            user: UserId(r.varint()?),
            delivered: r.varint()?,
            read: r.varint()?,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(n: u64) -> Vec<CursorRow> {
        let row = |user| CursorRow {
            conversation: ConversationId(300),
            user: UserId(user),
            delivered: u64::MAX,
            read: n,
        };
        (0..n).map(row).collect()
    }

    #[test]
    fn a_name_without_a_next_one_is_not_ours() {
        assert_eq!(number(&name(12)), Some(12));
        assert_eq!(number(&name(u64::MAX - 1)), Some(u64::MAX - 1));
        assert_eq!(number(&name(u64::MAX)), None);
        assert_eq!(number("cursors-12"), None);
    }

    #[test]
    fn the_layout_is_that_of_format_1() {
        let mut bytes = head();
        put_frame(
            &mut bytes,
            &[CursorRow {
                conversation: ConversationId(300),
                user: UserId(7),
                delivered: 200,
                read: 5,
            }],
        );
        let golden = [
            &b"tidingsC"[..],
            &[1, 0, 0, 0],
            &[0xdd, 0xbd, 0xe5, 0xfe],
            &[6, 0, 0, 0],
            &[0x4b, 0xa0, 0x90, 0x91],
            &[0xac, 2, 7, 0xc8, 1, 5],
        ];
        assert_eq!(bytes, golden.concat());
    }

    #[test]
    fn any_cut_keeps_the_frames_before_it_and_any_changed_byte_is_noticed() {
        let mut bytes = head();
        let mut ends = vec![(bytes.len(), 0)];
        let mut all = Vec::new();
        for n in 1..4 {
            put_frame(&mut bytes, &rows(n));
            all.extend(rows(n));
            ends.push((bytes.len(), all.len()));
        }
        assert_eq!(read(&bytes).unwrap(), (all.clone(), bytes.len()));
        for cut in 0..bytes.len() {
            let whole = ends.iter().rev().find(|(end, _)| *end <= cut);
            let (end, count) = whole.copied().unwrap_or_default();
            assert_eq!(read(&bytes[..cut]).unwrap(), (all[..count].to_vec(), end));
        }
        let (last, before_last) = ends[2];
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            let found = read(&damaged);
            if at < last {
                found.unwrap_err();
            } else {
                assert_eq!(found.unwrap(), (all[..before_last].to_vec(), last));
            }
        }
        let mut newer = head();
        newer[8] = 2;
        let sum = crc32fast::hash(&newer[..12]);
        newer[12..].copy_from_slice(&sum.to_le_bytes());
        assert!(read(&newer).unwrap_err().contains("format 2"));
    }
}
