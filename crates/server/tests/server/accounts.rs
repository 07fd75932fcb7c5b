//! People: signing up, in, on and out, and what ends a live session.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Person, Reply, Server, Session};

const PASSWORD: &str = "correct horse battery 7";

fn sign_up(server: &Server, name: &str) -> Value {
    let body = json!({ "name": name, "password": PASSWORD, "device": "laptop" });
    let reply = server.call("POST", "/v1/auth/register", "", body);
    assert_eq!(reply.status, 201, "{reply:?}");
    reply.body
}

fn login(server: &Server, name: &str, password: &str) -> Reply {
    let body = json!({ "name": name, "password": password, "device": "phone" });
    server.call("POST", "/v1/auth/login", "", body)
}

fn refresh(server: &Server, tokens: &Value) -> Reply {
    let body = json!({ "refresh_token": tokens["refresh_token"] });
    server.call("POST", "/v1/auth/refresh", "", body)
}

fn access(tokens: &Value) -> &str {
    tokens["access_token"].as_str().expect("a token")
}

fn me(server: &Server, token: &str) -> Reply {
    server.call("GET", "/v1/me", token, Value::Null)
}

/// The session is closed with 4002, and soon.
fn is_revoked(session: &mut Session, since: Instant) {
    assert_eq!(session.until_closed(), 4002);
    assert!(since.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_account_is_made_and_signed_in_on_two_devices() {
    let server = Server::start();
    let laptop = sign_up(&server, "Anna");
    assert!((890..=900).contains(&laptop["expires_in"].as_u64().expect("seconds")));
    let phone = login(&server, "anna", PASSWORD);
    assert_eq!(phone.status, 200);
    assert_eq!(phone.body["user"], laptop["user"]);
    assert_ne!(phone.body["device"], laptop["device"]);
    let me = me(&server, access(&laptop));
    assert_eq!((me.status, &me.body["name"]), (200, &json!("Anna")));
    assert_eq!(me.body["device"], laptop["device"]);
    let mut session = Session::sign_in(server.address(), access(&laptop));
    assert_eq!(session.ready["user"], laptop["user"]);
    assert_eq!(session.ready["device"], laptop["device"]);

    // Removing the phone ends its tokens and its sessions, and the laptop doesn't notice.
    let mut other = Session::sign_in(server.address(), access(&phone.body));
    let path = format!(
        "/v1/devices/{}",
        phone.body["device"].as_str().expect("an id")
    );
    let began = Instant::now();
    let removed = server.call("DELETE", &path, access(&laptop), Value::Null);
    assert_eq!(removed.status, 204);
    is_revoked(&mut other, began);
    assert_eq!(self::me(&server, access(&phone.body)).status, 401);
    assert!(session.drain().is_empty());
}

#[test]
fn a_refresh_token_rotates_and_its_second_use_ends_the_whole_sign_in() {
    let server = Server::start();
    let first = sign_up(&server, "anna");
    let second = refresh(&server, &first);
    assert_eq!(second.status, 200);
    assert_ne!(second.body["refresh_token"], first["refresh_token"]);
    assert_eq!(second.body["user"], first["user"]);
    let mut session = Session::sign_in(server.address(), access(&second.body));

    let began = Instant::now();
    assert_eq!(refresh(&server, &first).status, 401, "used twice");
    assert_eq!(
        refresh(&server, &second.body).status,
        401,
        "its family is gone"
    );
    assert_eq!(me(&server, access(&second.body)).status, 401);
    is_revoked(&mut session, began);
    assert_eq!(login(&server, "anna", PASSWORD).status, 200);
}

#[test]
fn logging_out_closes_the_live_session_of_this_sign_in_only() {
    let server = Server::start();
    let laptop = sign_up(&server, "anna");
    let phone = login(&server, "anna", PASSWORD).body;
    let mut here = Session::sign_in(server.address(), access(&laptop));
    let mut there = Session::sign_in(server.address(), access(&phone));
    let began = Instant::now();
    let out = server.call("POST", "/v1/auth/logout", access(&laptop), Value::Null);
    assert_eq!(out.status, 204);
    is_revoked(&mut here, began);
    assert_eq!(me(&server, access(&laptop)).status, 401);
    assert_eq!(refresh(&server, &laptop).status, 401);
    assert!(there.drain().is_empty());
}

#[test]
fn a_new_password_ends_every_sign_in_before_it() {
    let server = Server::start();
    let laptop = sign_up(&server, "anna");
    let mut session = Session::sign_in(server.address(), access(&laptop));
    let change = |old: &str, new: &str| {
        let body = json!({ "old": old, "new": new });
        server.call("POST", "/v1/auth/password", access(&laptop), body)
    };
    let new = "staple battery correct 8";
    assert_eq!(change("wrong horse battery 7", new).status, 401);
    let began = Instant::now();
    assert_eq!(change(PASSWORD, new).status, 204);
    is_revoked(&mut session, began);
    assert_eq!(me(&server, access(&laptop)).status, 401);
    assert_eq!(login(&server, "anna", PASSWORD).status, 401);
    assert_eq!(login(&server, "anna", new).status, 200);
}

#[test]
fn a_disabled_account_is_out_until_it_is_enabled() {
    let server = Server::start();
    let anna = sign_up(&server, "anna");
    let mut session = Session::sign_in(server.address(), access(&anna));
    let path = format!(
        "/v1/users/{}/disabled",
        anna["user"].as_str().expect("an id")
    );
    let began = Instant::now();
    let disabled = server.call("PUT", &path, &server.key, Value::Null);
    assert_eq!(disabled.status, 204);
    is_revoked(&mut session, began);
    assert_eq!(login(&server, "anna", PASSWORD).status, 403);
    assert_eq!(refresh(&server, &anna).status, 401);
    assert_eq!(
        server
            .call("DELETE", &path, &server.key, Value::Null)
            .status,
        204
    );
    assert_eq!(login(&server, "anna", PASSWORD).status, 200);
}

#[test]
fn an_operators_revocation_closes_all_of_a_users_sessions() {
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let phone = server.on_device(&anna.id, "phone");
    let mut sessions = [server.session(&anna), server.session(&phone)];
    let mut other = server.session(&ben);
    let began = Instant::now();
    let path = format!("/v1/users/{}/revoke", anna.id);
    assert_eq!(
        server.call("POST", &path, &server.key, Value::Null).status,
        204
    );
    for session in &mut sessions {
        is_revoked(session, began);
    }
    assert!(other.drain().is_empty());
    let mut again = Session::connect(server.address());
    again.auth(&anna.token);
    assert_eq!(again.until("error")["code"], "unauthorized");
    assert_eq!(again.until_closed(), 4002);
}

#[test]
fn the_newer_session_of_a_device_stays() {
    let mut server = Server::start();
    let [anna] = server.people();
    // Enough of them that two workers take some each.
    let mut sessions: Vec<Session> = Vec::new();
    for _ in 0..6 {
        sessions.push(server.session(&anna));
        if let [.., before, _] = &mut sessions[..] {
            assert_eq!(before.until_closed(), 4005);
        }
    }
    assert!(sessions.pop().expect("the last").drain().is_empty());
}

#[test]
fn a_ticket_opens_one_session_and_nothing_else_may_stand_in_the_url() {
    let mut server = Server::start();
    let [anna] = server.people();
    let address = server.address();
    let url = |query: &str| format!("ws://{address}/v1/ws?{query}");
    let connect = |query: &str| {
        Session::over(
            Box::new(crate::support::http::connect(address)),
            &url(query),
        )
    };
    let made = server.post("/v1/auth/ticket", &anna.token, Value::Null);
    let ticket = made["ticket"].as_str().expect("a ticket");
    let mut first = connect(&format!("ticket={ticket}"));
    assert_eq!(first.until("ready")["user"], json!(anna.id));
    let mut second = connect(&format!("ticket={ticket}"));
    assert_eq!(second.until("error")["code"], "unauthorized");
    assert_eq!(second.until_closed(), 1008);
    assert!(first.drain().is_empty());
    for query in [
        format!("token={}", anna.token),
        format!("access_token={}", anna.token),
    ] {
        let reply = crate::bad_input::upgrade(address, &format!("/v1/ws?{query}"), &[]);
        assert_eq!(reply.status, 400, "{query}");
    }
}

#[test]
fn what_can_be_no_account_is_refused_with_the_reason() {
    let server = Server::start();
    sign_up(&server, "Luke");
    let register = |name: &str, password: &str| {
        let body = json!({ "name": name, "password": password });
        let reply = server.call("POST", "/v1/auth/register", "", body);
        (reply.status, reply.code().to_owned())
    };
    let bad = (400, "bad_request".to_owned());
    for (name, password) in [
        ("ben", "short"),
        ("ben", "password"),
        ("", PASSWORD),
        ("two words", PASSWORD),
        ("\u{200b}\u{0}\u{202e}", PASSWORD),
    ] {
        assert_eq!(register(name, password), bad, "{name:?} {password:?}");
    }
    assert_eq!(register("ben", &"long".repeat(300)), bad);
    assert_eq!(register(&"b".repeat(65), PASSWORD), bad);
    // The same name in another case, with something invisible, or of letters that look the same.
    for name in ["lUKE", "lu\u{200d}ke", "1uke", "Iuke"] {
        assert_eq!(register(name, PASSWORD), (409, "name_taken".to_owned()));
    }
    // Not JSON by its type: a form of another site could send that.
    let form = "POST /v1/auth/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}";
    let stream = crate::support::http::connect(server.address());
    assert_eq!(
        crate::support::http::raw(stream, form.as_bytes()).status,
        400
    );
}

#[test]
fn strangers_learn_nothing_from_a_refused_login_and_are_slowed_down() {
    let server = Server::start();
    sign_up(&server, "anna");
    let wrong = login(&server, "anna", "wrong horse battery 7");
    let unknown = login(&server, "nobody", "wrong horse battery 7");
    assert_eq!(wrong.status, 401);
    assert_eq!(
        (wrong.status, &wrong.body),
        (unknown.status, &unknown.body),
        "both look the same"
    );
    // Ten wrong ones of an account that doesn't exist are slowed down like those of one that does.
    for name in ["anna", "nobody"] {
        for _ in 1..10 {
            assert_eq!(login(&server, name, "wrong horse battery 7").status, 401);
        }
        let slow = login(&server, name, "wrong horse battery 7");
        assert_eq!((slow.status, slow.code()), (429, "rate_limited"));
        let after: u64 = slow
            .header("retry-after")
            .and_then(|v| v.parse().ok())
            .expect("seconds");
        assert!((1..=900).contains(&after));
        assert!(slow.body["retry_after_ms"].as_u64().expect("ms") > 0);
    }
    // A flood of sign-ins costs the chat nothing: who is signed in goes on.
    sign_up(&server, "ben");
}

#[test]
fn users_are_found_by_their_exact_name_and_a_hundred_times_an_hour() {
    let server = Server::start();
    let anna = sign_up(&server, "anna");
    let ben = sign_up(&server, "Ben");
    let search = |name: &str| {
        let body = json!({ "name": name });
        server.call("POST", "/v1/users/search", access(&anna), body)
    };
    assert_eq!(search("ben").body["users"][0]["id"], ben["user"]);
    for not_found in ["be", "b%", "_en", "ben' or '1'='1"] {
        let reply = search(not_found);
        assert_eq!(
            (reply.status, &reply.body["users"]),
            (200, &json!([])),
            "{not_found}"
        );
    }
    for _ in 5..100 {
        assert_eq!(search("nobody").status, 200);
    }
    let over = search("ben");
    assert_eq!((over.status, over.code()), (429, "rate_limited"));
    assert!(over.header("retry-after").is_some());
}

#[test]
fn sign_up_can_be_closed() {
    let server = crate::support::Setup::new()
        .set("auth.sign_up=closed")
        .start();
    let body = json!({ "name": "anna", "password": PASSWORD });
    let reply = server.call("POST", "/v1/auth/register", "", body);
    assert_eq!((reply.status, reply.code()), (403, "forbidden"));
}

/// Tokens of the first and of a second device of somebody new.
pub fn two_devices(server: &mut Server) -> (Person, Person) {
    let [first] = server.people();
    let second = server.on_device(&first.id, "second");
    (first, second)
}
