//! The way of a message, both halves.
//!
//! ```text
//! client ─ send ─▶ gateway ─ accept ─▶ LOG ─ route ─▶ 1 decide  2 acknowledge  3 store
//!                                                     4 fan out 5 commit the position
//! ```
//!
//! [`accept`] is the gateway's half: the record is appended and nothing else happens;
//! nobody is told anything. [`Router`] is the other half: it reads records back as
//! committed, one router at a time for a partition, and does the five steps.
//!
//! What a crash costs between the steps, always nothing:
//!
//! - after accept, before decide: the record is in the log; whoever routes next decides.
//! - after decide or acknowledge: the position isn't committed, so the next router decides
//!   the same again from the same log (module `sequencer`) and answers again.
//! - after store: the same rows are written again; they are the same rows.
//! - after fan out: members drop what isn't above the highest seq they have.
//! - after commit: done; a tail nobody heard of is told by the next digest of heads.
//!
//! The router does no I/O: it is given inputs and leaves [`Effect`]s, which a driver
//! performs in order. An effect's result comes back as another input, late, twice or
//! never; the router asks again on [`Router::tick`].

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::ids::{ConversationId, GatewayId, Micros, Partition, Position, Seq, UserId};
use crate::ports::log::Append;
use crate::ports::peers::{ToGateway, ToRouter};
use crate::record::{Committed, Content, Record, Send};
use crate::router::conversation::Conversation;
use crate::router::flight::Flights;
use crate::router::{Config, Counters, Work};
use crate::rows::{CursorRow, EventRow, StateKey, StateRow};
use crate::sequencer::{self, Verdict};
use crate::varint::Malformed;

/// So many that wait for a conversation have what they need read at once.
const READ_TOGETHER: usize = 100;

/// The gateway's half: what is appended for a checked send.
pub fn accept(conversation: ConversationId, send: Send) -> Append {
    let mut payload = Vec::with_capacity(send.body.len() + 96);
    Record {
        conversation,
        content: Content::Send(send),
    }
    .encode(&mut payload);
    Append {
        conversation,
        payload: Bytes::from(payload),
    }
}

/// What the driver does for the router, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// [`crate::ports::store::Store::put_events`]; then [`Router::events_stored`].
    PutEvents {
        /// Which flight.
        flight: u64,
        /// The rows.
        rows: Vec<EventRow>,
    },
    /// [`crate::ports::store::Store::put_state`]; then [`Router::state_stored`].
    PutState {
        /// All flights up to this one.
        flight: u64,
        /// The rows.
        rows: Vec<StateRow>,
    },
    /// [`crate::ports::store::Store::put_cursors`]; then [`Router::cursors_stored`] or
    /// [`Router::cursors_refused`], with the rows.
    PutCursors {
        /// The rows.
        rows: Vec<CursorRow>,
        /// Whether the first gets them as the store has them after the put, since another router
        /// may have moved them further; else they are as they were put.
        check: bool,
    },
    /// [`crate::ports::store::Store::settle`], and what it gives to [`crate::ports::log::Log::commit`].
    Settle(Position),
    /// [`crate::ports::store::Store::read_state`] (by quorum); then [`Router::state_read`].
    ReadState {
        /// The load's number.
        load: u64,
        /// Of which conversation.
        conversation: ConversationId,
        /// Which rows.
        keys: Vec<StateKey>,
    },
    /// [`crate::ports::store::Store::read_events_since`] (by quorum); then [`Router::since_read`].
    ReadSince {
        /// The load's number.
        load: u64,
        /// Of which conversation.
        conversation: ConversationId,
        /// From which position on.
        from: Position,
    },
    /// [`crate::ports::store::Store::read_events`] of each of these seqs; then [`Router::events_read`].
    ReadEvents {
        /// The load's number.
        load: u64,
        /// Of which conversation.
        conversation: ConversationId,
        /// Which events.
        seqs: Vec<Seq>,
    },
    /// [`crate::ports::store::Store::read_cursors`]; then [`Router::cursors_read`].
    ReadCursors {
        /// The load's number.
        load: u64,
        /// Of which conversation.
        conversation: ConversationId,
        /// Whose.
        users: Vec<UserId>,
    },
    /// [`crate::ports::store::Store::read_members`]; then [`Router::members_read`].
    ReadMembers {
        /// The load's number.
        load: u64,
        /// Of which conversation.
        conversation: ConversationId,
    },
    /// To one gateway.
    Send {
        /// Which one.
        to: GatewayId,
        /// What.
        message: ToGateway,
    },
    /// To every gateway there is.
    Broadcast(ToGateway),
    /// An event of a small conversation is out, or one that changes members of any: what is done for
    /// members without a session is the driver's, and nothing here waits for it.
    FannedOut {
        /// The event.
        row: Arc<EventRow>,
        /// Whether the conversation has at most [`crate::router::INBOX_MEMBERS_MAX`] members.
        is_small: bool,
    },
    /// The directory's change of this version has become an event: its outbox may forget it.
    Relayed {
        /// Of which conversation.
        conversation: ConversationId,
        /// All versions up to this one.
        version: u64,
    },
    /// A record that can't be read was made an empty event, or skipped when not even its
    /// conversation is known: an operator should see it.
    ///
    /// It goes to [`crate::ports::dead_letters::DeadLetters::put`], and nothing here waits for it.
    DeadLetter {
        /// Where it stands in the log.
        position: Position,
        /// When it was appended.
        appended: Micros,
        /// Of which conversation, if that much can be read.
        conversation: Option<ConversationId>,
        /// What can't be read, and where.
        reason: String,
        /// Its bytes.
        payload: Bytes,
    },
}

