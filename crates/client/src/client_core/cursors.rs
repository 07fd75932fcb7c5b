//! Delivered and read cursors, and receipts of others. Nothing here ever goes back.

use std::collections::{BTreeMap, BTreeSet};

use tidings_protocol::wire::{self, command};

use super::{AppEvent, ClientCore, SECOND, StoredBy};
use crate::saved::{Cursor, PersistOp};

/// Cursors are reported at most this often, all in one frame; far below the 30 s after
/// which a server takes its events for lost.
const FLUSH_EVERY: u64 = SECOND;

/// The same when the user has read something: somebody may be waiting for the mark.
const READ_FLUSH_EVERY: u64 = SECOND / 20;

/// Cursors of other members that are remembered; those of further members aren't told.
const RECEIPTS_MAX: usize = 100_000;

/// Which cursors moved, and what others' cursors were told.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    /// To be saved.
    unsaved: BTreeSet<u64>,
    /// Delivered cursors to be reported.
    delivered: BTreeSet<u64>,
    /// Read cursors to be reported.
    read: BTreeSet<u64>,
    /// Reported on this connection: again on the next one, since a report has no answer.
    reported: BTreeSet<u64>,
    flushed_at: u64,
    receipts: BTreeMap<(u64, u64), (u64, u64)>,
}

impl Cursors {
    pub(super) fn moved(&mut self, conversation: u64) {
        self.unsaved.insert(conversation);
        self.delivered.insert(conversation);
    }

    pub(super) fn read(&mut self, conversation: u64) {
        self.unsaved.insert(conversation);
        self.read.insert(conversation);
    }

    /// What is kept of a conversation changed, and nothing to report.
    pub(super) fn keep(&mut self, conversation: u64) {
        self.unsaved.insert(conversation);
    }

    pub(super) fn clear(&mut self) {
        *self = Cursors {
            flushed_at: self.flushed_at,
            ..Cursors::default()
        };
    }
}

impl ClientCore {
    /// Saves and reports what moved, if the last time is long enough ago.
    pub(super) fn flush_cursors(&mut self, now: u64) {
        if self.next_cursors().is_some_and(|at| at <= now) {
            self.flush_cursors_now(now);
        }
    }

    pub(super) fn flush_cursors_now(&mut self, now: u64) {
        self.cursors.flushed_at = now;
        self.save_cursors();
        if !self.link.ready() {
            return;
        }
        for conversation in std::mem::take(&mut self.cursors.delivered) {
            let Some(inbox) = self.inboxes.get(&conversation) else {
                continue;
            };
            let seq = inbox.stored;
            if seq > 0 {
                self.command(command::Command::Delivered(wire::Delivered {
                    conversation,
                    seq,
                }));
                self.cursors.reported.insert(conversation);
            }
        }
        for conversation in std::mem::take(&mut self.cursors.read) {
            let Some(inbox) = self.inboxes.get(&conversation) else {
                continue;
            };
            let read = wire::Read {
                conversation,
                seq: inbox.read,
                message_id: Default::default(),
            };
            self.command(command::Command::Read(read));
        }
    }

    /// The cursors are saved before they are reported: a device never says that it has
    /// what it would ask for again after a crash.
    fn save_cursors(&mut self) {
        let mut rows = Vec::new();
        for conversation in std::mem::take(&mut self.cursors.unsaved) {
            let Some(inbox) = self.inboxes.get(&conversation) else {
                continue;
            };
            let cursor = Cursor {
                have: inbox.stored,
                read: inbox.read,
                looked: inbox.looked.min(inbox.stored),
                holes: inbox.holes.clone(),
            };
            if self.saved.cursors.get(&conversation) != Some(&cursor) {
                rows.push((conversation, cursor));
            }
        }
        if !rows.is_empty() {
            self.persist(PersistOp::Cursors { rows });
        }
    }

    pub(super) fn cursors_down(&mut self) {
        self.save_cursors();
        let reported = std::mem::take(&mut self.cursors.reported);
        self.cursors.delivered.extend(reported);
    }

    pub(super) fn next_cursors(&self) -> Option<u64> {
        if !self.cursors.read.is_empty() && self.link.ready() {
            return Some(self.cursors.flushed_at + READ_FLUSH_EVERY);
        }
        let report = !self.cursors.delivered.is_empty() && self.link.ready();
        let waits = report || !self.cursors.unsaved.is_empty();
        waits.then_some(self.cursors.flushed_at + FLUSH_EVERY)
    }

    /// An event was given to the app.
    pub(super) fn gave(&mut self, conversation: u64) {
        if self.config.stored_by == StoredBy::Core {
            if let Some(inbox) = self.inboxes.get_mut(&conversation) {
                inbox.stored = inbox.have;
            }
            self.cursors.moved(conversation);
        }
    }

    pub(super) fn receipts(&mut self, receipts: wire::Receipts) {
        let conversation = receipts.conversation;
        for receipt in receipts.receipts {
            let key = (conversation, receipt.user);
            let known = self.cursors.receipts.get(&key).copied();
            if known.is_none() && self.cursors.receipts.len() >= RECEIPTS_MAX {
                continue;
            }
            let before = known.unwrap_or_default();
            let after = (before.0.max(receipt.delivered), before.1.max(receipt.read));
            if after == before {
                continue;
            }
            self.cursors.receipts.insert(key, after);
            if receipt.user == self.user {
                self.read_elsewhere(conversation, after.1);
            }
            self.app(AppEvent::Receipt {
                conversation,
                user: receipt.user,
                delivered: after.0,
                read: after.1,
            });
        }
    }

    /// The user's read cursor as the server has it, perhaps moved by another device.
    pub(super) fn read_elsewhere(&mut self, conversation: u64, read: u64) {
        let Some(inbox) = self.inboxes.get_mut(&conversation) else {
            return;
        };
        if read > inbox.read {
            inbox.read = read;
            self.cursors.keep(conversation);
        } else if read < inbox.read {
            self.cursors.read(conversation);
        }
    }
}
