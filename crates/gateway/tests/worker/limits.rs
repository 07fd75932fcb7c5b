use tidings_gateway::worker::{CloseReason, PoolLimits, WorkerConfig};

use crate::support::*;

#[test]
fn refused_requests_get_a_status_and_the_end_of_the_connection() {
    let server = start(config());
    for (request, status) in [
        (UPGRADE.replace(": 13", ": 12"), "426"),
        (UPGRADE.replace("Sec-WebSocket-Key", "X"), "400"),
        (UPGRADE.replace("HTTP/1.1", "HTTP/1.0"), "400"),
        (UPGRADE.replace("/v1/ws", "/v1/ws?token=secret"), "400"),
        (
            UPGRADE.replace("Host", "Origin: https://evil.io\r\nHost"),
            "403",
        ),
        (
            UPGRADE.replace(
                "Host",
                "Content-Length: 1\r\nTransfer-Encoding: chunked\r\nA",
            ),
            "400",
        ),
        (UPGRADE.replace("\r\n", "\n"), "400"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(9000)), "431"),
    ] {
        let mut client = server.connect();
        client.write(request.as_bytes());
        let response = client.head();
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{response}"
        );
        client.assert_ended();
    }
    assert!(server.seen.try_recv().is_err(), "no session was touched");
}

#[test]
fn broken_frames_are_answered_by_their_close_code() {
    let server = start(config());
    let huge = [&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0][..], &[0; 4]].concat();
    for (bytes, code) in [
        (vec![0x81, 0x01, b'x'], 1002),
        (vec![0xc1], 1002),
        (huge, 1009),
        (client_frame(0x81, b"ok \xff and more")[..11].to_vec(), 1007),
        (client_frame(0x88, &999u16.to_be_bytes()), 1002),
    ] {
        let (mut client, token) = server.open();
        client.write(&bytes);
        assert_eq!(client.close_code(), code, "{bytes:x?}");
        assert_eq!(
            server.saw(),
            Seen::Close(token, CloseReason::Protocol(code))
        );
    }
}

#[test]
fn a_head_that_does_not_come_is_cut() {
    let server = start(WorkerConfig {
        handshake_ms: 30,
        ..config()
    });
    for bytes in ["", "GET /v1/ws HTTP/1.1\r\nHost: a\r\nX-Slow: "] {
        let mut client = server.connect();
        client.write(bytes.as_bytes());
        client.assert_ended();
    }
    assert!(server.seen.try_recv().is_err());
}

#[test]
fn a_frame_without_progress_ends_the_session() {
    let server = start(WorkerConfig {
        slow_frame_ms: 30,
        ..config()
    });
    for bytes in [
        &client_frame(0x81, b"never whole")[..9],
        &client_frame(0x01, b"a fragment and no more"),
        &[0x81],
    ] {
        let (mut client, token) = server.open();
        client.write(bytes);
        assert_eq!(client.close_code(), 1008);
        assert_eq!(server.saw(), Seen::Close(token, CloseReason::Policy(1008)));
    }
}

#[test]
fn whoever_does_not_authenticate_is_sent_away() {
    let server = start(WorkerConfig {
        auth_ms: 30,
        ..config()
    });
    let (mut proven, token) = server.open();
    proven.send("auth");
    assert_eq!(server.saw(), Seen::Message(token, "auth".into()));
    let (mut client, token) = server.open();
    assert_eq!(client.close_code(), 1008);
    assert_eq!(server.saw(), Seen::Close(token, CloseReason::Policy(1008)));
    proven.send("still there");
    assert_eq!(proven.text(), "still there");
}

#[test]
fn connections_over_a_limit_are_refused_before_any_work() {
    let limits = PoolLimits {
        connections_max: 5,
        unauthenticated_max: 3,
        unauthenticated_per_ip_max: 2,
        exempt_loopback: false,
    };
    let server = start_with(
        WorkerConfig {
            auth_ms: 60_000,
            ..config()
        },
        limits,
        None,
    );
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(server.open());
    }
    let mut refused = server.connect();
    let response = refused.head();
    assert!(response.starts_with("HTTP/1.1 429 "), "{response}");
    assert!(response.contains("\r\nRetry-After: "));
    refused.assert_ended();

    // Whoever has shown who it is makes room, until the whole is full.
    for _ in 0..3 {
        let (client, token) = &mut clients[0];
        client.send("auth");
        assert_eq!(server.saw(), Seen::Message(*token, "auth".into()));
        clients.push(server.open());
        clients.rotate_left(1);
    }
    let mut refused = server.connect();
    let response = refused.head();
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert!(response.contains("\r\nRetry-After: 1\r\n"), "{response}");
    refused.assert_ended();

    // One of the two that are still unauthenticated.
    let (client, token) = clients.remove(1);
    drop(client);
    assert_eq!(server.saw(), Seen::Close(token, CloseReason::Lost));
    assert_eq!(server.pool.connections(), 4);
    clients.push(server.open());
}

#[test]
fn a_flood_of_frames_is_cut_at_the_rate() {
    for (name, frame) in [
        ("pings", client_frame(0x89, b"")),
        ("empty messages", client_frame(0x82, b"")),
        ("one-byte fragments", client_frame(0x00, b"x")),
    ] {
        let server = start(WorkerConfig {
            frames_per_second: 1,
            frame_burst: 50,
            ..config()
        });
        let (mut client, token) = server.open();
        let mut flood = if name.contains("fragments") {
            client_frame(0x01, b"")
        } else {
            vec![]
        };
        let before = usize::from(!flood.is_empty());
        for _ in before..50 {
            flood.extend_from_slice(&frame);
        }
        client.write(&flood);
        client.write(&frame);
        loop {
            match server.saw() {
                Seen::Message(..) => {}
                other => {
                    assert_eq!(
                        other,
                        Seen::Close(token, CloseReason::Policy(4008)),
                        "{name}"
                    );
                    break;
                }
            }
        }
        let code = std::iter::repeat_with(|| client.frame()).find(|(first, _)| *first == 0x88);
        assert_eq!(
            code.map(|(_, payload)| payload[..2].to_vec()),
            Some(vec![0x0f, 0xa8])
        );
    }
}
