//! The file that a client keeps: whatever it holds, it opens or it is refused, and opens alike again.

#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tidings_client::{Store, StoreError};
use tidings_fuzz::{Input, within};

const MAGIC: &[u8; 8] = b"tdgcli01";

/// In memory where there is such a folder: each case is a few synced writes.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let folder = parent.join(format!("tidings-fuzz-outbox-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for scratch");
    folder
});

/// A file of these records with right lengths and checksums, then what is torn.
fn file(input: &mut Input<'_>) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for _ in 0..input.byte() {
        let payload = input.piece();
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
        out.extend_from_slice(payload);
    }
    out.extend_from_slice(input.rest());
    out
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let content = match input.byte() {
        0 => input.rest().to_vec(),
        _ => file(&mut input),
    };
    let path = FOLDER.join("outbox-0000000000000001");
    fs::write(&path, &content).expect("scratch is writable");
    // A cursor or lane takes some 200 bytes of memory for 20 in the file.
    within(64 * content.len() + (64 << 10), || {
        let first = match Store::open(&*FOLDER) {
            Ok(store) => store,
            Err(StoreError::Corrupt(_) | StoreError::Newer { .. }) => {
                let left = fs::read(&path).expect("it is still there");
                return assert_eq!(left, content, "what is refused is left as it is");
            }
            Err(error) => panic!("{error}"),
        };
        let cut = first.cut_bytes() as usize;
        let saved = first.saved().clone();
        drop(first);
        let left = fs::read(&path).expect("it is still there");
        assert_eq!(left, &content[..content.len() - cut]);
        let second = Store::open(&*FOLDER).expect("it opened before");
        assert_eq!((second.saved(), second.cut_bytes()), (&saved, 0));
    });
});
