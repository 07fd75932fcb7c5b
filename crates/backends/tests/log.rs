//! The embedded log behind its port: the common suite, full disks, failing syncs, restarts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidings_backends::disk::{RealDisk, SimDisk};
use tidings_backends::file_log::{FileLog, Parts, Settings};
use tidings_core::conformance::log as suite;
use tidings_core::ids::{Partition, Position};
use tidings_core::ports::disk::Disk;
use tidings_core::ports::log::Log;

const P: Partition = Partition(0);

fn parts(disk: impl Disk + 'static) -> Parts {
    let ticks = AtomicU64::new(1);
    Parts {
        disk: Arc::new(disk),
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

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await })
        .expect("the log answers")
}

#[test]
fn it_keeps_the_promises_of_the_port() {
    run(async {
        for settings in [Settings::default(), small()] {
            let log = FileLog::open(parts(SimDisk::new()), settings).unwrap();
            suite::all(&log, 1).await;
            suite::all(&log, 2).await;
        }
    });
}

#[test]
fn it_keeps_the_promises_on_a_real_disk_and_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let mut end = Position {
            epoch: 1,
            offset: 0,
        };
        for round in 1..3 {
            let disk = Arc::new(RealDisk::open(folder.path()).unwrap());
            let log = FileLog::open(Parts::of_system(disk).unwrap(), small()).unwrap();
            assert_eq!(log.end(P), end);
            suite::all(&log, round).await;
            end = log.end(P);
        }
    });
}
