//! The stored bytes of the log; numbers are little-endian.
//!
//! A segment file `log-<first offset, 16 hex digits>.seg` holds one segment header and then
//! frames without a gap, one frame a batch:
//!
//! ```text
//! segment header, 36 bytes             frame header, 52 bytes
//!  0 u32 magic "tLsg"                   0 u32 magic "tLfr"
//!  4 u32 version                        4 u32 version
//!  8 u32 epoch                          8 u32 epoch
//! 12 u32 0                             12 u32 body length in bytes
//! 16 u64 salt                          16 u64 offset of the first record
//! 24 u64 offset of the first record    24 u64 append time, µs since 1970
//! 32 u32 crc of bytes 0..32            32 u64 committed offset when it was written
//!                                      40 u32 record count
//! frame body, for each record          44 u32 crc of salt and body
//!  u32 length, then the payload        48 u32 crc of salt and bytes 0..48
//! ```
//!
//! `log-position` has two slots, at 0 and 4096, written in turn: so it needs no room on a
//! full disk, and a torn write leaves the other slot:
//!
//! ```text
//!  0 u32 magic "tLps"   4 u32 version   8 u32 epoch   12 u32 0
//! 16 u64 committed offset   24 u64 generation: the higher valid one counts   32 u32 crc of bytes 0..32
//! ```
//!
//! The salt is random, the same in all segments of a log: nobody who can't read the files can
//! send a message whose bytes look like a frame, so what looks like a frame behind a damaged one is one.

use bytes::Bytes;

use tidings_core::ids::Micros;

pub(super) const SEGMENT_HEADER_BYTES: usize = 36;
pub(super) const FRAME_HEADER_BYTES: usize = 52;
pub(super) const SLOT_BYTES: usize = 36;
/// A page apart, so that no torn write reaches both.
pub(super) const SLOT_STRIDE: u64 = 4096;
pub(super) const POSITION_NAME: &str = "log-position";

const VERSION: u32 = 1;
const SEGMENT_MAGIC: [u8; 4] = *b"tLsg";
pub(super) const FRAME_MAGIC: [u8; 4] = *b"tLfr";
const SLOT_MAGIC: [u8; 4] = *b"tLps";

/// No log comes so far: a million records a second for 292,000 years. Offsets near the end of their
/// range would have no next one.
pub(super) const OFFSET_MAX: u64 = u64::MAX / 2;

/// Why a header can't be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bad {
    /// It isn't one, or not a whole one.
    Damaged,
    /// It is whole and of this version, which this program doesn't know.
    Version(u32),
}

pub(super) fn segment_name(first: u64) -> String {
    format!("log-{first:016x}.seg")
}

