//! What strangers and clients send that they shouldn't, over the wire.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::http::{connect, raw};
use crate::support::program::{Alone, is_alone};
use crate::support::{Person, Reply, Server, Session, Setup};

/// The head of an upgrade with these further headers.
fn head(path: &str, headers: &[(&str, &str)]) -> String {
    let mut head = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head + "\r\n"
}

/// The head of the answer to these bytes.
fn answer(address: SocketAddr, bytes: &[u8]) -> Reply {
    let mut stream = connect(address);
    stream.write_all(bytes).expect("the server reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Reply {
        status: status.expect("a status"),
        head,
        body: Value::Null,
        text: String::new(),
    }
}

/// Asks for an upgrade of this path with these further headers; what the server says.
pub fn upgrade(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Reply {
    answer(address, head(path, headers).as_bytes())
}

#[test]
fn pages_of_other_origins_get_no_session_whatever_cookies_they_bring() {
    let server = Setup::new()
        .set("server.origins=https://app.example.com")
        .start();
    let status = |origin: &str| {
        let headers = [("Origin", origin), ("Cookie", "session=of+somebody")];
        upgrade(server.address(), "/v1/ws", &headers).status
    };
    for origin in [
        "null",
        "",
        "https://evil.example",
        "https://app.example.com.evil.io",
        "https://app.example.com:444",
        "http://app.example.com",
        "HTTPS://APP.EXAMPLE.COM",
        "https://app.example.com/",
        "https://localhost",
    ] {
        assert_eq!(status(origin), 403, "{origin:?}");
    }
    assert_eq!(status("https://app.example.com"), 101);
    assert_eq!(status("http://localhost"), 101, "its own page");
    let native = upgrade(server.address(), "/v1/ws", &[("Cookie", "session=x")]);
    assert_eq!(native.status, 101, "native clients send none");
    assert_eq!(server.metric("chat_sessions_active"), 0.0);
    server.metric_becomes("chat_connections_active", 0.0);
}

#[test]
fn requests_that_break_a_rule_get_the_status_that_says_which() {
    let server = Server::start();
    let address = server.address();
    let good = head("/v1/ws", &[]);
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let version = answer(
        address,
        good.replace("Version: 13", "Version: 12").as_bytes(),
    );
    assert_eq!(version.status, 426);
    assert_eq!(version.header("sec-websocket-version"), Some("13"));
    let long = format!("X: {}\r\n{key}", "x".repeat(9_000));
    let many: String = (0..65).map(|n| format!("X-{n}: 1\r\n")).collect();
    for (what, text, status) in [
        ("no key", good.replace(key, ""), 400),
        ("a short key", good.replace("dGhlIHNhbXBsZSBub25jZQ", "c2hvcnQ"), 400),
        ("HTTP/1.0", good.replace("HTTP/1.1", "HTTP/1.0"), 400),
        ("a POST", good.replace("GET", "POST"), 400),
        ("a body", good.replace(key, &format!("{key}Content-Length: 4\r\n")) + "body", 400),
        ("a long header", good.replace(key, &long), 431),
        ("many headers", good.replace(key, &format!("{many}{key}")), 431),
        (
            "two lengths of a body",
            "POST /v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}".into(),
            400,
        ),
    ] {
        assert_eq!(answer(address, text.as_bytes()).status, status, "{what}");
    }
    if is_alone(Alone::Bytes) {
        for (what, text) in [
            (
                "bare line feeds",
                "GET /version HTTP/1.1\nHost: x\n\n\r\n\r\n",
            ),
            (
                "a folded header",
                "GET /version HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
            ),
        ] {
            assert_eq!(answer(address, text.as_bytes()).status, 400, "{what}");
        }
    }
}

#[test]
fn whoever_says_nothing_is_sent_away_after_five_seconds() {
    let server = Setup::new()
        .set("limits.unauthenticated_per_address=2")
        .start();
    let began = Instant::now();
    let mut silent = Session::connect(server.address());
    let _other = Session::connect(server.address());
    silent.until("hello");
    // No third stranger of this address meanwhile.
    let refused = upgrade(server.address(), "/v1/ws", &[]);
    assert!([429, 503].contains(&refused.status), "{refused:?}");
    assert_eq!(silent.until_closed(), 1008);
    let waited = began.elapsed();
    assert!(
        (Duration::from_millis(4_500)..Duration::from_secs(9)).contains(&waited),
        "{waited:?}"
    );
}

#[test]
fn nothing_is_done_for_whoever_has_not_signed_in() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let direct = server.direct(&anna, &ben);
    let auth = json!({ "type": "auth", "token": anna.token, "version": 1 });
    for (what, frame) in [
        ("a ping", json!({ "type": "ping", "ref": 1 })),
        (
            "history",
            json!({ "type": "history", "conversation": direct, "limit": 1 }),
        ),
        ("an unknown type", json!({ "type": "open sesame" })),
        ("something before auth", json!([{ "type": "ping" }, auth])),
    ] {
        let mut session = Session::connect(server.address());
        session.until("hello");
        session.say(&frame);
        assert_eq!(session.until_closed(), 1008, "{what}");
        assert!(!session.has("pong") && !session.has("ready"), "{what}");
    }
    let mut session = Session::connect(server.address());
    session.say_raw("{\"type\":");
    assert_eq!(session.until_closed(), 1008);
    let mut session = Session::connect(server.address());
    session.say(&json!({ "type": "auth", "token": anna.token, "version": 99 }));
    assert_eq!(session.until_closed(), 4010);
}

