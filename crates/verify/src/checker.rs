//! Takes a history record by record; what can be judged at once is.

use crate::history::{self, Record, Status};
use crate::judge::{Ghost, judge, name_ghosts};
use crate::report::{Findings, Kind, Report, hex};
use crate::state::{Acked, Conversation, Event, Sent, StreamKey, Told, View};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};

/// How to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many anomalies of each kind are kept in full.
    pub detail: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { detail: 5 }
    }
}

/// Judges a history as it comes.
///
/// The records of one device must come in its order, those of several roughly by time. Memory
/// grows with messages, events and (device, conversation) pairs, not with deliveries.
pub struct Checker {
    conversations: BTreeMap<u64, Conversation>,
    all_conversations: HashSet<u64>,
    devices: HashSet<u64>,
    epoch: Option<u64>,
    findings: Findings,
    report: Report,
}

/// Judges a whole history.
pub fn check(history: &[Record]) -> Report {
    let mut checker = Checker::new(Options::default());
    for record in history {
        checker.push(record);
    }
    checker.finish()
}

impl Checker {
    /// A checker that has seen nothing.
    pub fn new(options: Options) -> Checker {
        Checker {
            conversations: BTreeMap::new(),
            all_conversations: HashSet::new(),
            devices: HashSet::new(),
            epoch: None,
            findings: Findings::new(options.detail),
            report: Report::default(),
        }
    }

    /// Takes the next record.
    pub fn push(&mut self, record: &Record) {
        self.report.records += 1;
        match record {
            Record::Deliver(deliver) => self.deliver(deliver),
            Record::Send(send) => self.send(send),
            Record::Ack(ack) => self.ack(ack),
            Record::Failed(failed) => {
                let stream = stream_key(failed.user, failed.sender, failed.grant);
                let conversation = self.conversation(failed.conversation);
                let stream = conversation.streams.entry(stream).or_default();
                let given_up = stream.failed.entry(failed.counter).or_default();
                if given_up.iter().all(|known| known.id != failed.id) {
                    given_up.push(*failed);
                    self.report.failed += 1;
                }
            }
            Record::Unknown(unknown) => {
                let stream = stream_key(unknown.user, unknown.sender, unknown.grant);
                let conversation = self.conversation(unknown.conversation);
                let stream = conversation.streams.entry(stream).or_default();
                let is_new = stream.unknown.insert((unknown.counter, unknown.id));
                self.report.unknown += u64::from(is_new);
            }
            Record::Hidden(r) => {
                let view = self.view(r.conversation, r.device, r.user);
                view.hidden.insert_range(r.from, r.to);
            }
            Record::Later(r) => {
                let view = self.view(r.conversation, r.device, r.user);
                view.later.insert_range(r.from, r.to);
            }
            Record::Synced(synced) => self.synced(synced),
            Record::Cursor(cursor) => self.cursor(cursor),
            Record::Receipt(receipt) => self.receipt(receipt),
            Record::Unread(unread) => self.conversation(unread.conversation).unread.push(*unread),
            Record::Member(member) => {
                let to = if member.to_seq == 0 {
                    u64::MAX
                } else {
                    member.to_seq
                };
                let conversation = self.conversation(member.conversation);
                let ranges = conversation.members.entry(member.user).or_default();
                match ranges.iter_mut().find(|range| range.0 == member.from_seq) {
                    Some(range) => range.1 = to,
                    None => ranges.push((member.from_seq, to)),
                }
            }
            Record::Epoch(epoch) => {
                if self.epoch.is_none_or(|known| known < epoch.epoch) {
                    self.epoch = Some(epoch.epoch);
                    self.report.epochs += 1;
                    self.close(false);
                }
            }
            Record::Restart(_) => self.report.restarts += 1,
            Record::DeviceReset(reset) => {
                self.report.resets += 1;
                for conversation in self.conversations.values_mut() {
                    if let Some(view) = conversation.views.get_mut(&reset.device) {
                        view.reset();
                    }
                }
                self.receipts_again(reset.device);
            }
            Record::Resumed(r) => self.view(r.conversation, r.device, r.user).resume(r.kept),
            Record::Final(end) => {
                let view = self.view(end.conversation, end.device, end.user);
                let known = view.ended;
                if known.is_none_or(|known| known.head < end.head) {
                    view.ended = Some(*end);
                }
                self.report.finals += u64::from(known.is_none());
            }
        }
    }

