//! One group, everybody online: a message at a time, many at a time, and with readers that stop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::http::Api;
use super::order::{Done, Order, RawOrder, SendPlan};
use super::report::{Judged, Report, Rounds};
use super::{Run, Scenario, Stage, process};

/// Between two publishes of the paced fan-out: with 4,000 members a third of a core or so, since latency
/// is to be had at half of the machine at most.
const PACE_US: u64 = 60_000;
/// The same while some don't read.
const SLOW_PACE_US: u64 = 30_000;
/// Deliveries of a round, at least: CPU time is then exact to a percent.
const DELIVERIES: usize = 240_000;
/// Small groups have fewer deliveries instead of a long round.
const PUBLISHES_MAX: usize = 100;
/// Messages of a frame, and unacknowledged ones, under backlog.
const BURST: u32 = 16;
const IN_FLIGHT: u32 = 64;
/// Messages of one write of the backlog's probe.
const PROBE_MESSAGES: usize = 4;
/// Bytes of a body while some don't read: their sockets fill in seconds.
const SLOW_BODY: usize = 1_000;
/// What one stalled reader may cost at most.
const STALLED_BYTES_MAX: f64 = 256.0 * 1024.0;

struct FanOut<'a, 'b> {
    run: &'a Run<'b>,
    stage: Stage,
    conversation: u64,
    /// Bytes of one delivery as it comes from the socket.
    frame: usize,
}

pub fn run(run: &Run<'_>, report: &mut Report) -> anyhow::Result<()> {
    let (members, wants) = (run.args.members, |s| run.args.only.contains(&s));
    let mut stage = Stage::new(run, "fan-out")?;
    let mut api = Api::connect(stage.server.address, &stage.server.api_key)?;
    let users = api.users(0..members + 1)?;
    let conversation = api.conversation("group", &users)?;
    drop(api);
    stage.open(0, members + 1, false)?;
    let address = stage.raw.address;
    // The probe's sockets count among the files that the process of the clients may open.
    if wants(Scenario::Paced) || wants(Scenario::Backlog) {
        stage.run(Order::OpenRaw {
            address,
            count: members,
            window: 500,
            upgrade: false,
            seconds: 30.0,
        })?;
    }
    let mut fan = FanOut {
        run,
        stage,
        conversation,
        frame: 0,
    };
    let warm = fan.stage.run(fan.sends(10, 1, run.args.body, PACE_US))?;
    fan.frame = (warm.bytes / warm.delivered.max(1)) as usize;
    report.plain(
        "fan-out",
        "bytes of a delivery over its body",
        "B",
        &[fan.frame as f64 - run.args.body as f64],
        Judged::Told,
    );
    if wants(Scenario::Paced) {
        fan.paced(report)?;
    }
    if wants(Scenario::Backlog) {
        fan.backlog(report)?;
    }
    if wants(Scenario::Slow) {
        fan.slow(report)?;
    }
    fan.stage.check(report)
}

impl FanOut<'_, '_> {
    /// `bursts` paced sends of the publisher.
    fn sends(&self, bursts: u64, burst: u32, body: usize, pace_us: u64) -> Order {
        Order::Send(SendPlan {
            first: 0,
            count: 1,
            conversation: self.conversation,
            rate: 1e6 / pace_us as f64,
            burst,
            bursts,
            seconds: bursts as f64 * pace_us as f64 / 1e6 + 20.0,
            body,
            ..SendPlan::default()
        })
    }

    /// The bare loop: its CPU per write in microseconds.
    fn bare(&mut self, writes: u64, bytes: usize, interval_us: u64) -> anyhow::Result<f64> {
        let members = self.run.args.members as u64;
        self.stage.raw.tell(&RawOrder::Fan {
            writes,
            bytes,
            interval_us,
        })?;
        self.stage.run(Order::AwaitRaw {
            bytes: writes * members * bytes as u64,
            seconds: 60.0,
        })?;
        Ok(self.stage.raw.hear()?.cpu_ns as f64 / 1e3 / (writes * members) as f64)
    }

