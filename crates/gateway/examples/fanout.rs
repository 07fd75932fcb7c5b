//! Measures a worker beside a bare loop of `send` calls, in turns: CPU per delivery of a paced
//! fan-out, and CPU per connection.
//!
//! `fanout [SESSIONS] [ROUNDS]`, by default 2,000 and 5. The clients live in a process of their
//! own. Quote ratios only: what one `send` costs changes with the machine's neighbours.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidings_gateway::worker::{
    CloseReason, Handler, Io, OpenInfo, Parts, Pool, PoolLimits, Token, Waker, Worker,
    WorkerConfig, bind,
};
use tidings_gateway::ws::{Opcode, server_frame};

type Failure = Box<dyn Error + Send + Sync>;

/// Publishes of one measurement, and the time between them.
const PUBLISHES: u32 = 30;
const PACE: Duration = Duration::from_millis(30);
const BODY_BYTES: usize = 150;

const UPGRADE: &[u8] = b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

struct FanOut {
    sessions: Vec<Token>,
    /// Frames to send to everybody, all of a batch in one turn.
    inbox: Arc<Mutex<Vec<Bytes>>>,
    /// Told after each batch, when asked: which thread this is.
    asked: Arc<AtomicBool>,
    thread_id: Sender<String>,
}

impl Handler for FanOut {
    fn on_open(&mut self, _: &mut Io, token: Token, _: &OpenInfo<'_>) {
        self.sessions.push(token);
    }
    fn on_message(&mut self, _: &mut Io, _: Token, _: Opcode, _: &mut [u8]) {}
    fn on_close(&mut self, _: &mut Io, token: Token, _: CloseReason) {
        self.sessions.retain(|&session| session != token);
    }
    fn on_overflow(&mut self, _: &mut Io, _: Token) {}
    fn on_wake(&mut self, io: &mut Io) {
        let frames = std::mem::take(&mut *self.inbox.lock().expect("nobody panics"));
        for frame in frames {
            for &session in &self.sessions {
                io.send(session, frame.clone());
            }
        }
        if self.asked.swap(false, Ordering::AcqRel) {
            let link = std::fs::read_link("/proc/thread-self").unwrap_or_default();
            let _ = self.thread_id.send(link.to_string_lossy().into_owned());
        }
    }
}

