//! A server of a cluster on the engines of `cluster/stack`, in which the tests have a topic, a keyspace, a database
//! and a bucket of their own.

// Each test uses its own part of this.
#![allow(dead_code)]

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

#[path = "../../../engines/tests/stack/mod.rs"]
mod stack;

pub const KAFKA: &str = "127.0.0.1:9092";
pub const CASSANDRA: &str = "127.0.0.1:9042";
pub const SENTINEL: &str = "127.0.0.1:26379";
pub const REDIS_CLUSTER: &str = "127.0.0.1:7379";
pub const PGBOUNCER: &str = "127.0.0.1:6433";
pub const POSTGRES: &str = "127.0.0.1:5433";
pub const S3: &str = "127.0.0.1:7070";
/// Nobody listens there.
pub const NOBODY: &str = "127.0.0.1:1";

/// A start that fails says why within this.
pub const FAILS_WITHIN: Duration = Duration::from_secs(15);

pub fn stack_runs() -> bool {
    let redis = TcpStream::connect(REDIS_CLUSTER).is_ok() || stack::runs("Redis", SENTINEL);
    let engines = [
        ("Kafka", KAFKA),
        ("Cassandra", CASSANDRA),
        ("PgBouncer", PGBOUNCER),
        ("PostgreSQL", POSTGRES),
        ("S3", S3),
    ];
    redis && engines.iter().all(|(name, at)| stack::runs(name, at))
}

/// The program with good settings, in a namespace of this test.
pub fn program(command: &str, keys: &Path) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_tidings"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDINGS_") {
            program.env_remove(name);
        }
    }
    let (redis, mode) = match TcpStream::connect(SENTINEL) {
        Ok(_) => (SENTINEL, "sentinel"),
        Err(_) => (REDIS_CLUSTER, "cluster"),
    };
    let port = |address: &str| address.rsplit(':').next().expect("a port").to_owned();
    let good = [
        ("server.mode", "cluster".to_owned()),
        ("auth.keys_dir", keys.display().to_string()),
        ("kafka.brokers", KAFKA.to_owned()),
        ("kafka.topic", "test-start".to_owned()),
        ("kafka.partitions", "2".to_owned()),
        ("kafka.group", "test-start".to_owned()),
        ("kafka.pending_topic", "test-start-pending".to_owned()),
        ("kafka.pending_group", "test-start-pending".to_owned()),
        ("kafka.dead_letter_topic", "test-start-dead".to_owned()),
        ("cassandra.hosts", CASSANDRA.to_owned()),
        ("cassandra.keyspace", "test_start".to_owned()),
        ("cassandra.connections_local", "1".to_owned()),
        ("postgres.host", "127.0.0.1".to_owned()),
        ("postgres.port", port(PGBOUNCER)),
        ("postgres.direct_port", port(POSTGRES)),
        ("postgres.database", DATABASE.to_owned()),
        ("postgres.user", USER.to_owned()),
        ("postgres.password", USER.to_owned()),
        ("postgres.pool_max", "4".to_owned()),
        ("postgres.pool_min_idle", "1".to_owned()),
        ("redis.mode", mode.to_owned()),
        ("redis.nodes", redis.to_owned()),
        ("redis.service", "tidings".to_owned()),
        ("redis.key_prefix", "test-start:".to_owned()),
        ("s3.endpoint", format!("http://{S3}")),
        ("s3.region", "us-east-1".to_owned()),
        ("s3.bucket", "test-start".to_owned()),
        ("s3.access_key", "tidings".to_owned()),
        ("s3.secret_key", "tidings-secret".to_owned()),
    ];
    program.args(command.split(' '));
    if command == "serve" {
        let (one, two) = (free_address(), free_address());
        program.args(["--listen", &one, "--admin-listen", &two]);
    }
    for (name, value) in good {
        program.arg("--set").arg(format!("{name}={value}"));
    }
    program
}

pub const DATABASE: &str = "test_start";
/// Of the stack's PostgreSQL; the password is the same.
pub const USER: &str = "tidings";

pub fn free_address() -> String {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    free.local_addr().expect("an address").to_string()
}

/// Makes what is in the engines. The tests of this file share it, and Cassandra takes one migration at a time.
pub fn migrate(keys: &Path) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let migrated = to_its_end(program("migrate", keys));
    assert!(
        migrated.status.success(),
        "{}",
        String::from_utf8_lossy(&migrated.stderr)
    );
}

/// A database that is there and empty, for `migrate` or for nobody.
pub fn make_database(name: &str) {
    let (host, port) = POSTGRES.split_once(':').expect("a port");
    let made = Command::new("psql")
        .args(["-h", host, "-p", port, "-U", USER, "-d", "postgres", "-c"])
        .arg(format!("create database {name}"))
        .env("PGPASSWORD", USER)
        .output()
        .expect("psql, which the stack needs too");
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(
        made.status.success() || said.contains("already exists"),
        "{said}"
    );
}

/// Runs it to its end, which must come in time.
pub fn to_its_end(mut command: Command) -> Output {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let began = Instant::now();
    let mut look = Duration::from_millis(5);
    while child.try_wait().expect("it is our child").is_none() {
        if began.elapsed() > FAILS_WITHIN {
            // So that reading what it said ends.
            child.kill().expect("it is our child");
            let said = child.wait_with_output().expect("it is our child");
            panic!(
                "{command:?} still runs after {FAILS_WITHIN:?}:\n{}",
                String::from_utf8_lossy(&said.stderr)
            );
        }
        std::thread::sleep(look);
        look = (look * 2).min(Duration::from_millis(100));
    }
    child.wait_with_output().expect("it is our child")
}

/// Killed when the test ends, however it does.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
