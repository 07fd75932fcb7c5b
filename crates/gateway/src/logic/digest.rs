//! What shows that something was lost: the routers' numbered digests, and their take-overs.

use std::collections::HashSet;

use tidings_core::ids::{ConversationId, Micros, Partition, Seq};
use tidings_core::planted::{self, Mistake};
use tidings_core::ports::peers::{OPEN_MAX, ToRouter};
use tidings_core::rows::EventRow;

use super::GatewayCore;
use super::metrics::add;
use super::outbound::Outbound;
use super::reads::{ReadFor, Request};

/// What was heard of one partition's router.
#[derive(Clone, Copy, Default)]
pub(super) struct Heard {
    /// The number of its last digest.
    number: u64,
    /// When it came, or when the router was last reminded of this gateway.
    at: Micros,
}

/// More than an event with as many members as one may name.
const CHANGE_BYTES: usize = 1 << 20;

/// In place of a number: another router has taken over and hasn't said yet how many digests it has sent.
const TOOK_OVER: u64 = u64::MAX;

/// How often a router that has taken over is told what is wanted before everything is opened again.
const INTEREST_TRIES_MAX: u8 = 10;

impl GatewayCore {
    /// Heads in which something happened lately, and changes of members.
    pub(super) fn digest<O: Outbound>(
        &mut self,
        out: &mut O,
        partition: Partition,
        number: u64,
        heads: &[(ConversationId, Seq)],
        changes: &[(ConversationId, Seq)],
    ) {
        let now = self.now;
        let Some(heard) = self.digests.get_mut(partition.0 as usize) else {
            return;
        };
        let is_known = heard.number != TOOK_OVER;
        let is_next =
            !is_known || number == heard.number + 1 || planted::is(Mistake::DigestNotNumbered);
        heard.at = now;
        if is_known {
            heard.number = number;
        }
        if !is_next {
            add(&self.metrics.digest_gaps, 1);
        }
        if !is_next || (is_known && number == 1) {
            // The router may not know which conversations are wanted, and membership events of
            // conversations that aren't here may be lost: everything is asked again, in batches.
            self.messages_lost(out);
        }
        let mut lost = Vec::new();
        self.heads_told(out, heads.iter().chain(changes).copied());
        for &(conversation, seq) in changes {
            let head_seen = self
                .index
                .find(conversation)
                .map(|at| self.index.get(at).head_seen);
            // What lies above is read, and counts when it is delivered. What doesn't may have made
            // somebody here a member, whatever has been heard of the conversation since.
            if head_seen.is_none_or(|head| seq <= head) && self.change_seen(conversation, seq) {
                lost.push((conversation, seq));
            }
        }
        if !lost.is_empty() {
            out.members_changed(&mut std::iter::empty());
        }
        for (conversation, seq) in lost {
            self.read(out, conversation, (seq, seq), CHANGE_BYTES, ReadFor::Change);
        }
    }

    /// A change of members that was lost on its way has been read; none: it can't be now, so whatever
    /// it was is asked for.
    pub(super) fn change_read<O: Outbound>(&mut self, out: &mut O, rows: &[&EventRow]) {
        if rows.is_empty() {
            self.messages_lost(out);
        }
        for row in rows {
            let at = self.index.find(row.conversation);
            if at.is_none_or(|at| row.seq <= self.index.get(at).head_seen) {
                self.missed_members_event(out, row);
            }
        }
    }

    /// Notes that a change of a conversation's members is known; whether that is news.
    pub(super) fn change_seen(&mut self, conversation: ConversationId, seq: Seq) -> bool {
        /// Beyond it all are forgotten: the next digest may have a few opened again in vain.
        const SEEN_MAX: usize = 16 << 10;
        if self.changes_seen.len() >= SEEN_MAX {
            self.changes_seen = HashSet::new();
        }
        self.changes_seen.insert((conversation, seq))
    }

