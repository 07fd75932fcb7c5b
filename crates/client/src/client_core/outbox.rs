//! Numbering messages, sending them, and what an answer means.
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

use std::collections::BTreeMap;

use tidings_protocol::codes::Remedy;
use tidings_protocol::wire::{self, Ack, Encoding, Event, Kind, Role, Status, command};
use tidings_protocol::{ErrorCode, message_id};

use super::lookup::{Lookup, Why};
use super::{AppEvent, ClientCore, FailReason, LocalId, SECOND};
use crate::saved::{Lane, PersistOp, Refused};

/// Sent messages that get no answer go out again after this, doubled each time.
const RESEND_FIRST: u64 = 15 * SECOND;
const RESEND_LAST: u64 = 120 * SECOND;
/// The shortest pause after a refusal that may pass.
const PAUSE_MIN: u64 = 100_000;
/// How long a gateway that says `forbidden` against the router's word is left alone, at most.
const FORBIDDEN_PAUSE_MAX: u64 = 300 * SECOND;
/// While a replaced message isn't decided, a further refusal for good is waited out this
/// long, or until an answer decides it.
const REPLACED_PAUSE: u64 = 30 * SECOND;
/// After this long without an answer the server may have forgotten a sender id (it counts
/// them for 400 days).
const SENDER_AGE_MAX: u64 = 365 * 86_400 * SECOND;

/// Own events remembered while it matters which id stood before another. Messages are in
/// doubt only as far back as the last start.
pub(super) const OWN_IDS_MAX: usize = 4096;

/// What a lane does on the present connection.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// The next counter to put on this connection; at or below the last known one: none was yet.
    next: u64,
    /// The user's grant, and the seq as of which it is known.
    known: (u64, u64),
    paused_until: u64,
    /// A gateway says that the user may not write; the next sync tells.
    pub(super) forbidden: bool,
    refusals: u32,
    gap_at: Option<u64>,
    fork_at: Option<(u64, u64)>,
    resend_at: Option<u64>,
    resend_wait: u64,
    asked_grant: bool,
    /// Messages wait here since before this start. If what was saved is an old backup, they
    /// may have been sent since, under whatever sender id and grant: none gets a counter
    /// before the history since the saved cursor was looked through for them.
    pub(super) restored: bool,
    /// Counters up to this one, under the lane's sender id and grant, were given before this
    /// start: an old backup holds as undecided what a later life may have numbered anew.
    restored_to: u64,
    /// Ids of the user's own events as they were examined, by sender, grant and counter.
    own_ids: BTreeMap<(u64, u64, u64), u64>,
    /// How many of the messages in flight are this lane's.
    flying: usize,
    pub(super) lookup: Option<Lookup>,
}

impl Flow {
    pub(super) fn new(lane: &Lane) -> Self {
        // The grant in use is taken as current until a sync or an answer says otherwise.
        let grant = if lane.over { 0 } else { lane.grant };
        Flow {
            known: (lane.grant, grant),
            restored: lane.queue.len() > lane.numbered,
            restored_to: lane.last_counter(),
            ..Flow::default()
        }
    }

    pub(super) fn may_write(&self) -> bool {
        self.known.1 != 0
    }

    /// Whether a sync may be asked for to learn the grant: once a connection.
    pub(super) fn ask_grant(&mut self) -> bool {
        !std::mem::replace(&mut self.asked_grant, true)
    }

    /// The id before an own event's under its sender and grant, if it is known; remembers the event's.
    fn previous_of(&mut self, lane: &Lane, event: &Event) -> Option<u64> {
        let before = event.counter.checked_sub(1)?;
        if self.restored || self.restored_to > lane.acked || self.lookup.is_some() {
            if self.own_ids.len() >= OWN_IDS_MAX {
                self.own_ids.pop_first();
            }
            self.own_ids
                .insert((event.sender, event.grant, event.counter), event.id);
        }
        if (event.sender, event.grant, before) == (lane.sender, lane.grant, lane.acked) {
            return Some(lane.acked_id);
        }
        match before {
            0 => Some(0),
            _ => self
                .own_ids
                .get(&(event.sender, event.grant, before))
                .copied(),
        }
    }

