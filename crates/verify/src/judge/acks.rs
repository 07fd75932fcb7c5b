//! Rules about answers: nothing acknowledged is lost, answers agree with events, order in real
//! time, and every sender learns what became of a message.

use std::collections::BTreeSet;

use super::{Case, Shown};
use crate::ranges::Ranges;
use crate::report::{Findings, Kind, Report, hex};
use crate::state::{Acked, Message, Sent, Stream, StreamKey};

/// A message at a known place, and when it was numbered or acknowledged.
#[derive(Clone, Copy)]
struct Placed {
    at: u64,
    seq: u64,
    stream: StreamKey,
    counter: u64,
    /// For acknowledgements, the answer that covered it.
    answer: Option<Acked>,
}

/// What the messages of a conversation say about real time.
#[derive(Default)]
struct Timeline {
    numbered: Vec<Placed>,
    acked: Vec<Placed>,
}

impl Case<'_> {
    pub(super) fn answers(&self, findings: &mut Findings, report: &mut Report) {
        let mut timeline = Timeline::default();
        let mut keys: Vec<&StreamKey> = self.conversation.streams.keys().collect();
        // In a fixed order, so that the same history gives the same report.
        keys.sort_unstable();
        for &key in keys {
            let stream = &self.conversation.streams[&key];
            // Answers are cumulative: the earliest that names this counter or a later one.
            let mut covered: Option<Acked> = None;
            let mut highest = None;
            let mut later = BTreeSet::new();
            for (counter, message) in stream.messages.iter().rev() {
                if let Some(ack) = message.ack {
                    highest = highest.or(Some(ack));
                    if covered.is_none_or(|c| ack.at <= c.at) {
                        covered = Some(ack);
                    }
                    self.agreement(key, stream, counter, message, &ack, findings);
                }
                if message.sent.is_some() {
                    report.acked += u64::from(covered.is_some());
                    self.place(key, stream, counter, message, covered, &mut timeline);
                    match covered {
                        Some(ack) => self.kept(key, counter, message, &ack, findings, report),
                        None => self.told(key, stream, counter, &mut later, findings),
                    }
                }
            }
            if let (Some(over), Some(highest)) = (stream.over, highest)
                && highest.counter > over.counter
            {
                findings.add(Kind::AckMismatch, self.id, &[over.seq, highest.seq], || {
                    let what = format!(
                        "An answer says that grant {} of sender {} ended after counter {}, \
                         another that {} was accepted.",
                        key.grant,
                        hex(key.sender),
                        over.counter,
                        highest.counter
                    );
                    (
                        vec![over.record(self.id, key), highest.record(self.id, key)],
                        what,
                    )
                });
            }
        }
        timeline.acked.sort_unstable_by_key(|placed| placed.at);
        timeline
            .numbered
            .sort_unstable_by_key(|placed| (placed.at, placed.seq));
        self.real_time(&timeline, findings);
        self.stale_heads(&timeline, findings);
    }

    /// An answer agrees with what was numbered and with the events.
    fn agreement(
        &self,
        key: StreamKey,
        stream: &Stream,
        counter: u64,
        message: &Message,
        ack: &Acked,
        findings: &mut Findings,
    ) {
        let events = self.find(key, counter);
        let named = |shown: &&Shown| ack.id == 0 || shown.event.id == ack.id;
        let fits = |shown: &Shown| {
            (ack.seq == 0 || ack.seq == shown.seq) && (ack.ts == 0 || ack.ts == shown.event.ts)
        };
        let (what, other) = if message.sent.is_none() {
            (
                format!("An answer names counter {counter}, which nobody numbered."),
                None,
            )
        } else if ack.id != 0 && stream.sent(counter).all(|sent| sent.id != ack.id) {
            (
                format!("An answer names id {}, which nobody numbered.", hex(ack.id)),
                None,
            )
        } else if let Some(shown) = events.iter().find(named) {
            if events.iter().filter(named).any(fits) {
                return;
            }
            let what = format!(
                "An answer puts counter {counter} at seq {} and time {}; it was shown at seq {} \
                 and time {}.",
                ack.seq, ack.ts, shown.seq, shown.event.ts
            );
            (what, Some(self.record(shown)))
        } else if let Some(shown) = events.first() {
            let what = format!(
                "An answer names id {} under counter {counter}; the event there has id {}.",
                hex(ack.id),
                hex(shown.event.id)
            );
            (what, Some(self.record(shown)))
        } else if let Some(event) = self.at_seq(ack.seq) {
            let what = format!(
                "An answer puts counter {counter} at seq {}, where another message is.",
                ack.seq
            );
            (what, Some(event.record(self.id, ack.seq)))
        } else {
            return;
        };
        findings.add(Kind::AckMismatch, self.id, &[ack.seq], || {
            let mut records = vec![ack.record(self.id, key)];
            records.extend(other);
            (records, what)
        });
    }

    /// An acknowledged message is an event.
    fn kept(
        &self,
        key: StreamKey,
        counter: u64,
        message: &Message,
        covered: &Acked,
        findings: &mut Findings,
        report: &mut Report,
    ) {
        let own = message.ack.as_ref();
        let (id, seq) = own.map_or((0, 0), |ack| (ack.id, ack.seq));
        let events = self.find(key, counter);
        if !self.claims || events.iter().any(|shown| id == 0 || shown.event.id == id) {
            return;
        }
        let proven = match seq {
            // Answered by an answer to a later one only: where it should be isn't known. It is
            // above its grant.
            0 => {
                let open = Ranges::of(key.grant.saturating_add(1), u64::MAX);
                open.minus(&self.proven).iter().next().is_none()
            }
            seq => self.at_seq(seq).is_some() || self.proven.contains(seq),
        };
        if !proven {
            report.unproven += 1;
            return;
        }
        findings.add(Kind::Lost, self.id, &[seq], || {
            let what = format!(
                "Counter {counter} of sender {} under grant {} was acknowledged and nobody was \
                 ever shown it.",
                hex(key.sender),
                key.grant
            );
            let sent = message.sent.map(|sent| sent.record(self.id, key, counter));
            let ack = own.unwrap_or(covered).record(self.id, key);
            (sent.into_iter().chain([ack]).collect(), what)
        });
    }

    /// A device that has settled knows what became of what it numbered. `later` has the devices that
    /// were shown one of theirs under a higher counter: its id follows from those before it, so they
    /// know that those are accepted, wherever.
    fn told(
        &self,
        key: StreamKey,
        stream: &Stream,
        counter: u64,
        later: &mut BTreeSet<u64>,
        findings: &mut Findings,
    ) {
        if !self.claims || stream.over.is_some() {
            return;
        }
        for sent in stream.sent(counter) {
            let Some(view) = self.conversation.views.get(&sent.device) else {
                continue;
            };
            let Some(end) = view.ended else { continue };
            let events = self.find(key, counter);
            let has = |seq| view.seen.contains(seq) || view.kept.contains(seq);
            let saw_it = |shown: &Shown| shown.event.id == sent.id && has(shown.seq);
            let is_told = stream.given_up(counter, sent.id).is_some()
                || stream.unknown.contains(&(counter, sent.id));
            if events.iter().any(saw_it) {
                later.insert(sent.device);
                continue;
            }
            if is_told || later.contains(&sent.device) {
                continue;
            }
            findings.add(Kind::Stuck, self.id, &[], || {
                let what = format!(
                    "Device {} was never told what became of counter {counter} of sender {} \
                     under grant {}.",
                    hex(sent.device),
                    hex(key.sender),
                    key.grant
                );
                (vec![sent.record(self.id, key, counter), end.into()], what)
            });
        }
    }

    fn place(
        &self,
        stream: StreamKey,
        numbered: &Stream,
        counter: u64,
        message: &Message,
        covered: Option<Acked>,
        timeline: &mut Timeline,
    ) {
        let events = self.find(stream, counter);
        let told = message
            .ack
            .map(|ack| (ack.seq, ack.id))
            .filter(|told| told.0 != 0);
        let Some((seq, id)) = events.first().map(|s| (s.seq, s.event.id)).or(told) else {
            return;
        };
        let ids = numbered
            .sent(counter)
            .filter(|sent| id == 0 || sent.id == id);
        if let Some(at) = ids.map(|sent: &Sent| sent.at).max() {
            timeline.numbered.push(Placed {
                at,
                seq,
                stream,
                counter,
                answer: None,
            });
        }
        if let Some(ack) = covered {
            let answer = Some(ack);
            timeline.acked.push(Placed {
                at: ack.at,
                seq,
                stream,
                counter,
                answer,
            });
        }
    }

    /// What was numbered after an acknowledgement comes after what that acknowledged.
    fn real_time(&self, timeline: &Timeline, findings: &mut Findings) {
        let mut acked = timeline.acked.iter().peekable();
        let mut last: Option<&Placed> = None;
        for message in &timeline.numbered {
            while let Some(ack) = acked.next_if(|ack| ack.at < message.at) {
                if last.is_none_or(|last| last.seq < ack.seq) {
                    last = Some(ack);
                }
            }
            let Some(first) = last.filter(|last| last.seq > message.seq) else {
                continue;
            };
            findings.add(Kind::AckOrder, self.id, &[first.seq, message.seq], || {
                let what = format!(
                    "The message at seq {} was numbered after the one at seq {} had been \
                     acknowledged.",
                    message.seq, first.seq
                );
                let answer = first.answer.map(|ack| ack.record(self.id, first.stream));
                let stream = self.conversation.streams.get(&message.stream);
                let mut sent = stream.into_iter().flat_map(|s| s.sent(message.counter));
                let sent = sent.find(|sent| sent.at == message.at);
                let sent = sent.map(|s| s.record(self.id, message.stream, message.counter));
                (answer.into_iter().chain(sent).collect(), what)
            });
        }
    }

    /// A head told for a question asked after an acknowledgement isn't below what that named.
    fn stale_heads(&self, timeline: &Timeline, findings: &mut Findings) {
        let mut claims: Vec<_> = self.conversation.asked.iter().collect();
        claims.sort_unstable_by_key(|claim| claim.asked);
        let mut acked = timeline.acked.iter().peekable();
        let mut last: Option<&Placed> = None;
        for claim in claims {
            while let Some(ack) = acked.next_if(|ack| ack.at < claim.asked) {
                if last.is_none_or(|last| last.seq < ack.seq) {
                    last = Some(ack);
                }
            }
            let Some(first) = last.filter(|last| last.seq > claim.head) else {
                continue;
            };
            if !self.conversation.visible(claim.user).contains(first.seq) {
                continue;
            }
            findings.add(Kind::CompleteLie, self.id, &[claim.head, first.seq], || {
                let what = format!(
                    "Device {} was called complete up to {}, though seq {} had been acknowledged \
                     before it asked.",
                    hex(claim.device),
                    claim.head,
                    first.seq
                );
                let answer = first.answer.map(|ack| ack.record(self.id, first.stream));
                (answer.into_iter().chain([(*claim).into()]).collect(), what)
            });
        }
    }
}
