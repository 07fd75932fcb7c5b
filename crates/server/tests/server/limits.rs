//! What one client may ask for, and what it is told beyond that.

use serde_json::{Value, json};

use crate::support::{Server, Session, Setup};

#[test]
fn too_many_sends_are_put_off_and_three_times_too_many_close_the_session() {
    let mut server = Setup::new().set("limits.sends_per_second=5").start();
    let [anna, ben] = server.people();
    let direct = server.direct(&anna, &ben);
    let mut session = server.session(&anna);
    let frame: Vec<Value> = (1..=10)
        .map(|n| {
            let mut send = session.number(&direct, "text", json!(n.to_string()));
            send["ref"] = json!(n);
            send
        })
        .collect();
    session.say(&json!(frame));
    let (mut sent, mut put_off) = (0, 0);
    for n in 1..=10 {
        let answer = session.find("an answer", |u| u["ref"] == json!(n));
        if answer["type"] == "ack" {
            sent += 1;
        } else {
            assert_eq!(answer["code"], "rate_limited");
            assert_eq!(answer["counter"], json!(n));
            assert!((1..=2_000).contains(&answer["retry_after_ms"].as_u64().expect("ms")));
            put_off += 1;
        }
    }
    assert!((5..=6).contains(&sent) && put_off >= 4, "{sent} {put_off}");
    // The same frame again and again: whoever doesn't slow down is sent away.
    for _ in 0..3 {
        session.say(&json!(frame));
    }
    assert_eq!(session.until_closed(), 4008);
    // Over HTTP the same user is told to wait, too.
    let path = format!("/v1/conversations/{direct}/messages");
    let post = || server.call("POST", &path, &ben.token, json!({ "body": "x" }));
    assert_eq!(post().status, 201);
    // At once: where each waits for engines they would be no more than five a second.
    let replies: Vec<_> = std::thread::scope(|scope| {
        let posts: Vec<_> = (0..9).map(|_| scope.spawn(post)).collect();
        let ended = posts.into_iter().map(|post| post.join());
        ended.map(|reply| reply.expect("a reply")).collect()
    });
    let limited = replies
        .iter()
        .find(|r| r.status == 429)
        .expect("one of them");
    assert_eq!(limited.code(), "rate_limited");
    assert!(limited.header("retry-after").is_some());
}

#[test]
fn bytes_are_counted_by_the_minute() {
    let mut server = Setup::new()
        .set("limits.send_bytes_per_minute=20000")
        .start();
    let [anna, ben] = server.people();
    let direct = server.direct(&anna, &ben);
    let mut session = server.session(&anna);
    session.send(&direct, &"x".repeat(15_000));
    let second = session.number(&direct, "text", json!("x".repeat(15_000)));
    let refused = session.ask(second);
    assert_eq!(refused["code"], "rate_limited");
    assert!(refused["retry_after_ms"].as_u64().expect("ms") > 5_000);
}

#[test]
fn joins_are_counted_by_the_hour() {
    let mut server = Setup::new().set("limits.joins_per_hour=3").start();
    let [anna, ben] = server.people();
    let body = json!({ "kind": "channel", "title": "News" });
    let made = server.post("/v1/conversations", &anna.token, body);
    let channel = made["id"].as_str().expect("an id");
    let join = format!("/v1/conversations/{channel}/join");
    for _ in 0..3 {
        assert!(server.call("POST", &join, &ben.token, Value::Null).status < 300);
    }
    let over = server.call("POST", &join, &ben.token, Value::Null);
    assert_eq!((over.status, over.code()), (429, "rate_limited"));
    let wait = over.body["retry_after_ms"].as_u64().expect("ms");
    assert!((60_000..=1_200_000).contains(&wait), "{wait}");
    // Of this user, not of others; and leaving is always possible.
    assert!(server.call("POST", &join, &anna.token, Value::Null).status < 300);
    let leave = format!("/v1/conversations/{channel}/leave");
    assert_eq!(
        server.call("POST", &leave, &ben.token, Value::Null).status,
        200
    );
}

#[test]
fn a_flood_of_frames_ends_the_session() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let mut other = server.session(&ben);
    for flood in [&[0x89, 0x80, 0, 0, 0, 0][..], &[0x01, 0x80, 0, 0, 0, 0]] {
        let mut session = Session::sign_in(server.address(), &anna.token);
        let mut bytes = Vec::new();
        for n in 0..1_000 {
            // Pings, or the empty fragments of one text.
            let first = if flood[0] == 0x01 && n > 0 {
                0x00
            } else {
                flood[0]
            };
            bytes.push(first);
            bytes.extend(&flood[1..]);
        }
        session.write(&bytes);
        assert_eq!(session.until_closed(), 4008);
    }
    other.drain();
}

#[test]
fn bodies_of_requests_are_bounded() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let direct = server.direct(&anna, &ben);
    let path = format!("/v1/conversations/{direct}/messages");
    let body = json!({ "body": "x".repeat(16_385) });
    let long = server.call("POST", &path, &anna.token, body);
    assert_eq!((long.status, long.code()), (413, "too_long"));
    let body = json!({ "body": "x".repeat(600_000) });
    let huge = server.call("POST", &path, &anna.token, body);
    assert!([400, 413].contains(&huge.status), "{huge:?}");
    let body = json!({ "kind": "group", "title": "x".repeat(100_000) });
    let title = server.call("POST", "/v1/conversations", &anna.token, body);
    assert_eq!(title.status, 400);
}
