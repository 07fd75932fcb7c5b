//! A device: what it has numbered, and what it makes of an answer.
//!
//! The rules are those of `crates/client` (`client_core/answers.rs`, `outbox.rs`, `lookup.rs`), as few
//! as they can be said in.

use tidings_core::sequencer::Verdict;

use super::{Answered, Rules};
use crate::history::Rec;

/// Messages of one life; a copy writes others, whose ids are this much higher.
pub const MESSAGES: usize = 3;

/// What the device believes of a message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fate {
    /// The user hasn't written it yet.
    Unwritten,
    /// In the outbox.
    Waiting,
    /// Told sent.
    Sent,
    /// Told failed.
    Failed,
}

/// A message in the outbox.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Message {
    /// Its own number.
    pub id: u8,
    /// What became of it.
    pub fate: Fate,
    sender: u8,
    grant: u8,
    /// 0: not numbered.
    counter: u8,
    previous: u8,
}

/// One life of an outbox.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Device {
    /// In the order they are sent.
    pub messages: [Message; MESSAGES],
    /// 0, or 1 for one that began as a copy.
    pub life: u8,
    /// The sender id in use.
    pub sender: u8,
    /// How many fresh sender ids it took.
    fresh: u8,
    /// The grant in use; 0: none that counts.
    pub grant: u8,
    /// The log's epoch that all this belongs to.
    pub epoch: u8,
    /// Counter and id given last.
    last: (u8, u8),
    /// The highest n that an answer told.
    acked: u8,
    /// The day as of which the server is known to know the sender id.
    known_on: u16,
    /// The day on which it last gave anything to a gateway.
    sent_on: u16,
}

impl Device {
    /// One that has written nothing.
    pub fn new(grant: u8) -> Device {
        let message = |i: usize| Message {
            id: i as u8 + 1,
            fate: Fate::Unwritten,
            sender: 0,
            grant: 0,
            counter: 0,
            previous: 0,
        };
        Device {
            messages: std::array::from_fn(message),
            life: 0,
            sender: 0,
            fresh: 0,
            grant,
            epoch: 1,
            last: (0, 0),
            acked: 0,
            known_on: 0,
            sent_on: 0,
        }
    }

    /// A copy of it begins to live: it writes other messages from now on, and what waits without a
    /// counter it looks for in the history first.
    pub fn wakes_up(&mut self, accepted: &[u8]) {
        self.life = 1;
        for m in &mut self.messages {
            if m.fate == Fate::Unwritten {
                m.id += MESSAGES as u8;
            }
            if m.fate == Fate::Waiting && m.counter == 0 && accepted.contains(&m.id) {
                m.fate = Fate::Sent;
            }
        }
    }

    /// The next message without a counter, of the first `most`.
    pub fn next_unnumbered(&self, most: usize) -> Option<usize> {
        (0..most).find(|&i| {
            let m = &self.messages[i];
            m.fate == Fate::Unwritten || m.fate == Fate::Waiting && m.counter == 0
        })
    }

    /// Whether it may give a counter: all under an earlier grant or sender id is decided.
    pub fn may_number(&self) -> bool {
        let current = |m: &Message| (m.sender, m.grant) == (self.sender, self.grant);
        self.grant > 0 && self.numbered().all(current)
    }

    /// Gives a message its counter.
    pub fn number(&mut self, i: usize, today: u16) -> Rec {
        if self.last.0 == 0 {
            self.known_on = today;
        }
        self.sent_on = today;
        let m = &mut self.messages[i];
        m.fate = Fate::Waiting;
        (m.sender, m.grant) = (self.sender, self.grant);
        (m.counter, m.previous) = (self.last.0 + 1, self.last.1);
        self.last = (m.counter, m.id);
        record(m)
    }

    fn numbered(&self) -> impl Iterator<Item = &Message> {
        self.messages
            .iter()
            .filter(|m| m.fate == Fate::Waiting && m.counter > 0)
    }

    /// Whether any message has a counter and no answer.
    pub fn is_in_doubt(&self) -> bool {
        self.numbered().next().is_some()
    }

