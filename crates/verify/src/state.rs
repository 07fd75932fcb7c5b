//! What is remembered of a history: a row an event, a row a message, a few ranges a device.
//!
//! Deliveries that agree with what is known leave nothing behind, so memory follows messages and
//! devices, not their product.

use crate::history::{self, EventKind, Record, Status};
use crate::ranges::Ranges;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Slots a page. Pages grow as they fill, so small conversations stay small.
const PAGE: u64 = 256;

/// How many different events are kept for one seq besides the first: enough to name the culprits.
const CONFLICTS_MAX: usize = 8;

/// A sparse array by seq or counter that a wild index can't blow up.
#[derive(Debug)]
pub(crate) struct Paged<T>(BTreeMap<u64, Vec<Option<T>>>);

impl<T> Default for Paged<T> {
    fn default() -> Self {
        Paged(BTreeMap::new())
    }
}

impl<T> Paged<T> {
    pub fn get(&self, index: u64) -> Option<&T> {
        self.0
            .get(&(index / PAGE))?
            .get((index % PAGE) as usize)?
            .as_ref()
    }

    pub fn slot(&mut self, index: u64) -> &mut Option<T> {
        let page = self.0.entry(index / PAGE).or_default();
        let place = (index % PAGE) as usize;
        if page.len() <= place {
            page.resize_with(place + 1, || None);
        }
        &mut page[place]
    }

    /// All that is there, by rising index.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, &T)> {
        self.0.iter().flat_map(|(page, slots)| {
            let base = page * PAGE;
            let filled = slots.iter().enumerate();
            filled.filter_map(move |(place, slot)| Some((base + place as u64, slot.as_ref()?)))
        })
    }
}

/// The numbering of a message within a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamKey {
    pub user: u64,
    pub sender: u64,
    pub grant: u64,
}

/// An event as it was first shown to anybody.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub at: u64,
    pub user: u64,
    pub device: u64,
    pub ts: u64,
    pub stream: StreamKey,
    pub counter: u64,
    pub id: u64,
    pub body_hash: u64,
    pub kind: EventKind,
}

impl Event {
    pub fn of(deliver: &history::Deliver) -> Event {
        Event {
            at: deliver.at,
            user: deliver.user,
            device: deliver.device,
            ts: deliver.ts,
            stream: StreamKey {
                user: deliver.author,
                sender: deliver.sender,
                grant: deliver.grant,
            },
            counter: deliver.counter,
            id: deliver.id,
            body_hash: deliver.body_hash,
            kind: deliver.kind,
        }
    }

    pub fn record(&self, conversation: u64, seq: u64) -> Record {
        Record::Deliver(history::Deliver {
            at: self.at,
            user: self.user,
            device: self.device,
            conversation,
            seq,
            ts: self.ts,
            author: self.stream.user,
            sender: self.stream.sender,
            grant: self.stream.grant,
            counter: self.counter,
            id: self.id,
            kind: self.kind,
            body_hash: self.body_hash,
        })
    }

    /// Whether both are the same message (or server event).
    pub fn same_message(&self, other: &Event) -> bool {
        (self.stream, self.counter, self.id) == (other.stream, other.counter, other.id)
    }

    /// What of `other` differs, if anything does.
    pub fn difference(&self, other: &Event) -> Option<&'static str> {
        if !self.same_message(other) {
            Some("another message")
        } else if self.body_hash != other.body_hash || self.kind != other.kind {
            Some("another body")
        } else if self.ts != other.ts {
            Some("another time")
        } else {
            None
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub at: u64,
    pub device: u64,
    pub id: u64,
    pub body_hash: u64,
}

impl Sent {
    pub fn record(&self, conversation: u64, stream: StreamKey, counter: u64) -> Record {
        Record::Send(history::Send {
            at: self.at,
            user: stream.user,
            device: self.device,
            conversation,
            sender: stream.sender,
            grant: stream.grant,
            counter,
            id: self.id,
            body_hash: self.body_hash,
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Acked {
    pub at: u64,
    pub device: u64,
    /// The last accepted counter.
    pub counter: u64,
    pub id: u64,
    pub seq: u64,
    pub ts: u64,
    pub duplicate: bool,
    pub status: Status,
}

impl Acked {
    pub fn record(&self, conversation: u64, stream: StreamKey) -> Record {
        Record::Ack(history::Ack {
            at: self.at,
            user: stream.user,
            device: self.device,
            conversation,
            sender: stream.sender,
            grant: stream.grant,
            counter: self.counter,
            id: self.id,
            seq: self.seq,
            ts: self.ts,
            duplicate: self.duplicate,
            status: self.status,
        })
    }
}

/// A numbered message and the first answer that named it.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub sent: Option<Sent>,
    pub ack: Option<Acked>,
}

/// What a device was told of another user's cursors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// The highest in this life of the device.
    pub now: history::Receipt,
    /// The highest in its lives before: a new one may begin with less, and must come there.
    pub before: Option<history::Receipt>,
}

impl Told {
    /// The highest in all lives.
    pub fn highest(&self) -> history::Receipt {
        let before = self.before.unwrap_or(self.now);
        history::Receipt {
            delivered: self.now.delivered.max(before.delivered),
            read: self.now.read.max(before.read),
            ..self.now
        }
    }
}

/// All that one outbox numbered under one grant.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub messages: Paged<Message>,
    /// Further ids under a counter: replaced messages, copies of the outbox.
    pub also: HashMap<u64, Vec<Sent>>,
    /// Ids given up, by counter.
    pub failed: HashMap<u64, Vec<history::Failed>>,
    /// Counters and ids of which the user was told that nothing can be known.
    pub unknown: HashSet<(u64, u64)>,
    /// The answer that ended the grant.
    pub over: Option<Acked>,
}

impl Stream {
    /// Everything numbered under a counter.
    pub fn sent(&self, counter: u64) -> impl Iterator<Item = &Sent> {
        let first = self
            .messages
            .get(counter)
            .and_then(|message| message.sent.as_ref());
        first
            .into_iter()
            .chain(self.also.get(&counter).into_iter().flatten())
    }

