//! A folder that may hold a log: it opens or it is refused, the same each time, and goes on.

#![no_main]

use std::sync::mpsc;
use std::sync::{Arc, atomic::AtomicU64, atomic::Ordering};

use futures_util::FutureExt;
use libfuzzer_sys::fuzz_target;
use tidings_backends::disk::SimDisk;
use tidings_backends::file_log::{FileLog, OpenError, Parts, Settings};
use tidings_core::ids::{ConversationId, Partition, Position};
use tidings_core::ports::log::{Append, Log};
use tidings_core::record::Committed;
use tidings_fuzz::{Input, log_files, within};

const P: Partition = Partition(0);

fn open(disk: &SimDisk) -> Result<FileLog, OpenError> {
    let ticks = AtomicU64::new(1);
    let parts = Parts {
        disk: Arc::new(disk.clone()),
        clock: Arc::new(move || ticks.fetch_add(1, Ordering::Relaxed)),
        fatal: Arc::new(|why| panic!("the log can't go on: {why}")),
        salt: 7,
    };
    let settings = Settings {
        segment_bytes: 4096,
        ring_bytes: 2000,
        ..Settings::default()
    };
    FileLog::open(parts, settings)
}

/// All that a reader gets, from the committed position on.
fn read(log: &FileLog) -> (Position, Position, Result<Vec<Committed>, String>) {
    let now = "nothing has to be waited for";
    let committed = log.committed(P).now_or_never().expect(now).expect(now);
    let end = log.end(P);
    let (mut from, mut all) = (committed, Vec::new());
    while from < end {
        match log.read(P, from, 1000).now_or_never().expect(now) {
            Ok(records) => {
                assert!(!records.is_empty());
                for record in records {
                    assert_eq!(record.position, from, "one after the other");
                    from = from.next();
                    all.push(record);
                }
            }
            Err(error) => return (committed, end, Err(error.to_string())),
        }
    }
    assert_eq!(from, end, "nothing behind the end");
    (committed, end, Ok(all))
}

fn append(log: &FileLog, payload: &'static [u8]) -> Position {
    let (tell, told) = mpsc::channel();
    let record = Append {
        conversation: ConversationId(1),
        payload: bytes::Bytes::from_static(payload),
    };
    let report = Box::new(move |report| tell.send(report).expect("somebody waits"));
    log.append(vec![record], report);
    let report = told.recv().expect("there is a report");
    report.expect("the disk has room");
    log.end(P)
}

fuzz_target!(|bytes: &[u8]| {
    let disk = SimDisk::new();
    log_files::write(&disk, &mut Input::new(bytes)).expect("the simulated disk has room");
    let copy = disk.copy();
    // The disk keeps what is synced and what is seen, and a window of a file is as long as the file.
    within(64 * bytes.len() + (1 << 20), || {
        let first = match open(&disk) {
            Ok(log) => log,
            Err(error) => {
                let again = open(&copy).err().map(|error| error.to_string());
                assert_eq!(again, Some(error.to_string()), "of the same files");
                return;
            }
        };
        let found = read(&first);
        let second = open(&copy).expect("of the same files");
        assert_eq!(read(&second), found, "of the same files");
        drop(second);
        if found.2.is_err() {
            return;
        }
        drop(first);
        let again = open(&disk).expect("it opened before");
        assert_eq!(read(&again), found, "opened once more");
        let end = append(&again, b"and on it goes");
        assert_eq!(end, found.1.next());
        drop(again);
        let last = open(&disk).expect("it opened before");
        let (_, end, records) = read(&last);
        assert_eq!(end, found.1.next());
        let records = records.expect("it was read before");
        assert!(
            records
                .last()
                .is_some_and(|record| record.payload == "and on it goes")
        );
    });
});
