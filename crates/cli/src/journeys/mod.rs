//! `tidings journeys`: what users of a running server meet, at a steady rate, measured and checked.
//!
//! - [`pace`] is the open loop: times count from when a message was meant to be sent, so that a
//!   stall counts for all that it held up.
//! - [`people`] are real clients, recorded and judged by `tidings_verify` as they run; a [`meter`]
//!   at each takes the times. Writers and readers are in this process: one clock.
//! - [`online`], [`back`] and [`group`] are the journeys; [`report`] prints them beside their limits.
//! - [`drill`] is a load while somebody breaks the servers; [`ledger`] has what became of each message.

mod back;
mod drill;
mod group;
mod ledger;
mod meter;
mod online;
mod pace;
mod people;
mod report;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::api::Api;
use crate::witness::History;
use back::Friends;
use group::{Groups, Size};
use meter::{ReadSamples, Samples, Span, lock};
use online::Pairs;
use pace::Pace;
use people::World;
use report::{Judged, LIMITS, Report, is_kept};

/// Measure what users meet on a running server: friends online, a friend who comes back, a group
///
/// Writers and readers are real clients in this process. Times count from when a message was meant
/// to be sent. Everything received is checked as `tidings verify` does. Exit code: 0 if no promise,
/// and with --limits no limit, is broken; else 1.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the server listens
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    server: String,
    /// File with an API key, as `tidings api-key create` prints it [default: the key in the environment
    /// variable TIDINGS_API_KEY]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Messages a second, of all journeys together
    #[arg(long, value_name = "N", default_value_t = 200.0, value_parser = positive)]
    rate: f64,
    /// Seconds that count
    #[arg(long, value_name = "N", default_value_t = 30)]
    seconds: u32,
    /// Seconds at that rate before them, which don't count
    #[arg(long, value_name = "N", default_value_t = 5)]
    warm_up: u32,
    /// Journeys to make [default: all]
    #[arg(long, value_name = "JOURNEY", value_enum, value_delimiter = ',', default_values_t = [Journey::Online, Journey::Back, Journey::Group])]
    only: Vec<Journey>,
    /// Pairs of friends online; the rate is spread over them
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Friends who come back, one after the other
    #[arg(long, value_name = "N", default_value_t = 20)]
    friends: u32,
    /// Messages that each of them missed
    #[arg(long, value_name = "N", default_value_t = 1000)]
    missed: u32,
    /// Groups
    #[arg(long, value_name = "N", default_value_t = 1)]
    groups: u32,
    /// Members of a group
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..1000))]
    members: u32,
    /// Of these, offline
    #[arg(long, value_name = "N", default_value_t = 20)]
    offline: u32,
    /// Messages a second in each group, out of the rate; each is delivered to all who are online
    #[arg(long, value_name = "N", default_value_t = 2.0, value_parser = positive)]
    group_rate: f64,
    /// Only friends online, for so many seconds, and how their conversations pause and clients come
    /// back: for restarts and faults meanwhile
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["seconds", "only"])]
    steady: Option<u32>,
    /// Only friends online and groups with all members online, until a line `end` comes on standard
    /// input. Lines `fault NAME` and `healed NAME` mark what is done to the servers meanwhile. Says
    /// `warm` after the warm-up, and at the end, as JSON, what clients met from each fault to the next
    #[arg(long, conflicts_with_all = ["seconds", "only", "steady", "limits", "offline"])]
    drill: bool,
    /// Also fail if a limit is broken; the usual ones, or those named here instead, in milliseconds
    #[arg(long, value_name = "NAME=MS", num_args = 0.., value_delimiter = ',', value_parser = limit)]
    limits: Option<Vec<(String, f64)>>,
    /// Decides who writes when [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Also write the history into this file, for `tidings verify`
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// One of the journeys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Journey {
    /// Pairs of friends who are online
    Online,
    /// Friends who were away
    Back,
    /// Groups
    Group,
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok();
    number
        .filter(|n| n.is_finite() && *n > 0.0)
        .ok_or_else(|| "not a number above 0".to_owned())
}

fn limit(text: &str) -> Result<(String, f64), String> {
    let names = || LIMITS.map(|(name, ..)| name).join(", ");
    let (name, value) = text.split_once('=').ok_or("not NAME=MS")?;
    if !LIMITS.iter().any(|(known, ..)| *known == name) {
        return Err(format!("no such limit; there are {}", names()));
    }
    Ok((name.to_owned(), positive(value)?))
}