    /// What goes out again after a reconnect, in order.
    pub fn unacknowledged(&self) -> Vec<Rec> {
        self.numbered().map(record).collect()
    }

    /// The same, as it goes out.
    pub fn sends_again(&mut self, today: u16) -> Vec<Rec> {
        let records = self.unacknowledged();
        if !records.is_empty() {
            self.sent_on = today;
        }
        records
    }

    /// A later grant is in use from now on.
    pub fn learn_grant(&mut self, grant: u8, today: u16) {
        (self.grant, self.last, self.acked) = (grant, (0, 0), 0);
        self.known_on = today;
    }

    /// Whether the server may have forgotten the sender id.
    pub fn is_expired(&self, today: u16, rules: &Rules) -> bool {
        today - self.known_on > rules.sender_days
    }

    /// Whether a record may still be on its way into the log.
    pub fn may_be_under_way(&self, today: u16, rules: &Rules) -> bool {
        rules.waits && self.is_in_doubt() && today - self.sent_on <= rules.late_days
    }

    /// Takes a fresh sender id: what was found in the history is sent, the rest is numbered anew.
    pub fn take_fresh_sender(&mut self, found: &[u8], today: u16) {
        for m in &mut self.messages {
            if m.fate == Fate::Waiting {
                if found.contains(&m.id) {
                    m.fate = Fate::Sent;
                } else {
                    unnumber(m);
                }
            }
        }
        self.fresh += 1;
        self.sender = self.life * 16 + self.fresh;
        (self.last, self.acked, self.known_on) = ((0, 0), 0, today);
    }

    /// The log is another one: nothing known of it counts.
    pub fn reset(&mut self, epoch: u8, grant: u8, found: &[u8], today: u16) {
        self.take_fresh_sender(found, today);
        (self.epoch, self.grant) = (epoch, grant);
    }

    /// Takes an answer; gives what it sends again on its connection.
    pub fn hear(&mut self, a: &Answered, today: u16, rules: &Rules) -> Vec<Rec> {
        let (sender, grant, n) = (a.rec.sender, a.rec.grant, a.answer.counter as u8);
        if sender != self.sender || a.answer.verdict == Verdict::Stale && grant != self.grant {
            return vec![];
        }
        let held = a.answer.id.0 as u8;
        let is_own = |m: &Message| (m.sender, m.grant, m.counter, m.id) == (sender, grant, n, held);
        let is_stale = a.answer.verdict == Verdict::Stale;
        let is_foreign = is_stale || n > 0 && !self.messages.iter().any(is_own);
        if rules.lineage && grant == self.grant && is_foreign {
            // Not its own lineage. All of it that may still be accepted stands before this answer.
            self.take_fresh_sender(a.found(rules), today);
            return vec![];
        }
        if is_stale {
            return vec![];
        }
        let told = |m: &Message| {
            m.fate == Fate::Waiting && (m.sender, m.grant) == (sender, grant) && m.counter > 0
        };
        for m in &mut self.messages {
            if told(m) && m.counter <= n {
                m.fate = Fate::Sent;
            }
        }
        if grant == self.grant && n > self.acked {
            self.acked = n;
            self.known_on = if rules.known_by_ts { a.day_of_n } else { today };
        }
        match a.answer.verdict {
            // An answer of before: a later one has told more.
            Verdict::Gap if n < self.acked => {}
            Verdict::Gap => {
                let again = self.numbered().filter(|m| m.counter > n);
                let again = again.map(record).collect();
                self.sent_on = today;
                return again;
            }
            Verdict::Over => {
                if self.grant == grant {
                    self.grant = 0;
                }
                for m in self.messages.iter_mut().filter(|m| told(m)) {
                    if rules.again {
                        unnumber(m);
                    } else {
                        m.fate = Fate::Failed;
                    }
                }
            }
            _ => {}
        }
        vec![]
    }
}

fn unnumber(m: &mut Message) {
    (m.sender, m.grant, m.counter, m.previous) = (0, 0, 0, 0);
}

fn record(m: &Message) -> Rec {
    Rec {
        user: 0,
        sender: m.sender,
        grant: m.grant,
        counter: m.counter,
        id: m.id,
        previous: m.previous,
        once: false,
    }
}