    fn paced(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let publishes = DELIVERIES
            .div_ceil(self.run.args.members)
            .min(PUBLISHES_MAX) as u64;
        let (mut rounds, mut p50, mut p99) = (Rounds::default(), Vec::new(), Vec::new());
        for _ in 0..self.run.args.rounds {
            let bare = self.bare(publishes, self.frame, PACE_US)?;
            let order = self.sends(publishes, 1, self.run.args.body, PACE_US);
            let (cost, done) = self.stage.cost(order, |done| done.delivered)?;
            if done.deliver.p50 > PACE_US as f64 {
                // Someone was a publish behind: what was measured is a backlog, and too cheap.
                eprintln!(
                    "    paced: round left out, half of it came {:.0} ms late",
                    done.deliver.p50 / 1e3
                );
            } else {
                rounds.add(cost, bare);
            }
            p50.push(done.deliver.p50 / 1e3);
            p99.push(done.deliver.p99 / 1e3);
        }
        report.beside(
            "paced",
            "CPU per delivery",
            "µs",
            &rounds,
            Judged::Ratio(1.4, 1.15),
        );
        report.plain("paced", "send to delivery, p50", "ms", &p50, Judged::Told);
        report.plain("paced", "send to delivery, p99", "ms", &p99, Judged::Told);
        Ok(())
    }

    fn backlog(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let bursts = (4 * DELIVERIES).div_ceil(self.run.args.members * BURST as usize) as u64;
        let (mut rounds, mut per_read, mut rate) = (Rounds::default(), Vec::new(), Vec::new());
        for _ in 0..self.run.args.rounds {
            let bare = self.bare(
                bursts * u64::from(BURST) / PROBE_MESSAGES as u64,
                self.frame * PROBE_MESSAGES,
                0,
            )? / PROBE_MESSAGES as f64;
            let order = Order::Send(SendPlan {
                first: 0,
                count: 1,
                conversation: self.conversation,
                burst: BURST,
                in_flight: IN_FLIGHT,
                bursts,
                seconds: 60.0,
                body: self.run.args.body,
                ..SendPlan::default()
            });
            let (cost, done) = self.stage.cost(order, |done| done.delivered)?;
            rounds.add(cost, bare);
            per_read.push(done.delivered as f64 / done.reads.max(1) as f64);
            rate.push(done.delivered as f64 / done.seconds / 1e3);
        }
        report.beside(
            "backlog",
            "CPU per delivery",
            "µs",
            &rounds,
            Judged::AtMost(1.1, 0.5),
        );
        report.plain("backlog", "deliveries a read", "", &per_read, Judged::Told);
        report.plain("backlog", "deliveries", "K/s", &rate, Judged::Told);
        Ok(())
    }

    /// A paced run of a given time, and the most memory the server had meanwhile.
    fn watched(&mut self, seconds: f64) -> anyhow::Result<(Done, u64)> {
        let (pid, order) = (
            self.stage.server.pid(),
            self.sends(
                (seconds * 1e6 / SLOW_PACE_US as f64) as u64,
                1,
                SLOW_BODY,
                SLOW_PACE_US,
            ),
        );
        let (ended, most) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    most.fetch_max(process::private_dirty(pid).unwrap_or(0), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(250));
                }
            });
            let done = self.stage.run(order);
            ended.store(true, Ordering::Relaxed);
            Ok((done?, most.load(Ordering::Relaxed)))
        })
    }

    fn slow(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let stalled = self.run.args.stalled.clamp(1, self.run.args.members);
        let (mut rounds, mut growth, mut lagging) = (Rounds::default(), Vec::new(), Vec::new());
        // One stall only takes long enough; its probe is the same load with everybody reading.
        let (all, before) = self.watched(self.run.args.stall / 2.0)?;
        self.stage.run(Order::Stall {
            first: 1,
            count: stalled,
        })?;
        let (others, most) = self.watched(self.run.args.stall)?;
        let resumed = self.stage.run(Order::Resume { seconds: 60.0 })?;
        rounds.add(others.deliver.p99 / 1e3, all.deliver.p99 / 1e3);
        growth.push(most.saturating_sub(before) as f64 / stalled as f64 / 1024.0);
        lagging.push((resumed.lagging + resumed.closed) as f64);
        report.beside(
            "slow",
            "others' p99 while some stall",
            "ms",
            &rounds,
            Judged::Ratio(1.2, 1.05),
        );
        report.plain(
            "slow",
            "memory per stalled reader",
            "KiB",
            &growth,
            Judged::AtMost(STALLED_BYTES_MAX / 1024.0, STALLED_BYTES_MAX / 1024.0),
        );
        report.plain(
            "slow",
            "told to catch up, of the stalled",
            "",
            &lagging,
            Judged::Told,
        );
        report.plain(
            "slow",
            "caught up again after",
            "s",
            &[resumed.seconds],
            Judged::Told,
        );
        Ok(())
    }
}
