//! Accepting, bounded and without spinning.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};

use mio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};

/// The kernel's queue of connections that no worker has accepted yet.
const BACKLOG: i32 = 4096;
/// What the kernel may keep for a client that doesn't read; it takes twice this for its own account.
/// Left alone it grows to 4 MB a connection, out of sight of every limit of ours. Enough for 1 MB/s
/// over a quarter of a second there and back.
const SEND_BUFFER_BYTES: usize = 128 << 10;
/// How long accepting rests when the process has no descriptor left.
const REST_MS: u64 = 100;

/// Opens a listener that shares its port with those of the other workers: the kernel spreads
/// connections over them. Port 0 picks a free one; give the others the port it picked.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    // Inherited by every accepted socket, which saves calls for each.
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A worker's listener and what keeps it from spinning.
pub(super) struct Acceptor {
    pub(super) listener: mio::net::TcpListener,
    /// Given up for a moment when descriptors run out, so that the connection that waits can be
    /// accepted and closed: its client learns at once instead of waiting for a timeout.
    spare: Option<File>,
    /// An edge came and the queue hasn't been seen empty since.
    pub(super) is_ready: bool,
    rests_until_ms: u64,
}

/// What accepting came to.
pub(super) enum Accepted {
    Connection(TcpStream, SocketAddr),
    /// The queue is empty, or accepting rests.
    Nothing,
    /// One connection was lost before it was ours.
    Failed,
}

impl Acceptor {
    pub(super) fn new(listener: TcpListener) -> io::Result<Self> {
        Ok(Acceptor {
            listener: mio::net::TcpListener::from_std(listener),
            spare: Some(File::open("/dev/null")?),
            is_ready: true,
            rests_until_ms: 0,
        })
    }

    /// How long the loop may sleep for all this acceptor knows.
    pub(super) fn wait_ms(&self, now_ms: u64) -> u64 {
        if self.is_ready {
            self.rests_until_ms.saturating_sub(now_ms)
        } else {
            u64::MAX
        }
    }

    pub(super) fn accept(&mut self, now_ms: u64) -> Accepted {
        if !self.is_ready || now_ms < self.rests_until_ms {
            return Accepted::Nothing;
        }
        match self.listener.accept() {
            Ok((stream, peer)) => Accepted::Connection(stream, peer),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.is_ready = false;
                Accepted::Nothing
            }
            Err(error) if is_exhaustion(&error) => {
                if self.spare.take().is_some() {
                    drop(self.listener.accept());
                    self.spare = File::open("/dev/null").ok();
                }
                self.rests_until_ms = now_ms + REST_MS;
                tracing::warn!(%error, "accept: out of descriptors or memory, resting");
                Accepted::Failed
            }
            // The client gave up between its SYN and our accept, or some such: the next may work.
            Err(_) => Accepted::Failed,
        }
    }
}

fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
