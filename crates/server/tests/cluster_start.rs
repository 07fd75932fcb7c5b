//! What a server of a cluster says when it can't start, and that `--wait` waits. Needs the engines
//! of `cluster/stack`, in which it has a topic, a keyspace, a database and a bucket of its own.
#![cfg(feature = "cluster")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

mod on_engines;

use on_engines::{
    DATABASE, KAFKA, NOBODY, PGBOUNCER, Running, S3, free_address, make_database, migrate, program,
    stack_runs, to_its_end,
};

/// Engines that come late are found within this, pauses between tries included.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Must not be in what is said.
const WRONG_SECRET: &str = "not-the-secret";

/// Ends with one line that names the setting; the driver's own lines may stand before it.
fn assert_one_line(what: &str, output: &Output, setting: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{what}: it ended well\n{said}");
    assert!(output.status.code().is_some(), "{what}: a signal\n{said}");
    let ours: Vec<&str> = said
        .lines()
        .filter(|line| !line.starts_with(r#"{"timestamp""#))
        .collect();
    let [line] = ours.as_slice() else {
        panic!("{what}: one line, not {}\n{said}", ours.len());
    };
    let reason = line.strip_prefix(&format!("tidings: {setting}: "));
    let Some(reason) = reason else {
        panic!("{what}: {setting} isn't named\n{said}");
    };
    assert!(reason.len() > 20, "{what}: says nothing\n{said}");
    assert!(said.ends_with(&format!("{line}\n")), "{what}: not last");
    assert!(!said.contains(WRONG_SECRET), "{what}: a secret is told");
    println!("{what}: {line}");
}

/// A node of Cassandra that asks for a login and takes none (protocol version 4).
fn cassandra_that_refuses() -> SocketAddr {
    const STARTUP: u8 = 1;
    const OPTIONS: u8 = 5;
    const AUTH_RESPONSE: u8 = 15;
    let string = |text: &str| [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat();
    let authenticator = string("org.apache.cassandra.auth.PasswordAuthenticator");
    let bad_credentials = [
        &0x0100_u32.to_be_bytes()[..],
        &string("Provided username nobody and/or password are incorrect"),
    ]
    .concat();
    serve_each(move |mut stream| {
        let mut header = [0; 9];
        while stream.read_exact(&mut header).is_ok() {
            let len = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
            let mut body = vec![0; len as usize];
            if stream.read_exact(&mut body).is_err() {
                return;
            }
            let (opcode, answer): (u8, &[u8]) = match header[4] {
                OPTIONS => (6, &[0, 0]),
                STARTUP => (3, &authenticator),
                AUTH_RESPONSE => (0, &bad_credentials),
                _ => return,
            };
            let mut frame = vec![header[0] | 0x80, 0, header[2], header[3], opcode];
            frame.extend((answer.len() as u32).to_be_bytes());
            frame.extend(answer);
            if stream.write_all(&frame).is_err() {
                return;
            }
        }
    })
}

fn serve_each(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || accept_each(&listener, serve));
    address
}

/// Runs until the process of the tests ends.
fn accept_each(listener: &TcpListener, serve: impl Fn(TcpStream) + Clone + Send + 'static) {
    for stream in listener.incoming().map_while(Result::ok) {
        let serve = serve.clone();
        std::thread::spawn(move || serve(stream));
    }
}

#[test]
fn what_is_wrong_at_the_start_is_one_line_with_its_setting() {
    if !stack_runs() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let keys = folder.path().join("keys");
    let no_keys = folder.path().join("no-keys");
    std::fs::create_dir(&no_keys).expect("a fresh folder");
    make_database(DATABASE);
    make_database("test_start_empty");
    migrate(&keys);

    let refusing = cassandra_that_refuses();
    let no_one_lets_in = format!("cassandra.hosts={refusing}");
    let wrong = |setting: &str| format!("{setting}={WRONG_SECRET}");
    let nobody = |setting: &str| format!("{setting}={NOBODY}");
    let cases: [(&str, &str, Vec<String>); 29] = [
        (
            "host of Kafka",
            "kafka.brokers",
            vec![nobody("kafka.brokers")],
        ),
        (
            "name of Kafka",
            "kafka.brokers",
            vec!["kafka.brokers=none.invalid:9092".into()],
        ),
        (
            "host of Cassandra",
            "cassandra.hosts",
            vec![nobody("cassandra.hosts")],
        ),
        (
            "name of Cassandra",
            "cassandra.hosts",
            vec!["cassandra.hosts=none.invalid".into()],
        ),
        (
            "login of Cassandra",
            "cassandra.username",
            vec![no_one_lets_in.clone()],
        ),
        (
            "password of Cassandra",
            "cassandra.password",
            vec![
                no_one_lets_in,
                "cassandra.username=nobody".into(),
                wrong("cassandra.password"),
            ],
        ),
        (
            "host of PostgreSQL",
            "postgres.host",
            vec!["postgres.port=1".into()],
        ),
        (
            "name of PostgreSQL",
            "postgres.host",
            vec!["postgres.host=none.invalid".into()],
        ),
        (
            "password of PostgreSQL",
            "postgres.password",
            vec![wrong("postgres.password")],
        ),
        ("host of Redis", "redis.nodes", vec![nobody("redis.nodes")]),
        (
            "password of Redis",
            "redis.password",
            vec![wrong("redis.password")],
        ),
        (
            "user of Redis",
            "redis.password",
            vec!["redis.user=nobody".into(), wrong("redis.password")],
        ),
        (
            "host of S3",
            "s3.endpoint",
            vec![format!("s3.endpoint=http://{NOBODY}")],
        ),
        (
            "access key of S3",
            "s3.access_key",
            vec!["s3.access_key=nobody".into()],
        ),
        (
            "secret key of S3",
            "s3.secret_key",
            vec![wrong("s3.secret_key")],
        ),
        (
            "no keyspace",
            "cassandra.keyspace",
            vec!["cassandra.keyspace=test_start_none".into()],
        ),
        (
            "too few nodes for the copies",
            "cassandra.replication_factor",
            vec!["cassandra.replication_factor=4".into()],
        ),
        (
            "no topic",
            "kafka.topic",
            vec!["kafka.topic=test-start-none".into()],
        ),
        (
            "other partitions",
            "kafka.partitions",
            vec!["kafka.partitions=3".into()],
        ),
        (
            "no position",
            "kafka.group",
            vec!["kafka.group=test-start-none".into()],
        ),
        (
            "too few replicas",
            "kafka.replication",
            vec!["kafka.replication=4".into()],
        ),
        (
            "too few in sync for the promise",
            "kafka.min_insync_replicas",
            vec!["kafka.min_insync_replicas=3".into()],
        ),
        (
            "no bucket",
            "s3.bucket",
            vec!["s3.bucket=test-start-none".into()],
        ),
        (
            "a directory that wasn't migrated",
            "postgres.database",
            vec!["postgres.database=test_start_empty".into()],
        ),
        (
            "no database",
            "postgres.database",
            vec!["postgres.database=test_start_none".into()],
        ),
        (
            "no folder of keys",
            "auth.keys_dir",
            vec!["auth.keys_dir=".into()],
        ),
        (
            "no key",
            "auth.keys_dir",
            vec![format!("auth.keys_dir={}", no_keys.display())],
        ),
        (
            "no certificate for the other servers",
            "peers.certificate",
            vec![
                "peers.listen=127.0.0.1:0".into(),
                format!("peers.servers={NOBODY}"),
            ],
        ),
        (
            "a certificate that isn't there",
            "peers.certificate",
            vec![
                "peers.listen=127.0.0.1:0".into(),
                format!("peers.servers={NOBODY}"),
                "peers.certificate=/none.pem".into(),
            ],
        ),
    ];
    for (what, setting, sets) in cases {
        let mut command = program("serve", &keys);
        for set in sets {
            command.args(["--set", &set]);
        }
        assert_one_line(what, &to_its_end(command), setting);
    }

    let mut command = program("migrate", &keys);
    command.args(["--set", "kafka.topic=test-start-large"]);
    command.args(["--set", "kafka.replication=5"]);
    let output = to_its_end(command);
    assert_one_line("too few brokers to migrate", &output, "kafka.replication");
}

/// Connections to `listener` go on to `to`.
fn pass_on(listener: &TcpListener, to: &'static str) {
    accept_each(listener, move |client| {
        let Ok(engine) = TcpStream::connect(to) else {
            return;
        };
        let halves = (client.try_clone(), engine.try_clone());
        let (Ok(mut client_in), Ok(mut engine_out)) = halves else {
            return;
        };
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut client_in, &mut engine_out);
            let _ = engine_out.shutdown(std::net::Shutdown::Both);
        });
        let (mut engine, mut client) = (engine, client);
        let _ = std::io::copy(&mut engine, &mut client);
        let _ = client.shutdown(std::net::Shutdown::Both);
    });
}

