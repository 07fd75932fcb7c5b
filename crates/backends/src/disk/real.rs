//! A folder of the operating system.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tidings_core::ports::disk::{Disk, DiskFile};

/// The file whose lock says that a process has the folder.
const LOCK_NAME: &str = "lock";

/// A folder that this process alone has open.
///
/// Files are made readable by their owner only. The lock ends with the process,
/// however it ends.
pub struct RealDisk {
    folder: PathBuf,
    /// The folder itself, for syncing its names.
    handle: File,
    /// Held, never read: closing it gives the folder free.
    _lock: File,
}

impl RealDisk {
    /// Opens a folder and makes it when there is none.
    ///
    /// An error of kind `ResourceBusy` says that another process (or another
    /// `RealDisk` of this one) has it open.
    pub fn open(folder: impl AsRef<Path>) -> io::Result<RealDisk> {
        let folder = folder.as_ref();
        make_durably(folder)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(folder.join(LOCK_NAME))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    format!(
                        "the folder {} is in use by another process",
                        folder.display()
                    ),
                ));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(RealDisk {
            folder: folder.to_owned(),
            handle: File::open(folder)?,
            _lock: lock,
        })
    }

    fn path(&self, name: &str) -> io::Result<PathBuf> {
        let flat = !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..";
        if !flat || name == LOCK_NAME {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} isn't a name for a file of the data folder"),
            ));
        }
        Ok(self.folder.join(name))
    }
}

/// Makes a folder and what is missing above it, each synced into its parent.
fn make_durably(folder: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = folder
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .collect();
    for path in missing.into_iter().rev() {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

impl Disk for RealDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path(name)?)?;
        Ok(Box::new(RealFile(file)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            // What has no UTF-8 name, or isn't a file, isn't ours.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name != LOCK_NAME && entry.file_type()?.is_file() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from)?, self.path(to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name)?)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        // fdatasync: it covers the length, which is all of the metadata that matters here.
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_opened_by_one_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("new/data");
        let disk = RealDisk::open(&folder).unwrap();
        let second = RealDisk::open(&folder)
            .err()
            .expect("the second open is refused");
        assert_eq!(second.kind(), io::ErrorKind::ResourceBusy);
        assert!(second.to_string().contains("in use by another process"));
        drop(disk);
        RealDisk::open(&folder).unwrap();
    }

    #[test]
    fn names_are_flat_and_the_lock_is_hidden() {
        let folder = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(folder.path()).unwrap();
        for name in ["", "..", "a/b", LOCK_NAME] {
            assert!(disk.open(name).is_err(), "{name:?}");
        }
        disk.open("a").unwrap().write_all_at(b"xyz", 1).unwrap();
        disk.rename("a", "b").unwrap();
        disk.sync_names().unwrap();
        assert_eq!(disk.list().unwrap(), ["b"]);
        let mut found = [9; 4];
        disk.open("b")
            .unwrap()
            .read_exact_at(&mut found, 0)
            .unwrap();
        assert_eq!(&found, b"\0xyz");
        let short = disk
            .open("b")
            .unwrap()
            .read_exact_at(&mut found, 1)
            .unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    }
}
