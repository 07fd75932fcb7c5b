//! Gaps and tails, pages; events to the app in order and once.
//!
//! For each conversation `have` says how far the app has come; only its successor, or what
//! a page says to be hidden between, moves it. Everything above waits in `held`. A
//! conversation is behind while something is held or its head is known to be above `have`;
//! it is fetched when that lasts 300 ms, since frames on their way usually fill the hole.

use std::collections::BTreeMap;

use tidings_protocol::limits as published;
use tidings_protocol::wire::{self, Event, Kind, command};

use super::sync::SyncState;
use super::{AppEvent, ClientCore, Mode, PENDING_MAX, Pending, Purpose, SECOND};
use crate::saved::Cursor;

/// How long a hole may stay open before its range is fetched.
const HOLE_AFTER: u64 = 300_000;
/// Events above a hole that are held for one conversation; what doesn't fit is fetched again.
const HELD_MAX: usize = 512;
/// Pages asked for and not answered yet, over all conversations.
const FETCHES_MAX: usize = 8;
/// How long an answer to `history` is waited for.
const PAGE_WITHIN: u64 = 10 * SECOND;
/// A failed fetch or sync is repeated after this, doubled each time up to half a minute.
const RETRY_FIRST: u64 = SECOND;
const RETRY_LAST: u64 = 30 * SECOND;
/// Ranges left out that are remembered for one conversation; beyond it neighbours are joined.
const HOLES_MAX: usize = 64;

/// A conversation's history as far as this client is concerned.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// The app has all up to this seq, but for `holes`.
    pub(super) have: u64,
    /// The app has stored all up to this seq.
    pub(super) stored: u64,
    pub(super) read: u64,
    pub(super) holes: Vec<(u64, u64)>,
    /// What waits in the outbox isn't among the events up to this seq.
    pub(super) looked: u64,
    /// The highest seq heard of.
    pub(super) head: u64,
    pub(super) held: BTreeMap<u64, Event>,
    /// When to fetch; meaningful while behind.
    pub(super) due: u64,
    pub(super) failures: u32,
    pub(super) fetching: bool,
    /// The head a sync named, until it is reached and told.
    pub(super) announce: Option<u64>,
    /// The head that a sync of this connection named.
    pub(super) told: Option<u64>,
    /// What is below this seq is hidden from the user, as far as a sync told.
    pub(super) visible_from: u64,
    /// Nothing was ever known of this conversation.
    pub(super) new: bool,
}

impl Inbox {
    pub(super) fn new(cursor: &Cursor) -> Self {
        Inbox {
            have: cursor.have,
            stored: cursor.have,
            read: cursor.read,
            holes: cursor.holes.clone(),
            looked: cursor.looked,
            head: cursor.have,
            ..Inbox::default()
        }
    }

    /// Comes to `seq`; `looked`: what waits in the outbox isn't among the events on the way.
    fn went_to(&mut self, seq: u64, looked: bool) {
        if looked && self.looked == self.have {
            self.looked = seq;
        }
        self.have = seq;
    }

    fn is_behind(&self) -> bool {
        self.head > self.have || !self.held.is_empty()
    }

    fn hold(&mut self, event: Event) {
        self.held.insert(event.seq, event);
        if self.held.len() > HELD_MAX {
            self.held.pop_last();
        }
    }

    fn leave_out(&mut self, from: u64, to: u64) {
        self.holes.push((from, to));
        self.holes.sort_unstable();
        // The nearest two become one: a range asked for again is better than a forgotten one.
        while self.holes.len() > HOLES_MAX {
            let distance = |i: &usize| self.holes[i + 1].0 - self.holes[*i].1;
            let Some(i) = (0..self.holes.len() - 1).min_by_key(distance) else {
                break;
            };
            self.holes[i].1 = self.holes[i + 1].1.max(self.holes[i].1);
            self.holes.remove(i + 1);
        }
    }

    /// The range is known now.
    fn fill(&mut self, from: u64, to: u64) {
        let mut left = Vec::new();
        for &(a, b) in &self.holes {
            if b < from || a > to {
                left.push((a, b));
                continue;
            }
            if a < from {
                left.push((a, from - 1));
            }
            if b > to {
                left.push((to + 1, b));
            }
        }
        self.holes = left;
    }
}

pub(super) fn retry_delay(failures: u32) -> u64 {
    (RETRY_FIRST << failures.min(10)).min(RETRY_LAST)
}

impl ClientCore {
    pub(super) fn inbox(&mut self, conversation: u64) -> &mut Inbox {
        self.inboxes.entry(conversation).or_insert_with(|| Inbox {
            new: true,
            ..Inbox::default()
        })
    }

