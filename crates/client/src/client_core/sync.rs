//! Asking for all that was missed, and the end of a log.

use std::collections::BTreeSet;

use tidings_protocol::limits as published;
use tidings_protocol::wire::{self, ConversationKind, Role, command};

use super::history::retry_delay;
use super::{AppEvent, ClientCore, ConversationInfo, Mode, Purpose, SECOND};
use crate::saved::PersistOp;

/// How long the next part of a sync's answer is waited for.
const SYNC_WITHIN: u64 = 60 * SECOND;

/// Where the sync stands.
#[derive(Debug, Default)]
pub(super) struct SyncState {
    pub(super) under_way: bool,
    /// Ask again once the one under way is done.
    pub(super) again: bool,
    pub(super) retry_at: Option<u64>,
    pub(super) failures: u32,
    /// What the one under way has told of: some may be lost on the way.
    told: BTreeSet<u64>,
}

impl SyncState {
    pub(super) fn expected(&self) -> bool {
        self.under_way || self.retry_at.is_some()
    }
}

impl ClientCore {
    /// Asks for everything after the cursors, now or when the sync under way is done.
    pub(super) fn want_sync(&mut self, now: u64) {
        if self.sync.under_way {
            self.sync.again = true;
            return;
        }
        self.sync.under_way = true;
        self.sync.told.clear();
        self.sync.again = false;
        self.sync.retry_at = None;
        // A conversation left out for want of room comes as if new; what it repeats is dropped.
        let cursors: Vec<wire::Cursor> = self
            .inboxes
            .iter()
            .filter(|(_, inbox)| inbox.have > 0)
            .take(published::SYNC_CURSORS_MAX)
            .map(|(&conversation, inbox)| wire::Cursor {
                conversation,
                seq: inbox.have,
            })
            .collect();
        let epoch = if cursors.is_empty() {
            0
        } else {
            self.saved.epoch
        };
        let sync = wire::Sync {
            epoch,
            cursors,
            page: self.config.page,
        };
        self.ask(
            Purpose::Sync,
            0,
            now + SYNC_WITHIN,
            command::Command::Sync(sync),
        );
    }

    pub(super) fn sync_failed(&mut self, now: u64, retry_after: u64) {
        self.sync.under_way = false;
        let delay = retry_delay(self.sync.failures).max(retry_after);
        self.sync.failures += 1;
        self.sync.retry_at = Some(now + delay);
    }

    pub(super) fn sync_page(&mut self, now: u64, page: wire::SyncPage) {
        let conversation = page.conversation;
        for pending in self
            .pending
            .values_mut()
            .filter(|p| p.purpose == Purpose::Sync)
        {
            pending.deadline = now + SYNC_WITHIN;
        }
        self.app(AppEvent::Conversation(ConversationInfo {
            conversation,
            kind: ConversationKind::try_from(page.kind).unwrap_or(ConversationKind::Group),
            title: page.title,
            head: page.head,
            role: Role::try_from(page.role).unwrap_or(Role::None),
            may_write: page.grant != 0,
            visible_from: page.visible_from,
            read: page.read,
        }));
        self.learn_grant(conversation, page.head, page.grant);
        self.sync.told.insert(conversation);
        let inbox = self.inbox(conversation);
        inbox.new = false;
        inbox.head = inbox.head.max(page.head);
        inbox.announce = Some(page.head);
        inbox.told = Some(page.head);
        inbox.visible_from = page.visible_from;
        let shown_from = page.visible_from.min(page.head + 1);
        if inbox.have + 1 < shown_from {
            self.jump(conversation, shown_from - 1);
        }
        self.read_elsewhere(conversation, page.read);
        if let (Mode::NewestFirst, 1.., Some(first)) =
            (self.config.mode, page.missing_from, page.events.first())
        {
            let (from, to) = (page.missing_from, first.seq.saturating_sub(1));
            self.leave_out(conversation, from, to);
        }
        for event in page.events {
            self.offer(now, event);
        }
        self.advance(now, conversation);
        self.told(now, conversation);
        self.pump(now, conversation);
    }

    pub(super) fn sync_done(&mut self, now: u64, done: &wire::SyncDone) {
        self.pending.retain(|_, p| p.purpose != Purpose::Sync);
        self.sync.under_way = false;
        if done.reset {
            self.reset(done.epoch);
            self.want_sync(now);
            return;
        }
        if done.epoch != 0 && self.saved.epoch == 0 {
            self.persist(PersistOp::Epoch { epoch: done.epoch });
        }
        // The server says of how many conversations it told: one that isn't here got lost on its way.
        let whole = self.sync.told.len() >= done.conversations as usize;
        let complete = done.complete && whole;
        self.app(AppEvent::SyncDone { complete });
        let mut busy = self.busy.iter();
        let in_doubt = busy.any(|c| self.flows.get(c).is_some_and(|flow| flow.in_doubt));
        if complete && in_doubt {
            self.told_nothing(done.conversations);
            self.sync_failed(now, 0);
        } else if complete {
            self.sync.failures = 0;
            self.told_nothing(done.conversations);
        } else {
            self.sync_failed(now, 0);
        }
        if self.sync.again {
            self.want_sync(now);
        }
        let behind: Vec<u64> = self.behind.iter().copied().collect();
        for conversation in behind {
            // Nothing of the sync is on its way any more, so there is nothing to wait for.
            self.inbox(conversation).due = now;
        }
        self.after_sync(now);
    }

    /// A complete sync, of so many conversations, is silent about one that the user left if the
    /// cursor it got is not before the end: then all there was for the user is known.
    fn told_nothing(&mut self, conversations: u32) {
        let is_whole = self.sync.told.len() == conversations as usize;
        if is_whole && self.inboxes.len() <= published::SYNC_CURSORS_MAX {
            let silent = (self.inboxes.values_mut()).filter(|i| i.told.is_none() && i.have > 0);
            silent.for_each(|inbox| inbox.told = Some(inbox.have));
        }
    }

    /// The log is another one: nothing known of it counts.
    pub(super) fn reset(&mut self, epoch: u32) {
        let sender = self.random_id();
        let refused: Vec<(u64, u64, String)> = (self.saved.lanes.iter())
            .flat_map(|(&c, lane)| lane.queue.iter().map(move |m| (c, m)))
            .filter_map(|(c, m)| Some((c, m.local, m.refused.as_ref()?.code.clone())))
            .collect();
        self.persist(PersistOp::Reset { epoch, sender });
        for (conversation, local, code) in refused {
            self.fail(conversation, local, super::FailReason::Refused(code));
        }
        self.inboxes.clear();
        self.behind.clear();
        self.cursors.clear();
        self.pending.clear();
        self.sync = SyncState::default();
        self.outbox_reset();
        self.app(AppEvent::Reset);
    }

    pub(super) fn tick_sync(&mut self, now: u64) {
        if self.sync.retry_at.is_some_and(|at| at <= now) {
            self.want_sync(now);
        }
    }

    pub(super) fn next_sync(&self) -> Option<u64> {
        self.sync.retry_at
    }
}
