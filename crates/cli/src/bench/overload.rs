//! Three times as much is sent as the servers can take, for a minute: how much of it is acknowledged, what
//! that costs in memory, and how soon all is as before.
//!
//! Who is refused waits as told and gives the message up; so what is offered is what users wish, and what is
//! sent is what well-behaved clients send. `cluster/overload` starts what is needed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::children::Clients;
use super::http::{Api, backlog, conversations};
use super::order::{Done, Order, SendPlan};
use super::process;

/// The rate that the search for the peak begins with, and what it grows by each time.
const FIRST_RATE: f64 = 50.0;
const STEP: f64 = 1.3;
/// Seconds of each step, of which the first ones don't count.
const STEP_S: f64 = 12.0;
const STEP_SETTLES_S: usize = 4;
/// A step is too much when less than this part of it is acknowledged and that is no more than before, or when more than
/// so many seconds' worth of it isn't in the store yet: that couldn't last. One alone may be a pause of the machine: the
/// search ends after so many in a row.
const TAKEN: f64 = 0.9;
const GROWS: f64 = 1.05;
const BEHIND_S: f64 = 3.0;
const TOO_MUCH: u32 = 3;
/// How long a backlog is waited for.
const DRAINS_S: u64 = 60;
const TIMES: f64 = 3.0;
/// Afterwards so much of the peak is offered, for so many seconds.
const AFTERWARDS: f64 = 0.5;
const AFTERWARDS_S: f64 = 40.0;
/// Of the peak, of what is offered afterwards, and in how many seconds that.
const GOALS: (f64, f64, usize) = (0.8, 0.95, 15);

/// Measures servers that run.
#[derive(clap::Args)]
pub struct OverloadArgs {
    /// Addresses of the servers
    #[arg(long, value_delimiter = ',', required = true)]
    server: Vec<SocketAddr>,
    /// Their administration
    #[arg(long, value_delimiter = ',', required = true)]
    admin: Vec<SocketAddr>,
    /// Their process ids
    #[arg(long, value_delimiter = ',', required = true)]
    pid: Vec<u32>,
    /// File with an API key
    #[arg(long)]
    api_key: PathBuf,
    /// PKCS#8 file of the key that signs tokens
    #[arg(long)]
    token_key: PathBuf,
    /// Conversations of two, whose members are with different servers
    #[arg(long, default_value_t = 1_000)]
    conversations: usize,
    /// Seconds of overload
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Messages a second to take as the peak; 0: found first
    #[arg(long, default_value_t = 0.0)]
    peak: f64,
}

