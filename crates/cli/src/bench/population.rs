//! Many sessions in conversations of all sizes: what they weigh at rest, and what it takes to
//! have them all back.

use super::http::{Api, conversations};
use super::order::{Order, RawOrder, SendPlan};
use super::report::{Judged, Report, Rounds};
use super::{Run, Scenario, Stage, process};

/// Sizes of the conversations: every user is in one of each.
const SIZES: [usize; 5] = [2, 10, 50, 200, 1000];
/// Messages that each session misses while it is away.
const MISSED: u32 = 3;
/// How long all is quiet before memory is read.
const QUIET_S: f64 = 30.0;
/// Kernel memory of one end of an idle TCP connection, from the kernel's object sizes: not the
/// server's doing, but the machine's.
const KERNEL_KB: f64 = 3.96;

struct Population {
    stage: Stage,
    sessions: usize,
    /// One writer for each of the largest conversations; they stay online.
    writers: usize,
}

pub fn run(run: &Run<'_>, report: &mut Report) -> anyhow::Result<()> {
    let wants = |s| run.args.only.contains(&s);
    let mut population = Population::found(run)?;
    population.settle(run, report, wants(Scenario::Idle))?;
    if wants(Scenario::Reconnect) {
        population.reconnect(run, report)?;
    }
    population.stage.check(report)
}

impl Population {
    fn found(run: &Run<'_>) -> anyhow::Result<Population> {
        let sessions = run.args.sessions;
        let largest = SIZES[SIZES.len() - 1];
        let writers = sessions.div_ceil(largest);
        let mut stage = Stage::new(run, "sessions")?;
        let mut api = Api::connect(stage.server.address, &stage.server.api_key)?;
        let users = api.users(0..sessions + writers)?;
        drop(api);
        let mut wanted = Vec::new();
        for size in SIZES {
            for (at, members) in users[..sessions].chunks(size).enumerate() {
                let mut members = members.to_vec();
                if size == largest {
                    members.insert(0, users[sessions + at].clone());
                }
                // A user left alone at the end has nobody to talk with.
                if members.len() > 1 {
                    wanted.push((if size == 2 { "direct" } else { "group" }, members));
                }
            }
        }
        conversations(stage.server.address, &stage.server.api_key, &wanted)?;
        // What founding left in memory isn't what sessions cost.
        stage.server.restart()?;
        Ok(Population {
            stage,
            sessions,
            writers,
        })
    }

    /// Everybody comes, writes or hears something, and rests.
    fn settle(
        &mut self,
        run: &Run<'_>,
        report: &mut Report,
        is_measured: bool,
    ) -> anyhow::Result<()> {
        let server = self.stage.server.pid();
        if is_measured {
            let raw = self.stage.raw.pid();
            let before = process::private_dirty(raw)?;
            let address = self.stage.raw.address;
            let opened = self.stage.run(Order::OpenRaw {
                address,
                count: self.sessions,
                window: 500,
                upgrade: false,
                seconds: 60.0,
            })?;
            let bare = process::private_dirty(raw)?.saturating_sub(before) as f64
                / opened.opened.max(1) as f64;
            self.stage.run(Order::CloseRaw)?;
            report.plain(
                "idle",
                "bare socket in a table",
                "KB",
                &[bare / 1e3],
                Judged::Told,
            );
        }
        let empty = process::private_dirty(server)?;
        self.stage.open(0, self.sessions + self.writers, false)?;
        let opened = process::private_dirty(server)?;
        let each = |bytes: u64, then: u64| {
            bytes.saturating_sub(then) as f64 / (self.sessions + self.writers) as f64 / 1e3
        };
        let as_opened = each(opened, empty);
        // Every other session writes to its pair, then the writers to everybody.
        self.stage.run(self.sends(
            0,
            self.sessions,
            self.sessions as u64,
            3_000.0,
            run.args.body,
        ))?;
        self.stage.run(self.sends(
            self.sessions,
            self.writers,
            self.writers as u64,
            20.0,
            run.args.body,
        ))?;
        if !is_measured {
            return Ok(());
        }
        self.stage.run(Order::Rest { seconds: QUIET_S })?;
        let cpu = self.stage.server.cpu_ns()?;
        self.stage.run(Order::Rest { seconds: 10.0 })?;
        let idle_cpu = (self.stage.server.cpu_ns()? - cpu) as f64 / 10e9 * 100.0;
        let rested = each(process::private_dirty(server)?, empty);
        report.plain(
            "idle",
            "memory per session, after traffic",
            "KB",
            &[rested],
            Judged::AtMost(1.6, 1.0),
        );
        report.plain(
            "idle",
            "memory per session, as opened",
            "KB",
            &[as_opened],
            Judged::Told,
        );
        report.plain(
            "idle",
            "kernel memory per socket (sizes)",
            "KB",
            &[KERNEL_KB],
            Judged::Told,
        );
        report.plain(
            "idle",
            "server at zero connections",
            "MB",
            &[empty as f64 / 1e6],
            Judged::Told,
        );
        report.plain(
            "idle",
            "CPU of a core, all idle",
            "%",
            &[idle_cpu],
            Judged::AtMost(1.5, 0.75),
        );
        Ok(())
    }

    fn sends(&self, first: usize, count: usize, bursts: u64, rate: f64, body: usize) -> Order {
        let seconds = bursts as f64 / rate + 30.0;
        Order::Send(SendPlan {
            first,
            count,
            rate,
            burst: 1,
            bursts,
            seconds,
            body,
            ..SendPlan::default()
        })
    }

    fn reconnect(&mut self, run: &Run<'_>, report: &mut Report) -> anyhow::Result<()> {
        let (sessions, address) = (self.sessions, self.stage.raw.address);
        let (mut rounds, mut seconds) = (Rounds::default(), Vec::new());
        for _ in 0..run.args.rounds {
            self.stage.run(Order::CutOff {
                first: 0,
                count: sessions,
            })?;
            self.stage.run(Order::Rest { seconds: 2.0 })?;
            self.stage.run(self.sends(
                self.sessions,
                self.writers,
                self.writers as u64 * u64::from(MISSED),
                50.0,
                run.args.body,
            ))?;
            let before = process::cpu_ns(self.stage.raw.pid())?;
            self.stage.run(Order::OpenRaw {
                address,
                count: sessions,
                window: 400,
                upgrade: true,
                seconds: 60.0,
            })?;
            let bare =
                (process::cpu_ns(self.stage.raw.pid())? - before) as f64 / 1e3 / sessions as f64;
            self.stage.run(Order::CloseRaw)?;
            self.stage.raw.tell(&RawOrder::Sweep)?;
            self.stage.raw.hear()?;
            let order = Order::Open {
                first: 0,
                count: sessions,
                window: 400,
                whole: false,
                seconds: 60.0,
            };
            let (cost, done) = self.stage.cost(order, |done| done.opened)?;
            anyhow::ensure!(
                done.opened == sessions as u64,
                "only {} of {sessions} sessions came back",
                done.opened
            );
            rounds.add(cost, bare);
            seconds.push(done.seconds);
        }
        report.beside(
            "reconnect",
            "CPU per session, back and complete",
            "µs",
            &rounds,
            Judged::AtMost(80.0, 60.0),
        );
        report.plain(
            "reconnect",
            "all back and complete after",
            "s",
            &seconds,
            Judged::AtMost(5.0, 5.0),
        );
        Ok(())
    }
}
