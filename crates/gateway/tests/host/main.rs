//! Hosted workers with real sockets: from `auth` over a send to the other's event, and away.

mod outside;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outside::{Outside, ROOM, Tokens, gateway};
use tidings_core::ids::UserId;
use tidings_core::in_process::{InProcessPeers, InProcessRegistry};
use tidings_core::ports::directory::{Revocation, RevocationSubject};
use tidings_core::ports::registry::Registry;
use tidings_gateway::host::{self, Gateways, Host, Ports, UserCache};
use tidings_gateway::logic::{GatewayMetrics, Settings};
use tidings_gateway::worker::{Parts, Pool, PoolLimits, WorkerConfig, bind};
use tidings_gateway::ws::handshake::Policy;
use tidings_protocol::wire::{self, command::Command, update::Update};
use tidings_protocol::{CloseCode, Format, decode_server_frame, encode_client_frame};

/// Nothing here takes so long unless it is broken.
const DEADLINE: Duration = Duration::from_secs(20);

fn clock() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_micros() as u64
}

struct Server {
    address: SocketAddr,
    workers: Vec<JoinHandle<Host>>,
    gateways: Arc<Gateways>,
    registry: Arc<InProcessRegistry>,
    _runtime: tokio::runtime::Runtime,
}

fn start() -> Server {
    start_with(WorkerConfig::default().auth_ms)
}

/// Two workers behind one port. A client has so long to say `auth`.
fn start_with(auth_ms: u32) -> Server {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .expect("a runtime");
    let peers = Arc::new(InProcessPeers::new(1));
    let outside = Arc::new(Outside::new(Arc::clone(&peers)));
    runtime.spawn(Arc::clone(&outside).route());
    let registry = Arc::new(InProcessRegistry::new(clock));
    let gateways = Arc::new(Gateways::new(peers.clone()));
    let ports = Ports {
        log: outside.clone(),
        store: outside.clone(),
        directory: outside,
        registry: registry.clone(),
        peers: peers.clone(),
        local: peers,
        authenticator: Arc::new(Tokens),
        users: Arc::new(UserCache::new(100)),
        gateways: gateways.clone(),
        runtime: runtime.handle().clone(),
        clock,
    };
    let pool = Arc::new(Pool::new(PoolLimits::of(1_000)));
    let mut address: SocketAddr = ([127, 0, 0, 1], 0).into();
    let mut workers = Vec::new();
    for n in 1..=2 {
        let listener = bind(address).expect("a listener");
        address = listener.local_addr().expect("bound");
        let policy = Policy {
            subprotocols: host::subprotocols(),
            ..Policy::default()
        };
        let config = WorkerConfig {
            policy,
            tick_ms: 100,
            auth_ms,
            ..WorkerConfig::default()
        };
        let http: tidings_gateway::worker::HttpHandoff = Box::new(|_| {});
        let parts = Parts {
            config,
            pool: pool.clone(),
            listener,
            tls: None,
            http,
        };
        let settings = Settings {
            session_base: u64::from(n) << 30,
            auth_within: u64::from(auth_ms) * 1_000,
            ..Settings::new(gateway(n), 1)
        };
        let worker = host::worker(
            parts,
            settings,
            ports.clone(),
            Arc::new(GatewayMetrics::default()),
        );
        let worker = worker.expect("a worker");
        workers.push(std::thread::spawn(move || {
            worker.run().expect("epoll works")
        }));
    }
    Server {
        address,
        workers,
        gateways,
        registry,
        _runtime: runtime,
    }
}

struct Client {
    stream: TcpStream,
    format: Format,
    waiting: Vec<Update>,
}

impl Client {
    fn connect(server: &Server, format: Format) -> Self {
        let mut stream = TcpStream::connect(server.address).expect("connected");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let head = format!(
            "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {}\r\n\r\n",
            format.subprotocol()
        );
        stream.write_all(head.as_bytes()).expect("written");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("the answer");
            answer.push(byte[0]);
        }
        assert!(
            answer.starts_with(b"HTTP/1.1 101"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
        Client {
            stream,
            format,
            waiting: Vec::new(),
        }
    }

    fn sign_in(server: &Server, format: Format, token: &str) -> Self {
        let mut client = Client::connect(server, format);
        let auth = wire::Auth {
            token: token.to_owned(),
            device: String::new(),
            version: 1,
            oldest: 0,
        };
        client.command(Command::Auth(auth));
        client.until("ready", |u| matches!(u, Update::Ready(_)));
        client
    }

    fn login(server: &Server, format: Format, token: &str) -> Self {
        let mut client = Client::sign_in(server, format, token);
        client.command(Command::Sync(wire::Sync {
            epoch: 1,
            cursors: Vec::new(),
            page: 0,
        }));
        client.until(
            "sync_done",
            |u| matches!(u, Update::SyncDone(done) if done.complete && done.conversations == 1),
        );
        client
    }

    fn command(&mut self, command: Command) {
        let commands = vec![wire::Command {
            r#ref: 1,
            command: Some(command),
        }];
        let mut payload = Vec::new();
        encode_client_frame(self.format, &wire::ClientFrame { commands }, &mut payload);
        let opcode = if self.format == Format::Json {
            0x81
        } else {
            0x82
        };
        let mut frame = vec![opcode];
        match u8::try_from(payload.len()) {
            Ok(length @ 0..=125) => frame.push(0x80 | length),
            _ => {
                frame.push(0x80 | 126);
                let length = u16::try_from(payload.len()).expect("a small frame");
                frame.extend(length.to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.stream.write_all(&frame).expect("written");
    }

    fn frame(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).expect("a frame");
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.stream.read_exact(&mut length).expect("a length");
                usize::from(u16::from_be_bytes(length))
            }
            length => usize::from(length),
        };
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).expect("a payload");
        (head[0] & 15, payload)
    }

