//! The reading half of a worker: bytes to heads, heads to sessions, bytes to messages.

use std::io::{ErrorKind, Read};

use bytes::Bytes;

use super::conn::{AGAIN, PAUSED, Phase, READABLE};
use super::handler::{CloseReason, HandedOver, Handler, OpenInfo, Token};
use super::pool::Unproven;
use super::stats::add;
use super::{Worker, conn};
use crate::http_head::{HeadError, RequestHead, find_end, forwarded_for, header_room, refusal};
use crate::ws::Event;
use crate::ws::handshake::{Refusal, Upgrade};

impl<H: Handler> Worker<H> {
    /// Epoll says something of a connection.
    pub(super) fn ready(&mut self, slot: usize, event: &mio::event::Event) {
        let Some(conn) = self.io.conns.get(slot) else {
            return;
        };
        let token = Token::new(slot, conn.generation);
        if event.is_writable() {
            self.io.writable(slot);
        }
        let Some(conn) = self.io.conn_mut(token) else {
            return;
        };
        if event.is_error() || (event.is_read_closed() && event.is_write_closed()) {
            // Reset, or both ends shut: what was read until now is all there is, except that a
            // client may say goodbye and hang up in one breath.
            conn.set(PAUSED, false);
        }
        // One that is on the list has its share of this turn there.
        let waits = conn.has(AGAIN);
        if !waits && (event.is_readable() || event.is_read_closed() || event.is_error()) {
            self.read(token, event.is_read_closed() || event.is_error());
        }
    }

    /// A connection's turn without an edge.
    pub(super) fn go_on(&mut self, token: Token) {
        let Some(conn) = self.io.conn_mut(token) else {
            return;
        };
        conn.set(AGAIN, false);
        let stash = match &mut conn.rare {
            Some(rare) if conn.phase == Phase::Open => std::mem::take(&mut rare.received),
            _ => Vec::new(),
        };
        if !stash.is_empty() {
            if conn
                .rare
                .as_ref()
                .is_some_and(|rare| rare.unproven.is_none())
            {
                conn.rare = None;
            }
            let mut stash = stash;
            self.decode(token, &mut stash);
        }
        self.read(token, true);
    }

    /// Reads until the socket is empty, or the session has had its share.
    ///
    /// A short read means empty, since an edge follows whatever comes later; `to_the_end` is for
    /// when no edge will follow.
    fn read(&mut self, token: Token, to_the_end: bool) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut left = self.io.config.read_turn_bytes_max;
        let tick = self.io.now_tick();
        while let Some(conn) = self.io.conn_mut(token) {
            if conn.has(PAUSED) {
                conn.set(READABLE, true);
                break;
            }
            if left == 0 {
                self.io.read_again(token);
                break;
            }
            match conn.stream.read(&mut scratch) {
                Ok(0) => {
                    self.io.hung_up(token.slot());
                    break;
                }
                Ok(n) => {
                    left = left.saturating_sub(n);
                    conn.last_read_tick = tick;
                    add(&self.io.stats.bytes_in, n as u64);
                    self.received(token, &mut scratch[..n]);
                    if n < scratch.len() && !to_the_end {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.io.lost(token.slot());
                    break;
                }
            }
        }
        self.scratch = scratch;
    }

    /// Bytes as they came from the socket.
    fn received(&mut self, token: Token, bytes: &mut [u8]) {
        let Some(conn) = self.io.conn_mut(token) else {
            return;
        };
        if conn.tls.is_some() {
            self.received_tls(token, bytes);
        } else {
            self.received_plain(token, bytes);
        }
        if self
            .io
            .conn_mut(token)
            .is_some_and(|conn| conn.phase == Phase::Handover)
        {
            self.hand_over(token);
        }
    }

    fn received_tls(&mut self, token: Token, mut bytes: &[u8]) {
        let mut plain = std::mem::take(&mut self.plain);
        while let Some(tls) = self
            .io
            .conn_mut(token)
            .and_then(|conn| conn.tls.as_deref_mut())
        {
            let fed = bytes.is_empty() || matches!(tls.read_tls(&mut bytes), Ok(n) if n > 0);
            let processed = tls.process_new_packets();
            // Answers, tickets and, on an error, the alert that says which.
            self.io.pump_tls(token.slot());
            if !fed || processed.is_err() {
                if self.io.conn_mut(token).is_some() {
                    self.io.lost(token.slot());
                }
                break;
            }
            if !self.read_plaintext(token, &mut plain) || bytes.is_empty() {
                break;
            }
        }
        self.plain = plain;
    }