    /// Ends the history and judges what only its end can tell.
    pub fn finish(mut self) -> Report {
        self.close(true);
        self.report.conversations = self.all_conversations.len() as u64;
        self.report.devices = self.devices.len() as u64;
        self.report.anomalies = self.findings.anomalies;
        self.report.detail = self.findings.detail;
        self.report
    }

    /// Judges everything and forgets it. Without `claims` nothing is expected to have settled.
    fn close(&mut self, claims: bool) {
        let mut ghosts: Vec<Ghost> = Vec::new();
        for (id, conversation) in &self.conversations {
            let findings = &mut self.findings;
            let told = conversation.receipts.values().filter(|_| claims);
            for told in told.filter(|told| told.now.delivered + told.now.read > 0) {
                if let Some(before) = &told.before {
                    went_back(before, &told.now, findings);
                }
            }
            judge(
                *id,
                conversation,
                claims,
                findings,
                &mut self.report,
                &mut ghosts,
            );
        }
        name_ghosts(&ghosts, &self.conversations, &mut self.findings);
        self.conversations.clear();
    }

    fn conversation(&mut self, id: u64) -> &mut Conversation {
        let all = &mut self.all_conversations;
        self.conversations.entry(id).or_insert_with(|| {
            all.insert(id);
            Conversation::default()
        })
    }

    fn view(&mut self, conversation: u64, device: u64, user: u64) -> &mut View {
        let all = &mut self.all_conversations;
        let devices = &mut self.devices;
        let conversation = self.conversations.entry(conversation).or_insert_with(|| {
            all.insert(conversation);
            Conversation::default()
        });
        conversation.views.entry(device).or_insert_with(|| {
            devices.insert(device);
            View::new(user)
        })
    }

    fn deliver(&mut self, deliver: &history::Deliver) {
        self.report.delivered += 1;
        let (id, seq) = (deliver.conversation, deliver.seq);
        let event = Event::of(deliver);
        if seq == 0 {
            self.findings.add(Kind::Ghost, id, &[0], || {
                let what = "An event was shown at seq 0, which no conversation has.".to_owned();
                (vec![event.record(id, 0)], what)
            });
            return;
        }
        let view = self.view(id, deliver.device, deliver.user);
        let highest = view.seen.max();
        let fresh = view.seen.insert(seq);
        let late = fresh && seq < highest && !view.later.contains(seq);
        let conversation = self.conversation(id);
        let first = *conversation.events.slot(seq).get_or_insert(event);
        let difference = first.difference(&event);
        if difference.is_some() {
            conversation.keep_conflict(seq, event);
        }
        if !fresh {
            self.findings.add(Kind::ShownTwice, id, &[seq], || {
                let what = format!("Device {} was shown seq {seq} twice.", hex(deliver.device));
                (vec![event.record(id, seq)], what)
            });
        }
        if late {
            self.findings
                .add(Kind::ShownOutOfOrder, id, &[highest, seq], || {
                    let device = hex(deliver.device);
                    let what = format!("Device {device} was shown seq {seq} after seq {highest}.");
                    (vec![event.record(id, seq)], what)
                });
        }
        if let Some(difference) = difference {
            self.findings.add(Kind::OrderDifference, id, &[seq], || {
                let (a, b) = (hex(first.device), hex(event.device));
                let what = format!("At seq {seq} device {b} was shown {difference} than {a}.");
                (vec![first.record(id, seq), event.record(id, seq)], what)
            });
        }
    }

    fn send(&mut self, send: &history::Send) {
        let sent = Sent {
            at: send.at,
            device: send.device,
            id: send.id,
            body_hash: send.body_hash,
        };
        let key = stream_key(send.user, send.sender, send.grant);
        self.devices.insert(send.device);
        let stream = self
            .conversation(send.conversation)
            .streams
            .entry(key)
            .or_default();
        let message = stream.messages.slot(send.counter).get_or_insert_default();
        match &mut message.sent {
            None => {
                message.sent = Some(sent);
                self.report.messages += 1;
            }
            // Recorded again: it was numbered the first time.
            Some(first) if first.id == sent.id => first.at = first.at.min(sent.at),
            Some(_) => {
                let also = stream.also.entry(send.counter).or_default();
                match also.iter_mut().find(|other| other.id == sent.id) {
                    Some(other) => other.at = other.at.min(sent.at),
                    None => also.push(sent),
                }
            }
        }
    }

