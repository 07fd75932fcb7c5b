//! Dead letters in a folder: one file a letter.
//!
//! A file is named after its key, `<partition>-<epoch>-<offset>.letter` in fixed-width hex, so names sort as keys
//! do. It holds a CRC-32 (little-endian) and then the letter as [`DeadLetter::encode`] writes it. It is written
//! under `….part`, synced, renamed, and the folder is synced: a letter is there whole or not at all.
//!
//! One process sets letters aside; others may read meanwhile. The folder takes [`LETTERS_MAX`] letters and
//! [`BYTES_MAX`] bytes; then it refuses more until an operator moves some away, which may be done at any time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidings_core::ids::{Partition, Position};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::dead_letters::{
    DeadLetter, DeadLetterError, DeadLetters, Heading, Key, Page, Smallest,
};
use tokio::sync::Semaphore;

/// Far more than anybody looks at one by one; listing them all takes a moment.
pub const LETTERS_MAX: usize = 10_000;

/// What letters may take of the disk, beside the log and the store.
pub const BYTES_MAX: u64 = 256 << 20;

type Answer<T> = Result<T, DeadLetterError>;

/// Dead letters in a folder. Its calls need a tokio runtime around them.
pub struct FolderDeadLetters {
    folder: Arc<Path>,
    /// One file operation at a time: letters are rare, and whoever puts thinks of the sum of all.
    turn: Semaphore,
    letters_max: usize,
    bytes_max: u64,
}

impl FolderDeadLetters {
    /// Dead letters in this folder, which is made with the first one.
    pub fn new(folder: &Path) -> FolderDeadLetters {
        FolderDeadLetters::bounded(folder, LETTERS_MAX, BYTES_MAX)
    }

    /// The same with other bounds.
    pub fn bounded(folder: &Path, letters_max: usize, bytes_max: u64) -> FolderDeadLetters {
        FolderDeadLetters {
            folder: folder.into(),
            turn: Semaphore::new(1),
            letters_max,
            bytes_max,
        }
    }

    /// Runs file operations where they may block.
    async fn run<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Path) -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        let _turn = self.turn.acquire().await.map_err(|e| away(&e))?;
        let folder = self.folder.clone();
        tokio::task::spawn_blocking(move || operation(&folder))
            .await
            .map_err(|error| away(&error))?
    }
}

impl DeadLetters for FolderDeadLetters {
    fn put(&self, letter: DeadLetter) -> BoxFuture<'_, Answer<()>> {
        let (letters_max, bytes_max) = (self.letters_max, self.bytes_max);
        Box::pin(self.run(move |folder| put(folder, &letter, letters_max, bytes_max)))
    }

    fn list(&self, after: Option<Key>, limit: usize) -> BoxFuture<'_, Answer<Page>> {
        Box::pin(self.run(move |folder| list(folder, after, limit)))
    }

    fn get(&self, key: Key) -> BoxFuture<'_, Answer<Option<DeadLetter>>> {
        Box::pin(self.run(move |folder| read(&folder.join(name_of(key)))))
    }
}

fn put(folder: &Path, letter: &DeadLetter, letters_max: usize, bytes_max: u64) -> Answer<()> {
    make(folder).map_err(|error| away(&error))?;
    let name = name_of(letter.heading.key());
    let path = folder.join(&name);
    if path.try_exists().map_err(|error| away(&error))? {
        // A crash may have come between the rename and the sync.
        return sync(folder).map_err(|error| away(&error));
    }
    let encoded = letter.encode();
    let (count, bytes) = usage(folder).map_err(|error| away(&error))?;
    if count >= letters_max || bytes.saturating_add(encoded.len() as u64) > bytes_max {
        return Err(DeadLetterError::Full(format!(
            "{} holds {count} letters of {bytes} bytes; move some away",
            folder.display()
        )));
    }
    let part = folder.join(format!("{name}.part"));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)?;
        file.write_all(&crc32fast::hash(&encoded).to_le_bytes())?;
        file.write_all(&encoded)?;
        file.sync_all()?;
        fs::rename(&part, &path)?;
        sync(folder)
    };
    write().map_err(|error| {
        // What is left of it takes room; the next try writes it anew.
        _ = fs::remove_file(&part);
        away(&error)
    })
}

