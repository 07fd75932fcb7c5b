//! What a client keeps across restarts, and the only operations that change it.
//!
//! The core changes its saved state by [`Saved::apply`] alone and gives every operation
//! out as [`crate::Output::Persist`], so a log of operations applied to the state before
//! them is always the state the core had. Invariants of a [`Lane`]:
//!
//! 1. `queue[..numbered]` hold the counters `acked + 1 ..= acked + numbered` of
//!    (conversation, `sender`, `grant`); what follows waits without a counter.
//! 2. A counter never passes to another message: it is given by `Numbered` and given up
//!    only when it is decided (`Acked`, `Over`) or its sender is left for good (`Fresh`).
//! 3. A message's previous id isn't stored: it is the id standing before it in 1., so a
//!    replaced message changes it and nothing else can.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tidings_protocol::wire::{Encoding, Kind};

/// Everything that a client keeps: its outbox and its cursors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// The log's epoch that cursors and grants belong to; 0: none known yet.
    pub epoch: u32,
    /// The sender id of lanes to come; 0: not made yet.
    pub sender: u64,
    /// The number of the message queued last.
    pub last_local: u64,
    /// The outbox, by conversation.
    pub lanes: BTreeMap<u64, Lane>,
    /// How far the client has come, by conversation.
    pub cursors: BTreeMap<u64, Cursor>,
}

/// The outbox of one conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lane {
    /// Under which sender id counters are given; 0: none given yet.
    pub sender: u64,
    /// Under which grant; 0: none given yet.
    pub grant: u64,
    /// The grant has ended: nothing more is numbered under it.
    pub over: bool,
    /// The last counter known as accepted; 0: none.
    pub acked: u64,
    /// The id accepted under it; 0: none.
    pub acked_id: u64,
    /// The highest seq known of an accepted one; 0: none.
    pub acked_seq: u64,
    /// When the server last answered under this sender id, microseconds since 1970.
    pub answered_at: u64,
    /// The messages not yet decided, in the order they are sent.
    pub queue: VecDeque<Queued>,
    /// How many of them, from the front, have a counter.
    pub numbered: usize,
    /// Messages of which it isn't known whether they or empty ones in their place were accepted.
    pub doubts: Vec<Doubt>,
}

/// A message in the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// The client's own number for it.
    pub local: u64,
    /// Its 8 random bytes, made when it was queued, so that two copies of an outbox agree.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// How `body` is encoded.
    pub encoding: Encoding,
    /// Bytes of the body before compression.
    pub plain_bytes: u32,
    /// The body as it is sent.
    pub body: Bytes,
    /// A gateway refused it for good after it had got its counter.
    pub refused: Option<Refused>,
}

/// The empty message that stands in for a refused one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The id of the empty message.
    pub id: u64,
    /// The error code that refused the message.
    pub code: String,
}

/// A message that was, or may have been, replaced, and whose counter was accepted in one form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// The client's own number for it.
    pub local: u64,
    /// Its counter, under the `sender` and `grant` that follow.
    pub counter: u64,
    /// The sender id it was numbered under.
    pub sender: u64,
    /// The grant it was numbered under.
    pub grant: u64,
    /// The id of the message itself.
    pub id: u64,
    /// The error code that refused it, if this outbox heard of one.
    pub code: Option<String>,
    /// Its seq is at least this.
    pub from: u64,
    /// Its seq is below this.
    pub below: u64,
}

/// How far a client has come in a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    /// All up to this seq was given to the app, but for `holes`.
    pub have: u64,
    /// All up to this seq was read by the user.
    pub read: u64,
    /// Ranges of seqs below `have` that were left for later, rising; both ends included.
    pub holes: Vec<(u64, u64)>,
}

