//! The store.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tidings_backends::disk::RealDisk;
use tidings_backends::lsm::{LsmStore, Options};
use tidings_core::ids::UserId;
use tidings_core::ports::store::{Store, StoreError};
use tidings_core::rows::CursorRow;

use super::{C, P, copy, files, fixture, new_fixture, raise, run, written};

const JOURNAL: &str = "store-1-unflushed";

fn store(folder: &Path) -> Result<LsmStore, StoreError> {
    let options = Options {
        threads: false,
        ..Options::default()
    };
    LsmStore::open(Arc::new(RealDisk::open(folder).expect("a folder")), options)
}

fn cursors() -> Vec<CursorRow> {
    let cursor = |user, delivered, read| CursorRow {
        conversation: C,
        user: UserId(user),
        delivered,
        read,
    };
    vec![cursor(1, 5, 5), cursor(2, 300, 4)]
}

/// Cursors aren't in the log, so their journal is data until a flush.
#[test]
#[ignore = "writes the fixture, once for each format"]
fn write_the_cursors_of_a_store_that_was_killed() {
    let folder = new_fixture(JOURNAL);
    let store = store(&folder).expect("a new store");
    run(store.put_cursors(P, cursors())).expect("put");
    drop(store);
    written(&folder);
}

#[test]
fn cursors_of_format_1_are_read() {
    let folder = copy(JOURNAL);
    let store = store(folder.path()).expect("it opens");
    let read = run(store.read_cursors(C, vec![UserId(1), UserId(2)]));
    assert_eq!(read, Ok(cursors()));
}

#[test]
fn a_store_of_a_later_format_is_refused_and_left_as_it_is() {
    let of_manifest = |bytes: &[u8]| {
        let end = bytes.len() - 4;
        (end, crc32fast::hash(&bytes[..end]))
    };
    let of_trailer = |bytes: &[u8]| {
        let end = bytes.len() - 4;
        (end, crc32fast::hash(&bytes[end - 24..end]))
    };
    let of_journal = |bytes: &[u8]| (12, crc32fast::hash(&bytes[..12]));
    let segment = "0000000002.seg";
    let trailer = fs::metadata(fixture("store-1").join(segment))
        .expect("a segment")
        .len()
        - 16;
    let journal = files(&fixture(JOURNAL));
    let journal = journal.keys().find(|path| !path.ends_with("manifest"));
    let journal = journal
        .and_then(|path| path.file_name()?.to_str())
        .expect("a journal");
    type Checksum<'a> = &'a dyn Fn(&[u8]) -> (usize, u32);
    let cases: [(&str, &str, usize, Checksum); 3] = [
        ("store-1", "manifest", 8, &of_manifest),
        ("store-1", segment, trailer as usize, &of_trailer),
        (JOURNAL, journal, 8, &of_journal),
    ];
    for (of, name, at, checksum) in cases {
        let folder = copy(of);
        raise(&folder.path().join(name), at, checksum);
        let before = files(folder.path());
        let error = store(folder.path()).err().expect("it is refused");
        assert!(matches!(error, StoreError::Newer(_)), "{error}");
        let error = error.to_string();
        assert!(
            error.contains(name) && error.contains("format 2") && error.contains("start that one"),
            "{error}"
        );
        assert!(
            files(folder.path()) == before,
            "{name}: something was written"
        );
    }
}