    /// Another router has taken over: it is told at once what is wanted here. Its digests' numbers
    /// are its own, and members' changes that weren't told for good it tells again.
    pub(super) fn took_over<O: Outbound>(&mut self, out: &mut O, partition: Partition) {
        let at = self.now;
        let Some(heard) = self.digests.get_mut(partition.0 as usize) else {
            return;
        };
        *heard = Heard {
            number: TOOK_OVER,
            at,
        };
        // What the one before told last of members' changes may be lost; heads the new one looks up.
        self.tracking.compare_all();
        self.open_again(out, partition);
        // It may be the router before it that answers what is being opened.
        let mut wanted: Vec<ConversationId> = self
            .index
            .conversations
            .iter()
            .map(|(_, c)| c.id)
            .chain(self.being_opened())
            .filter(|&c| self.settings.partition_of(c) == partition)
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut rest = wanted.as_slice();
        loop {
            // Also when nothing is wanted: changes of members are for all gateways.
            let (chunk, more) = rest.split_at(rest.len().min(OPEN_MAX));
            self.ask_interest(out, partition, chunk.to_vec(), 1);
            rest = more;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// A router says how far conversations have come, those too that are just being opened.
    fn heads_told<O: Outbound>(
        &mut self,
        out: &mut O,
        heads: impl Iterator<Item = (ConversationId, Seq)>,
    ) {
        for (conversation, seq) in heads {
            self.head_heard(out, conversation, seq);
            if self.opens > 0 && self.index.find(conversation).is_none() {
                self.came_early(conversation, seq);
            }
        }
    }

    fn ask_interest<O: Outbound>(
        &mut self,
        out: &mut O,
        partition: Partition,
        conversations: Vec<ConversationId>,
        tries: u8,
    ) {
        let request = self.request_id();
        let interest = Request::Interest {
            partition,
            conversations: conversations.clone(),
            tries,
            until: self.now + self.settings.answer_within,
        };
        self.requests.insert(request, interest);
        out.to_router(
            partition,
            ToRouter::Interest {
                request,
                conversations,
            },
        );
    }

    /// The router that has taken over knows what is wanted, and how far it has come.
    pub(super) fn interested<O: Outbound>(
        &mut self,
        out: &mut O,
        request: u64,
        digest: u64,
        heads: &[(ConversationId, Seq)],
    ) {
        let Some(Request::Interest {
            partition,
            conversations,
            ..
        }) = self.requests.remove(&request)
        else {
            return;
        };
        // The first answer only: a digest missing since then would not be noticed.
        if let Some(heard) = self.digests.get_mut(partition.0 as usize)
            && heard.number == TOOK_OVER
        {
            heard.number = digest;
        }
        self.heads_told(out, heads.iter().copied());
        // What was left meanwhile: that `Close` may have gone to the router before.
        let gone = |c: &ConversationId| self.index.find(*c).is_none();
        self.closes.extend(conversations.into_iter().filter(gone));
    }

    /// The router that has taken over doesn't answer: asked again, and then everything is.
    pub(super) fn interest_lost<O: Outbound>(&mut self, out: &mut O, request: u64) {
        let Some(Request::Interest {
            partition,
            conversations,
            tries,
            ..
        }) = self.requests.remove(&request)
        else {
            return;
        };
        if tries >= INTEREST_TRIES_MAX {
            self.digests[partition.0 as usize].number = 0;
            return self.messages_lost(out);
        }
        self.ask_interest(out, partition, conversations, tries + 1);
    }

    /// Lets routers that are silent know that there is this gateway: one that has taken over
    /// unheard tells its digests only to those it has heard of.
    pub(super) fn tick_digest<O: Outbound>(&mut self, out: &mut O) {
        if self.sessions.count == 0 {
            return;
        }
        let (now, within) = (self.now, self.settings.digest_within);
        for (partition, heard) in self.digests.iter_mut().enumerate() {
            if now >= heard.at + within {
                heard.at = now;
                out.to_router(Partition(partition as u32), ToRouter::FannedOut(Vec::new()));
            }
        }
    }
}