/// A change of the saved state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PersistOp {
    /// Lanes to come use this sender id.
    Sender {
        /// 64 random bits.
        sender: u64,
    },
    /// The epoch that cursors and grants belong to is known from here on.
    Epoch {
        /// The log's epoch.
        epoch: u32,
    },
    /// The log is another one: cursors, counters and doubts mean nothing any more.
    Reset {
        /// The new log's epoch.
        epoch: u32,
        /// The sender id from here on.
        sender: u64,
    },
    /// A message enters the outbox.
    Queued {
        /// Where it goes.
        conversation: u64,
        /// The message.
        message: Queued,
    },
    /// Counting begins anew under this sender and grant; nothing is numbered now.
    Under {
        /// Which lane.
        conversation: u64,
        /// The sender id.
        sender: u64,
        /// The grant.
        grant: u64,
        /// Now, microseconds since 1970.
        at: u64,
    },
    /// The next waiting messages get the next counters.
    Numbered {
        /// Which lane.
        conversation: u64,
        /// How many.
        count: u32,
    },
    /// All up to the counter are sent and leave the outbox.
    Acked {
        /// Which lane.
        conversation: u64,
        /// The counter.
        counter: u64,
        /// The id accepted under it.
        id: u64,
        /// Its seq.
        seq: u64,
        /// Now, microseconds since 1970.
        at: u64,
        /// Those below `counter` and up to this one may have been replaced by another life
        /// of this outbox.
        unsure: u64,
    },
    /// The grant has ended: what is numbered loses its counter and waits for the next grant.
    /// Replaced messages leave the outbox, having failed.
    Over {
        /// Which lane.
        conversation: u64,
    },
    /// An empty message of another id stands in for the one under this counter.
    Replaced {
        /// Which lane.
        conversation: u64,
        /// The counter.
        counter: u64,
        /// The stand-in.
        refused: Refused,
    },
    /// A message that has no counter, or is in doubt, is decided and leaves.
    Settled {
        /// Which lane.
        conversation: u64,
        /// The client's number for it.
        local: u64,
    },
    /// The sender id is left for good; what is numbered and not decided waits for a new counter.
    Fresh {
        /// Which lane.
        conversation: u64,
        /// The sender id of this lane, and of lanes to come, from here on.
        sender: u64,
        /// The messages decided by this, which leave.
        decided: Vec<u64>,
    },
    /// How far these conversations have come.
    Cursors {
        /// Conversation and cursor.
        rows: Vec<(u64, Cursor)>,
    },
}

impl Queued {
    /// The id it is sent under now.
    pub fn current_id(&self) -> u64 {
        self.refused.as_ref().map_or(self.id, |r| r.id)
    }

    /// Whether it is sent, or was, under this id.
    pub fn has_id(&self, id: u64) -> bool {
        self.id == id || self.refused.as_ref().is_some_and(|r| r.id == id)
    }
}

impl Lane {
    /// The last counter given.
    pub fn last_counter(&self) -> u64 {
        self.acked.saturating_add(self.numbered as u64)
    }

    /// The message under a counter that isn't decided yet.
    pub fn under(&self, counter: u64) -> Option<&Queued> {
        let place = usize::try_from(counter.checked_sub(self.acked.saturating_add(1))?).ok()?;
        if place < self.numbered {
            self.queue.get(place)
        } else {
            None
        }
    }

    /// The id that a message under this undecided counter names as the one before it.
    pub fn previous_of(&self, counter: u64) -> u64 {
        if counter <= self.acked.saturating_add(1) {
            self.acked_id
        } else {
            self.under(counter - 1).map_or(0, Queued::current_id)
        }
    }

    /// Nothing accepted and still undecided has a seq at or below this.
    pub fn floor(&self) -> u64 {
        self.acked_seq.max(self.grant)
    }

    fn unnumber(&mut self) {
        self.numbered = 0;
        self.acked = 0;
        self.acked_id = 0;
        self.acked_seq = 0;
        self.grant = 0;
        self.over = false;
    }
}

