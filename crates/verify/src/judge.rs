//! Judges a conversation when its history has ended.
//!
//! Everything is done on sorted lists made once per conversation: O(n log n) in events and
//! messages. [`Case`] holds them; each rule is one function.

mod acks;
mod devices;

use crate::history::EventKind;
use crate::ranges::Ranges;
use crate::report::{Findings, Kind, Report, hex};
use crate::state::{Conversation, Event, Sent, Stream, StreamKey};
use std::collections::{BTreeMap, HashMap};

/// An event that nobody sent here; it may have been sent elsewhere.
pub(crate) struct Ghost {
    conversation: u64,
    seq: u64,
    event: Event,
}

/// An event and where it was shown.
#[derive(Clone, Copy)]
struct Shown<'a> {
    seq: u64,
    event: &'a Event,
}

/// A conversation under judgement.
struct Case<'a> {
    id: u64,
    conversation: &'a Conversation,
    /// Whether the run had time to settle.
    claims: bool,
    /// The first event shown at each seq, by seq.
    order: Vec<Shown<'a>>,
    /// All messages shown by anybody, by (stream, counter, seq).
    messages: Vec<Shown<'a>>,
    /// Seqs that a device said to be complete could see: if nobody was shown one, it is missing.
    proven: Ranges,
}

/// Judges one conversation and adds to the counts of `report`.
pub(crate) fn judge(
    id: u64,
    conversation: &Conversation,
    claims: bool,
    findings: &mut Findings,
    report: &mut Report,
    ghosts: &mut Vec<Ghost>,
) {
    let order: Vec<Shown> = conversation
        .events
        .iter()
        .map(|(seq, event)| Shown { seq, event })
        .collect();
    let conflicts = conversation.conflicts.iter();
    let conflicts =
        conflicts.flat_map(|(&seq, events)| events.iter().map(move |event| Shown { seq, event }));
    let mut messages: Vec<Shown> = order
        .iter()
        .copied()
        .chain(conflicts)
        .filter(|shown| shown.event.id != 0)
        .collect();
    messages.sort_unstable_by_key(|m| (m.event.stream, m.event.counter, m.seq, m.event.id));
    report.events += order.len() as u64;
    let proven = devices::proven(conversation, claims);
    let case = Case {
        id,
        conversation,
        claims,
        order,
        messages,
        proven,
    };
    case.times(findings);
    case.duplicates(findings);
    case.sender_order(findings);
    case.origins(findings, ghosts);
    case.answers(findings, report);
    case.completeness(findings);
    case.receipts(findings);
    case.unread(findings);
}

impl<'a> Case<'a> {
    /// All events of a numbered message; more than one only where something is broken.
    fn find(&self, stream: StreamKey, counter: u64) -> &[Shown<'a>] {
        let key = (stream, counter);
        let of = |m: &Shown| (m.event.stream, m.event.counter);
        let from = self.messages.partition_point(|m| of(m) < key);
        let rest = &self.messages[from..];
        &rest[..rest.partition_point(|m| of(m) == key)]
    }