/// CPU time of a thread in nanoseconds; `thread` is a path below /proc.
fn cpu_ns(thread: &str) -> Result<u64, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{thread}/schedstat"))?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "clients") {
        return clients(
            arguments[1].parse()?,
            arguments[2].parse()?,
            arguments[3].parse()?,
        );
    }
    let number = |at: usize, default| arguments.get(at).map_or(Ok(default), |n| n.parse());
    let (sessions, rounds) = (number(0, 2000)?, number(1, 5)?);

    let raw_listener = TcpListener::bind("127.0.0.1:0")?;
    let listener = bind(([127, 0, 0, 1], 0).into())?;
    let (address, raw_address) = (listener.local_addr()?, raw_listener.local_addr()?);
    let (inbox, asked) = (Arc::default(), Arc::new(AtomicBool::new(false)));
    let (to_thread_id, thread_id) = channel();
    let handler = FanOut {
        sessions: Vec::new(),
        inbox: Arc::clone(&inbox),
        asked: Arc::clone(&asked),
        thread_id: to_thread_id,
    };
    let limits = PoolLimits {
        exempt_loopback: true,
        ..PoolLimits::of(20_000)
    };
    let parts = Parts {
        config: WorkerConfig {
            auth_ms: 0,
            ..WorkerConfig::default()
        },
        pool: Arc::new(Pool::new(limits)),
        listener,
        tls: None,
        http: Box::new(drop),
    };
    let worker = Worker::new(parts, handler)?;
    let (waker, stats) = (worker.waker(), worker.stats());
    std::thread::spawn(move || drop(worker.run()));
    let thread = thread_of(&waker, &asked, &thread_id)?;

    let cpu = cpu_ns(&thread)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args([
            "clients",
            &sessions.to_string(),
            &address.to_string(),
            &raw_address.to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    said.next().ok_or("the clients ended")??;
    let opened = stats.opened.load(Ordering::Relaxed);
    println!(
        "{opened} sessions: {:.1} µs CPU each to open",
        (cpu_ns(&thread)? - cpu) as f64 / 1e3 / opened as f64,
    );
    writeln!(child.stdin.as_mut().ok_or("no input")?, "go on")?;
    let raw: Vec<TcpStream> = (0..sessions)
        .map(|_| {
            let (stream, _) = raw_listener.accept()?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        })
        .collect::<Result<_, std::io::Error>>()?;
    said.next().ok_or("the clients ended")??;

    let deliveries = f64::from(PUBLISHES) * sessions as f64;
    for frames in [1, 4] {
        for _ in 0..rounds {
            let raw_ns = raw_loop(&raw, frames)?;
            let before = (cpu_ns(&thread)?, stats.writes.load(Ordering::Relaxed));
            publish(&waker, &inbox, frames);
            thread_of(&waker, &asked, &thread_id)?;
            let worker_ns = cpu_ns(&thread)? - before.0;
            let writes = stats.writes.load(Ordering::Relaxed) - before.1;
            println!(
                "{frames} a turn: raw {:.2} µs, worker {:.2} µs a write, {:.2} of raw; \
                 {:.3} writes a delivery",
                raw_ns as f64 / 1e3 / deliveries,
                worker_ns as f64 / 1e3 / deliveries,
                worker_ns as f64 / raw_ns as f64,
                writes as f64 / deliveries / frames as f64,
            );
        }
    }
    drop(child.stdin.take());
    child.wait()?;
    Ok(())
}

fn thread_of(
    waker: &Waker,
    asked: &AtomicBool,
    thread_id: &Receiver<String>,
) -> Result<String, Failure> {
    asked.store(true, Ordering::Release);
    waker.wake();
    Ok(thread_id.recv_timeout(Duration::from_secs(10))?)
}

fn paced(mut publish: impl FnMut()) {
    let start = Instant::now();
    for i in 0..PUBLISHES {
        std::thread::sleep((PACE * i).saturating_sub(start.elapsed()));
        publish();
    }
    std::thread::sleep(PACE);
}

/// One write a socket, of as many bytes as the worker writes.
fn raw_loop(sockets: &[TcpStream], frames: usize) -> Result<u64, Failure> {
    let bytes = server_frame(Opcode::Binary, &[7; BODY_BYTES]).repeat(frames);
    std::thread::scope(|scope| {
        let measured = scope.spawn(|| {
            let before = cpu_ns("thread-self")?;
            paced(|| {
                for mut socket in sockets {
                    let _ = socket.write(&bytes);
                }
            });
            Ok(cpu_ns("thread-self")? - before)
        });
        measured.join().map_err(|_| "the raw loop panicked")?
    })
}

fn publish(waker: &Waker, inbox: &Mutex<Vec<Bytes>>, frames: usize) {
    paced(|| {
        let frame = server_frame(Opcode::Binary, &[7; BODY_BYTES]);
        inbox
            .lock()
            .expect("nobody panics")
            .extend(std::iter::repeat_n(frame, frames));
        waker.wake();
    });
}

/// The other process: sessions and raw sockets, read as they become readable.
fn clients(count: usize, address: SocketAddr, raw: SocketAddr) -> Result<(), Failure> {
    let mut sockets = Vec::with_capacity(2 * count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(UPGRADE)?;
        sockets.push(stream);
    }
    let mut response = [0; 1024];
    for stream in &mut sockets {
        let read = stream.read(&mut response)?;
        if !response[..read].starts_with(b"HTTP/1.1 101") {
            return Err("no upgrade".into());
        }
    }
    println!("open");
    std::io::stdin().read_line(&mut String::new())?;
    for _ in 0..count {
        sockets.push(TcpStream::connect(raw)?);
    }
    let mut poll = mio::Poll::new()?;
    let mut sockets: Vec<_> = sockets
        .into_iter()
        .map(|stream| {
            stream.set_nonblocking(true)?;
            Ok(mio::net::TcpStream::from_std(stream))
        })
        .collect::<Result<_, std::io::Error>>()?;
    for (at, socket) in sockets.iter_mut().enumerate() {
        poll.registry()
            .register(socket, mio::Token(at), mio::Interest::READABLE)?;
    }
    println!("ready");
    // The parent closes our input, and then the sockets: either ends this process.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let mut events = mio::Events::with_capacity(1024);
    let mut buffer = [0; 16 << 10];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            while matches!(sockets[event.token().0].read(&mut buffer), Ok(n) if n > 0) {}
        }
    }
}
