//! Conversations and their members, from the directory to the sessions.

use serde_json::{Value, json};

use crate::support::{Person, Server};

fn members(server: &Server, conversation: &str, person: &Person) -> Vec<(String, String)> {
    let path = format!("/v1/conversations/{conversation}/members");
    let page = server.get(&path, &person.token);
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let members = page["members"].as_array().expect("members");
    members
        .iter()
        .map(|m| (text(&m["user"]), text(&m["role"])))
        .collect()
}

fn role_of(server: &Server, conversation: &str, asker: &Person, of: &Person) -> Option<String> {
    let all = members(server, conversation, asker);
    all.into_iter().find(|m| m.0 == of.id).map(|m| m.1)
}

#[test]
fn a_direct_conversation_is_made_once_for_a_pair() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let open = |by: &Person, with: &Person| {
        let body = json!({ "kind": "direct", "user": with.id });
        server.call("POST", "/v1/conversations", &by.token, body)
    };
    // Both at the same moment.
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(|| open(&anna, &ben));
        let other = scope.spawn(|| open(&ben, &anna));
        (one.join().expect("asked"), other.join().expect("asked"))
    });
    let mut statuses = [one.status, other.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 201]);
    assert_eq!(one.body["id"], other.body["id"]);
    let id = one.body["id"].as_str().expect("an id");
    let mut session = server.session(&ben);
    assert_eq!(session.send(id, "hello")["seq"], 2, "one event made it");
    // Nobody is added to or leaves a conversation of two.
    let path = format!("/v1/conversations/{id}/leave");
    assert_eq!(
        server.call("POST", &path, &ben.token, Value::Null).status,
        400
    );
}

#[test]
fn a_group_is_joined_by_invitation_and_left() {
    let mut server = Server::start();
    let [anna, ben, cleo, dan] = server.people();
    let group = server.group(&[&anna, &ben]);
    let mut live = server.session(&ben);
    let mut invited = server.session(&cleo);
    assert_eq!(live.grant(&group), 1);
    let at = |rest: &str| format!("/v1/conversations/{group}/{rest}");
    let call = |method: &str, rest: &str, by: &Person, body: Value| {
        server.call(method, &at(rest), &by.token, body)
    };

    // A stranger can neither join nor look.
    assert_eq!(call("POST", "join", &cleo, Value::Null).status, 404);
    assert_eq!(call("GET", "members", &cleo, Value::Null).status, 404);
    // A plain member invites nobody.
    let users = json!({ "users": [cleo.id] });
    assert_eq!(call("POST", "members", &ben, users.clone()).status, 403);
    live.send(&group, "before Cleo came");
    assert_eq!(call("POST", "members", &anna, users).status, 200);
    let joined = live.event(&group);
    assert_eq!(joined["type"], "members");
    assert_eq!(
        joined["changes"],
        json!([{ "user": cleo.id, "role": "member" }])
    );
    // A live session of the newcomer is told without asking, and may write.
    let told = invited.event(&group);
    assert_eq!(
        (&told["seq"], &told["type"]),
        (&json!(3), &json!("members"))
    );
    assert_eq!(invited.grant(&group), 3);
    assert_eq!(invited.send(&group, "thanks")["seq"], 4);
    // What was said before the invitation is hidden, not missing.
    let page = invited.ask(
        json!({ "type": "history", "conversation": group, "after": 0, "before": 0, "limit": 10 }),
    );
    assert_eq!((&page["from"], &page["to"]), (&json!(1), &json!(4)));
    let seqs: Vec<&Value> = page["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(|e| &e["seq"])
        .collect();
    assert_eq!(seqs, [3, 4]);

    // Roles: an admin invites and removes, but makes no owners.
    let admin = call(
        "PUT",
        &format!("members/{}/role", ben.id),
        &anna,
        json!({ "role": "admin" }),
    );
    assert_eq!(admin.status, 200);
    assert_eq!(
        call("POST", "members", &ben, json!({ "users": [dan.id] })).status,
        200
    );
    let path = format!("members/{}/role", dan.id);
    assert_eq!(
        call("PUT", &path, &ben, json!({ "role": "owner" })).status,
        403
    );
    assert_eq!(
        call("DELETE", &format!("members/{}", anna.id), &ben, Value::Null).status,
        403
    );
    assert_eq!(
        call("DELETE", &format!("members/{}", cleo.id), &ben, Value::Null).status,
        200
    );
    // The removed one gets events up to that one and no further.
    let removed = invited.find("the removal", |u| {
        u["type"] == "members"
            && u["changes"] == json!([{ "user": cleo.id, "role": "none", "ended": 3 }])
    });
    live.send(&group, "without Cleo");
    let over = invited.number(&group, "text", json!("let me in"));
    assert_eq!(invited.ask(over)["status"], "over");
    assert!(
        invited
            .drain()
            .iter()
            .all(|u| u["seq"].as_u64() <= removed["seq"].as_u64())
    );

    // The owner leaves: somebody owns the rest.
    assert_eq!(call("POST", "leave", &anna, Value::Null).status, 200);
    assert_eq!(
        role_of(&server, &group, &ben, &ben).as_deref(),
        Some("owner")
    );
    assert_eq!(role_of(&server, &group, &ben, &anna), None);
    server.until_head(&group, &ben.token, 9);
    // Every change is an event: its versions are gapless for a member who was there all the time.
    let path = at("messages?after=0&limit=100");
    let all = server.get(&path, &ben.token);
    let versions: Vec<u64> = all["events"]
        .as_array()
        .expect("events")
        .iter()
        .filter_map(|e| e["version"].as_u64())
        .collect();
    assert_eq!(versions, (1..=versions.len() as u64).collect::<Vec<_>>());
    assert_eq!(versions.len(), 6);
}

#[test]
fn whoever_is_banned_is_removed_and_kept_out() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let body = json!({ "kind": "channel", "title": "News", "join_role": "member" });
    let made = server.post("/v1/conversations", &anna.token, body);
    let channel = made["id"].as_str().expect("an id");
    let at = |rest: &str| format!("/v1/conversations/{channel}/{rest}");
    let join = || server.call("POST", &at("join"), &ben.token, Value::Null);
    assert_eq!(join().status, 200);
    let ban = at(&format!("bans/{}", ben.id));
    let banned = server.call("PUT", &ban, &anna.token, Value::Null);
    assert!(banned.status < 300, "{banned:?}");
    assert_eq!(join().status, 403);
    assert_eq!(
        server.call("DELETE", &ban, &anna.token, Value::Null).status,
        204
    );
    assert_eq!(join().status, 200);
}