    /// An event came by itself.
    pub(super) fn event(&mut self, now: u64, event: Event) {
        let (conversation, seq) = (event.conversation, event.seq);
        let mode = self.config.mode;
        let syncing = self.sync.expected();
        let inbox = self.inbox(conversation);
        if std::mem::take(&mut inbox.new) && mode == Mode::NewestFirst && !syncing && seq > 1 {
            // A conversation that is new to this client: its past is for later.
            self.leave_out(conversation, 1, seq - 1);
        }
        self.offer(now, event);
        self.advance(now, conversation);
    }

    /// Remembers a range as left out and goes on behind it.
    pub(super) fn leave_out(&mut self, conversation: u64, from: u64, to: u64) {
        let inbox = self.inbox(conversation);
        let from = from.max(inbox.have + 1);
        if from > to {
            return;
        }
        inbox.leave_out(from, to);
        self.jump(conversation, to);
        self.app(AppEvent::Hole {
            conversation,
            from,
            to,
        });
    }

    /// Nothing up to `to` is to be waited for.
    pub(super) fn jump(&mut self, conversation: u64, to: u64) {
        let looked = !self.has_restored(conversation);
        let inbox = self.inbox(conversation);
        if to > inbox.have {
            inbox.went_to(to, looked);
            inbox.held = inbox.held.split_off(&(to + 1));
            self.gave(conversation);
        }
    }

    /// Whether the outbox still has to look for messages that another life may have sent: what is
    /// passed over unseen may hold them.
    fn has_restored(&self, conversation: u64) -> bool {
        self.flows.get(&conversation).is_some_and(|f| f.restored)
    }

    /// Gives the event to the app if it is the next one, holds it if it is a later one.
    pub(super) fn offer(&mut self, now: u64, event: Event) {
        let conversation = event.conversation;
        let inbox = self.inbox(conversation);
        inbox.head = inbox.head.max(event.seq);
        if event.seq <= inbox.have {
            return;
        }
        if event.seq == inbox.have + 1 {
            self.give(now, event);
        } else {
            inbox.hold(event);
        }
    }

    fn give(&mut self, now: u64, event: Event) {
        let conversation = event.conversation;
        let inbox = self.inbox(conversation);
        inbox.went_to(event.seq, true);
        inbox.failures = 0;
        self.gave(conversation);
        if event.kind == i32::from(Kind::Members) {
            self.app(AppEvent::Members(event.clone()));
        } else {
            self.app(AppEvent::Message(event.clone()));
        }
        self.examine(now, &event);
    }

    /// Gives what is held and next by now, and sees whether the conversation is behind.
    pub(super) fn advance(&mut self, now: u64, conversation: u64) {
        loop {
            let inbox = self.inbox(conversation);
            let next = inbox.have + 1;
            match inbox.held.first_key_value() {
                Some((&seq, _)) if seq < next => {
                    inbox.held.pop_first();
                }
                Some((&seq, _)) if seq == next => {
                    if let Some((_, event)) = inbox.held.pop_first() {
                        self.give(now, event);
                    }
                }
                _ => break,
            }
        }
        let inbox = self.inbox(conversation);
        if inbox.is_behind() {
            if !self.behind.contains(&conversation) {
                self.inbox(conversation).due = now + HOLE_AFTER;
                self.behind.insert(conversation);
            }
        } else {
            self.behind.remove(&conversation);
        }
        let inbox = self.inbox(conversation);
        if let Some(head) = inbox.announce.filter(|&head| inbox.have >= head) {
            inbox.announce = None;
            self.app(AppEvent::Synced { conversation, head });
        }
    }

    /// Somebody said that the conversation has come this far.
    pub(super) fn note_head(&mut self, now: u64, conversation: u64, head: u64) {
        let inbox = self.inbox(conversation);
        if head > inbox.head {
            inbox.head = head;
            self.advance(now, conversation);
        }
    }

    /// Fetches what is due.
    pub(super) fn service_behind(&mut self, now: u64) {
        if !self.link.ready() || self.sync.under_way {
            return;
        }
        let page_max = self.page_max();
        let mut room = self.fetch_room();
        let behind: Vec<u64> = self.behind.iter().copied().collect();
        for conversation in behind {
            if room == 0 {
                break;
            }
            let inbox = self.inbox(conversation);
            if inbox.fetching || inbox.due > now {
                continue;
            }
            inbox.fetching = true;
            room -= 1;
            let after = inbox.have;
            // Exactly the hole, if it is small; a page of what follows otherwise. What is held may be given by now:
            // the update under way ends with that.
            let held = inbox.held.range(after.saturating_add(1)..).next();
            let hole = held.map_or(u64::MAX, |(&seq, _)| {
                seq.saturating_sub(after).saturating_sub(1)
            });
            let limit = u32::try_from(hole).unwrap_or(u32::MAX).min(page_max).max(1);
            self.ask_page(now, Purpose::Gap, conversation, after, limit);
        }
    }

    fn fetch_room(&self) -> usize {
        FETCHES_MAX.saturating_sub(
            self.pending
                .values()
                .filter(|p| p.purpose == Purpose::Gap)
                .count(),
        )
    }

