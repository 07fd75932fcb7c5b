//! Files as the embedded log and store use them: flat names in one folder.
//!
//! What survives a crash is what POSIX promises and no more: bytes written but
//! not synced may be kept, dropped, torn or reordered; a file's name is durable
//! only after [`Disk::sync_names`].

use std::io;

/// A folder of files with flat names. Calls block the thread.
pub trait Disk: Send + Sync {
    /// Opens for reading and writing; makes an empty file when there is none.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// The names that exist, in no order.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Renames over whatever was there, atomically; durable after [`Disk::sync_names`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name; open files stay readable. Durable after [`Disk::sync_names`].
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes all creations, renames and removals so far durable.
    fn sync_names(&self) -> io::Result<()>;
}

/// An open file. Reads may run beside each other and beside writes.
pub trait DiskFile: Send + Sync {
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buffer` from `offset`; an error of kind `UnexpectedEof` when the file is shorter.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`. On an error (`StorageFull` among them) a part may have been written.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts or extends with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes everything written so far durable, the length included (fdatasync).
    ///
    /// After an error nobody knows what is on the disk: the caller must end the
    /// process and never call it again on this file (reliability.md, 2.3).
    fn sync(&self) -> io::Result<()>;
}
