//! A recorder of everything done to a disk, from which the state that a crash at
//! any moment may leave is made again.
//!
//! A test runs its workload over a [`RecordingDisk`], notes with [`RecordingDisk::mark`]
//! what was acknowledged, and then opens what [`Trace::disk_at`] gives for each of
//! [`Trace::cuts`] and some seeds.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tidings_core::ports::disk::{Disk, DiskFile};

use super::sim::{Rng, SimDisk};

/// A file of a trace, the same whatever it is renamed to.
pub type FileNumber = u64;

/// Something that was done to the disk, or noted by the test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An open that made the file.
    Create {
        /// The name it got.
        name: String,
        /// Its number from here on.
        file: FileNumber,
    },
    /// A write, or as much of it as fitted.
    Write {
        /// Where to.
        file: FileNumber,
        /// The place of its first byte.
        offset: u64,
        /// What was written.
        bytes: Bytes,
    },
    /// A cut or an extension.
    SetLen {
        /// Of which file.
        file: FileNumber,
        /// The new length in bytes.
        len: u64,
    },
    /// A successful sync of a file.
    Sync {
        /// Of which file.
        file: FileNumber,
    },
    /// A rename.
    Rename {
        /// The name it had.
        from: String,
        /// The name it has.
        to: String,
    },
    /// A removal.
    Remove {
        /// The name that went.
        name: String,
    },
    /// A successful sync of the names.
    SyncNames,
    /// A number that the test noted, say that of an acknowledged batch.
    Mark(u64),
}

/// Passes everything on to another disk, which is empty at first, and records it.
///
/// One operation runs at a time, so that the order of the trace is the order of the effects.
/// Clones record into one trace.
#[derive(Clone)]
pub struct RecordingDisk {
    inner: Arc<dyn Disk>,
    recorder: Arc<Mutex<Recorder>>,
}

#[derive(Default)]
struct Recorder {
    entries: Vec<Entry>,
    numbers: HashMap<String, FileNumber>,
    next_number: FileNumber,
}

impl RecordingDisk {
    /// Records what is done to `inner`, which must be empty.
    pub fn new(inner: Arc<dyn Disk>) -> RecordingDisk {
        RecordingDisk {
            inner,
            recorder: Arc::default(),
        }
    }

    /// Notes a number between the operations before and after this call.
    pub fn mark(&self, number: u64) {
        self.lock().entries.push(Entry::Mark(number));
    }

    /// What was recorded until now.
    pub fn trace(&self) -> Trace {
        Trace {
            entries: self.lock().entries.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Recorder> {
        lock(&self.recorder)
    }
}

fn lock(recorder: &Mutex<Recorder>) -> MutexGuard<'_, Recorder> {
    recorder.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk for RecordingDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut recorder = self.lock();
        let inner = self.inner.open(name)?;
        let number = match recorder.numbers.get(name) {
            Some(number) => *number,
            None => {
                let number = recorder.next_number;
                recorder.next_number += 1;
                recorder.numbers.insert(name.to_owned(), number);
                recorder.entries.push(Entry::Create {
                    name: name.to_owned(),
                    file: number,
                });
                number
            }
        };
        let recorder = Arc::clone(&self.recorder);
        Ok(Box::new(RecordingFile {
            inner,
            number,
            recorder,
        }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut recorder = self.lock();
        self.inner.rename(from, to)?;
        if let Some(number) = recorder.numbers.remove(from) {
            recorder.numbers.insert(to.to_owned(), number);
        }
        recorder.entries.push(Entry::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut recorder = self.lock();
        self.inner.remove(name)?;
        recorder.numbers.remove(name);
        recorder.entries.push(Entry::Remove {
            name: name.to_owned(),
        });
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut recorder = self.lock();
        self.inner.sync_names()?;
        recorder.entries.push(Entry::SyncNames);
        Ok(())
    }
}

struct RecordingFile {
    inner: Box<dyn DiskFile>,
    number: FileNumber,
    recorder: Arc<Mutex<Recorder>>,
}

impl DiskFile for RecordingFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut recorder = lock(&self.recorder);
        let result = self.inner.write_all_at(bytes, offset);
        let written = match result {
            Ok(()) => bytes.len(),
            Err(_) => (self.inner.len()?.saturating_sub(offset) as usize).min(bytes.len()),
        };
        let bytes = Bytes::copy_from_slice(&bytes[..written]);
        recorder.entries.push(Entry::Write {
            file: self.number,
            offset,
            bytes,
        });
        result
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut recorder = lock(&self.recorder);
        self.inner.set_len(len)?;
        recorder.entries.push(Entry::SetLen {
            file: self.number,
            len,
        });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut recorder = lock(&self.recorder);
        self.inner.sync()?;
        recorder.entries.push(Entry::Sync { file: self.number });
        Ok(())
    }
}

/// What was done to a disk, in order.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// From the first operation on.
    pub entries: Vec<Entry>,
}

