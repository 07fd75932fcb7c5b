//! Finding out from the history what became of messages.
//!
//! Four things need it: an outbox that is a copy, a sender id that the server may have
//! forgotten, messages that waited when the client started, and a grant that ended while a
//! gateway refuses to ask the router. A lookup reads every seq from the last one known to be
//! this lane's up to the head that the answer named; nothing of the old lineage can be
//! accepted after that head, so what isn't found never was. An outbox that is a copy reads
//! on to the head that a sync of this connection told: the other one may have sent the same
//! messages under a fresh sender id of its own.

use std::collections::BTreeMap;

use tidings_protocol::wire;

use super::outbox::OWN_IDS_MAX;
use super::{AppEvent, ClientCore, FailReason, LocalId, PENDING_MAX, Purpose, SECOND};
use crate::saved::PersistOp;

/// A page that could not be had is asked for again after this, doubled up to half a minute.
const RETRY_FIRST: u64 = SECOND;
const RETRY_LAST: u64 = 30 * SECOND;

/// Why the history is looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The outbox is a copy; `stale`: the other one uses a later grant.
    Copy { stale: bool },
    /// No answer for so long that the server may not know the sender id any more.
    Expired,
    /// The grant has ended and a gateway lets no send through that would bring the answer.
    Ended,
    /// Whether messages that waited at the start were sent by another life of this outbox.
    Restored,
}

/// A reading of the history under way.
#[derive(Debug)]
pub(super) struct Lookup {
    why: Why,
    /// The next seq to read.
    at: u64,
    /// The last one.
    to: u64,
    /// `to` is at least what a sync of this connection said.
    synced: bool,
    asked: bool,
    retry_at: u64,
    failures: u32,
    /// What was found of the lane's messages.
    found: BTreeMap<u64, wire::Event>,
    /// Ids of the user's own events in the range, by sender, grant and counter.
    ids: BTreeMap<(u64, u64, u64), u64>,
    /// Some seqs in the range are hidden from the user.
    hidden: bool,
    /// The event that ended the lane's grant was seen.
    ended: bool,
}

impl Lookup {
    pub(super) fn why(&self) -> Why {
        self.why
    }

    /// Whether it ends with a fresh sender id: then no answer to the old one counts.
    pub(super) fn leaves_sender(&self) -> bool {
        matches!(self.why, Why::Copy { .. } | Why::Expired)
    }

    /// What it waited for is there.
    pub(super) fn hurry(&mut self, now: u64) {
        if !self.synced {
            self.retry_at = now;
        }
    }

    pub(super) fn retry_at(&self) -> Option<u64> {
        (!self.asked).then_some(self.retry_at)
    }
}

