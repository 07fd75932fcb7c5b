//! 1:1 sends whose ack means "on disk": how many, at which cost, how soon.

use super::children::bare_commits;
use super::http::{Api, conversations};
use super::order::{Order, SendPlan};
use super::report::{Judged, Report, Rounds};
use super::{Run, Stage};

/// Messages a second at which CPU is counted beside the saturated run, and at which latency is.
const CPU_RATE: f64 = 10_000.0;
const LATENCY_RATE: f64 = 2_000.0;
/// Unacknowledged messages of one sender when saturated.
const IN_FLIGHT: u32 = 4;
const SECONDS: f64 = 4.0;
/// What a record in the log has beside the body, roughly: a sync costs the same for any such size.
const RECORD_BYTES: usize = 80;

pub fn run(run: &Run<'_>, report: &mut Report) -> anyhow::Result<()> {
    let senders = run.args.senders.next_multiple_of(2);
    let mut stage = Stage::new(run, "durable")?;
    let mut api = Api::connect(stage.server.address, &stage.server.api_key)?;
    let users = api.users(0..senders)?;
    drop(api);
    let pairs: Vec<_> = users
        .chunks(2)
        .map(|pair| ("direct", pair.to_vec()))
        .collect();
    conversations(stage.server.address, &stage.server.api_key, &pairs)?;
    stage.open(0, senders, false)?;
    let sends = |rate: f64, seconds: f64| {
        Order::Send(SendPlan {
            first: 0,
            count: senders,
            rate,
            burst: 1,
            in_flight: IN_FLIGHT,
            seconds,
            body: run.args.body,
            ..SendPlan::default()
        })
    };
    stage.run(sends(CPU_RATE, 1.0))?;

    let (mut p50, mut p99, mut deliver) = (Rounds::default(), Rounds::default(), Vec::new());
    for _ in 0..run.args.rounds {
        let bare = bare_commits(
            &run.folder,
            LATENCY_RATE,
            run.args.body + RECORD_BYTES,
            SECONDS,
        )?;
        let done = stage.run(sends(LATENCY_RATE, SECONDS))?;
        p50.add(done.ack.p50 / 1e3, bare.ack.p50 / 1e3);
        p99.add(done.ack.p99 / 1e3, bare.ack.p99 / 1e3);
        deliver.push(done.deliver.p99 / 1e3);
    }
    report.beside(
        "durable",
        "send to ack at 2 K/s, p50",
        "ms",
        &p50,
        Judged::Ratio(1.3, 1.15),
    );
    report.beside(
        "durable",
        "send to ack at 2 K/s, p99",
        "ms",
        &p99,
        Judged::Ratio(1.3, 1.15),
    );
    report.plain(
        "durable",
        "send to delivery at 2 K/s, p99",
        "ms",
        &deliver,
        Judged::Told,
    );

    // A fast disk makes many small batches of a fixed rate: the probe says what they cost by themselves.
    let mut costs = Rounds::default();
    for _ in 0..run.args.rounds {
        let record = run.args.body + RECORD_BYTES;
        let bare = bare_commits(&run.folder, CPU_RATE, record, SECONDS)?;
        let cost = stage.cost(sends(CPU_RATE, SECONDS), |done| done.acked)?.0;
        costs.add(cost, bare.cpu_ns as f64 / 1e3 / bare.acked.max(1) as f64);
    }
    report.beside(
        "durable",
        "CPU per message at 10 K/s",
        "µs",
        &costs,
        Judged::Told,
    );

    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..run.args.rounds {
        let (cost, done) = stage.cost(sends(0.0, SECONDS), |done| done.acked)?;
        rates.push(done.acked as f64 / done.seconds / 1e3);
        costs.push(cost);
    }
    report.plain(
        "durable",
        "sends, saturated",
        "K/s",
        &rates,
        Judged::AtLeast(30.0, 50.0),
    );
    report.plain(
        "durable",
        "CPU per message, saturated",
        "µs",
        &costs,
        Judged::AtMost(25.0, 15.0),
    );
    stage.check(report)
}