    /// Forgets what rests on a connection.
    fn down(&mut self) {
        *self = Flow {
            known: self.known,
            restored: self.restored,
            restored_to: self.restored_to,
            own_ids: std::mem::take(&mut self.own_ids),
            ..Flow::default()
        };
    }
}

impl ClientCore {
    pub(super) fn flow(&mut self, conversation: u64) -> &mut Flow {
        self.flows.entry(conversation).or_default()
    }

    /// The user's grant as of a seq; older news is ignored.
    pub(super) fn learn_grant(&mut self, conversation: u64, as_of: u64, grant: u64) {
        let flow = self.flow(conversation);
        if as_of >= flow.known.0 {
            flow.known = (as_of, grant);
        }
    }

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
        if own && event.counter > 0 && event.counter >= lane.acked {
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
            // A change of role alone keeps the grant; a start or a change of kind makes this seq one.
            let grant = match (writes, change.ended != 0 || known.1 == 0) {
                (false, _) => 0,
                (true, true) => event.seq,
                (true, false) => known.1,
            };
            if event.seq > known.0 {
                self.learn_grant(conversation, event.seq, grant);
                self.pump(now, conversation);
            }
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
        let at = self.link.server_time(now);
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

    /// Sends what may be sent of one conversation.
    pub(super) fn pump(&mut self, now: u64, conversation: u64) {
        if !self.link.ready() || !self.busy.contains(&conversation) {
            return;
        }
        self.refill(now);
        if self.hold_back(now, conversation) {
            return;
        }
        self.drop_too_long(conversation);
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return;
        };
        let known = self.flows.get(&conversation).map_or(0, |f| f.known.1);
        let restored = self.flows.get(&conversation).is_some_and(|f| f.restored);
        if lane.numbered == 0 && known > lane.grant && !lane.queue.is_empty() && !restored {
            let sender = if lane.sender == 0 {
                self.saved.sender
            } else {
                lane.sender
            };
            let at = self.link.server_time(now);
            self.persist(PersistOp::Under {
                conversation,
                sender,
                grant: known,
                at,
            });
            let flow = self.flow(conversation);
            (flow.next, flow.gap_at, flow.fork_at) = (1, None, None);
            flow.restored_to = 0;
        }
        let room = self.room();
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return;
        };
        let acked = lane.acked;
        let next = self
            .flows
            .get(&conversation)
            .map_or(0, |f| f.next)
            .max(acked + 1);
        let unsent = (lane.last_counter() + 1).saturating_sub(next) as usize;
        let may_number = lane.grant != 0 && !lane.over && known == lane.grant && !restored;
        let fresh = if may_number {
            let waiting = lane.queue.len() - lane.numbered;
            let window = self
                .config
                .in_flight_per_conversation
                .saturating_sub(lane.numbered);
            waiting.min(window).min(room.saturating_sub(unsent))
        } else {
            0
        };
        if fresh > 0 {
            let count = u32::try_from(fresh).unwrap_or(u32::MAX);
            self.persist(PersistOp::Numbered {
                conversation,
                count,
            });
        }
        let count = (unsent + fresh).min(room);
        let ids = self
            .saved
            .lanes
            .get(&conversation)
            .map(|l| l.ids(false))
            .unwrap_or_default();
        for counter in next..next + count as u64 {
            self.put(conversation, counter, &ids);
        }
        self.allowance = self.allowance.saturating_sub(count as u64 * SECOND);
        let flow = self.flow(conversation);
        flow.next = next + count as u64;
        if count > 0 && flow.resend_at.is_none() {
            flow.resend_wait = flow.resend_wait.max(RESEND_FIRST);
            flow.resend_at = Some(now + flow.resend_wait);
        }
        self.recount(conversation);
    }

    /// Whether nothing of this lane may go out now.
    fn hold_back(&mut self, now: u64, conversation: u64) -> bool {
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return true;
        };
        let age = self.link.server_time(now).saturating_sub(lane.answered_at);
        let expired = lane.grant != 0 && age > SENDER_AGE_MAX;
        let flow = self.flow(conversation);
        if flow.forbidden || flow.paused_until > now {
            return true;
        }
        if flow
            .lookup
            .as_ref()
            .is_some_and(|l| l.leaves_sender() || l.why() == Why::Ended)
        {
            return true;
        }
        if expired {
            // The head that a complete sync has told is where to look up to.
            if !self.sync.expected() {
                let head = self.inbox(conversation).head;
                self.look_up(now, conversation, Why::Expired, head);
            }
            return true;
        }
        false
    }

    /// Messages above the published limit fail before they get a counter.
    fn drop_too_long(&mut self, conversation: u64) {
        let most = self.text_bytes_max();
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return;
        };
        let waiting = lane.queue.iter().skip(lane.numbered);
        let long: Vec<u64> = waiting
            .take(self.config.in_flight_per_conversation)
            .filter(|m| m.plain_bytes as usize > most)
            .map(|m| m.local)
            .collect();
        for local in long {
            self.settle(conversation, local);
            self.fail(conversation, local, FailReason::TooLong);
        }
    }

    /// Puts a message on the connection; `ids`: those of the lane's undecided counters.
    fn put(&mut self, conversation: u64, counter: u64, ids: &[u64]) {
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return;
        };
        let place = usize::try_from(counter - lane.acked - 1).unwrap_or(usize::MAX);
        let (Some(message), Some(&id)) = (lane.queue.get(place), ids.get(place)) else {
            return;
        };
        let previous = if place == 0 {
            lane.acked_id
        } else {
            ids[place - 1]
        };
        let stand_in = message.refused.is_some();
        let send = wire::Send {
            conversation,
            sender: lane.sender,
            grant: lane.grant,
            counter,
            id,
            previous,
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
        };
        self.command(command::Command::Send(send));
    }

    pub(super) fn pump_all(&mut self, now: u64) {
        let busy: Vec<u64> = self.busy.iter().copied().collect();
        for conversation in busy {
            self.pump(now, conversation);
        }
    }

    /// How many messages may go out now.
    fn room(&self) -> usize {
        let flying = self.config.in_flight.saturating_sub(self.in_flight);
        if self.limits.sends_per_second == 0 {
            return flying;
        }
        flying.min(usize::try_from(self.allowance / SECOND).unwrap_or(usize::MAX))
    }

    fn refill(&mut self, now: u64) {
        let rate = u64::from(self.limits.sends_per_second);
        let passed = now.saturating_sub(self.allowance_at);
        self.allowance_at = now.max(self.allowance_at);
        self.allowance = self
            .allowance
            .saturating_add(passed.saturating_mul(rate))
            .min(rate * SECOND);
    }

    pub(super) fn recount(&mut self, conversation: u64) {
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return;
        };
        let (acked, last) = (lane.acked, lane.last_counter());
        let leaving = |f: &Flow| f.lookup.as_ref().is_some_and(Lookup::leaves_sender);
        let Some(flow) = self.flows.get_mut(&conversation) else {
            return;
        };
        let sent = flow.next.min(last + 1).saturating_sub(acked + 1);
        let flying = if leaving(flow) {
            0
        } else {
            usize::try_from(sent).unwrap_or(0)
        };
        self.in_flight = self.in_flight + flying - flow.flying;
        flow.flying = flying;
        if flying == 0 {
            flow.resend_at = None;
        }
    }

    pub(super) fn tick_outbox(&mut self, now: u64) {
        let busy: Vec<u64> = self.busy.iter().copied().collect();
        for conversation in busy {
            let acked = self.saved.lanes.get(&conversation).map_or(0, |l| l.acked);
            let flow = self.flow(conversation);
            if flow.resend_at.is_some_and(|at| at <= now) {
                flow.resend_wait = (flow.resend_wait * 2).min(RESEND_LAST);
                flow.resend_at = None;
                flow.next = acked + 1;
                self.recount(conversation);
            }
            self.look_for_restored(now, conversation);
            self.tick_lookup(now, conversation);
            self.pump(now, conversation);
        }
    }

    pub(super) fn next_outbox(&self) -> Option<u64> {
        let mut times = Vec::new();
        let mut starved = false;
        for conversation in &self.busy {
            let (Some(flow), Some(lane)) = (
                self.flows.get(conversation),
                self.saved.lanes.get(conversation),
            ) else {
                continue;
            };
            times.extend(flow.resend_at);
            times.extend(flow.lookup.as_ref().and_then(Lookup::retry_at));
            if flow.paused_until > self.allowance_at {
                times.push(flow.paused_until);
            }
            let may_number = flow.known.1 != 0 && lane.numbered < lane.queue.len();
            starved |= may_number || flow.next <= lane.last_counter();
        }
        let rate = u64::from(self.limits.sends_per_second);
        if starved && rate > 0 && self.allowance < SECOND && self.in_flight < self.config.in_flight
        {
            times.push(self.allowance_at + (SECOND - self.allowance).div_ceil(rate));
        }
        times.into_iter().min()
    }

    /// A sync is done: what the router said of grants decides what a gateway refused.
    pub(super) fn after_sync(&mut self, now: u64) {
        let busy: Vec<u64> = self.busy.iter().copied().collect();
        for conversation in busy {
            let Some(lane) = self.saved.lanes.get(&conversation) else {
                continue;
            };
            let (grant, undecided) = (lane.grant, lane.numbered > 0);
            let flow = self.flow(conversation);
            if std::mem::take(&mut flow.forbidden) && undecided && flow.known.1 != grant {
                let head = self.inbox(conversation).head;
                self.look_up(now, conversation, Why::Ended, head);
            }
            if let Some(lookup) = &mut self.flow(conversation).lookup {
                lookup.hurry(now);
                self.tick_lookup(now, conversation);
            }
            self.look_for_restored(now, conversation);
            self.pump(now, conversation);
        }
    }

    pub(super) fn outbox_down(&mut self) {
        self.in_flight = 0;
        for flow in self.flows.values_mut() {
            flow.down();
        }
    }

    pub(super) fn outbox_reset(&mut self) {
        self.in_flight = 0;
        self.flows.clear();
        let busy: Vec<u64> = self.busy.iter().copied().collect();
        for conversation in busy {
            self.still_busy(conversation);
        }
        self.queued = self.saved.lanes.values().map(|l| l.queue.len()).sum();
        let bodies = self
            .saved
            .lanes
            .values()
            .flat_map(|l| &l.queue)
            .map(|m| m.body.len());
        self.queued_bytes = bodies.sum();
    }

    // Bookkeeping of single messages.

    /// A message without a counter is decided.
    pub(super) fn settle(&mut self, conversation: u64, local: u64) {
        let lane = self.saved.lanes.get(&conversation);
        let queued = lane.and_then(|l| l.queue.iter().find(|m| m.local == local));
        if let Some(bytes) = queued.map(|m| m.body.len()) {
            self.leaves(bytes);
        }
        self.persist(PersistOp::Settled {
            conversation,
            local,
        });
        self.still_busy(conversation);
    }

    pub(super) fn leaves(&mut self, bytes: usize) {
        self.queued = self.queued.saturating_sub(1);
        self.queued_bytes = self.queued_bytes.saturating_sub(bytes);
    }

    pub(super) fn still_busy(&mut self, conversation: u64) {
        let lane = self.saved.lanes.get(&conversation);
        if lane.is_none_or(|l| l.queue.is_empty()) {
            self.busy.remove(&conversation);
        }
    }

    pub(super) fn fail(&mut self, conversation: u64, local: u64, reason: FailReason) {
        self.app(AppEvent::Failed {
            conversation,
            local: LocalId(local),
            reason,
        });
    }

    /// A message was found in the history as this event.
    pub(super) fn sent(&mut self, conversation: u64, local: u64, event: &Event) {
        self.app(AppEvent::Sent {
            conversation,
            local: LocalId(local),
            seq: event.seq,
            message_id: message_id(conversation, event.sender, event.grant, event.counter),
        });
    }
}