#[test]
fn a_reader_of_a_channel_reads_from_its_start_and_cannot_write() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let body = json!({ "kind": "channel", "title": "News" });
    let channel = server.made(&anna, body);
    let mut author = server.session(&anna);
    author.send(&channel, "first");
    let mut reader = server.session(&ben);
    let path = format!("/v1/conversations/{channel}/join");
    assert_eq!(
        server.call("POST", &path, &ben.token, Value::Null).status,
        200
    );
    let came = reader.find("the join", |u| {
        u["type"] == "members" && u["conversation"] == json!(channel)
    });
    assert_eq!(
        came["changes"],
        json!([{ "user": ben.id, "role": "reader" }])
    );
    author.send(&channel, "second");
    assert_eq!(reader.event(&channel)["body"], "second");
    let (pages, done) = reader.sync(&json!([]), 100);
    assert_eq!(done["complete"], true);
    let page = &pages[0];
    assert_eq!(
        (&page["role"], &page["grant"], &page["visible_from"]),
        (&json!("reader"), &json!(0), &json!(1))
    );
    assert_eq!(page["events"].as_array().expect("events").len(), 4);

    // By hand under a guessed grant, and over HTTP.
    let send = json!({ "type": "send", "conversation": channel, "sender": reader.sender, "grant": 3, "counter": 1,
        "id": "00000000000000aa", "kind": "text", "body": "me too" });
    assert_eq!(reader.ask(send)["status"], "over");
    let path = format!("/v1/conversations/{channel}/messages");
    let sent = server.call("POST", &path, &ben.token, json!({ "body": "me too" }));
    assert_eq!(sent.status, 404);
    assert_eq!(author.send(&channel, "third")["seq"], 5);
}

#[test]
fn a_conversation_is_made_once_however_often_it_is_asked_for() {
    let mut server = Server::start();
    let [anna] = server.people();
    let make = |key: &str| {
        let body = json!({ "kind": "group", "title": "Lunch" });
        server.call_with(
            "POST",
            "/v1/conversations",
            &anna.token,
            body,
            &[("Idempotency-Key", key)],
        )
    };
    let (first, repeat, other) = (make("one"), make("one"), make("two"));
    assert_eq!((first.status, repeat.status, other.status), (201, 200, 201));
    assert_eq!(first.body["id"], repeat.body["id"]);
    assert_ne!(first.body["id"], other.body["id"]);
    let listed = server.get("/v1/conversations", &anna.token);
    assert_eq!(listed["conversations"].as_array().expect("a list").len(), 2);
}
