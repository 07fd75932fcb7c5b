//! Sends: checked, gathered for one append a turn, answered by the router's verdict.
//!
//! Whether the sender may write is not judged here: only the log before a record knows
//! (design.md, "Verdicts"). The answer to somebody who isn't a member is the same verdict,
//! `over`, whether the conversation exists or not (checklist row 22).

use std::collections::HashMap;

use tidings_core::ids::{ConversationId, MessageKey, Micros, SenderId, SessionId};
use tidings_core::path;
use tidings_core::ports::log::{Append, LogError};
use tidings_core::record::{self, Encoding, Kind};
use tidings_core::sequencer::{Answer, Verdict};
use tidings_protocol::wire::{self, Status, update};
use tidings_protocol::{CloseCode, ErrorCode, SendRef, limits};

use super::awaited::Awaited;
use super::metrics::add;
use super::outbound::{Outbound, Slot};
use super::rates::SendRate;
use super::session::{SendNote, hash};
use super::settings::SECOND;
use super::{GatewayCore, Refusal};

/// Where a refusal of one gathered send goes.
struct Taken {
    session: SessionId,
    r#ref: u64,
    conversation: ConversationId,
    sender: u64,
    counter: u64,
    at: Micros,
}

/// The sends between the clients and the log.
#[derive(Default)]
pub(super) struct Sending {
    records: Vec<Append>,
    taken: Vec<Taken>,
    /// Batches the log hasn't reported on.
    batches: HashMap<u64, Vec<Taken>>,
    batch: u64,
    /// Until when sends are refused at once, and with which code, as the log said so.
    closed_until: Micros,
    closed_with: Option<ErrorCode>,
    awaited: Awaited,
}

/// `ref`s remembered for the acks of one session.
const NOTES_MAX: usize = limits::COMMANDS_PER_FRAME_MAX;

/// How long sends are refused after the log had no room, before it is tried again.
const CLOSED_FOR: Micros = 500_000;

impl Sending {
    /// Whether everything taken is answered.
    pub(super) fn is_settled(&self) -> bool {
        self.records.is_empty() && self.batches.is_empty() && self.awaited.total() == 0
    }
}

impl GatewayCore {
    /// Time goes on: what was never answered is no longer waited for.
    pub(super) fn give_up_sends<O: Outbound>(&mut self, out: &mut O) {
        let given_up = self.sending.awaited.advance(self.now);
        if given_up > 0 {
            out.sends_ended(given_up);
        }
    }

    /// A send that was taken then is answered, or won't be.
    fn send_ended<O: Outbound>(&mut self, out: &mut O, taken: Micros) {
        if self.sending.awaited.end(taken) {
            out.sends_ended(1);
        }
    }

