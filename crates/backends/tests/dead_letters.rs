//! Dead letters in a folder: the common suite, restarts, damage, bounds.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tidings_backends::dead_letters::FolderDeadLetters;
use tidings_core::conformance::dead_letters as suite;
use tidings_core::ids::{Partition, Position};
use tidings_core::ports::dead_letters::{DeadLetter, DeadLetterError, DeadLetters, Key};

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
        .block_on(async { tokio::time::timeout(Duration::from_secs(60), test).await })
        .expect("the test ends in time")
}

fn key(offset: u64) -> Key {
    (Partition(0), Position { epoch: 1, offset })
}

fn letter(offset: u64) -> DeadLetter {
    let payload = Bytes::from(vec![b'x'; 100]);
    DeadLetter::new(key(offset), 1, None, "a reason".to_owned(), payload)
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut files: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    files.sort();
    files
}

#[test]
fn it_keeps_the_promises_of_the_port_and_over_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("made with the first letter");
    run(async {
        let letters = FolderDeadLetters::new(&folder);
        let nothing = letters.list(None, 10).await.expect("a list");
        assert_eq!(nothing.headings, []);
        assert!(!folder.exists(), "looking makes nothing");
        suite::all(&letters, 3, 1, 1).await;
        let before = letters.list(None, 100).await.expect("a list");
        let again = FolderDeadLetters::new(&folder);
        assert_eq!(again.list(None, 100).await, Ok(before));
        suite::all(&again, 1, 2, 2).await;
    });
}

#[test]
fn a_full_folder_refuses_new_letters_keeps_the_old_and_takes_more_once_there_is_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    run(async {
        for (letters_max, bytes_max) in [(2, 10_000), (100, 300)] {
            let letters = FolderDeadLetters::bounded(folder, letters_max, bytes_max);
            for offset in [1, 2] {
                assert_eq!(letters.put(letter(offset)).await, Ok(()));
            }
            let refused = letters.put(letter(3)).await;
            assert!(
                matches!(refused, Err(DeadLetterError::Full(_))),
                "{refused:?}"
            );
            assert_eq!(letters.put(letter(1)).await, Ok(()), "it is there already");
            assert_eq!(letters.get(key(2)).await, Ok(Some(letter(2))));
            std::fs::remove_file(&files(folder)[0]).expect("the operator moves one away");
            assert_eq!(letters.put(letter(3)).await, Ok(()));
            for file in files(folder) {
                std::fs::remove_file(file).expect("removed");
            }
        }
    });
}

#[test]
fn a_damaged_file_is_said_to_be_and_hides_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    run(async {
        let letters = FolderDeadLetters::new(folder);
        for offset in 1..=4 {
            letters.put(letter(offset)).await.expect("set aside");
        }
        let files = files(folder);
        let mut bytes = std::fs::read(&files[0]).expect("a letter");
        bytes[20] ^= 1;
        std::fs::write(&files[0], bytes).expect("written");
        std::fs::write(&files[1], b"x").expect("written");
        std::fs::copy(&files[3], &files[2]).expect("copied");
        // Neither what a crash left nor what isn't ours is a letter.
        std::fs::write(folder.join("notes.txt"), b"x").expect("written");
        std::fs::write(files[3].with_extension("letter.part"), b"x").expect("written");
        let page = letters.list(None, 10).await.expect("a list");
        let damaged = |n: usize| page.headings[n].reason.contains("damaged");
        assert_eq!(page.headings.len(), 4);
        assert!(damaged(0) && damaged(1) && damaged(2) && !damaged(3));
        for offset in 1..=3 {
            let found = letters.get(key(offset)).await;
            assert!(
                matches!(found, Err(DeadLetterError::Damaged(_))),
                "{found:?}"
            );
        }
        assert_eq!(letters.get(key(4)).await, Ok(Some(letter(4))));
    });
}
