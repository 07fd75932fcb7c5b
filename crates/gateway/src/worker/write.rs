//! The writing half of a worker.
//!
//! Sending only notes the frame (a slab lookup and a push). The notes of a turn are written at
//! its end, so that everything due to one socket goes in one write: one `send` when the socket is
//! idle and one frame is due, one vectored write when there are more, and none at all while the
//! socket is blocked: then the frames wait, bounded, for the edge that says it takes more.
//! Nothing of this registers anything with epoll again: both edges were asked for at accept.

use std::net::Shutdown;

use bytes::{Buf, Bytes};

use super::conn::{Backlog, DIRTY, OVERFLOW_UNTOLD, OVERFLOWED, PEER_GONE, Phase, Written};
use super::handler::Token;
use super::io::{Io, Notice};
use super::stats::add;
use super::wheel::NEVER;

/// A frame noted for the end of the turn.
pub(super) struct Due {
    frame: Bytes,
    /// The next frame of the same session.
    next: u32,
}

/// So many notes are written before the turn ends: 16 frames to each of 4,000 sockets, so that a
/// large group under backlog gets them in one write each. `bench` measured 4 a write, at twice the
/// cost a delivery, with a quarter of this.
pub(super) const DUE_MAX: usize = 64 << 10;

/// Notes whose memory (under 1 MB) is kept from turn to turn.
const DUE_KEPT: usize = 16 << 10;

impl Io {
    /// Notes a frame without looking at bounds.
    pub(super) fn push(&mut self, slot: usize, frame: Bytes) {
        let conn = &mut self.conns[slot];
        add(&self.stats.frames_out, 1);
        conn.queued_bytes += frame.len() as u32;
        conn.queued_frames += 1;
        let index = self.due.len() as u32;
        self.due.push(Due { frame, next: NEVER });
        match conn.due_first {
            NEVER => conn.due_first = index,
            _ => self.due[conn.due_last as usize].next = index,
        }
        conn.due_last = index;
        if !conn.has(DIRTY) {
            conn.set(DIRTY, true);
            self.dirty.push(slot as u32);
        }
    }

    /// Drops what waits for a socket, but for the rest of a frame that is partly written: without
    /// it the stream would make no sense to the client.
    pub(super) fn drop_queue(&mut self, slot: usize) {
        let conn = &mut self.conns[slot];
        let mut at = std::mem::replace(&mut conn.due_first, NEVER);
        while at != NEVER {
            let due = &mut self.due[at as usize];
            due.frame = Bytes::new();
            at = due.next;
        }
        (conn.queued_bytes, conn.queued_frames) = (0, 0);
        if let Some(backlog) = &mut conn.backlog {
            backlog.frames.truncate(usize::from(backlog.head_is_cut));
            for frame in &backlog.frames {
                conn.queued_bytes += frame.len() as u32;
                conn.queued_frames += 1;
            }
        }
    }

    pub(super) fn overflow(&mut self, token: Token) {
        let slot = token.slot();
        add(&self.stats.overflows, 1);
        self.drop_queue(slot);
        let deadline = self.tick_after(u64::from(self.config.overflow_ms));
        let conn = &mut self.conns[slot];
        conn.set(OVERFLOWED | OVERFLOW_UNTOLD, true);
        // A second overflow doesn't give a slow client more time.
        if let Some(backlog) = &mut conn.backlog
            && backlog.overflow_deadline.is_none()
        {
            backlog.overflow_deadline = Some(deadline);
            self.arm(slot, deadline);
        }
        self.notices.push_back(Notice::Overflow(token));
    }

