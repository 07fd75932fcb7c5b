//! Blocks: what a user doesn't get of somebody blocked, and what the other doesn't get of the user.
//!
//! A block decides nothing and is no event (design.md, "Who sees what"): what the blocked user writes
//! in the direct conversation of the two has its seq and its ack. It acts here, where sessions are
//! served. A direct conversation's id follows from its two members, so a user's blocks are a list of
//! conversations. Member entries of the blocker's sessions in them have [`BLOCKING`]: fan-out to
//! anything else costs one bit that is looked at with others, and whoever blocks nobody has nothing
//! in memory.
//!
//! - Events of the other are given as `empty` ones of their seq, live, again, and on pages.
//! - Typing and receipts stop at the blocker's gateway, both ways.
//! - Presence is asked for by the blocked one's sessions: theirs is the list of whom not to show.
//!
//! What isn't known isn't guessed. Until the directory has said whom a user blocks, the user's direct
//! conversations can't be opened, as if their router didn't answer; until it has said who of the
//! watched blocks the watcher, nobody's presence is told. Everything else goes on.

use tidings_core::ids::{ConversationId, UserId};
use tidings_core::ports::directory::direct_conversation;
use tidings_core::ports::peers::Opened;
use tidings_core::record::ConversationKind;
use tidings_core::rows::EventRow;

use super::GatewayCore;
use super::index::BLOCKING;
use super::outbound::{Outbound, Slot};
use super::session::BLOCKS_KNOWN;

/// What the directory says of a user's conversations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// All of which the user is a member.
    pub conversations: Vec<ConversationId>,
    /// The direct conversations with those whom the user has blocked, whether they exist or not.
    pub blocked: Vec<ConversationId>,
}

impl From<Vec<ConversationId>> for Listed {
    /// Of somebody who blocks nobody.
    fn from(conversations: Vec<ConversationId>) -> Self {
        Listed {
            conversations,
            blocked: Vec::new(),
        }
    }
}

/// An event as the blocker `reader` sees it: of the other's only seq and time are left. Changes of
/// members stay, as they carry grants.
pub fn seen_by_blocker(reader: UserId, row: &EventRow) -> EventRow {
    if !is_hidden(reader, row) {
        return row.clone();
    }
    EventRow::empty(
        row.conversation,
        row.seq,
        row.position,
        row.ts,
        row.ts_before,
    )
}

/// Whether a blocker isn't to see an event of a direct conversation.
pub(super) fn is_hidden(reader: UserId, row: &EventRow) -> bool {
    row.members.is_none() && row.user != reader
}

impl GatewayCore {
    /// A user has blocked another, or no longer does.
    pub fn block_changed<O: Outbound>(
        &mut self,
        out: &mut O,
        user: UserId,
        other: UserId,
        is_blocked: bool,
    ) {
        self.now = out.now();
        // Whoever signs in from now on reads anew; who has signed in is told here.
        out.members_changed(&mut std::iter::once(user));
        let conversation = direct_conversation(user, other).conversation;
        // A list that is just being read may be older than this.
        if let Some(load) = self.loads.get_mut(&user) {
            load.blocks_changed.retain(|(c, _)| *c != conversation);
            load.blocks_changed.push((conversation, is_blocked));
        }
        if self.sessions.of_user(user).next().is_some() {
            let mut blocked = self.blocks.remove(&user).unwrap_or_default().into_vec();
            change(&mut blocked, conversation, is_blocked);
            self.put_blocks(user, blocked);
            self.mark(user, conversation, is_blocked);
        }
        self.show_presence(out, other, user, !is_blocked);
    }