/// The router of one partition.
pub struct Router {
    pub(crate) config: Config,
    pub(crate) partition: Partition,
    /// The position behind the last record given to [`Router::records`].
    pub(crate) next: Position,
    /// How far another router may have come: before that this one answers no `Open`.
    pub(crate) caught_up_at: Position,
    pub(crate) conversations: HashMap<ConversationId, Box<Conversation>>,
    /// Positions of records that wait for rows of their conversation.
    pub(crate) waiting: BTreeSet<Position>,
    pub(crate) flights: Flights,
    pub(crate) settled: Position,
    /// The clock of the last input, for deadlines only: nothing is decided by it.
    pub(crate) now: Micros,
    /// Nothing more comes in: what is stored is committed at once.
    leaving: bool,
    pub(crate) loads: crate::router::cold::Loads,
    pub(crate) gateways: crate::router::digest::Gateways,
    pub(crate) receipts: crate::router::receipts::Dirty,
    pub(crate) handed: crate::router::fanout::Handing,
    /// Requests that came before the router had caught up.
    pub(crate) early: VecDeque<(GatewayId, ToRouter)>,
    pub(crate) out: Vec<Effect>,
    /// What happened, for metrics.
    pub counters: Counters,
}

impl Router {
    /// A router that takes over `partition` at its committed position; `end` is where the
    /// log ends now. It knows nothing: what it needs it reads.
    pub fn new(partition: Partition, committed: Position, end: Position, config: Config) -> Router {
        Router {
            config,
            partition,
            next: committed,
            caught_up_at: end,
            conversations: HashMap::new(),
            waiting: BTreeSet::new(),
            flights: Flights::default(),
            settled: committed,
            now: 0,
            leaving: false,
            loads: Default::default(),
            gateways: Default::default(),
            receipts: Default::default(),
            handed: Default::default(),
            early: VecDeque::new(),
            out: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// The partition it routes.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// From where the driver reads the log next.
    pub fn next_position(&self) -> Position {
        self.next
    }

    /// Whether there is room for more records. False: the store is behind, and the log's
    /// uncommitted tail is where they wait.
    pub fn wants_records(&self) -> bool {
        self.flights.bytes() < self.config.flight_bytes_max
            && self.waiting.len() < self.config.waiting_max
    }

    /// The effects left since the last call, in order.
    pub fn effects(&mut self) -> std::vec::Drain<'_, Effect> {
        self.out.drain(..)
    }

    /// Committed records, in order and without one missing since [`Router::next_position`].
    pub fn records(&mut self, records: Vec<Committed>, now: Micros) {
        self.now = now;
        for record in records {
            debug_assert!(record.position >= self.next, "records come in order");
            self.next = record.position.next();
            self.route(record);
        }
        self.launch();
        self.answer_early();
    }

    /// One record: at once if its rows are known, else behind the others that wait.
    fn route(&mut self, record: Committed) {
        let content = Record::decode(&record.payload).map(|r| r.content);
        let Some(conversation) = Record::conversation_of(&record.payload) else {
            if let Err(error) = content {
                self.set_aside(record, None, error);
            }
            return;
        };
        self.take_in(conversation, Work::Record { record, content });
    }

    /// At once if its rows are known and no record waits before it, else it waits. A question too: a router before
    /// this one may have acknowledged the records that wait, so an answer without them could be a lie. But nothing
    /// waits for a question: one that needs a store which is away holds up no message.
    pub(crate) fn take_in(&mut self, id: ConversationId, work: Work) {
        let conversation = self.conversations.entry(id).or_default();
        if !conversation.has_records_waiting() && conversation.missing(&work).is_empty() {
            return self.perform(id, work);
        }
        if let Work::Record { record, .. } = &work {
            self.waiting.insert(record.position);
        }
        conversation.wait(work);
        if conversation.loading.is_none() {
            self.load_what_is_missing(id);
        }
    }

    /// Does what waits for a conversation and can be done, and reads what the rest needs.
    pub(crate) fn work(&mut self, id: ConversationId) {
        loop {
            let Some(conversation) = self.conversations.get_mut(&id) else {
                return;
            };
            let Some(work) = conversation.next_record() else {
                break;
            };
            if let Work::Record { record, .. } = &work {
                self.waiting.remove(&record.position);
            }
            self.perform(id, work);
        }
        let questions = match self.conversations.get_mut(&id) {
            Some(conversation) => conversation.ready_questions(),
            None => return,
        };
        for question in questions {
            self.perform(id, question);
        }
        self.load_what_is_missing(id);
    }

    fn load_what_is_missing(&mut self, id: ConversationId) {
        let Some(conversation) = self.conversations.get(&id) else {
            return;
        };
        let missing = conversation.missing_together(READ_TOGETHER);
        if !missing.is_empty() {
            self.load(id, missing);
        }
    }

    /// One piece of work whose rows are known.
    fn perform(&mut self, id: ConversationId, work: Work) {
        match work {
            Work::Record { record, content } => match content {
                Ok(Content::Send(send)) => {
                    self.decide_send(id, record.position, record.appended, send)
                }
                Ok(Content::Membership(change)) => {
                    self.decide_membership(id, record.position, record.appended, change)
                }
                Err(error) => self.decide_unreadable(id, record, error),
            },
            Work::Open {
                gateway,
                request,
                user,
            } => self.opened(id, gateway, request, user),
            Work::Cursor(row) => self.cursor_moved(row),
            Work::Head => self.head_known(id),
        }
    }

    /// 1 decide, 2 acknowledge.
    fn decide_send(
        &mut self,
        id: ConversationId,
        position: Position,
        appended: Micros,
        send: Send,
    ) {
        let conversation = self.conversations.get_mut(&id).expect("take_in() made it");
        let before = conversation.before(send.user, send.sender);
        let answer = sequencer::decide(id, &before, &send, appended);
        self.counters.verdict(answer.verdict);
        // The first one under a counter stays; the answer names its id, so the sender learns of it.
        if answer.verdict == Verdict::Duplicate
            && send.counter == answer.counter
            && send.id != answer.id
            && !send.once
        {
            self.counters.conflicts += 1;
        }
        if send.origin.gateway.0 != 0 {
            let message = ToGateway::Answer {
                session: send.origin.session,
                answer,
                taken: send.taken,
            };
            self.out.push(Effect::Send {
                to: send.origin.gateway,
                message,
            });
        }
        if answer.verdict != Verdict::Accepted {
            return;
        }
        let (head, sender) = sequencer::accept(&before, &send, &answer);
        let row = sequencer::event(id, position, &before, &send, &answer);
        conversation.put_head(head);
        conversation.put_sender(send.user, send.sender, sender);
        let keys = [StateKey::Head, StateKey::Sender(send.user, send.sender)];
        self.accepted(id, position, row, &keys, send.origin, send.taken);
    }

    fn decide_membership(
        &mut self,
        id: ConversationId,
        position: Position,
        appended: Micros,
        change: crate::record::Membership,
    ) {
        let conversation = self.conversations.get_mut(&id).expect("take_in() made it");
        let head = conversation.head();
        let verdict = sequencer::decide_membership(&head, &change);
        self.counters.verdict(verdict);
        if verdict == Verdict::Gap {
            return; // The relay sends again from head.version + 1.
        }
        let version = head.version.max(change.version);
        if verdict == Verdict::Accepted {
            let (row, keys) = conversation.apply_membership(id, position, appended, &change);
            self.accepted(id, position, row, &keys, Default::default(), 0);
        }
        self.out.push(Effect::Relayed {
            conversation: id,
            version,
        });
    }

    /// A record of a later version or with damaged bytes: an empty event keeps the order
    /// gapless for everybody, whatever the router that meets it can read.
    fn decide_unreadable(&mut self, id: ConversationId, record: Committed, error: Malformed) {
        let position = record.position;
        let conversation = self.conversations.get_mut(&id).expect("take_in() made it");
        let row = conversation.apply_unreadable(id, position, record.appended);
        self.set_aside(record, Some(id), error);
        self.accepted(id, position, row, &[StateKey::Head], Default::default(), 0);
    }

    fn set_aside(
        &mut self,
        record: Committed,
        conversation: Option<ConversationId>,
        error: Malformed,
    ) {
        self.counters.dead_letters += 1;
        self.out.push(Effect::DeadLetter {
            position: record.position,
            appended: record.appended,
            conversation,
            reason: Record::why_unreadable(&record.payload, error),
            payload: record.payload,
        });
    }

    /// 3 store: the event row now, the rows of state once it and all earlier ones are confirmed.
    fn accepted(
        &mut self,
        id: ConversationId,
        position: Position,
        row: EventRow,
        changed: &[StateKey],
        origin: crate::record::Origin,
        taken: Micros,
    ) {
        let conversation = self
            .conversations
            .get_mut(&id)
            .expect("the caller just used it");
        let row = Arc::new(row);
        conversation.unstored.push_back(row.clone());
        conversation.touched = self.now;
        conversation.unsettled += changed.len() as u32;
        let ts = row.ts;
        let state = changed
            .iter()
            .map(|&key| conversation.state_row(id, key, position, ts));
        self.flights
            .load(position, row, state, origin.session, taken);
    }

    /// The position before which everything is done.
    pub fn settled_position(&self) -> Position {
        self.settled
    }

    /// The gathered event rows are to go to the store.
    pub(crate) fn launch(&mut self) {
        self.flights.launch(self.now);
        self.advance();
    }

    /// A flight's event rows are confirmed, or the store couldn't say so.
    pub fn events_stored(&mut self, flight: u64, ok: bool, now: Micros) {
        self.now = now;
        self.flights.events_stored(flight, ok, now);
        self.advance();
    }

    /// The state rows of all flights up to this one are confirmed, or not.
    pub fn state_stored(&mut self, flight: u64, ok: bool, now: Micros) {
        self.now = now;
        self.flights.state_stored(flight, ok);
        self.advance();
    }

    /// Moves every flight as far as it may go, in order: 4 fan out, then the rows of state, then 5 commit.
    pub(crate) fn advance(&mut self) {
        while let Some((flight, rows)) = self.flights.next_to_ask(self.now) {
            self.out.push(Effect::PutEvents { flight, rows });
        }
        let slow_after = self.config.store_slow_after;
        while let Some(events) = self.flights.next_to_fan_out(self.now, slow_after) {
            for event in events {
                self.fan_out(event);
            }
        }
        for row in self.flights.take_confirmed() {
            if let Some(conversation) = self.conversations.get_mut(&row.conversation) {
                conversation.confirmed(row.seq);
            }
        }
        let full = self.flights.bytes() > self.config.flight_bytes_max / 2;
        let every = match (self.leaving, full) {
            (true, _) => 0,
            // Not at once: each write takes as many flights along as were confirmed since the last.
            (false, true) => self.config.commit_every / 8,
            (false, false) => self.config.commit_every,
        };
        if let Some((flight, rows)) = self.flights.next_state(self.now, every) {
            self.out.push(Effect::PutState { flight, rows });
        }
        let settled = self.settleable();
        if settled > self.settled {
            self.settled = settled;
            self.out.push(Effect::Settle(settled));
        }
    }

    /// The router's last task: whoever goes on begins at the committed position, and the less is
    /// behind it, the less is applied again. Answers whether everything read is settled.
    pub fn leave(&mut self, now: Micros) -> bool {
        self.now = now;
        self.leaving = true;
        self.advance();
        self.settled == self.next
    }

    /// Everything before this position needs nothing any more.
    fn settleable(&self) -> Position {
        let waiting = self.waiting.first().copied().unwrap_or(self.next);
        self.flights.lowest().map_or(waiting, |p| p.min(waiting))
    }

    /// The time, about every 100 ms: deadlines, coalesced cursors, digests.
    pub fn tick(&mut self, now: Micros) {
        self.now = now;
        for (flight, rows) in self.flights.overdue(now, self.config.store_retry_after) {
            self.counters.store_retries += 1;
            self.out.push(Effect::PutEvents { flight, rows });
        }
        self.advance();
        self.retry_loads();
        self.look_at_doubted();
        self.trust_cursors();
        self.flush_cursors();
        self.tell_digest();
        self.handed.forget_before(
            now.saturating_sub(self.config.handed_max),
            &mut self.counters,
        );
        self.forget_quiet();
    }

    pub(crate) fn conversation(&mut self, id: ConversationId) -> &mut Conversation {
        self.conversations.entry(id).or_default()
    }
}
