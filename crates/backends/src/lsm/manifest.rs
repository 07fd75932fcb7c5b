//! The manifest: which segments make up the store, and the log positions they hold.
//!
//! ```text
//! file = magic 8 bytes, format u32, length u32, fields, crc32 of all before it
//! ```
//!
//! It is replaced as a whole: a new file is written and synced, then renamed over the old one.
//! That rename is the moment at which a flush or a merge happens.

use std::collections::BTreeMap;

use tidings_core::ids::{Partition, Position};
use tidings_core::ports::disk::Disk;
use tidings_core::ports::store::{StoreError, StoreResult};
use tidings_core::varint::{self, Malformed, Reader};

use super::Trouble;

/// The manifest's name.
pub const NAME: &str = "manifest";
/// The name of the next one while it is written.
pub const NEXT_NAME: &str = "manifest.next";

const MAGIC: [u8; 8] = *b"tidingsM";
const FORMAT: u32 = 1;
const HEAD_LEN: usize = 16;

/// No manifest of ours is longer: what claims to be is damaged.
const LEN_MAX: u64 = 16 << 20;

/// Numbers are never given out so far: one segment a microsecond takes 285 years.
const SEGMENT_MAX: u64 = 1 << 53;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Manifest {
    /// The number of the next segment: no number is given twice.
    pub next_segment: u64,
    /// The segments by number, with the lengths of their files.
    pub segments: BTreeMap<u64, u64>,
    /// For each partition: all rows of the records before it are in the segments.
    pub settled: BTreeMap<Partition, Position>,
}

impl Manifest {
    fn encode(&self) -> Vec<u8> {
        let mut fields = Vec::new();
        varint::put(&mut fields, self.next_segment);
        varint::put(&mut fields, self.segments.len() as u64);
        for (number, len) in &self.segments {
            varint::put(&mut fields, *number);
            varint::put(&mut fields, *len);
        }
        varint::put(&mut fields, self.settled.len() as u64);
        for (partition, position) in &self.settled {
            varint::put(&mut fields, u64::from(partition.0));
            varint::put(&mut fields, u64::from(position.epoch));
            varint::put(&mut fields, position.offset);
        }
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&(fields.len() as u32).to_le_bytes());
        out.extend_from_slice(&fields);
        let sum = crc32fast::hash(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> StoreResult<Manifest> {
        let damaged = || StoreError::Corrupt("the manifest is damaged".to_owned());
        let (body, sum) = bytes.split_at(bytes.len().checked_sub(4).ok_or_else(damaged)?);
        if body.len() < HEAD_LEN || body[..8] != MAGIC || crc32fast::hash(body).to_le_bytes() != sum
        {
            return Err(damaged());
        }
        let format = u32::from_le_bytes(body[8..12].try_into().expect("4 bytes"));
        if format != FORMAT {
            return Err(StoreError::Newer(format!(
                "the store's {NAME} is of format {format}, this release reads {FORMAT}"
            )));
        }
        Manifest::decode_fields(&body[HEAD_LEN..]).map_err(|_| damaged())
    }

    fn decode_fields(fields: &[u8]) -> Result<Manifest, Malformed> {
        let mut r = Reader::new(fields, "manifest");
        let mut manifest = Manifest {
            next_segment: r.varint()?,
            ..Manifest::default()
        };
        for _ in 0..r.varint()? {
            manifest.segments.insert(r.varint()?, r.varint()?);
        }
        for _ in 0..r.varint()? {
            let partition = Partition(r.varint32()?);
            manifest.settled.insert(
                partition,
                Position {
                    epoch: r.varint32()?,
                    offset: r.varint()?,
                },
            );
        }
        let last = manifest.segments.keys().next_back();
        let is_next = last.is_none_or(|last| *last < manifest.next_segment);
        if is_next && manifest.next_segment <= SEGMENT_MAX {
            Ok(manifest)
        } else {
            Err(r.malformed())
        }
    }

    /// Reads the manifest of a folder in which one exists.
    pub fn read(disk: &dyn Disk) -> StoreResult<Manifest> {
        let unavailable =
            |e: std::io::Error| StoreError::Unavailable(format!("reading {NAME}: {e}"));
        let file = disk.open(NAME).map_err(unavailable)?;
        let len = file.len().map_err(unavailable)?;
        if len > LEN_MAX {
            return Err(StoreError::Corrupt(format!("{NAME}: {len} bytes long")));
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0).map_err(unavailable)?;
        Manifest::decode(&bytes)
    }

    /// Makes this the manifest, durably. The names of the segments become durable first: a crash
    /// could otherwise keep the manifest and lose a file that it names.
    pub fn write(&self, disk: &dyn Disk) -> Result<(), Trouble> {
        let sync =
            |what: &'static str| move |e: std::io::Error| Trouble::Sync(format!("{what}: {e}"));
        let file = disk.open(NEXT_NAME)?;
        file.set_len(0)?;
        file.write_all_at(&self.encode(), 0)?;
        file.sync().map_err(sync("syncing the manifest"))?;
        disk.sync_names()
            .map_err(sync("syncing the store's folder"))?;
        match disk.rename(NEXT_NAME, NAME) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::StorageFull => return Err(e.into()),
            // Whether it was done is not known, so neither is which files are in use.
            Err(e) => return Err(Trouble::Sync(format!("renaming the manifest: {e}"))),
        }
        disk.sync_names()
            .map_err(sync("syncing the store's folder"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_was_given_is_not_given_again() {
        for (next_segment, is_good) in [
            (8, true),
            (7, false),
            (0, false),
            (SEGMENT_MAX, true),
            (u64::MAX, false),
        ] {
            let manifest = Manifest {
                next_segment,
                segments: [(7, 12)].into(),
                ..Manifest::default()
            };
            let read = Manifest::decode(&manifest.encode());
            assert_eq!(read.is_ok(), is_good, "next {next_segment}");
        }
    }

    #[test]
    fn a_manifest_round_trips_and_any_changed_byte_is_noticed() {
        let manifest = Manifest {
            next_segment: 300,
            segments: [(7, 1 << 40), (299, 12)].into(),
            settled: [(
                Partition(3),
                Position {
                    epoch: 2,
                    offset: 1 << 50,
                },
            )]
            .into(),
        };
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
        for i in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[i] ^= 1;
            assert!(Manifest::decode(&damaged).is_err(), "byte {i}");
            assert!(Manifest::decode(&bytes[..i]).is_err(), "cut at {i}");
        }
    }
}