    /// The directory has said whom a user blocks; `changed` was heard of since it was asked.
    pub(super) fn blocks_listed(
        &mut self,
        user: UserId,
        mut blocked: Vec<ConversationId>,
        changed: &[(ConversationId, bool)],
    ) {
        blocked.sort_unstable();
        blocked.dedup();
        for &(conversation, is_blocked) in changed {
            change(&mut blocked, conversation, is_blocked);
        }
        let slots: Vec<Slot> = self.sessions.of_user(user).collect();
        for slot in &slots {
            if let Some(session) = self.sessions.get_mut(*slot) {
                session.set(BLOCKS_KNOWN, true);
            }
        }
        let before = self.blocks.remove(&user).unwrap_or_default();
        for &conversation in &before {
            self.mark(user, conversation, false);
        }
        for &conversation in &blocked {
            self.mark(user, conversation, true);
        }
        if !slots.is_empty() {
            self.put_blocks(user, blocked);
        }
    }

    /// What one session of a user knows holds for another that signs in.
    pub(super) fn share_blocks(&mut self, slot: Slot, user: UserId) {
        let knows = |s| {
            self.sessions
                .get(s)
                .is_some_and(|session| session.is(BLOCKS_KNOWN))
        };
        let is_known = self.sessions.of_user(user).any(knows);
        if let Some(session) = self.sessions.get_mut(slot) {
            session.set(BLOCKS_KNOWN, is_known);
        }
    }

    fn put_blocks(&mut self, user: UserId, blocked: Vec<ConversationId>) {
        if !blocked.is_empty() {
            self.blocks.insert(user, blocked.into());
        } else if self.blocks.is_empty() {
            self.blocks.shrink_to_fit();
        }
    }

    /// A session has ended: with a user's last one here the list goes.
    pub(super) fn forget_blocks(&mut self, user: UserId) {
        if !self.blocks.is_empty() && self.sessions.of_user(user).next().is_none() {
            self.blocks.remove(&user);
        }
    }

    fn mark(&mut self, user: UserId, conversation: ConversationId, is_blocked: bool) {
        let Some(at) = self.index.find(conversation) else {
            return;
        };
        let slots: Vec<Slot> = self.sessions.of_user(user).collect();
        for slot in slots {
            if let Some(member) = self.index.member_mut(&self.sessions, slot, at) {
                member.flags = if is_blocked {
                    member.flags | BLOCKING
                } else {
                    member.flags & !BLOCKING
                };
            }
        }
    }

    /// Whether a session's user has blocked the other one of a direct conversation.
    pub(super) fn is_blocking(&self, slot: Slot, conversation: ConversationId) -> bool {
        !self.blocks.is_empty()
            && self
                .sessions
                .get(slot)
                .and_then(|session| self.blocks.get(&session.user))
                .is_some_and(|blocked| blocked.binary_search(&conversation).is_ok())
    }

    /// Rows of a page as a session sees them; none: as they are.
    pub(super) fn rows_for(&self, slot: Slot, rows: &[&EventRow]) -> Option<Vec<EventRow>> {
        let conversation = rows.first()?.conversation;
        if !self.is_blocking(slot, conversation) {
            return None;
        }
        let user = self.sessions.get(slot)?.user;
        let seen = rows.iter().map(|row| seen_by_blocker(user, row));
        Some(seen.collect())
    }

    /// Whether it can't be said what a session may see of a conversation.
    pub(super) fn is_withheld(&self, slot: Slot, kind: ConversationKind) -> bool {
        kind == ConversationKind::Direct
            && self
                .sessions
                .get(slot)
                .is_some_and(|session| !session.is(BLOCKS_KNOWN))
    }

    /// Takes out of a router's answer what is withheld, to be asked again with what it couldn't say.
    pub(super) fn withhold(
        &mut self,
        slot: Slot,
        states: &mut Vec<Opened>,
        later: &mut Vec<ConversationId>,
    ) {
        states.retain(|state| {
            let is_withheld = self.is_withheld(slot, state.kind);
            if is_withheld {
                later.push(state.conversation);
                self.closes.push(state.conversation);
            }
            !is_withheld
        });
    }
}

/// Puts a conversation into a sorted list, or takes it out.
fn change(list: &mut Vec<ConversationId>, conversation: ConversationId, is_in: bool) {
    match (list.binary_search(&conversation), is_in) {
        (Err(at), true) => list.insert(at, conversation),
        (Ok(at), false) => drop(list.remove(at)),
        _ => {}
    }
}