    /// Takes all plaintext out of a TLS state; `false` ends the connection's reading.
    fn read_plaintext(&mut self, token: Token, plain: &mut [u8]) -> bool {
        loop {
            let Some(conn) = self.io.conn_mut(token) else {
                return false;
            };
            let Some(tls) = conn.tls.as_deref_mut() else {
                return false;
            };
            match tls.reader().read(plain) {
                Ok(n) if n > 0 => self.received_plain(token, &mut plain[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                // The end of the stream, said properly or not.
                _ => {
                    self.io.hung_up(token.slot());
                    return false;
                }
            }
        }
    }

    /// Bytes as the client meant them.
    fn received_plain(&mut self, token: Token, bytes: &mut [u8]) {
        let Some(conn) = self.io.conn_mut(token) else {
            return;
        };
        match conn.phase {
            Phase::Head => self.head(token, bytes),
            Phase::Open => self.decode(token, bytes),
            Phase::Handover => {
                if let Some(rare) = &mut conn.rare {
                    rare.received.extend_from_slice(bytes);
                }
            }
            Phase::Closing | Phase::Lingering => {}
        }
    }

    /// A piece of the request head.
    fn head(&mut self, token: Token, bytes: &mut [u8]) {
        let Some(rare) = self.io.conn_mut(token).and_then(|conn| conn.rare.as_mut()) else {
            return;
        };
        // Mostly the head comes whole: it is read where it lies.
        let seen = rare.received.len();
        let mut kept = std::mem::take(&mut rare.received);
        let head = if seen == 0 {
            bytes
        } else {
            kept.extend_from_slice(bytes);
            &mut kept[..]
        };
        match find_end(head, seen) {
            Err(error) => self.refuse_head(token, error.status()),
            Ok(Some(end)) => self.request(token, head, end),
            Ok(None) => {
                if seen == 0 {
                    kept = head.to_vec();
                }
                if let Some(rare) = self.io.conn_mut(token).and_then(|conn| conn.rare.as_mut()) {
                    rare.received = kept;
                }
            }
        }
    }

    fn refuse_head(&mut self, token: Token, status: u16) {
        add(&self.io.stats.handshake_failures, 1);
        self.io
            .finish(token.slot(), Bytes::from_static(refusal(status)));
    }

    /// A whole request head: `received[..end]`.
    fn request(&mut self, token: Token, received: &mut [u8], end: usize) {
        let config = std::sync::Arc::clone(&self.io.config);
        let pool = std::sync::Arc::clone(&self.io.pool);
        let Some(conn) = self.io.conn_mut(token) else {
            return;
        };
        let Some(rare) = conn.rare.as_ref() else {
            return;
        };
        let (mut peer, is_proxied) = (rare.peer, rare.unproven == Some(Unproven::Proxied));
        let is_tls = conn.tls.is_some();
        let mut room = header_room();
        let head = match RequestHead::parse(&received[..end], &mut room) {
            Ok(head) => head,
            Err(error) => return self.refuse_head(token, error.status()),
        };
        if head.path != config.policy.path {
            conn.phase = Phase::Handover;
            if let Some(rare) = &mut conn.rare {
                rare.received = received.to_vec();
            }
            return;
        }
        let authorization = head.one("authorization");
        let upgrade = Upgrade::check(&head, &config.policy, is_tls)
            .and_then(|upgrade| Ok((upgrade, authorization.map_err(HeadError::into_refusal)?)));
        let (upgrade, authorization) = match upgrade {
            Ok(upgrade) => upgrade,
            Err(refused) => return self.refuse_head(token, refused.status()),
        };
        if is_proxied && let Some(ip) = head.all("x-forwarded-for").last().and_then(forwarded_for) {
            match pool.count(ip) {
                Err(status) => return self.refuse_head(token, status),
                Ok(counted) => {
                    if let Some(rare) = &mut conn.rare {
                        rare.unproven = Some(counted);
                    }
                }
            }
            peer = (ip, 0).into();
        }
        let query = head.query.unwrap_or_default();
        let info = OpenInfo {
            peer,
            subprotocol: upgrade.subprotocol,
            path: head.path,
            ticket: query
                .split('&')
                .find_map(|pair| pair.strip_prefix("ticket=")),
            authorization: authorization.and_then(|value| std::str::from_utf8(value).ok()),
            is_tls,
        };
        conn.phase = Phase::Open;
        conn.phase_deadline = super::wheel::NEVER;
        add(&self.io.stats.opened, 1);
        self.io.push(token.slot(), upgrade.response(&config.policy));
        match config.auth_ms {
            0 => self.io.authenticated(token),
            auth_ms => self.io.set_phase_deadline(token.slot(), auth_ms),
        }
        self.guarded(Some(token), |handler, io| handler.on_open(io, token, &info));
        if end < received.len() {
            self.decode(token, &mut received[end..]);
        }
    }

    fn hand_over(&mut self, token: Token) {
        add(&self.io.stats.handed_over, 1);
        let mut conn = self.io.remove(token.slot());
        if let Err(error) = self.io.registry.deregister(&mut conn.stream) {
            tracing::error!(%error, "stop watching a connection");
            return;
        }
        let Some(rare) = conn.rare else { return };
        (self.http)(HandedOver {
            stream: conn.stream.into(),
            peer: rare.peer,
            is_proxied: self.io.config.is_proxy(rare.peer.ip()),
            received: rare.received,
            tls: conn.tls,
        });
    }

    /// Frames of an open session.
    fn decode(&mut self, token: Token, input: &mut [u8]) {
        let limits = self.io.config.limits;
        let Some(conn) = self.io.session_mut(token) else {
            return;
        };
        if conn.has(PAUSED) {
            return self.stash(token, input);
        }
        let mut decoder = std::mem::take(&mut conn.decoder);
        let mut at = 0;
        loop {
            let (used, event) = match decoder.next(&mut input[at..], &limits) {
                Ok(next) => next,
                Err(violation) => {
                    let reason = CloseReason::Protocol(violation.code());
                    return self
                        .io
                        .end(token, violation.code(), &violation.to_string(), reason);
                }
            };
            at += used;
            let Some(event) = event else { break };
            if !self.io.admit_frame(token) {
                add(&self.io.stats.closed_rate, 1);
                return self
                    .io
                    .end(token, 4008, "too many frames", CloseReason::Policy(4008));
            }
            match event {
                Event::Message { opcode, payload } => {
                    add(&self.io.stats.messages_in, 1);
                    self.guarded(Some(token), |handler, io| {
                        handler.on_message(io, token, opcode, payload);
                    });
                }
                Event::Ping(payload) => self.io.pong(token, payload),
                Event::Pong(_) | Event::Fragment => {}
                Event::Close { code, .. } => return self.io.peer_closed(token, code),
            }
            match self.io.session_mut(token) {
                None => return,
                Some(conn) if conn.has(PAUSED) => {
                    self.stash(token, &input[at..]);
                    break;
                }
                Some(_) => {}
            }
        }
        let is_idle = decoder.is_idle();
        if let Some(conn) = self.io.session_mut(token) {
            conn.decoder = decoder;
            if !is_idle {
                self.io.watch_incomplete(token.slot());
            }
        }
    }

    /// Keeps what was read before reading was paused: at most one scratch buffer, as nothing more
    /// is read until it resumes.
    fn stash(&mut self, token: Token, input: &[u8]) {
        if input.is_empty() {
            return;
        }
        let Some(conn) = self.io.session_mut(token) else {
            return;
        };
        match &mut conn.rare {
            Some(rare) => rare.received.extend_from_slice(input),
            rare => {
                let peer = conn.stream.peer_addr().unwrap_or(([0, 0, 0, 0], 0).into());
                let received = input.to_vec();
                *rare = Some(Box::new(conn::Rare {
                    peer,
                    unproven: None,
                    received,
                }));
            }
        }
    }
}

impl HeadError {
    fn into_refusal(self) -> Refusal {
        self.into()
    }
}
