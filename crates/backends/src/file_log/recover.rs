//! Opening: what is on the disk is checked, the torn tail cut, and the rest made durable.
//!
//! Why a damaged frame at the end is a torn write and any other isn't: a frame is written only
//! after the frame before it was synced, and a new segment only after the old one was. So at most
//! the last frame was ever in doubt, and nobody was told of it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use tidings_core::ids::Micros;
use tidings_core::ports::disk::{Disk, DiskFile};

use super::format::{
    Bad, FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader, OFFSET_MAX, SEGMENT_HEADER_BYTES,
    SegmentHeader, segment_first, segment_name,
};
use super::position::PositionFile;
use super::window::Window;

/// An index entry is kept after so many bytes: what a reader skips over at most.
const INDEX_STRIDE_BYTES: u64 = 64 << 10;

/// Why the log can't be opened. Nothing was thrown away.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk refused; perhaps it works the next time.
    #[error("the log's file {file} can't be used: {source}")]
    Disk {
        /// Which file, or `folder`.
        file: String,
        /// What the disk said.
        source: io::Error,
    },
    /// Records that were acknowledged are missing or damaged: restore the folder, or repair the disk.
    #[error("the log is damaged: {0}")]
    Damaged(String),
    /// A later version of this program wrote it: start that one.
    #[error(
        "the log's file {file} is of format {version}, which this release doesn't read: a later release wrote it; \
         start that one, or restore a backup from before it"
    )]
    Newer {
        /// Which file.
        file: String,
        /// Its version.
        version: u32,
    },
}

impl OpenError {
    pub(super) fn disk(file: &str, source: io::Error) -> OpenError {
        OpenError::Disk {
            file: file.to_owned(),
            source,
        }
    }
}

/// A segment file as readers need it.
pub(super) struct Segment {
    /// The offset of its first record.
    pub first: u64,
    /// The offset behind its last committed record.
    pub end: u64,
    /// The bytes of header and committed frames.
    pub bytes: u64,
    /// Some frames' first offsets and their places, both ascending.
    pub index: Vec<(u64, u64)>,
    pub file: Arc<dyn DiskFile>,
}

impl Segment {
    pub fn empty(first: u64, file: Arc<dyn DiskFile>) -> Segment {
        Segment {
            first,
            end: first,
            bytes: SEGMENT_HEADER_BYTES as u64,
            index: Vec::new(),
            file,
        }
    }

    /// Counts a frame at the end in.
    pub fn grow(&mut self, end: u64, frame_bytes: u64) {
        if self
            .index
            .last()
            .is_none_or(|(_, at)| self.bytes - at >= INDEX_STRIDE_BYTES)
        {
            self.index.push((self.end, self.bytes));
        }
        self.end = end;
        self.bytes += frame_bytes;
    }
}

/// What was found, all of it durable.
pub(super) struct Recovered {
    pub epoch: u32,
    pub salt: u64,
    /// Oldest first, never empty; the last one is written on.
    pub segments: VecDeque<Segment>,
    /// The append time of the last record, 0 without one.
    pub appended: Micros,
    pub committed: u64,
    pub position: PositionFile,
}

