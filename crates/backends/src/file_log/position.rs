//! The durable committed position.

use std::io;

use tidings_core::ports::disk::{Disk, DiskFile};

use super::format::{Bad, POSITION_NAME, SLOT_BYTES, SLOT_STRIDE, Slot};
use super::recover::OpenError;

/// The open `log-position` file.
pub(super) struct PositionFile {
    file: Box<dyn DiskFile>,
    generation: u64,
}

impl PositionFile {
    /// Opens the file, or makes one, and reads it. `None`: it is new, or was never written whole.
    ///
    /// A new one isn't durable by its name until the caller syncs the names.
    pub fn open(disk: &dyn Disk) -> Result<(PositionFile, Option<Slot>), OpenError> {
        let step = |source| OpenError::disk(POSITION_NAME, source);
        let file = disk.open(POSITION_NAME).map_err(step)?;
        if file.len().map_err(step)? < 2 * SLOT_STRIDE {
            file.write_all_at(&[0; SLOT_STRIDE as usize], SLOT_STRIDE)
                .map_err(step)?;
        }
        let mut best: Option<Slot> = None;
        for place in [0, SLOT_STRIDE] {
            let mut bytes = [0; SLOT_BYTES];
            file.read_exact_at(&mut bytes, place).map_err(step)?;
            match Slot::decode(&bytes) {
                Ok(slot) if best.is_none_or(|best| slot.generation > best.generation) => {
                    best = Some(slot)
                }
                Ok(_) | Err(Bad::Damaged) => {}
                Err(Bad::Version(version)) => {
                    return Err(OpenError::Newer {
                        file: POSITION_NAME.to_owned(),
                        version,
                    });
                }
            }
        }
        let generation = best.map_or(0, |slot| slot.generation);
        Ok((PositionFile { file, generation }, best))
    }

    /// Writes the slot that holds the older position.
    pub fn write(&mut self, epoch: u32, committed: u64) -> io::Result<()> {
        self.generation += 1;
        let slot = Slot {
            epoch,
            committed,
            generation: self.generation,
        };
        self.file
            .write_all_at(&slot.encode(), (self.generation % 2) * SLOT_STRIDE)
    }

    /// Makes the last [`PositionFile::write`] durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}
