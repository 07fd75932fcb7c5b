//! The embedded log behind its port: the common suite, full disks, failing syncs, damage, restarts.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tidings_backends::disk::{RealDisk, Rng, SimDisk};
use tidings_backends::file_log::{FileLog, OpenError, Parts, Settings};
use tidings_core::conformance::log as suite;
use tidings_core::ids::{ConversationId, Partition, Position};
use tidings_core::ports::disk::Disk;
use tidings_core::ports::log::{Append, Log, LogError};

const P: Partition = Partition(0);

fn parts(disk: &SimDisk) -> Parts {
    let ticks = AtomicU64::new(1);
    Parts {
        disk: Arc::new(disk.clone()),
        clock: Arc::new(move || ticks.fetch_add(1, Ordering::Relaxed)),
        fatal: Arc::new(|why| panic!("the log can't go on: {why}")),
        salt: 7,
    }
}

fn small() -> Settings {
    Settings {
        segment_bytes: 4096,
        ring_bytes: 2000,
        position_interval: Duration::ZERO,
        ..Settings::default()
    }
}

fn open(disk: &SimDisk) -> FileLog {
    FileLog::open(parts(disk), small()).unwrap()
}

fn record(text: &str, len: usize) -> Append {
    suite::record(ConversationId(1), text, len)
}

fn at(offset: u64) -> Position {
    Position { epoch: 1, offset }
}

/// Everything from a position to the present end.
async fn payloads_from(log: &FileLog, mut from: Position) -> Vec<Bytes> {
    let mut found = Vec::new();
    while from < log.end(P) {
        for record in log.read(P, from, 1000).await.unwrap() {
            from = record.position.next();
            found.push(record.payload);
        }
    }
    found
}

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await })
        .expect("the log answers")
}

/// Holds the log thread in its sync until it is let go.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<(bool, usize)>, Condvar)>);

impl Gate {
    fn shut(disk: &SimDisk) -> Gate {
        let gate = Gate::default();
        let hook = gate.clone();
        disk.on_sync(move || {
            let (state, changed) = &*hook.0;
            let mut state = state.lock().unwrap();
            state.1 += 1;
            changed.notify_all();
            let patience = Duration::from_secs(60);
            let opened = changed.wait_timeout_while(state, patience, |state| !state.0);
            assert!(!opened.unwrap().1.timed_out(), "the test opens the gate");
            Ok(())
        });
        gate
    }

    fn wait_until_reached(&self) {
        let (state, changed) = &*self.0;
        let patience = Duration::from_secs(60);
        let reached =
            changed.wait_timeout_while(state.lock().unwrap(), patience, |state| state.1 == 0);
        assert!(!reached.unwrap().1.timed_out(), "the log thread syncs");
    }

    fn open(&self) {
        self.0.0.lock().unwrap().0 = true;
        self.0.1.notify_all();
    }
}

#[test]
fn it_keeps_the_promises_of_the_port() {
    run(async {
        let tight = Settings {
            queue_bytes_max: 30_000,
            queue_records_max: 100,
            ..small()
        };
        for settings in [Settings::default(), small()] {
            let log = FileLog::open(parts(&SimDisk::new()), settings).unwrap();
            suite::all(&log, 1).await;
            suite::all(&log, 2).await;
        }
        let log = FileLog::open(parts(&SimDisk::new()), tight).unwrap();
        suite::reports_say_what_was_appended(&log, 1, 2_000, 100).await;
        let figures = log.metrics().figures();
        assert!(
            figures.refused > 0 && figures.read_from_files > 0,
            "{figures:?}"
        );
    });
}

#[test]
fn it_keeps_the_promises_on_a_real_disk_and_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let mut end = at(0);
        for round in 1..3 {
            let disk = Arc::new(RealDisk::open(folder.path()).unwrap());
            let log = FileLog::open(Parts::of_system(disk).unwrap(), small()).unwrap();
            assert_eq!(log.end(P), end);
            assert_eq!(log.committed(P).await, Ok(end));
            suite::all(&log, round).await;
            end = log.end(P);
            log.commit(P, end).await.unwrap();
        }
    });
}

