//! The real binary on a folder of its own, killed at the latest when the test ends.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::DEADLINE;
use super::http::{Reply, request};
use super::program;
use super::session::Session;

const ANY_PORT: &str = "127.0.0.1:0";

/// A `tidings` command that sees no settings but the ones a test gives.
pub fn tidings(folder: &Path) -> Command {
    let mut command = program::command();
    command
        .env_remove("RUST_LOG")
        .current_dir(folder)
        .stdin(Stdio::null());
    command
}

/// How a server is started.
pub struct Setup {
    folder: TempDir,
    settings: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Setup {
    /// The defaults, on a fresh folder.
    pub fn new() -> Setup {
        Setup {
            folder: tempfile::tempdir().expect("a folder"),
            settings: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// A setting, as `--set` takes it.
    pub fn set(mut self, setting: impl Into<String>) -> Setup {
        self.settings.push(setting.into());
        self
    }

    /// A variable of the environment.
    pub fn env(mut self, name: &str, value: &str) -> Setup {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Writes a file into the working folder: the path a setting can name.
    pub fn file(&self, name: &str, content: &str, mode: u32) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
        path
    }

    /// Starts the server and waits until it says that it is ready.
    pub fn start(self) -> Server {
        let output = tidings(self.folder.path())
            .args(["api-key", "create", "tests", "--data", "data"])
            .output()
            .expect("the binary runs");
        assert!(output.status.success(), "{output:?}");
        let key = String::from_utf8(output.stdout)
            .expect("text")
            .trim()
            .to_owned();
        let running = Running::start(&self, ANY_PORT).expect("a server that starts");
        Server {
            setup: self,
            key,
            running,
            people: 0,
        }
    }

    /// Starts a server that can't: how it ended and what it said on stderr.
    pub fn fails(&self) -> (ExitStatus, String) {
        match Running::start(self, ANY_PORT) {
            Ok(_) => panic!("the server started"),
            Err(said) => said,
        }
    }

    /// The working folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

struct Running {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    tls: Option<SocketAddr>,
    stdout: Mutex<Receiver<String>>,
    said: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Running {
    fn start(setup: &Setup, listen: &str) -> Result<Running, (ExitStatus, String)> {
        let mut command = tidings(setup.folder());
        command.args(["--data", "data", "--listen", listen]);
        command.args(["--admin-listen", "127.0.0.1:0"]);
        for setting in &setup.settings {
            command.args(["--set", setting]);
        }
        command.envs(setup.environment.iter().map(|(k, v)| (k, v)));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let (told, stdout) = channel();
        let out = child.stdout.take().expect("piped");
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if told.send(line).is_err() {
                    return;
                }
            }
        });
        let mut err = child.stderr.take().expect("piped");
        let said = Arc::new(Mutex::new(String::new()));
        let into = said.clone();
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = err.read(&mut bytes) {
                into.lock()
                    .expect("no panic")
                    .push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        });
        let (mut address, mut admin, mut tls) = (None, None, None);
        while admin.is_none() {
            let Ok(line) = stdout.recv_timeout(DEADLINE) else {
                _ = child.kill();
                let status = child.wait().expect("an end");
                _ = reader.join();
                let said = said.lock().expect("no panic").clone();
                return Err((status, said));
            };
            if let Some(rest) = line.strip_prefix("tidings is ready: http://") {
                address = rest.trim_end_matches('/').parse().ok();
            } else if let Some(rest) = line.strip_prefix("and over TLS: https://") {
                tls = rest.trim_end_matches('/').parse().ok();
            } else if let Some(rest) = line.strip_prefix("health and metrics: http://") {
                admin = rest.trim_end_matches("/health/ready").parse().ok();
            }
        }
        Ok(Running {
            child,
            address: address.expect("an address was printed"),
            admin: admin.expect("just seen"),
            tls,
            stdout: Mutex::new(stdout),
            said,
            reader: Some(reader),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A user with a token for one device.
#[derive(Clone)]
pub struct Person {
    /// The user's id, 16 digits.
    pub id: String,
    /// An access token.
    pub token: String,
}

impl fmt::Debug for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}

impl Person {
    /// The id as a number.
    pub fn number(&self) -> u64 {
        number(&self.id)
    }
}

/// An id as a number.
pub fn number(id: &str) -> u64 {
    tidings_protocol::parse_hex16(id).expect("an id")
}

/// A running server.
pub struct Server {
    setup: Setup,
    /// An API key.
    pub key: String,
    running: Running,
    people: u32,
}

impl Server {
    /// With the defaults.
    pub fn start() -> Server {
        Setup::new().start()
    }

    /// The public port.
    pub fn address(&self) -> SocketAddr {
        self.running.address
    }

    /// The operators' port.
    pub fn admin(&self) -> SocketAddr {
        self.running.admin
    }

    /// The port that speaks TLS.
    pub fn tls(&self) -> SocketAddr {
        self.running.tls.expect("a TLS port was printed")
    }

    /// The working folder; the data is in `data`.
    pub fn folder(&self) -> &Path {
        self.setup.folder()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.running.child.id()
    }

    /// What the server said on stderr so far.
    pub fn stderr(&self) -> String {
        self.running.said.lock().expect("no panic").clone()
    }

    /// A request of this token's owner; an empty token sends none.
    pub fn call(&self, method: &str, path: &str, token: &str, body: Value) -> Reply {
        self.call_with(method, path, token, body, &[])
    }

    /// A request with more headers.
    pub fn call_with(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: Value,
        headers: &[(&str, &str)],
    ) -> Reply {
        request(self.address(), method, path, token, body, headers)
    }

    /// A POST that must succeed.
    pub fn post(&self, path: &str, token: &str, body: Value) -> Value {
        let reply = self.call("POST", path, token, body);
        assert!((200..300).contains(&reply.status), "{path}: {reply:?}");
        reply.body
    }

    /// A GET that must succeed.
    pub fn get(&self, path: &str, token: &str) -> Value {
        let reply = self.call("GET", path, token, Value::Null);
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        reply.body
    }

    /// New users, each on one device.
    pub fn people<const N: usize>(&mut self) -> [Person; N] {
        let users: Vec<Value> = (0..N)
            .map(|_| {
                self.people += 1;
                json!({ "display_name": format!("Person {}", self.people) })
            })
            .collect();
        let made = self.post("/v1/users", &self.key, json!({ "users": users }));
        let made: Vec<String> = serde_json::from_value(made["users"].clone()).expect("ids");
        let mut made = made.into_iter();
        std::array::from_fn(|_| {
            let id = made.next().expect("as many as asked for");
            self.on_device(&id, "first")
        })
    }

    /// A token for a device of a user.
    pub fn on_device(&self, user: &str, device: &str) -> Person {
        let body = json!({ "user": user, "device": device });
        let tokens = self.post("/v1/tokens", &self.key, body);
        Person {
            id: user.to_owned(),
            token: tokens["access_token"].as_str().expect("a token").to_owned(),
        }
    }

    /// A group of these, made by the first; its id.
    pub fn group(&self, people: &[&Person]) -> String {
        let members: Vec<&str> = people[1..].iter().map(|p| p.id.as_str()).collect();
        let body = json!({ "kind": "group", "title": "Lunch", "members": members });
        self.made(people[0], body)
    }

    /// The direct conversation of two; its id.
    pub fn direct(&self, one: &Person, other: &Person) -> String {
        let body = json!({ "kind": "direct", "user": other.id });
        self.made(one, body)
    }

    /// Makes a conversation and waits until the log has its first event.
    pub fn made(&self, by: &Person, body: Value) -> String {
        let made = self.post("/v1/conversations", &by.token, body);
        let id = made["id"].as_str().expect("an id").to_owned();
        self.get(&format!("/v1/conversations/{id}/messages"), &by.token);
        id
    }

    /// Waits until the log has an event of this seq: the directory's changes take a moment.
    pub fn until_head(&self, conversation: &str, person: &str, head: u64) {
        let began = Instant::now();
        let path = format!("/v1/conversations/{conversation}/messages?limit=1");
        while self.get(&path, person)["head"].as_u64() < Some(head) {
            assert!(began.elapsed() < DEADLINE, "there is no seq {head}");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// A signed-in and synced session, in JSON.
    pub fn session(&self, person: &Person) -> Session {
        let mut session = Session::sign_in(self.address(), &person.token);
        session.sync(&json!([]), 0);
        session
    }

    /// All metrics.
    pub fn metrics(&self) -> String {
        request(self.admin(), "GET", "/metrics", "", Value::Null, &[]).text
    }

    /// One sample of the metrics, by its name with labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.metrics();
        let line = text
            .lines()
            .find(|line| line.strip_prefix(name).is_some_and(|r| r.starts_with(' ')));
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
        line[name.len() + 1..].parse().expect("a number")
    }

    /// Waits until a sample has this value.
    pub fn metric_becomes(&self, name: &str, value: f64) {
        let began = Instant::now();
        loop {
            let is = self.metric(name);
            if is == value {
                return;
            }
            assert!(began.elapsed() < DEADLINE, "{name} is {is}, not {value}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Writes a file that a setting names, as [`Setup::file`] does.
    pub fn file(&self, name: &str, content: &str, mode: u32) {
        self.setup.file(name, content, mode);
    }

    /// Waits until the log says this.
    pub fn says(&self, what: &str) {
        let began = Instant::now();
        while !self.stderr().contains(what) {
            let said = self.stderr();
            assert!(began.elapsed() < DEADLINE, "{what} is not in {said}");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Sends a signal: `TERM`, `HUP`, ….
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(status.expect("kill is everywhere").success());
    }

    /// Waits for the end of a server that was told to stop.
    pub fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.running.child.try_wait().expect("a child") {
                if let Some(reader) = self.running.reader.take() {
                    reader.join().expect("no panic");
                }
                return status;
            }
            assert!(began.elapsed() < DEADLINE, "the server doesn't end");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// What was printed on stdout since the start.
    pub fn printed(&self) -> Vec<String> {
        let lines = self.running.stdout.lock().expect("no panic");
        lines.try_iter().collect()
    }

    /// Kills the server and starts another one on the same data, at new ports.
    pub fn kill_and_start(&mut self) {
        self.running.child.kill().expect("a child");
        self.running.child.wait().expect("an end");
        self.start_again();
    }

    /// Starts a server on the data of one that has ended, at new ports.
    pub fn start_again(&mut self) {
        self.running = Running::start(&self.setup, ANY_PORT).expect("a server that starts");
    }

    /// Starts a server on the data of one that has ended, where clients look for it.
    pub fn start_again_at(&mut self, address: SocketAddr) {
        let started = Running::start(&self.setup, &address.to_string());
        self.running = started.expect("a server that starts");
    }
}
