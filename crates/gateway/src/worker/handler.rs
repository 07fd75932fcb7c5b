//! What logic is to a worker.

use std::fmt;
use std::net::{SocketAddr, TcpStream};

use rustls::ServerConnection;

use super::io::Io;
use crate::ws::Opcode;

/// Names one session of one worker. A token of a session that is gone is harmless: no other
/// session ever has it (until four thousand million connections later).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    slot: u32,
    generation: u32,
}

impl Token {
    pub(super) fn new(slot: usize, generation: u32) -> Self {
        Token {
            slot: slot as u32,
            generation,
        }
    }

    /// A small number that no other open session of this worker has: an index for tables of
    /// one's own. It is free for another session once `on_close` was called.
    pub fn slot(self) -> usize {
        self.slot as usize
    }

    pub(super) fn generation(self) -> u32 {
        self.generation
    }

    /// The token as one number.
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// The token that [`Token::to_bits`] gave the number of.
    pub fn from_bits(bits: u64) -> Self {
        Token {
            slot: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.generation)
    }
}

/// What is known of a session when it opens. Holds secrets (ticket, authorization), so it has no
/// `Debug`.
#[derive(Clone, Copy)]
pub struct OpenInfo<'a> {
    /// The other end of the socket.
    pub peer: SocketAddr,
    /// The chosen subprotocol, an index into [`crate::ws::handshake::Policy::subprotocols`].
    pub subprotocol: Option<u8>,
    /// The path of the request.
    pub path: &'a str,
    /// The value of `ticket=` in the query, as sent.
    pub ticket: Option<&'a str>,
    /// The `Authorization` header, as sent.
    pub authorization: Option<&'a str>,
    /// Whether the socket speaks TLS.
    pub is_tls: bool,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The client said so, with this code if it gave one.
    Peer(Option<u16>),
    /// [`Io::close`] was called with this code.
    Local(u16),
    /// The client broke the protocol or a limit of it: 1002, 1007 or 1009.
    Protocol(u16),
    /// The client was too slow or too fast: 1008, 4004 or 4008.
    Policy(u16),
    /// The connection ended without a close frame.
    Lost,
    /// A callback panicked; the client was told 1011.
    Panicked,
}

/// Logic that a worker runs on its thread, one call at a time.
///
/// For each session: `on_open`, then anything, then `on_close` exactly once, whoever ended it.
/// Nothing else is called for a token after its `on_close`; between [`Io::close`] and `on_close`
/// (the same turn) only `on_close` is. Calls never nest. A panic in a call for a session closes
/// that session with 1011, and the worker goes on.
pub trait Handler {
    /// A session opened; frames sent here travel with the answer to the upgrade.
    fn on_open(&mut self, io: &mut Io, token: Token, info: &OpenInfo<'_>);

    /// A whole message came: `Text` (valid UTF-8) or `Binary`. The payload lies in the worker's
    /// buffer and may be overwritten.
    fn on_message(&mut self, io: &mut Io, token: Token, opcode: Opcode, payload: &mut [u8]);

    /// A session ended.
    fn on_close(&mut self, io: &mut Io, token: Token, reason: CloseReason);

    /// More was sent than the session's queue takes: the queue was dropped, together with what
    /// was sent since. A frame sent here tells the client to catch up.
    fn on_overflow(&mut self, io: &mut Io, token: Token);

    /// After an overflow or a blocked socket: the queue is empty again.
    fn on_drained(&mut self, io: &mut Io, token: Token) {
        let _ = (io, token);
    }

    /// The tick of [`Io::arm_timer`] came.
    fn on_timer(&mut self, io: &mut Io, token: Token) {
        let _ = (io, token);
    }

    /// Some thread called [`super::Waker::wake`].
    fn on_wake(&mut self, io: &mut Io) {
        let _ = io;
    }

    /// Everything that came in this turn has been told; what is sent now is still written in it.
    /// Called once or a few times a turn.
    fn on_turn_end(&mut self, io: &mut Io) {
        let _ = io;
    }

    /// A tick passed (several, if the machine slept).
    fn on_tick(&mut self, io: &mut Io) {
        let _ = io;
    }
}

/// A connection that asked for something else than a session.
pub struct HandedOver {
    /// The socket, non-blocking, in no epoll.
    pub stream: TcpStream,
    /// Its other end.
    pub peer: SocketAddr,
    /// That is a proxy's: who asks stands in each request's `X-Forwarded-For`.
    pub is_proxied: bool,
    /// What the client sent so far, decrypted: a whole request head and maybe more.
    pub received: Vec<u8>,
    /// The state of a TLS connection, its handshake done: what comes over `stream` belongs to it,
    /// and it may have something to write. Nothing readable is left inside.
    pub tls: Option<Box<ServerConnection>>,
}

/// Takes connections that asked for something else than a session. Runs on the worker's thread,
/// so it must not block.
pub type HttpHandoff = Box<dyn Fn(HandedOver) + Send>;