    pub(super) fn send<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        send: &SendRef<'_>,
    ) {
        let Some(session) = self.sessions.get(slot) else {
            return;
        };
        let (user, id) = (session.user, session.id);
        let shed_until = session.rare.as_ref().map_or(0, |rare| rare.shed_until);
        let _span = tracing::debug_span!("accept", session = %id, conversation = send.conversation, counter = send.counter).entered();
        let refusal = |code, message| Refusal {
            conversation: ConversationId(send.conversation),
            sender: send.sender,
            counter: send.counter,
            ..Refusal::new(code, message, r#ref)
        };
        match self
            .rates
            .send(&self.settings, user, send.body.len(), self.now)
        {
            SendRate::Fits => {}
            SendRate::Later(retry_after_ms) => {
                let refusal = refusal(ErrorCode::RateLimited, "More sends than the rate allows.");
                return self.refuse(
                    out,
                    slot,
                    Refusal {
                        retry_after_ms,
                        ..refusal
                    },
                );
            }
            SendRate::Close => return self.close(out, slot, CloseCode::Rate),
        }
        if let Err(error) = send.check_body(self.settings.text_bytes_max) {
            add(&self.metrics.failed, 1);
            let message = match error.code() {
                ErrorCode::TooLong => "The body is longer than the limit.",
                _ => "The body is not what its kind says.",
            };
            return self.refuse(out, slot, refusal(error.code(), message));
        }
        if let Some(code) = self
            .sending
            .closed_with
            .filter(|_| self.now < self.sending.closed_until)
        {
            add(&self.metrics.append_failures, 1);
            let refusal = refusal(code, "The log takes no messages now.");
            return self.refuse(
                out,
                slot,
                Refusal {
                    retry_after_ms: 1000,
                    ..refusal
                },
            );
        }
        self.give_up_sends(out);
        if shed_until > self.now || !out.take_send() {
            add(&self.metrics.shed, 1);
            // Spread by session, so that those refused together don't come back together.
            let wait = SECOND + hash(2, id.0) % (2 * SECOND);
            let until = match shed_until > self.now {
                true => shed_until,
                false => self.now + wait,
            };
            if let Some(session) = self.sessions.get_mut(slot) {
                session.rare().shed_until = until;
            }
            let refusal = refusal(
                ErrorCode::Unavailable,
                "More is sent than the server can take.",
            );
            return self.refuse(
                out,
                slot,
                Refusal {
                    retry_after_ms: ((until - self.now) / 1000 + 1) as u32,
                    ..refusal
                },
            );
        }
        let conversation = ConversationId(send.conversation);
        let (kind, encoding) = kind_of(send);
        let record = record::Send {
            user,
            sender: SenderId(send.sender),
            grant: send.grant,
            counter: send.counter,
            id: MessageKey(send.id),
            previous: MessageKey(send.previous),
            once: false,
            kind,
            encoding,
            body: bytes::Bytes::copy_from_slice(&send.body),
            origin: record::Origin {
                gateway: self.settings.gateway,
                session: id,
            },
            taken: self.now,
        };
        add(&self.metrics.taken[kind as usize % 3], 1);
        self.sending.awaited.take();
        tracing::debug!(%conversation, session = %id, counter = send.counter, "send taken");
        self.sending
            .records
            .push(path::accept(conversation, record));
        let taken = Taken {
            session: id,
            r#ref,
            conversation,
            sender: send.sender,
            counter: send.counter,
            at: self.now,
        };
        self.sending.taken.push(taken);
        if r#ref != 0
            && let Some(session) = self.sessions.get_mut(slot)
        {
            let notes = &mut session.rare().notes;
            if notes.len() == NOTES_MAX {
                notes.pop_front();
            }
            notes.push_back(SendNote {
                conversation,
                sender: SenderId(send.sender),
                counter: send.counter,
                r#ref,
            });
        }
    }

    /// One append for all sends of a turn, in the order they came.
    pub(super) fn flush_sends<O: Outbound>(&mut self, out: &mut O) {
        let sending = &mut self.sending;
        if sending.records.is_empty() {
            return;
        }
        sending.batch += 1;
        let (records, taken) = (
            std::mem::take(&mut sending.records),
            std::mem::take(&mut sending.taken),
        );
        sending.batches.insert(sending.batch, taken);
        let _span = tracing::debug_span!("append", records = records.len()).entered();
        out.append(sending.batch, records);
    }

    /// The log reports on a batch. What it refused the clients send again; messages behind a
    /// refused one that did get in are answered `gap`, so no order is lost.
    pub fn appended<O: Outbound>(&mut self, out: &mut O, batch: u64, result: Result<(), LogError>) {
        self.now = out.now();
        let Some(taken) = self.sending.batches.remove(&batch) else {
            return;
        };
        let Err(error) = result else { return };
        tracing::warn!(%error, sends = taken.len(), "sends were not appended");
        add(&self.metrics.append_failures, taken.len() as u64);
        let (code, message) = match error {
            LogError::Full => (ErrorCode::StorageFull, "No room to store messages."),
            _ => (ErrorCode::Unavailable, "The log did not take the message."),
        };
        if !matches!(error, LogError::Unknown(_)) {
            self.sending.closed_until = self.now + CLOSED_FOR;
            self.sending.closed_with = Some(code);
        }
        for taken in taken {
            self.send_ended(out, taken.at);
            let Some(slot) = self.sessions.slot_of(taken.session) else {
                continue;
            };
            self.take_note(
                slot,
                taken.conversation,
                SenderId(taken.sender),
                Some(taken.counter),
            );
            self.refuse(
                out,
                slot,
                Refusal {
                    retry_after_ms: 1000,
                    conversation: taken.conversation,
                    sender: taken.sender,
                    counter: taken.counter,
                    ..Refusal::new(code, message, taken.r#ref)
                },
            );
        }
    }

    /// The router's verdict on a send.
    pub(super) fn answered<O: Outbound>(
        &mut self,
        out: &mut O,
        session: SessionId,
        answer: &Answer,
        taken: Micros,
    ) {
        if taken != 0 {
            self.send_ended(out, taken);
            self.metrics.answered(self.now.saturating_sub(taken));
        }
        let status = match answer.verdict {
            Verdict::Accepted => {
                add(&self.metrics.accepted, 1);
                Status::Sent
            }
            Verdict::Duplicate => {
                add(&self.metrics.duplicates, 1);
                Status::Sent
            }
            Verdict::Gap => Status::Gap,
            Verdict::Over => {
                add(&self.metrics.failed, 1);
                Status::Over
            }
            Verdict::Fork => {
                add(&self.metrics.forks, 1);
                Status::Fork
            }
            Verdict::Stale => Status::Stale,
        };
        tracing::debug!(conversation = %answer.conversation, seq = answer.seq, verdict = ?answer.verdict, "send answered");
        let Some(slot) = self.sessions.slot_of(session) else {
            return;
        };
        let exact = (answer.verdict == Verdict::Accepted).then_some(answer.counter);
        let r#ref = self.take_note(slot, answer.conversation, answer.sender, exact);
        // Whoever has nothing here and is nobody here isn't told how far others came (row 22). A
        // member needs the head, to find what another life of the outbox may have sent.
        let is_stranger = status == Status::Over && answer.counter == 0 && {
            let at = self.index.find(answer.conversation);
            let session = self.sessions.get(slot);
            at.zip(session)
                .is_none_or(|(at, s)| s.place_in(at).is_none())
        };
        let ack = wire::Ack {
            conversation: answer.conversation.0,
            sender: answer.sender.0,
            grant: answer.grant,
            counter: answer.counter,
            id: answer.id.0,
            status: status.into(),
            seq: answer.seq,
            ts: answer.ts,
            head: if is_stranger { 0 } else { answer.head },
            duplicate: answer.verdict == Verdict::Duplicate,
        };
        self.update(out, slot, r#ref, update::Update::Ack(ack));
    }

    /// The `ref` of the send that is answered: answers of one outbox come in the order of its
    /// sends; an exact counter also lets those go whose answers were lost.
    fn take_note(
        &mut self,
        slot: Slot,
        conversation: ConversationId,
        sender: SenderId,
        counter: Option<u64>,
    ) -> u64 {
        let Some(rare) = self.sessions.get_mut(slot).and_then(|s| s.rare.as_mut()) else {
            return 0;
        };
        let is_own = |n: &SendNote| n.conversation == conversation && n.sender == sender;
        let found = match counter {
            Some(counter) => rare
                .notes
                .iter()
                .position(|n| is_own(n) && n.counter == counter),
            None => rare.notes.iter().position(is_own),
        };
        let Some(found) = found else { return 0 };
        let r#ref = rare.notes[found].r#ref;
        rare.notes.remove(found);
        if let Some(counter) = counter {
            rare.notes.retain(|n| !(is_own(n) && n.counter < counter));
        }
        r#ref
    }
}

fn kind_of(send: &SendRef<'_>) -> (Kind, Encoding) {
    let kind = match send.kind {
        wire::Kind::Text => Kind::Text,
        wire::Kind::Json => Kind::Json,
        wire::Kind::Empty | wire::Kind::Members => Kind::Empty,
    };
    let encoding = match send.encoding {
        wire::Encoding::Identity => Encoding::Identity,
        wire::Encoding::Zstd => Encoding::Zstd,
    };
    (kind, encoding)
}
