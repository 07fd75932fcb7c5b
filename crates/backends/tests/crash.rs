//! The log after a crash at any moment: a recorded run is cut at each operation and inside
//! each write, what wasn't synced is kept, dropped, torn or reordered, and what opens must
//! hold everything acknowledged before the cut.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tidings_backends::disk::{Cut, RecordingDisk, Rng, SimDisk, Trace};
use tidings_backends::file_log::{FileLog, Parts, Settings};
use tidings_core::conformance::log::{append, record};
use tidings_core::ids::{ConversationId, Partition, Position};
use tidings_core::ports::disk::{Disk, DiskFile};
use tidings_core::ports::log::{Log, LogError};

const P: Partition = Partition(0);
const ROUNDS: u64 = 40;
/// A mark with this bit is a committed offset, another one the number of an acknowledged call.
const COMMIT: u64 = 1 << 63;

/// A disk as a program uses it that forgets to sync.
#[derive(Clone)]
struct SkippingDisk {
    inner: Arc<dyn Disk>,
    skips: Skips,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Skips {
    Nothing,
    Files,
    Names,
    Both,
}

impl Disk for SkippingDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = self.inner.open(name)?;
        let skips = matches!(self.skips, Skips::Files | Skips::Both);
        Ok(if skips {
            Box::new(SkippingFile(file))
        } else {
            file
        })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        if matches!(self.skips, Skips::Names | Skips::Both) {
            Ok(())
        } else {
            self.inner.sync_names()
        }
    }
}

struct SkippingFile(Box<dyn DiskFile>);

impl DiskFile for SkippingFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
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
        Ok(())
    }
}

fn open(disk: impl Disk + 'static) -> Result<FileLog, String> {
    let ticks = AtomicU64::new(1);
    let parts = Parts {
        disk: Arc::new(disk),
        clock: Arc::new(move || ticks.fetch_add(1, Ordering::Relaxed)),
        fatal: Arc::new(|why| panic!("the log can't go on: {why}")),
        salt: 99,
    };
    let settings = Settings {
        segment_bytes: 3000,
        ring_bytes: 2000,
        position_interval: Duration::ZERO,
        ..Settings::default()
    };
    FileLog::open(parts, settings).map_err(|error| error.to_string())
}

/// What a run did, and what it left in the log in the end.
struct Run {
    trace: Trace,
    /// Every record there ever was, by offset.
    records: BTreeMap<u64, Bytes>,
    /// The offsets of each call's records; of refused calls, nothing.
    calls: Vec<Range<u64>>,
    /// The records of refused calls: a crash before the refusal may have left them.
    refused: HashSet<Bytes>,
}

/// Appends, commits (so segments are rolled and trimmed), fills the disk and restarts, at random.
async fn run_workload(seed: u64, skips: Skips) -> Run {
    let mut rng = Rng::new(seed);
    let sim = SimDisk::new();
    let recording = RecordingDisk::new(Arc::new(sim.clone()));
    let disk = SkippingDisk {
        inner: Arc::new(recording.clone()),
        skips,
    };
    let mut log = open(disk.clone()).unwrap();
    let mut run = Run {
        trace: Trace::default(),
        records: BTreeMap::new(),
        calls: Vec::new(),
        refused: HashSet::new(),
    };
    let mut refused = 0;
    for _ in 0..ROUNDS {
        let fills = rng.chance(1, 6);
        if fills {
            sim.set_capacity(Some(sim.used() + rng.below(1500)));
        }
        let mut reports = Vec::new();
        for _ in 0..1 + rng.below(4) {
            let call = run.calls.len() as u64 + reports.len() as u64;
            let count = 1 + rng.below(3);
            let records = (0..count).map(|i| {
                record(
                    ConversationId(call),
                    &format!("{call}/{i}"),
                    rng.below(400) as usize,
                )
            });
            let records: Vec<_> = records.collect();
            let payloads: Vec<Bytes> = records
                .iter()
                .map(|record| record.payload.clone())
                .collect();
            let (send, receive) = tokio::sync::oneshot::channel();
            let marker = recording.clone();
            log.append(
                records,
                Box::new(move |result| {
                    if result.is_ok() {
                        marker.mark(call);
                    }
                    let _ = send.send(result);
                }),
            );
            reports.push((payloads, receive));
        }
        for (payloads, report) in reports {
            let first = run.records.len() as u64;
            match report.await.expect("each call is reported") {
                Ok(()) => run.records.extend((first..).zip(payloads)),
                Err(LogError::Full) => {
                    refused += 1;
                    run.refused.extend(payloads);
                }
                Err(error) => panic!("{error}"),
            }
            run.calls.push(first..run.records.len() as u64);
        }
        sim.set_capacity(None);
        if rng.chance(1, 3) {
            let committed = log.end(P).offset.saturating_sub(rng.below(8));
            recording.mark(COMMIT | committed);
            log.commit(
                P,
                Position {
                    epoch: 1,
                    offset: committed,
                },
            )
            .await
            .unwrap();
        }
        if rng.chance(1, 12) {
            log.shutdown();
            log = open(disk.clone()).unwrap();
        }
    }
    assert!(refused > 0, "the disk was full at least once");
    log.shutdown();
    run.trace = recording.trace();
    run
}