fn say(what: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("{what}");
    }
}

/// Makes the journeys and prints what came of them.
///
/// # Errors
/// If the server refuses what is asked, or nothing goes on any more.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    ensure!(
        args.drill || args.offline < args.members,
        "nobody in a group is online"
    );
    let address = args
        .server
        .to_socket_addrs()
        .with_context(|| format!("{:?} is not HOST:PORT", args.server))?
        .next()
        .with_context(|| format!("{:?} has no address", args.server))?;
    let key = match &args.api_key_file {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?,
        None => std::env::var("TIDINGS_API_KEY")
            .context("give an API key: --api-key-file or TIDINGS_API_KEY")?,
    };
    let history = History::new(args.record.as_deref())?;
    let world = World {
        api: Api::new(address, &key),
        history: history.clone(),
        span: Span::new(history.clone()),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    if args.drill {
        let outcome = runtime.block_on(drill::run(&world, drill_load(&args)?))?;
        drop(runtime);
        let verdict = history.finish()?;
        let is_good = outcome.troubles.is_empty() && is_kept(&verdict);
        let all = serde_json::json!({
            "met": outcome.figures,
            "troubles": outcome.troubles,
            "verify": verdict,
        });
        println!("{all}");
        return Ok(ExitCode::from(u8::from(!is_good)));
    }
    let report = match args.steady {
        Some(seconds) => runtime.block_on(steady(&args, seconds, &world))?,
        None => runtime.block_on(journeys(&args, &world))?,
    };
    drop(runtime);
    let verdict = history.finish()?;
    if args.json {
        let both = serde_json::json!({ "journeys": report, "verify": verdict });
        println!("{both:#}");
    } else {
        print!("{report}\n{verdict}");
    }
    let is_good =
        report.is_sound() && is_kept(&verdict) && (args.limits.is_none() || report.is_within());
    Ok(ExitCode::from(u8::from(!is_good)))
}

fn seed(args: &Args) -> u64 {
    args.seed
        .unwrap_or_else(|| getrandom::u64().expect("the operating system has random bytes"))
}

fn limits(args: &Args) -> BTreeMap<String, f64> {
    args.limits.iter().flatten().cloned().collect()
}

/// The pace from now on, warm-up first, and what of it counts.
fn pace(args: &Args, seconds: u32, world: &World) -> Pace {
    let from = world.span.now();
    let counted = from + u64::from(args.warm_up) * 1_000_000;
    let to = counted + u64::from(seconds) * 1_000_000;
    world.span.count(counted, to);
    Pace {
        rate: args.rate,
        from,
        to,
        seed: seed(args),
    }
}

async fn journeys(args: &Args, world: &World) -> anyhow::Result<Report> {
    let makes = |journey| args.only.contains(&journey);
    let in_groups = match makes(Journey::Group) {
        true => f64::from(args.groups) * args.group_rate,
        false => 0.0,
    };
    ensure!(in_groups <= args.rate, "groups take more than the rate");
    say("Making pairs of friends …");
    // Their load goes on during every journey.
    let pairs = Pairs::start(world, args.pairs as usize).await?;
    let groups = if makes(Journey::Group) {
        say("Making groups …");
        let size = Size {
            groups: args.groups as usize,
            members: args.members as usize,
            offline: args.offline as usize,
        };
        Some(Groups::start(world, size).await?)
    } else {
        None
    };
    let friends = if makes(Journey::Back) {
        say("Writing what friends miss, at 20 messages a second each …");
        Some(Friends::start(world, args.friends as usize, args.missed as usize).await?)
    } else {
        None
    };

    say("Measuring …");
    let pace = pace(args, args.seconds, world);
    let online_pace = Pace {
        rate: args.rate - in_groups,
        ..pace
    };
    let group_pace = Pace {
        rate: args.group_rate,
        seed: pace.seed ^ 1,
        ..pace
    };
    let returns = friends
        .as_ref()
        .map(|f| (f.first_page.clone(), f.complete.clone()));
    let (online, grouped, back) = tokio::try_join!(
        pairs.send(world, online_pace),
        async {
            match &groups {
                Some(groups) => groups.send(world, group_pace).await,
                None => Ok(Vec::new()),
            }
        },
        async {
            match friends {
                Some(friends) => {
                    tokio::time::sleep(Duration::from_secs(args.warm_up.into())).await;
                    friends.come_back(world).await
                }
                None => Ok(Vec::new()),
            }
        },
    )?;

    let load = format!(
        "{} messages/s for {} s after {} s of warm-up: {} over {} pairs, {} in groups ({} deliveries/s there); seed {}",
        args.rate,
        args.seconds,
        args.warm_up,
        online_pace.rate,
        args.pairs,
        in_groups,
        in_groups * f64::from(args.members - args.offline - 1),
        pace.seed,
    );
    let mut report = Report::new(load, limits(args));
    report.troubles([online, grouped, back].concat());
    // Shared with the clients: read once nothing is on its way any more, else the slowest are missing.
    let (deliveries, acks, reads) = (
        pairs.deliveries.clone(),
        pairs.acks.clone(),
        pairs.reads.clone(),
    );
    report.troubles(pairs.finish().await?);
    add_online(&mut report, &deliveries, &acks, &reads);
    if let Some((first_page, complete)) = returns {
        report.add(
            "friend back",
            "back to first page",
            &first_page,
            Judged::P99,
            "first-page",
        );
        report.add(
            "friend back",
            "back to complete",
            &complete,
            Judged::P99,
            "complete",
        );
    }
    if let Some(groups) = groups {
        let (deliveries, acks, complete) = (
            groups.deliveries.clone(),
            groups.acks.clone(),
            groups.complete.clone(),
        );
        report.troubles(groups.finish(world).await?);
        report.add(
            "group",
            "send to delivery, all online",
            &deliveries,
            Judged::P99,
            "group",
        );
        report.add("group", "send to ack", &acks, Judged::Told, "");
        report.add(
            "group",
            "offline, back to complete",
            &complete,
            Judged::Max,
            "group-complete",
        );
    }
    Ok(report)
}

