//! Sends by a plan: at their intended times whatever the server does, or as fast as acks allow.

use std::collections::HashMap;

use bytes::Bytes;
use hdrhistogram::Histogram;
use tidings_protocol::wire::command::Command;
use tidings_protocol::wire::{self, Ack, Kind, Send, Status};

use super::clients::{Clients, Job};
use super::ledger::Way;
use super::session::{Pending, State};
use crate::bench::order::SendPlan;

/// How long after the last send everything may take to arrive.
const TAIL_NS: u64 = 20_000_000_000;

/// Nanoseconds up to ten minutes, three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 600_000_000_000, 3).expect("the bounds are in order")
}

/// A plan under way.
pub struct Sending {
    pub plan: SendPlan,
    pub started: u64,
    begun: u64,
    /// No burst is begun after this.
    ends: u64,
    pub deadline: u64,
    /// Sessions that read, by conversation.
    readers: HashMap<u64, u64>,
    pub ack: Histogram<u64>,
    pub deliver: Histogram<u64>,
    pub last: u64,
    /// Acknowledged in each second.
    pub by_second: Vec<u64>,
}

impl Sending {
    fn more(&self, now: u64) -> bool {
        if self.plan.bursts > 0 {
            self.begun < self.plan.bursts
        } else {
            now < self.ends
        }
    }

    /// When the next burst is due in an open loop.
    pub fn due(&self, now: u64) -> Option<u64> {
        (self.plan.rate > 0.0 && self.more(now))
            .then(|| self.started + (self.begun as f64 / self.plan.rate * 1e9) as u64)
    }

    /// The count of the second in which this is.
    fn second(&mut self, now: u64) -> &mut u64 {
        let at = (now.saturating_sub(self.started) / 1_000_000_000) as usize;
        if self.by_second.len() <= at {
            self.by_second.resize(at + 1, 0);
        }
        &mut self.by_second[at]
    }

    /// Whether everything was sent and no more is to come.
    pub fn is_over(&self, now: u64) -> bool {
        !self.more(now)
    }
}

impl Clients {
    pub(super) fn begin_sending(&mut self, plan: SendPlan) {
        let now = self.now();
        let mut readers: HashMap<u64, u64> = HashMap::new();
        for session in self
            .sessions
            .iter()
            .filter(|s| s.state == State::Live && !s.stalled)
        {
            for m in &session.memberships {
                *readers.entry(m.conversation).or_default() += 1;
            }
        }
        let ends = now + (plan.seconds * 1e9) as u64;
        let deadline = match plan.bursts {
            0 if plan.gives_up => ends,
            0 => ends + TAIL_NS,
            _ => ends,
        };
        let (first, count, closed) = (plan.first, plan.count, plan.rate == 0.0);
        self.job = Job::Sending(Box::new(Sending {
            plan,
            started: now,
            begun: 0,
            ends,
            deadline,
            readers,
            ack: histogram(),
            deliver: histogram(),
            last: now,
            by_second: Vec::new(),
        }));
        if closed {
            for at in first..first + count {
                self.refill(at, now);
            }
        }
    }

    /// Open loop: all bursts whose time has come.
    pub(super) fn send_due(&mut self) {
        loop {
            let now = self.now();
            let Job::Sending(sending) = &mut self.job else {
                return;
            };
            let Some(due) = sending.due(now).filter(|&due| due <= now) else {
                return;
            };
            let plan = &sending.plan;
            let at = match plan.among.len() as u64 {
                0 => plan.first + (sending.begun % plan.count as u64) as usize,
                len => plan.among[(sending.begun % len) as usize],
            };
            self.burst(at, due);
        }
    }

    /// Closed loop: as many bursts as this sender may have under way.
    fn refill(&mut self, at: usize, now: u64) {
        loop {
            let Job::Sending(sending) = &self.job else {
                return;
            };
            let plan = &sending.plan;
            let fits = self.sessions[at].pending.len() as u32 + plan.burst <= plan.in_flight;
            if plan.rate > 0.0 || !sending.more(now) || !fits || !self.burst(at, now) {
                return;
            }
        }
    }