    /// Writes what is due.
    pub(super) fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for slot in dirty.drain(..) {
            self.flush_one(slot as usize);
        }
        self.dirty = dirty;
        self.due.clear();
        if self.due.capacity() > DUE_KEPT {
            self.due = Vec::new();
        }
    }

    pub(super) fn flush_one(&mut self, slot: usize) {
        // The entry may be gone, or be another's by now: then it has nothing due.
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        conn.set(DIRTY, false);
        let first = std::mem::replace(&mut conn.due_first, NEVER);
        if first == NEVER {
            return self.written(slot, false);
        }
        if let Some(backlog) = &mut conn.backlog {
            append(&mut self.due, first, backlog);
            return;
        }
        let due = &mut self.due[first as usize];
        if due.next == NEVER && conn.tls.is_none() {
            add(&self.stats.writes, 1);
            let len = due.frame.len();
            match conn.send(&due.frame) {
                Ok(taken) if taken == len => {
                    add(&self.stats.bytes_out, len as u64);
                    conn.queued_bytes -= len as u32;
                    conn.queued_frames -= 1;
                    if conn.phase != Phase::Open || conn.has(OVERFLOWED) {
                        self.written(slot, false);
                    }
                    return;
                }
                Ok(taken) => {
                    add(&self.stats.bytes_out, taken as u64);
                    conn.queued_bytes -= taken as u32;
                    let mut frame = std::mem::take(&mut due.frame);
                    frame.advance(taken);
                    let mut backlog = Box::new(Backlog::default());
                    backlog.head_is_cut = taken > 0;
                    backlog.frames.push_back(frame);
                    // Once more until the socket says it is full: only then an edge follows.
                    return self.write_backlog(slot, backlog, false);
                }
                Err(_) => return self.lost(slot),
            }
        }
        let mut backlog = self.spare.take().unwrap_or_default();
        append(&mut self.due, first, &mut backlog);
        self.write_backlog(slot, backlog, false);
    }

    /// The socket takes more.
    pub(super) fn writable(&mut self, slot: usize) {
        if let Some(backlog) = self.conns[slot].backlog.take() {
            self.write_backlog(slot, backlog, true);
        }
    }

    /// Writes what a TLS state has to say by itself: handshake answers, tickets, alerts.
    pub(super) fn pump_tls(&mut self, slot: usize) {
        let conn = &self.conns[slot];
        if conn.backlog.is_none() && conn.tls.as_ref().is_some_and(|tls| tls.wants_write()) {
            let backlog = self.spare.take().unwrap_or_default();
            self.write_backlog(slot, backlog, false);
        }
    }

    pub(super) fn write_backlog(
        &mut self,
        slot: usize,
        mut backlog: Box<Backlog>,
        was_blocked: bool,
    ) {
        let tick = self.now_tick;
        let conn = &mut self.conns[slot];
        let before = conn.queued_bytes;
        let result = conn.write(&mut backlog, tick);
        add(&self.stats.bytes_out, u64::from(before - conn.queued_bytes));
        match result {
            Ok((Written::All, writes)) => {
                add(&self.stats.writes, writes);
                backlog.head_is_cut = false;
                backlog.overflow_deadline = None;
                // A queue that grew large under load isn't kept.
                if backlog.frames.capacity() <= 256 {
                    self.spare = Some(backlog);
                }
                self.written(slot, was_blocked);
            }
            Ok((Written::Blocked, writes)) => {
                add(&self.stats.writes, writes);
                if !was_blocked {
                    backlog.progress_tick = tick;
                    let at = self.tick_since(tick, self.config.write_stall_ms);
                    self.conns[slot].backlog = Some(backlog);
                    self.arm(slot, at);
                } else {
                    conn.backlog = Some(backlog);
                }
            }
            Err(_) => self.lost(slot),
        }
    }

    /// The kernel has everything that a connection was sent.
    pub(super) fn written(&mut self, slot: usize, was_blocked: bool) {
        let conn = &mut self.conns[slot];
        match conn.phase {
            Phase::Open if conn.backlog.is_none() && (was_blocked || conn.has(OVERFLOWED)) => {
                conn.set(OVERFLOWED, false);
                let token = self.token_of(slot);
                self.notices.push_back(Notice::Drained(token));
            }
            Phase::Closing if conn.backlog.is_none() => {
                conn.phase = Phase::Lingering;
                if let Some(tls) = conn.tls.as_deref_mut() {
                    tls.send_close_notify();
                    // Best effort: a peer that doesn't get it sees the end of the stream.
                    let _ = tls.write_tls(&mut &conn.stream);
                }
                if conn.stream.shutdown(Shutdown::Write).is_err() || conn.has(PEER_GONE) {
                    self.remove(slot);
                }
            }
            _ => {}
        }
    }
}

/// Moves the list of due frames that starts at `first` to the end of a backlog.
fn append(due: &mut [Due], first: u32, backlog: &mut Backlog) {
    let mut at = first;
    while at != NEVER {
        let entry = &mut due[at as usize];
        backlog.frames.push_back(std::mem::take(&mut entry.frame));
        at = entry.next;
    }
}