#[test]
fn what_queues_during_a_sync_is_one_batch_and_the_queue_is_bounded() {
    run(async {
        let disk = SimDisk::new();
        let settings = Settings {
            queue_records_max: 1000,
            ..Settings::default()
        };
        let log = FileLog::open(parts(&disk), settings).unwrap();
        let gate = Gate::shut(&disk);
        let first = suite::append(&log, vec![record("first", 0)]);
        gate.wait_until_reached();
        let waiting: Vec<_> = (0..1000)
            .map(|i| suite::append(&log, vec![record(&format!("{i}"), 50)]))
            .collect();
        let refused = suite::append(&log, vec![record("too much", 0)]).await;
        assert!(
            matches!(refused, Err(LogError::Unavailable(_))),
            "{refused:?}"
        );
        assert_eq!(log.metrics().figures().queue_records, 1000);
        assert_eq!(log.end(P), at(0), "nothing is given out before its sync");
        gate.open();
        assert_eq!(first.await, Ok(()));
        for report in waiting {
            assert_eq!(report.await, Ok(()));
        }
        let figures = log.metrics().figures();
        assert_eq!(
            (figures.batches, figures.records, figures.fsyncs),
            (2, 1001, 2)
        );
        assert_eq!(
            (figures.queue_records, figures.queue_bytes, figures.refused),
            (0, 0, 1)
        );
    });
}

#[test]
fn a_shutdown_makes_what_waits_durable_and_ends_readers() {
    run(async {
        let disk = SimDisk::new();
        let log = open(&disk);
        let waiting: Vec<_> = (0..100)
            .map(|i| suite::append(&log, vec![record(&format!("{i}"), 0)]))
            .collect();
        let beyond = log.read(P, at(100), 100);
        log.commit(P, at(0)).await.unwrap();
        log.shutdown();
        for report in waiting {
            assert_eq!(report.await, Ok(()));
        }
        assert!(matches!(beyond.await, Err(LogError::Unavailable(_))));
        let late = suite::append(&log, vec![record("late", 0)]).await;
        assert!(matches!(late, Err(LogError::Unavailable(_))), "{late:?}");
        let log = open(&disk.crash(3));
        assert_eq!(payloads_from(&log, at(0)).await.len(), 100);
    });
}

#[test]
fn append_times_never_run_back() {
    run(async {
        let disk = SimDisk::new();
        let now = Arc::new(AtomicU64::new(0));
        let mut times = Vec::new();
        for step in [50, 40, 60, 10] {
            let clock = Arc::clone(&now);
            now.store(step, Ordering::Relaxed);
            let clock = Arc::new(move || clock.load(Ordering::Relaxed));
            let log = FileLog::open(
                Parts {
                    clock,
                    ..parts(&disk)
                },
                small(),
            )
            .unwrap();
            suite::append(&log, vec![record("x", 0)]).await.unwrap();
            let end = log.end(P);
            let last = Position {
                offset: end.offset - 1,
                ..end
            };
            times.push(log.read(P, last, 100).await.unwrap()[0].appended);
        }
        assert_eq!(times, [50, 50, 60, 60]);
    });
}

#[test]
fn what_is_committed_is_trimmed_by_segments_and_gone() {
    run(async {
        let disk = SimDisk::new();
        let log = open(&disk);
        for i in 0..60 {
            suite::append(&log, vec![record(&format!("{i}"), 500)])
                .await
                .unwrap();
        }
        let before = log.metrics().figures();
        assert!(before.segments >= 7, "{before:?}");
        assert_eq!(payloads_from(&log, at(0)).await.len(), 60);
        log.commit(P, at(40)).await.unwrap();
        // A turn of the log thread later the segments are gone.
        while log.metrics().figures().segments == before.segments {
            tokio::task::yield_now().await;
        }
        log.shutdown();
        let after = log.metrics().figures();
        assert!(
            after.retained_bytes < before.retained_bytes / 2,
            "{after:?}"
        );
        let Err(LogError::Gone { first, end, .. }) = log.read(P, at(0), 100).await else {
            panic!("the first segment is gone")
        };
        assert!(first > at(0) && first <= at(40) && end == at(60));
        let log = open(&disk.crash(5));
        assert_eq!(log.committed(P).await, Ok(at(40)));
        assert_eq!(payloads_from(&log, at(40)).await.len(), 20);
        let beyond = log.commit(P, at(61)).await;
        assert!(matches!(beyond, Err(LogError::Gone { .. })), "{beyond:?}");
    });
}

#[test]
fn a_log_shut_down_with_all_committed_keeps_only_where_it_ended() {
    run(async {
        let disk = SimDisk::new();
        let log = open(&disk);
        for i in 0..60 {
            suite::append(&log, vec![record(&format!("{i}"), 500)])
                .await
                .unwrap();
        }
        log.commit(P, at(60)).await.unwrap();
        log.shutdown();
        let figures = log.metrics().figures();
        assert_eq!(figures.segments, 1, "{figures:?}");
        assert!(figures.retained_bytes < 100, "{figures:?}");
        for seed in 0..20 {
            let log = open(&disk.crash(seed));
            assert_eq!(log.committed(P).await, Ok(at(60)));
            assert_eq!(log.end(P), at(60));
            suite::append(&log, vec![record("next", 0)]).await.unwrap();
            assert_eq!(payloads_from(&log, at(60)).await.len(), 1);
        }
    });
}

