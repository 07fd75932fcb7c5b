//! The client library against the real server, in both formats.

use serde_json::json;
use tidings_client::{
    AppEvent, Client, ClientEvent, Config, EventStream, Mode, Options, Store, Token, Traffic,
};
use tidings_protocol::Format;
use tidings_protocol::wire::{Encoding, Kind, command};

use crate::support::process::number;
use crate::support::{DEADLINE, Person, Server, Setup};

fn options(server: &Server, person: &Person, store: Store, format: Format) -> Options {
    Options {
        url: format!("ws://{}/v1/ws", server.address()),
        token: Token::fixed(&person.token),
        store,
        config: Config {
            format,
            mode: Mode::NewestFirst,
            page: 5,
            ..Config::default()
        },
        local_address: None,
    }
}

/// The first event that is answered with something.
async fn until<T>(events: &mut EventStream, mut pick: impl FnMut(AppEvent) -> Option<T>) -> T {
    let waiting = async {
        loop {
            match events.next().await.expect("the client lives") {
                ClientEvent::App(event) => {
                    if let Some(found) = pick(event) {
                        return found;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(DEADLINE, waiting)
        .await
        .expect("it comes in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_body_is_compressed_by_its_sender_and_plain_for_readers_of_json() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let direct = server.direct(&anna, &ben);
    let mut by_hand = server.session(&ben);
    let long: String = (0..1500).map(|n| format!("{n} ")).collect();
    let (saw, seen) = std::sync::mpsc::channel();
    let watch = Box::new(move |traffic: Traffic<'_>| {
        if let Traffic::Out(frame) = traffic {
            for command in &frame.commands {
                if let Some(command::Command::Send(send)) = &command.command {
                    _ = saw.send((send.encoding, send.body.len()));
                }
            }
        }
    });
    let options = options(&server, &anna, Store::volatile(), Format::Proto);
    let (client, mut events) = Client::connect_watched(options, watch);
    client
        .send(number(&direct), Kind::Text, long.clone())
        .await
        .expect("taken");
    until(&mut events, |e| {
        matches!(e, AppEvent::Sent { .. }).then_some(())
    })
    .await;
    let (encoding, bytes) = seen.recv_timeout(DEADLINE).expect("it was sent");
    assert_eq!(encoding, Encoding::Zstd as i32);
    assert!(bytes < long.len() / 2, "{bytes}");
    assert_eq!(by_hand.event(&direct)["body"], json!(long));
    let page =
        by_hand.ask(json!({ "type": "history", "conversation": direct, "before": 3, "limit": 1 }));
    assert_eq!(page["events"][0]["body"], json!(long));
    // And the other way: plain from JSON, read as it is by protobuf.
    by_hand.send(&direct, &long);
    let body = until(&mut events, |e| match e {
        AppEvent::Message(event) if event.user == ben.number() => Some(event.body),
        _ => None,
    })
    .await;
    assert_eq!(body, long.as_bytes());
    client.stop().await.expect("ends");
}

/// Away with a saved cursor, then back: the newest page, a known hole, the hole filled on demand.
async fn comes_back(format: Format) {
    let mut server = Setup::new().set("limits.sends_per_second=200").start();
    let [anna, ben] = server.people();
    let group = server.group(&[&anna, &ben]);
    let mut author = server.session(&anna);
    author.send(&group, "seen");
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path()).expect("a new store");
    let (client, mut events) = Client::connect(options(&server, &ben, store, format));
    until(&mut events, |e| match e {
        AppEvent::Message(event) if event.seq == 2 => Some(()),
        _ => None,
    })
    .await;
    client.stop().await.expect("ends");

    for n in 3..=20 {
        author.send(&group, &n.to_string());
    }
    let new = server.direct(&anna, &ben);
    author.event(&new);
    author.send(&new, "in a conversation that wasn't known");
    let store = Store::open(folder.path()).expect("the lock is free");
    let (client, mut events) = Client::connect(options(&server, &ben, store, format));
    let (mut newest, mut hole, mut unknown) = (Vec::new(), None, Vec::new());
    until(&mut events, |event| {
        match event {
            AppEvent::Message(e) | AppEvent::Members(e) if e.conversation == number(&group) => {
                newest.push(e.seq);
            }
            AppEvent::Message(e) | AppEvent::Members(e) => unknown.push(e.seq),
            AppEvent::Hole { from, to, .. } => hole = Some((from, to)),
            _ => {}
        }
        (newest.len() == 5 && unknown.len() == 2 && hole.is_some()).then_some(())
    })
    .await;
    assert_eq!(newest, [16, 17, 18, 19, 20]);
    assert_eq!(hole, Some((3, 15)));
    assert_eq!(unknown, [1, 2]);
    let mut before = 16;
    while before > 3 {
        assert!(
            client
                .fetch_older(number(&group), before)
                .await
                .expect("asked")
        );
        let (from, seqs) = until(&mut events, |e| match e {
            AppEvent::Older { from, events, .. } => {
                Some((from, events.iter().map(|e| e.seq).collect::<Vec<_>>()))
            }
            _ => None,
        })
        .await;
        assert_eq!(seqs, (from..before).collect::<Vec<_>>());
        before = from;
    }
    author.send(&group, "live");
    until(&mut events, |e| match e {
        AppEvent::Message(event) => {
            assert_eq!(event.seq, 21, "nothing twice");
            Some(())
        }
        _ => None,
    })
    .await;
    client.stop().await.expect("ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_far_behind_gets_the_newest_first_in_protobuf() {
    comes_back(Format::Proto).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_far_behind_gets_the_newest_first_in_json() {
    comes_back(Format::Json).await;
}