impl ClientCore {
    /// Begins to look, unless a weightier look is under way.
    pub(super) fn look_up(&mut self, now: u64, conversation: u64, why: Why, to: u64) {
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return;
        };
        let (grant, mut at) = (lane.grant, lane.floor() + 1);
        if why == Why::Restored && !lane.over {
            // They waited all the time, so every event up to there was held against them as it
            // came. What an ended grant left was numbered then, and wasn't looked for.
            at = self.inbox(conversation).looked + 1;
        }
        let first = self.inbox(conversation).visible_from;
        let flow = self.flow(conversation);
        if flow
            .lookup
            .as_ref()
            .is_some_and(|l| l.leaves_sender() || l.why == why)
        {
            return;
        }
        flow.lookup = Some(Lookup {
            why,
            at: at.max(first),
            to,
            synced: false,
            asked: false,
            retry_at: now,
            failures: 0,
            found: BTreeMap::new(),
            ids: BTreeMap::new(),
            hidden: at < first,
            ended: false,
        });
        if why == (Why::Copy { stale: true }) {
            self.grant_ended(now, conversation, grant);
        }
        self.recount(conversation);
        self.tick_lookup(now, conversation);
    }

    /// A sync has told the head: what waited for that goes on.
    pub(super) fn told(&mut self, now: u64, conversation: u64) {
        if let Some(lookup) = &mut self.flow(conversation).lookup {
            lookup.hurry(now);
            self.tick_lookup(now, conversation);
        }
        self.look_for_restored(now, conversation);
    }

    /// Looks for messages that waited at the start, once a sync has told the head.
    pub(super) fn look_for_restored(&mut self, now: u64, conversation: u64) {
        let (ready, syncing) = (self.link.ready(), self.sync.expected());
        let told = self.inbox(conversation).told;
        let flow = self.flow(conversation);
        if !ready || !flow.restored || flow.lookup.is_some() {
            return;
        }
        match told {
            Some(head) => self.look_up(now, conversation, Why::Restored, head),
            // The user came into the conversation after the sync.
            None if !syncing && flow.may_write() && flow.ask_grant() => self.want_sync(now),
            None => {}
        }
    }

    pub(super) fn tick_lookup(&mut self, now: u64, conversation: u64) {
        if !self.link.ready() {
            return;
        }
        let page_max = self.page_max();
        let crowded = self.pending.len() >= PENDING_MAX;
        let inbox = self.inbox(conversation);
        let (told, head) = (inbox.told.is_some(), inbox.head);
        let waits = !told && self.sync.expected();
        let Some(lookup) = &mut self.flow(conversation).lookup else {
            return;
        };
        if lookup.asked || lookup.retry_at > now {
            return;
        }
        if lookup.leaves_sender() && !lookup.synced {
            if waits {
                lookup.retry_at = now + RETRY_FIRST;
                return;
            }
            lookup.synced = true;
            lookup.to = lookup.to.max(head);
        }
        if lookup.at > lookup.to {
            self.finish_lookup(now, conversation);
            return;
        }
        if crowded {
            lookup.retry_at = now + RETRY_FIRST;
            return;
        }
        lookup.asked = true;
        let after = lookup.at - 1;
        self.ask_page(now, Purpose::Lookup, conversation, after, page_max);
    }

    pub(super) fn lookup_failed(&mut self, now: u64, conversation: u64, retry_after: u64) {
        if let Some(lookup) = &mut self.flow(conversation).lookup {
            let delay = (RETRY_FIRST << lookup.failures.min(10)).min(RETRY_LAST);
            lookup.failures += 1;
            lookup.asked = false;
            lookup.retry_at = now + delay.max(retry_after);
        }
    }

    pub(super) fn lookup_page(&mut self, now: u64, page: &wire::HistoryPage) {
        let conversation = page.conversation;
        let user = self.user;
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return;
        };
        let flow = self.flows.entry(conversation).or_default();
        let Some(lookup) = flow.lookup.as_mut() else {
            return;
        };
        if page.from > lookup.at || page.to < lookup.at {
            self.lookup_failed(now, conversation, 0);
            return;
        }
        let last = page.to.min(lookup.to);
        let mut seen = 0;
        for event in page
            .events
            .iter()
            .filter(|e| (lookup.at..=last).contains(&e.seq))
        {
            seen += 1;
            let changes = event.members.iter().flat_map(|m| &m.changes);
            lookup.ended |= changes
                .into_iter()
                .any(|c| c.user == user && c.ended != 0 && c.ended == lane.grant);
            if event.user != user {
                continue;
            }
            let before = event.counter.wrapping_sub(1);
            let base = (event.sender, event.grant, before) == (lane.sender, lane.grant, lane.acked);
            let previous = match before {
                _ if base => Some(lane.acked_id),
                0 => Some(0),
                _ => lookup
                    .ids
                    .get(&(event.sender, event.grant, before))
                    .copied(),
            };
            if lookup.ids.len() >= OWN_IDS_MAX {
                lookup.ids.pop_first();
            }
            lookup
                .ids
                .insert((event.sender, event.grant, event.counter), event.id);
            if let Some(message) = lane.queue.iter().find(|m| m.is(event.id, previous)) {
                lookup.found.insert(message.local, event.clone());
            }
        }
        lookup.hidden |= seen < last + 1 - lookup.at;
        lookup.at = page.to + 1;
        lookup.asked = false;
        lookup.retry_at = now;
        lookup.failures = 0;
        for event in &page.events {
            self.examine(now, event);
        }
        self.tick_lookup(now, conversation);
    }

    fn finish_lookup(&mut self, now: u64, conversation: u64) {
        let Some(lookup) = self.flow(conversation).lookup.take() else {
            return;
        };
        match lookup.why {
            Why::Copy { .. } | Why::Expired => self.take_fresh_sender(conversation, &lookup),
            Why::Ended => {
                // Its own messages were taken as answers while reading. What is hidden could
                // hold more of them, and without the event that ended the grant nothing is
                // certain; then the router's word is waited for.
                if lookup.ended && !lookup.hidden {
                    self.over(now, conversation);
                }
            }
            // Those sent were settled while reading.
            Why::Restored => {
                if lookup.hidden {
                    self.give_up_restored(conversation);
                }
                self.flow(conversation).restored = false;
                let inbox = self.inbox(conversation);
                inbox.looked = inbox.have;
                self.cursors.keep(conversation);
            }
        }
        self.look_for_restored(now, conversation);
        self.pump(now, conversation);
    }

    /// The hidden part of the history may hold what waited at the start: twice would be worse than
    /// saying so.
    fn give_up_restored(&mut self, conversation: u64) {
        let last = self.flow(conversation).restored_last;
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return;
        };
        let waiting = lane.queue.iter().skip(lane.numbered).map(|m| m.local);
        for local in waiting.filter(|&l| l <= last).collect::<Vec<_>>() {
            self.app(AppEvent::Unknown {
                conversation,
                local: LocalId(local),
            });
            self.settle(conversation, local);
        }
    }

    /// Leaves the sender id: what was found is sent, the rest is numbered anew.
    fn take_fresh_sender(&mut self, conversation: u64, lookup: &Lookup) {
        enum Fate {
            Sent(wire::Event),
            Failed(String),
            Unknown,
        }
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return;
        };
        let old = lane.sender;
        let restored = self.flows.get(&conversation).filter(|f| f.restored);
        let restored_last = restored.map_or(0, |f| f.restored_last);
        let mut fates = Vec::new();
        for (place, message) in lane.queue.iter().enumerate() {
            // What an ended grant left was numbered in the part that was read.
            let numbered = place < lane.numbered || lane.over && message.local <= restored_last;
            let fate = match (lookup.found.get(&message.local), &message.refused) {
                (Some(event), _) => Fate::Sent(event.clone()),
                // It itself wasn't accepted and never will be under the old sender id.
                (_, Some(refused)) => Fate::Failed(refused.code.clone()),
                // The hidden part may hold it: twice would be worse than saying so.
                (None, None) if lookup.hidden && numbered => Fate::Unknown,
                _ => continue,
            };
            fates.push((message.local, message.body.len(), fate));
        }
        let decided = fates.iter().map(|(local, ..)| *local).collect();
        for (local, bytes, fate) in fates {
            self.leaves(bytes);
            match fate {
                Fate::Sent(event) => self.sent(conversation, local, &event),
                Fate::Failed(code) => self.fail(conversation, local, FailReason::Refused(code)),
                Fate::Unknown => {
                    self.app(AppEvent::Unknown {
                        conversation,
                        local: LocalId(local),
                    });
                }
            }
        }
        let new = self.random_id();
        self.persist(PersistOp::Fresh {
            conversation,
            sender: new,
            decided,
        });
        if matches!(lookup.why, Why::Copy { .. }) {
            self.app(AppEvent::CopyNoticed {
                conversation,
                old,
                new,
            });
        }
        self.recount(conversation);
        self.still_busy(conversation);
    }
}
