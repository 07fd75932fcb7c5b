//! What an operator sees: health, metrics, and the way out.

use serde_json::{Value, json};

use crate::support::Server;
use crate::support::http::request;

/// The names of the issue, with the type each must have.
const FIXED: [(&str, &str); 10] = [
    ("chat_connections_active", "gauge"),
    ("chat_connection_attempts", "counter"),
    ("chat_connection_failures", "counter"),
    ("chat_messages_sent", "counter"),
    ("chat_messages_delivered", "counter"),
    ("chat_messages_failed", "counter"),
    ("chat_message_latency", "histogram"),
    ("chat_sessions_active", "gauge"),
    ("chat_sessions_stale", "gauge"),
    ("chat_pending_messages", "gauge"),
];

#[test]
fn the_fixed_metrics_are_there_and_add_up() {
    let mut server = Server::start();
    let [anna, ben, cleo] = server.people();
    let group = server.group(&[&anna, &ben, &cleo]);
    let (mut author, mut reader) = (server.session(&anna), server.session(&ben));
    for n in 0..10 {
        author.send(&group, &n.to_string());
        reader.event(&group);
    }
    let send = author.number(&group, "json", json!({ "n": 11 }));
    author.ask(send);
    let path = format!("/v1/conversations/{group}/messages");
    server.post(&path, &cleo.token, json!({ "body": "by HTTP" }));
    reader.event(&group);
    let last = reader.event(&group);
    assert_eq!(last["body"], "by HTTP");
    reader.say(&json!({ "type": "delivered", "conversation": group, "seq": last["seq"] }));
    author.say(&json!({ "type": "delivered", "conversation": group, "seq": last["seq"] }));

    let page = server.metrics();
    assert!(page.trim_end().ends_with("# EOF"), "OpenMetrics ends so");
    for (name, kind) in FIXED {
        assert!(
            page.contains(&format!("# TYPE {name} {kind}\n")),
            "{name} {kind} in\n{page}"
        );
    }
    for line in page.lines().filter(|l| !l.starts_with('#')) {
        assert!(line.starts_with("chat_"), "{line}");
    }
    let buckets = page
        .lines()
        .filter(|l| l.starts_with("chat_message_latency_bucket{le=\""));
    let bounds: Vec<f64> = buckets
        .filter_map(|l| l.split('"').nth(1)?.parse().ok())
        .collect();
    assert!(bounds.is_sorted());
    let fine = bounds.iter().filter(|b| (0.05..=0.5).contains(*b)).count();
    assert!(fine >= 5, "fine around 50 to 500 ms: {bounds:?}");
    assert_eq!(server.metric("chat_connections_active"), 2.0);
    assert_eq!(server.metric("chat_sessions_active"), 2.0);
    assert_eq!(server.metric("chat_message_latency_count"), 11.0);
    // Each message once, whatever way it came, and the change of members is none.
    assert_eq!(
        server.metric("chat_messages_sent_total{type=\"text\"}"),
        11.0
    );
    assert_eq!(
        server.metric("chat_messages_sent_total{type=\"json\"}"),
        1.0
    );
    server.metric_becomes("chat_messages_delivered_total", 12.0);
    server.metric_becomes("chat_pending_messages", 0.0);
    assert_eq!(server.metric("chat_messages_failed_total"), 0.0);
    // A connection that never becomes a session is a failure.
    let reply = crate::bad_input::upgrade(server.address(), "/v1/ws?token=x", &[]);
    assert_eq!(reply.status, 400);
    server.metric_becomes("chat_connection_failures_total", 1.0);
    drop(author);
    server.metric_becomes("chat_sessions_active", 1.0);
}

#[test]
fn what_waits_for_somebody_away_is_marked_until_it_has_arrived() {
    let mut server = Server::start();
    let [anna, ben, cleo] = server.people();
    let mut author = server.session(&anna);
    let group = server.group(&[&anna, &ben, &cleo]);
    server.metric_becomes("chat_inbox_marks_total", 2.0);
    let mut reader = server.session(&ben);
    reader.say(&json!({ "type": "delivered", "conversation": group, "seq": 1 }));
    server.metric_becomes("chat_inbox_marks_cleared_total", 1.0);
    // Ben is here now; only Cleo isn't.
    author.send(&group, "one");
    assert_eq!(reader.event(&group)["body"], "one");
    server.metric_becomes("chat_inbox_marks_total", 3.0);
    assert_eq!(server.metric("chat_inbox_marks_dropped_total"), 0.0);
}

#[test]
fn health_and_metrics_are_on_the_admin_port_only() {
    let mut server = Server::start();
    let [anna] = server.people();
    for path in [
        "/metrics",
        "/health",
        "/health/live",
        "/health/ready",
        "/debug/pprof",
    ] {
        for token in ["", &anna.token, &server.key] {
            let reply = server.call("GET", path, token, Value::Null);
            assert_eq!((reply.status, reply.code()), (404, "not_found"), "{path}");
        }
    }
    let admin = |path: &str| request(server.admin(), "GET", path, "", Value::Null, &[]);
    assert_eq!(admin("/health/live").status, 200);
    let ready = admin("/health/ready");
    assert_eq!((ready.status, &ready.body["status"]), (200, &json!("ok")));
    for part in ["routing", "log", "store", "directory"] {
        assert_eq!(ready.body["parts"][part]["status"], "ok", "{part}");
    }
    for path in ["/health/live", "/health/ready"] {
        assert!(!admin(path).text.contains(env!("CARGO_PKG_VERSION")));
    }
    let version = server.call("GET", "/version", "", Value::Null);
    assert_eq!(version.body, json!({ "name": "tidings", "protocol": 1 }));
    assert!(server.admin().ip().is_loopback());
}
