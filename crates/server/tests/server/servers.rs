//! A customer's own backend: its tokens, and what it does with an API key.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use sha2::Sha256;

use crate::support::shop::now;
use crate::support::{Server, Session, Setup, Shop};

fn user_of(server: &Server, token: &str) -> String {
    let me = server.get("/v1/me", token);
    me["id"].as_str().expect("an id").to_owned()
}

#[test]
fn tokens_of_configured_keys_make_their_subjects_users_at_first_sight() {
    let shop = Shop::new();
    let server = shop.setup(Setup::new()).start();
    let first = user_of(&server, &shop.ed(&Shop::claims("7")));
    // The same subject is the same user, whichever key signed and whenever.
    assert_eq!(user_of(&server, &shop.rsa(&Shop::claims("7"))), first);
    let mut later = Shop::claims("7");
    later["exp"] = json!(now() + 1200);
    let mut session = Session::sign_in(server.address(), &shop.ed(&later));
    assert_eq!(session.ready["user"], json!(first));
    assert_ne!(user_of(&server, &shop.ed(&Shop::claims("8"))), first);
    // Known to the backend by the same subject.
    let users = json!({ "users": [{ "issuer": "shop", "subject": "7" }, { "issuer": "shop", "subject": "9" }] });
    let made = server.post("/v1/users", &server.key, users.clone());
    assert_eq!(made["users"][0], json!(first));
    assert_eq!(server.post("/v1/users", &server.key, users), made);
    assert_eq!(
        user_of(&server, &shop.ed(&Shop::claims("9"))),
        made["users"][1].as_str().expect("an id")
    );
    // Revoked: the live session ends, and so do tokens made before.
    let began = Instant::now();
    let path = format!("/v1/users/{first}/revoke");
    server.call("POST", &path, &server.key, Value::Null);
    assert_eq!(session.until_closed(), 4002);
    assert!(began.elapsed() < Duration::from_secs(5));
    let refused = server.call("GET", "/v1/me", &shop.ed(&later), Value::Null);
    assert_eq!(refused.status, 401);
}

#[test]
fn tokens_that_confuse_others_are_refused_in_the_same_words() {
    let shop = Shop::new();
    let stranger = Shop::new();
    let server = shop.setup(Setup::new()).start();
    let claims = Shop::claims("7");
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let ed = |header: Value| shop.sign(Algorithm::EdDSA, &header, &claims);
    // Signed with the public key as if it were a shared secret.
    let message = format!(
        "{}.{}",
        part(&json!({ "alg": "HS256", "typ": "JWT", "kid": "rsa" })),
        part(&claims)
    );
    let mut mac = Hmac::<Sha256>::new_from_slice(shop.rsa_public().as_bytes()).expect("any length");
    mac.update(message.as_bytes());
    let confused = format!(
        "{message}.{}",
        URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
    );
    let with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        shop.ed(&claims)
    };
    let mut endless = claims.clone();
    endless.as_object_mut().expect("an object").remove("exp");
    let tokens = [
        ("another key", stranger.ed(&claims)),
        ("another RSA key", stranger.rsa(&claims)),
        (
            "no algorithm",
            format!(
                "{}.{}.",
                part(&json!({ "alg": "none", "typ": "JWT", "kid": "ed" })),
                part(&claims)
            ),
        ),
        ("HS256 by the public key", confused),
        (
            "the other algorithm",
            shop.sign(
                Algorithm::RS256,
                &json!({ "alg": "RS256", "typ": "JWT", "kid": "ed" }),
                &claims,
            ),
        ),
        (
            "an unknown kid",
            ed(json!({ "alg": "EdDSA", "typ": "JWT", "kid": "ed2" })),
        ),
        ("no kid", ed(json!({ "alg": "EdDSA", "typ": "JWT" }))),
        (
            "a jku",
            ed(json!({ "alg": "EdDSA", "typ": "JWT", "kid": "ed", "jku": "https://127.0.0.1/" })),
        ),
        (
            "an x5u",
            ed(json!({ "alg": "EdDSA", "typ": "JWT", "kid": "ed", "x5u": "https://127.0.0.1/" })),
        ),
        (
            "a crit",
            ed(json!({ "alg": "EdDSA", "typ": "JWT", "kid": "ed", "crit": ["exp"] })),
        ),
        (
            "another type",
            ed(json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": "ed" })),
        ),
        ("another issuer", with("iss", json!("other"))),
        ("another audience", with("aud", json!("other"))),
        ("from the future", with("iat", json!(now() + 600))),
        ("not yet", with("nbf", json!(now() + 600))),
        ("endless", shop.ed(&endless)),
        ("too long", with("x", json!("x".repeat(8192)))),
    ];
    let mut said: Option<Value> = None;
    for (what, token) in &tokens {
        let reply = server.call("GET", "/v1/me", token, Value::Null);
        assert!([401, 431].contains(&reply.status), "{what}: {reply:?}");
        if reply.status == 401 {
            let first = said.get_or_insert_with(|| reply.body.clone());
            assert_eq!(*first, reply.body, "{what}: no more is told");
        }
        let mut session = Session::connect(server.address());
        session.auth(token);
        // One that is too long isn't even looked at.
        if *what != "too long" {
            assert_eq!(session.until("error")["code"], "unauthorized", "{what}");
        }
        assert_eq!(session.until_closed(), 1008, "{what}");
    }
    let past = with("exp", json!(now() - 1));
    assert_eq!(server.call("GET", "/v1/me", &past, Value::Null).status, 401);
    let mut session = Session::connect(server.address());
    session.auth(&past);
    assert_eq!(session.until_closed(), 4001);
    // A good one, to know that the others failed for what was wrong with them.
    assert_eq!(
        server
            .call("GET", "/v1/me", &shop.ed(&claims), Value::Null)
            .status,
        200
    );
}