/// Measures; fails when anything acknowledged is lost, or anything is doubled or reordered.
pub fn run_overload(args: OverloadArgs) -> anyhow::Result<ExitCode> {
    process::raise_open_files().context("can't raise the limit of open files")?;
    let key = std::fs::read_to_string(&args.api_key)
        .with_context(|| format!("can't read {}", args.api_key.display()))?;
    let users = args.conversations * 2;
    let mut api = Api::connect(args.server[0], key.trim())?;
    let ids = api.users(0..users)?;
    let pairs: Vec<_> = ids
        .chunks(2)
        .map(|pair| ("direct", pair.to_vec()))
        .collect();
    conversations(args.server[0], key.trim(), &pairs)?;
    let mut clients = Clients::on(&args.server, &args.token_key, None)?;
    let opened = clients.run(Order::Open {
        first: 0,
        count: users,
        window: 100,
        whole: false,
        seconds: 120.0,
    })?;
    ensure!(opened.opened == users as u64, "only {} came", opened.opened);

    let mut offer = |rate: f64, seconds: f64| -> anyhow::Result<Done> {
        clients.run(Order::Send(SendPlan {
            count: users,
            rate,
            burst: 1,
            seconds,
            body: 64,
            gives_up: true,
            ..SendPlan::default()
        }))
    };
    // Each pair's rows are read once before anything is measured.
    offer(FIRST_RATE, args.conversations as f64 / FIRST_RATE)?;
    let peak = match args.peak {
        0.0 => peak(&args.admin, &mut offer)?,
        told => told,
    };
    std::thread::sleep(Duration::from_secs(10));

    let before = memory(&args.pid);
    let (ended, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let (over, after) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                most.fetch_max(memory(&args.pid), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let over = offer(TIMES * peak, args.seconds);
        let after = over.and_then(|over| Ok((over, offer(AFTERWARDS * peak, AFTERWARDS_S)?)));
        ended.store(true, Ordering::Relaxed);
        after
    })?;
    let rested = {
        std::thread::sleep(Duration::from_secs(10));
        memory(&args.pid)
    };
    let check = clients.run(Order::Check)?;

    let taken = goodput(&over.by_second, 0, args.seconds as usize);
    let wanted = GOALS.1 * AFTERWARDS * peak;
    let back = recovered(&after.by_second, wanted, AFTERWARDS_S as usize);
    println!("| figure | seen | goal |\n|---|---|---|");
    println!("| peak | {peak:.0}/s | |");
    println!(
        "| offered for {:.0} s: sent, refused, withheld as told | {:.0}/s: {:.0}, {:.0}, {:.0}/s | {TIMES} times the peak |",
        args.seconds,
        TIMES * peak,
        over.sent as f64 / args.seconds,
        over.refused as f64 / args.seconds,
        over.withheld as f64 / args.seconds
    );
    println!(
        "| acknowledged meanwhile; p50, p99 | {taken:.0}/s, {:.0} % of the peak; {:.0}, {:.0} ms | {:.0} % |",
        100.0 * taken / peak,
        over.ack.p50 / 1e3,
        over.ack.p99 / 1e3,
        100.0 * GOALS.0
    );
    println!(
        "| the same, every five seconds | {}/s | |",
        by_fives(&over.by_second)
    );
    println!(
        "| memory of the servers: before, most, after | {}, {}, {} MiB | bounded |",
        before >> 20,
        most.into_inner() >> 20,
        rested >> 20
    );
    println!(
        "| {:.0}/s afterwards: {:.0} % acknowledged again after | {} s; p50 {:.0}, p99 {:.0} ms | {} s |",
        AFTERWARDS * peak,
        100.0 * GOALS.1,
        back.map_or("more".to_owned(), |s| s.to_string()),
        after.ack.p50 / 1e3,
        after.ack.p99 / 1e3,
        GOALS.2
    );
    println!(
        "| the same, every five seconds | {}/s | |",
        by_fives(&after.by_second)
    );
    println!(
        "| lost, doubled, reordered | {}, {}, {} | 0 |",
        check.lost, check.duplicated, check.reordered
    );
    let is_whole = check.lost + check.duplicated + check.reordered == 0;
    Ok(if is_whole {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The most that is acknowledged a second, whatever is offered, while the store keeps up.
fn peak(
    admin: &[SocketAddr],
    offer: &mut impl FnMut(f64, f64) -> anyhow::Result<Done>,
) -> anyhow::Result<f64> {
    let (mut peak, mut rate, mut too_much) = (0.0, FIRST_RATE, 0);
    loop {
        let done = offer(rate, STEP_S)?;
        let taken = goodput(&done.by_second, STEP_SETTLES_S, STEP_S as usize);
        let behind = unsettled(admin)?;
        eprintln!(
            "{rate:.0}/s offered: {taken:.0}/s acknowledged, p99 {:.0} ms, {behind} not yet stored",
            done.ack.p99 / 1e3
        );
        let lasts = behind as f64 <= BEHIND_S * rate;
        // More that waits makes larger batches: the most is where more on offer brings no more.
        let grows = taken > GROWS * peak;
        if lasts {
            peak = taken.max(peak);
        }
        too_much = match !lasts || taken < TAKEN * rate && !grows {
            true => too_much + 1,
            false => 0,
        };
        if too_much == TOO_MUCH {
            return Ok(peak);
        }
        for _ in 0..DRAINS_S {
            if unsettled(admin)? as f64 <= peak {
                break;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        rate *= STEP;
    }
}

/// Records that the servers have read and not yet settled.
fn unsettled(admin: &[SocketAddr]) -> anyhow::Result<u64> {
    let of_each = admin.iter().map(|&admin| {
        Ok(backlog(admin)?
            .iter()
            .map(|(_, records)| records)
            .sum::<u64>())
    });
    of_each.sum()
}

fn memory(pids: &[u32]) -> u64 {
    pids.iter()
        .map(|&pid| process::resident(pid).unwrap_or(0))
        .sum()
}

/// Acknowledged a second, between two of them.
fn goodput(by_second: &[u64], from: usize, to: usize) -> f64 {
    let counted: u64 = by_second.iter().take(to).skip(from).sum();
    counted as f64 / (to - from).max(1) as f64
}

/// What is acknowledged a second, in the mean of every five.
fn by_fives(by_second: &[u64]) -> String {
    let means = by_second.chunks(5).map(|five| five.iter().sum::<u64>() / 5);
    means
        .map(|mean| mean.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// The first second from which on it is never less than `wanted` over five seconds: chance alone makes three of them
/// differ by 5 % now and then.
fn recovered(by_second: &[u64], wanted: f64, seconds: usize) -> Option<usize> {
    const SPAN: usize = 5;
    let mut counts = by_second.to_vec();
    counts.resize(seconds, 0);
    let late = counts
        .windows(SPAN)
        .rposition(|span| (span.iter().sum::<u64>() as f64) < SPAN as f64 * wanted);
    let from = late.map_or(0, |late| late + 1);
    (from + SPAN <= seconds).then_some(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_recovered_when_it_stays_so() {
        let dip = [0, 0, 100, 100, 100, 0, 100, 100, 100, 100, 100];
        assert_eq!(recovered(&dip, 95.0, 11), Some(6));
        assert_eq!(recovered(&[100; 10], 95.0, 10), Some(0));
        assert_eq!(
            recovered(&[100; 5], 95.0, 10),
            None,
            "nothing came at the end"
        );
    }
}
