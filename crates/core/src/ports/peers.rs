//! What gateways and routers say to each other.
//!
//! **Promise of every implementation**: messages of one sender to one receiver keep
//! their order within a conversation or are lost; they are never changed. A queue to
//! a receiver is bounded and what doesn't fit is dropped (and counted). Nothing rests
//! on a message having arrived: answers are asked again by the client's resend, events
//! are missed by their number ([`ToGateway::Digest`] shows a lost last one).

use std::sync::Arc;

use crate::ids::{ConversationId, GatewayId, Micros, Partition, Position, Seq, SessionId, UserId};
use crate::ports::directory::Revocation;
use crate::rows::{CursorRow, EventRow, GrantState};
use crate::sequencer::Answer;

/// From a gateway to the router that owns the conversations named.
#[derive(Clone, Debug, PartialEq)]
pub enum ToRouter {
    /// Asks how `conversations` stand for `user`; from then on their events come to the gateway.
    Open {
        /// Given back in the answer.
        request: u64,
        /// For whom grants and cursors are asked.
        user: UserId,
        /// At most [`OPEN_MAX`]; more are asked in several requests.
        conversations: Vec<ConversationId>,
    },
    /// Says to a router that has taken over which conversations' events are wanted; at most
    /// [`OPEN_MAX`].
    Interest {
        /// Given back in the answer.
        request: u64,
        /// Which.
        conversations: Vec<ConversationId>,
    },
    /// The gateway has no session left that wants these.
    Close(Vec<ConversationId>),
    /// How far members have come: only the greatest of each counts.
    Cursors(Vec<CursorRow>),
    /// A member is, or no longer is, typing. Not stored, dropped when not a member.
    Typing {
        /// Where.
        conversation: ConversationId,
        /// Who.
        user: UserId,
        /// Whether it begins.
        on: bool,
    },
    /// Asks for committed events from a seq on that the store may not have yet.
    Tail {
        /// Given back in the answer.
        request: u64,
        /// Of which conversation.
        conversation: ConversationId,
        /// The first seq wanted.
        from: Seq,
    },
    /// Events this gateway has put on the sockets of all its sessions, or queued for them.
    FannedOut(Vec<Handed>),
}

/// The most conversations in one [`ToRouter::Open`].
pub const OPEN_MAX: usize = 1000;

/// One event a gateway has handed to its sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handed {
    /// Of which conversation.
    pub conversation: ConversationId,
    /// Which event.
    pub seq: Seq,
}

/// How a conversation stands for a user, as the owning router knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Its last seq: events above it will come to the gateway.
    pub head: Seq,
    /// What kind it is.
    pub kind: crate::record::ConversationKind,
    /// The user's grant and what the user may see.
    pub grant: GrantState,
    /// The user's own cursors.
    pub cursor: CursorRow,
}