#[test]
fn a_session_ends_with_its_token_unless_the_same_user_brings_a_fresh_one() {
    let shop = Shop::new();
    let server = shop.setup(Setup::new()).start();
    let until = |subject: &str, seconds: u64| {
        let mut claims = Shop::claims(subject);
        claims["exp"] = json!(now() + seconds);
        shop.ed(&claims)
    };
    // The device's name tells the two apart.
    let mut ends = Session::sign_in(server.address(), &until("7", 3));
    let expires = ends.ready["expires"].as_u64().expect("a time");
    let mut stays = Session::sign_in(server.address(), &until("8", 3));
    let mut changes = Session::sign_in(server.address(), &until("9", 600));
    assert_eq!(
        ends.until("reauth_required")["expires"],
        ends.ready["expires"]
    );
    stays.until("reauth_required");
    stays.auth(&until("8", 600));
    assert!(stays.until("ready")["expires"].as_u64().expect("a time") > expires);
    changes.auth(&until("7", 600));
    assert_eq!(
        changes.until_closed(),
        4003,
        "another user on the same connection"
    );
    assert_eq!(ends.until_closed(), 4001);
    let late = now() * 1_000_000;
    assert!(
        late + 2_000_000 >= expires && late <= expires + 3_000_000,
        "{late} {expires}"
    );
    assert!(stays.drain().is_empty());
}

#[test]
fn an_api_key_makes_users_tokens_and_conversations_in_bulk() {
    let server = Server::start();
    let key = &server.key;
    let names: Vec<Value> = (0..1000)
        .map(|n| json!({ "display_name": format!("User {n}") }))
        .collect();
    let made = server.post("/v1/users", key, json!({ "users": names }));
    let users: Vec<String> = serde_json::from_value(made["users"].clone()).expect("ids");
    assert_eq!(users.len(), 1000);
    let tokens = server.post("/v1/tokens", key, json!({ "users": users[..50] }));
    let tokens = tokens["tokens"].as_array().expect("tokens").clone();
    assert_eq!(tokens.len(), 50);
    let token = tokens[49]["access_token"].as_str().expect("a token");
    assert_eq!(user_of(&server, token), users[49]);
    let shown = server.get(&format!("/v1/users?ids={}", users[3]), token);
    assert_eq!(shown["users"][0]["name"], "User 3");

    let body =
        json!({ "kind": "group", "title": "All", "creator": users[0], "members": users[1..500] });
    let group = server.post("/v1/conversations", key, body);
    let id = group["id"].as_str().expect("an id");
    let path = format!("/v1/conversations/{id}/members");
    server.post(&path, key, json!({ "users": users[500..] }));
    let (mut seen, mut next) = (0, String::new());
    loop {
        let page = server.get(&format!("{path}?limit=400{next}"), key);
        seen += page["members"].as_array().expect("members").len();
        match page["next"].as_str() {
            Some(after) => next = format!("&after={after}"),
            None => break,
        }
    }
    assert_eq!(seen, 1000);
    let path = format!("/v1/conversations/{id}/messages");
    let first = tokens[0]["access_token"].as_str().expect("a token");
    server.until_head(id, first, 2);
    let sent = server.post(&path, first, json!({ "body": "hello" }));
    assert_eq!(sent["seq"], 3, "two events made and filled it");
    let mut session = Session::sign_in(server.address(), token);
    let (pages, _) = session.sync(&json!([]), 10);
    assert_eq!(pages[0]["head"], 3);

    // More at once, and none of it without a key.
    let over: Vec<Value> = (0..1001).map(|_| json!({ "display_name": "x" })).collect();
    assert_eq!(
        server
            .call("POST", "/v1/users", key, json!({ "users": over }))
            .status,
        400
    );
    for bearer in [
        "",
        token,
        "tak_0000000000000000_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    ] {
        for path in ["/v1/users", "/v1/tokens"] {
            let body = json!({ "users": [], "user": users[0] });
            assert_eq!(server.call("POST", path, bearer, body).status, 401);
        }
        let revoke = format!("/v1/users/{}/revoke", users[0]);
        assert_eq!(
            server.call("POST", &revoke, bearer, Value::Null).status,
            401
        );
    }
    // A key is no user: it opens no session.
    let mut session = Session::connect(server.address());
    session.auth(key);
    assert_eq!(session.until("error")["code"], "unauthorized");
}
