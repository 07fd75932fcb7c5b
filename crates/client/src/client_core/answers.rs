//! What an answer, an event or a refusal means for the outbox.
//!
//! The rules are those of design.md, "Verdicts". An answer counts for the sender id and
//! grant that the lane uses now and for nothing else. It names n, the last counter the
//! server accepted, and the id under it:
//!
//! | answer | what happens |
//! |---|---|
//! | n below what is known | nothing, but for `over` |
//! | the id under n isn't this outbox's message n | the outbox is a copy: a lookup, then a fresh sender id |
//! | `stale` | as above: a later grant of this sender id is in use |
//! | `sent` | all up to n are sent |
//! | `gap` | … and those from n + 1 go out again |
//! | `fork` | … and again with the previous id named; only a replaced message leads here |
//! | `over` | … and the rest never will be under this grant: they wait for the next one |
//!
//! What the server decided is told to the app before it is saved: killed in between, the
//! client asks again, gets the same answer and tells it again. What the client decides
//! itself (a message too long, one withdrawn) is saved first.

use tidings_protocol::codes::Remedy;
use tidings_protocol::wire::{self, Ack, Encoding, Event, Kind, Role, Status};
use tidings_protocol::{ErrorCode, message_id};

use super::lookup::{Lookup, Why};
use super::outbox::RESEND_FIRST;
use super::{AppEvent, ClientCore, FailReason, LocalId, SECOND};
use crate::saved::{PersistOp, Refused};

/// The shortest pause after a refusal that may pass.
const PAUSE_MIN: u64 = 100_000;
/// How long a gateway that says `forbidden` against the router's word is left alone, at most.
const FORBIDDEN_PAUSE_MAX: u64 = 300 * SECOND;
/// While a replaced message isn't decided, a further refusal for good is waited out this
/// long, or until an answer decides it.
const REPLACED_PAUSE: u64 = 30 * SECOND;