/// A moment of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// So many entries are past.
    pub entries: usize,
    /// And so many bytes of the write that comes next; 0 unless it is a write.
    pub write_bytes: usize,
}

impl Trace {
    /// Each boundary between entries, the ends included, and a moment inside each write, chosen by `seed`.
    pub fn cuts(&self, seed: u64) -> Vec<Cut> {
        let mut rng = Rng::new(seed);
        let mut cuts = Vec::with_capacity(self.entries.len() * 2);
        for (entries, entry) in self.entries.iter().enumerate() {
            cuts.push(Cut {
                entries,
                write_bytes: 0,
            });
            match entry {
                Entry::Write { bytes, .. } if bytes.len() > 1 => {
                    let write_bytes = 1 + rng.below(bytes.len() as u64 - 1) as usize;
                    cuts.push(Cut {
                        entries,
                        write_bytes,
                    });
                }
                _ => {}
            }
        }
        cuts.push(Cut {
            entries: self.entries.len(),
            write_bytes: 0,
        });
        cuts
    }

    /// The marks before a cut, in order.
    pub fn marks_before(&self, cut: Cut) -> impl Iterator<Item = u64> + '_ {
        self.entries[..cut.entries]
            .iter()
            .filter_map(|entry| match entry {
                Entry::Mark(number) => Some(*number),
                _ => None,
            })
    }

    /// What a crash at `cut` may leave; `seed` chooses. For many cuts in order, [`Trace::replay`] costs less.
    pub fn disk_at(&self, cut: Cut, seed: u64) -> SimDisk {
        self.replay().crash(cut, seed)
    }

    /// Starts doing again what was recorded.
    pub fn replay(&self) -> Replay<'_> {
        Replay {
            trace: self,
            disk: SimDisk::new(),
            files: HashMap::new(),
            done: 0,
        }
    }
}

/// A trace being done again on a simulated disk, moment by moment.
pub struct Replay<'a> {
    trace: &'a Trace,
    disk: SimDisk,
    files: HashMap<FileNumber, String>,
    done: usize,
}

impl Replay<'_> {
    /// Goes forward to a cut and gives what a crash there may leave. Cuts must not go back.
    ///
    /// # Panics
    /// When the cut lies before an earlier one, or outside the trace.
    pub fn crash(&mut self, cut: Cut, seed: u64) -> SimDisk {
        self.killed(cut).crash(seed)
    }

    /// Goes forward to a cut and gives what a process killed there leaves on a machine that
    /// runs on: everything done can be read, and what wasn't synced still isn't. Cuts must not go back.
    ///
    /// # Panics
    /// When the cut lies before an earlier one, or outside the trace.
    pub fn killed(&mut self, cut: Cut) -> SimDisk {
        assert!(cut.entries >= self.done, "a replay goes forward only");
        for entry in &self.trace.entries[self.done..cut.entries] {
            apply(&self.disk, &mut self.files, entry, usize::MAX);
        }
        self.done = cut.entries;
        let disk = self.disk.copy();
        if cut.write_bytes > 0 {
            apply(
                &disk,
                &mut self.files,
                &self.trace.entries[cut.entries],
                cut.write_bytes,
            );
        }
        disk
    }
}

/// Does one entry again, a write up to `write_bytes` only.
///
/// Files are found by their present name; a removed one's later writes matter to nobody after a crash.
fn apply(
    disk: &SimDisk,
    files: &mut HashMap<FileNumber, String>,
    entry: &Entry,
    write_bytes: usize,
) {
    const FITS: &str = "a replayed disk has no limit and no failing sync";
    let open = |files: &HashMap<FileNumber, String>, file: &FileNumber| {
        files.get(file).map(|name| disk.open(name).expect(FITS))
    };
    match entry {
        Entry::Create { name, file } => {
            files.insert(*file, name.clone());
            disk.open(name).expect(FITS);
        }
        Entry::Write {
            file,
            offset,
            bytes,
        } => {
            if let Some(open) = open(files, file) {
                let part = &bytes[..write_bytes.min(bytes.len())];
                open.write_all_at(part, *offset).expect(FITS);
            }
        }
        Entry::SetLen { file, len } => {
            if let Some(open) = open(files, file) {
                open.set_len(*len).expect(FITS);
            }
        }
        Entry::Sync { file } => {
            if let Some(open) = open(files, file) {
                open.sync().expect(FITS);
            }
        }
        Entry::Rename { from, to } => {
            files.retain(|_, name| name != to);
            if let Some(name) = files.values_mut().find(|name| *name == from) {
                name.clone_from(to);
            }
            disk.rename(from, to)
                .expect("the recorded rename succeeded");
        }
        Entry::Remove { name } => {
            files.retain(|_, known| known != name);
            disk.remove(name).expect("the recorded removal succeeded");
        }
        Entry::SyncNames => disk.sync_names().expect(FITS),
        Entry::Mark(_) => {}
    }
}
