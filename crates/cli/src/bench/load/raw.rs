//! The bare server: accepts, answers an upgrade with fixed bytes, writes the same bytes to every
//! socket. It knows no users, checks nothing and stores nothing: the floor of each shape.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};

use super::{answer, orders};
use crate::bench::order::{Done, RawOrder};
use crate::bench::process::cpu_ns;

const WAKE: Token = Token(usize::MAX);
const LISTEN: Token = Token(usize::MAX - 1);

const UPGRADED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// The first line says the port.
pub fn run() -> anyhow::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Inherited by what is accepted.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(4096)?;
    let listener = TcpListener::from(socket);
    answer(&listener.local_addr()?)?;
    let mut listener = mio::net::TcpListener::from_std(listener);
    let mut poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
    let orders = orders::<RawOrder>(move || drop(waker.wake()));
    poll.registry()
        .register(&mut listener, LISTEN, Interest::READABLE)?;
    let mut sockets: HashMap<usize, TcpStream> = HashMap::new();
    let (mut next, mut scratch, mut events) = (0, vec![0; 64 << 10], Events::with_capacity(1024));
    loop {
        if let Err(error) = poll.poll(&mut events, None)
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error.into());
        }
        for event in &events {
            match event.token() {
                WAKE => {}
                LISTEN => {
                    while let Ok((mut stream, _)) = listener.accept() {
                        poll.registry()
                            .register(&mut stream, Token(next), Interest::READABLE)?;
                        sockets.insert(next, stream);
                        next += 1;
                    }
                }
                Token(at) => {
                    let Some(stream) = sockets.get_mut(&at) else {
                        continue;
                    };
                    loop {
                        match stream.read(&mut scratch) {
                            Ok(0) => drop(sockets.remove(&at)),
                            Ok(n) if scratch[..n].ends_with(b"\r\n\r\n") => {
                                drop(stream.write(UPGRADED))
                            }
                            Ok(_) => continue,
                            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                            Err(_) => drop(sockets.remove(&at)),
                        }
                        break;
                    }
                }
            }
        }
        loop {
            match orders.try_recv() {
                Ok(RawOrder::Fan {
                    writes,
                    bytes,
                    interval_us,
                }) => {
                    answer(&fan(
                        &mut sockets,
                        writes,
                        bytes,
                        Duration::from_micros(interval_us),
                    )?)?;
                }
                Ok(RawOrder::Sweep) => answer(&Done {
                    opened: sockets.len() as u64,
                    ..Done::default()
                })?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }
}

fn fan(
    sockets: &mut HashMap<usize, TcpStream>,
    writes: u64,
    bytes: usize,
    interval: Duration,
) -> anyhow::Result<Done> {
    let message = vec![7; bytes];
    let mut list: Vec<&mut TcpStream> = sockets.values_mut().collect();
    let (started, cpu) = (Instant::now(), cpu_ns(std::process::id())?);
    let mut delivered = 0;
    for i in 0..writes {
        if let Some(early) = (started + interval * i as u32).checked_duration_since(Instant::now())
        {
            std::thread::sleep(early);
        }
        for socket in &mut list {
            delivered += u64::from(write_all(socket, &message).is_ok());
        }
    }
    let cpu_ns = cpu_ns(std::process::id())? - cpu;
    Ok(Done {
        seconds: started.elapsed().as_secs_f64(),
        delivered,
        cpu_ns,
        ..Done::default()
    })
}

fn write_all(socket: &mut TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            // Readers that fell behind: only a saturated round comes here, and it may wait.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_micros(50))
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
