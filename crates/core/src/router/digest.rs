//! Requests of gateways, and the digest of heads that shows a lost last event.
//!
//! Frames between router and gateway may be lost. A hole in the middle shows itself by
//! its number, a lost last event doesn't: so every gateway is told, at fixed times, the
//! heads of its conversations that moved since the digest before the last one. Digests
//! are numbered; a gateway that misses one asks for all heads again.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::Work;
use crate::ids::{ConversationId, GatewayId, Micros, Position, Seq};
use crate::path::{Effect, Router};
use crate::planted::{self, Mistake};
use crate::ports::peers::{OPEN_MAX, Opened, ToGateway, ToRouter};

/// How many heads are read with a tick for gateways that come from another router: a thousand a second.
const DOUBTED_PER_TICK: usize = 100;

/// With so many questions that wait for one conversation's rows no cursor is taken in.
const CURSORS_WAITING_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Gateways {
    /// The number of the last digest to each gateway heard of.
    known: BTreeMap<GatewayId, u64>,
    /// The heads of conversations that moved since the last digest, and in the time before it. Kept
    /// here, as a conversation may be forgotten before its head is told.
    moved: HashMap<ConversationId, Seq>,
    moved_before: HashMap<ConversationId, Seq>,
    /// Events that changed members in the same times, each of them: every gateway is told of these,
    /// as one that lost it doesn't know yet that it wants the conversation.
    changed: BTreeSet<(ConversationId, Seq)>,
    changed_before: BTreeSet<(ConversationId, Seq)>,
    told: Micros,
    /// Conversations that gateways want from the router before this one, and whose heads aren't known
    /// here: what that one last told of them may be lost.
    doubted: VecDeque<ConversationId>,
    /// Answers to `Open` that are being gathered, by gateway and request.
    opening: HashMap<(GatewayId, u64), Gathering>,
}

#[derive(Debug)]
struct Gathering {
    left: usize,
    states: Vec<Opened>,
}

impl Gateways {
    pub fn moved(&mut self, id: ConversationId, head: Seq) {
        let highest = self.moved.entry(id).or_default();
        *highest = head.max(*highest);
    }

    pub fn members_changed(&mut self, id: ConversationId, seq: Seq) {
        self.changed.insert((id, seq));
    }
}

impl Router {
    /// A message of a gateway.
    pub fn peer(&mut self, from: GatewayId, message: ToRouter, now: Micros) {
        self.now = now;
        // From the time on, so that a gateway that misses the first digest of a new router doesn't
        // take the second one for the next of the router before it.
        self.gateways.known.entry(from).or_insert(now);
        if let ToRouter::Interest { .. } = &message {
            self.doubt_cursors();
        }
        if self.next < self.caught_up_at
            && !planted::is(Mistake::AnsweredBeforeCaughtUp)
            && matches!(
                message,
                ToRouter::Open { .. } | ToRouter::Interest { .. } | ToRouter::Cursors(_)
            )
        {
            if let ToRouter::Interest { conversations, .. } = &message {
                // What is applied again until then is wanted, too.
                for &id in conversations.iter().take(OPEN_MAX) {
                    self.interest(id, from);
                }
            }
            // Its heads would be older than what clients have seen from the router before it.
            if self.early.len() < self.config.early_max {
                self.early.push_back((from, message));
            } else if let ToRouter::Open {
                request,
                conversations,
                ..
            } = message
            {
                let message = ToGateway::Opened {
                    request,
                    states: Vec::new(),
                    later: conversations,
                };
                self.out.push(Effect::Send { to: from, message });
            }
            return;
        }
        match message {
            ToRouter::Open {
                request,
                user,
                conversations,
            } => self.open(from, request, user, conversations),
            ToRouter::Interest {
                request,
                conversations,
            } => self.interested(from, request, conversations),
            ToRouter::Close(conversations) => {
                for id in conversations {
                    if let Some(conversation) = self.conversations.get_mut(&id) {
                        conversation.interested.retain(|&g| g != from);
                    }
                }
            }
            ToRouter::Cursors(rows) => {
                for row in rows {
                    let conversation = self.conversation(row.conversation);
                    if conversation.questions_waiting() < CURSORS_WAITING_MAX {
                        self.take_in(row.conversation, Work::Cursor(row));
                    } else {
                        self.counters.cursors_refused += 1; // The client says it again with its next sync.
                    }
                }
            }
            ToRouter::Typing {
                conversation,
                user,
                on,
            } => self.typing(from, conversation, user, on),
            ToRouter::Tail {
                request,
                conversation,
                from: seq,
            } => {
                let rows = self
                    .conversations
                    .get(&conversation)
                    .map_or(Vec::new(), |c| {
                        c.unstored
                            .iter()
                            .filter(|row| row.seq >= seq)
                            .cloned()
                            .collect()
                    });
                self.out.push(Effect::Send {
                    to: from,
                    message: ToGateway::Tail { request, rows },
                });
            }
            ToRouter::FannedOut(handed) => self.fanned_out(handed),
        }
    }

    /// Where the log ended at some time after all that [`Router::peer`] is told next was sent. Needed while
    /// this router is in doubt ([`Router::is_in_doubt`]): another one may have acknowledged up to there,
    /// so nobody is told how conversations stand before all that is applied.
    pub fn log_ends_at(&mut self, end: Position) {
        self.caught_up_at = self.caught_up_at.max(end);
    }

    pub(crate) fn answer_early(&mut self) {
        if self.next >= self.caught_up_at {
            for (from, message) in std::mem::take(&mut self.early) {
                self.peer(from, message, self.now);
            }
        }
    }

