//! Messages between devices: order, catch-up, receipts, typing, presence, bodies.

use serde_json::{Value, json};

use crate::accounts::two_devices;
use crate::support::{Server, Session};

fn seqs(events: &Value) -> Vec<u64> {
    let events = events.as_array().expect("events");
    events
        .iter()
        .map(|e| e["seq"].as_u64().expect("a seq"))
        .collect()
}

#[test]
fn two_devices_of_one_user_both_get_everything_in_the_same_order() {
    let mut server = Server::start();
    let (phone, laptop) = two_devices(&mut server);
    let [ben] = server.people();
    let group = server.group(&[&phone, &ben]);
    let mut sessions = [
        server.session(&phone),
        server.session(&laptop),
        server.session(&ben),
    ];
    let mut bodies = Vec::new();
    for round in 0..5 {
        for (n, session) in sessions.iter_mut().enumerate() {
            let body = format!("{n} says {round}");
            // Pipelined: the acks come later, in the order of each outbox.
            let mut send = session.number(&group, "text", json!(body));
            send["ref"] = json!(round + 1);
            session.say(&send);
            bodies.push(body);
        }
    }
    let mut orders: Vec<Vec<(u64, String)>> = Vec::new();
    for session in &mut sessions {
        let mut own = Vec::new();
        for r#ref in 1..=5 {
            let ack = session.find("an ack", |u| u["ref"] == json!(r#ref));
            own.push(ack["seq"].as_u64().expect("a seq"));
        }
        assert!(own.is_sorted());
        let mut order = Vec::new();
        // Ten of the others; one's own come as acks.
        for _ in 0..10 {
            let event = session.event(&group);
            order.push((
                event["seq"].as_u64().expect("a seq"),
                event["body"].as_str().expect("text").to_owned(),
            ));
        }
        assert!(order.is_sorted());
        assert!(own.iter().all(|seq| order.iter().all(|o| o.0 != *seq)));
        orders.push(order);
    }
    // Where two saw the same seq they saw the same message.
    for event in &orders[0] {
        for other in &orders[1..] {
            assert!(other.iter().all(|o| o.0 != event.0 || o == event));
        }
    }
    let mut fresh = Session::sign_in(server.address(), &ben.token);
    let (pages, _) = fresh.sync(&json!([]), 100);
    assert_eq!(seqs(&pages[0]["events"]), (1..=16).collect::<Vec<_>>());
}

#[test]
fn a_device_that_was_away_gets_exactly_what_it_missed() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let (one, two) = (server.group(&[&anna, &ben]), server.direct(&anna, &ben));
    let mut author = server.session(&anna);
    let mut away = server.session(&ben);
    author.send(&one, "seen");
    assert_eq!(away.event(&one)["seq"], 2);
    drop(away);

    // One conversation goes on, one doesn't, one is new.
    for n in 0..5 {
        author.send(&one, &format!("missed {n}"));
    }
    let three = server.group(&[&anna, &ben]);
    author.event(&three);
    author.send(&three, "welcome");

    let mut back = Session::sign_in(server.address(), &ben.token);
    let cursors = json!([{ "conversation": one, "seq": 2 }, { "conversation": two, "seq": 1 }]);
    let (pages, done) = back.sync(&cursors, 100);
    assert_eq!(
        (&done["complete"], &done["reset"]),
        (&json!(true), &json!(false))
    );
    let page = |id: &str| pages.iter().find(|p| p["conversation"] == json!(id));
    assert_eq!(
        seqs(&page(&one).expect("news")["events"]),
        [3, 4, 5, 6, 7],
        "exactly what was missed"
    );
    assert!(
        page(&two).is_none_or(|p| p["events"] == json!([])),
        "nothing to tell"
    );
    let new = page(&three).expect("a conversation that wasn't known");
    assert_eq!(seqs(&new["events"]), [1, 2]);
    assert_eq!(new["title"], "Lunch");
    // From here on it is live, and nothing comes twice.
    author.send(&one, "live");
    assert_eq!(back.event(&one)["seq"], 8);
    let rest = back.drain();
    assert!(
        rest.iter().all(|u| u["type"] != "message"),
        "twice: {rest:?}"
    );
}

