//! Blobs in a folder: one file an object.
//!
//! A key's parts but the last are folders; the last one names the file, with a comma behind
//! it that no key has, so that `a` and `a/b` can both be objects. An object is written to
//! a file of its own under `.part`, synced, linked to its name (which fails where one
//! exists), and the folder is synced: a name is there with all its bytes or not at all.

use std::collections::BinaryHeap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidings_core::ports::blobs::{
    Answer, BLOB_PAGE_MAX, BlobError, BlobKey, BlobPage, BlobSource, Blobs, Put,
};
use tokio::sync::{Semaphore, SemaphorePermit};

/// How many file operations run at once: beside two cores more only queue in the kernel.
const OPERATIONS_MAX: usize = 16;

const PARTS: &str = ".part";

/// Objects in a folder. Its calls need a tokio runtime around them.
pub struct FolderBlobs {
    root: Arc<Path>,
    operations: Semaphore,
}

impl FolderBlobs {
    /// Opens or creates the folder and removes what broken-off puts have left.
    ///
    /// Blocks on disk I/O; called once at start, by the only process that uses the folder.
    pub fn open(root: &Path) -> io::Result<FolderBlobs> {
        let parts = root.join(PARTS);
        fs::create_dir_all(&parts)?;
        for leftover in fs::read_dir(&parts)? {
            fs::remove_file(leftover?.path())?;
        }
        File::open(root)?.sync_all()?;
        Ok(FolderBlobs {
            root: root.into(),
            operations: Semaphore::new(OPERATIONS_MAX),
        })
    }

    fn path(&self, key: &BlobKey) -> PathBuf {
        self.root.join(format!("{},", key.as_str()))
    }

    async fn permit(&self) -> Result<SemaphorePermit<'_>, BlobError> {
        self.operations
            .acquire()
            .await
            .map_err(|_| unavailable("closed"))
    }

    /// Runs file operations where they may block.
    async fn run<T: Send + 'static>(
        &self,
        operation: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
    ) -> Result<T, BlobError> {
        let _permit = self.permit().await?;
        tokio::task::spawn_blocking(operation)
            .await
            .map_err(|error| unavailable(&error.to_string()))?
    }

    async fn put(
        &self,
        key: &BlobKey,
        source: &mut dyn BlobSource,
        bytes_max: u64,
    ) -> Result<Put, BlobError> {
        let path = self.path(key);
        if let Some(size) = self.head(key).await? {
            return Ok(Put::Existed(size));
        }
        let root = self.root.clone();
        let mut part = self.run(move || Part::create(&root)).await?;
        while let Some(piece) = source.next().await.map_err(BlobError::Source)? {
            part.size += piece.len() as u64;
            if part.size > bytes_max {
                return Err(BlobError::TooLarge { max: bytes_max });
            }
            part = self
                .run(move || {
                    part.file.write_all(&piece).map_err(sort)?;
                    Ok(part)
                })
                .await?;
        }
        let root = self.root.clone();
        self.run(move || part.publish(&root, &path)).await
    }
}

impl Blobs for FolderBlobs {
    fn put_if_absent<'a>(
        &'a self,
        key: &'a BlobKey,
        source: &'a mut dyn BlobSource,
        bytes_max: u64,
    ) -> Answer<'a, Put> {
        Box::pin(self.put(key, source, bytes_max))
    }

    fn get<'a>(&'a self, key: &'a BlobKey, range: Range<u64>) -> Answer<'a, Bytes> {
        let path = self.path(key);
        Box::pin(self.run(move || {
            let file = File::open(path).map_err(sort)?;
            let size = file.metadata().map_err(sort)?.len();
            if range.start > range.end || range.end > size {
                return Err(BlobError::Range { size });
            }
            let mut bytes = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut bytes, range.start).map_err(sort)?;
            Ok(Bytes::from(bytes))
        }))
    }

    fn head<'a>(&'a self, key: &'a BlobKey) -> Answer<'a, Option<u64>> {
        let path = self.path(key);
        Box::pin(self.run(move || size_of(&path)))
    }

    fn delete<'a>(&'a self, key: &'a BlobKey) -> Answer<'a, bool> {
        let path = self.path(key);
        Box::pin(self.run(move || match fs::remove_file(&path) {
            Ok(()) => {
                sync_folder_of(&path)?;
                Ok(true)
            }
            Err(error) if absent(&error) => Ok(false),
            Err(error) => Err(sort(error)),
        }))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a BlobKey>,
        limit: usize,
    ) -> Answer<'a, BlobPage> {
        let root = self.root.clone();
        let prefix = prefix.to_owned();
        let after = after.map(|key| key.as_str().to_owned());
        Box::pin(self.run(move || {
            let mut page = BlobPage::default();
            let wanted = Wanted {
                prefix: &prefix,
                after: after.as_deref(),
                limit: limit.min(BLOB_PAGE_MAX),
            };
            wanted.collect(&root, "", &mut page)?;
            Ok(page)
        }))
    }
}