/// A masked frame of a client; the mask is of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        n @ 0..=125 => bytes.push(0x80 | n as u8),
        n => {
            bytes.push(0x80 | 126);
            bytes.extend((n as u16).to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

#[test]
fn broken_frames_end_the_session_with_the_code_that_says_why() {
    let mut server = Server::start();
    let [anna] = server.people();
    let huge = [&[0x81, 0xFF][..], &(1u64 << 63).to_be_bytes(), &[0; 4]].concat();
    let large = [&[0x81, 0xFF][..], &300_000u64.to_be_bytes(), &[0; 4]].concat();
    let fragments: Vec<u8> = (0..1_100)
        .flat_map(|n| frame(if n == 0 { 0x01 } else { 0x00 }, b""))
        .collect();
    for (what, bytes, code) in [
        ("not masked", vec![0x81, 2, b'{', b'}'], 1002),
        ("compressed", frame(0xC1, b"{}"), 1002),
        ("a reserved opcode", frame(0x83, b"{}"), 1002),
        ("a fragmented ping", frame(0x09, b""), 1002),
        ("a long ping", frame(0x89, &[0; 126]), 1002),
        ("a continuation of nothing", frame(0x80, b"{}"), 1002),
        (
            "a text within a text",
            [frame(0x01, b"{"), frame(0x81, b"{}")].concat(),
            1002,
        ),
        ("2^63 bytes", huge, 1009),
        ("300,000 bytes", large, 1009),
        ("text that is none", frame(0x81, &[b'"', 0xC0, 0xAF]), 1007),
        (
            "half a surrogate pair",
            frame(0x81, &[0xED, 0xA0, 0x80]),
            1007,
        ),
        (
            "a close code nobody may send",
            frame(0x88, &1005u16.to_be_bytes()),
            1002,
        ),
        ("half a close code", frame(0x88, &[3]), 1002),
        ("a message of the other type", frame(0x82, b"{}"), 1003),
        ("an endless message", fragments, 1009),
    ] {
        let mut session = Session::sign_in(server.address(), &anna.token);
        session.write(&bytes);
        let closed = session.until_closed();
        // Both limits stand in the way of a thousand empty fragments; either may be met first.
        let also = if what == "an endless message" {
            4008
        } else {
            code
        };
        assert!([code, also].contains(&closed), "{what}: {closed}");
    }
}

#[test]
fn malformed_commands_are_refused_and_the_connection_stays() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let direct = server.direct(&anna, &ben);
    let mut session = server.session(&anna);
    let send = |change: &str, value: Value| {
        let mut send = json!({ "type": "send", "ref": 9, "conversation": direct, "sender": "00000000000000aa", "grant": 1,
            "counter": 1, "id": "00000000000000ab", "kind": "text", "body": "x" });
        send[change] = value;
        send.to_string()
    };
    let deep = format!(
        r#"{{"type":"ping","ref":9,"x":{}1{}}}"#,
        "[".repeat(40),
        "]".repeat(40)
    );
    let fields: String = (0..80).map(|n| format!(r#","k{n}":1"#)).collect();
    let watched: Vec<String> = (0..1001).map(|n| format!("{n:016x}")).collect();
    let cursors: Vec<Value> = (0..4097)
        .map(|n| json!({ "conversation": format!("{n:016x}"), "seq": 1 }))
        .collect();
    let pings: Vec<Value> = (0..257).map(|_| json!({ "type": "ping" })).collect();
    for (what, text, code) in [
        ("a short id", send("id", json!("12345678")), "bad_request"),
        ("no id", send("id", Value::Null), "bad_request"),
        ("counter 0", send("counter", json!(0)), "bad_request"),
        (
            "a counter of text",
            send("counter", json!("1")),
            "bad_request",
        ),
        (
            "2^64",
            send("counter", json!(1.8446744073709552e19)),
            "bad_request",
        ),
        (
            "sender 0",
            send("sender", json!("0000000000000000")),
            "bad_request",
        ),
        (
            "an unknown kind",
            send("kind", json!("edit")),
            "bad_request",
        ),
        (
            "a server's kind",
            send("kind", json!("members")),
            "bad_request",
        ),
        (
            "a long text",
            send("body", json!("x".repeat(16_385))),
            "too_long",
        ),
        (
            "an unknown type",
            r#"{"type":"fly","ref":9}"#.into(),
            "unknown_type",
        ),
        ("no type", r#"{"ref":9}"#.into(), "bad_request"),
        ("not JSON", r#"{"type":"#.into(), "bad_request"),
        ("NaN", r#"{"type":"ping","ref":NaN}"#.into(), "bad_request"),
        (
            "a key twice",
            r#"{"type":"ping","type":"ping"}"#.into(),
            "bad_request",
        ),
        ("deep JSON", deep, "bad_request"),
        (
            "many fields",
            format!(r#"{{"type":"ping"{fields}}}"#),
            "bad_request",
        ),
        (
            "many watched users",
            json!({ "type": "watch", "users": watched }).to_string(),
            "too_long",
        ),
        (
            "many cursors",
            json!({ "type": "sync", "epoch": 1, "cursors": cursors }).to_string(),
            "too_long",
        ),
        ("many commands", json!(pings).to_string(), "too_long"),
    ] {
        session.say_raw(&text);
        let error = session.until("error");
        assert_eq!(error["code"], code, "{what}: {error}");
        assert!(session.drain().is_empty(), "{what}");
    }
    // An unknown field is of a later version and ignored; so is what only the server says.
    session.say_raw(r#"{"type":"ping","ref":9,"colour":{"a":[1]}}"#);
    assert_eq!(session.until("pong")["ref"], 9);
    let mut forged = session.number(&direct, "text", json!("mine"));
    forged["user"] = json!(ben.id);
    forged["seq"] = json!(77);
    forged["ts"] = json!(1);
    forged["message_id"] = json!("00000000000000000000000000000000");
    let ack = session.ask(forged);
    assert_eq!((&ack["status"], &ack["seq"]), (&json!("sent"), &json!(2)));
    let path = format!("/v1/conversations/{direct}/messages?after=1");
    let page = server.get(&path, &ben.token);
    let event = &page["events"][0];
    assert_eq!(
        (&event["user"], &event["seq"]),
        (&json!(anna.id), &json!(2))
    );
    assert_eq!(event["message_id"], ack["message_id"]);
    assert!(event["ts"].as_u64().expect("a time") > 1);
    // A receipt is one's own, whoever else it names.
    session.say(&json!({ "type": "read", "conversation": direct, "seq": 2, "user": ben.id }));
    let mut other = server.session(&ben);
    let (pages, _) = other.sync(&json!([]), 10);
    assert_eq!(pages[0]["read"], 0);
    // A grant nobody gave, and a cursor beyond the head.
    let mut unknown = session.number(&direct, "text", json!("x"));
    unknown["grant"] = json!(99);
    assert_ne!(session.ask(unknown)["status"], "sent");
    let beyond = json!({ "type": "delivered", "conversation": direct, "seq": 99 });
    assert_eq!(session.ask(beyond)["code"], "bad_cursor");
}

#[test]
fn a_conversation_of_others_looks_like_one_that_does_not_exist() {
    let mut server = Server::start();
    let [anna, ben, eve] = server.people();
    let group = server.group(&[&anna, &ben]);
    let mut author = server.session(&anna);
    let said = author.send(&group, "a secret");
    let nothing = "0123456789abcdef".to_owned();
    let mut session = server.session(&eve);
    let mut told: Vec<Vec<Value>> = Vec::new();
    for conversation in [&group, &nothing] {
        let mut answers = Vec::new();
        for command in [
            json!({ "type": "history", "limit": 10 }),
            json!({ "type": "history", "before": 3, "limit": 10 }),
            json!({ "type": "read", "seq": 1 }),
            json!({ "type": "read", "message_id": said["message_id"] }),
            json!({ "type": "delivered", "seq": 1 }),
            json!({ "type": "typing", "on": true }),
        ] {
            let mut command = command;
            command["conversation"] = json!(conversation);
            let mut answer = session.ask(command.clone());
            assert_eq!(answer["code"], "forbidden", "{command}: {answer}");
            for own in ["ref", "conversation"] {
                answer.as_object_mut().expect("an object").remove(own);
            }
            answers.push(answer);
        }
        // The verdict on a send is of the same words, too.
        let send = json!({ "type": "send", "conversation": conversation, "sender": session.sender, "grant": 1,
            "counter": 1, "id": "00000000000000aa", "kind": "text", "body": "let me in" });
        let mut answer = session.ask(send);
        assert_eq!(answer["status"], "over");
        for own in ["ref", "conversation", "message_id"] {
            answer.as_object_mut().expect("an object").remove(own);
        }
        answers.push(answer);
        let at = |rest: &str| format!("/v1/conversations/{conversation}{rest}");
        for (method, path, body) in [
            ("GET", at(""), Value::Null),
            ("PATCH", at(""), json!({ "title": "mine" })),
            ("GET", at("/members"), Value::Null),
            ("POST", at("/members"), json!({ "users": [eve.id] })),
            ("POST", at("/join"), Value::Null),
            ("POST", at("/leave"), Value::Null),
            ("DELETE", at(&format!("/members/{}", ben.id)), Value::Null),
            (
                "PUT",
                at(&format!("/members/{}/role", ben.id)),
                json!({ "role": "reader" }),
            ),
            ("PUT", at(&format!("/bans/{}", ben.id)), Value::Null),
            ("GET", at("/messages"), Value::Null),
            ("POST", at("/messages"), json!({ "body": "let me in" })),
        ] {
            let reply = server.call(method, &path, &eve.token, body);
            assert_eq!(reply.status, 404, "{method} {path}: {reply:?}");
            answers.push(reply.body);
        }
        told.push(answers);
    }
    for (theirs, none) in told[0].iter().zip(&told[1]) {
        assert_eq!(theirs, none);
    }
    // A cursor in it brings nothing, and what is said there is not heard.
    let (pages, _) = session.sync(&json!([{ "conversation": group, "seq": 1 }]), 10);
    assert!(
        pages
            .iter()
            .all(|p| p["events"].as_array().is_none_or(Vec::is_empty)),
        "{pages:?}"
    );
    author.send(&group, "another secret");
    let rest = session.drain();
    assert!(!json!(rest).to_string().contains("secret"));
    assert!(!author.has("typing") && !author.has("receipts"));
}

#[test]
fn the_page_takes_no_script_but_its_own_and_bodies_stay_what_they_are() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let direct = server.direct(&anna, &ben);
    let (mut author, mut reader) = (server.session(&anna), server.session(&ben));
    for body in [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[click](javascript:alert(1))",
        "data:text/html;base64,PHNjcmlwdD4=",
        "<svg onload=alert(1)>",
        "&lt;b&gt; \" ' ` ${7*7} {{7*7}}",
        "nul \u{0}, bidi \u{202e}txt.exe, zalgo z\u{300}\u{301}\u{302}\u{303}\u{304}\u{305}",
    ] {
        author.send(&direct, body);
        assert_eq!(reader.event(&direct)["body"], json!(body));
    }
    let page = server.call("GET", "/", "", Value::Null);
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.contains("default-src 'self'"));
    assert!(policy.contains("require-trusted-types-for 'script'"));
    assert!(!policy.contains("unsafe"));
    for script in page.text.split("<script").skip(1) {
        let (attributes, rest) = script.split_once('>').expect("a whole tag");
        assert!(attributes.contains("src="), "inline: {attributes}");
        assert!(rest.trim_start().starts_with("</script>"));
    }
    assert!(!page.text.contains(" onclick=") && !page.text.contains("javascript:"));
    // Everything else carries the same headers, whatever its status.
    for (path, token) in [
        ("/v1/me", anna.token.as_str()),
        ("/v1/me", ""),
        ("/nowhere", ""),
    ] {
        let reply = server.call("GET", path, token, Value::Null);
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert!(reply.header("strict-transport-security").is_none());
    }
}

#[test]
fn names_and_titles_are_values_and_nothing_else() {
    let mut server = Setup::new().env("RUST_LOG", "debug").start();
    let attack = "x'); drop table users; --";
    let lines = "two\r\nSet-Cookie: a=b\r\n\r\n{\"level\":\"ERROR\"}";
    let users = json!({ "users": [{ "display_name": attack }, { "issuer": attack, "subject": "' or 1=1 --" },
        { "display_name": lines }] });
    let made = server.post("/v1/users", &server.key, users);
    let ids: Vec<String> = serde_json::from_value(made["users"].clone()).expect("ids");
    let people: Vec<Person> = ids.iter().map(|id| server.on_device(id, attack)).collect();
    let path = format!("/v1/users?ids={}", ids.join(","));
    let shown = server.get(&path, &people[0].token);
    let name_of = |id: &str| {
        let users = shown["users"].as_array().expect("users");
        let user = users.iter().find(|u| u["id"] == json!(id)).expect("there");
        user["display_name"].as_str().expect("a name").to_owned()
    };
    assert_eq!(name_of(&ids[0]), attack);
    let name = name_of(&ids[2]);
    assert!(!name.contains(['\r', '\n']), "{name:?}");
    let devices = server.get("/v1/devices", &people[0].token);
    assert_eq!(devices["devices"][0]["name"], attack);
    for title in [attack, lines, "%s%n{}${jndi:ldap://127.0.0.1/}"] {
        let body = json!({ "kind": "group", "title": title, "members": [ids[1]] });
        let key = [("Idempotency-Key", attack)];
        let reply = server.call_with("POST", "/v1/conversations", &people[0].token, body, &key);
        assert!([201, 409].contains(&reply.status), "{reply:?}");
        assert!(reply.header("set-cookie").is_none());
    }
    let listed = server.get("/v1/conversations", &people[1].token);
    assert_eq!(listed["conversations"][0]["title"], attack);
    // In a path, in a query, in a header.
    for path in [
        "/v1/conversations/1%27%20or%201=1/messages",
        "/v1/users?ids=1%27%20or%201=1",
        "/v1/devices/%0d%0aSet-Cookie:%20a=b",
        "/%0d%0aSet-Cookie:%20a=b",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
    ] {
        let reply = server.call("GET", path, &people[0].token, Value::Null);
        assert!([400, 404, 405].contains(&reply.status), "{path}: {reply:?}");
        assert!(reply.header("set-cookie").is_none(), "{path}");
    }
    let [again] = server.people();
    assert_eq!(
        server
            .call("GET", "/v1/me", &again.token, Value::Null)
            .status,
        200
    );
    // Whatever was said, each line of the log is one whole record of the server's own.
    let log = server.stderr();
    for line in log.lines().filter(|l| !l.is_empty()) {
        let record: Value = serde_json::from_str(line).expect("a record a line");
        assert!(record["timestamp"].is_string(), "{line}");
    }
}

#[test]
fn a_server_asked_for_nonsense_goes_on() {
    let mut server = Server::start();
    let address = server.address();
    for nonsense in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\0\0\0\0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = connect(address);
        stream.write_all(nonsense).expect("written");
        stream
            .shutdown(std::net::Shutdown::Write)
            .expect("half closed");
        let mut answer = Vec::new();
        _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{nonsense:?}");
    }
    let reply = raw(
        connect(address),
        b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(reply.status, 200);
    let [anna] = server.people();
    server.session(&anna).drain();
}