#[test]
fn far_behind_the_newest_page_comes_first_and_older_ones_on_demand() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let group = server.group(&[&anna, &ben]);
    let mut author = server.session(&anna);
    for n in 2..=12 {
        author.send(&group, &n.to_string());
    }
    let mut back = Session::sign_in(server.address(), &ben.token);
    let cursors = json!([{ "conversation": group, "seq": 2 }]);
    let (pages, _) = back.sync(&cursors, 4);
    assert_eq!(seqs(&pages[0]["events"]), [9, 10, 11, 12]);
    assert_eq!(pages[0]["missing_from"], 3);
    let mut have: Vec<u64> = Vec::new();
    let mut before = 9;
    while before > 3 {
        let page = back
            .ask(json!({ "type": "history", "conversation": group, "before": before, "limit": 4 }));
        let mut older = seqs(&page["events"]);
        before = page["from"].as_u64().expect("a seq");
        older.append(&mut have);
        have = older;
    }
    assert_eq!(have, (before..9).collect::<Vec<_>>());
    // The same over HTTP.
    let path = format!("/v1/conversations/{group}/messages?before=9&limit=4");
    assert_eq!(seqs(&server.get(&path, &ben.token)["events"]), [5, 6, 7, 8]);
    let path = format!("/v1/conversations/{group}/messages?after=10");
    assert_eq!(seqs(&server.get(&path, &ben.token)["events"]), [11, 12]);
    let path = format!("/v1/conversations/{group}/messages?limit=1");
    assert_eq!(seqs(&server.get(&path, &ben.token)["events"]), [12]);
}

#[test]
fn typing_is_told_to_the_others_and_stored_nowhere() {
    let mut server = Server::start();
    let (anna, second) = two_devices(&mut server);
    let [ben] = server.people();
    let direct = server.direct(&anna, &ben);
    let (mut writing, mut reading) = (server.session(&anna), server.session(&ben));
    let mut own = server.session(&second);
    for on in [true, false] {
        writing.say(&json!({ "type": "typing", "conversation": direct, "on": on }));
        let told = reading.until("typing");
        assert_eq!(
            (&told["user"], told["on"].as_bool().unwrap_or(false)),
            (&json!(anna.id), on)
        );
        assert_eq!(told["conversation"], json!(direct));
    }
    assert_eq!(writing.send(&direct, "done")["seq"], 2, "it took no seq");
    assert_eq!(reading.event(&direct)["body"], "done");
    assert!(!writing.has("typing"), "not told to oneself");
    own.drain();
}

#[test]
fn presence_is_told_to_those_who_watch_and_the_last_time_seen_stays() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    server.direct(&anna, &ben);
    let mut watcher = server.session(&anna);
    let state_of = |update: &Value| {
        let users = update["users"].as_array().expect("users");
        let of = users.iter().find(|u| u["user"] == json!(ben.id))?;
        Some((
            of["state"].as_str().expect("a state").to_owned(),
            of["last_seen"].as_u64().unwrap_or(0),
        ))
    };
    let becomes = |watcher: &mut Session, wanted: &str| {
        let told = watcher.find(wanted, |u| {
            u["type"] == "presence" && state_of(u).is_some_and(|s| s.0 == wanted)
        });
        state_of(&told).expect("just found").1
    };
    let answer = watcher.ask(json!({ "type": "watch", "users": [ben.id] }));
    assert_eq!(state_of(&answer).expect("an answer").0, "offline");
    let mut watched = server.session(&ben);
    becomes(&mut watcher, "online");
    watched.say(&json!({ "type": "presence", "state": "away" }));
    becomes(&mut watcher, "away");
    watched.say(&json!({ "type": "presence", "state": "online" }));
    becomes(&mut watcher, "online");
    drop(watched);
    let seen = becomes(&mut watcher, "offline");
    let now = crate::support::shop::now() * 1_000_000;
    assert!((now - 60_000_000..=now + 60_000_000).contains(&seen));
    let path = format!("/v1/presence?ids={}", ben.id);
    let told = server.get(&path, &anna.token);
    assert_eq!(state_of(&told), Some(("offline".to_owned(), seen)));
}