/// An object on its way: removed unless published.
struct Part {
    file: File,
    path: PathBuf,
    size: u64,
}

impl Part {
    fn create(root: &Path) -> Result<Part, BlobError> {
        let name = getrandom::u64().map_err(|error| unavailable(&error.to_string()))?;
        let path = root.join(PARTS).join(format!("{name:016x}"));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(sort)?;
        Ok(Part {
            file,
            path,
            size: 0,
        })
    }

    fn publish(self, root: &Path, path: &Path) -> Result<Put, BlobError> {
        self.file.sync_all().map_err(sort)?;
        create_folders(root, path)?;
        match fs::hard_link(&self.path, path) {
            Ok(()) => {
                sync_folder_of(path)?;
                Ok(Put::Stored(self.size))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // The winner's name must be durable before anybody is told of it.
                sync_folder_of(path)?;
                Ok(Put::Existed(size_of(path)?.unwrap_or(0)))
            }
            Err(error) => Err(sort(error)),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // A leftover is harmless and goes at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes the folders above an object durable, the outermost first.
fn create_folders(root: &Path, path: &Path) -> Result<(), BlobError> {
    let inner: Vec<&Path> = path
        .ancestors()
        .skip(1)
        .take_while(|folder| *folder != root)
        .collect();
    for folder in inner.into_iter().rev() {
        match fs::create_dir(folder) {
            Ok(()) => sync_folder_of(folder)?,
            // Perhaps made by another put a moment ago, and not synced yet.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => sync_folder_of(folder)?,
            Err(error) => return Err(sort(error)),
        }
    }
    Ok(())
}

fn sync_folder_of(path: &Path) -> Result<(), BlobError> {
    let folder = path.parent().unwrap_or(path);
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(sort)
}

fn size_of(path: &Path) -> Result<Option<u64>, BlobError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if absent(&error) => Ok(None),
        Err(error) => Err(sort(error)),
    }
}

fn absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn unavailable(cause: &str) -> BlobError {
    BlobError::Unavailable {
        retry_after: Duration::from_secs(1),
        cause: cause.to_owned(),
    }
}

fn sort(error: io::Error) -> BlobError {
    match error.kind() {
        _ if absent(&error) => BlobError::NotFound,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BlobError::Full,
        _ => unavailable(&error.to_string()),
    }
}

/// What a page asks for.
struct Wanted<'a> {
    prefix: &'a str,
    after: Option<&'a str>,
    limit: usize,
}

impl Wanted<'_> {
    /// Whether keys that begin with `path` can be wanted at all.
    fn reaches(&self, path: &str) -> bool {
        let below_prefix = path.starts_with(self.prefix) || self.prefix.starts_with(path);
        // All keys below come before `after` only if they do with any ending.
        let behind = self
            .after
            .is_none_or(|after| path > after || after.starts_with(path));
        below_prefix && behind
    }

    /// Adds the wanted keys of a folder in order, until one more than the limit is known of.
    ///
    /// Of a folder's entries only the smallest that fill the page are held, so memory is
    /// bounded by the page and not by the folder.
    fn collect(&self, folder: &Path, path: &str, page: &mut BlobPage) -> Result<(), BlobError> {
        let mut behind: Option<String> = None;
        loop {
            let room = self.limit + 1 - page.keys.len().min(self.limit);
            let entries = self.entries(folder, path, behind.as_deref(), room)?;
            let ended = entries.len() < room;
            for entry in entries {
                if entry.ends_with('/') {
                    let name = entry.trim_end_matches('/');
                    let name = name.rsplit('/').next().unwrap_or(name);
                    self.collect(&folder.join(name), &entry, page)?;
                } else if page.keys.len() == self.limit {
                    page.more = true;
                } else if let Some(key) = BlobKey::new(&entry) {
                    page.keys.push(key);
                }
                if page.more {
                    return Ok(());
                }
                behind = Some(entry);
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// The `room` smallest wanted entries of a folder from `behind` on: keys, and folders with a slash
    /// at their end, which is where their keys sort.
    fn entries(
        &self,
        folder: &Path,
        path: &str,
        behind: Option<&str>,
        room: usize,
    ) -> Result<Vec<String>, BlobError> {
        let mut smallest: BinaryHeap<String> = BinaryHeap::with_capacity(room + 1);
        for entry in fs::read_dir(folder).map_err(sort)? {
            let entry = entry.map_err(sort)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let wanted = match name.strip_suffix(',') {
                Some(name) => Some(format!("{path}{name}")).filter(|key| {
                    key.starts_with(self.prefix)
                        && self.after.is_none_or(|after| key.as_str() > after)
                }),
                None if name.starts_with('.') => None,
                None => Some(format!("{path}{name}/")).filter(|inner| self.reaches(inner)),
            };
            let Some(wanted) =
                wanted.filter(|wanted| behind.is_none_or(|behind| wanted.as_str() > behind))
            else {
                continue;
            };
            smallest.push(wanted);
            if smallest.len() > room {
                smallest.pop();
            }
        }
        Ok(smallest.into_sorted_vec())
    }
}
