//! A worker on a thread of its own, a handler that does what clients tell it, and clients made of
//! a bare socket.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tidings_gateway::tls::Tls;
use tidings_gateway::worker::{
    CloseReason, HandedOver, Handler, Io, OpenInfo, Parts, Pool, PoolLimits, Stats, Token, Waker,
    Worker, WorkerConfig, bind,
};
use tidings_gateway::ws::{Opcode, server_frame, unmask};

/// Nothing in these tests takes so long unless it is broken.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// What the handler saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Open(Token, Option<u8>, Option<String>),
    Message(Token, String),
    Close(Token, CloseReason),
    Overflow(Token),
    Drained(Token),
    Timer(Token),
}

/// A job for the worker's thread.
pub type Job = Box<dyn FnOnce(&mut Io) + Send>;

struct Script {
    seen: Sender<Seen>,
    jobs: Arc<Mutex<Vec<Job>>>,
    stop: Arc<AtomicBool>,
}

impl Script {
    fn saw(&self, seen: Seen) {
        // The test may be over.
        let _ = self.seen.send(seen);
    }
}

impl Handler for Script {
    fn on_open(&mut self, _: &mut Io, token: Token, info: &OpenInfo<'_>) {
        self.saw(Seen::Open(
            token,
            info.subprotocol,
            info.ticket.map(str::to_owned),
        ));
    }

    fn on_message(&mut self, io: &mut Io, token: Token, opcode: Opcode, payload: &mut [u8]) {
        let text = String::from_utf8_lossy(payload).into_owned();
        match text.as_str() {
            "panic" => panic!("as the client wished"),
            "auth" => io.authenticated(token),
            "close" => io.close(token, 4003, "as you wish"),
            "pause" => io.pause_reading(token),
            "timer" => io.arm_timer(token, io.tick_after(1)),
            _ => {
                io.send(token, server_frame(opcode, payload));
            }
        }
        self.saw(Seen::Message(token, text));
    }

    fn on_close(&mut self, _: &mut Io, token: Token, reason: CloseReason) {
        self.saw(Seen::Close(token, reason));
    }

    fn on_overflow(&mut self, io: &mut Io, token: Token) {
        assert!(io.send(token, server_frame(Opcode::Text, b"lagging")));
        self.saw(Seen::Overflow(token));
    }

    fn on_drained(&mut self, _: &mut Io, token: Token) {
        self.saw(Seen::Drained(token));
    }

    fn on_timer(&mut self, _: &mut Io, token: Token) {
        self.saw(Seen::Timer(token));
    }

    fn on_wake(&mut self, io: &mut Io) {
        let jobs = std::mem::take(&mut *self.jobs.lock().expect("no job panics"));
        for job in jobs {
            job(io);
        }
        if self.stop.load(Ordering::Acquire) {
            io.stop();
        }
    }
}

