//! Histories in files: one JSON record a line, several files merged by time.

use crate::history::Record;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// The longest line taken for a record; the longest real one is under 500 bytes.
const LINE_BYTES_MAX: u64 = 4096;

/// Why a history can't be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file can't be opened or read: look at its path and permissions.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not a record: the file isn't a history, or is from another version.
    #[error("{}, line {line}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads records line by line.
///
/// A last line without its end is what a killed recorder leaves: it is dropped and counted.
pub struct Reader<R> {
    source: R,
    path: PathBuf,
    buffer: Vec<u8>,
    line: u64,
    torn: u64,
    failed: bool,
}

impl Reader<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// [`HistoryError::Io`] if it can't be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, HistoryError> {
        let path = path.as_ref();
        let io = |source| HistoryError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        Ok(Reader::new(BufReader::with_capacity(1 << 18, file), path))
    }
}

impl<R: BufRead> Reader<R> {
    /// Reads from `source`; `path` names it in errors.
    pub fn new(source: R, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_owned();
        Reader {
            source,
            path,
            buffer: Vec::new(),
            line: 0,
            torn: 0,
            failed: false,
        }
    }

    /// How many torn last lines were dropped so far: 0 or 1.
    pub fn torn(&self) -> u64 {
        self.torn
    }

    fn read(&mut self) -> Result<Option<Record>, HistoryError> {
        loop {
            self.buffer.clear();
            self.line += 1;
            let mut bounded = self.source.by_ref().take(LINE_BYTES_MAX);
            let size = bounded
                .read_until(b'\n', &mut self.buffer)
                .map_err(|source| HistoryError::Io {
                    path: self.path.clone(),
                    source,
                })?;
            if size == 0 {
                return Ok(None);
            }
            if self.buffer.trim_ascii().is_empty() {
                continue;
            }
            return match serde_json::from_slice(&self.buffer) {
                Ok(record) => Ok(Some(record)),
                Err(_) if !self.buffer.ends_with(b"\n") && (size as u64) < LINE_BYTES_MAX => {
                    self.torn += 1;
                    Ok(None)
                }
                Err(error) => Err(HistoryError::Malformed {
                    path: self.path.clone(),
                    line: self.line,
                    reason: error.to_string(),
                }),
            };
        }
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Record, HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let answer = self.read();
        self.failed = !matches!(answer, Ok(Some(_)));
        answer.transpose()
    }
}

/// Several files as one history, by time. The order within a file is kept even where its times
/// step back, since it is the order in which its devices saw things.
pub struct Merge {
    readers: Vec<Reader<BufReader<File>>>,
    /// The next record of each file that has one.
    next: Vec<Option<Record>>,
    due: BinaryHeap<Reverse<(u64, usize)>>,
    /// The first error, given out once.
    error: Option<HistoryError>,
}

impl Merge {
    /// Opens all files.
    ///
    /// # Errors
    /// As for reading each of them.
    pub fn open<P: AsRef<Path>>(files: &[P]) -> Result<Merge, HistoryError> {
        let mut merge = Merge {
            readers: files.iter().map(Reader::open).collect::<Result<_, _>>()?,
            next: vec![None; files.len()],
            due: BinaryHeap::new(),
            error: None,
        };
        for file in 0..merge.readers.len() {
            merge.advance(file, 0);
        }
        match merge.error.take() {
            Some(error) => Err(error),
            None => Ok(merge),
        }
    }

    /// How many files ended in a torn line.
    pub fn torn(&self) -> u64 {
        self.readers.iter().map(Reader::torn).sum()
    }

    fn advance(&mut self, file: usize, not_before: u64) {
        match self.readers[file].next() {
            Some(Ok(record)) => {
                self.next[file] = Some(record);
                self.due.push(Reverse((record.at().max(not_before), file)));
            }
            Some(Err(error)) => self.error = Some(error),
            None => {}
        }
    }
}

impl Iterator for Merge {
    type Item = Result<Record, HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.error.take() {
            self.due.clear();
            return Some(Err(error));
        }
        let Reverse((at, file)) = self.due.pop()?;
        let record = self.next[file].take()?;
        self.advance(file, at);
        Some(Ok(record))
    }
}
