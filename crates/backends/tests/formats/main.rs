//! What earlier releases wrote still opens, and what a later one wrote is refused and left as it is.
//!
//! Each folder `fixtures/<part>-<format>` was written once, by the release whose format it is, and stays.
//! After a format was raised, the release that raised it writes its own (docs/upgrades.md):
//!
//! ```sh
//! cargo test -p tidings-backends --test formats -- --ignored
//! ```
//!
//! The store's segments (`fixtures/store-1`) are tested in `tests/store.rs`, which has their rows.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tidings_core::ids::{ConversationId, Partition};

mod directory;
mod log;
mod store;

const P: Partition = Partition(0);
const C: ConversationId = ConversationId(0x00f3_0102_0304_0506);

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// The folder that a fixture is written to, which must not be there: one that was released stays.
fn new_fixture(name: &str) -> PathBuf {
    let folder = fixture(name);
    fs::create_dir(&folder).expect("remove the folder first, if no release has written it");
    folder
}

/// A copy to open: opening writes.
fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for file in fs::read_dir(fixture(name)).expect("the fixture") {
        let file = file.expect("a file");
        fs::copy(file.path(), folder.path().join(file.file_name())).expect("copied");
    }
    folder
}

/// All files but the lock, which every start makes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(folder).expect("a folder");
    files
        .map(|file| file.expect("a file").path())
        .filter(|path| !path.ends_with("lock"))
        .map(|path| (path.clone(), fs::read(path).expect("a file")))
        .collect()
}

/// What remains of a fixture's folder: a lock is of no format.
fn written(folder: &Path) {
    fs::remove_file(folder.join("lock")).expect("the disk made one");
}

/// Writes another format's number at `at`, then what the checksum over it is now.
fn raise(path: &Path, at: usize, checksum: impl Fn(&[u8]) -> (usize, u32)) {
    let mut bytes = fs::read(path).expect("a file");
    assert_eq!(bytes[at..at + 4], [1, 0, 0, 0], "the number of format 1");
    bytes[at] = 2;
    let (place, sum) = checksum(&bytes);
    bytes[place..place + 4].copy_from_slice(&sum.to_le_bytes());
    fs::write(path, bytes).expect("written");
}

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without I/O needs nothing");
    runtime.block_on(future)
}