/// Appends calls of random sizes until one is refused as full; gives what was acknowledged, in order.
async fn fill(log: &FileLog, rng: &mut Rng, round: usize) -> Vec<Bytes> {
    let mut acknowledged = Vec::new();
    for group in 0.. {
        let calls: Vec<Vec<Append>> = (0..1 + rng.below(4))
            .map(|call| {
                let text = |i| format!("{round}/{group}/{call}/{i}");
                (0..1 + rng.below(3))
                    .map(|i| record(&text(i), rng.below(700) as usize))
                    .collect()
            })
            .collect();
        let reports: Vec<_> = calls
            .iter()
            .map(|call| suite::append(log, call.clone()))
            .collect();
        let mut full = false;
        for (call, report) in calls.into_iter().zip(reports) {
            match report.await {
                // A call behind a refused one may come through: it was queued after the refusal.
                Ok(()) => acknowledged.extend(call.into_iter().map(|record| record.payload)),
                Err(LogError::Full) => full = true,
                Err(error) => panic!("{error}"),
            }
        }
        if full {
            break;
        }
    }
    acknowledged
}

#[test]
fn a_full_disk_refuses_loses_nothing_and_goes_on_when_there_is_room() {
    run(async {
        let mut rng = Rng::new(11);
        let disk = SimDisk::new();
        let mut log = open(&disk);
        let mut acknowledged: Vec<Bytes> = Vec::new();
        let mut committed = 0;
        for round in 0..20 {
            disk.set_capacity(Some(disk.used() + 10_000 + rng.below(20_000)));
            acknowledged.extend(fill(&log, &mut rng, round).await);
            assert_eq!(
                payloads_from(&log, at(committed)).await,
                acknowledged[committed as usize..]
            );
            match round % 3 {
                0 => disk.set_capacity(None),
                1 => {
                    // The store has caught up, and trimming makes the room.
                    committed = acknowledged.len() as u64;
                    log.commit(P, at(committed)).await.unwrap();
                }
                _ => {
                    // A crash of the full disk, then room.
                    log = open(&disk.crash(round as u64));
                    assert_eq!(
                        payloads_from(&log, at(committed)).await,
                        acknowledged[committed as usize..]
                    );
                    log.shutdown();
                    disk.set_capacity(None);
                    log = open(&disk);
                }
            }
            let again = record(&format!("{round} again"), 300);
            while let Err(error) = suite::append(&log, vec![again.clone()]).await {
                assert_eq!(error, LogError::Full);
                tokio::task::yield_now().await;
            }
            acknowledged.push(again.payload);
        }
        assert!(log.committed(P).await.unwrap() == at(committed) && committed > 0);
        let log = open(&disk.crash(99));
        assert_eq!(
            payloads_from(&log, at(committed)).await,
            acknowledged[committed as usize..]
        );
    });
}

#[test]
fn a_segment_that_a_full_disk_left_half_made_is_no_hole() {
    run(async {
        let disk = SimDisk::new();
        let log = open(&disk);
        let mut written = Vec::new();
        for n in 0..40 {
            let record = record(&n.to_string(), 300);
            written.push(record.payload.clone());
            suite::append(&log, vec![record]).await.unwrap();
        }
        log.shutdown();
        // As if making it had been refused when the log ended there, and smaller records still fitted.
        let half = disk.open(&format!("log-{:016x}.seg", 3)).unwrap();
        half.write_all_at(b"half", 0).unwrap();
        let log = open(&disk);
        assert_eq!(payloads_from(&log, at(0)).await, written);
    });
}