/// The first offset that a segment's name tells; `None` for any other file.
pub(super) fn segment_first(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("log-")?.strip_suffix(".seg")?;
    let first = u64::from_str_radix(digits, 16).ok()?;
    (segment_name(first) == name).then_some(first)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentHeader {
    pub epoch: u32,
    pub salt: u64,
    pub first: u64,
}

impl SegmentHeader {
    pub fn encode(self) -> [u8; SEGMENT_HEADER_BYTES] {
        sealed(SEGMENT_MAGIC, self.epoch, self.salt, self.first)
    }

    pub fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<SegmentHeader, Bad> {
        let (epoch, salt, first) = unsealed(SEGMENT_MAGIC, bytes)?;
        Ok(SegmentHeader { epoch, salt, first })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    pub epoch: u32,
    pub committed: u64,
    pub generation: u64,
}

impl Slot {
    pub fn encode(self) -> [u8; SLOT_BYTES] {
        sealed(SLOT_MAGIC, self.epoch, self.committed, self.generation)
    }

    pub fn decode(bytes: &[u8; SLOT_BYTES]) -> Result<Slot, Bad> {
        let (epoch, committed, generation) = unsealed(SLOT_MAGIC, bytes)?;
        if generation > OFFSET_MAX {
            return Err(Bad::Damaged);
        }
        Ok(Slot {
            epoch,
            committed,
            generation,
        })
    }
}

fn sealed(magic: [u8; 4], epoch: u32, a: u64, b: u64) -> [u8; 36] {
    let mut out = [0; 36];
    out[..4].copy_from_slice(&magic);
    out[4..8].copy_from_slice(&VERSION.to_le_bytes());
    out[8..12].copy_from_slice(&epoch.to_le_bytes());
    out[16..24].copy_from_slice(&a.to_le_bytes());
    out[24..32].copy_from_slice(&b.to_le_bytes());
    let crc = crc32fast::hash(&out[..32]);
    out[32..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn unsealed(magic: [u8; 4], bytes: &[u8; 36]) -> Result<(u32, u64, u64), Bad> {
    if bytes[..4] != magic || crc32fast::hash(&bytes[..32]) != u32_at(bytes, 32) {
        return Err(Bad::Damaged);
    }
    match u32_at(bytes, 4) {
        VERSION => Ok((u32_at(bytes, 8), u64_at(bytes, 16), u64_at(bytes, 24))),
        version => Err(Bad::Version(version)),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FrameHeader {
    pub epoch: u32,
    pub body_bytes: u32,
    pub first: u64,
    pub appended: Micros,
    pub committed: u64,
    pub count: u32,
    body_crc: u32,
}

impl FrameHeader {
    pub fn decode(bytes: &[u8], salt: u64) -> Result<FrameHeader, Bad> {
        let Some(bytes) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Err(Bad::Damaged);
        };
        if bytes[..4] != FRAME_MAGIC || salted_crc(salt, &bytes[..48]) != u32_at(bytes, 48) {
            return Err(Bad::Damaged);
        }
        match u32_at(bytes, 4) {
            VERSION => Ok(FrameHeader {
                epoch: u32_at(bytes, 8),
                body_bytes: u32_at(bytes, 12),
                first: u64_at(bytes, 16),
                appended: u64_at(bytes, 24),
                committed: u64_at(bytes, 32),
                count: u32_at(bytes, 40),
                body_crc: u32_at(bytes, 44),
            }),
            version => Err(Bad::Version(version)),
        }
    }

    pub fn fits(&self, body: &[u8], salt: u64) -> bool {
        salted_crc(salt, body) == self.body_crc
    }

    /// Whether a body whose checksum fits holds as many records as the header says, and nothing else.
    pub fn counts(&self, mut body: &[u8]) -> bool {
        for _ in 0..self.count {
            let Some((len, rest)) = body.split_first_chunk::<4>() else {
                return false;
            };
            match rest.split_at_checked(u32::from_le_bytes(*len) as usize) {
                Some((_, behind)) => body = behind,
                None => return false,
            }
        }
        body.is_empty()
    }

    /// The offset behind its last record.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(u64::from(self.count))
    }

    /// Header and body.
    pub fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.body_bytes as usize
    }
}

/// What a frame says beside its records.
#[derive(Clone, Copy)]
pub(super) struct FrameFacts {
    pub epoch: u32,
    pub salt: u64,
    pub first: u64,
    pub appended: Micros,
    pub committed: u64,
}

/// Writes a frame into the emptied `out`. The caller keeps the body below 4 GiB.
pub(super) fn encode_frame(out: &mut Vec<u8>, facts: FrameFacts, payloads: &[Bytes]) {
    out.clear();
    out.resize(FRAME_HEADER_BYTES, 0);
    for payload in payloads {
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(payload);
    }
    let (header, body) = out.split_at_mut(FRAME_HEADER_BYTES);
    header[..4].copy_from_slice(&FRAME_MAGIC);
    header[4..8].copy_from_slice(&VERSION.to_le_bytes());
    header[8..12].copy_from_slice(&facts.epoch.to_le_bytes());
    header[12..16].copy_from_slice(&(body.len() as u32).to_le_bytes());
    header[16..24].copy_from_slice(&facts.first.to_le_bytes());
    header[24..32].copy_from_slice(&facts.appended.to_le_bytes());
    header[32..40].copy_from_slice(&facts.committed.to_le_bytes());
    header[40..44].copy_from_slice(&(payloads.len() as u32).to_le_bytes());
    header[44..48].copy_from_slice(&salted_crc(facts.salt, body).to_le_bytes());
    let crc = salted_crc(facts.salt, &header[..48]);
    header[48..].copy_from_slice(&crc.to_le_bytes());
}

/// The payloads of a frame body whose checksum fits, as slices of it.
pub(super) fn payloads(body: Bytes) -> impl Iterator<Item = Bytes> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let len = u32::from_le_bytes(*body.get(at..)?.first_chunk()?) as usize;
        let start = at + 4;
        if len > body.len() - start {
            return None;
        }
        at = start + len;
        Some(body.slice(start..at))
    })
}

