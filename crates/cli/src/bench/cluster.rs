//! What a cluster's servers cost beside bare loops of the drivers that do the same to the engines.
//!
//! As many bare loops as there are servers, each in a process of its own, append, read and store the
//! same bytes at the same rate; then the servers do, with a client's process that isn't counted. They
//! take turns in every round. `cluster/cost` starts what is needed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::children::Clients;
use super::http::{Api, conversations};
use super::order::{Done, Order, SendPlan};
use super::process;
use super::report::median;

/// Before anything is counted: connections, prepared statements and conversations are warm then.
const WARM_S: f64 = 5.0;
/// After the last send, until everything must have come.
const TAIL_S: f64 = 5.0;
/// What both goals are at most: CPU and p99 as a multiple of the bare loops'.
const GOALS: (f64, f64) = (1.3, 1.5);

/// Measures servers that run, beside bare loops that it starts.
#[derive(clap::Args)]
pub struct ClusterArgs {
    /// Addresses of the servers
    #[arg(long, value_delimiter = ',', required = true)]
    server: Vec<SocketAddr>,
    /// Their process ids
    #[arg(long, value_delimiter = ',', required = true)]
    pid: Vec<u32>,
    /// File with an API key
    #[arg(long)]
    api_key: PathBuf,
    /// PKCS#8 file of the key that signs tokens
    #[arg(long)]
    token_key: PathBuf,
    /// The program of the bare loop
    #[arg(long)]
    bare: PathBuf,
    /// What it is told, NAME=VALUE
    #[arg(long)]
    bare_set: Vec<String>,
    /// Partitions of its topic
    #[arg(long, default_value_t = 12)]
    partitions: usize,
    /// Messages a second; 0: nothing is sent
    #[arg(long, value_delimiter = ',', default_value = "0,200,2000")]
    rates: Vec<u64>,
    /// Seconds of each round that are counted
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Rounds of bare loops and servers; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Conversations of two, whose members are with different servers
    #[arg(long, default_value_t = 1_000)]
    conversations: usize,
    /// Bytes of a message's body
    #[arg(long, default_value_t = 64)]
    body: usize,
}

/// What one bare loop says at its end.
#[derive(Deserialize)]
struct Bare {
    messages: u64,
    cpu_us: u64,
    requests: u64,
    latencies_us: Vec<u64>,
}

/// One round of either.
#[derive(Clone, Default)]
struct Round {
    messages: u64,
    /// Of all processes, in milliseconds a second.
    cpu: f64,
    by_part: BTreeMap<&'static str, f64>,
    p50_ms: f64,
    p99_ms: f64,
}