    fn ack(&mut self, ack: &history::Ack) {
        let acked = Acked {
            at: ack.at,
            device: ack.device,
            counter: ack.counter,
            id: ack.id,
            seq: ack.seq,
            ts: ack.ts,
            duplicate: ack.duplicate,
            status: ack.status,
        };
        let id = ack.conversation;
        let key = stream_key(ack.user, ack.sender, ack.grant);
        let stream = self.conversation(id).streams.entry(key).or_default();
        let mut contradicted = None;
        if ack.status == Status::Over {
            match stream.over {
                None => stream.over = Some(acked),
                Some(over) if over.counter != ack.counter => contradicted = Some(over),
                Some(_) => {}
            }
        }
        if ack.counter > 0 {
            let message = stream.messages.slot(ack.counter).get_or_insert_default();
            match &mut message.ack {
                None => message.ack = Some(acked),
                Some(first) => {
                    let told = |a: u64, b: u64| a != 0 && b != 0 && a != b;
                    if told(first.id, ack.id) || told(first.seq, ack.seq) || told(first.ts, ack.ts)
                    {
                        contradicted = Some(*first);
                    }
                    // Files of several processes may come a little out of order.
                    first.at = first.at.min(ack.at);
                    first.seq = if first.seq == 0 { ack.seq } else { first.seq };
                    first.ts = if first.ts == 0 { ack.ts } else { first.ts };
                }
            }
        }
        if let Some(first) = contradicted {
            self.findings
                .add(Kind::AckMismatch, id, &[first.seq, ack.seq], || {
                    let what = format!(
                        "Two answers to sender {} under grant {} disagree about counter {}.",
                        hex(ack.sender),
                        ack.grant,
                        first.counter,
                    );
                    (vec![first.record(id, key), Record::Ack(*ack)], what)
                });
        }
    }

    fn synced(&mut self, synced: &history::Synced) {
        if !synced.complete {
            return;
        }
        self.report.synced += 1;
        let view = self.view(synced.conversation, synced.device, synced.user);
        if view.synced.is_none_or(|known| known.head < synced.head) {
            view.synced = Some(*synced);
        }
        if synced.asked != 0 {
            self.conversation(synced.conversation).asked.push(*synced);
        }
    }

    fn cursor(&mut self, cursor: &history::Cursor) {
        let id = cursor.conversation;
        let view = self.view(id, cursor.device, cursor.user);
        match view.cursor {
            Some(known) if known.seq > cursor.seq => {
                self.findings
                    .add(Kind::ReceiptRegress, id, &[known.seq, cursor.seq], || {
                        let device = hex(cursor.device);
                        let what = format!(
                            "The cursor of device {device} went back from {} to {}.",
                            known.seq, cursor.seq
                        );
                        (vec![Record::Cursor(known), Record::Cursor(*cursor)], what)
                    });
            }
            _ => view.cursor = Some(*cursor),
        }
    }

    fn receipt(&mut self, receipt: &history::Receipt) {
        let id = receipt.conversation;
        let key = (receipt.device, receipt.user);
        let receipts = &mut self.conversation(id).receipts;
        let told = match receipts.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(Told {
                    now: *receipt,
                    before: None,
                });
                return;
            }
            Entry::Occupied(entry) => entry.into_mut(),
        };
        let known = told.now;
        told.now.delivered = known.delivered.max(receipt.delivered);
        told.now.read = known.read.max(receipt.read);
        told.now.at = receipt.at;
        went_back(&known, receipt, &mut self.findings);
    }

    /// A device begins anew: it may be told less at first, by a router that doesn't know all yet.
    fn receipts_again(&mut self, device: u64) {
        let conversations = self.conversations.values_mut();
        let told = conversations.flat_map(|conversation| &mut conversation.receipts);
        for (_, told) in told.filter(|(key, _)| key.0 == device) {
            told.before = Some(told.highest());
            (told.now.delivered, told.now.read) = (0, 0);
        }
    }
}

fn went_back(before: &history::Receipt, now: &history::Receipt, findings: &mut Findings) {
    if now.delivered >= before.delivered && now.read >= before.read {
        return;
    }
    let seqs = [before.delivered, now.delivered, before.read, now.read];
    findings.add(Kind::ReceiptRegress, now.conversation, &seqs, || {
        let what = format!(
            "The receipt of user {} that device {} was told went back: delivered {} to {}, read {} to {}.",
            hex(now.user),
            hex(now.device),
            before.delivered,
            now.delivered,
            before.read,
            now.read,
        );
        (vec![Record::Receipt(*before), Record::Receipt(*now)], what)
    });
}

fn stream_key(user: u64, sender: u64, grant: u64) -> StreamKey {
    StreamKey {
        user,
        sender,
        grant,
    }
}
