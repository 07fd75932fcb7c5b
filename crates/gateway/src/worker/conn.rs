//! A connection's slab entry and the way its bytes leave.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::SocketAddr;

use bytes::{Buf, Bytes};
use mio::net::TcpStream;
use rustls::ServerConnection;

use super::pool::Unproven;
use super::wheel::{Link, Linked, NEVER};
use crate::ws::Decoder;

/// How far a connection is. It only ever moves down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The request head (and TLS handshake before it) is coming.
    Head,
    /// A session.
    Open,
    /// To be given to HTTP as soon as the bytes at hand are decrypted.
    Handover,
    /// Over; the last frame is still to be written.
    Closing,
    /// All is written and said; the client may hang up. Closing at once could reset the
    /// connection and so destroy the close frame on its way.
    Lingering,
}

/// Reading is paused.
pub(super) const PAUSED: u8 = 1;
/// There may be something to read, seen while paused.
pub(super) const READABLE: u8 = 1 << 1;
/// The entry is on the worker's list of those with due frames.
pub(super) const DIRTY: u8 = 1 << 2;
/// The queue was dropped; `on_overflow` hasn't been called.
pub(super) const OVERFLOW_UNTOLD: u8 = 1 << 3;
/// The queue was dropped; `on_drained` hasn't been called.
pub(super) const OVERFLOWED: u8 = 1 << 4;
/// Refused at a limit: not counted in the pool.
pub(super) const UNCOUNTED: u8 = 1 << 5;

/// The client shut its end while its last frame was still to be written.
pub(super) const PEER_GONE: u8 = 1 << 6;
/// The entry is on the worker's list of connections to be read without an edge.
pub(super) const AGAIN: u8 = 1 << 7;

/// One connection. Everything that most of them don't need at a time is behind a pointer.
pub(super) struct Conn {
    /// When the next frame fits the rate exactly, in nanoseconds since the worker's start (the
    /// generic cell rate algorithm: a token bucket in one number).
    pub(super) rate_at_ns: u64,
    pub(super) decoder: Decoder,
    pub(super) tls: Option<Box<ServerConnection>>,
    /// What the kernel didn't take. Present exactly while the socket is blocked.
    pub(super) backlog: Option<Box<Backlog>>,
    pub(super) rare: Option<Box<Rare>>,
    pub(super) stream: TcpStream,
    pub(super) generation: u32,
    /// The frames of this turn, a list in the worker's `due`.
    pub(super) due_first: u32,
    pub(super) due_last: u32,
    /// Bytes and frames in `due` and backlog together.
    pub(super) queued_bytes: u32,
    pub(super) queued_frames: u32,
    pub(super) last_read_tick: u32,
    /// When the phase must be over.
    pub(super) phase_deadline: u32,
    /// When the handler wants to be called.
    pub(super) timer_deadline: u32,
    link: Link,
    pub(super) phase: Phase,
    pub(super) flags: u8,
}

/// What a connection has until it is authenticated, or while its reading is paused.
pub(super) struct Rare {
    pub(super) peer: SocketAddr,
    /// Set until the session has authenticated.
    pub(super) unproven: Option<Unproven>,
    /// A request head that isn't whole; later, what was read before reading was paused.
    pub(super) received: Vec<u8>,
}

/// Frames that wait for a socket.
#[derive(Default)]
pub(super) struct Backlog {
    pub(super) frames: VecDeque<Bytes>,
    /// Whether the first frame is the rest of one that is partly on the wire.
    pub(super) head_is_cut: bool,
    /// When the socket last took something.
    pub(super) progress_tick: u32,
    /// When all must be written after an overflow.
    pub(super) overflow_deadline: Option<u32>,
}

/// At most so many frames and bytes go into one write: more bytes gain nothing over loopback or
/// a network, and the vector of them lives on the stack.
const FRAMES_PER_WRITE: usize = 64;
const BYTES_PER_WRITE: usize = 64 << 10;

/// What writing came to.
pub(super) enum Written {
    /// The kernel has everything.
    All,
    /// The socket is full; an edge will tell when it isn't.
    Blocked,
}

impl Linked for Conn {
    fn link(&mut self) -> &mut Link {
        &mut self.link
    }
}

