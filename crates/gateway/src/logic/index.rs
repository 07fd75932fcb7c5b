//! Conversation → the sessions here that want its events.
//!
//! Invariants:
//! 1. A conversation is here exactly while a session here is a member of it (for a moment longer,
//!    until the router is told).
//! 2. `head_seen` is the last event handed to the sessions: all up to it have been, in order.
//! 3. Each member's place is known to its session, and the other way round.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashTable;
use slab::Slab;
use tidings_core::ids::{ConversationId, Micros, Seq, SessionId};
use tidings_core::rows::EventRow;

use super::outbound::Slot;
use super::session::{Joined, Sessions, hash};

/// Nothing is pushed: the session hasn't been given what lies before.
pub(super) const GATED: u8 = 1;
/// The session speaks JSON.
pub(super) const JSON: u8 = 1 << 1;
/// The client said it lacks older events, so what it confirms says nothing yet.
pub(super) const HOLE: u8 = 1 << 2;
/// The session's user has blocked the other one of this direct conversation.
pub(super) const BLOCKING: u8 = 1 << 3;

/// One session in a conversation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// The session has, or was told that it lacks, everything up to here.
    pub covered: Seq,
    pub slot: Slot,
    /// The second since when something pushed is not covered, see [`stamp`]; 0: nothing is.
    pub since: u16,
    /// How often it was sent again.
    pub tries: u8,
    pub flags: u8,
}

impl Member {
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A second as members keep it: never 0, and good for differences up to 18 hours.
pub(super) fn stamp(now: Micros) -> u16 {
    (now / 1_000_000 % 65_535) as u16 + 1
}

/// Seconds from one stamp to another.
pub(super) fn stamp_age(since: u16, now: u16) -> u64 {
    (u64::from(now) + 65_535 - u64::from(since)) % 65_535
}

/// The members of a conversation; the many that have one need nothing on the heap.
pub(super) enum Members {
    One(Member),
    Many(Vec<Member>),
}

impl Members {
    pub(super) fn as_slice(&self) -> &[Member] {
        match self {
            Members::One(member) => std::slice::from_ref(member),
            Members::Many(members) => members,
        }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [Member] {
        match self {
            Members::One(member) => std::slice::from_mut(member),
            Members::Many(members) => members,
        }
    }

    fn push(&mut self, member: Member) -> u32 {
        match self {
            Members::One(first) => {
                let mut members = Vec::with_capacity(2);
                members.extend([*first, member]);
                *self = Members::Many(members);
                1
            }
            Members::Many(members) if members.capacity() == 0 => {
                *self = Members::One(member);
                0
            }
            Members::Many(members) => {
                if members.len() == members.capacity() {
                    // Smaller steps than doubling: there are many small lists.
                    members.reserve_exact(1 + members.len() / 4);
                }
                members.push(member);
                members.len() as u32 - 1
            }
        }
    }

    /// Takes a member out; answers whose place has changed to the one that became free.
    fn remove(&mut self, place: u32) -> Option<Slot> {
        match self {
            Members::One(_) => {
                *self = Members::Many(Vec::new());
                None
            }
            Members::Many(members) => {
                members.swap_remove(place as usize);
                if members.len() < members.capacity() / 2 {
                    members.shrink_to_fit();
                }
                members.get(place as usize).map(|m| m.slot)
            }
        }
    }
}

/// An event that waits for those before it.
pub(super) struct Held {
    pub row: Arc<EventRow>,
    pub except: SessionId,
}

/// What is known to be missing.
#[derive(Default)]
pub(super) struct Gap {
    /// The highest seq heard of.
    pub known: Seq,
    /// Whether a read of what is missing is under way.
    pub reading: bool,
    /// When to read again; 0: at once.
    pub retry_at: Micros,
    pub tries: u32,
    /// Events above the gap, ascending, without repeats; at most [`HELD_MAX`].
    pub held: VecDeque<Held>,
}

/// Events held back for those before them; what is beyond is read again.
pub(super) const HELD_MAX: usize = 256;

/// A conversation with sessions here.
pub(super) struct Conversation {
    pub id: ConversationId,
    pub head_seen: Seq,
    pub members: Members,
    pub gap: Option<Box<Gap>>,
    /// The second in which the head last moved.
    pub moved: u32,
}

impl Conversation {
    /// The highest seq heard of.
    pub(super) fn head(&self) -> Seq {
        self.gap
            .as_ref()
            .map_or(self.head_seen, |gap| gap.known.max(self.head_seen))
    }
}

/// All conversations with sessions here.
pub(super) struct Index {
    pub conversations: Slab<Conversation>,
    table: HashTable<u32>,
    seed: u64,
}

impl Index {
    pub(super) fn new(seed: u64) -> Self {
        Index {
            conversations: Slab::new(),
            table: HashTable::new(),
            seed,
        }
    }

