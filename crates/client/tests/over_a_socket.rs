//! The tokio client against the exact server behind a real WebSocket, on loopback.

mod common;

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use common::{CONVERSATION, ME, Server, send_of};
use futures_util::{SinkExt, StreamExt};
use tidings_client::{
    AppEvent, Client, ClientEvent, Config, EventStream, Mode, Options, Store, Token,
};
use tidings_protocol::wire::{
    Hello, Kind, Limits, Ready, ServerFrame, Update as Envelope, command, update::Update,
};
use tidings_protocol::{Format, decode_client_frame, encode_server_frame};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// Serves one connection until the client leaves, or until `drop_after` sends were appended
/// whose acks are never written.
async fn serve(stream: TcpStream, server: Arc<Mutex<Server>>, drop_after: usize) {
    let mut format = Format::Proto;
    #[allow(clippy::result_large_err)] // The library's own type.
    let accept = |request: &Request, mut response: Response| {
        let name = request.headers()["sec-websocket-protocol"].clone();
        format = Format::negotiate(name.to_str().expect("ascii")).expect("a known format");
        response
            .headers_mut()
            .insert("sec-websocket-protocol", name);
        Ok(response)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, accept)
        .await
        .expect("an upgrade");
    let mut appended = 0;
    let limits = Limits {
        sends_per_second: 1000,
        ..Limits::default()
    };
    let hello = Hello {
        heartbeat_ms: 25_000,
        limits: Some(limits),
        ..Hello::default()
    };
    let mut out = vec![Envelope {
        r#ref: 0,
        update: Some(Update::Hello(hello)),
    }];
    loop {
        if !out.is_empty() {
            let mut bytes = Vec::new();
            let frame = ServerFrame {
                updates: std::mem::take(&mut out),
            };
            encode_server_frame(format, &frame, &mut bytes);
            let message = match format {
                Format::Proto => Message::binary(bytes),
                Format::Json => Message::Text(Utf8Bytes::try_from(bytes).expect("UTF-8")),
            };
            socket.send(message).await.expect("room");
        }
        let payload = match socket.next().await {
            Some(Ok(Message::Binary(payload))) => payload,
            Some(Ok(Message::Text(text))) => text.into(),
            _ => return,
        };
        let frame = decode_client_frame(format, &payload).expect("a frame of ours");
        for command in frame.commands {
            let mut server = server.lock().expect("no panic elsewhere");
            let r#ref = command.r#ref;
            let mut push = |update| {
                out.push(Envelope {
                    r#ref,
                    update: Some(update),
                })
            };
            if let Some(send) = send_of(&command) {
                // The client measures the age of its sender id by this.
                let since = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
                server.now = since.as_micros() as u64;
                let (ack, _) = server.append(ME, send);
                appended += 1;
                if appended > drop_after {
                    return;
                }
                push(Update::Ack(ack));
                continue;
            }
            match command.command {
                Some(command::Command::Auth(auth)) => {
                    assert_eq!(auth.token, "a token");
                    let ready = Ready {
                        user: ME,
                        device: 1,
                        session: 1,
                        epoch: 1,
                        ..Ready::default()
                    };
                    push(Update::Ready(ready));
                }
                Some(command::Command::Sync(s)) => server.sync(ME, &s).into_iter().for_each(push),
                Some(command::Command::History(h)) => {
                    push(Update::HistoryPage(server.history(ME, &h)));
                }
                _ => {}
            }
        }
    }
}

async fn listen(server: Arc<Mutex<Server>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("ws://{}/v1/ws", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        // The first connection breaks after its third send was appended and not acknowledged.
        let mut drop_after = 2;
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, server.clone(), drop_after));
            drop_after = usize::MAX;
        }
    });
    url
}

fn options(url: &str, store: Store, format: Format) -> Options {
    Options {
        url: url.into(),
        token: Token::fixed("a token"),
        store,
        config: Config {
            format,
            mode: Mode::Complete,
            ..Config::default()
        },
        local_address: Some("127.0.0.1".parse().expect("an address")),
    }
}

/// Reads events until `done` seqs of the first conversation were given and `sent` messages sent.
async fn read(events: &mut EventStream, mut seen: u64, done: u64, mut sent: usize) {
    while seen < done || sent > 0 {
        match events.next().await.expect("the client lives") {
            ClientEvent::App(AppEvent::Message(event) | AppEvent::Members(event))
                if event.conversation == CONVERSATION =>
            {
                assert_eq!(event.seq, seen + 1, "every seq once and in order");
                seen = event.seq;
            }
            ClientEvent::App(AppEvent::Sent { .. }) => sent -= 1,
            ClientEvent::App(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn a_day_in_the_life(format: Format) {
    let server = Arc::new(Mutex::new(Server::new(1)));
    let url = listen(server.clone()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path()).expect("a new store");
    let (client, mut events) = Client::connect(options(&url, store, format));
    let long = (0..1500)
        .map(|n| n.to_string())
        .collect::<Vec<_>>()
        .join(" ");
    for text in ["one", "two", long.as_str(), "four", "five"] {
        client
            .send(CONVERSATION, Kind::Text, text.to_owned())
            .await
            .expect("taken");
    }
    read(&mut events, 0, 6, 5).await;
    client.stop().await.expect("ends");
    assert!(matches!(
        client.typing(CONVERSATION, true).await,
        Err(tidings_client::ClientError::Ended)
    ));

    let bodies: Vec<usize> = {
        let server = server.lock().expect("no panic elsewhere");
        server.conversations[&CONVERSATION].events[1..]
            .iter()
            .map(|e| e.body.len())
            .collect()
    };
    assert_eq!((bodies[0], bodies[1], bodies[3], bodies[4]), (3, 3, 4, 4));
    // Binary frames carry long bodies compressed; JSON ones don't.
    assert_eq!(bodies[2] < long.len(), format == Format::Proto);

    // The next start goes on behind what was seen, and nothing is sent twice.
    let store = Store::open(folder.path()).expect("the lock is free");
    assert!(
        store
            .saved()
            .lanes
            .values()
            .all(|lane| lane.queue.is_empty())
    );
    let (client, mut events) = Client::connect(options(&url, store, format));
    client
        .send(CONVERSATION, Kind::Text, "six")
        .await
        .expect("taken");
    read(&mut events, 6, 7, 1).await;
    client.stop().await.expect("ends");
}

#[tokio::test]
async fn a_client_survives_a_broken_connection_and_a_restart_in_protobuf() {
    let life = a_day_in_the_life(Format::Proto);
    tokio::time::timeout(std::time::Duration::from_secs(60), life)
        .await
        .expect("not stuck");
}

#[tokio::test]
async fn a_client_survives_a_broken_connection_and_a_restart_in_json() {
    let life = a_day_in_the_life(Format::Json);
    tokio::time::timeout(std::time::Duration::from_secs(60), life)
        .await
        .expect("not stuck");
}
