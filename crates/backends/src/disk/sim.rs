//! A disk in memory that can crash as POSIX allows, fill up and fail a sync.
//!
//! 1. `visible` is what reads see; `durable` is what the last sync left.
//! 2. `durable` plus the pending operations in their order is `visible`, unless a
//!    sync failed: then what it should have written is lost though reads still see
//!    it, as a page cache does that marks its pages clean all the same.
//! 3. A crash keeps `durable` and any part of what is pending, in any order.
//! 4. Names and contents are independent: syncing a file doesn't sync its name.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tidings_core::ports::disk::{Disk, DiskFile};

/// What a torn write is torn along, in bytes, besides single bytes.
const SECTOR_BYTES: usize = 512;

/// A small generator of repeatable numbers (splitmix64); not for secrets.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// True `n` times of `of`.
    pub fn chance(&mut self, n: u64, of: u64) -> bool {
        self.below(of) < n
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// Called before each sync of a file or of names; may block, and may fail it.
type SyncHook = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// A disk in memory; clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Default)]
struct State {
    /// By file number; a file without a name stays for whoever has it open.
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    name_changes: Vec<NameChange>,
    capacity: Option<u64>,
    hook: Option<SyncHook>,
}

#[derive(Clone, Default)]
struct Content {
    visible: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { offset: u64, bytes: Bytes },
    SetLen(u64),
}

#[derive(Clone)]
enum NameChange {
    Create {
        name: String,
        file: usize,
    },
    Rename {
        from: String,
        to: String,
        file: usize,
    },
    Remove {
        name: String,
    },
}

impl SimDisk {
    /// An empty disk without limit.
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    /// How many bytes all named files may have together; `None` for no limit. Lowering it below what is there takes nothing away.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// The bytes of all named files.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// Calls `hook` before each sync of a file or of names: it may wait, and its error fails the sync.
    ///
    /// After a failed sync of a file what was pending is lost by the next crash although reads
    /// still see it and the next sync succeeds.
    pub fn on_sync(&self, hook: impl Fn() -> io::Result<()> + Send + Sync + 'static) {
        self.lock().hook = Some(Arc::new(hook));
    }

    /// What a crash now may leave: each unsynced write kept, dropped, torn at a byte or along
    /// sectors, or lengthening the file without its bytes; each unsynced change of names made or not.
    ///
    /// The same disk and seed give the same result. This disk is not changed; the new one
    /// has its capacity and no hook.
    pub fn crash(&self, seed: u64) -> SimDisk {
        let mut rng = Rng::new(seed);
        let state = self.lock();
        let temper = Temper::of(&mut rng);
        let contents: Vec<Vec<u8>> = state
            .files
            .iter()
            .map(|content| content.survive(temper, &mut rng))
            .collect();
        let mut names = state.durable_names.clone();
        for change in &state.name_changes {
            if temper.keeps(&mut rng) {
                change.apply(&mut names);
            }
        }
        let files = contents
            .into_iter()
            .map(|bytes| Content {
                visible: bytes.clone(),
                durable: bytes,
                pending: Vec::new(),
            })
            .collect();
        let capacity = state.capacity;
        let state = State {
            files,
            durable_names: names.clone(),
            names,
            capacity,
            ..State::default()
        };
        SimDisk {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// A disk of its own with the same contents, synced and not, and the same capacity; no hook.
    pub fn copy(&self) -> SimDisk {
        let state = State {
            hook: None,
            ..self.lock().clone()
        };
        SimDisk {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_hook(&self) -> io::Result<()> {
        // Called without the lock, since it may wait for somebody who uses the disk.
        let hook = self.lock().hook.clone();
        hook.map_or(Ok(()), |hook| hook())
    }
}

impl State {
    fn used(&self) -> u64 {
        self.names
            .values()
            .map(|file| self.files[*file].visible.len() as u64)
            .sum()
    }

    /// How long a file may become.
    fn len_max(&self, file: usize) -> u64 {
        let len = self.files[file].visible.len() as u64;
        match self.capacity {
            Some(capacity) => len + capacity.saturating_sub(self.used()),
            None => u64::MAX,
        }
    }
}

/// How a crash treats what was pending. The extremes are what real crashes mostly
/// are, and rare among independent choices.
#[derive(Clone, Copy)]
enum Temper {
    KeepsAll,
    DropsAll,
    Mixed,
}

impl Temper {
    fn of(rng: &mut Rng) -> Temper {
        match rng.below(6) {
            0 => Temper::KeepsAll,
            1 => Temper::DropsAll,
            _ => Temper::Mixed,
        }
    }

    fn keeps(self, rng: &mut Rng) -> bool {
        match self {
            Temper::KeepsAll => true,
            Temper::DropsAll => false,
            Temper::Mixed => rng.chance(1, 2),
        }
    }
}

impl Content {
    fn apply(&mut self, change: Change) {
        match &change {
            Change::Write { offset, bytes } => write_into(&mut self.visible, *offset, bytes),
            Change::SetLen(len) => self.visible.resize(*len as usize, 0),
        }
        self.pending.push(change);
    }

    fn sync(&mut self) {
        // Replayed rather than copied from `visible`: what a failed sync lost stays lost.
        for change in self.pending.drain(..) {
            match change {
                Change::Write { offset, bytes } => write_into(&mut self.durable, offset, &bytes),
                Change::SetLen(len) => self.durable.resize(len as usize, 0),
            }
        }
    }

    fn survive(&self, temper: Temper, rng: &mut Rng) -> Vec<u8> {
        let mut left = self.durable.clone();
        let mut pending: Vec<&Change> = self.pending.iter().collect();
        if matches!(temper, Temper::Mixed) && rng.chance(1, 4) {
            rng.shuffle(&mut pending);
        }
        for change in pending {
            match change {
                Change::SetLen(len) if temper.keeps(rng) => left.resize(*len as usize, 0),
                Change::SetLen(_) => {}
                Change::Write { offset, bytes } => match temper {
                    Temper::KeepsAll => write_into(&mut left, *offset, bytes),
                    Temper::DropsAll => {}
                    Temper::Mixed => tear_into(&mut left, *offset, bytes, rng),
                },
            }
        }
        left
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            NameChange::Create { name, file } => {
                names.insert(name.clone(), *file);
            }
            NameChange::Rename { from, to, file } => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            NameChange::Remove { name } => {
                names.remove(name);
            }
        }
    }
}

fn write_into(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = offset as usize;
    let end = start + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(bytes);
}

/// Writes as much of a write as a crash may leave.
fn tear_into(content: &mut Vec<u8>, offset: u64, bytes: &[u8], rng: &mut Rng) {
    let end = offset as usize + bytes.len();
    match rng.below(6) {
        0 => {}
        1 | 2 => write_into(content, offset, bytes),
        3 => {
            let kept = rng.below(bytes.len() as u64 + 1) as usize;
            write_into(content, offset, &bytes[..kept]);
        }
        4 => {
            let mut start = 0;
            while start < bytes.len() {
                let in_sector = (offset as usize + start) % SECTOR_BYTES;
                let piece = (SECTOR_BYTES - in_sector).min(bytes.len() - start);
                if rng.chance(1, 2) {
                    write_into(content, offset + start as u64, &bytes[start..start + piece]);
                }
                start += piece;
            }
            if content.len() < end && rng.chance(1, 2) {
                content.resize(end, 0);
            }
        }
        // The new length alone reached the disk.
        _ => {
            if content.len() < end {
                content.resize(end, 0);
            }
        }
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.lock();
        let file = match state.names.get(name) {
            Some(file) => *file,
            None => {
                let file = state.files.len();
                state.files.push(Content::default());
                state.names.insert(name.to_owned(), file);
                state.name_changes.push(NameChange::Create {
                    name: name.to_owned(),
                    file,
                });
                file
            }
        };
        Ok(Box::new(SimFile {
            disk: self.clone(),
            file,
        }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        let file = state.names.remove(from).ok_or_else(|| no_such(from))?;
        state.names.insert(to.to_owned(), file);
        let (from, to) = (from.to_owned(), to.to_owned());
        state
            .name_changes
            .push(NameChange::Rename { from, to, file });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.names.remove(name).ok_or_else(|| no_such(name))?;
        state.name_changes.push(NameChange::Remove {
            name: name.to_owned(),
        });
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        self.run_hook()?;
        let mut state = self.lock();
        state.durable_names = state.names.clone();
        state.name_changes.clear();
        Ok(())
    }
}

fn no_such(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("there is no file {name:?}"),
    )
}

fn full() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "the simulated disk is full")
}

struct SimFile {
    disk: SimDisk,
    file: usize,
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().files[self.file].visible.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.lock();
        let content = &state.files[self.file].visible;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match start
            .checked_add(buffer.len())
            .and_then(|end| content.get(start..end))
        {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is shorter",
            )),
        }
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        let room = state.len_max(self.file).saturating_sub(offset);
        let fits = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        if fits > 0 {
            let bytes = Bytes::copy_from_slice(&bytes[..fits]);
            state.files[self.file].apply(Change::Write { offset, bytes });
        }
        if fits < bytes.len() {
            Err(full())
        } else {
            Ok(())
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        if len > state.len_max(self.file) {
            return Err(full());
        }
        state.files[self.file].apply(Change::SetLen(len));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let allowed = self.disk.run_hook();
        let mut state = self.disk.lock();
        let content = &mut state.files[self.file];
        match allowed {
            Ok(()) => {
                content.sync();
                Ok(())
            }
            Err(error) => {
                content.pending.clear();
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn content(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
        if !disk.list().unwrap().iter().any(|n| n == name) {
            return None;
        }
        let file = disk.open(name).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        Some(bytes)
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_any_part_of_the_rest() {
        let disk = SimDisk::new();
        let file = disk.open("a").unwrap();
        file.write_all_at(b"safe", 0).unwrap();
        file.sync().unwrap();
        disk.sync_names().unwrap();
        file.write_all_at(&[7; 1200], 4).unwrap();
        file.write_all_at(b"z", 1204).unwrap();
        let mut seen = BTreeSet::new();
        for seed in 0..300 {
            let left = content(&disk.crash(seed), "a").expect("its name was synced");
            assert!(left.starts_with(b"safe"));
            assert_eq!(
                Some(&left),
                content(&disk.crash(seed), "a").as_ref(),
                "seed {seed}"
            );
            seen.insert(left);
        }
        assert!(seen.contains(&b"safe"[..]), "dropped");
        assert!(seen.contains(&content(&disk, "a").unwrap()), "kept");
        let holes = |b: &Vec<u8>| b.len() == 1205 && b[1204] == b'z' && b[4] == 0;
        assert!(
            seen.iter().any(holes),
            "the later write kept without the earlier"
        );
        assert!(seen.iter().any(|b| b.len() > 4 && b.len() < 1204), "torn");
    }

    #[test]
    fn names_not_synced_may_be_there_or_not() {
        let disk = SimDisk::new();
        for (name, bytes) in [("a", b"old"), ("b", b"new")] {
            let file = disk.open(name).unwrap();
            file.write_all_at(bytes, 0).unwrap();
            file.sync().unwrap();
        }
        assert!((0..50).any(|seed| content(&disk.crash(seed), "a").is_none()));
        disk.sync_names().unwrap();
        disk.rename("b", "a").unwrap();
        let seen: BTreeSet<_> = (0..50)
            .map(|seed| content(&disk.crash(seed), "a").expect("one of both"))
            .collect();
        assert_eq!(seen, BTreeSet::from([b"old".to_vec(), b"new".to_vec()]));
    }

    #[test]
    fn a_full_disk_takes_a_part_and_a_failed_sync_loses_what_it_had() {
        let disk = SimDisk::new();
        disk.set_capacity(Some(6));
        let file = disk.open("a").unwrap();
        disk.sync_names().unwrap();
        let error = file.write_all_at(b"12345678", 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(content(&disk, "a").unwrap(), b"123456");
        file.set_len(2).unwrap();
        disk.on_sync(|| Err(io::Error::other("input/output error")));
        file.sync().unwrap_err();
        disk.on_sync(|| Ok(()));
        file.sync().unwrap();
        assert_eq!(content(&disk, "a").unwrap(), b"12");
        assert_eq!(content(&disk.crash(1), "a").unwrap(), b"");
    }
}