pub struct Server {
    pub address: SocketAddr,
    pub pool: Arc<Pool>,
    pub stats: Arc<Stats>,
    pub seen: Receiver<Seen>,
    pub handed_over: Receiver<HandedOver>,
    jobs: Arc<Mutex<Vec<Job>>>,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

/// Ticks of 10 ms, so that short deadlines are kept closely.
pub fn config() -> WorkerConfig {
    WorkerConfig {
        tick_ms: 10,
        auth_ms: 0,
        ..WorkerConfig::default()
    }
}

pub fn start(config: WorkerConfig) -> Server {
    start_with(
        config,
        PoolLimits {
            exempt_loopback: true,
            ..PoolLimits::of(10_000)
        },
        None,
    )
}

pub fn start_with(config: WorkerConfig, limits: PoolLimits, tls: Option<Tls>) -> Server {
    let listener = bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let address = listener.local_addr().expect("an address");
    let pool = Arc::new(Pool::new(limits));
    let (to_seen, seen) = channel();
    let (to_handed_over, handed_over) = channel();
    let (jobs, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
    let handler = Script {
        seen: to_seen,
        jobs: Arc::clone(&jobs),
        stop: Arc::clone(&stop),
    };
    let http = Box::new(move |connection| drop(to_handed_over.send(connection)));
    let parts = Parts {
        config,
        pool: Arc::clone(&pool),
        listener,
        tls,
        http,
    };
    let worker = Worker::new(parts, handler).expect("a worker");
    let (waker, stats) = (worker.waker(), worker.stats());
    let thread = std::thread::spawn(move || drop(worker.run().expect("epoll works")));
    let thread = Some(thread);
    Server {
        address,
        pool,
        stats,
        seen,
        handed_over,
        jobs,
        stop,
        waker,
        thread,
    }
}

impl Server {
    /// Runs `job` on the worker's thread and returns what it returns.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce(&mut Io) -> T + Send + 'static) -> T {
        let (to, from) = channel();
        self.run_detached(move |io| drop(to.send(job(io))));
        from.recv_timeout(DEADLINE)
            .expect("the worker runs the job")
    }

    /// Runs `job` on the worker's thread, some time.
    pub fn run_detached(&self, job: impl FnOnce(&mut Io) + Send + 'static) {
        self.jobs.lock().expect("no job panics").push(Box::new(job));
        self.waker.wake();
    }

    pub fn saw(&self) -> Seen {
        self.seen
            .recv_timeout(DEADLINE)
            .expect("the handler sees something")
    }

    /// Connects and upgrades.
    pub fn open(&self) -> (Client, Token) {
        let mut client = self.connect();
        client.write(UPGRADE.as_bytes());
        let response = client.head();
        assert!(response.starts_with("HTTP/1.1 101 "), "{response}");
        match self.saw() {
            Seen::Open(token, ..) => (client, token),
            other => panic!("{other:?} instead of an open session"),
        }
    }

    pub fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
        Client { stream }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the worker panicked");
        }
    }
}

pub const UPGRADE: &str = "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

pub struct Client {
    pub stream: TcpStream,
}

impl Client {
    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    pub fn send(&mut self, text: &str) {
        self.write(&client_frame(0x81, text.as_bytes()));
    }

    /// Everything up to an empty line.
    pub fn head(&mut self) -> String {
        read_head(&mut self.stream)
    }

    /// The next frame: first byte and payload.
    pub fn frame(&mut self) -> (u8, Vec<u8>) {
        read_frame(&mut self.stream)
    }

    pub fn text(&mut self) -> String {
        let (first, payload) = self.frame();
        assert_eq!(first, 0x81, "a text frame, not {payload:x?}");
        String::from_utf8(payload).expect("text")
    }

    /// The code of a close frame, behind which the connection ends.
    pub fn close_code(&mut self) -> u16 {
        let (first, payload) = self.frame();
        assert_eq!(first, 0x88, "a close frame, not {payload:?}");
        self.assert_ended();
        u16::from_be_bytes([payload[0], payload[1]])
    }

    /// Nothing comes any more.
    pub fn assert_ended(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => assert!(rest.is_empty(), "nothing behind the end"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
}

pub fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a whole head");
        head.extend_from_slice(&byte);
    }
    String::from_utf8(head).expect("ASCII")
}

pub fn read_frame(stream: &mut impl Read) -> (u8, Vec<u8>) {
    let mut start = [0; 2];
    stream.read_exact(&mut start).expect("a frame");
    let length = match start[1] {
        126 => {
            let mut length = [0; 2];
            stream.read_exact(&mut length).expect("a length");
            usize::from(u16::from_be_bytes(length))
        }
        127 => {
            let mut length = [0; 8];
            stream.read_exact(&mut length).expect("a length");
            usize::try_from(u64::from_be_bytes(length)).expect("a small frame")
        }
        length => usize::from(length),
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).expect("a payload");
    (start[0], payload)
}

/// A masked frame of less than 64 KiB.
pub fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![first];
    if payload.len() < 126 {
        frame.push(0x80 | payload.len() as u8);
    } else {
        frame.push(0x80 | 126);
        frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    }
    frame.extend_from_slice(&mask);
    let start = frame.len();
    frame.extend_from_slice(payload);
    unmask(&mut frame[start..], mask, 0);
    frame
}

pub fn text_frame(text: &str) -> Bytes {
    server_frame(Opcode::Text, text.as_bytes())
}