    fn open(
        &mut self,
        from: GatewayId,
        request: u64,
        user: crate::ids::UserId,
        mut conversations: Vec<ConversationId>,
    ) {
        let later = conversations.split_off(conversations.len().min(OPEN_MAX));
        if conversations.is_empty() || !later.is_empty() {
            self.out.push(Effect::Send {
                to: from,
                message: ToGateway::Opened {
                    request,
                    states: Vec::new(),
                    later,
                },
            });
        }
        if conversations.is_empty() {
            return;
        }
        self.gateways.opening.insert(
            (from, request),
            Gathering {
                left: conversations.len(),
                states: Vec::new(),
            },
        );
        for id in conversations {
            self.interest(id, from);
            let work = Work::Open {
                gateway: from,
                request,
                user,
            };
            self.take_in(id, work);
        }
    }

    /// One conversation of an `Open` is known; the last one sends the answer.
    pub(crate) fn opened(
        &mut self,
        id: ConversationId,
        gateway: GatewayId,
        request: u64,
        user: crate::ids::UserId,
    ) {
        let now = self.now;
        let conversation = self.conversation(id);
        conversation.touched = now;
        let state = conversation.opened(id, user);
        let Some(gathering) = self.gateways.opening.get_mut(&(gateway, request)) else {
            return;
        };
        gathering.states.push(state);
        gathering.left -= 1;
        if gathering.left == 0 {
            let gathering = self
                .gateways
                .opening
                .remove(&(gateway, request))
                .expect("just found");
            let mut states = gathering.states;
            for state in &mut states {
                // As it stands now: what came while others were read may be lost on its way, and a
                // client that asks meanwhile is told that it has all.
                if let Some(conversation) = self.conversations.get(&state.conversation)
                    && conversation.knows(user)
                {
                    *state = conversation.opened(state.conversation, user);
                }
            }
            let message = ToGateway::Opened {
                request,
                states,
                later: Vec::new(),
            };
            self.out.push(Effect::Send {
                to: gateway,
                message,
            });
        }
    }

    /// A gateway goes on with conversations that it has opened before another router.
    fn interested(
        &mut self,
        from: GatewayId,
        request: u64,
        mut conversations: Vec<ConversationId>,
    ) {
        conversations.truncate(OPEN_MAX);
        let mut heads = Vec::new();
        for id in conversations {
            self.interest(id, from);
            // Those not in memory haven't changed since the position that this router began with:
            // their last events were told before that was committed, but may not have arrived.
            match self.conversations.get(&id).and_then(|c| c.known_head()) {
                Some(head) => heads.push((id, head)),
                None => self.gateways.doubted.push_back(id),
            }
        }
        let digest = self.gateways.known.get(&from).copied().unwrap_or_default();
        let message = ToGateway::Interested {
            request,
            digest,
            heads: Arc::from(heads),
        };
        self.out.push(Effect::Send { to: from, message });
    }

    /// Reads the heads in doubt, some with each tick; the digest tells them. As many as are wanted here,
    /// and no faster than the store answers.
    pub(crate) fn look_at_doubted(&mut self) {
        for _ in self.loads.under_way()..DOUBTED_PER_TICK {
            let Some(id) = self.gateways.doubted.pop_front() else {
                self.gateways.doubted.shrink_to_fit();
                return;
            };
            let conversation = self.conversations.get(&id);
            if conversation.is_some_and(|c| !c.interested.is_empty()) {
                self.take_in(id, Work::Head);
            }
        }
    }

    pub(crate) fn head_known(&mut self, id: ConversationId) {
        let head = self.conversation(id).head().seq;
        if head > 0 {
            self.gateways.moved(id, head);
        }
    }

    fn typing(&mut self, from: GatewayId, id: ConversationId, user: crate::ids::UserId, on: bool) {
        let Some(conversation) = self.conversations.get(&id) else {
            return;
        };
        if !conversation.grant(user).role.may_write() || !conversation.interested.contains(&from) {
            return;
        }
        for &to in &conversation.interested {
            self.out.push(Effect::Send {
                to,
                message: ToGateway::Typing {
                    conversation: id,
                    user,
                    on,
                },
            });
        }
    }

    /// Tells every gateway the heads of its conversations that moved lately.
    pub(crate) fn tell_digest(&mut self) {
        let is_due = self.now.saturating_sub(self.gateways.told) >= self.config.digest_every;
        if !is_due || planted::is(Mistake::DigestNotSent) {
            return;
        }
        self.gateways.told = self.now;
        let moved = std::mem::take(&mut self.gateways.moved);
        let mut lately = std::mem::replace(&mut self.gateways.moved_before, moved.clone());
        lately.extend(moved);
        let mut heads: HashMap<GatewayId, Vec<(ConversationId, Seq)>> = HashMap::new();
        for (id, head) in lately {
            let Some(conversation) = self.conversations.get(&id) else {
                continue;
            };
            for &gateway in &conversation.interested {
                heads.entry(gateway).or_default().push((id, head));
            }
        }
        let changed = std::mem::take(&mut self.gateways.changed);
        let mut lately = std::mem::replace(&mut self.gateways.changed_before, changed.clone());
        lately.extend(changed);
        let changes: Arc<[_]> = lately.into_iter().collect();
        for (&gateway, number) in &mut self.gateways.known {
            *number += 1;
            let mut heads = heads.remove(&gateway).unwrap_or_default();
            heads.sort_unstable();
            let message = ToGateway::Digest {
                partition: self.partition,
                number: *number,
                heads: Arc::from(heads),
                changes: changes.clone(),
            };
            self.out.push(Effect::Send {
                to: gateway,
                message,
            });
        }
    }
}