impl Conn {
    pub(super) fn new(stream: TcpStream, generation: u32, phase: Phase) -> Self {
        Conn {
            rate_at_ns: 0,
            decoder: Decoder::default(),
            tls: None,
            backlog: None,
            rare: None,
            stream,
            generation,
            due_first: NEVER,
            due_last: NEVER,
            queued_bytes: 0,
            queued_frames: 0,
            last_read_tick: 0,
            phase_deadline: NEVER,
            timer_deadline: NEVER,
            link: Link::default(),
            phase,
            flags: 0,
        }
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn set(&mut self, flag: u8, on: bool) {
        self.flags = if on {
            self.flags | flag
        } else {
            self.flags & !flag
        };
    }

    /// Sends one frame over a plain, idle socket. `Ok` says how much was taken.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<usize> {
        loop {
            // The standard library sends with MSG_NOSIGNAL.
            match (&self.stream).write(frame) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
                other => return other,
            }
        }
    }

    /// Writes a backlog until it is empty or the socket is full. Returns the number of writes.
    pub(super) fn write(&mut self, backlog: &mut Backlog, tick: u32) -> io::Result<(Written, u64)> {
        let mut writes = 0;
        loop {
            if let Some(tls) = self.tls.as_deref_mut() {
                while tls.wants_write() {
                    match tls.write_tls(&mut &self.stream) {
                        Ok(0) => return Err(ErrorKind::WriteZero.into()),
                        Ok(_) => {
                            writes += 1;
                            backlog.progress_tick = tick;
                        }
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            return Ok((Written::Blocked, writes));
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            if backlog.frames.is_empty() {
                return Ok((Written::All, writes));
            }
            let taken = match self.tls.as_deref_mut() {
                Some(tls) => write_plaintext(tls, backlog)?,
                None => {
                    writes += 1;
                    match self.send_many(backlog) {
                        Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            return Ok((Written::Blocked, writes));
                        }
                        taken => taken?,
                    }
                }
            };
            if taken == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            backlog.progress_tick = tick;
            self.queued_bytes -= taken as u32;
            self.queued_frames -= backlog.advance(taken);
        }
    }

    fn send_many(&self, backlog: &Backlog) -> io::Result<usize> {
        if let [only] = backlog.frames.as_slices().0
            && backlog.frames.len() == 1
        {
            return (&self.stream).write(only);
        }
        let mut slices = [IoSlice::new(&[]); FRAMES_PER_WRITE];
        let mut count = 0;
        let mut bytes = 0;
        for (slice, frame) in slices.iter_mut().zip(&backlog.frames) {
            *slice = IoSlice::new(frame);
            count += 1;
            bytes += frame.len();
            if bytes >= BYTES_PER_WRITE {
                break;
            }
        }
        socket2::SockRef::from(&self.stream)
            .send_vectored_with_flags(&slices[..count], libc::MSG_NOSIGNAL)
    }
}

/// Encrypts as much as the connection's bounded buffer takes; it is empty, so that is something.
fn write_plaintext(tls: &mut ServerConnection, backlog: &Backlog) -> io::Result<usize> {
    let mut taken = 0;
    for frame in backlog.frames.iter().take(FRAMES_PER_WRITE) {
        let n = tls.writer().write(frame)?;
        taken += n;
        if n < frame.len() || taken >= BYTES_PER_WRITE {
            break;
        }
    }
    Ok(taken)
}

impl Backlog {
    /// Forgets `bytes` that were taken and returns how many frames that ended.
    fn advance(&mut self, mut bytes: usize) -> u32 {
        let mut ended = 0;
        while let Some(frame) = self.frames.front_mut() {
            if bytes < frame.len() {
                frame.advance(bytes);
                self.head_is_cut |= bytes > 0;
                break;
            }
            bytes -= frame.len();
            self.frames.pop_front();
            self.head_is_cut = false;
            ended += 1;
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_costs_little_where_most_of_them_are_idle() {
        // The project's goal is 1.0 KB of user memory per idle session, logic included. An
        // `Option` has the layout of a slab's entry. In debug builds mio adds 8 bytes of its own.
        let limit = if cfg!(debug_assertions) { 112 } else { 104 };
        let size = size_of::<Option<Conn>>();
        assert!(size <= limit, "{size} bytes");
    }

    #[test]
    fn a_backlog_forgets_whole_frames_and_keeps_the_rest_of_a_cut_one() {
        let mut backlog = Backlog::default();
        backlog
            .frames
            .extend(["abc", "", "defg", "h"].map(Bytes::from));
        assert_eq!(backlog.advance(1), 0);
        assert!(backlog.head_is_cut);
        assert_eq!(
            backlog.advance(2),
            2,
            "the empty frame goes with its forerunner"
        );
        assert!(!backlog.head_is_cut);
        assert_eq!(backlog.advance(3), 1 - 1);
        assert_eq!(
            (backlog.frames[0].as_ref(), backlog.head_is_cut),
            (&b"g"[..], true)
        );
        assert_eq!(backlog.advance(2), 2);
        assert!(backlog.frames.is_empty());
    }
}
