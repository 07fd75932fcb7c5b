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
//! 3. A message's previous id isn't stored: it is the id standing before it in 1. When that
//!    changes, because a message before it was replaced, so does its own id ([`Lane::ids`]),
//!    derived from both. So an id stands for everything before it under its sender and
//!    grant, and whoever finds its own id under n knows what is under all counters below.
//! 4. At most one numbered message is replaced at a time.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tidings_protocol::message_id;
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
    /// The id before it when it got its counter: under that previous id it is sent as `id`.
    pub chained: u64,
    /// A gateway refused it for good after it had got its counter.
    pub refused: Option<Refused>,
}

/// The empty message that stands in for a refused one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The id of the empty message.
    pub id: u64,
    /// The id before it when it was made.
    pub chained: u64,
    /// The error code that refused the message.
    pub code: String,
}

/// How far a client has come in a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    /// All up to this seq was given to the app, but for `holes`.
    pub have: u64,
    /// All up to this seq was read by the user.
    pub read: u64,
    /// What waits in the outbox isn't among the events up to this seq.
    pub looked: u64,
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
    /// The log is another one: cursors and counters mean nothing any more.
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
    /// A message that has no counter is decided and leaves.
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

/// The id of a message whose previous id isn't the one it was numbered behind.
pub(crate) fn chained_id(id: u64, previous: u64) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = message_id(id, previous, 0, 0);
    u64::from_be_bytes([a, b, c, d, e, f, g, h]).max(1)
}

impl Queued {
    /// The id it is sent under behind this one, itself or as the empty message in its place.
    fn id_behind(&self, previous: u64, original: bool) -> u64 {
        let (id, chained) = match &self.refused {
            Some(refused) if !original => (refused.id, refused.chained),
            _ => (self.id, self.chained),
        };
        if previous == chained {
            id
        } else {
            chained_id(id, previous)
        }
    }

    /// Whether this id, behind this previous one, is the message itself.
    pub(crate) fn is(&self, id: u64, previous: Option<u64>) -> bool {
        self.id == id || previous.is_some_and(|p| chained_id(self.id, p) == id)
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

    /// The ids under which the numbered messages are sent, rising by counter.
    /// `original`: those that hold if a replaced message was accepted itself.
    pub fn ids(&self, original: bool) -> Vec<u64> {
        let mut previous = self.acked_id;
        let numbered = self.queue.iter().take(self.numbered);
        let next = |message: &Queued| {
            previous = message.id_behind(previous, original);
            previous
        };
        numbered.map(next).collect()
    }

    /// The undecided message that was replaced: its counter.
    pub fn replaced(&self) -> Option<u64> {
        let place = self
            .queue
            .iter()
            .take(self.numbered)
            .position(|m| m.refused.is_some())?;
        Some(self.acked + 1 + place as u64)
    }

    /// Whether this outbox sent that id under that undecided counter; true: not as one of
    /// the messages that stand in for a replaced one or behind it.
    pub fn sent_as(&self, counter: u64, id: u64) -> Option<bool> {
        let place = usize::try_from(counter.checked_sub(self.acked.saturating_add(1))?).ok()?;
        if self.ids(false).get(place) == Some(&id) {
            return Some(false);
        }
        (self.ids(true).get(place) == Some(&id)).then_some(true)
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
                let mut previous = self.ids(false).last().copied().unwrap_or(self.acked_id);
                for message in self
                    .queue
                    .iter_mut()
                    .skip(self.numbered)
                    .take(*count as usize)
                {
                    message.chained = previous;
                    previous = message.id;
                    self.numbered += 1;
                }
            }
            PersistOp::Acked {
                counter,
                id,
                seq,
                at,
                ..
            } => {
                while self.acked < *counter && self.numbered > 0 {
                    self.queue.pop_front();
                    self.acked += 1;
                    self.numbered -= 1;
                }
                self.acked_id = *id;
                self.acked_seq = self.acked_seq.max(*seq);
                self.answered_at = *at;
            }
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
}