fn add_online(report: &mut Report, deliveries: &Samples, acks: &Samples, reads: &ReadSamples) {
    let journey = "friend online";
    report.add(
        journey,
        "send to delivery",
        deliveries,
        Judged::P99,
        "delivery",
    );
    report.add(journey, "send to ack", acks, Judged::Told, "");
    report.add(
        journey,
        "read cursor to mark seen",
        &reads.from_frame,
        Judged::P99,
        "read",
    );
    report.add(
        journey,
        "user reads to mark seen",
        &reads.from_act,
        Judged::Told,
        "",
    );
}

fn drill_load(args: &Args) -> anyhow::Result<drill::Load> {
    let in_groups = f64::from(args.groups) * args.group_rate;
    ensure!(in_groups <= args.rate, "groups take more than the rate");
    Ok(drill::Load {
        pairs: args.pairs as usize,
        groups: args.groups as usize,
        members: args.members as usize,
        pairs_rate: args.rate - in_groups,
        group_rate: args.group_rate,
        warm_up: args.warm_up,
        seed: seed(args),
    })
}

async fn steady(args: &Args, seconds: u32, world: &World) -> anyhow::Result<Report> {
    say("Making pairs of friends …");
    let pairs = Pairs::start(world, args.pairs as usize).await?;
    say("Measuring …");
    let pace = pace(args, seconds, world);
    let refused = pairs.send(world, pace).await?;
    let (deliveries, acks, pauses) = (
        pairs.deliveries.clone(),
        pairs.acks.clone(),
        pairs.pauses.clone(),
    );
    let reconnections = pairs.reconnections.clone();
    // What is still on its way counts too.
    let troubles = pairs.finish().await?;
    let load = format!(
        "{} messages/s for {seconds} s after {} s of warm-up over {} conversations; seed {}",
        args.rate, args.warm_up, args.pairs, pace.seed,
    );
    let mut report = Report::new(load, limits(args));
    report.troubles([refused, troubles].concat());
    report.add("steady", "send to delivery", &deliveries, Judged::Told, "");
    report.add("steady", "send to ack", &acks, Judged::Told, "");
    let longest = |of: fn(&meter::Pause) -> &AtomicU64| {
        let all = Samples::new();
        for pause in &pauses {
            all.add(of(pause).load(Ordering::Relaxed));
        }
        all
    };
    let (ack, delivery) = (longest(|p| &p.ack), longest(|p| &p.delivery));
    report.add(
        "steady",
        "longest pause to ack",
        &ack,
        Judged::Max,
        "pause-ack",
    );
    report.add(
        "steady",
        "longest pause to delivery",
        &delivery,
        Judged::Max,
        "pause-delivery",
    );
    let all = lock(&reconnections).clone();
    report.waves(2 * pauses.len(), &all, pace.from);
    Ok(report)
}
