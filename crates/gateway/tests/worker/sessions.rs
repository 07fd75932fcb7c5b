use std::io::Read;
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use tidings_gateway::worker::{CloseReason, WorkerConfig};
use tidings_gateway::ws::handshake::Policy;

use crate::support::*;

#[test]
fn a_session_opens_echoes_and_says_goodbye() {
    let server = start(config());
    let (mut client, token) = server.open();
    client.send("hello");
    assert_eq!(client.text(), "hello");
    assert_eq!(server.saw(), Seen::Message(token, "hello".into()));
    client.write(&client_frame(0x89, b"there?"));
    assert_eq!(client.frame(), (0x8a, b"there?".to_vec()));
    client.write(&client_frame(0x88, &4711u16.to_be_bytes()));
    assert_eq!(client.close_code(), 4711);
    assert_eq!(
        server.saw(),
        Seen::Close(token, CloseReason::Peer(Some(4711)))
    );
}

#[test]
fn the_stream_may_be_cut_anywhere() {
    let server = start(config());
    let mut bytes = UPGRADE.as_bytes().to_vec();
    bytes.extend(client_frame(0x01, "zer".as_bytes()));
    bytes.extend(client_frame(0x80, "legt €".as_bytes()));
    let mut client = server.connect();
    for byte in bytes {
        client.write(&[byte]);
    }
    client.head();
    assert_eq!(client.text(), "zerlegt €");
    // And all of it in one segment, frames behind the head included.
    let mut client = server.connect();
    client.write(&[UPGRADE.as_bytes(), &client_frame(0x81, b"early")].concat());
    client.head();
    assert_eq!(client.text(), "early");
}

#[test]
fn subprotocol_and_ticket_reach_the_handler() {
    let policy = Policy {
        subprotocols: vec!["a".into(), "b".into()],
        ..Policy::default()
    };
    let server = start(WorkerConfig { policy, ..config() });
    let mut client = server.connect();
    let request = UPGRADE
        .replace("/v1/ws", "/v1/ws?ticket=once")
        .replace("Host", "Sec-WebSocket-Protocol: x, b\r\nHost");
    client.write(request.as_bytes());
    assert!(client.head().contains("\r\nSec-WebSocket-Protocol: b\r\n"));
    match server.saw() {
        Seen::Open(_, subprotocol, ticket) => {
            assert_eq!((subprotocol, ticket.as_deref()), (Some(1), Some("once")));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn other_requests_are_handed_over_with_every_byte() {
    let server = start(config());
    let mut client = server.connect();
    let request = b"POST /v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
    client.write(request);
    let connection = server
        .handed_over
        .recv_timeout(DEADLINE)
        .expect("handed over");
    let mut received = connection.received;
    let mut stream: TcpStream = connection.stream;
    stream.set_nonblocking(false).expect("a setting");
    assert!(
        stream.nodelay().expect("a setting"),
        "inherited from the listener"
    );
    let mut rest = vec![0; request.len() - received.len()];
    stream.read_exact(&mut rest).expect("the rest");
    received.extend(rest);
    assert_eq!(received, request);
    assert_eq!(
        connection.peer,
        client.stream.local_addr().expect("an address")
    );
    assert_eq!(server.pool.connections(), 0, "no longer the worker's");
}

#[test]
fn a_closed_session_is_closed_for_its_handler_too() {
    let server = start(config());
    let (mut client, token) = server.open();
    client.send("close");
    assert_eq!(client.close_code(), 4003);
    assert!(matches!(server.saw(), Seen::Message(..)));
    assert_eq!(server.saw(), Seen::Close(token, CloseReason::Local(4003)));
    assert!(!server.run(move |io| io.is_open(token) || io.send(token, text_frame("late"))));
}

#[test]
fn a_slot_is_given_away_only_after_on_close_and_old_tokens_are_harmless() {
    let server = start(config());
    let mut old = Vec::new();
    for _ in 0..20 {
        let (client, token) = server.open();
        drop(client);
        assert_eq!(server.saw(), Seen::Close(token, CloseReason::Lost));
        old.push(token);
    }
    let (mut client, token) = server.open();
    assert!(
        old.iter().any(|old| old.slot() == token.slot()),
        "slots are used again"
    );
    let taken = server.run(move |io| {
        let taken = old
            .iter()
            .filter(|&&old| io.send(old, text_frame("not yours")))
            .count();
        old.iter().for_each(|&old| io.close(old, 4003, ""));
        io.send(token, text_frame("yours"));
        taken
    });
    assert_eq!(taken, 0);
    assert_eq!(client.text(), "yours");
}

#[test]
fn a_panic_ends_its_session_and_no_other() {
    let server = start(config());
    let (mut bystander, other) = server.open();
    for _ in 0..101 {
        assert!(!server.pool.is_unhealthy());
        let (mut client, token) = server.open();
        client.send("panic");
        assert_eq!(client.close_code(), 1011);
        assert_eq!(server.saw(), Seen::Close(token, CloseReason::Panicked));
    }
    assert!(server.pool.is_unhealthy(), "101 panics within a minute");
    bystander.send("still there");
    assert_eq!(bystander.text(), "still there");
    assert_eq!(server.saw(), Seen::Message(other, "still there".into()));
}

#[test]
fn a_paused_session_keeps_order_and_loses_nothing() {
    let server = start(config());
    let (mut client, token) = server.open();
    let mut bytes = client_frame(0x81, b"pause");
    for text in ["one", "two", "three"] {
        bytes.extend(client_frame(0x81, text.as_bytes()));
    }
    client.write(&bytes);
    assert_eq!(server.saw(), Seen::Message(token, "pause".into()));
    client.send("four");
    server.run(|_| ());
    assert!(server.seen.try_recv().is_err(), "nothing while paused");
    server.run(move |io| io.resume_reading(token));
    for text in ["one", "two", "three", "four"] {
        assert_eq!(server.saw(), Seen::Message(token, text.into()));
        assert_eq!(client.text(), text);
    }
}

#[test]
fn a_timer_calls_once() {
    let server = start(config());
    let (mut client, token) = server.open();
    client.send("timer");
    assert!(matches!(server.saw(), Seen::Message(..)));
    assert_eq!(server.saw(), Seen::Timer(token));
    client.send("after");
    assert_eq!(server.saw(), Seen::Message(token, "after".into()));
}

#[test]
fn frames_of_one_turn_leave_in_one_write() {
    let server = start(config());
    let mut clients: Vec<_> = (0..20).map(|_| server.open()).collect();
    let tokens: Vec<_> = clients.iter().map(|(_, token)| *token).collect();
    for frames in [1, 16] {
        let before = server.stats.writes.load(Ordering::Relaxed);
        let tokens = tokens.clone();
        server.run(move |io| {
            for i in 0..frames {
                let frame = text_frame(&format!("frame {i}"));
                tokens
                    .iter()
                    .for_each(|&token| assert!(io.send(token, frame.clone())));
            }
        });
        for (client, _) in &mut clients {
            for i in 0..frames {
                assert_eq!(client.text(), format!("frame {i}"));
            }
        }
        let after = server.stats.writes.load(Ordering::Relaxed);
        assert_eq!(after - before, 20, "{frames} frames a session");
    }
}

#[test]
fn a_draining_worker_serves_its_sessions_and_takes_no_others() {
    let server = start(config());
    let (mut client, _) = server.open();
    server.run(|io| io.begin_drain());
    // The listener closes at the end of the turn; the next job runs in a later one.
    server.run(|_| ());
    assert!(TcpStream::connect(server.address).is_err());
    client.send("still there");
    assert_eq!(client.text(), "still there");
}