    fn burst(&mut self, at: usize, intended: u64) -> bool {
        let Job::Sending(sending) = &mut self.job else {
            return false;
        };
        let plan = &sending.plan;
        sending.begun += 1;
        let sender = sender(self.nonce, at, self.sessions[at].outbox);
        let session = &mut self.sessions[at];
        if plan.gives_up && (session.state != State::Live || session.paused_until > intended) {
            self.done.withheld += u64::from(plan.burst);
            return false;
        }
        let readers = |conversation: u64| sending.readers.get(&conversation).copied().unwrap_or(1);
        let m = session.memberships.iter_mut().filter(|m| m.grant != 0);
        let Some(m) = (match plan.conversation {
            0 => m.min_by_key(|m| readers(m.conversation)),
            wanted => m.filter(|m| m.conversation == wanted).last(),
        }) else {
            self.problem(format!("user {at} has no conversation to write to"));
            return false;
        };
        let mut commands = Vec::with_capacity(plan.burst as usize);
        for _ in 0..plan.burst {
            m.counter += 1;
            let previous = if m.counter == 1 { 0 } else { m.id };
            // Any number that isn't 0 and differs from its neighbours will do.
            m.id = (self.nonce ^ (at as u64) << 40)
                .wrapping_add(m.counter.wrapping_mul(0x9e37_79b9_7f4a_7c15))
                | 1;
            let mut body = Vec::with_capacity(plan.body);
            body.extend_from_slice(format!("{intended:016x} ").as_bytes());
            let from = (m.counter as usize * 7) % 1024;
            body.extend(
                self.filler
                    .iter()
                    .cycle()
                    .skip(from)
                    .take(plan.body.saturating_sub(body.len())),
            );
            session.pending.push_back(Pending {
                conversation: m.conversation,
                counter: m.counter,
                previous,
                intended,
            });
            commands.push(Command::Send(Send {
                conversation: m.conversation,
                sender,
                grant: m.grant,
                counter: m.counter,
                id: m.id,
                previous,
                kind: Kind::Text.into(),
                body: Bytes::from(body),
                encoding: 0,
            }));
        }
        self.done.sent += u64::from(plan.burst);
        self.done.due += u64::from(plan.burst) * readers(m.conversation).saturating_sub(1);
        self.command(at, commands);
        true
    }

    fn gives_up(&self) -> bool {
        matches!(&self.job, Job::Sending(sending) if sending.plan.gives_up)
    }

    /// A send was refused, and with it all behind it. Its author gives it up and waits as told; what comes
    /// next has its number, unless that turns out to be taken: whether a refused one is in the log isn't always known.
    pub(super) fn refused_send(&mut self, at: usize, error: &wire::Error) -> bool {
        if !self.gives_up() {
            return false;
        }
        if error.retry_after_ms == 0 {
            self.leave_outbox(at);
            return true;
        }
        let now = self.now();
        let session = &mut self.sessions[at];
        session.paused_until = now + u64::from(error.retry_after_ms) * 1_000_000;
        let Some(place) = session.find(error.conversation) else {
            return true;
        };
        let is_behind =
            |p: &Pending| p.conversation == error.conversation && p.counter >= error.counter;
        if let Some(first) = session.pending.iter().find(|p| is_behind(p)).copied() {
            let before = session.pending.len();
            session.pending.retain(|p| !is_behind(p));
            self.done.refused += (before - session.pending.len()) as u64;
            let m = &mut session.memberships[place];
            (m.counter, m.id) = (first.counter - 1, first.previous);
        }
        true
    }

    fn leave_outbox(&mut self, at: usize) {
        let session = &mut self.sessions[at];
        session.outbox += 1;
        self.done.refused += session.pending.len() as u64;
        session.pending.clear();
        for m in &mut session.memberships {
            (m.counter, m.id, m.acked) = (0, 0, 0);
        }
    }

    pub(super) fn acked(&mut self, at: usize, ack: &Ack, now: u64) {
        let is_left = ack.sender != sender(self.nonce, at, self.sessions[at].outbox);
        if ack.status() == Status::Gap && self.gives_up() {
            // Usually of what was sent behind a refused one and is given up. One that is still waited for can't come
            // any more: something before it was lost.
            let mut pending = self.sessions[at].pending.iter();
            let is_waited_for = pending
                .any(|sent| (sent.conversation, sent.counter) == (ack.conversation, ack.counter));
            if !is_left && is_waited_for {
                self.leave_outbox(at);
            }
            return;
        }
        let session = &mut self.sessions[at];
        let Some(place) = session.find(ack.conversation) else {
            return;
        };
        if ack.status() != Status::Sent {
            return self.problem(format!("a send was answered {:?}", ack.status()));
        }
        let m = &mut session.memberships[place];
        if is_left {
            self.ledger.take(at as u32, m, ack.seq, Way::Own);
            return;
        }
        if ack.counter <= m.acked {
            return;
        }
        m.unnamed += ack.counter - m.acked - 1;
        m.acked = ack.counter;
        self.ledger.take(at as u32, m, ack.seq, Way::Own);
        let mut intended = Vec::new();
        while session
            .pending
            .front()
            .is_some_and(|p| p.conversation == ack.conversation && p.counter <= ack.counter)
        {
            intended.extend(session.pending.pop_front().map(|p| p.intended));
        }
        self.done.acked += intended.len() as u64;
        if let Job::Sending(sending) = &mut self.job {
            sending.last = now;
            let second = sending.second(now);
            *second += intended.len() as u64;
            for time in intended {
                sending.ack.saturating_record(now.saturating_sub(time));
            }
        }
        self.refill(at, now);
    }

    /// A message reached a reader; its body says when it was to be sent.
    pub(super) fn delivered(&mut self, body: &[u8], now: u64) {
        let Job::Sending(sending) = &mut self.job else {
            return;
        };
        sending.last = now;
        let intended = body
            .get(..16)
            .and_then(|b| std::str::from_utf8(b).ok())
            .and_then(|t| u64::from_str_radix(t, 16).ok());
        if let Some(intended) = intended {
            sending
                .deliver
                .saturating_record(now.saturating_sub(intended));
        }
    }
}

fn sender(nonce: u64, at: usize, outbox: u64) -> u64 {
    nonce.wrapping_add(at as u64).wrapping_add(outbox << 32) | 1 << 63
}
