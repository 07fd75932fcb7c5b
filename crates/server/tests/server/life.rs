//! The end of a server and the next start on its data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidings_cli::witness::{History, Who, Witness};
use tidings_client::{Store, Token};
use tidings_protocol::Format;

use crate::support::http::request;
use crate::support::process::number;
use crate::support::{DEADLINE, Server, Session, Setup};

#[test]
fn a_second_start_on_the_same_data_goes_on_where_it_was() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let direct = server.direct(&anna, &ben);
    let mut author = server.session(&anna);
    assert_eq!(author.send(&direct, "one")["seq"], 2);
    let mut last = author.number(&direct, "text", json!("two"));
    let mut ack = author.ask(last.clone());
    assert_eq!(ack["seq"], 3);
    let (epoch, sender) = (author.ready["epoch"].clone(), author.sender.clone());
    let path = format!("/v1/conversations/{direct}/messages");
    let bot = |server: &Server| {
        let key = [("Idempotency-Key", "of before")];
        server.call_with("POST", &path, &ben.token, json!({ "body": "three" }), &key)
    };
    assert_eq!(bot(&server).body["seq"], 4);

    // Killed once, and told to stop once.
    for (round, orderly) in [false, true].into_iter().enumerate() {
        if orderly {
            server.signal("TERM");
            assert!(server.ended().success());
            server.start_again();
        } else {
            server.kill_and_start();
        }
        let mut again = Session::sign_in(server.address(), &anna.token);
        assert_eq!(again.ready["user"], json!(anna.id));
        assert_eq!(again.ready["epoch"], epoch, "cursors still count");
        let (pages, done) = again.sync(&json!([{ "conversation": direct, "seq": 2 }]), 100);
        assert_eq!(done["reset"], false);
        let events = pages[0]["events"].as_array().expect("events");
        let bodies: Vec<&str> = events.iter().filter_map(|e| e["body"].as_str()).collect();
        assert_eq!(bodies, ["two", "three", "later 0"][..2 + round]);
        // What was acknowledged before is known, by session and by key.
        let repeat = again.ask(last.clone());
        for same in ["seq", "ts", "message_id", "counter", "id"] {
            assert_eq!(repeat[same], ack[same], "{same}");
        }
        assert_eq!(repeat["duplicate"], true);
        let repeat = bot(&server);
        assert_eq!((repeat.status, &repeat.body["seq"]), (200, &json!(4)));
        // And the outbox goes on behind it.
        again.sender.clone_from(&sender);
        let mut next = again.number(&direct, "text", json!(format!("later {round}")));
        next["counter"] = json!(3 + round);
        next["previous"] = last["id"].clone();
        last = next.clone();
        ack = again.ask(next);
        assert_eq!(
            (&ack["status"], &ack["seq"]),
            (&json!("sent"), &json!(5 + round)),
            "{ack}"
        );
    }
}

#[test]
fn a_draining_server_says_so_to_everybody_and_ends_well() {
    let mut server = Setup::new().set("server.drain_spread_s=3").start();
    let [anna, ben] = server.people();
    let direct = server.direct(&anna, &ben);
    let mut session = server.session(&anna);
    let mut sends = Vec::new();
    for n in 0..10 {
        let mut send = session.number(&direct, "text", json!(n.to_string()));
        send["ref"] = json!(n + 1);
        sends.push(send);
    }
    session.say(&json!(sends));
    let began = Instant::now();
    server.signal("TERM");
    let told = session.until("reconnect");
    assert!(told["after_ms"].as_u64().expect("ms") < 3_000);
    for n in 0..10 {
        let answer = session.find("an ack", |u| u["ref"] == json!(n + 1));
        assert_eq!(answer["status"], "sent", "{answer}");
    }
    let ready = request(server.admin(), "GET", "/health/ready", "", Value::Null, &[]);
    assert_eq!(
        (ready.status, &ready.body["status"]),
        (503, &json!("draining"))
    );
    let live = request(server.admin(), "GET", "/health/live", "", Value::Null, &[]);
    assert_eq!(live.status, 200);
    drop(session);
    let status = server.ended();
    assert_eq!(status.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(
        server.printed().last().map(String::as_str),
        Some("tidings has stopped")
    );
}

#[test]
fn a_client_that_does_not_leave_keeps_no_server_from_ending() {
    let mut server = Server::start();
    let [anna] = server.people();
    let mut session = server.session(&anna);
    let began = Instant::now();
    server.signal("TERM");
    session.until("reconnect");
    let code = session.until_closed();
    assert!([1001, 1012].contains(&code), "{code}");
    assert_eq!(server.ended().code(), Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}

/// Four clients that write as fast as they are let while the server is told to stop, in both formats.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_server_stops_under_load() {
    let setup = Setup::new()
        .set("server.drain_spread_s=1")
        .set("limits.sends_per_second=500");
    let mut server = setup.start();
    let people = server.people::<4>();
    let group = server.group(&people.each_ref());
    let history = History::new(None).expect("in memory");
    let address = server.address();
    let witnesses: Vec<Arc<Witness>> = people
        .iter()
        .enumerate()
        .map(|(n, person)| {
            let who = Who {
                url: format!("ws://{address}/v1/ws"),
                token: Token::fixed(&person.token),
                format: Format::ALL[n % 2],
                user: person.number(),
                device: n as u64 + 1,
                conversation: number(&group),
            };
            Arc::new(Witness::start(
                who,
                Store::volatile(),
                history.clone(),
                None,
            ))
        })
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for (n, witness) in witnesses.iter().cloned().enumerate() {
        let stop = stop.clone();
        writers.push(tokio::spawn(async move {
            let mut written = 0u64;
            while !stop.load(Ordering::Relaxed) {
                // The outbox, not this loop, sets the pace: at most 200 wait in it.
                if written - witness.sent() < 200 {
                    let text = format!("{n} writes {written}");
                    witness.send(text).await.expect("room in the outbox");
                    written += 1;
                } else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            written
        }));
    }
    // Under way: every one of them has had messages acknowledged.
    let began = Instant::now();
    while witnesses.iter().any(|w| w.sent() < 50) {
        assert!(began.elapsed() < DEADLINE, "nothing is sent");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let began = Instant::now();
    server.signal("TERM");
    let (mut server, status) = tokio::task::spawn_blocking(move || {
        let status = server.ended();
        (server, status)
    })
    .await
    .expect("no panic");
    assert_eq!(status.code(), Some(0), "{}", server.stderr());
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    stop.store(true, Ordering::Relaxed);
    let mut written = Vec::new();
    for writer in writers {
        written.push(writer.await.expect("no panic"));
    }
    server.start_again_at(address);
    let total: u64 = written.iter().sum();
    let finish = async {
        for (witness, written) in witnesses.iter().zip(&written) {
            while witness.sent() < *written {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        for witness in &witnesses {
            // One event made the group.
            witness.until(total + 1).await;
        }
    };
    tokio::time::timeout(DEADLINE, finish)
        .await
        .expect("everything written arrives");
    for witness in &witnesses {
        assert_eq!(witness.have(), total + 1);
        assert_eq!(witness.troubles(), Vec::<String>::new());
        assert!(witness.connections() >= 2);
        witness.record_final(total + 1);
    }
    let report = history.finish().expect("in memory");
    assert!(report.is_clean(), "{report}");
}
