//! A server that loses Redis: messages flow on, and clients, health and metrics say what is less.
#![cfg(feature = "cluster")]

mod on_engines;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use on_engines::{
    DATABASE, REDIS_CLUSTER, Running, SENTINEL, make_database, migrate, program, stack_runs,
    to_its_end,
};
use tidings_cli::api::Api;
use tidings_cli::witness::{History, Who, Witness};
use tidings_client::{Store, Token};
use tidings_protocol::Format;
use tidings_protocol::wire::{Feature, FeatureState};
use tokio::io::copy_bidirectional;
use tokio::sync::watch;

const WITHIN: Duration = Duration::from_secs(20);

/// Who the primary of Redis is, as its Sentinel says (RESP: an array of two strings).
fn primary() -> String {
    let mut sentinel = TcpStream::connect(SENTINEL).expect("a Sentinel");
    let asked = sentinel.write_all(b"SENTINEL GET-MASTER-ADDR-BY-NAME tidings\r\n");
    asked.expect("it listens");
    let lines = BufReader::new(sentinel).lines().map_while(Result::ok);
    let said: Vec<String> = lines.take(5).collect();
    match &said[..] {
        [_, _, host, _, port] => format!("{host}:{port}"),
        _ => panic!("the Sentinel says {said:?}"),
    }
}

/// A way to Redis that can be closed: connections are cut, and new ones stay without an answer.
fn way_to(target: String) -> (SocketAddr, watch::Sender<bool>) {
    let (closed, is_closed) = watch::channel(false);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("an address");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime");
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let (target, mut is_closed) = (target.clone(), is_closed.clone());
            tokio::spawn(async move {
                if is_closed.wait_for(|closed| !closed).await.is_err() {
                    return;
                }
                if let Ok(mut to) = tokio::net::TcpStream::connect(target).await {
                    tokio::select! {
                        _ = copy_bidirectional(&mut from, &mut to) => {}
                        _ = is_closed.wait_for(|closed| *closed) => {}
                    }
                }
            });
        }
    });
    (address, closed)
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the admin port");
    let head = format!("GET {path} HTTP/1.1\r\nHost: tidings\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("it listens");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text
}

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < WITHIN, "{what}: not in {WITHIN:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("{what}: after {:.2} s", began.elapsed().as_secs_f64());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_messages_flow_and_everybody_is_told_what_is_less() {
    if !stack_runs() {
        return;
    }
    if TcpStream::connect(REDIS_CLUSTER).is_ok() && TcpStream::connect(SENTINEL).is_err() {
        eprintln!(
            "SKIPPED: members of a Redis Cluster name their own addresses: no way can be closed"
        );
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let keys = folder.path().join("keys");
    make_database(DATABASE);
    migrate(&keys);
    let key = to_its_end(program("api-key create degraded", &keys));
    let key = String::from_utf8(key.stdout).expect("a key is text");
    let (redis, way) = way_to(primary());
    let mut command = program("serve", &keys);
    command
        .args(["--set", "redis.mode=standalone"])
        .args(["--set", &format!("redis.nodes={redis}")])
        .stdout(Stdio::piped());
    let mut server = Running(command.spawn().expect("the program runs"));
    let out = BufReader::new(server.0.stdout.take().expect("stdout is a pipe"));
    let mut lines = out.lines().map_while(Result::ok);
    let mut address = |of: &str| {
        let line = lines.find(|line| line.starts_with(of)).expect("it starts");
        let address = line
            .split("http://")
            .nth(1)
            .and_then(|url| url.split('/').next());
        address.expect("a line with an address").to_owned()
    };
    let listen = address("tidings is ready");
    let admin = address("health and metrics");

    let api = Api::new(listen.parse().expect("an address"), key.trim());
    let made = tokio::task::spawn_blocking({
        let api = api.clone();
        move || {
            let users = api.create_users(&["anna".to_owned(), "ben".to_owned()])?;
            let tokens = api.tokens(&users, "degraded")?;
            let conversation = api.create_conversation("group", "", users[0], &users[1..])?;
            anyhow::Ok((users, tokens, conversation))
        }
    });
    let (users, tokens, conversation) = made.await.expect("no panic").expect("the API answers");
    let history = History::new(None).expect("without a file nothing fails");
    let mut witnesses = Vec::new();
    for (&user, token) in users.iter().zip(tokens) {
        let who = Who {
            url: format!("ws://{listen}/v1/ws"),
            token: Token::fixed(token.token),
            format: Format::ALL[witnesses.len() % 2],
            user,
            device: user,
            conversation,
        };
        witnesses.push(Witness::start(
            who,
            Store::volatile(),
            history.clone(),
            None,
        ));
    }
    let [anna, ben] = &witnesses[..] else {
        panic!("two of them");
    };
    let exchange = |text: &'static str| async move {
        let before = anna.sent();
        anna.send(text.to_owned())
            .await
            .expect("room in the outbox");
        until(text, || anna.sent() > before && ben.have() >= anna.head()).await;
    };
    exchange("a message while all is well").await;
    let presence = |witness: &Witness| witness.mode(Feature::Presence);
    assert_eq!(presence(ben), FeatureState::Normal);

    way.send_replace(true);
    until("both are told that presence is less", || {
        [anna, ben]
            .iter()
            .all(|w| presence(w) == FeatureState::Reduced)
    })
    .await;
    exchange("a message without Redis").await;
    let ready = get(&admin, "/health/ready");
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    assert!(ready.contains(r#""status":"degraded""#), "{ready}");
    assert!(ready.contains(r#""presence":"reduced""#), "{ready}");
    let metrics = get(&admin, "/metrics");
    assert!(
        metrics.contains(r#"chat_mode{feature="presence"} 1"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"chat_mode{feature="delivery"} 0"#),
        "{metrics}"
    );
    until("the breaker before Redis has opened", || {
        let opened = r#"chat_breaker_opened_total{breaker="redis"} "#;
        let metrics = get(&admin, "/metrics");
        let line = metrics.lines().find(|line| line.starts_with(opened));
        line.is_some_and(|line| !line.ends_with(" 0"))
    })
    .await;

    way.send_replace(false);
    until("both are told that presence is whole again", || {
        [anna, ben]
            .iter()
            .all(|w| presence(w) == FeatureState::Normal)
    })
    .await;
    exchange("a message with Redis back").await;
    let report = history.finish().expect("nothing to write");
    assert!(report.is_clean(), "{report}");
}