/// Opens or makes the log's files.
pub(super) fn recover(disk: &dyn Disk, salt_if_new: u64) -> Result<Recovered, OpenError> {
    let folder = |source| OpenError::disk("folder", source);
    let (mut position, slot) = PositionFile::open(disk)?;
    let saved = slot.map_or(0, |slot| slot.committed);
    let mut firsts: Vec<u64> = disk
        .list()
        .map_err(folder)?
        .iter()
        .filter_map(|name| segment_first(name))
        .collect();
    firsts.sort_unstable();

    let headless = match firsts.last() {
        Some(&last) if is_headless(disk, last)? => firsts.pop(),
        _ => None,
    };
    // One that a full disk refused in the making, while later records still fitted elsewhere. Whether
    // a segment is missing is seen by what the others hold.
    for first in std::mem::take(&mut firsts) {
        match is_headless(disk, first)? {
            true => disk.remove(&segment_name(first)).map_err(folder)?,
            false => firsts.push(first),
        }
    }
    // Trimming may have been cut short in any state of the names, so what lies wholly before
    // the committed position is passed over before the rest is asked to be without a hole.
    let kept_from = firsts
        .partition_point(|first| *first <= saved)
        .saturating_sub(1);
    if let Some(slot) = slot.filter(|_| kept_from > 0) {
        // The position was read, but perhaps from the page cache only.
        position
            .write(slot.epoch, saved)
            .and_then(|()| position.sync())
            .map_err(folder)?;
        for first in firsts.drain(..kept_from) {
            disk.remove(&segment_name(first)).map_err(folder)?;
        }
    }

    if firsts.is_empty() && saved.max(headless.unwrap_or(0)) > 0 {
        return Err(OpenError::Damaged(format!(
            "records up to {saved} were committed, but there is no segment"
        )));
    }
    let mut scan = Scan {
        facts: None,
        segments: VecDeque::new(),
        appended: 0,
        committed: saved,
        last_frame: None,
    };
    for (i, first) in firsts.iter().enumerate() {
        scan.segment(disk, *first, i + 1 == firsts.len())?;
    }
    let (epoch, salt) = match scan.facts {
        Some(facts) => facts,
        None => {
            let facts = (slot.map_or(1, |slot| slot.epoch), salt_if_new);
            scan.facts = Some(facts);
            let created = create_segment(disk, facts, 0).map_err(|error| match error {
                CreateError::Refused(source) | CreateError::Sync(source) => folder(source),
            });
            scan.segments.push_back(created?);
            facts
        }
    };
    let first = scan.segments.front().map_or(0, |segment| segment.first);
    let end = scan.segments.back().map_or(0, |segment| segment.end);
    if let Some(slot) = slot
        && slot.epoch != epoch
    {
        return Err(OpenError::Damaged(format!(
            "its epoch is {epoch}, that of the position {}",
            slot.epoch
        )));
    }
    // Without a saved position what is there is read again from its start: repeats are harmless.
    let committed = if slot.is_none() {
        scan.committed.max(first)
    } else {
        scan.committed
    };
    if committed < first || committed > end {
        return Err(OpenError::Damaged(format!(
            "records up to {committed} were committed, but it holds {first} to {end}"
        )));
    }
    // The very first segment was just made anew under the same name.
    let made_anew = headless.is_some() && firsts.is_empty();
    if let Some(next) = headless.filter(|_| !made_anew) {
        if next != end {
            return Err(OpenError::Damaged(format!(
                "a segment was begun at {next}, but records end at {end}"
            )));
        }
        let name = segment_name(next);
        tracing::info!("the log's segment {name} was being made at the last end; it is removed");
        disk.remove(&name).map_err(folder)?;
    }
    scan.make_durable()?;
    position
        .write(epoch, committed)
        .and_then(|()| position.sync())
        .map_err(folder)?;
    disk.sync_names().map_err(folder)?;
    let Scan {
        segments, appended, ..
    } = scan;
    Ok(Recovered {
        epoch,
        salt,
        segments,
        appended,
        committed,
        position,
    })
}

/// Why a segment file couldn't be made.
pub(super) enum CreateError {
    /// It isn't there, or not whole; it may be tried again.
    Refused(io::Error),
    /// Nobody knows what is on the disk.
    Sync(io::Error),
}

/// Makes a segment file, durable with its name; an unfinished one of that name is begun anew.
pub(super) fn create_segment(
    disk: &dyn Disk,
    facts: (u32, u64),
    first: u64,
) -> Result<Segment, CreateError> {
    let (epoch, salt) = facts;
    let file: Arc<dyn DiskFile> = disk
        .open(&segment_name(first))
        .map_err(CreateError::Refused)?
        .into();
    file.set_len(0).map_err(CreateError::Refused)?;
    let header = SegmentHeader { epoch, salt, first }.encode();
    file.write_all_at(&header, 0)
        .map_err(CreateError::Refused)?;
    file.sync().map_err(CreateError::Sync)?;
    disk.sync_names().map_err(CreateError::Sync)?;
    Ok(Segment::empty(first, file))
}

/// Whether a segment's header was never whole: then it was being made, at the last end if it is the
/// last one, and holds nothing, since frames follow only a synced header.
fn is_headless(disk: &dyn Disk, first: u64) -> Result<bool, OpenError> {
    let name = segment_name(first);
    let step = |source| OpenError::disk(&name, source);
    let file = disk.open(&name).map_err(step)?;
    let len = file.len().map_err(step)?;
    if len > SEGMENT_HEADER_BYTES as u64 {
        return Ok(false);
    }
    Ok(read_header(&*file, len, &name)? == Err(Bad::Damaged))
}

fn read_header(
    file: &dyn DiskFile,
    len: u64,
    name: &str,
) -> Result<Result<SegmentHeader, Bad>, OpenError> {
    if len < SEGMENT_HEADER_BYTES as u64 {
        return Ok(Err(Bad::Damaged));
    }
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    file.read_exact_at(&mut bytes, 0)
        .map_err(|source| OpenError::disk(name, source))?;
    Ok(SegmentHeader::decode(&bytes))
}

struct Scan {
    /// Epoch and salt, the same in all segments.
    facts: Option<(u32, u64)>,
    segments: VecDeque<Segment>,
    appended: Micros,
    committed: u64,
    /// Place and bytes of the last frame of the last segment.
    last_frame: Option<(u64, usize)>,
}

