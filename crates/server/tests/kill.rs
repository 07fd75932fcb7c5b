//! `kill -9` at random moments under load: nothing acknowledged is lost, nothing comes twice,
//! no gap. `TIDINGS_KILLS` says how often (default 20), `TIDINGS_SEED` when.

mod drill;

use std::time::{Duration, Instant};

use drill::{Dice, Load, Server, assert_kept, setting};
use tidings_verify::history::{Part, Restart};

/// Messages accepted after each start before the next kill: the clients are back.
const BETWEEN: u64 = 200;
/// A kill comes up to so many microseconds after that.
const MOMENT_MAX: u64 = 300_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_again_and_again_keeps_every_promise() {
    let (kills, seed) = (setting("TIDINGS_KILLS", 20), setting("TIDINGS_SEED", 1));
    let mut dice = Dice(seed);
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Small files, so that kills also meet new segments, flushes and merges.
    let small = ["log.segment_bytes=1048576", "store.memtable_bytes=1048576"];
    let (mut server, api) = Server::start(folder.path(), &folder.path().join("data"), &small);
    let load = Load::start(&api, 8, folder.path()).await;
    let start = Instant::now();
    for _ in 0..kills {
        let before = load.sent();
        load.until("progress after a start", |l| l.sent() >= before + BETWEEN)
            .await;
        let moment = Duration::from_micros(dice.below(MOMENT_MAX));
        tokio::time::sleep(moment).await;
        // On this thread: a runtime's other one keeps the clients going meanwhile.
        tokio::task::block_in_place(|| {
            server.kill();
            load.history.record(Restart {
                at: load.history.now_us(),
                part: Part::Server,
            });
            server.start_again();
        });
    }
    let report = load.finish().await;
    println!(
        "{kills} kills, seed {seed}, {:.1} s",
        start.elapsed().as_secs_f64()
    );
    assert_kept(&report);
    assert_eq!(report.restarts, kills);
}