#[test]
fn a_failed_sync_ends_the_log_once_and_what_it_lost_is_never_reported() {
    run(async {
        for seed in 0..20 {
            let disk = SimDisk::new();
            let ends = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&ends);
            let fatal = Arc::new(move |_: &str| {
                counted.fetch_add(1, Ordering::Relaxed);
            });
            let log = FileLog::open(
                Parts {
                    fatal,
                    ..parts(&disk)
                },
                small(),
            )
            .unwrap();
            suite::append(&log, vec![record("safe", 0)]).await.unwrap();
            let syncs = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&syncs);
            disk.on_sync(move || {
                counted.fetch_add(1, Ordering::Relaxed);
                Err(io::Error::other("input/output error"))
            });
            let waiting = log.read(P, at(1), 100);
            let calls: Vec<_> = (0..10)
                .map(|i| suite::append(&log, vec![record(&format!("{i}"), 0)]))
                .collect();
            let mut unknown = 0;
            for call in calls {
                match call.await {
                    Err(LogError::Unknown(_)) => unknown += 1,
                    Err(LogError::Unavailable(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
            assert!(unknown > 0 && waiting.await.is_err());
            log.shutdown();
            assert_eq!(
                (ends.load(Ordering::Relaxed), syncs.load(Ordering::Relaxed)),
                (1, 1)
            );

            // The program is started again, the machine still runs: its page cache shows what the disk hasn't.
            disk.on_sync(|| Ok(()));
            let log = open(&disk);
            let found = payloads_from(&log, at(0)).await;
            assert!(found.len() > 1, "the cache has it");
            assert_eq!(payloads_from(&open(&disk.crash(seed)), at(0)).await, found);
        }
    });
}

fn segment_names(disk: &SimDisk) -> Vec<String> {
    let mut names = disk.list().unwrap();
    names.retain(|name| name.ends_with(".seg"));
    names.sort();
    names
}

fn flip(disk: &SimDisk, name: &str, place: u64) {
    let file = disk.open(name).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[!byte[0]], place).unwrap();
}

/// A frame that is whole and counts two records where there is one: whoever reads on from the second
/// would be given the record after it, as if nothing were missing.
#[test]
fn a_frame_that_counts_wrongly_is_refused() {
    run(async {
        let disk = SimDisk::new();
        let log = open(&disk);
        suite::append(&log, vec![record("one", 0)]).await.unwrap();
        log.shutdown();
        let file = disk.open(&segment_names(&disk)[0]).unwrap();
        let mut header = [0; 52];
        file.read_exact_at(&mut header, 36).unwrap();
        header[40] = 2;
        let mut sum = crc32fast::Hasher::new();
        sum.update(&7u64.to_le_bytes());
        sum.update(&header[..48]);
        header[48..].copy_from_slice(&sum.finalize().to_le_bytes());
        file.write_all_at(&header, 36).unwrap();
        match FileLog::open(parts(&disk), small()).err() {
            Some(OpenError::Damaged(why)) => assert!(why.contains("counts"), "{why}"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn damage_that_no_crash_leaves_is_refused_and_a_torn_tail_is_cut() {
    run(async {
        let disk = SimDisk::new();
        let log = open(&disk);
        for i in 0..20 {
            suite::append(&log, vec![record(&format!("{i}"), 500)])
                .await
                .unwrap();
        }
        drop(log);
        let names = segment_names(&disk);
        assert!(names.len() >= 3);
        let last = names.last().unwrap();
        let damaged = |change: &dyn Fn(&SimDisk)| {
            let copy = disk.copy();
            change(&copy);
            match FileLog::open(parts(&copy), small()).err() {
                Some(OpenError::Damaged(why)) => why,
                other => panic!("{other:?}"),
            }
        };
        let end_of = |name: &str| disk.open(name).unwrap().len().unwrap();
        // A frame of the last segment with another behind it; a header; the last frame of an older segment.
        assert!(damaged(&|disk| flip(disk, last, 100)).contains("whole records behind"));
        assert!(damaged(&|disk| flip(disk, &names[0], 3)).contains("header"));
        assert!(damaged(&|disk| flip(disk, &names[0], end_of(&names[0]) - 1)).contains(&names[0]));
        assert!(damaged(&|disk| disk.remove(&names[1]).unwrap()).contains("follows"));
        damaged(&|disk| names.iter().skip(1).for_each(|name| flip(disk, name, 3)));

        flip(&disk, last, end_of(last) - 1);
        let log = open(&disk);
        assert_eq!(log.end(P), at(19), "the last frame alone is cut");
        suite::append(&log, vec![record("on", 0)]).await.unwrap();
        assert_eq!(payloads_from(&log, at(18)).await.len(), 2);
        log.commit(P, at(20)).await.unwrap();
        drop(log);
        let (names, copy) = (segment_names(&disk), disk.copy());
        for name in &names {
            copy.remove(name).unwrap();
        }
        assert!(matches!(
            FileLog::open(parts(&copy), small()),
            Err(OpenError::Damaged(_))
        ));
    });
}

#[test]
fn a_report_may_drop_the_log() {
    let log = Arc::new(open(&SimDisk::new()));
    let dropped = Arc::new(AtomicBool::new(false));
    let (held, told) = (Arc::clone(&log), Arc::clone(&dropped));
    let (send, receive) = std::sync::mpsc::channel();
    log.append(
        vec![record("x", 0)],
        Box::new(move |result| {
            drop(held);
            told.store(result.is_ok(), Ordering::Relaxed);
            send.send(()).unwrap();
        }),
    );
    drop(log);
    receive
        .recv_timeout(Duration::from_secs(60))
        .expect("the report is called and returns");
    assert!(dropped.load(Ordering::Relaxed));
}