#[test]
fn receipts_name_a_seq_or_a_message_and_never_go_back() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let direct = server.direct(&anna, &ben);
    let (mut author, mut reader) = (server.session(&anna), server.session(&ben));
    let acks: Vec<Value> = (0..3)
        .map(|n| author.send(&direct, &n.to_string()))
        .collect();
    let reads_to = |author: &mut Session, read: u64| {
        let told = author.find("a receipt", |u| {
            u["type"] == "receipts" && u["receipts"][0]["read"] == json!(read)
        });
        assert_eq!(told["receipts"][0]["user"], json!(ben.id));
        told["receipts"][0]["delivered"].as_u64().expect("a seq")
    };
    reader.event(&direct);
    reader.say(&json!({ "type": "delivered", "conversation": direct, "seq": 4 }));
    let told = author.until("receipts");
    assert_eq!(
        (
            &told["receipts"][0]["delivered"],
            &told["receipts"][0]["read"]
        ),
        (&json!(4), &json!(0))
    );
    reader.say(
        &json!({ "type": "read", "conversation": direct, "message_id": acks[1]["message_id"] }),
    );
    assert_eq!(reads_to(&mut author, 3), 4);
    // A lower one is ignored; what follows shows that it was not just late.
    reader.say(&json!({ "type": "read", "conversation": direct, "seq": 2 }));
    reader.say(&json!({ "type": "delivered", "conversation": direct, "seq": 1 }));
    reader.say(&json!({ "type": "read", "conversation": direct, "seq": 4 }));
    let told = author.until("receipts");
    assert_eq!(
        (
            &told["receipts"][0]["delivered"],
            &told["receipts"][0]["read"]
        ),
        (&json!(4), &json!(4))
    );
    assert!(!author.has("receipts"));
    // The reader's next session is told how far the user has read.
    drop(reader);
    let mut back = Session::sign_in(server.address(), &ben.token);
    let (pages, _) = back.sync(&json!([{ "conversation": direct, "seq": 3 }]), 10);
    assert_eq!(pages[0]["read"], 4);
    // Beyond the head, and of no message at all.
    let beyond = back.ask(json!({ "type": "read", "conversation": direct, "seq": 99 }));
    assert_eq!(beyond["code"], "bad_cursor");
}

#[test]
fn json_bodies_come_as_they_were_sent() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let direct = server.direct(&anna, &ben);
    let (mut author, mut reader) = (server.session(&anna), server.session(&ben));
    let body = json!({ "poll": ["yes", "no"], "open": true, "deep": { "n": [1, 2.5, null] }, "text": "ü\n\"\u{2028}" });
    let send = author.number(&direct, "json", body.clone());
    assert_eq!(author.ask(send)["status"], "sent");
    let event = reader.event(&direct);
    assert_eq!((&event["kind"], &event["body"]), (&json!("json"), &body));
    let path = format!("/v1/conversations/{direct}/messages");
    let bot = json!({ "kind": "json", "body": body });
    assert_eq!(server.call("POST", &path, &anna.token, bot).status, 201);
    assert_eq!(reader.event(&direct)["body"], body);
    // Deeper than a reader could be shown: refused where it was sent, by both ways.
    let deep = (0..40).fold(json!(1), |inner, _| json!([inner]));
    let bot = json!({ "kind": "json", "body": deep });
    assert_eq!(server.call("POST", &path, &anna.token, bot).status, 400);
    let send = author.number(&direct, "json", deep);
    author.say(&send);
    assert_eq!(author.until("error")["code"], "bad_request");
}

#[test]
fn a_message_by_http_is_one_however_often_it_is_sent() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let group = server.group(&[&anna, &ben]);
    let path = format!("/v1/conversations/{group}/messages");
    let send = |body: &str, key: &str| {
        let body = json!({ "body": body });
        server.call_with("POST", &path, &ben.token, body, &[("Idempotency-Key", key)])
    };
    let mut reader = server.session(&anna);
    let (first, again) = (send("one", "a"), send("one", "a"));
    assert_eq!((first.status, again.status), (201, 200));
    assert_eq!(
        (&first.body["duplicate"], &again.body["duplicate"]),
        (&json!(false), &json!(true))
    );
    for same in ["seq", "ts", "message_id", "status"] {
        assert_eq!(first.body[same], again.body[same], "{same}");
    }
    // Eight at the same time are one.
    let replies: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..8).map(|_| scope.spawn(|| send("two", "b"))).collect();
        calls
            .into_iter()
            .map(|c| c.join().expect("asked"))
            .collect()
    });
    assert!(
        replies.iter().all(|r| r.body["seq"] == json!(3)),
        "{replies:?}"
    );
    assert_eq!(replies.iter().filter(|r| r.status == 201).count(), 1);
    let got = [reader.event(&group), reader.event(&group)];
    assert_eq!(
        [&got[0]["body"], &got[1]["body"]],
        [&json!("one"), &json!("two")]
    );
    assert_eq!(got[0]["message_id"], first.body["message_id"]);
    assert!(!reader.has("message"));

    // Removed: a repeat tells no more than that there is nothing here.
    let member = format!("/v1/conversations/{group}/members/{}", ben.id);
    let removed = server.call("DELETE", &member, &anna.token, Value::Null);
    assert_eq!(removed.status, 200);
    reader.event(&group);
    let after = send("one", "a");
    assert_eq!((after.status, after.code()), (404, "not_found"));
    assert!(!after.text.contains("message_id"));
}

