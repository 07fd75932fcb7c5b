//! `tidings replay`: plays a chat log into a server as real traffic, with observers that check
//! what they receive.
//!
//! - [`file`] reads the log; [`order`] compares the server's order with it.
//! - [`senders`] writes: one light connection ([`wire`]) and one outbox ([`outbox`]) a nick, which
//!   [`connection`] puts together.
//! - [`observers`] are real clients, recorded and judged by `tidings_verify` as they run.

mod connection;
mod file;
mod observers;
mod order;
mod outbox;
mod report;
mod senders;
mod tokens;
mod wire;

use std::io::IsTerminal;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use tidings_protocol::limits;

use crate::api::Api;
use crate::witness::History;
use file::Chat;
use observers::Observers;
use order::Order;
use report::Replayed;
pub(crate) use senders::random as random_after;
use senders::{Plan, Senders};
use tokens::Tokens;

/// Replay a chat log into a server, and check what observers receive
///
/// The log has one JSON object a line, compressed by gzip or not: `at` (`YYYY-MM-DDTHH:MM`), then
/// `nick` and `text` (a message) or `system` (counted, not sent). A user is made for each nick, and a
/// channel of them all. Each nick writes over a connection of its own. Exit code: 0 if everything
/// was accepted, in file order where that was asked for, and no promise is broken; else 1.
///
/// A busy log needs more than the default limits of the server: raise limits.sends_per_second and
/// limits.frames_per_second there, or the replay waits for them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The chat log
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where the server listens
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    server: String,
    /// File with an API key, as `tidings api-key create` prints it [default: the key in the environment
    /// variable TIDINGS_API_KEY]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Nicks connected at once; the one needed last makes room
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    connections_max: u32,
    /// Messages without an answer at once. They are sent in file order, but those of different nicks
    /// may swap places on their way
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    /// Wait for the answer before another nick's message is sent: the server's order is then the
    /// file's, at a tenth of the speed
    #[arg(long)]
    in_order: bool,
    /// Play at the log's own speed, so many times faster (x60: an hour a minute); pauses of the log
    /// longer than an hour count as one [default: as fast as possible]
    #[arg(long, value_name = "xN", value_parser = speed)]
    speed: Option<f64>,
    /// Stop after so many messages
    #[arg(long, value_name = "N")]
    messages: Option<usize>,
    /// Clients that receive everything and are checked
    #[arg(long, value_name = "N", default_value_t = 200)]
    observers: usize,
    /// How many of them go away and come back, again and again
    #[arg(long, value_name = "N", default_value_t = 100)]
    dropping: usize,
    /// WebSocket frames a second that the server takes from one connection (its
    /// limits.frames_per_second); 0: no limit
    #[arg(long, value_name = "N", default_value_t = limits::FRAMES_PER_SECOND)]
    frames_per_second: u32,
    /// Decides when observers go and come back [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Also write the history into this file, for `tidings verify`
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

fn speed(text: &str) -> Result<f64, String> {
    let number = text.strip_prefix('x').unwrap_or(text).parse::<f64>();
    number
        .ok()
        .filter(|n| n.is_finite() && *n > 0.0)
        .ok_or_else(|| "not a speed, for example x60".to_owned())
}

fn resolve(server: &str) -> anyhow::Result<SocketAddr> {
    server
        .to_socket_addrs()
        .with_context(|| format!("{server:?} is not HOST:PORT"))?
        .next()
        .with_context(|| format!("{server:?} has no address"))
}

fn random() -> u64 {
    getrandom::u64().expect("the operating system has random bytes")
}

/// Plays the log and prints what came of it.
///
/// # Errors
/// If the log can't be read, the server refuses what is asked, or nothing goes on any more.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut chat = Chat::read(&args.file)?;
    if let Some(messages) = args.messages {
        chat.cut(messages);
    }
    ensure!(!chat.messages.is_empty(), "the log has no messages");
    ensure!(
        args.dropping <= args.observers,
        "more observers drop than there are"
    );
    let address = resolve(&args.server)?;
    let key = match &args.api_key_file {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?,
        None => std::env::var("TIDINGS_API_KEY")
            .context("give an API key: --api-key-file or TIDINGS_API_KEY")?,
    };
    let history = History::new(args.record.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let replayed = runtime.block_on(play(&args, chat, Api::new(address, &key), &history))?;
    drop(runtime);
    let verdict = history.finish()?;
    let is_good = replayed.is_good(args.in_order) && verdict.is_clean() && verdict.unproven == 0;
    if args.json {
        let both = serde_json::json!({ "replay": replayed, "verify": verdict });
        println!("{both:#}");
    } else {
        print!("{replayed}\n{verdict}");
    }
    Ok(ExitCode::from(u8::from(!is_good)))
}

async fn play(args: &Args, chat: Chat, api: Api, history: &History) -> anyhow::Result<Replayed> {
    let seed = args.seed.unwrap_or_else(random);
    let say = |what: &str| {
        if std::io::stderr().is_terminal() {
            eprintln!("{what}");
        }
    };
    say("Making users and a channel …");
    let names: Vec<String> = std::iter::once("replay".to_owned())
        .chain((1..=args.observers).map(|n| format!("observer {n}")))
        .chain(chat.nicks.iter().map(|nick| nick.name.clone()))
        .collect();
    let title = args.file.file_name().unwrap_or_default().to_string_lossy();
    let title: String = title.chars().take(60).collect();
    let (users, conversation) = {
        let api = api.clone();
        let made = tokio::task::spawn_blocking(move || -> anyhow::Result<(Vec<u64>, u64)> {
            let users = api.create_users(&names)?;
            let conversation = api.create_conversation("channel", &title, users[0], &[])?;
            api.add_members(conversation, &users[1..])?;
            Ok((users, conversation))
        });
        made.await??
    };
    let (observing, writing) = users[1..].split_at(args.observers);

    let senders: Vec<u64> = writing.iter().map(|_| random().max(1)).collect();
    let messages = chat.messages.len();
    let order = Arc::new(Order::new(&chat.nicks, senders.iter().copied(), messages));
    say("Connecting observers …");
    let observers = Observers::start(
        &api,
        observing,
        conversation,
        args.dropping,
        seed,
        history,
        &order,
    )
    .await?;

    let bar = ProgressBar::new(messages as u64);
    let style = ProgressStyle::with_template(
        "{elapsed_precise} {wide_bar} {human_pos}/{human_len} {per_sec}, {eta} left",
    )?;
    bar.set_style(style);
    let plan = Plan {
        address: api.address(),
        conversation,
        users: writing.to_vec(),
        senders,
        connections_max: args.connections_max as usize,
        window: args.window as usize,
        in_order: args.in_order,
        speed: args.speed.unwrap_or(0.0),
        frames_per_second: args.frames_per_second,
        seed: random(),
    };
    let tokens = Tokens::new(api, writing.to_vec());
    let (nicks, system) = (chat.nicks.len(), chat.system);
    let played = {
        let (order, history, bar) = (order.clone(), history.clone(), bar.clone());
        let play = move || Senders::new(plan, &chat, tokens, &order, history, bar)?.run();
        tokio::task::spawn_blocking(play).await?
    };
    bar.finish_and_clear();
    let played = played?;
    say("Waiting for observers …");
    let observed = observers.finish(played.head).await?;
    Ok(Replayed {
        nicks,
        system,
        messages,
        seed,
        played,
        observed,
        order: order.compare(),
    })
}
