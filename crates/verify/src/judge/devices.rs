//! Rules about what devices were shown and told: completeness, visibility, cursors, receipts,
//! unread counts.

use super::Case;
use crate::Record;
use crate::ranges::Ranges;
use crate::report::{Findings, Kind, hex};
use crate::state::{Conversation, View};
use std::collections::HashMap;

/// The seqs that some device, said to be complete, could see.
pub(super) fn proven(conversation: &Conversation, claims: bool) -> Ranges {
    let mut proven = Ranges::default();
    if !claims {
        return proven;
    }
    for view in conversation.views.values() {
        let up_to = match (view.ended, view.synced) {
            // At the end everything had settled: a seq above the head it names is missing too.
            (Some(_), _) => u64::MAX,
            (None, Some(synced)) => synced.head,
            (None, None) => continue,
        };
        let mut may_see = conversation.visible(view.user).minus(&view.hidden);
        if view.ended.is_none() {
            may_see = may_see.minus(&view.later);
        }
        proven.add(&may_see.within(1, up_to));
    }
    proven
}

impl Case<'_> {
    /// The views in a fixed order, so that the same history gives the same report.
    fn views(&self) -> Vec<(u64, &View)> {
        let mut views: Vec<_> = self
            .conversation
            .views
            .iter()
            .map(|(&d, v)| (d, v))
            .collect();
        views.sort_unstable_by_key(|(device, _)| *device);
        views
    }

    pub(super) fn completeness(&self, findings: &mut Findings) {
        // Seqs that exist for sure, whoever was shown them.
        let mut exists = Ranges::default();
        for shown in &self.order {
            exists.insert(shown.seq);
        }
        for stream in self.conversation.streams.values() {
            for (_, message) in stream.messages.iter() {
                if let Some(ack) = message.ack.filter(|ack| ack.seq != 0) {
                    exists.insert(ack.seq);
                }
            }
        }
        for (device, view) in self.views() {
            let visible = self.conversation.visible(view.user);
            for (from, to) in view.shown().minus(&visible).iter() {
                findings.add_for(device, Kind::NotVisible, self.id, &[from, to], || {
                    let what = format!(
                        "Device {} was shown seqs {from} to {to}, outside of what its user may \
                         see.",
                        hex(device)
                    );
                    (
                        self.at_seq(from)
                            .map(|e| e.record(self.id, from))
                            .into_iter()
                            .collect(),
                        what,
                    )
                });
            }
            self.device(
                device,
                view,
                &visible.minus(&view.hidden),
                &exists,
                findings,
            );
        }
    }

    fn device(
        &self,
        device: u64,
        view: &View,
        may_see: &Ranges,
        exists: &Ranges,
        findings: &mut Findings,
    ) {
        let has = view.has();
        let last = has.max();
        let missing = may_see.minus(&has);
        let now = missing.minus(&view.later);
        let ended = view.ended.filter(|_| self.claims);
        let synced = view.synced.filter(|_| self.claims);
        let ended_head = ended.map_or(0, |end| end.head);
        let synced_head = synced.map_or(0, |synced| synced.head);

        let mut gaps = now.within(1, last);
        gaps.add(&missing.within(1, last.min(ended_head)));
        gaps.add(
            &may_see
                .minus(&may_see.minus(&view.holes))
                .minus(&view.later),
        );
        let above = last.saturating_add(1);
        let mut tail = missing.within(above, ended_head);
        tail.add(&now.within(above, synced_head));

        let claim = |head: u64| -> Vec<Record> {
            let ended = ended.filter(|end| end.head >= head).map(Record::from);
            let synced = synced
                .filter(|synced| synced.head >= head)
                .map(Record::from);
            ended.or(synced).into_iter().collect()
        };
        let known = |from: u64| self.at_seq(from).map(|event| event.record(self.id, from));
        for (from, to) in gaps.iter() {
            findings.add_for(device, Kind::Gap, self.id, &[from, to], || {
                let what = format!(
                    "Device {} was never shown seqs {from} to {to}.",
                    hex(device)
                );
                // If nobody was shown it either: what was shown above it.
                let shown = known(from).or_else(|| known(to.saturating_add(1)));
                (shown.into_iter().chain(claim(to)).collect(), what)
            });
        }
        for (from, to) in tail.iter() {
            findings.add_for(device, Kind::TailLost, self.id, &[from, to], || {
                let what = format!(
                    "Device {} was shown up to seq {last} and never the last, {from} to {to}.",
                    hex(device)
                );
                (known(from).into_iter().chain(claim(to)).collect(), what)
            });
        }
        let lies = now.within(1, synced_head);
        let denied = lies.minus(&lies.minus(exists));
        for (from, to) in denied.iter() {
            findings.add_for(device, Kind::CompleteLie, self.id, &[from, to], || {
                let what = format!(
                    "Device {} was called complete up to {synced_head} and was never shown seqs \
                     {from} to {to}.",
                    hex(device)
                );
                let records = known(from).into_iter().chain(synced.map(Record::from));
                (records.collect(), what)
            });
        }
    }

    pub(super) fn receipts(&self, findings: &mut Findings) {
        let mut head = self.order.last().map_or(0, |shown| shown.seq);
        let mut reached: HashMap<u64, u64> = HashMap::new();
        for view in self.conversation.views.values() {
            head = head.max(view.ended.map_or(0, |end| end.head));
            head = head.max(view.synced.map_or(0, |synced| synced.head));
            let shown = view.shown().max().max(view.hidden.max());
            let best = reached.entry(view.user).or_default();
            *best = (*best).max(shown);
        }
        for stream in self.conversation.streams.values() {
            for (_, message) in stream.messages.iter() {
                head = head.max(message.ack.map_or(0, |ack| ack.seq));
            }
        }
        for (device, view) in self.views() {
            let Some(cursor) = view.cursor else { continue };
            let shown = view.shown().max().max(view.hidden.max());
            if cursor.seq > shown {
                findings.add(Kind::ReceiptBeyond, self.id, &[shown, cursor.seq], || {
                    let what = format!(
                        "The cursor of device {} is {}; it was shown up to {shown} and the head \
                         is {head}.",
                        hex(device),
                        cursor.seq
                    );
                    (vec![cursor.into()], what)
                });
            }
        }
        for ((_, user), told) in &self.conversation.receipts {
            let receipt = told.highest();
            // Of a user whose devices aren't recorded only the head is known to bound it.
            let limit = reached.get(user).copied().unwrap_or(head);
            let highest = receipt.delivered.max(receipt.read);
            if highest > limit {
                findings.add(Kind::ReceiptBeyond, self.id, &[limit, highest], || {
                    let what = format!(
                        "User {} is said to have delivered {} and read {}; their devices were \
                         shown up to {limit} and the head is {head}.",
                        hex(*user),
                        receipt.delivered,
                        receipt.read
                    );
                    (vec![receipt.into()], what)
                });
            }
        }
    }

    pub(super) fn unread(&self, findings: &mut Findings) {
        for unread in &self.conversation.unread {
            let mut visible = self.conversation.visible(unread.user);
            if let Some(view) = self.conversation.views.get(&unread.device) {
                visible = visible.minus(&view.hidden);
            }
            let waiting = visible
                .within(unread.read.saturating_add(1), unread.head)
                .len();
            if waiting != unread.count {
                findings.add(
                    Kind::UnreadMismatch,
                    self.id,
                    &[unread.read, unread.head],
                    || {
                        let what = format!(
                            "Device {} was told {} unread after {} up to {}; there are {waiting}.",
                            hex(unread.device),
                            unread.count,
                            unread.read,
                            unread.head
                        );
                        (vec![(*unread).into()], what)
                    },
                );
            }
        }
    }
}