#[test]
fn a_resend_under_another_id_changes_nothing_and_is_told_the_first() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let direct = server.direct(&anna, &ben);
    let (mut author, mut reader) = (server.session(&anna), server.session(&ben));
    let first = author.number(&direct, "text", json!("first"));
    let ack = author.ask(first.clone());
    assert_eq!(ack["seq"], 2);
    let mut other = first.clone();
    other["id"] = json!("00000000000000aa");
    other["body"] = json!("second");
    let again = author.ask(other);
    assert_eq!(
        (&again["status"], &again["duplicate"]),
        (&json!("sent"), &json!(true))
    );
    assert_eq!((&again["id"], &again["seq"]), (&first["id"], &json!(2)));
    assert_eq!(reader.event(&direct)["body"], "first");
    server.metric_becomes("chat_messages_conflicting_total", 1.0);
    // A gap is told, and what was missing is asked for.
    let mut ahead = first;
    ahead["counter"] = json!(5);
    ahead["previous"] = json!("00000000000000ab");
    let gap = author.ask(ahead);
    assert_eq!(
        (&gap["status"], &gap["counter"]),
        (&json!("gap"), &json!(1))
    );
}

#[test]
fn what_a_blocked_user_writes_comes_as_an_empty_event_until_the_block_is_lifted() {
    let mut server = Server::start();
    let (anna, tablet) = two_devices(&mut server);
    let [ben] = server.people();
    let direct = server.direct(&anna, &ben);
    let group = server.group(&[&anna, &ben]);
    let (mut blocker, mut blocked) = (server.session(&anna), server.session(&ben));
    let presence_of = |session: &mut Session, id: &str| {
        let answer = session.ask(json!({ "type": "watch", "users": [id] }));
        assert_eq!(answer["users"][0]["user"], json!(id));
        answer["users"][0]["state"].clone()
    };
    assert_eq!(presence_of(&mut blocked, &anna.id), "online");
    let path = format!("/v1/blocks/{}", ben.id);
    let set = |method| {
        assert_eq!(
            server.call(method, &path, &anna.token, json!({})).status,
            204
        )
    };
    let is_empty = |event: &Value| {
        assert!(!event.to_string().contains(&ben.id), "{event}");
        event["kind"] == "empty" && event["body"].as_str().unwrap_or_default().is_empty()
    };

    set("PUT");
    let told = blocked.until("presence");
    assert_eq!(told["users"][0]["state"], "offline");
    assert_eq!(presence_of(&mut blocked, &anna.id), "offline");
    assert_eq!(presence_of(&mut blocker, &ben.id), "online");
    blocked.say(&json!({ "type": "typing", "conversation": direct, "on": true }));
    let ack = blocked.send(&direct, "are you there?");
    assert_eq!((&ack["status"], &ack["seq"]), (&json!("sent"), &json!(2)));
    let event = blocker.event(&direct);
    assert_eq!(event["seq"], 2);
    assert!(is_empty(&event), "{event}");
    for (kind, seq) in [("delivered", 2), ("read", 2)] {
        blocker.say(&json!({ "type": kind, "conversation": direct, "seq": seq }));
    }
    // Groups are as they were; and what came by now would have come before this.
    blocked.send(&group, "hello all");
    assert_eq!(blocker.event(&group)["body"], "hello all");
    assert!(!blocker.has("typing"));
    // A device that comes later, history, and HTTP.
    let mut later = Session::sign_in(server.address(), &tablet.token);
    let (pages, _) = later.sync(&json!([{ "conversation": direct, "seq": 1 }]), 10);
    let page = pages
        .iter()
        .find(|page| page["conversation"] == json!(direct));
    assert!(is_empty(&page.expect("a page")["events"][0]));
    let history = later.ask(json!({ "type": "history", "conversation": direct, "after": 1 }));
    assert!(is_empty(&history["events"][0]));
    let list = format!("/v1/conversations/{direct}/messages?after=1");
    assert!(is_empty(&server.get(&list, &anna.token)["events"][0]));
    let own = server.get(&list, &ben.token);
    assert_eq!(own["events"][0]["body"], "are you there?");
    // The blocker may still write, and the answer is read.
    assert_eq!(blocker.send(&direct, "leave me")["seq"], 3);
    assert_eq!(blocked.event(&direct)["body"], "leave me");

    set("DELETE");
    assert_eq!(presence_of(&mut blocked, &anna.id), "online");
    assert!(!blocked.has("receipts"), "none passed the block");
    blocked.send(&direct, "thank you");
    assert_eq!(blocker.event(&direct)["body"], "thank you");
    assert_eq!(later.event(&direct)["body"], "leave me");
    assert_eq!(later.event(&direct)["body"], "thank you");
    blocker.say(&json!({ "type": "read", "conversation": direct, "seq": 4 }));
    blocked.find("a receipt", |u| {
        u["type"] == "receipts" && u["receipts"][0]["user"] == json!(anna.id)
    });
    let seen = server.get(&list, &anna.token);
    assert_eq!(seen["events"][0]["body"], "are you there?");
}
