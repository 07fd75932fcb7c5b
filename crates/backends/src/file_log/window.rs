//! Reading a file forward through a buffer.

use std::io;

use tidings_core::ports::disk::DiskFile;

const WINDOW_BYTES: usize = 1 << 20;

/// A part of a file in memory, moved as it is asked for.
pub(super) struct Window<'a> {
    file: &'a dyn DiskFile,
    len: u64,
    start: u64,
    buffer: Vec<u8>,
}

impl<'a> Window<'a> {
    /// Over the first `len` bytes of a file.
    pub fn new(file: &'a dyn DiskFile, len: u64) -> Window<'a> {
        Window {
            file,
            len,
            start: 0,
            buffer: Vec::new(),
        }
    }

    /// Whether the file ends at `at`.
    pub fn is_end(&self, at: u64) -> bool {
        at == self.len
    }

    /// `count` bytes from `at`; `None` when the file ends before.
    pub fn get(&mut self, at: u64, count: usize) -> io::Result<Option<&[u8]>> {
        let Some(end) = at.checked_add(count as u64).filter(|end| *end <= self.len) else {
            return Ok(None);
        };
        if at < self.start || end > self.start + self.buffer.len() as u64 {
            let wanted = (self.len - at).min(count.max(WINDOW_BYTES) as u64) as usize;
            self.buffer.resize(wanted, 0);
            self.start = at;
            self.file.read_exact_at(&mut self.buffer, at)?;
        }
        let from = (at - self.start) as usize;
        Ok(Some(&self.buffer[from..from + count]))
    }
}
