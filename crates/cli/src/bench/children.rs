//! The processes of a run: the server under test, the clients, the raw probe. All end with the run.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::order::{Done, Order, RawOrder};
use super::{process, tokens};

/// Where the server under test runs, and where the load.
pub const SERVER_CORE: usize = 0;
const LOAD_CORE: usize = 1;

/// The limits that a load from one machine would meet, and what they are set to.
pub const RAISED: [(&str, u64); 7] = [
    ("limits.sends_per_second", 1_000_000),
    ("limits.send_bytes_per_minute", 1 << 40),
    ("limits.frames_per_second", 1_000_000),
    ("limits.unauthenticated_per_address", 20_000),
    ("limits.joins_per_hour", 1_000_000),
    ("limits.lookups_per_hour", 1_000_000),
    ("server.connections_max", 200_000),
];

/// Ends a child for good when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn myself() -> anyhow::Result<Command> {
    // The link, not what it says: it goes on working when the file is replaced meanwhile.
    Ok(Command::new("/proc/self/exe"))
}

/// A child that takes orders and answers each with a line.
pub struct Ordered {
    child: Killed,
    input: ChildStdin,
    answers: Receiver<String>,
}

impl Ordered {
    fn start(arguments: &[String], core: Option<usize>) -> anyhow::Result<Ordered> {
        let mut command = myself()?;
        command
            .arg("bench-load")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(core) = core {
            process::pin(&mut command, core);
        }
        let mut child = command.spawn().context("can't start a load process")?;
        let (input, output) = (
            child.stdin.take().context("no input")?,
            child.stdout.take().context("no output")?,
        );
        let (to, answers) = channel();
        std::thread::spawn(move || {
            BufReader::new(output)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| to.send(line))
        });
        Ok(Ordered {
            child: Killed(child),
            input,
            answers,
        })
    }

    fn tell(&mut self, order: &impl Serialize) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.input
            .write_all(&line)
            .context("a load process has ended")
    }

    fn hear<T: DeserializeOwned>(&mut self, within: Duration) -> anyhow::Result<T> {
        let line = self
            .answers
            .recv_timeout(within)
            .context("a load process doesn't answer")?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }
}

/// The process of the clients.
pub struct Clients(Ordered);

impl Clients {
    pub fn start(server: SocketAddr, key: &Path) -> anyhow::Result<Clients> {
        Clients::on(&[server], key, Some(LOAD_CORE))
    }

    /// Clients of several servers, on one core or on whichever is free.
    pub fn on(servers: &[SocketAddr], key: &Path, core: Option<usize>) -> anyhow::Result<Clients> {
        let servers: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
        let arguments = [
            "clients".into(),
            "--server".into(),
            servers.join(","),
            "--key".into(),
            key.display().to_string(),
        ];
        Ok(Clients(Ordered::start(&arguments, core)?))
    }

    /// Clients that come through balancers and tell them these hints in place of their users.
    pub fn through(
        balancers: &[SocketAddr],
        key: &Path,
        hints: &[String],
    ) -> anyhow::Result<Clients> {
        let balancers: Vec<String> = balancers.iter().map(SocketAddr::to_string).collect();
        let arguments = [
            "clients".into(),
            format!("--server={}", balancers.join(",")),
            format!("--key={}", key.display()),
            format!("--hints={}", hints.join(",")),
        ];
        Ok(Clients(Ordered::start(&arguments, None)?))
    }

    /// Gives an order; [`Clients::hear`] waits for what comes of it.
    pub fn tell(&mut self, order: &Order) -> anyhow::Result<()> {
        self.0.tell(order)
    }

    /// Gives an order and waits for what comes of it.
    pub fn run(&mut self, order: Order) -> anyhow::Result<Done> {
        let name = serde_json::to_value(&order)?["do"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        self.tell(&order)?;
        self.hear(&name)
    }

    /// What came of the order that was given.
    pub fn hear(&mut self, name: &str) -> anyhow::Result<Done> {
        let done: Done = self.0.hear(Duration::from_secs(300))?;
        for (problem, times) in &done.problems {
            eprintln!("    {name}, {times} times: {problem}");
        }
        if done.late {
            eprintln!(
                "    {name}: not done in time: {} opened, {} of {} acknowledged, {} of {} delivered",
                done.opened, done.acked, done.sent, done.delivered, done.due
            );
        }
        Ok(done)
    }
}

/// The raw probe of sockets.
pub struct Raw {
    process: Ordered,
    pub address: SocketAddr,
}

impl Raw {
    pub fn start() -> anyhow::Result<Raw> {
        let mut process = Ordered::start(&["raw".into()], Some(SERVER_CORE))?;
        let address = process.hear(Duration::from_secs(10))?;
        Ok(Raw { process, address })
    }

    /// Begins; [`Raw::hear`] waits for the end.
    pub fn tell(&mut self, order: &RawOrder) -> anyhow::Result<()> {
        self.process.tell(order)
    }

