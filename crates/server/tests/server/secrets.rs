//! What must stay unseen: in logs, in answers, on disk.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::program::{Alone, is_alone};
use crate::support::{Session, Setup, Shop};

#[test]
fn no_token_password_or_body_is_in_the_log_at_its_most_talkative() {
    let shop = Shop::new();
    let setup = Setup::new().env("RUST_LOG", "trace");
    let mut server = shop.setup(setup).start();
    let [ben] = server.people();
    let (password, wrong) = ("only Anna knows 4711", "only Eve tries 4711");
    let name = "AnnaTheUnlogged";
    let body = json!({ "name": name, "password": password, "device": "Annas telephone" });
    let anna = server.post("/v1/auth/register", "", body);
    let token = |of: &Value, which: &str| of[which].as_str().expect("a token").to_owned();
    let access = token(&anna, "access_token");
    let refused = server.call(
        "POST",
        "/v1/auth/login",
        "",
        json!({ "name": name, "password": wrong }),
    );
    assert_eq!(refused.status, 401);
    assert!(!refused.text.contains(wrong));
    let old = token(&anna, "refresh_token");
    let fresh = server.post("/v1/auth/refresh", "", json!({ "refresh_token": old }));
    let ticket = server.post("/v1/auth/ticket", &access, Value::Null);
    let ticket = token(&ticket, "ticket");
    let signed = shop.ed(&Shop::claims("a subject nobody logs"));
    let mut by_jwt = Session::sign_in(server.address(), &signed);
    by_jwt.drain();
    let direct = json!({ "kind": "direct", "user": ben.id });
    let direct = server.post("/v1/conversations", &access, direct);
    let direct = direct["id"].as_str().expect("an id").to_owned();
    let url = format!("ws://{}/v1/ws?ticket={ticket}", server.address());
    let stream = crate::support::http::connect(server.address());
    let mut session = Session::over(Box::new(stream), &url);
    session.ready = session.until("ready");
    session.sync(&json!([]), 10);
    let (text, by_http) = ("a body for Bens eyes", "another body for Bens eyes");
    session.send(&direct, text);
    let path = format!("/v1/conversations/{direct}/messages");
    server.post(&path, &ben.token, json!({ "body": by_http }));
    session.find("the message", |u| u["body"] == by_http);
    // What is refused is not repeated in the log either.
    session.say(&json!({ "type": "send", "conversation": direct, "body": text, "counter": "secret counter" }));
    session.until("error");
    let mut stranger = Session::connect(server.address());
    stranger.auth("tac_not-a-token-but-a-secret-still");
    stranger.until_closed();
    server.call(
        "GET",
        "/v1/me",
        "tac_not-a-token-but-a-secret-still",
        Value::Null,
    );
    // A refresh token used twice is worth a warning, and no more than that.
    server.call(
        "POST",
        "/v1/auth/refresh",
        "",
        json!({ "refresh_token": old }),
    );
    server.signal("TERM");
    assert!(server.ended().success());

    let log = server.stderr();
    assert!(log.lines().count() > 20, "there is a log: {log}");
    assert!(log.contains("DEBUG") || log.contains("TRACE"));
    for secret in [
        password,
        wrong,
        &access,
        &old,
        &token(&fresh, "access_token"),
        &token(&fresh, "refresh_token"),
        &ticket,
        &signed,
        &server.key,
        &ben.token,
        text,
        by_http,
        name,
        "Annas telephone",
        "a subject nobody logs",
        "secret counter",
        "not-a-token-but-a-secret",
    ] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn the_data_folder_is_its_owners_alone() {
    if !is_alone(Alone::Folder) {
        return;
    }
    let mut server = Setup::new().start();
    let [anna] = server.people();
    server.session(&anna);
    let data = server.folder().join("data");
    let mode = |path: &Path| {
        let metadata = std::fs::metadata(path).expect("it is there");
        metadata.permissions().mode() & 0o777
    };
    for folder in ["", "auth", "directory"] {
        let path = data.join(folder);
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
    }
    let mut keys = 0;
    for entry in std::fs::read_dir(data.join("auth")).expect("a folder") {
        let path = entry.expect("an entry").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        keys += 1;
    }
    assert!(keys > 0, "the server has a key");
    // In argv nothing secret can stand: every secret is in a file or printed once.
    let arguments = std::fs::read(format!("/proc/{}/cmdline", server.pid())).expect("Linux");
    let arguments = String::from_utf8_lossy(&arguments).into_owned();
    assert!(!arguments.contains("tak_"));
    // Only hashes of what lets somebody in are stored.
    let mut stored = Vec::new();
    for entry in std::fs::read_dir(data.join("directory")).expect("a folder") {
        stored.extend(std::fs::read(entry.expect("an entry").path()).unwrap_or_default());
    }
    let holds = |secret: &str| stored.windows(secret.len()).any(|w| w == secret.as_bytes());
    assert!(!holds(&server.key) && !holds(&anna.token));
    let secret = server.key.rsplit('_').next().expect("a part");
    assert!(!holds(secret));
}
