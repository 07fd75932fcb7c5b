//! `tidings bench`: what the server costs, each figure beside a raw probe of the same shape.
//!
//! This process only gives orders. The server under test, the clients and the probe are processes
//! of their own: server and probe on one core, load on another. Probe and server take turns in
//! every round, since what a system call costs here changes with the machine's neighbours: ratios
//! are worth more than microseconds. Every event that a client gets is checked against the seqs
//! of its conversation; anything lost, doubled or reordered fails the run.

mod catch_up;
mod children;
mod cluster;
mod durable;
mod fan_out;
mod http;
mod load;
mod order;
mod overload;
mod population;
mod process;
mod report;
mod start;
mod storm;
mod tokens;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

pub use cluster::{ClusterArgs, run_cluster};
pub use load::{LoadArgs, run_load};
pub use overload::{OverloadArgs, run_overload};
pub use storm::{StormArgs, run_storm};

use children::{Clients, Raw, Server};
use order::{Done, Order};
use report::{Checked, Report};

/// Measures a server on this machine. It starts its own; nothing has to run.
#[derive(clap::Args)]
pub struct Args {
    /// Scenarios, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Scenario::ALL)]
    only: Vec<Scenario>,
    /// Rounds of probe and server; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Write the result as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Folder for the servers' data, on the disk to measure; removed afterwards
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Idle sessions, and sessions of the reconnect storm
    #[arg(long, default_value_t = 15_000)]
    sessions: usize,
    /// Members of the fan-out
    #[arg(long, default_value_t = 4_000)]
    members: usize,
    /// Senders of the durable 1:1 sends
    #[arg(long, default_value_t = 3_000)]
    senders: usize,
    /// Messages to catch up on
    #[arg(long, default_value_t = 100_000)]
    messages: usize,
    /// Members of the fan-out that stop reading
    #[arg(long, default_value_t = 40)]
    stalled: usize,
    /// Seconds that slow readers don't read
    #[arg(long, default_value_t = 30.0)]
    stall: f64,
    /// Bytes of a message's body
    #[arg(long, default_value_t = 150)]
    body: usize,
}

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Scenario {
    /// Time to the first accept, memory when empty, size of the binary
    Start,
    /// Fan-out to one group: one publish at a time
    Paced,
    /// Fan-out to one group: several queued at every socket
    Backlog,
    /// Fan-out while some do not read
    Slow,
    /// 1:1 sends, acknowledged when durable
    Durable,
    /// A device that was away for long
    CatchUp,
    /// Memory of idle sessions
    Idle,
    /// All sessions cut off and back
    Reconnect,
}

impl Scenario {
    const ALL: [Scenario; 8] = [
        Scenario::Start,
        Scenario::Paced,
        Scenario::Backlog,
        Scenario::Slow,
        Scenario::Durable,
        Scenario::CatchUp,
        Scenario::Idle,
        Scenario::Reconnect,
    ];
}

impl std::fmt::Display for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = clap::ValueEnum::to_possible_value(self);
        f.write_str(value.as_ref().map_or("", |v| v.get_name()))
    }
}

/// The processes of one scenario.
struct Stage {
    server: Server,
    clients: Clients,
    raw: Raw,
    checked: Checked,
}

impl Stage {
    fn new(run: &Run<'_>, scenario: &'static str) -> anyhow::Result<Stage> {
        let server = Server::start(&run.folder, true)?;
        let clients = Clients::start(server.address, &server.token_key)?;
        Ok(Stage {
            clients,
            raw: Raw::start()?,
            checked: Checked {
                scenario,
                ..Checked::default()
            },
            server,
        })
    }

    /// Gives an order; errors are kept for the report.
    fn run(&mut self, order: Order) -> anyhow::Result<Done> {
        let done = self.clients.run(order)?;
        self.checked.received += done.delivered + done.paged;
        self.checked.problems.extend(done.problems.keys().cloned());
        if done.late {
            self.checked
                .problems
                .push("an order was not done in time".into());
        }
        Ok(done)
    }

    /// Signs users in; fails when not all of them come.
    fn open(&mut self, first: usize, count: usize, whole: bool) -> anyhow::Result<Done> {
        let done = self.run(Order::Open {
            first,
            count,
            window: 400,
            whole,
            seconds: 120.0,
        })?;
        anyhow::ensure!(
            done.opened == count as u64,
            "only {} of {count} sessions came",
            done.opened
        );
        Ok(done)
    }

    /// The server's CPU per `unit` of an order, in microseconds.
    fn cost(&mut self, order: Order, unit: impl Fn(&Done) -> u64) -> anyhow::Result<(f64, Done)> {
        let before = self.server.cpu_ns()?;
        let done = self.run(order)?;
        let cpu = self.server.cpu_ns()? - before;
        Ok((cpu as f64 / 1e3 / unit(&done).max(1) as f64, done))
    }

    /// Counts what was lost, and ends the scenario.
    fn check(mut self, report: &mut Report) -> anyhow::Result<()> {
        // Cursors of the last events are confirmed meanwhile.
        self.run(Order::Rest { seconds: 1.0 })?;
        let done = self.run(Order::Check)?;
        let checked = &mut self.checked;
        (checked.lost, checked.duplicated, checked.reordered) =
            (done.lost, done.duplicated, done.reordered);
        println!(
            "{}: {} received; {} lost, {} duplicated, {} reordered",
            checked.scenario, checked.received, done.lost, done.duplicated, done.reordered
        );
        report.checked.push(self.checked.clone());
        Ok(())
    }
}

/// What every scenario is told.
struct Run<'a> {
    args: &'a Args,
    folder: PathBuf,
}

/// Runs the scenarios; fails if anything was lost, duplicated or reordered.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let files = process::raise_open_files().context("can't raise the limit of open files")?;
    let place = args.folder.clone().unwrap_or_else(std::env::temp_dir);
    let folder = tempfile::Builder::new()
        .prefix("tidings-bench-")
        .tempdir_in(place)?;
    let run = Run {
        args: &args,
        folder: folder.path().to_owned(),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        machine: format!("{cores} cores, {files} open files"),
        ..Report::default()
    };
    report.raised = children::RAISED
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    println!("{} on {}", report.version, report.machine);
    println!("Limits raised for the load: {}", report.raised.join(", "));
    println!(
        "Users sign in with EdDSA tokens of a configured key, from 60 loopback addresses.\n\n{}",
        report::HEAD
    );
    let wants = |s: Scenario| args.only.contains(&s);
    let mut failed = Vec::new();
    let mut attempt = |what: &str, result: anyhow::Result<()>| {
        if let Err(error) = result {
            eprintln!("{what} failed: {error:#}");
            failed.push(format!("{what}: {error:#}"));
        }
    };
    if wants(Scenario::Start) {
        attempt("start", start::run(&run, &mut report));
    }
    if wants(Scenario::Paced) || wants(Scenario::Backlog) || wants(Scenario::Slow) {
        attempt("fan-out", fan_out::run(&run, &mut report));
    }
    if wants(Scenario::Durable) {
        attempt("durable", durable::run(&run, &mut report));
    }
    if wants(Scenario::CatchUp) {
        attempt("catch-up", catch_up::run(&run, &mut report));
    }
    if wants(Scenario::Idle) || wants(Scenario::Reconnect) {
        attempt("idle and reconnect", population::run(&run, &mut report));
    }
    report.print();
    if let Some(file) = &args.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("can't write {}", file.display()))?;
    }
    Ok(if report.is_faulty() || !failed.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