impl Scan {
    fn segment(&mut self, disk: &dyn Disk, first: u64, last: bool) -> Result<(), OpenError> {
        let name = segment_name(first);
        let step = |source| OpenError::disk(&name, source);
        let file: Arc<dyn DiskFile> = disk.open(&name).map_err(step)?.into();
        let len = file.len().map_err(step)?;
        let header = match read_header(&*file, len, &name)? {
            Ok(header) => header,
            Err(Bad::Damaged) => return Err(OpenError::Damaged(format!("the header of {name}"))),
            Err(Bad::Version(version)) => {
                return Err(OpenError::Newer {
                    file: name,
                    version,
                });
            }
        };
        let facts = *self.facts.get_or_insert((header.epoch, header.salt));
        if header.first != first || first > OFFSET_MAX || (header.epoch, header.salt) != facts {
            return Err(OpenError::Damaged(format!(
                "{name} doesn't belong to this log"
            )));
        }
        if let Some(before) = self.segments.back()
            && before.end != first
        {
            return Err(OpenError::Damaged(format!(
                "{name} follows records up to {}",
                before.end
            )));
        }
        let mut segment = Segment::empty(first, Arc::clone(&file));
        self.last_frame = None;
        let mut window = Window::new(&*file, len);
        let whole = loop {
            match next_frame(&mut window, &segment, facts.1).map_err(step)? {
                Next::Frame(frame) if frame.first == segment.end && frame.epoch == header.epoch => {
                    self.last_frame = Some((segment.bytes, frame.frame_bytes()));
                    self.appended = self.appended.max(frame.appended);
                    self.committed = self.committed.max(frame.committed);
                    segment.grow(frame.end(), frame.frame_bytes() as u64);
                }
                Next::Frame(frame) => {
                    let why = format!(
                        "{name} has records from {} behind {}",
                        frame.first, segment.end
                    );
                    return Err(OpenError::Damaged(why));
                }
                Next::Miscounted => {
                    let why = format!("{name} counts records at byte {} wrongly", segment.bytes);
                    return Err(OpenError::Damaged(why));
                }
                Next::End => break true,
                Next::Bad(Bad::Version(version)) => {
                    return Err(OpenError::Newer {
                        file: name,
                        version,
                    });
                }
                Next::Bad(Bad::Damaged) => break false,
            }
        };
        if !whole {
            let at = segment.bytes;
            if !last || frame_behind(&mut window, at, facts.1).map_err(step)? {
                let why = format!(
                    "{name} at byte {at}, record {}, with whole records behind it",
                    segment.end
                );
                return Err(OpenError::Damaged(why));
            }
            tracing::info!(
                "the log's segment {name} ends with a torn write; {} bytes are cut off",
                len - at
            );
            file.set_len(at).map_err(step)?;
        }
        self.segments.push_back(segment);
        Ok(())
    }

    /// Makes the last segment durable before anybody is told of what it holds.
    ///
    /// Its last frame is written again, because a sync that failed at the last end may have
    /// left it in the page cache marked as written: then syncing alone would do nothing.
    /// Everything before it was synced with success.
    fn make_durable(&self) -> Result<(), OpenError> {
        let (Some(segment), Some((epoch, salt))) = (self.segments.back(), self.facts) else {
            return Ok(());
        };
        let name = segment_name(segment.first);
        let step = |source| OpenError::disk(&name, source);
        match self.last_frame {
            Some((at, count)) => {
                let mut bytes = vec![0; count];
                segment.file.read_exact_at(&mut bytes, at).map_err(step)?;
                segment.file.write_all_at(&bytes, at).map_err(step)?;
            }
            None => {
                let header = SegmentHeader {
                    epoch,
                    salt,
                    first: segment.first,
                };
                segment
                    .file
                    .write_all_at(&header.encode(), 0)
                    .map_err(step)?;
            }
        }
        segment.file.sync().map_err(step)
    }
}

enum Next {
    Frame(FrameHeader),
    /// Whole, but it doesn't hold the records that its header counts: never the work of a crash.
    Miscounted,
    End,
    Bad(Bad),
}

fn next_frame(window: &mut Window<'_>, segment: &Segment, salt: u64) -> io::Result<Next> {
    let at = segment.bytes;
    if window.is_end(at) {
        return Ok(Next::End);
    }
    let Some(header) = window.get(at, FRAME_HEADER_BYTES)? else {
        return Ok(Next::Bad(Bad::Damaged));
    };
    let header = match FrameHeader::decode(header, salt) {
        Ok(header) => header,
        Err(bad) => return Ok(Next::Bad(bad)),
    };
    match window.get(at + FRAME_HEADER_BYTES as u64, header.body_bytes as usize)? {
        Some(body) if header.fits(body, salt) => Ok(match header.counts(body) {
            true => Next::Frame(header),
            false => Next::Miscounted,
        }),
        _ => Ok(Next::Bad(Bad::Damaged)),
    }
}

/// Whether a frame header stands anywhere behind a damaged frame that begins at `at`.
fn frame_behind(window: &mut Window<'_>, at: u64, salt: u64) -> io::Result<bool> {
    let mut at = at + 1;
    while let Some(bytes) = window.get(at, FRAME_HEADER_BYTES)? {
        if bytes.starts_with(&FRAME_MAGIC) && FrameHeader::decode(bytes, salt) != Err(Bad::Damaged)
        {
            return Ok(true);
        }
        at += 1;
    }
    Ok(false)
}
