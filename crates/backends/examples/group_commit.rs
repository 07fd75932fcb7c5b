//! How long an append takes until it is durable, through the embedded log and through a bare
//! group-commit loop of the same shape, in turns.
//!
//! ```text
//! group_commit FOLDER [records a second = 2000] [bytes = 300] [seconds a turn = 4] [rounds = 5]
//! ```
//!
//! Open loop: each record has its time to be sent, and latency is counted from there. Durable
//! latency here drifts with the machine, so only the ratio of neighbouring turns says something.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidings_backends::disk::RealDisk;
use tidings_backends::file_log::{FileLog, Parts, Settings};
use tidings_core::ids::ConversationId;
use tidings_core::ports::log::{Append, Log};

type Error = Box<dyn std::error::Error>;

#[derive(Clone, Copy)]
struct Load {
    per_second: u64,
    bytes: usize,
    turn: Duration,
}

/// What one turn measured.
struct Turn {
    /// Ascending, in microseconds.
    latencies: Vec<u64>,
    commits: u64,
}

impl Turn {
    fn quantile(&self, of_thousand: usize) -> u64 {
        let at = self.latencies.len() * of_thousand / 1000;
        self.latencies
            .get(at.min(self.latencies.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0)
    }
}

/// Calls `send` at each record's time with that time.
fn pace(load: Load, mut send: impl FnMut(Instant)) {
    let start = Instant::now();
    for i in 0..load.per_second * load.turn.as_secs() {
        let due = start + Duration::from_secs_f64(i as f64 / load.per_second as f64);
        if let Some(early) = due.checked_duration_since(Instant::now()) {
            std::thread::sleep(early);
        }
        send(due);
    }
}

fn gather(latencies: &Receiver<Duration>, load: Load, commits: u64) -> Turn {
    let count = (load.per_second * load.turn.as_secs()) as usize;
    let mut latencies: Vec<u64> = latencies
        .iter()
        .take(count)
        .map(|latency| latency.as_micros() as u64)
        .collect();
    latencies.sort_unstable();
    Turn { latencies, commits }
}

/// The probe: a vector behind a lock, one thread that writes and syncs what it finds there.
fn bare(folder: &Path, load: Load) -> Result<Turn, Error> {
    let path = folder.join("bare");
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&path)?;
    let queue = Arc::new((
        Mutex::new((Vec::<(Instant, Bytes)>::new(), false)),
        Condvar::new(),
    ));
    let (report, reports) = channel();
    let taken = Arc::clone(&queue);
    let committer = std::thread::spawn(move || -> std::io::Result<u64> {
        let (mut at, mut commits) = (0, 0);
        loop {
            let (queue, filled) = &*taken;
            let queue = queue.lock().expect("no holder panics");
            let mut queue = filled
                .wait_while(queue, |(calls, ended)| calls.is_empty() && !*ended)
                .expect("no holder panics");
            let calls = std::mem::take(&mut queue.0);
            drop(queue);
            if calls.is_empty() {
                return Ok(commits);
            }
            let frame: Vec<u8> = calls
                .iter()
                .flat_map(|(_, payload)| payload.iter().copied())
                .collect();
            file.write_all_at(&frame, at)?;
            file.sync_data()?;
            at += frame.len() as u64;
            commits += 1;
            for (due, _) in calls {
                // The receiver may have what it wants.
                let _ = report.send(due.elapsed());
            }
        }
    });
    let payload = Bytes::from(vec![b'x'; load.bytes]);
    pace(load, |due| {
        queue
            .0
            .lock()
            .expect("no holder panics")
            .0
            .push((due, payload.clone()));
        queue.1.notify_one();
    });
    queue.0.lock().expect("no holder panics").1 = true;
    queue.1.notify_one();
    let commits = committer.join().map_err(|_| "the committer panicked")??;
    std::fs::remove_file(path)?;
    Ok(gather(&reports, load, commits))
}

fn through_the_log(folder: &Path, load: Load) -> Result<Turn, Error> {
    let folder = folder.join("log");
    let disk = Arc::new(RealDisk::open(&folder)?);
    let log = FileLog::open(Parts::of_system(disk)?, Settings::default())?;
    let (report, reports) = channel();
    let payload = Bytes::from(vec![b'x'; load.bytes]);
    let before = log.metrics().figures().batches;
    pace(load, |due| {
        let report = report.clone();
        let records = vec![Append {
            conversation: ConversationId(1),
            payload: payload.clone(),
        }];
        log.append(
            records,
            Box::new(move |result| {
                // A refused record counts as never: the turn would end short.
                if result.is_ok() {
                    let _ = report.send(due.elapsed());
                }
            }),
        );
    });
    log.shutdown();
    drop(report);
    let turn = gather(&reports, load, log.metrics().figures().batches - before);
    drop(log);
    std::fs::remove_dir_all(folder)?;
    Ok(turn)
}

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(
        arguments
            .next()
            .ok_or("name a folder on the disk to measure")?,
    );
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse());
    let load = Load {
        per_second: number(2000)?,
        bytes: number(300)? as usize,
        turn: Duration::from_secs(number(4)?),
    };
    let rounds = number(5)?;
    std::fs::create_dir_all(&folder)?;
    println!(
        "{} records of {} bytes a second, µs until durable",
        load.per_second, load.bytes
    );
    println!("round   bare p50    p99  commits    log p50    p99  commits   ratio p50   p99");
    let (mut ratios_p50, mut ratios_p99) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Which one goes first changes, so that a drift of the disk doesn't favour one.
        let (bare, log) = if round % 2 == 0 {
            let bare = bare(&folder, load)?;
            (bare, through_the_log(&folder, load)?)
        } else {
            let log = through_the_log(&folder, load)?;
            (bare(&folder, load)?, log)
        };
        let ratio = |of_thousand| {
            log.quantile(of_thousand) as f64 / bare.quantile(of_thousand).max(1) as f64
        };
        ratios_p50.push(ratio(500));
        ratios_p99.push(ratio(990));
        println!(
            "{round:5} {:10} {:6} {:8} {:10} {:6} {:8} {:11.2} {:5.2}",
            bare.quantile(500),
            bare.quantile(990),
            bare.commits,
            log.quantile(500),
            log.quantile(990),
            log.commits,
            ratio(500),
            ratio(990),
        );
    }
    for ratios in [&mut ratios_p50, &mut ratios_p99] {
        ratios.sort_by(f64::total_cmp);
    }
    let median = |ratios: &[f64]| ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN);
    println!(
        "median ratio p50 {:.2}, p99 {:.2}",
        median(&ratios_p50),
        median(&ratios_p99)
    );
    Ok(())
}