fn list(folder: &Path, after: Option<Key>, limit: usize) -> Answer<Page> {
    let mut smallest = Smallest::new(after, limit);
    for entry in entries(folder).map_err(|error| away(&error))? {
        let (key, bytes) = entry.map_err(|error| away(&error))?;
        // Only names so far: files are read for the page alone.
        smallest.offer(Heading {
            partition: key.0,
            position: key.1,
            appended: 0,
            conversation: None,
            reason: String::new(),
            bytes,
        });
    }
    let mut page = smallest.page();
    let mut headings = Vec::with_capacity(page.headings.len());
    for named in page.headings {
        match read(&folder.join(name_of(named.key()))) {
            Ok(Some(letter)) => headings.push(letter.heading),
            // Moved away meanwhile.
            Ok(None) => {}
            Err(DeadLetterError::Damaged(why)) => headings.push(Heading {
                reason: format!("the stored letter is damaged: {why}"),
                ..named
            }),
            Err(error) => return Err(error),
        }
    }
    page.headings = headings;
    Ok(page)
}

fn read(path: &Path) -> Answer<Option<DeadLetter>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(away(&error)),
    };
    let damaged = |why: &dyn std::fmt::Display| {
        DeadLetterError::Damaged(format!("{}: {why}", path.display()))
    };
    let (crc, encoded) = bytes
        .split_first_chunk()
        .ok_or_else(|| damaged(&"it ends early"))?;
    if u32::from_le_bytes(*crc) != crc32fast::hash(encoded) {
        return Err(damaged(&"its checksum is another"));
    }
    let letter = DeadLetter::decode(encoded).map_err(|error| damaged(&error))?;
    if path.file_name() != Some(name_of(letter.heading.key()).as_ref()) {
        return Err(damaged(&"it is another letter's"));
    }
    Ok(Some(letter))
}

fn name_of((partition, position): Key) -> String {
    format!(
        "{:08x}-{:08x}-{:016x}.letter",
        partition.0, position.epoch, position.offset
    )
}

/// The key that a letter's name tells; `None` for any other file.
fn key_of(name: &str) -> Option<Key> {
    let mut parts = name.strip_suffix(".letter")?.split('-');
    let partition = u32::from_str_radix(parts.next()?, 16).ok()?;
    let epoch = u32::from_str_radix(parts.next()?, 16).ok()?;
    let offset = u64::from_str_radix(parts.next()?, 16).ok()?;
    let key = (Partition(partition), Position { epoch, offset });
    (name_of(key) == name).then_some(key)
}

/// The letters of a folder, in any order, with the bytes of their files. No folder: none yet.
fn entries(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<(Key, u64)>>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(entries.into_iter().flatten().filter_map(|entry| {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => return Some(Err(error)),
        };
        let key = key_of(entry.file_name().to_str()?)?;
        match entry.metadata() {
            Ok(metadata) => Some(Ok((key, metadata.len()))),
            // Moved away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(Err(error)),
        }
    }))
}

/// Counted anew for each letter, since an operator may move some away at any time. Letters are rare.
fn usage(folder: &Path) -> io::Result<(usize, u64)> {
    let (mut count, mut bytes) = (0, 0);
    for entry in entries(folder)? {
        count += 1;
        bytes += entry?.1;
    }
    Ok((count, bytes))
}

/// Makes the folder, for this user only, and its name durable.
fn make(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if folder.try_exists()? {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let parent: PathBuf = folder.parent().unwrap_or(folder).into();
    sync(&parent)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all())
}

fn away(error: &dyn std::fmt::Display) -> DeadLetterError {
    DeadLetterError::Unavailable(error.to_string())
}