fn salted_crc(salt: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Vec<u8> {
        let facts = FrameFacts {
            epoch: 1,
            salt: 7,
            first: 41,
            appended: 1_000_000,
            committed: 40,
        };
        let mut out = vec![9; 3];
        encode_frame(&mut out, facts, &[Bytes::from_static(b"hey"), Bytes::new()]);
        out
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What is on disks already must go on being read: a change here needs a new version.
    #[test]
    fn the_stored_bytes_of_version_1_stay() {
        let segment = SegmentHeader {
            epoch: 1,
            salt: 7,
            first: 41,
        };
        let slot = Slot {
            epoch: 1,
            committed: 40,
            generation: 3,
        };
        assert_eq!(
            hex(&segment.encode()),
            "744c736701000000010000000000000007000000000000002900000000000000523f857d"
        );
        assert_eq!(
            hex(&slot.encode()),
            "744c7073010000000100000000000000280000000000000003000000000000004797e119"
        );
        assert_eq!(
            hex(&frame()),
            "744c667201000000010000000b000000290000000000000040420f0000000000280000000000000002000000f03a761d68db21ab0300000068657900000000"
        );
        assert_eq!(segment_name(41), "log-0000000000000029.seg");
        assert_eq!(SegmentHeader::decode(&segment.encode()), Ok(segment));
        assert_eq!(Slot::decode(&slot.encode()), Ok(slot));
    }

    #[test]
    fn a_frame_is_taken_apart_and_any_changed_bit_is_seen() {
        let good = frame();
        let whole = |bytes: &[u8]| {
            let header = FrameHeader::decode(bytes, 7).ok()?;
            header
                .fits(&bytes[FRAME_HEADER_BYTES..], 7)
                .then_some(header)
        };
        let header = whole(&good).expect("it is whole");
        assert_eq!(
            (header.first, header.end(), header.frame_bytes()),
            (41, 43, good.len())
        );
        let body = Bytes::copy_from_slice(&good[FRAME_HEADER_BYTES..]);
        assert!(payloads(body).eq(["hey", ""]));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(whole(&bad), None, "bit {bit}");
        }
        assert_eq!(
            FrameHeader::decode(&good, 8),
            Err(Bad::Damaged),
            "another log's salt"
        );
        assert_eq!(FrameHeader::decode(&good[..40], 7), Err(Bad::Damaged));
    }

    #[test]
    fn a_body_has_as_many_records_as_its_header_counts() {
        let good = frame();
        let header = FrameHeader::decode(&good, 7).expect("it is whole");
        let body = &good[FRAME_HEADER_BYTES..];
        let count = |count| FrameHeader { count, ..header };
        let counts: Vec<bool> = (0..5).map(|n| count(n).counts(body)).collect();
        assert_eq!(counts, [false, false, true, false, false]);
        assert!(count(0).counts(b""));
        let longer = u32::MAX.to_le_bytes();
        assert!(!count(1).counts(&longer), "a record longer than the body");
    }

    #[test]
    fn only_our_names_are_segments() {
        for name in [
            "log-29.seg",
            "log-0000000000000029.seg.old",
            "log-position",
            "log-000000000000002G.seg",
            "x",
        ] {
            assert_eq!(segment_first(name), None, "{name}");
        }
        assert_eq!(segment_first("log-0000000000000029.seg"), Some(41));
    }
}