impl Saved {
    /// Makes a change. One that doesn't fit the state (a foreign or damaged log) does what still makes sense.
    pub fn apply(&mut self, op: &PersistOp) {
        match op {
            PersistOp::Sender { sender } => self.sender = *sender,
            PersistOp::Epoch { epoch } => self.epoch = *epoch,
            PersistOp::Reset { epoch, sender } => {
                self.epoch = *epoch;
                self.sender = *sender;
                self.cursors.clear();
                for lane in self.lanes.values_mut() {
                    lane.unnumber();
                    lane.sender = *sender;
                    lane.doubts.clear();
                    lane.queue.retain(|m| m.refused.is_none());
                }
            }
            PersistOp::Queued {
                conversation,
                message,
            } => {
                self.last_local = self.last_local.max(message.local);
                self.lanes
                    .entry(*conversation)
                    .or_default()
                    .queue
                    .push_back(message.clone());
            }
            PersistOp::Cursors { rows } => {
                for (conversation, cursor) in rows {
                    self.cursors.insert(*conversation, cursor.clone());
                }
            }
            PersistOp::Under { conversation, .. }
            | PersistOp::Numbered { conversation, .. }
            | PersistOp::Acked { conversation, .. }
            | PersistOp::Over { conversation }
            | PersistOp::Replaced { conversation, .. }
            | PersistOp::Settled { conversation, .. } => {
                self.lanes.entry(*conversation).or_default().apply(op);
            }
            PersistOp::Fresh {
                conversation,
                sender,
                ..
            } => {
                self.sender = *sender;
                self.lanes.entry(*conversation).or_default().apply(op);
            }
        }
    }
}

impl Lane {
    fn apply(&mut self, op: &PersistOp) {
        match op {
            PersistOp::Under {
                sender, grant, at, ..
            } => {
                self.unnumber();
                self.sender = *sender;
                self.grant = *grant;
                self.answered_at = *at;
            }
            PersistOp::Numbered { count, .. } => {
                self.numbered = (self.numbered + *count as usize).min(self.queue.len());
            }
            PersistOp::Acked {
                counter,
                id,
                seq,
                at,
                unsure,
                ..
            } => self.ack((*counter, *id, *seq), *at, *unsure),
            PersistOp::Over { .. } => {
                let numbered = std::mem::take(&mut self.numbered);
                let mut place = 0;
                self.queue.retain(|m| {
                    place += 1;
                    place > numbered || m.refused.is_none()
                });
                self.over = true;
            }
            PersistOp::Replaced {
                counter, refused, ..
            } => {
                let place = counter.saturating_sub(self.acked.saturating_add(1)) as usize;
                if let Some(message) = self.queue.get_mut(place).filter(|_| place < self.numbered) {
                    message.refused = Some(refused.clone());
                }
            }
            PersistOp::Settled { local, .. } => {
                self.doubts.retain(|d| d.local != *local);
                let numbered = self.numbered;
                let place = self
                    .queue
                    .iter()
                    .skip(numbered)
                    .position(|m| m.local == *local);
                if let Some(place) = place {
                    self.queue.remove(numbered + place);
                }
            }
            PersistOp::Fresh {
                sender, decided, ..
            } => {
                self.unnumber();
                self.sender = *sender;
                self.queue.retain(|m| !decided.contains(&m.local));
            }
            _ => {}
        }
    }

    fn ack(&mut self, (counter, id, seq): (u64, u64, u64), at: u64, unsure: u64) {
        let from = self.floor().saturating_add(1);
        while self.acked < counter && self.numbered > 0 {
            let Some(message) = self.queue.pop_front() else {
                break;
            };
            self.acked += 1;
            self.numbered -= 1;
            let doubtful = message.refused.is_some() || self.acked <= unsure;
            if doubtful && self.acked < counter {
                self.doubts.push(Doubt {
                    local: message.local,
                    counter: self.acked,
                    sender: self.sender,
                    grant: self.grant,
                    id: message.id,
                    code: message.refused.map(|r| r.code),
                    from,
                    below: seq,
                });
            }
        }
        self.acked_id = id;
        self.acked_seq = self.acked_seq.max(seq);
        self.answered_at = at;
    }
}