    pub(super) fn page_max(&self) -> u32 {
        match self.limits.page_max {
            0 => published::PAGE_MAX,
            max => max,
        }
    }

    pub(super) fn ask_page(
        &mut self,
        now: u64,
        purpose: Purpose,
        conversation: u64,
        after: u64,
        limit: u32,
    ) {
        let history = wire::History {
            conversation,
            before: 0,
            after,
            limit,
        };
        self.ask(
            purpose,
            conversation,
            now + PAGE_WITHIN,
            command::Command::History(history),
        );
    }

    /// Asks for the newest page below `before`; it comes as [`AppEvent::Older`].
    /// False: there is no connection now, or too many pages are being waited for.
    pub fn fetch_older(&mut self, now: u64, conversation: u64, before: u64) -> bool {
        if !self.link.ready() || self.pending.len() >= PENDING_MAX {
            return false;
        }
        let history = wire::History {
            conversation,
            before,
            after: 0,
            limit: self.page_max(),
        };
        let deadline = now + PAGE_WITHIN;
        self.ask(
            Purpose::Older,
            conversation,
            deadline,
            command::Command::History(history),
        );
        self.flush_commands(now);
        true
    }

    pub(super) fn history_page(&mut self, now: u64, r#ref: u64, page: wire::HistoryPage) {
        let purpose = self.pending.remove(&r#ref).map(|p| p.purpose);
        let conversation = page.conversation;
        match purpose {
            Some(Purpose::Lookup) => self.lookup_page(now, &page),
            Some(Purpose::Older) => {
                for event in &page.events {
                    self.examine(now, event);
                }
                self.inbox(conversation).fill(page.from, page.to);
                self.cursors.keep(conversation);
                self.app(AppEvent::Older {
                    conversation,
                    from: page.from,
                    to: page.to,
                    events: page.events,
                });
                return;
            }
            Some(Purpose::Gap) => self.inbox(conversation).fetching = false,
            // Too late, or asked by another life of this client: it tells its range all the same.
            Some(Purpose::Sync) | None => {}
        }
        let before = self.inbox(conversation).have;
        if page.from <= before + 1 {
            self.take_range(now, page.to, conversation, page.events);
        } else {
            for event in page.events {
                self.offer(now, event);
            }
        }
        let inbox = self.inbox(conversation);
        inbox.head = inbox.head.max(page.head);
        self.advance(now, conversation);
        if purpose == Some(Purpose::Gap) {
            let inbox = self.inbox(conversation);
            if inbox.have > before {
                inbox.due = now;
            } else {
                inbox.due = now + retry_delay(inbox.failures);
                inbox.failures += 1;
            }
        }
    }

    /// Gives all up to `to`; what isn't among the events, nor held, is hidden from this user.
    fn take_range(&mut self, now: u64, to: u64, conversation: u64, events: Vec<Event>) {
        let inbox = self.inbox(conversation);
        for event in events.into_iter().filter(|e| e.seq > inbox.have) {
            inbox.held.insert(event.seq, event);
        }
        loop {
            let inbox = self.inbox(conversation);
            let Some(first) = inbox.held.first_entry().filter(|e| *e.key() <= to) else {
                break;
            };
            let event = first.remove();
            if event.seq > inbox.have {
                self.jump(conversation, event.seq - 1);
                self.give(now, event);
            }
        }
        self.jump(conversation, to);
    }

    /// A page could not be had.
    pub(super) fn page_failed(&mut self, now: u64, pending: Pending, retry_after: u64) {
        match pending.purpose {
            Purpose::Gap => {
                let inbox = self.inbox(pending.conversation);
                inbox.fetching = false;
                inbox.due = now + retry_delay(inbox.failures).max(retry_after);
                inbox.failures += 1;
            }
            Purpose::Lookup => self.lookup_failed(now, pending.conversation, retry_after),
            Purpose::Sync => self.sync_failed(now, retry_after),
            Purpose::Older => {}
        }
    }

    pub(super) fn expire_pending(&mut self, now: u64) {
        let late: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, p)| p.deadline <= now)
            .map(|(&r, _)| r)
            .collect();
        for r#ref in late {
            if let Some(pending) = self.pending.remove(&r#ref) {
                self.page_failed(now, pending, 0);
            }
        }
    }

    pub(super) fn next_behind(&self) -> Option<u64> {
        if self.sync.under_way || self.fetch_room() == 0 {
            return None;
        }
        (self.behind.iter())
            .filter_map(|c| self.inboxes.get(c))
            .filter(|inbox| !inbox.fetching)
            .map(|inbox| inbox.due)
            .min()
    }

    pub(super) fn history_down(&mut self) {
        self.sync = SyncState::default();
        for inbox in self.inboxes.values_mut() {
            inbox.fetching = false;
            inbox.failures = 0;
            inbox.told = None;
        }
    }
}