    fn at_seq(&self, seq: u64) -> Option<&'a Event> {
        self.conversation.events.get(seq)
    }

    /// Whether an event is known at every seq strictly between two seqs.
    fn all_known_between(&self, low: u64, high: u64) -> bool {
        let from = self.order.partition_point(|shown| shown.seq <= low);
        let to = self.order.partition_point(|shown| shown.seq < high);
        (to.saturating_sub(from)) as u64 == high.saturating_sub(low).saturating_sub(1)
    }

    fn record(&self, shown: &Shown) -> crate::Record {
        shown.event.record(self.id, shown.seq)
    }

    fn times(&self, findings: &mut Findings) {
        for pair in self.order.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            if b.event.ts <= a.event.ts {
                findings.add(Kind::TimeOrder, self.id, &[a.seq, b.seq], || {
                    let what = format!(
                        "Seq {} has time {}, not later than {} of seq {}.",
                        b.seq, b.event.ts, a.event.ts, a.seq
                    );
                    (vec![self.record(&a), self.record(&b)], what)
                });
            }
        }
    }

    /// One id, or one counter, at two seqs.
    fn duplicates(&self, findings: &mut Findings) {
        let mut by_id = self.messages.clone();
        by_id.sort_unstable_by_key(|m| (m.event.id, m.seq));
        let same_id = by_id
            .windows(2)
            .filter(|pair| pair[0].event.id == pair[1].event.id);
        let of = |m: &Shown| (m.event.stream, m.event.counter);
        let same_counter = self
            .messages
            .windows(2)
            .filter(|pair| of(&pair[0]) == of(&pair[1]) && pair[0].event.id != pair[1].event.id);
        for pair in same_id
            .chain(same_counter)
            .filter(|pair| pair[0].seq != pair[1].seq)
        {
            let (a, b) = (pair[0], pair[1]);
            findings.add(Kind::Duplicate, self.id, &[a.seq, b.seq], || {
                let what = if a.event.id == b.event.id {
                    format!(
                        "Message {} is at seq {} and at {}.",
                        hex(a.event.id),
                        a.seq,
                        b.seq
                    )
                } else {
                    format!(
                        "Counter {} of sender {} is at seq {} and, with another id, at {}.",
                        a.event.counter,
                        hex(a.event.stream.sender),
                        a.seq,
                        b.seq
                    )
                };
                (vec![self.record(&a), self.record(&b)], what)
            });
        }
    }

    /// A sender's counters rise with seq, without a gap within a grant, and its grants too.
    fn sender_order(&self, findings: &mut Findings) {
        let mut before: Option<Shown> = None;
        for &next in &self.messages {
            // Conflicting events were reported as such.
            if !self
                .at_seq(next.seq)
                .is_some_and(|first| first.same_message(next.event))
            {
                continue;
            }
            let (stream, counter) = (next.event.stream, next.event.counter);
            let outbox = |s: StreamKey| (s.user, s.sender);
            let prior = before.filter(|b| outbox(b.event.stream) == outbox(stream));
            before = Some(next);
            if let Some(prior) = prior
                && prior.seq > next.seq
            {
                findings.add(Kind::SenderOrder, self.id, &[next.seq, prior.seq], || {
                    let what = format!(
                        "Sender {} numbered {} under grant {} before {} under grant {}, and it \
                         is at seq {}, after {}.",
                        hex(stream.sender),
                        prior.event.counter,
                        prior.event.stream.grant,
                        counter,
                        stream.grant,
                        prior.seq,
                        next.seq
                    );
                    (vec![self.record(&prior), self.record(&next)], what)
                });
                continue;
            }
            // The first of a grant comes after the event that gave it.
            let (from, expected) = match prior.filter(|p| p.event.stream == stream) {
                Some(prior) => (prior.seq, prior.event.counter.saturating_add(1)),
                None => (stream.grant, 1),
            };
            if counter > expected && self.all_known_between(from, next.seq) {
                findings.add(Kind::SenderOrder, self.id, &[from, next.seq], || {
                    let what = format!(
                        "Sender {}'s counter {counter} was accepted at seq {} without its \
                         counter {expected}.",
                        hex(stream.sender),
                        next.seq
                    );
                    (vec![self.record(&next)], what)
                });
            }
        }
    }

    /// Every message shown was sent, here, like this, and its sender wasn't told otherwise.
    fn origins(&self, findings: &mut Findings, ghosts: &mut Vec<Ghost>) {
        for shown in &self.messages {
            let (event, seq) = (shown.event, shown.seq);
            let stream = self.conversation.streams.get(&event.stream);
            let sent = stream.and_then(|s| s.sent(event.counter).find(|sent| sent.id == event.id));
            let (Some(stream), Some(sent)) = (stream, sent) else {
                ghosts.push(Ghost {
                    conversation: self.id,
                    seq,
                    event: *event,
                });
                continue;
            };
            if event.kind != EventKind::Empty && event.body_hash != sent.body_hash {
                findings.add(Kind::Corrupt, self.id, &[seq], || {
                    let what = format!("The message at seq {seq} has another body than was sent.");
                    let sent = sent.record(self.id, event.stream, event.counter);
                    (vec![sent, self.record(shown)], what)
                });
            }
            self.aborted(shown, stream, findings);
        }
    }

    fn aborted(&self, shown: &Shown, stream: &Stream, findings: &mut Findings) {
        let (event, seq) = (shown.event, shown.seq);
        if let Some(failed) = stream.given_up(event.counter, event.id) {
            findings.add(Kind::AbortedRead, self.id, &[seq], || {
                let what =
                    format!("The message at seq {seq} was shown though its sender gave it up.");
                (vec![(*failed).into(), self.record(shown)], what)
            });
        } else if let Some(over) = &stream.over
            && event.counter > over.counter
        {
            findings.add(Kind::AbortedRead, self.id, &[seq], || {
                let what = format!(
                    "Counter {} was shown at seq {seq} though an answer said that the grant \
                     ended after counter {}.",
                    event.counter, over.counter
                );
                (
                    vec![over.record(self.id, event.stream), self.record(shown)],
                    what,
                )
            });
        }
    }
}

/// Says of each event that nobody sent to its conversation whether it was sent to another.
pub(crate) fn name_ghosts(
    ghosts: &[Ghost],
    conversations: &BTreeMap<u64, Conversation>,
    findings: &mut Findings,
) {
    if ghosts.is_empty() {
        return;
    }
    let mut sent: HashMap<u64, (u64, StreamKey, u64, &Sent)> = HashMap::new();
    for (&id, conversation) in conversations {
        // In a fixed order, so that the same history gives the same report.
        let mut streams: Vec<_> = conversation.streams.iter().collect();
        streams.sort_unstable_by_key(|(key, _)| **key);
        for (&key, stream) in streams {
            for (counter, _) in stream.messages.iter() {
                for one in stream.sent(counter) {
                    sent.entry(one.id).or_insert((id, key, counter, one));
                }
            }
        }
    }
    for ghost in ghosts {
        let (seq, event) = (ghost.seq, &ghost.event);
        let shown = event.record(ghost.conversation, seq);
        match sent.get(&event.id) {
            Some(&(other, stream, counter, one)) if other != ghost.conversation => {
                findings.add(Kind::WrongConversation, ghost.conversation, &[seq], || {
                    let what = format!(
                        "The message at seq {seq} was sent to conversation {}.",
                        hex(other)
                    );
                    (vec![one.record(other, stream, counter), shown], what)
                });
            }
            Some(&(_, stream, counter, one)) => {
                findings.add(Kind::Ghost, ghost.conversation, &[seq], || {
                    let what =
                        format!("The message at seq {seq} was numbered otherwise by its sender.");
                    (
                        vec![one.record(ghost.conversation, stream, counter), shown],
                        what,
                    )
                });
            }
            None => findings.add(Kind::Ghost, ghost.conversation, &[seq], || {
                (
                    vec![shown],
                    format!("Nobody sent the message at seq {seq}."),
                )
            }),
        }
    }
}