async fn read_all(log: &FileLog) -> Result<Vec<(u64, Bytes)>, String> {
    let mut from = log.committed(P).await.map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    while from < log.end(P) {
        for record in log
            .read(P, from, 500)
            .await
            .map_err(|error| error.to_string())?
        {
            found.push((record.position.offset, record.payload));
            from = record.position.next();
        }
    }
    Ok(found)
}

/// Opens what a crash left and says what is wrong with it.
async fn check(run: &Run, cut: Cut, disk: SimDisk, seed: u64) -> Result<(), String> {
    let (mut acknowledged, mut may_be_committed) = (0, 0);
    for mark in run.trace.marks_before(cut) {
        match mark & COMMIT {
            0 => acknowledged = acknowledged.max(run.calls[mark as usize].end),
            _ => may_be_committed = may_be_committed.max(mark & !COMMIT),
        }
    }
    let log = open(disk.clone())?;
    let committed = log
        .committed(P)
        .await
        .map_err(|error| error.to_string())?
        .offset;
    let end = log.end(P).offset;
    if end < acknowledged {
        return Err(format!(
            "lost: records up to {acknowledged} were acknowledged, the log ends at {end}"
        ));
    }
    if committed > may_be_committed {
        return Err(format!(
            "committed up to {committed}, asked for was {may_be_committed}"
        ));
    }
    let found = read_all(&log).await?;
    // What was in flight at the cut may be there or not. If the run refused it afterwards, a later
    // record has its place in `records`; up to what was acknowledged there is no such doubt.
    let fits = |(offset, payload): &(u64, Bytes)| {
        run.records.get(offset) == Some(payload)
            || (*offset >= acknowledged && run.refused.contains(payload))
    };
    if !found.iter().map(|f| f.0).eq(committed..end) || !found.iter().all(fits) {
        return Err(format!(
            "the records from {committed} to {end} aren't those appended"
        ));
    }

    // What was found is reported as committed now, so another crash must leave it.
    let again = open(disk.crash(seed + 1)).map_err(|error| format!("the second time: {error}"))?;
    if again.end(P).offset != end || read_all(&again).await? != found {
        return Err("a crash right after opening lost what was found".to_owned());
    }
    let more = record(ConversationId(1), "afterwards", 0);
    append(&log, vec![more.clone()])
        .await
        .map_err(|error| error.to_string())?;
    let third = open(disk.crash(seed + 2)).map_err(|error| format!("the third time: {error}"))?;
    let last = read_all(&third).await?.pop();
    if last != Some((end, more.payload)) {
        return Err(format!("a record appended after the crash became {last:?}"));
    }
    Ok(())
}

/// Checks `seeds` crashes and a killed process at every cut; gives how many were checked and what was wrong.
async fn crash_everywhere(run: &Run, seeds: u64) -> (usize, Vec<String>) {
    let mut wrong = Vec::new();
    let mut replay = run.trace.replay();
    let cuts = run.trace.cuts(7);
    for cut in &cuts {
        let killed = replay.killed(*cut);
        for seed in 0..seeds {
            let seed = seed * 1_000_003 + cut.entries as u64 * 31 + cut.write_bytes as u64;
            if let Err(why) = check(run, *cut, killed.crash(seed), seed).await {
                wrong.push(format!("{cut:?}, seed {seed}: {why}"));
            }
        }
        // The process alone dies, and the machine after the next start.
        if let Err(why) = check(run, *cut, killed, cut.entries as u64).await {
            wrong.push(format!("{cut:?}, killed: {why}"));
        }
    }
    (cuts.len() * (seeds as usize + 1), wrong)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
}

#[test]
fn a_crash_anywhere_leaves_everything_acknowledged() {
    runtime().block_on(async {
        for seed in 1..=4 {
            let run = run_workload(seed, Skips::Nothing).await;
            let (checked, wrong) = crash_everywhere(&run, 5).await;
            println!(
                "seed {seed}: {checked} crashes, {} records",
                run.records.len()
            );
            assert!(
                wrong.is_empty(),
                "{} of {checked}, run seed {seed}: {}",
                wrong.len(),
                wrong[0]
            );
        }
    });
}

#[test]
fn a_log_that_forgets_to_sync_is_found_out() {
    runtime().block_on(async {
        for skips in [Skips::Both, Skips::Files, Skips::Names] {
            let run = run_workload(1, skips).await;
            let (checked, wrong) = crash_everywhere(&run, 1).await;
            println!(
                "{skips:?}: {} of {checked} crashes lost something",
                wrong.len()
            );
            // What no name leads to is gone altogether; what no sync held back is gone at the end.
            assert!(
                wrong.iter().any(|why| why.contains("lost: ")),
                "{skips:?}: {wrong:?}"
            );
        }
    });
}