    pub fn hear(&mut self) -> anyhow::Result<Done> {
        self.process.hear(Duration::from_secs(120))
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// Runs the bare group-commit loop beside the server's data.
pub fn bare_commits(folder: &Path, rate: f64, bytes: usize, seconds: f64) -> anyhow::Result<Done> {
    let arguments = [
        "commit".into(),
        format!("--file={}", folder.join("bare-commits").display()),
        format!("--rate={rate}"),
        format!("--bytes={bytes}"),
        format!("--seconds={seconds}"),
    ];
    Ordered::start(&arguments, Some(SERVER_CORE))?.hear(Duration::from_secs_f64(seconds + 60.0))
}

/// The server under test, on data of its own that goes with it.
pub struct Server {
    child: Killed,
    is_pinned: bool,
    pub address: SocketAddr,
    pub folder: PathBuf,
    pub api_key: String,
    pub token_key: PathBuf,
    /// From the start of the process to the first accepted connection.
    pub accepted_ms: f64,
    /// And to the first answered request.
    pub answered_ms: f64,
}

fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn launch(folder: &Path, is_pinned: bool) -> anyhow::Result<(Killed, Instant)> {
    let log = std::fs::File::create(folder.join("server.log"))?;
    let mut command = myself()?;
    command
        .arg("serve")
        .arg("--config")
        .arg(folder.join("tidings.toml"))
        .env("RUST_LOG", "warn");
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    for (name, value) in RAISED {
        command.args(["--set", &format!("{name}={value}")]);
    }
    if is_pinned {
        process::pin(&mut command, SERVER_CORE);
    }
    process::end_with_parent(&mut command);
    let started = Instant::now();
    Ok((
        Killed(command.spawn().context("can't start the server")?),
        started,
    ))
}

impl Server {
    /// Starts on empty data in a new folder below `below`; pinned to its core or free on all.
    pub fn start(below: &Path, is_pinned: bool) -> anyhow::Result<Server> {
        let folder = below.join(format!("server-{}", free_port()?.port()));
        let data = folder.join("data");
        std::fs::create_dir_all(&data)?;
        let (token_key, public) = (folder.join("token-key"), folder.join("token-key.pem"));
        tokens::make(&token_key, &public)?;
        let (address, admin, config) = (free_port()?, free_port()?, folder.join("tidings.toml"));
        let mut text = format!(
            "[[auth.keys]]\nkid = \"{}\"\nalgorithm = \"EdDSA\"\npublic_key = {public:?}\nissuer = \"{}\"\naudience = \"{}\"\n",
            tokens::KID,
            tokens::ISSUER,
            tokens::AUDIENCE
        );
        text += &format!(
            "[server]\nlisten = \"{address}\"\n[admin]\nlisten = \"{admin}\"\n[data]\ndir = {data:?}\n"
        );
        std::fs::write(&config, text)?;
        let made = myself()?
            .args(["api-key", "create", "bench", "--config"])
            .arg(&config)
            .stderr(Stdio::inherit())
            .output()?;
        let api_key = String::from_utf8_lossy(&made.stdout)
            .split_whitespace()
            .find(|w| w.starts_with("tak_"))
            .map(str::to_owned);
        let api_key = api_key.context("`api-key create` printed no key")?;

        let (child, started) = launch(&folder, is_pinned)?;
        let mut server = Server {
            child,
            is_pinned,
            address,
            folder,
            api_key,
            token_key,
            accepted_ms: 0.0,
            answered_ms: 0.0,
        };
        server.wait(started)?;
        Ok(server)
    }

    /// Ends it kindly and starts it again on the same data.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        // SAFETY: sends a signal to our own child, which hasn't been waited for.
        unsafe { libc::kill(self.pid() as libc::pid_t, libc::SIGTERM) };
        let asked = Instant::now();
        while self.child.0.try_wait()?.is_none() {
            if asked.elapsed() > Duration::from_secs(20) {
                bail!("the server doesn't end on SIGTERM");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let (child, started) = launch(&self.folder, self.is_pinned)?;
        self.child = child;
        self.wait(started)
    }

    /// Waits until it answers.
    fn wait(&mut self, started: Instant) -> anyhow::Result<()> {
        self.first_answer(started)
            .with_context(|| format!("the server doesn't start:\n{}", self.said()))
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.folder.join("server.log")).unwrap_or_default()
    }

    fn first_answer(&mut self, started: Instant) -> anyhow::Result<()> {
        let mut stream = loop {
            match TcpStream::connect(self.address) {
                Ok(stream) => break stream,
                Err(_) if started.elapsed() < Duration::from_secs(10) => {
                    std::thread::sleep(Duration::from_micros(300))
                }
                Err(error) => bail!(error),
            }
        };
        self.accepted_ms = started.elapsed().as_secs_f64() * 1e3;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(
            format!(
                "GET /version HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
                self.address
            )
            .as_bytes(),
        )?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        self.answered_ms = started.elapsed().as_secs_f64() * 1e3;
        if line.starts_with("HTTP/1.1 200") {
            Ok(())
        } else {
            bail!("/version was answered {line:?}")
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Its CPU time so far.
    pub fn cpu_ns(&self) -> anyhow::Result<u64> {
        process::cpu_ns(self.pid())
            .with_context(|| format!("the server has ended:\n{}", self.said()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.0.kill();
        let _ = self.child.0.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
