//! The bare group-commit loop: a vector behind a lock, one thread that writes and syncs whatever
//! gathered there meanwhile. What a durable send can't be faster than.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::bench::order::{Done, Quantiles};
use crate::bench::process::thread_cpu_ns;

#[derive(Default)]
struct Queue {
    due: Vec<Instant>,
    ended: bool,
}

/// Open loop: latency counts from the time a record should have been sent. The CPU time is that of
/// the thread that writes and syncs.
pub fn run(file: &Path, rate: f64, bytes: usize, seconds: f64) -> anyhow::Result<Done> {
    let out = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(file)?;
    let (queue, filled) = (Mutex::new(Queue::default()), Condvar::new());
    let started = Instant::now();
    let done = std::thread::scope(|scope| -> anyhow::Result<Done> {
        let committer = scope.spawn(|| -> std::io::Result<(Histogram<u64>, u64)> {
            let mut latencies = super::sending::histogram();
            let (mut at, mut frame) = (0, Vec::new());
            loop {
                let queued = queue.lock().expect("no holder panics");
                let mut queued = filled
                    .wait_while(queued, |q| q.due.is_empty() && !q.ended)
                    .expect("no holder panics");
                let due = std::mem::take(&mut queued.due);
                drop(queued);
                if due.is_empty() {
                    return Ok((latencies, thread_cpu_ns()));
                }
                frame.resize(due.len() * bytes, b'x');
                out.write_all_at(&frame, at)?;
                out.sync_data()?;
                at += frame.len() as u64;
                for due in due {
                    latencies.saturating_record(due.elapsed().as_nanos() as u64);
                }
            }
        });
        for i in 0..(rate * seconds) as u64 {
            let due = started + Duration::from_secs_f64(i as f64 / rate);
            if let Some(early) = due.checked_duration_since(Instant::now()) {
                std::thread::sleep(early);
            }
            queue.lock().expect("no holder panics").due.push(due);
            filled.notify_one();
        }
        queue.lock().expect("no holder panics").ended = true;
        filled.notify_one();
        let (latencies, cpu_ns) = committer
            .join()
            .map_err(|_| anyhow::anyhow!("the committer panicked"))??;
        Ok(Done {
            sent: latencies.len(),
            acked: latencies.len(),
            ack: Quantiles::of(&latencies),
            cpu_ns,
            ..Done::default()
        })
    })?;
    std::fs::remove_file(file)?;
    Ok(Done {
        seconds: started.elapsed().as_secs_f64(),
        ..done
    })
}