    pub(super) fn find(&self, id: ConversationId) -> Option<u32> {
        let conversations = &self.conversations;
        self.table
            .find(hash(self.seed, id.0), |&i| {
                conversations[i as usize].id == id
            })
            .copied()
    }

    pub(super) fn get(&self, at: u32) -> &Conversation {
        &self.conversations[at as usize]
    }

    pub(super) fn get_mut(&mut self, at: u32) -> &mut Conversation {
        &mut self.conversations[at as usize]
    }

    /// The conversation, added with this head if it wasn't here.
    pub(super) fn find_or_add(&mut self, id: ConversationId, head: Seq, now_s: u32) -> u32 {
        if let Some(at) = self.find(id) {
            return at;
        }
        let members = Members::Many(Vec::new());
        let at = self.conversations.insert(Conversation {
            id,
            head_seen: head,
            members,
            gap: None,
            moved: now_s,
        }) as u32;
        let (conversations, seed) = (&self.conversations, self.seed);
        self.table.insert_unique(hash(seed, id.0), at, |&i| {
            hash(seed, conversations[i as usize].id.0)
        });
        at
    }

    fn remove(&mut self, at: u32) -> Conversation {
        let id = self.get(at).id;
        let seed = self.seed;
        if let Ok(entry) = self.table.find_entry(hash(seed, id.0), |&i| i == at) {
            entry.remove();
        }
        let removed = self.conversations.remove(at as usize);
        if self.table.capacity() > 4 * self.table.len() + 256 {
            let conversations = &self.conversations;
            self.table
                .shrink_to_fit(|&i| hash(seed, conversations[i as usize].id.0));
        }
        removed
    }

    /// The session's entry in a conversation.
    pub(super) fn member(&self, sessions: &Sessions, slot: Slot, at: u32) -> Option<&Member> {
        let place = sessions.get(slot)?.place_in(at)?;
        self.get(at).members.as_slice().get(place as usize)
    }

    /// The session's entry in a conversation, to be changed.
    pub(super) fn member_mut(
        &mut self,
        sessions: &Sessions,
        slot: Slot,
        at: u32,
    ) -> Option<&mut Member> {
        let place = sessions.get(slot)?.place_in(at)?;
        self.get_mut(at)
            .members
            .as_mut_slice()
            .get_mut(place as usize)
    }

    /// Makes a session a member; nothing happens if it is one.
    pub(super) fn join(&mut self, sessions: &mut Sessions, at: u32, member: Member) {
        let Some(session) = sessions.get_mut(member.slot) else {
            return;
        };
        let Err(position) = session.joined.binary_search_by_key(&at, |j| j.conversation) else {
            return;
        };
        let place = self.get_mut(at).members.push(member);
        if session.joined.len() == session.joined.capacity() {
            session.joined.reserve_exact(4 + session.joined.len() / 4);
        }
        session.joined.insert(
            position,
            Joined {
                conversation: at,
                place,
            },
        );
    }

    /// Takes a session out of a conversation; answers its entry, and the conversation when it was
    /// the last one here.
    pub(super) fn leave(
        &mut self,
        sessions: &mut Sessions,
        slot: Slot,
        at: u32,
    ) -> Option<(Member, Option<Conversation>)> {
        let session = sessions.get_mut(slot)?;
        let position = session
            .joined
            .binary_search_by_key(&at, |j| j.conversation)
            .ok()?;
        let place = session.joined.remove(position).place;
        let members = &mut self.get_mut(at).members;
        let member = members.as_slice()[place as usize];
        if let Some(moved) = members.remove(place) {
            let joined = sessions.get_mut(moved).map(|s| &mut s.joined);
            if let Some(joined) = joined
                && let Ok(position) = joined.binary_search_by_key(&at, |j| j.conversation)
            {
                joined[position].place = place;
            }
        }
        let is_empty = self.get(at).members.as_slice().is_empty();
        Some((member, is_empty.then(|| self.remove(at))))
    }

    /// Heap bytes, for the test that guards them.
    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        let members = |c: &Conversation| match &c.members {
            Members::One(_) => 0,
            Members::Many(members) => members.capacity() * size_of::<Member>(),
        };
        self.conversations.len() * size_of::<Conversation>()
            + self.table.allocation_size()
            + self
                .conversations
                .iter()
                .map(|(_, c)| members(c))
                .sum::<usize>()
    }
}