    /// Reads until an update is the one wanted.
    fn until(&mut self, what: &str, wanted: impl Fn(&Update) -> bool) -> Update {
        loop {
            while !self.waiting.is_empty() {
                let update = self.waiting.remove(0);
                if wanted(&update) {
                    return update;
                }
            }
            let (opcode, payload) = self.frame();
            assert_ne!(opcode, 8, "closed with {payload:?} before {what}");
            if opcode < 8 {
                let frame = decode_server_frame(self.format, &payload).expect("a frame of ours");
                self.waiting
                    .extend(frame.updates.into_iter().filter_map(|u| u.update));
            }
        }
    }

    /// Reads until the close frame.
    fn close_code(&mut self) -> u16 {
        loop {
            let (opcode, payload) = self.frame();
            if opcode == 8 {
                return u16::from_be_bytes([payload[0], payload[1]]);
            }
        }
    }
}

fn send(counter: u64) -> wire::Send {
    wire::Send {
        conversation: ROOM.0,
        sender: 77,
        grant: 1,
        counter,
        id: 100 + counter,
        previous: if counter == 1 { 0 } else { 99 + counter },
        kind: wire::Kind::Text.into(),
        body: "hello".into(),
        encoding: 0,
    }
}

#[test]
fn a_message_goes_from_socket_to_socket_and_a_drain_ends_it() {
    let server = start();
    let mut anna = Client::login(&server, Format::Proto, "1/10");
    let mut bert = Client::login(&server, Format::Json, "2/20");
    for counter in 1..=3 {
        anna.command(Command::Send(send(counter)));
        let ack = anna.until("ack", |u| matches!(u, Update::Ack(_)));
        assert!(
            matches!(ack, Update::Ack(ack) if ack.seq == counter + 1 && ack.counter == counter)
        );
        let event = bert.until("event", |u| matches!(u, Update::Event(_)));
        assert!(
            matches!(event, Update::Event(e) if e.seq == counter + 1 && &e.body[..] == b"hello")
        );
    }
    server.gateways.drain();
    for client in [&mut anna, &mut bert] {
        client.until("reconnect", |u| matches!(u, Update::Reconnect(_)));
        assert_eq!(client.close_code(), CloseCode::Restart.code());
    }
    for worker in server.workers {
        worker.join().expect("no panic");
    }
}

#[test]
fn who_said_auth_in_time_may_wait_longer_for_its_answer() {
    let server = start_with(500);
    // It says nothing, and the other one's token takes two seconds to check.
    let mut silent = Client::connect(&server, Format::Proto);
    Client::sign_in(&server, Format::Proto, "3/30");
    assert_eq!(silent.frame().0, 2, "`hello`");
    let (opcode, payload) = silent.frame();
    assert_eq!((opcode, &payload[..2]), (8, &1008u16.to_be_bytes()[..]));
}

#[test]
fn a_device_has_one_session_whichever_worker_has_it() {
    let server = start();
    let mut sessions: Vec<Client> = Vec::new();
    // The kernel spreads them over both workers.
    for _ in 0..12 {
        let client = Client::login(&server, Format::Proto, "1/10");
        for mut old in sessions.drain(..) {
            assert_eq!(old.close_code(), CloseCode::Replaced.code());
        }
        sessions.push(client);
    }
    server.gateways.revoke(&Revocation {
        revision: 1,
        subject: RevocationSubject::User(UserId(1)),
        not_before: clock() + 10_000_000,
    });
    assert_eq!(sessions[0].close_code(), CloseCode::Revoked.code());
    server.gateways.drain();
    for worker in server.workers {
        worker.join().expect("no panic");
    }
    let left = server
        ._runtime
        .block_on(server.registry.sessions_of(UserId(1)));
    assert_eq!(left.expect("it answers"), []);
}
