//! One of three servers is killed with thousands of sessions, and all of them come back at once.
//!
//! Sessions come through balancers, which put a session where its hint says. The hints are chosen
//! such that the server that is killed has nearly all of them; the others have pairs who go on
//! writing to each other, to see what the storm costs them. While all come back somebody writes to
//! each group, so that there is something to catch up on. `cluster/storm` starts what is needed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::children::Clients;
use super::http::{Api, ask, backlog, conversations};
use super::order::{Done, Order, SendPlan};
use super::process;

/// Members of a group, beside the one who writes.
const GROUP: usize = 50;
/// Messages a second to all groups together, while everybody comes back.
const GROUP_RATE: f64 = 30.0;
/// How many hints each server should have: the users of one that is killed spread over the others by them.
const HINTS: usize = 100;
/// Seconds before the kill in which is seen how it is without one.
const BEFORE_S: f64 = 20.0;
/// How long the storm may last before what is missing counts as lost.
const WITHIN_S: f64 = 60.0;
/// How long what is still on its way may take in the end.
const SETTLE_S: f64 = 15.0;
/// After it, until memory is called steady.
const REST_S: f64 = 20.0;
/// All must be back in so many seconds; memory and the others' p99 at most so many times what they were.
const GOALS: (f64, f64, f64) = (15.0, 1.3, 3.0);

/// Kills the first of the servers and measures what follows.
#[derive(clap::Args)]
pub struct StormArgs {
    /// Addresses of the balancers
    #[arg(long, value_delimiter = ',', required = true)]
    balancer: Vec<SocketAddr>,
    /// Where the first balancer shows its statistics; its servers are called chat1, chat2, ...
    #[arg(long)]
    statistics: SocketAddr,
    /// The servers' administration, in that order
    #[arg(long, value_delimiter = ',', required = true)]
    admin: Vec<SocketAddr>,
    /// The servers' process ids, in that order
    #[arg(long, value_delimiter = ',', required = true)]
    pid: Vec<u32>,
    /// File with an API key
    #[arg(long)]
    api_key: PathBuf,
    /// PKCS#8 file of the key that signs tokens
    #[arg(long)]
    token_key: PathBuf,
    /// Sessions of the server that is killed
    #[arg(long, default_value_t = 15_000)]
    sessions: usize,
    /// Sessions of the others, in pairs
    #[arg(long, default_value_t = 2_000)]
    others: usize,
    /// Messages a second of the pairs
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
}