    pub fn given_up(&self, counter: u64, id: u64) -> Option<&history::Failed> {
        self.failed
            .get(&counter)?
            .iter()
            .find(|failed| failed.id == id)
    }
}

/// A conversation as one device saw it.
#[derive(Debug)]
pub(crate) struct View {
    pub user: u64,
    /// Shown since the last reset.
    pub seen: Ranges,
    /// Shown before it and, as far as known, kept.
    pub kept: Ranges,
    /// Shown before it, kept or not.
    pub shown_before: Ranges,
    /// Left out between others before a reset.
    pub holes: Ranges,
    pub hidden: Ranges,
    pub later: Ranges,
    /// The highest claim of completeness.
    pub synced: Option<history::Synced>,
    pub ended: Option<history::Final>,
    pub cursor: Option<history::Cursor>,
}

impl View {
    pub fn new(user: u64) -> View {
        View {
            user,
            seen: Ranges::default(),
            kept: Ranges::default(),
            shown_before: Ranges::default(),
            holes: Ranges::default(),
            hidden: Ranges::default(),
            later: Ranges::default(),
            synced: None,
            ended: None,
            cursor: None,
        }
    }

    pub fn reset(&mut self) {
        let seen = std::mem::take(&mut self.seen);
        // What an earlier life had kept is not left out by a later one.
        self.holes.add(&seen.holes().minus(&self.kept));
        self.kept.add(&seen);
        self.shown_before.add(&seen);
    }

    pub fn resume(&mut self, kept: u64) {
        self.kept.cut_above(kept);
        // What was promised of the part that is gone is promised no more.
        if let Some(synced) = &mut self.synced {
            synced.head = synced.head.min(kept);
        }
    }

    /// What the device has.
    pub fn has(&self) -> Ranges {
        let mut has = self.kept.clone();
        has.add(&self.seen);
        has
    }

    /// What the device was ever shown.
    pub fn shown(&self) -> Ranges {
        let mut shown = self.shown_before.clone();
        shown.add(&self.seen);
        shown
    }
}

#[derive(Debug, Default)]
pub(crate) struct Conversation {
    pub events: Paged<Event>,
    /// Other events shown at a seq that has one, each message once.
    pub conflicts: BTreeMap<u64, Vec<Event>>,
    pub streams: HashMap<StreamKey, Stream>,
    pub views: HashMap<u64, View>,
    /// The visible ranges of a user.
    pub members: HashMap<u64, Vec<(u64, u64)>>,
    /// By (observer, member).
    pub receipts: BTreeMap<(u64, u64), Told>,
    pub unread: Vec<history::Unread>,
    /// Claims of completeness whose time of asking is known.
    pub asked: Vec<history::Synced>,
}

impl Conversation {
    pub fn visible(&self, user: u64) -> Ranges {
        match self.members.get(&user) {
            None => Ranges::of(1, u64::MAX),
            Some(ranges) => {
                let mut visible = Ranges::default();
                for &(from, to) in ranges {
                    visible.insert_range(from.max(1), to);
                }
                visible
            }
        }
    }

    pub fn keep_conflict(&mut self, seq: u64, event: Event) {
        let others = self.conflicts.entry(seq).or_default();
        let known = others.iter().any(|other| other.same_message(&event));
        if !known && others.len() < CONFLICTS_MAX {
            others.push(event);
        }
    }
}
