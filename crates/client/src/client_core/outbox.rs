//! Numbering messages and sending them; `answers` has what comes back.
//!
//! A lane is what waits and flies of one conversation ([`Lane`], saved); its flow is what
//! the present connection has seen of it.

use std::collections::BTreeMap;

use tidings_protocol::message_id;
use tidings_protocol::wire::{self, Encoding, Event, Kind, command};

use super::lookup::{Lookup, Why};
use super::{AppEvent, ClientCore, FailReason, LocalId, SECOND};
use crate::saved::{Lane, PersistOp};

/// Sent messages that get no answer go out again after this, doubled each time.
pub(super) const RESEND_FIRST: u64 = 15 * SECOND;
const RESEND_LAST: u64 = 120 * SECOND;
/// After this long without an answer the server may have forgotten a sender id (it counts
/// them for 400 days).
const SENDER_AGE_MAX: u64 = 365 * 86_400 * SECOND;
/// Then so long nothing is sent before what was is looked for: longer than an append is under way.
const EXPIRED_WAIT: u64 = 600 * SECOND;

/// Own events remembered while it matters which id stood before another. Messages are in
/// doubt only as far back as the last start.
pub(super) const OWN_IDS_MAX: usize = 4096;

/// What a lane does on the present connection.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// The next counter to put on this connection; at or below the last known one: none was yet.
    pub(super) next: u64,
    /// The user's grant, and the seq as of which it is known.
    pub(super) known: (u64, u64),
    pub(super) paused_until: u64,
    /// The sender id is too old; what was sent under it is waited for, then looked for.
    expiring: bool,
    /// A gateway says that the user may not write; the next sync tells.
    pub(super) forbidden: bool,
    pub(super) refusals: u32,
    pub(super) gap_at: Option<u64>,
    pub(super) fork_at: Option<(u64, u64)>,
    pub(super) resend_at: Option<u64>,
    pub(super) resend_wait: u64,
    pub(super) asked_grant: bool,
    /// An event says that the user may write, but not under which grant: a sync tells, and hasn't been asked for.
    pub(super) doubtful: bool,
    /// The same, until it has told: a gateway may hear of it later than its own clients.
    pub(super) in_doubt: bool,
    /// Messages wait here since before this start. If what was saved is an old backup, they
    /// may have been sent since, under whatever sender id and grant: none gets a counter
    /// before the history since the saved cursor was looked through for them.
    pub(super) restored: bool,
    /// The last message in the outbox at the start: no other life knows a later one.
    pub(super) restored_last: u64,
    /// Counters up to this one, under the lane's sender id and grant, were given before this
    /// start: an old backup holds as undecided what a later life may have numbered anew.
    pub(super) restored_to: u64,
    /// Ids of the user's own events as they were examined, by sender, grant and counter.
    pub(super) own_ids: BTreeMap<(u64, u64, u64), u64>,
    /// How many of the messages in flight are this lane's.
    pub(super) flying: usize,
    pub(super) lookup: Option<Lookup>,
}

impl Flow {
    pub(super) fn new(lane: &Lane) -> Self {
        // The grant in use is taken as current until a sync or an answer says otherwise.
        let grant = if lane.over { 0 } else { lane.grant };
        Flow {
            known: (lane.grant, grant),
            restored: lane.queue.len() > lane.numbered,
            restored_last: lane.queue.back().map_or(0, |m| m.local),
            restored_to: lane.last_counter(),
            ..Flow::default()
        }
    }

    pub(super) fn may_write(&self) -> bool {
        self.known.1 != 0
    }

    pub(super) fn doubt(&mut self) {
        (self.doubtful, self.in_doubt) = (true, true);
    }

    /// Whether a sync may be asked for to learn the grant: once a connection.
    pub(super) fn ask_grant(&mut self) -> bool {
        !std::mem::replace(&mut self.asked_grant, true)
    }

    /// The id before an own event's under its sender and grant, if it is known; remembers the event's.
    pub(super) fn previous_of(&mut self, lane: &Lane, event: &Event) -> Option<u64> {
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
            restored_last: self.restored_last,
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
            // One that knows of no grant may not know the event yet that began one.
            let settles = grant != 0 || as_of > flow.known.0;
            flow.doubtful &= !settles;
            flow.in_doubt &= !settles;
            flow.known = (as_of, grant);
        }
    }

    /// Sends what may be sent of one conversation.
    pub(super) fn pump(&mut self, now: u64, conversation: u64) {
        if !self.link.ready() || !self.busy.contains(&conversation) {
            return;
        }
        if std::mem::take(&mut self.flow(conversation).doubtful) {
            self.want_sync(now);
        }
        self.refill(now);
        if self.hold_back(now, conversation) {
            return;
        }
        self.drop_too_long(conversation);
        let Some(lane) = self.saved.lanes.get(&conversation) else {
            return;
        };
        let (as_of, known) = self.flows.get(&conversation).map_or((0, 0), |f| f.known);
        let restored = self.flows.get(&conversation).is_some_and(|f| f.restored);
        // Grants only grow: an earlier one that counts later says that the lane's never was one.
        let mistaken = known != 0 && known < lane.grant && lane.grant <= as_of && lane.over;
        let is_next = known > lane.grant || mistaken;
        if lane.numbered == 0 && is_next && !lane.queue.is_empty() && !restored {
            let sender = match lane.sender {
                0 => self.saved.sender,
                // What it numbered under the earlier grant isn't remembered.
                _ if mistaken => self.random_id(),
                sender => sender,
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
        let unanswered = lane.numbered > 0;
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
        if !expired {
            flow.expiring = false;
        } else if unanswered && !flow.expiring {
            // Nothing more is sent under it; what is on its way arrives before anybody looks for it.
            flow.expiring = true;
            flow.paused_until = now + EXPIRED_WAIT;
            return true;
        } else {
            // The head that a sync tells is where to look up to.
            if let Some(head) = self.inbox(conversation).told {
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
            self.told(now, conversation);
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
        // What waits may have been stored under the log before: it is looked for, as at the start.
        let lanes = self.saved.lanes.iter();
        self.flows = lanes.map(|(&c, lane)| (c, Flow::new(lane))).collect();
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