#[test]
fn a_server_that_is_told_to_wait_becomes_ready_when_its_engines_come() {
    if !stack_runs() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let keys = folder.path().join("keys");
    make_database(DATABASE);
    migrate(&keys);
    // Their ports open one after the other, so that each is waited for.
    let late = [
        (free_address(), PGBOUNCER),
        (free_address(), S3),
        (free_address(), KAFKA),
    ];
    let [(postgres, _), (s3, _), (kafka, _)] = &late;
    let (_, postgres_port) = postgres.split_once(':').expect("a port");
    let errors = folder.path().join("errors");
    let mut command = program("serve", &keys);
    command
        .arg("--wait=60")
        .args(["--set", &format!("postgres.port={postgres_port}")])
        .args(["--set", &format!("s3.endpoint=http://{s3}")])
        .args(["--set", &format!("kafka.brokers={kafka}")])
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&errors).expect("a file"));
    let began = Instant::now();
    let mut child = Running(command.spawn().expect("the program runs"));
    let said = || std::fs::read_to_string(&errors).unwrap_or_default();
    let out = child.0.stdout.take().expect("stdout is a pipe");
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if line.starts_with("tidings is ready") {
                let _ = tell.send(());
            }
        }
    });
    for (address, engine) in late {
        // Long enough for a try, so that the wait is seen.
        let early = told.recv_timeout(Duration::from_secs(1));
        assert!(early.is_err(), "ready without {engine}\n{}", said());
        let listener = TcpListener::bind(&address).expect("still free");
        std::thread::spawn(move || pass_on(&listener, engine));
    }
    let ready = told.recv_timeout(READY_WITHIN);
    assert!(ready.is_ok(), "not ready in {READY_WITHIN:?}\n{}", said());
    assert!(said().contains("waiting for it"), "{}", said());
    println!("ready after {:.1} s", began.elapsed().as_secs_f64());
}
