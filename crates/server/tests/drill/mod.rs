//! The real program under load of real clients, for drills that kill or fill it.

// Each drill uses its own part of this.
#![allow(dead_code)]

#[path = "../program/mod.rs"]
mod program;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tidings_cli::api::Api;
use tidings_cli::witness::{History, Who, Witness};
use tidings_client::{ClientError, SendError, Store, Token};
use tidings_protocol::Format;
use tidings_protocol::wire::{Feature, FeatureState};
use tidings_verify::Report;
use tokio::task::JoinSet;

/// The server opens what it wrote and listens within this.
const START_WITHIN: Duration = Duration::from_secs(30);
/// What has no other deadline.
pub const SETTLE_WITHIN: Duration = Duration::from_secs(120);
/// Messages of one client without an answer: enough that some are always on their way.
const IN_FLIGHT: u64 = 24;

/// Numbers from a seed (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// A number from the environment, for drills that are longer than a test should be.
pub fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
        Err(_) => default,
    }
}

/// The program on a folder of its own, always at the same address.
pub struct Server {
    program: Program,
    child: Child,
}

struct Program {
    data: PathBuf,
    log: PathBuf,
    address: SocketAddr,
    admin: SocketAddr,
    extra: Vec<String>,
    env: Vec<(String, PathBuf)>,
}

impl Server {
    /// Makes an API key, then starts the program. `folder` gets its own log, `extra` are further
    /// settings.
    pub fn start(folder: &Path, data: &Path, extra: &[&str]) -> (Server, Api) {
        Server::start_with(folder, data, extra, &[])
    }

    /// The same with variables in its environment.
    pub fn start_with(
        folder: &Path,
        data: &Path,
        extra: &[&str],
        env: &[(&str, &Path)],
    ) -> (Server, Api) {
        // Both held until both are known, so that they differ.
        let free = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (one, two) = (free(), free());
        let address = one.local_addr().expect("an address");
        let admin = two.local_addr().expect("an address");
        drop((one, two));
        let key = program::command()
            .args(["api-key", "create", "drill", "--data"])
            .arg(data)
            .output()
            .expect("the program runs");
        assert!(
            key.status.success(),
            "{}",
            String::from_utf8_lossy(&key.stderr)
        );
        let key = String::from_utf8(key.stdout).expect("a key is text");
        let extra: Vec<String> = extra.iter().map(|&s| s.to_owned()).collect();
        let env = env
            .iter()
            .map(|&(name, path)| (name.to_owned(), path.to_path_buf()));
        let program = Program {
            env: env.collect(),
            data: data.to_path_buf(),
            log: folder.join("server-log"),
            address,
            admin,
            extra,
        };
        let child = program.spawn();
        (Server { program, child }, Api::new(address, &key))
    }

    /// SIGKILL, at once.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }

    pub fn start_again(&mut self) {
        self.child = self.program.spawn();
    }

    /// Waits until it has ended by itself; gives what it said last.
    pub fn ended(&mut self) -> String {
        let begun = Instant::now();
        while self.child.try_wait().expect("it is our child").is_none() {
            assert!(
                begun.elapsed() < START_WITHIN,
                "the server runs on:\n{}",
                self.program.last_lines()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        self.program.last_lines()
    }

    pub fn assert_runs(&mut self) {
        let ended = self.child.try_wait().expect("it is our child");
        assert!(
            ended.is_none(),
            "the server ended: {ended:?}\n{}",
            self.program.last_lines()
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!(
                "the end of the server's log:\n{}",
                self.program.last_lines()
            );
        }
    }
}

impl Program {
    fn last_lines(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Starts the program and waits until it says that it is ready.
    fn spawn(&self) -> Child {
        let log = File::options().create(true).append(true).open(&self.log);
        let mut command = program::command();
        command
            .arg("--data")
            .arg(&self.data)
            .args(["--listen", &self.address.to_string()])
            .args(["--admin-listen", &self.admin.to_string()])
            .args(["--set", "limits.sends_per_second=100000"])
            .args(["--set", "limits.frames_per_second=100000"])
            .args(["--set", "limits.send_bytes_per_minute=1000000000"])
            .args(["--set", "auth.access_minutes=60"])
            .env("RUST_LOG", "warn")
            .envs(self.env.iter().map(|(name, path)| (name, path)))
            .stdout(Stdio::piped())
            .stderr(log.expect("a log file"));
        for set in &self.extra {
            command.args(["--set", set]);
        }
        let mut child = command.spawn().expect("the program runs");
        let out = child.stdout.take().expect("stdout is a pipe");
        let (tell, told) = mpsc::channel();
        // Reads on to the end, so that the program never writes into a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if line.starts_with("tidings is ready") {
                    let _ = tell.send(());
                }
            }
        });
        if told.recv_timeout(START_WITHIN).is_err() {
            let _ = child.kill();
            panic!("the server doesn't start:\n{}", self.last_lines());
        }
        child
    }
}

