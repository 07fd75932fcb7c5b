//! From nothing to the first accept, and what an empty server weighs.

use std::time::{Duration, Instant};

use super::children::{Raw, Server};
use super::report::{Judged, Report, Rounds};
use super::{Run, process};

pub fn run(run: &Run<'_>, report: &mut Report) -> anyhow::Result<()> {
    let (mut accepted, mut answered, mut memory) =
        (Rounds::default(), Rounds::default(), Vec::new());
    for _ in 0..run.args.rounds.max(3) {
        let started = Instant::now();
        drop(Raw::start()?);
        let bare = started.elapsed().as_secs_f64() * 1e3;
        // Free on all cores, as an operator starts it.
        let server = Server::start(&run.folder, false)?;
        accepted.add(server.accepted_ms, bare);
        answered.add(server.answered_ms, bare);
        std::thread::sleep(Duration::from_secs(1));
        memory.push(process::resident(server.pid())? as f64 / 1e6);
    }
    report.beside(
        "start",
        "to first accept, empty",
        "ms",
        &accepted,
        Judged::AtMost(50.0, 20.0),
    );
    report.beside(
        "start",
        "to first answer, empty",
        "ms",
        &answered,
        Judged::Told,
    );
    report.plain(
        "start",
        "resident when empty",
        "MB",
        &memory,
        Judged::AtMost(20.0, 12.0),
    );
    let size = std::fs::metadata("/proc/self/exe")?.len() as f64 / 1e6;
    report.plain("start", "binary", "MB", &[size], Judged::AtMost(25.0, 15.0));
    Ok(())
}