/// From a router, or another gateway, to a gateway.
#[derive(Clone, Debug, PartialEq)]
pub enum ToGateway {
    /// The verdict on a send, for the session it came from.
    Answer {
        /// The session.
        session: SessionId,
        /// The verdict.
        answer: Answer,
        /// When the gateway took the send, for latency.
        taken: Micros,
    },
    /// A committed event. Membership events go to every gateway, others to those that opened the conversation.
    Event {
        /// The event.
        row: Arc<EventRow>,
        /// The session that sent it and has its answer; it isn't sent there.
        except: SessionId,
        /// When the sender's gateway took it, for latency; 0: not known.
        taken: Micros,
    },
    /// The answer to [`ToRouter::Open`]. Conversations the router couldn't read are in `later`.
    Opened {
        /// The request's number.
        request: u64,
        /// How they stand.
        states: Vec<Opened>,
        /// Ask for these again after a while.
        later: Vec<ConversationId>,
    },
    /// Another router has taken over: it sends nothing of conversations it isn't told of
    /// ([`ToRouter::Interest`]).
    TookOver {
        /// Which partition.
        partition: Partition,
    },
    /// The answer to [`ToRouter::Interest`].
    Interested {
        /// The request's number.
        request: u64,
        /// The number of the last digest to this gateway: with the next one nothing is missing.
        digest: u64,
        /// The last seqs of those in which something happened lately. The others' are what the router
        /// before it said.
        heads: Arc<[(ConversationId, Seq)]>,
    },
    /// The answer to [`ToRouter::Tail`]: contiguous from the seq asked for, maybe empty.
    Tail {
        /// The request's number.
        request: u64,
        /// The events.
        rows: Vec<Arc<EventRow>>,
    },
    /// Cursors of members that moved.
    Receipts {
        /// Where.
        conversation: ConversationId,
        /// Who, and how far by now.
        cursors: Arc<[CursorRow]>,
    },
    /// Somebody is, or no longer is, typing.
    Typing {
        /// Where.
        conversation: ConversationId,
        /// Who.
        user: UserId,
        /// Whether it begins.
        on: bool,
    },
    /// A user has blocked another, or no longer does.
    BlockChanged {
        /// Who blocks.
        user: UserId,
        /// Whom.
        other: UserId,
        /// Whether it begins.
        is_blocked: bool,
    },
    /// A message waits for members that were online: the author is told.
    Delayed {
        /// The author.
        user: UserId,
        /// Where.
        conversation: ConversationId,
        /// Which.
        seq: Seq,
    },
    /// The session's device has a newer session at another server: this one ends.
    Replaced {
        /// The older session.
        session: SessionId,
    },
    /// What another server has revoked: tokens are refused and sessions end here too.
    Revoked(Revocation),
    /// The heads of the conversations in which something happened lately. A gateway that
    /// misses a number opens all its conversations again.
    Digest {
        /// Whose router says it.
        partition: Partition,
        /// One more than in the digest before it, per router and gateway; a router that knows nothing
        /// of the gateway begins with its clock, so that no router's numbers go on with another's.
        number: u64,
        /// Conversations the gateway has opened, and their last seqs.
        heads: Arc<[(ConversationId, Seq)]>,
        /// The seqs of all events that changed members lately, in any conversation: a gateway that
        /// lost one doesn't know that a user of its own has joined, and a later one may hide it.
        changes: Arc<[(ConversationId, Seq)]>,
    },
}

impl ToGateway {
    /// Whether it says what the log alone decides: then it is right whoever says it, however late. What a
    /// router said before another took over must arrive, as the other begins behind it.
    pub fn is_of_log(&self) -> bool {
        matches!(self, ToGateway::Answer { .. } | ToGateway::Event { .. })
    }
}

/// Where a core's messages for the other side go. Never blocks: what doesn't fit is dropped.
pub trait Peers: Send + Sync {
    /// To the router that owns a partition.
    fn to_router(&self, from: GatewayId, partition: Partition, message: ToRouter);

    /// From a partition's router to a gateway worker. Unless [`ToGateway::is_of_log`] it is dropped when it is
    /// known here that another has taken over: how things stand could be told from what no longer is.
    fn to_gateway(&self, from: Partition, to: GatewayId, message: ToGateway);

    /// From a partition's router to all gateways there are.
    fn broadcast(&self, from: Partition, message: ToGateway);

    /// A router of this server has taken a partition over; `end` is where the log ended then. All
    /// gateways hear it as [`ToGateway::TookOver`].
    fn took_over(&self, partition: Partition, end: Position);

    /// The router of this server has given its partition up.
    fn resigned(&self, partition: Partition);

    /// Whether another server is there, where the clients of this one can go.
    fn has_others(&self) -> bool;

    /// To a gateway worker of another server, from no router.
    fn to_other(&self, to: GatewayId, message: ToGateway);

    /// To the gateways of all other servers: what happened at this one and is in no log.
    fn to_others(&self, message: ToGateway);
}
