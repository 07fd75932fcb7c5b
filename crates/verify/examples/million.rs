//! How fast and how large the checker is: `cargo run --release -p tidings-verify --example million`.
//!
//! One million records: 90,000 messages of 10 senders in 3 conversations, each acknowledged and
//! shown to 9 devices, checked from memory and from a file.
#![allow(clippy::unwrap_used, reason = "a measurement may panic")]

use std::time::Instant;
use tidings_verify::history::{self, EventKind, Status};
use tidings_verify::{Checker, Options, Reader, Record, Recorder};

const MESSAGES: u64 = 90_000;
const DEVICES: u64 = 9;

fn history() -> impl Iterator<Item = Record> {
    (0..MESSAGES).flat_map(|n| {
        let (conversation, seq, at) = (1 + n % 3, 1 + n / 3, 10 * (n + 1));
        let (user, sender, grant, counter) =
            (100 + seq % 10, 200 + seq % 10, 0, 1 + (seq - 1) / 10);
        // Seqs go round the senders: 1, 2, … 9, 0.
        let (id, body_hash, ts) = (n + 1, n, 1_000_000 + n);
        let send = history::Send {
            at,
            user,
            device: user,
            conversation,
            sender,
            grant,
            counter,
            id,
            body_hash,
        };
        let ack = history::Ack {
            at: at + 5,
            user,
            device: user,
            conversation,
            sender,
            grant,
            counter,
            id,
            seq,
            ts,
            duplicate: false,
            status: Status::Sent,
        };
        let shown = (0..DEVICES).map(move |device| {
            Record::from(history::Deliver {
                at: at + 6,
                user: device,
                device,
                conversation,
                seq,
                ts,
                author: user,
                sender,
                grant,
                counter,
                id,
                kind: EventKind::Text,
                body_hash,
            })
        });
        [Record::from(send), ack.into()].into_iter().chain(shown)
    })
}

fn judge(name: &str, records: impl Iterator<Item = Record>) {
    let before = resident();
    let start = Instant::now();
    let mut checker = Checker::new(Options::default());
    let mut count = 0u64;
    for record in records {
        checker.push(&record);
        count += 1;
    }
    let pushed = start.elapsed();
    let grown = resident().saturating_sub(before);
    let report = checker.finish();
    let all = start.elapsed();
    println!(
        "{name}: {count} records in {all:.2?} ({pushed:.2?} taking, {:.2?} judging), {:.0} ns a \
         record, {:.1} MB, {} anomalies",
        all - pushed,
        all.as_nanos() as f64 / count as f64,
        grown as f64 / 1e6,
        report.total()
    );
}

/// Resident bytes of this process; 0 where the system doesn't tell.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn main() {
    judge("from memory", history());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.jsonl");
    let recorder = Recorder::to_file(&path).unwrap();
    let start = Instant::now();
    let mut count = 0u64;
    for record in history() {
        recorder.record(record);
        count += 1;
    }
    recorder.flush().unwrap();
    let took = start.elapsed();
    let bytes = std::fs::metadata(&path).unwrap().len();
    println!(
        "recorded: {count} records in {took:.2?}, {:.0} ns and {} bytes a record",
        took.as_nanos() as f64 / count as f64,
        bytes / count
    );
    judge(
        "from a file",
        Reader::open(&path).unwrap().map(Result::unwrap),
    );
}