/// Runs the rounds and prints the table; fails when a message was lost, doubled or reordered.
pub fn run_cluster(args: ClusterArgs) -> anyhow::Result<ExitCode> {
    process::raise_open_files().context("can't raise the limit of open files")?;
    let key = std::fs::read_to_string(&args.api_key)
        .with_context(|| format!("can't read {}", args.api_key.display()))?;
    let users = args.conversations * 2;
    let address = args.server[0];
    let mut api = Api::connect(address, key.trim())?;
    let ids = api.users(0..users)?;
    let pairs: Vec<_> = ids
        .chunks(2)
        .map(|pair| ("direct", pair.to_vec()))
        .collect();
    conversations(address, key.trim(), &pairs)?;
    let mut clients = Clients::on(&args.server, &args.token_key, None)?;
    let opened = clients.run(Order::Open {
        first: 0,
        count: users,
        window: 200,
        whole: false,
        seconds: 120.0,
    })?;
    ensure!(opened.opened == users as u64, "only {} came", opened.opened);

    println!(
        "{} servers beside as many bare loops; {} conversations of two, bodies of {} bytes, rounds of {} s\n",
        args.server.len(),
        args.conversations,
        args.body,
        args.seconds
    );
    let mut table = Vec::new();
    let mut faulty = Vec::new();
    for &rate in &args.rates {
        let (mut bares, mut servers) = (Vec::new(), Vec::new());
        for round in 1..=args.rounds {
            let bare = bare_round(&args, rate)?;
            let server = server_round(&args, &mut clients, rate, &mut faulty)?;
            eprintln!(
                "{rate}/s, round {round}: CPU {:.1} beside {:.1} ms/s, p99 {:.1} beside {:.1} ms",
                server.cpu, bare.cpu, server.p99_ms, bare.p99_ms
            );
            bares.push(bare);
            servers.push(server);
        }
        table.push((rate, bares, servers));
    }
    let check = clients.run(Order::Check)?;
    for (what, number) in [
        ("lost", check.lost),
        ("duplicated", check.duplicated),
        ("reordered", check.reordered),
    ] {
        if number > 0 {
            faulty.push(format!("{number} {what}"));
        }
    }
    print(&table);
    println!(
        "\n{} lost, {} duplicated, {} reordered",
        check.lost, check.duplicated, check.reordered
    );
    for fault in &faulty {
        eprintln!("{fault}");
    }
    Ok(if faulty.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// All bare loops at once, each with its share of rate and partitions.
fn bare_round(args: &ClusterArgs, rate: u64) -> anyhow::Result<Round> {
    let count = args.server.len();
    // The same moment for all of them, when they have connected.
    let start = UNIX_EPOCH.elapsed()?.as_millis() as u64 + 3_000;
    let loops = (0..count)
        .map(|at| {
            let own: Vec<String> = (at..args.partitions)
                .step_by(count)
                .map(|partition| partition.to_string())
                .collect();
            let mut command = Command::new(&args.bare);
            command
                .arg(format!("own={}", own.join(",")))
                .arg(format!("number={at}"))
                .arg(format!("rate={}", rate as f64 / count as f64))
                .arg(format!("start_ms={start}"))
                .arg(format!("warm_s={WARM_S}"))
                .arg(format!("seconds={}", args.seconds))
                .arg(format!("tail_s={TAIL_S}"))
                .arg(format!("partitions={}", args.partitions))
                .arg(format!("conversations={}", args.conversations / count))
                .arg(format!("body={}", args.body))
                .args(&args.bare_set)
                .stdin(Stdio::null())
                .stdout(Stdio::piped());
            process::end_with_parent(&mut command);
            command.spawn().context("can't start a bare loop")
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut round = Round::default();
    let (mut latencies, mut requests, mut cpu_us) = (Vec::new(), 0, 0);
    for one in loops {
        let output = one.wait_with_output()?;
        ensure!(output.status.success(), "a bare loop failed");
        let said: Bare = serde_json::from_slice(&output.stdout)?;
        latencies.extend(said.latencies_us);
        round.messages += said.messages;
        requests += said.requests;
        cpu_us += said.cpu_us;
    }
    let sent = rate * args.seconds;
    ensure!(
        round.messages + rate / 100 >= sent,
        "the bare loops have {} of {sent} messages",
        round.messages
    );
    latencies.sort_unstable();
    let at = |part: usize| {
        let place = latencies.len() * part / 100;
        latencies.get(place).map_or(0.0, |&us| us as f64 / 1e3)
    };
    (round.p50_ms, round.p99_ms) = (at(50), at(99));
    round.cpu = cpu_us as f64 / 1e3 / args.seconds as f64;
    if round.messages > 0 {
        eprintln!(
            "  bare: {:.2} requests to the store a message",
            requests as f64 / round.messages as f64
        );
    }
    Ok(round)
}

/// What the threads of that name do.
fn part_of(thread: &str) -> &'static str {
    match thread {
        name if name.starts_with("gateway") => "WebSockets",
        name if name.starts_with("rdk:") || name.starts_with("kafka") => "Kafka",
        name if name.starts_with("control") => "routing, store and peers",
        _ => "rest",
    }
}

fn cpu(args: &ClusterArgs) -> anyhow::Result<BTreeMap<&'static str, u64>> {
    let mut parts = BTreeMap::new();
    for &pid in &args.pid {
        let threads = process::cpu_by_thread(pid).context("a server has ended")?;
        let mut known = 0;
        for (name, ns) in threads {
            *parts.entry(part_of(&name)).or_default() += ns;
            known += ns;
        }
        // Of threads that have ended.
        let all = process::cpu_ns(pid).context("a server has ended")?;
        *parts.entry("rest").or_default() += all.saturating_sub(known);
    }
    Ok(parts)
}

fn server_round(
    args: &ClusterArgs,
    clients: &mut Clients,
    rate: u64,
    faulty: &mut Vec<String>,
) -> anyhow::Result<Round> {
    let mut run = |seconds: f64| -> anyhow::Result<Done> {
        let done = clients.run(match rate {
            0 => Order::Rest { seconds },
            rate => Order::Send(SendPlan {
                first: 0,
                count: args.conversations * 2,
                rate: rate as f64,
                burst: 1,
                seconds,
                body: args.body,
                ..SendPlan::default()
            }),
        })?;
        if done.late {
            faulty.push(format!("{rate}/s: not everything came in time"));
        }
        faulty.extend(done.problems.keys().cloned());
        Ok(done)
    };
    run(WARM_S)?;
    let before = cpu(args)?;
    let done = run(args.seconds as f64)?;
    let after = cpu(args)?;
    // The last answers come a little after the last send.
    let seconds = match rate {
        0 => args.seconds as f64,
        _ => done.seconds,
    };
    let mut round = Round {
        messages: done.acked,
        p50_ms: done.ack.p50 / 1e3,
        p99_ms: done.ack.p99 / 1e3,
        ..Round::default()
    };
    for (part, ns) in after {
        let used = ns.saturating_sub(before.get(part).copied().unwrap_or(0));
        let used = used as f64 / 1e6 / seconds;
        round.by_part.insert(part, used);
        round.cpu += used;
    }
    // What is still under way at the end is no part of the next round.
    std::thread::sleep(Duration::from_secs(1));
    Ok(round)
}

fn print(table: &[(u64, Vec<Round>, Vec<Round>)]) {
    let of = |rounds: &[Round], figure: &dyn Fn(&Round) -> f64| {
        median(&rounds.iter().map(figure).collect::<Vec<_>>())
    };
    let ratio = |ours: &[Round], bare: &[Round], figure: &dyn Fn(&Round) -> f64| {
        let ratios: Vec<f64> = ours
            .iter()
            .zip(bare)
            .map(|(ours, bare)| figure(ours) / figure(bare).max(1e-9))
            .collect();
        median(&ratios)
    };
    println!(
        "| messages/s | CPU bare, ms/s | CPU servers, ms/s | ratio (goal {}) | without WebSockets | p50 bare, ms | p50 servers | p99 bare | p99 servers | ratio (goal {}) |",
        GOALS.0, GOALS.1
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (rate, bares, servers) in table {
        let sockets = |r: &Round| r.by_part.get("WebSockets").copied().unwrap_or(0.0);
        let inner = |r: &Round| r.cpu - sockets(r);
        println!(
            "| {rate} | {:.1} | {:.1} | {:.2} | {:.1} ({:.2}) | {:.1} | {:.1} | {:.1} | {:.1} | {:.2} |",
            of(bares, &|r| r.cpu),
            of(servers, &|r| r.cpu),
            ratio(servers, bares, &|r| r.cpu),
            of(servers, &inner),
            ratio(servers, bares, &inner),
            of(bares, &|r| r.p50_ms),
            of(servers, &|r| r.p50_ms),
            of(bares, &|r| r.p99_ms),
            of(servers, &|r| r.p99_ms),
            ratio(servers, bares, &|r| r.p99_ms),
        );
    }
    println!("\nThe servers' CPU by what their threads do, ms/s:");
    for (rate, _, servers) in table {
        let parts: Vec<String> = servers[0]
            .by_part
            .keys()
            .map(|part| format!("{part} {:.1}", of(servers, &|r| r.by_part[part])))
            .collect();
        println!("{rate}/s: {}", parts.join(", "));
    }
}