/// Clients that write and read all the time, in several conversations, both formats, with
/// outboxes on disk and in memory.
pub struct Load {
    pub history: History,
    witnesses: Vec<Arc<Witness>>,
    writers: JoinSet<u64>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// `clients` of them, in groups of four; outboxes on disk are kept in `folder`.
    pub async fn start(api: &Api, clients: usize, folder: &Path) -> Load {
        let names: Vec<String> = (1..=clients).map(|n| format!("user {n}")).collect();
        let setup = {
            let api = api.clone();
            tokio::task::spawn_blocking(move || {
                let users = api.create_users(&names)?;
                let tokens = api.tokens(&users, "drill")?;
                let mut conversations = Vec::new();
                for group in users.chunks(4) {
                    conversations.push(api.create_conversation(
                        "group",
                        "",
                        group[0],
                        &group[1..],
                    )?);
                }
                anyhow::Ok((users, tokens, conversations))
            })
        };
        let (users, tokens, conversations) = setup
            .await
            .expect("no panic")
            .expect("the API makes users and conversations");
        let history = History::new(None).expect("without a file nothing fails");
        let mut load = Load {
            history: history.clone(),
            witnesses: Vec::new(),
            writers: JoinSet::new(),
            stop: Arc::new(AtomicBool::new(false)),
        };
        for (at, (&user, token)) in users.iter().zip(tokens).enumerate() {
            let who = Who {
                url: format!("ws://{}/v1/ws", api.address()),
                token: Token::fixed(token.token),
                format: Format::ALL[at % 2],
                user,
                device: user,
                conversation: conversations[at / 4],
            };
            let store = match at / 2 % 2 {
                0 => Store::open(folder.join(format!("outbox-{at}"))).expect("a fresh folder"),
                _ => Store::volatile(),
            };
            let witness = Arc::new(Witness::start(who, store, history.clone(), None));
            load.witnesses.push(witness.clone());
            load.writers.spawn(write(witness, at, load.stop.clone()));
        }
        load
    }

    /// Messages sent by all.
    pub fn sent(&self) -> u64 {
        self.witnesses.iter().map(|w| w.sent()).sum()
    }

    /// Refusals of all, with this error code.
    pub fn refused(&self, code: &str) -> u64 {
        self.witnesses.iter().map(|w| w.refused(code)).sum()
    }

    /// Whether somebody was told that a feature is less than usual.
    pub fn is_less(&self, feature: Feature) -> bool {
        let mut witnesses = self.witnesses.iter();
        witnesses.any(|w| w.mode(feature) != FeatureState::Normal)
    }

    /// Waits until this holds.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&Load) -> bool) {
        let start = Instant::now();
        let mut look = tokio::time::interval(Duration::from_millis(2));
        while !holds(self) {
            let troubles: Vec<String> = self.witnesses.iter().flat_map(|w| w.troubles()).collect();
            assert!(
                troubles.is_empty(),
                "while waiting for {what}: {troubles:?}"
            );
            assert!(
                start.elapsed() < SETTLE_WITHIN,
                "no {what} after {SETTLE_WITHIN:?}; sent {}",
                self.sent()
            );
            look.tick().await;
        }
    }

    /// Ends the writing, waits until everything is sent and seen by everybody, and judges.
    pub async fn finish(mut self) -> Report {
        self.stop.store(true, Ordering::Release);
        let mut queued = 0;
        while let Some(wrote) = self.writers.join_next().await {
            queued += wrote.expect("no panic");
        }
        self.until("end of sending", |load| load.sent() == queued)
            .await;
        for group in self.witnesses.chunks(4) {
            let head = group.iter().map(|w| w.head()).max().unwrap_or(0);
            for witness in group {
                let shown = tokio::time::timeout(SETTLE_WITHIN, witness.until(head)).await;
                assert!(shown.is_ok(), "a client has {} of {head}", witness.have());
                witness.record_final(head);
                assert_eq!(witness.troubles(), Vec::<String>::new());
            }
        }
        self.history.finish().expect("nothing to write")
    }
}

/// Keeps some messages on their way until told to stop; answers how many it wrote.
async fn write(witness: Arc<Witness>, number: usize, stop: Arc<AtomicBool>) -> u64 {
    let mut wrote = 0;
    let mut look = tokio::time::interval(Duration::from_millis(5));
    while !stop.load(Ordering::Acquire) {
        look.tick().await;
        while wrote < witness.sent() + IN_FLIGHT && !stop.load(Ordering::Acquire) {
            // Some are long enough to be compressed.
            let text = format!("{number}-{wrote} ").repeat(if wrote % 16 == 0 { 200 } else { 4 });
            match witness.send(text).await {
                Ok(()) => wrote += 1,
                Err(ClientError::Send(SendError::OutboxFull)) => break,
                Err(error) => panic!("client {number} takes no message: {error}"),
            }
        }
    }
    wrote
}

/// Asserts that every promise held, and that something was shown by it.
pub fn assert_kept(report: &Report) {
    println!("{report}");
    assert!(report.is_clean(), "promises were broken");
    assert_eq!(report.unproven, 0, "acknowledged, and nobody could tell");
    assert_eq!(report.acked, report.messages, "messages without an answer");
    assert!(report.acked > 0, "nothing was sent");
}