/// Measures; fails when anybody doesn't come back, or anything is lost, doubled or reordered.
pub fn run_storm(args: StormArgs) -> anyhow::Result<ExitCode> {
    process::raise_open_files().context("can't raise the limit of open files")?;
    let key = std::fs::read_to_string(&args.api_key)
        .with_context(|| format!("can't read {}", args.api_key.display()))?;
    let (victims, others) = hints(&args)?;
    let (sessions, pairs) = (args.sessions, args.others);
    let writers = sessions.div_ceil(GROUP);
    let conversations = found(&args, key.trim(), writers)?;

    let clients = |hints: &[String]| Clients::through(&args.balancer, &args.token_key, hints);
    let (mut away, mut pairing, mut writing) =
        (clients(&victims)?, clients(&others)?, clients(&others)?);
    open(&mut away, 0, sessions)?;
    open(&mut pairing, sessions, pairs)?;
    open(&mut writing, sessions + pairs, writers)?;
    eprintln!("{sessions} + {pairs} + {writers} sessions are open");
    // Conversations that the killed server routes wait for their next router, however many come back.
    let routed = args.admin.iter().map(|&admin| backlog(admin));
    let routed = routed.collect::<anyhow::Result<Vec<_>>>()?;
    let partitions = routed.iter().map(Vec::len).sum::<usize>() as u64;
    let moved = |partition| routed[0].iter().any(|(moved, _)| *moved == partition);
    let stays = |&pair: &usize| !moved(partition_of(conversations[pair], partitions));
    let staying = (0..pairs / 2).filter(stays);
    let talking: Vec<usize> = staying.map(|pair| sessions + 2 * pair).collect();
    ensure!(
        !talking.is_empty(),
        "all pairs are routed by the first server"
    );
    let talk = |seconds: f64| {
        Order::Send(SendPlan {
            among: talking.clone(),
            ..sends(sessions, pairs, args.rate, 0, seconds)
        })
    };
    let before = pairing.run(talk(BEFORE_S))?;

    let survivors = &args.pid[1..];
    let as_before = memory(survivors);
    let told = Instant::now();
    away.tell(&Order::Return {
        first: 0,
        count: sessions,
        seconds: WITHIN_S,
    })?;
    pairing.tell(&talk(WITHIN_S / 2.0))?;
    std::thread::sleep(Duration::from_secs(1));
    let ended = AtomicBool::new(false);
    let most: Vec<AtomicU64> = survivors.iter().map(|_| AtomicU64::new(0)).collect();
    let (back, seconds, meanwhile, rested) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                for (most, now) in most.iter().zip(memory(survivors)) {
                    most.fetch_max(now, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let killed = Instant::now();
        let result = storm(
            &args,
            &mut away,
            &mut pairing,
            &mut writing,
            sessions + pairs,
        );
        let rested = memory(survivors);
        ended.store(true, Ordering::Relaxed);
        result.map(|(back, meanwhile)| {
            let seconds = back.seconds - (killed - told).as_secs_f64();
            (back, seconds, meanwhile, rested)
        })
    })?;

    // Everybody hears from everybody once more: what was missed would be a hole.
    writing.run(Order::Send(sends(
        sessions + pairs,
        writers,
        GROUP_RATE,
        writers as u64,
        60.0,
    )))?;
    pairing.run(talk(5.0))?;
    for clients in [&mut away, &mut pairing, &mut writing] {
        clients.run(Order::Resume { seconds: SETTLE_S })?;
    }
    let (mut lost, mut doubled, mut reordered) = (0, 0, 0);
    for clients in [&mut away, &mut pairing, &mut writing] {
        let check = clients.run(Order::Check)?;
        lost += check.lost;
        doubled += check.duplicated;
        reordered += check.reordered;
    }

    let most: Vec<u64> = most.into_iter().map(AtomicU64::into_inner).collect();
    let peak = most
        .iter()
        .zip(&rested)
        .map(|(&most, &rested)| most as f64 / rested as f64);
    let peak = peak.fold(0.0, f64::max);
    let p99 = meanwhile.deliver.p99 / before.deliver.p99;
    println!("| figure | seen | goal |\n|---|---|---|");
    println!("| sessions of the killed server | {sessions} | |");
    println!(
        "| back and complete | {} after {seconds:.1} s | all, {} s |",
        back.opened, GOALS.0
    );
    println!(
        "| away, each: p50, p99, longest | {:.1}, {:.1}, {:.1} s | |",
        back.away.p50 / 1e6,
        back.away.p99 / 1e6,
        back.away.max / 1e6
    );
    let parts = ["before the last attempt", "signing in", "catching up"];
    for (part, seen) in parts.iter().zip(&back.stages) {
        println!(
            "| of that, {part} | {:.1}, {:.1}, {:.1} s | |",
            seen.p50 / 1e6,
            seen.p99 / 1e6,
            seen.max / 1e6
        );
    }
    println!("| attempts | {} | |", back.attempts);
    println!("| events caught up on | {} | |", back.paged);
    println!(
        "| memory of the two others: before, most, at rest with all | {} MiB; most to rest {peak:.2} | {} |",
        [&as_before, &most, &rested].map(|all| mib(all)).join("; "),
        GOALS.1
    );
    println!(
        "| pairs of the others, routed by them, send to delivery: p50, p99 before and meanwhile | {:.0}, {:.0}; {:.0}, {:.0} ms; p99 {p99:.1} times | {} |",
        before.deliver.p50 / 1e3,
        before.deliver.p99 / 1e3,
        meanwhile.deliver.p50 / 1e3,
        meanwhile.deliver.p99 / 1e3,
        GOALS.2
    );
    println!("| lost, doubled, reordered | {lost}, {doubled}, {reordered} | 0 |");
    let is_whole = back.opened == sessions as u64 && lost + doubled + reordered == 0;
    Ok(if is_whole {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn mib(bytes: &[u64]) -> String {
    let each: Vec<String> = bytes.iter().map(|b| (b >> 20).to_string()).collect();
    each.join(" + ")
}

fn memory(pids: &[u32]) -> Vec<u64> {
    pids.iter()
        .map(|&pid| process::resident(pid).unwrap_or(0))
        .collect()
}

fn open(clients: &mut Clients, first: usize, count: usize) -> anyhow::Result<()> {
    let done = clients.run(Order::Open {
        first,
        count,
        window: 100,
        whole: false,
        seconds: 240.0,
    })?;
    ensure!(
        done.opened == count as u64,
        "only {} of {count} sessions came",
        done.opened
    );
    Ok(())
}

fn sends(first: usize, count: usize, rate: f64, bursts: u64, seconds: f64) -> SendPlan {
    SendPlan {
        first,
        count,
        rate,
        burst: 1,
        bursts,
        seconds,
        body: 64,
        // What is refused stays unsaid: who waits for an answer is no part of this.
        gives_up: true,
        ..SendPlan::default()
    }
}

/// The kill, and all that follows until it is quiet again.
fn storm(
    args: &StormArgs,
    away: &mut Clients,
    pairing: &mut Clients,
    writing: &mut Clients,
    first_writer: usize,
) -> anyhow::Result<(Done, Done)> {
    // SAFETY: sends a signal to a process that the caller named.
    if unsafe { libc::kill(args.pid[0] as libc::pid_t, libc::SIGKILL) } != 0 {
        bail!("can't kill process {}", args.pid[0]);
    }
    let writers = args.sessions.div_ceil(GROUP);
    writing.run(Order::Send(sends(
        first_writer,
        writers,
        GROUP_RATE,
        writers as u64,
        60.0,
    )))?;
    let back = away.hear("return")?;
    let meanwhile = pairing.hear("send")?;
    std::thread::sleep(Duration::from_secs_f64(REST_S));
    Ok((back, meanwhile))
}

/// Users, pairs of the others, and groups of those who will be cut off with a writer each.
fn found(args: &StormArgs, key: &str, writers: usize) -> anyhow::Result<Vec<u64>> {
    let address = args.balancer[0];
    let mut api = Api::connect(address, key)?;
    let (sessions, users) = (args.sessions, args.sessions + args.others + writers);
    let ids = api.users(0..users)?;
    let mut wanted = Vec::new();
    for pair in ids[sessions..sessions + args.others].chunks(2) {
        wanted.push(("direct", pair.to_vec()));
    }
    for (at, members) in ids[..sessions].chunks(GROUP).enumerate() {
        let mut members = members.to_vec();
        members.insert(0, ids[sessions + args.others + at].clone());
        wanted.push(("group", members));
    }
    conversations(address, key, &wanted)
}

/// The partition of a conversation: xxh3-64 of its eight bytes gives one of 4,096 slots, and those go round.
fn partition_of(conversation: u64, partitions: u64) -> u64 {
    const SLOTS: u64 = 4096;
    twox_hash::XxHash3_64::oneshot(&conversation.to_le_bytes()) % SLOTS % partitions
}

/// Hints that lead to the first server, and such that lead to others.
fn hints(args: &StormArgs) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let (mut first, mut others) = (Vec::new(), Vec::new());
    let mut seen = sessions_of(args)?;
    for number in 0..20 * HINTS {
        if first.len() >= HINTS && others.len() >= HINTS {
            break;
        }
        let hint = format!("storm-{number}");
        let head = format!(
            "GET /version HTTP/1.1\r\nHost: {}\r\nX-Tidings-User: {hint}\r\nConnection: close\r\n\r\n",
            args.balancer[0]
        );
        ask(args.balancer[0], &head)?;
        let now = sessions_of(args)?;
        let place = now.iter().zip(&seen).position(|(now, seen)| now > seen);
        match place {
            Some(0) if first.len() < HINTS => first.push(hint),
            Some(1..) if others.len() < HINTS => others.push(hint),
            _ => {}
        }
        seen = now;
    }
    ensure!(
        first.len() >= HINTS / 2 && others.len() >= HINTS / 2,
        "{} hints lead to the first server, {} to others: are all of them up?",
        first.len(),
        others.len()
    );
    Ok((first, others))
}

/// How many requests each server was given so far, by the balancer's table.
fn sessions_of(args: &StormArgs) -> anyhow::Result<Vec<u64>> {
    let head = "GET /;csv HTTP/1.1\r\nHost: statistics\r\nConnection: close\r\n\r\n";
    let table = ask(args.statistics, head)?;
    let mut counts = vec![0; args.pid.len()];
    for line in table.lines() {
        let fields: Vec<&str> = line.split(',').collect();
        let server = fields.get(1).and_then(|name| name.strip_prefix("chat"));
        if let Some(place) = server.and_then(|n| n.parse::<usize>().ok()?.checked_sub(1))
            && let Some(count) = counts.get_mut(place)
        {
            *count = fields.get(7).and_then(|n| n.parse().ok()).unwrap_or(0);
        }
    }
    Ok(counts)
}