impl ClientCore {
    /// What an event of the history tells the outbox.
    pub(super) fn examine(&mut self, now: u64, event: &Event) {
        if let Some(members) = &event.members {
            self.learn_members(now, event, members);
        }
        let conversation = event.conversation;
        if event.user != self.user || !self.busy.contains(&conversation) {
            return;
        }
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return;
        };
        let flow = self.flows.entry(conversation).or_default();
        let previous = flow.previous_of(lane, event);
        // Another life of this outbox sent a message that waits here without a counter.
        let mut waiting = lane.queue.iter().skip(lane.numbered);
        let elsewhere = waiting.find(|m| m.is(event.id, previous));
        if let Some(local) = elsewhere.map(|m| m.local) {
            self.sent(conversation, local, event);
            self.settle(conversation, local);
            return;
        }
        let own = (event.sender, event.grant) == (lane.sender, lane.grant);
        // Another life's event under this sender and grant shows a copy, but not how far to look:
        // more that it sent may be in the log and not decided. What the server answers to a send of
        // this life stands behind all that.
        if own && lane.sent_as(event.counter, event.id).is_some() {
            // The state after this event is what an answer to it would tell.
            self.answer(
                now,
                &Ack {
                    conversation,
                    sender: event.sender,
                    grant: event.grant,
                    counter: event.counter,
                    id: event.id,
                    status: Status::Sent.into(),
                    seq: event.seq,
                    ts: event.ts,
                    head: event.seq,
                    duplicate: true,
                },
            );
        }
    }

    fn learn_members(&mut self, now: u64, event: &Event, members: &wire::Members) {
        let conversation = event.conversation;
        let user = self.user;
        for change in members.changes.iter().filter(|c| c.user == user) {
            let writes = change.role >= i32::from(Role::Member);
            let known = self.flow(conversation).known;
            // A page's head may be later than its grant: one that this event ended is older news.
            let outdated = change.ended != 0 && change.ended == known.1;
            if event.seq <= known.0 && !outdated {
                // Nor does a page that knows of no grant say whether it knows this event.
                if writes && known.1 == 0 {
                    self.flow(conversation).doubt();
                }
                self.pump(now, conversation);
                continue;
            }
            // A change of kind makes this seq a grant; a change of role alone keeps the one there
            // is. Who knows of none can't tell that from a start.
            let grant = match (writes, change.ended != 0) {
                (false, _) => 0,
                (true, true) => event.seq,
                (true, false) => known.1,
            };
            let flow = self.flow(conversation);
            flow.known = (known.0.max(event.seq), grant);
            (flow.doubtful, flow.in_doubt) = (false, false);
            if writes && grant == 0 {
                flow.doubt();
            }
            self.pump(now, conversation);
        }
    }

    /// The router's answer to a send.
    pub(super) fn answer(&mut self, now: u64, ack: &Ack) {
        let conversation = ack.conversation;
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return;
        };
        if lane.grant == 0 || (ack.sender, ack.grant) != (lane.sender, lane.grant) {
            return;
        }
        let leaving = self
            .flows
            .get(&conversation)
            .and_then(|f| f.lookup.as_ref());
        if leaving.is_some_and(Lookup::leaves_sender) {
            return;
        }
        // A status of a later version tells no more than its numbers do.
        let status = Status::try_from(ack.status).unwrap_or(Status::Sent);
        if status == Status::Stale {
            self.look_up(now, conversation, Why::Copy { stale: true }, ack.head);
            return;
        }
        let n = ack.counter;
        if n > lane.acked {
            if lane.sent_as(n, ack.id).is_none() {
                self.look_up(now, conversation, Why::Copy { stale: false }, ack.head);
                return;
            }
            self.acknowledge(now, ack);
        } else if n == lane.acked {
            if n > 0 && ack.id != lane.acked_id {
                self.look_up(now, conversation, Why::Copy { stale: false }, ack.head);
                return;
            }
        } else if status != Status::Over {
            return;
        }
        self.note_head(now, conversation, ack.head);
        let flow = self.flow(conversation);
        flow.resend_wait = RESEND_FIRST;
        flow.resend_at = flow.resend_at.map(|_| now + RESEND_FIRST);
        match status {
            // Many answers tell of one gap; what is missing goes out once.
            Status::Gap if flow.gap_at != Some(n) => {
                flow.gap_at = Some(n);
                flow.next = n + 1;
            }
            Status::Fork if flow.fork_at != Some((n, ack.id)) => {
                flow.fork_at = Some((n, ack.id));
                flow.next = n + 1;
            }
            Status::Over => self.over(now, conversation),
            _ => {}
        }
        let crowded = self.in_flight >= self.config.in_flight;
        self.recount(conversation);
        if crowded {
            self.pump_all(now);
        } else {
            self.pump(now, conversation);
        }
    }

    /// All up to the answer's counter are sent; the lane has its message.
    fn acknowledge(&mut self, now: u64, ack: &Ack) {
        let conversation = ack.conversation;
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return;
        };
        let Some(original) = lane.sent_as(ack.counter, ack.id) else {
            return;
        };
        let mut decided = Vec::new();
        let mut own = None;
        for counter in lane.acked + 1..=ack.counter {
            let Some(message) = lane.under(counter) else {
                break;
            };
            let last = counter == ack.counter;
            let refused = message.refused.as_ref().filter(|_| !original);
            let outcome = match refused {
                Some(refused) => Err(refused.code.clone()),
                None => Ok(if last { ack.seq } else { 0 }),
            };
            if last && ack.seq > 0 && self.user != 0 {
                let stand_in = outcome.is_err();
                own = Some(Event {
                    conversation,
                    seq: ack.seq,
                    ts: ack.ts,
                    user: self.user,
                    sender: ack.sender,
                    grant: ack.grant,
                    counter,
                    id: ack.id,
                    kind: if stand_in { Kind::Empty } else { message.kind }.into(),
                    body: if stand_in {
                        Default::default()
                    } else {
                        message.body.clone()
                    },
                    encoding: if stand_in {
                        Encoding::Identity
                    } else {
                        message.encoding
                    }
                    .into(),
                    members: None,
                });
            }
            decided.push((message.local, message.body.len(), counter, outcome));
        }
        for (local, bytes, counter, outcome) in decided {
            match outcome {
                Ok(seq) => self.app(AppEvent::Sent {
                    conversation,
                    local: LocalId(local),
                    seq,
                    message_id: message_id(conversation, ack.sender, ack.grant, counter),
                }),
                Err(code) => self.fail(conversation, local, FailReason::Refused(code)),
            }
            self.leaves(bytes);
        }
        // The server counts a sender id's age from the message under n, not from when this answer came.
        let at = match ack.ts {
            0 => self.link.server_time(now),
            ts => ts,
        };
        let (counter, id, seq) = (ack.counter, ack.id, ack.seq);
        self.persist(PersistOp::Acked {
            conversation,
            counter,
            id,
            seq,
            at,
        });
        let flow = self.flow(conversation);
        flow.next = flow.next.max(counter + 1);
        flow.paused_until = 0;
        flow.refusals = 0;
        self.recount(conversation);
        self.still_busy(conversation);
        // The server doesn't send a session its own message: the answer stands for it.
        if let Some(event) = own {
            self.offer(now, event);
            self.advance(now, conversation);
        }
    }

    /// The grant has ended; what was accepted under it is known.
    pub(super) fn over(&mut self, now: u64, conversation: u64) {
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return;
        };
        let (grant, acked) = (lane.grant, lane.acked);
        let rest: Vec<(u64, usize, Option<String>)> = (lane.queue.iter().take(lane.numbered))
            .map(|m| {
                (
                    m.local,
                    m.body.len(),
                    m.refused.as_ref().map(|r| r.code.clone()),
                )
            })
            .collect();
        let newly = !lane.over;
        for (local, bytes, code) in rest {
            match code {
                None => self.app(AppEvent::Offered {
                    conversation,
                    local: LocalId(local),
                }),
                Some(code) => {
                    self.leaves(bytes);
                    self.fail(conversation, local, FailReason::Refused(code));
                }
            }
        }
        if newly {
            self.persist(PersistOp::Over { conversation });
        }
        let flow = self.flow(conversation);
        // A later life may have sent under the next grant what a backup still has under this one.
        flow.restored |= acked < std::mem::take(&mut flow.restored_to);
        self.recount(conversation);
        self.still_busy(conversation);
        self.grant_ended(now, conversation, grant);
        self.look_for_restored(now, conversation);
    }

    /// This grant counts no more; unless a later one is known, a sync tells what does.
    pub(super) fn grant_ended(&mut self, now: u64, conversation: u64, grant: u64) {
        let waits = self
            .saved
            .lanes
            .get(&conversation)
            .is_some_and(|l| !l.queue.is_empty());
        let flow = self.flow(conversation);
        if flow.known.1 <= grant {
            flow.known.1 = 0;
            if waits && flow.ask_grant() && self.link.ready() {
                self.want_sync(now);
            }
        }
    }

    /// A gateway refused a send.
    pub(super) fn refused(&mut self, now: u64, error: &wire::Error) {
        let conversation = error.conversation;
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return;
        };
        let counter = error.counter;
        let Some(message) = lane.under(counter).filter(|_| lane.sender == error.sender) else {
            return;
        };
        let stands_in = message.refused.is_some();
        let another = lane.replaced().is_some_and(|c| c != counter);
        let place = usize::try_from(counter - lane.acked - 1).unwrap_or(usize::MAX);
        let ids = lane.ids(false);
        let chained = place
            .checked_sub(1)
            .and_then(|p| ids.get(p).copied())
            .unwrap_or(lane.acked_id);
        let code = ErrorCode::from_name(&error.code);
        let remedy = match code.map(ErrorCode::remedy) {
            Some(remedy) => remedy,
            None if error.retry_after_ms > 0 => Remedy::Later,
            None => Remedy::Never,
        };
        let told = u64::from(error.retry_after_ms) * 1000;
        let jitter = (self.random)() % PAUSE_MIN;
        let mut pause = told.max(PAUSE_MIN) + jitter;
        match remedy {
            Remedy::Later => {}
            Remedy::FreshToken => {
                pause += SECOND;
                self.need_token();
            }
            Remedy::Never if code == Some(ErrorCode::Forbidden) => {
                // A gateway's cache decides nothing: whether the grant has ended the router says.
                let flow = self.flow(conversation);
                flow.forbidden = true;
                pause = (SECOND << flow.refusals.min(10)).min(FORBIDDEN_PAUSE_MAX) + jitter;
                flow.refusals += 1;
                self.want_sync(now);
            }
            // One at a time: the next is refused again when the first is decided.
            Remedy::Never if stands_in || another => pause = REPLACED_PAUSE,
            Remedy::Never => {
                pause = 0;
                let refused = Refused {
                    id: self.random_id(),
                    chained,
                    code: error.code.clone(),
                };
                self.persist(PersistOp::Replaced {
                    conversation,
                    counter,
                    refused,
                });
            }
        }
        let flow = self.flow(conversation);
        flow.paused_until = flow.paused_until.max(now + pause);
        // It and all behind it go out again, in order.
        flow.next = flow.next.min(counter);
        self.recount(conversation);
        self.pump(now, conversation);
    }
}
