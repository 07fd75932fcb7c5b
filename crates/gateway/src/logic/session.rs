//! What the logic keeps of a session: little, and behind a pointer what most don't need at a time.

use std::collections::{HashMap, VecDeque};

use hashbrown::HashTable;
use tidings_core::ids::{ConversationId, DeviceId, Micros, SenderId, Seq, SessionId, UserId};
use tidings_core::ports::directory::SignInId;
use tidings_core::ports::peers::Opened;
use tidings_core::record::Role;
use tidings_protocol::Format;
use tidings_protocol::wire::{Sync, command};

use super::outbound::Slot;
use super::rates::Rate;
use super::sync::Syncing;

/// No slot.
pub(super) const NOBODY: Slot = Slot::MAX;

/// Bits of a session id that hold its slot: a worker has at most a million sessions.
const SLOT_BITS: u32 = 20;

/// Authenticated.
pub(super) const READY: u16 = 1;
/// A sync has been answered: everything new is pushed.
pub(super) const SYNCED: u16 = 1 << 1;
/// Its queue was dropped and hasn't drained: nothing is pushed.
pub(super) const LAGGING: u16 = 1 << 2;
/// Closing: nothing more is done for it.
pub(super) const CLOSING: u16 = 1 << 3;
/// `reauth_required` was sent for the present token.
pub(super) const REAUTH_TOLD: u16 = 1 << 4;
/// An `auth` command is being checked.
pub(super) const AUTHENTICATING: u16 = 1 << 5;
/// Its conversations have been opened at least once.
pub(super) const OPENED: u16 = 1 << 6;
/// Its conversations are to be opened again, as something may have been missed.
pub(super) const REFRESH: u16 = 1 << 7;
/// It is one of those that sign in at once.
pub(super) const ADMITTING: u16 = 1 << 10;
/// Its list is loaded to see what it differs in from where the session is a member.
pub(super) const COMPARE: u16 = 1 << 9;
/// It is known whom its user has blocked.
pub(super) const BLOCKS_KNOWN: u16 = 1 << 8;

/// A session's place in one conversation: indices into the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Joined {
    pub conversation: u32,
    pub place: u32,
}

/// One session. Times are whole seconds since 1970, which lasts until 2106.
pub(super) struct Session {
    pub id: SessionId,
    pub user: UserId,
    pub device: DeviceId,
    pub sign_in: SignInId,
    /// Where it is a member, by conversation index.
    pub joined: Vec<Joined>,
    pub rare: Option<Box<Rare>>,
    pub issued: u32,
    pub expires: u32,
    pub opened_at: u32,
    /// When something is due next: looked at once a second.
    pub due: u32,
    /// When the last heartbeat was sent.
    pub beat: u32,
    pub next_of_user: Slot,
    pub flags: u16,
    pub format: Format,
}

/// A send's `ref`, given back in its ack.
pub(super) struct SendNote {
    pub conversation: ConversationId,
    pub sender: SenderId,
    pub counter: u64,
    pub r#ref: u64,
}

/// What a session has while something is under way.
#[derive(Default)]
pub(super) struct Rare {
    pub opening: Option<Opening>,
    pub sync_asked: Option<(u64, Sync)>,
    pub sync: Option<Syncing>,
    /// Commands that wait until the conversations are opened; at most [`WAITING_MAX`].
    pub waiting: Vec<(u64, command::Command)>,
    pub watch: Vec<UserId>,
    pub notes: VecDeque<SendNote>,
    pub asks: Rate,
    /// Requests for what isn't the user's.
    pub forbidden: u32,
    /// The `ref` of the `auth` that is being checked.
    pub auth_ref: u64,
    /// The version that its first `auth` came to, until `ready` tells it.
    pub version: u32,
    /// Until when its sends are refused, since one was: those behind it in its outbox would only be gaps.
    pub shed_until: Micros,
    /// Since when the session is lagging.
    pub lagging_since: Micros,
}

/// The most commands that wait for the opening of a session's conversations.
pub(super) const WAITING_MAX: usize = 64;

impl Rare {
    fn is_idle(&self, now: Micros) -> bool {
        self.opening.is_none()
            && self.sync_asked.is_none()
            && self.sync.is_none()
            && self.waiting.is_empty()
            && self.watch.is_empty()
            && self.notes.is_empty()
            && self.asks.is_idle(now)
            && self.forbidden == 0
            && self.auth_ref == 0
            && self.version == 0
            && self.lagging_since == 0
            && self.shed_until <= now
    }
}

/// The conversations of a session being asked from their routers.
#[derive(Default)]
pub(super) struct Opening {
    /// Whether the directory has said which conversations there are.
    pub loaded: bool,
    /// All that was asked, sorted.
    pub list: Vec<ConversationId>,
    pub outstanding: u32,
    pub states: Vec<Opened>,
    /// What routers couldn't say yet.
    pub later: Vec<ConversationId>,
    pub tries: u8,
    /// When to try again; 0: nothing to try.
    pub retry_at: Micros,
    /// When it was complete; 0: it isn't.
    pub done_at: Micros,
    /// A membership has changed meanwhile: the states are old.
    pub stale: bool,
    /// Where the user was removed meanwhile.
    pub left: HashMap<ConversationId, Left>,
    /// The directory didn't say which conversations there are.
    pub partial: bool,
}

/// A removal during an opening.
#[derive(Clone, Copy, Default)]
pub(super) struct Left {
    /// The event that removed the user.
    pub seq: Seq,
    /// What the session was given until then; its sync may have been asked before that.
    pub covered: Seq,
}

impl Opening {
    /// The states that are older than a removal that was heard of count as what it left: asking again
    /// may have come to its end, and nobody would tell the client otherwise.
    pub(super) fn apply_removals(&mut self) {
        for state in &mut self.states {
            let removed = self.left.get(&state.conversation);
            if let Some(left) = removed.filter(|left| left.seq > state.head)
                && state.grant.role.is_member()
            {
                state.grant.role = Role::None;
                state.grant.visible_to = left.seq;
            }
        }
    }
}

impl Session {
    pub(super) fn new(id: SessionId, format: Format, now: Micros) -> Self {
        Session {
            id,
            user: UserId(0),
            device: DeviceId(0),
            sign_in: SignInId(0),
            joined: Vec::new(),
            rare: None,
            issued: 0,
            expires: 0,
            opened_at: seconds(now),
            due: seconds(now),
            beat: seconds(now),
            next_of_user: NOBODY,
            flags: 0,
            format,
        }
    }

    pub(super) fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn set(&mut self, flag: u16, on: bool) {
        self.flags = if on {
            self.flags | flag
        } else {
            self.flags & !flag
        };
    }

    pub(super) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    pub(super) fn opening(&mut self) -> Option<&mut Opening> {
        self.rare.as_mut()?.opening.as_mut()
    }

    pub(super) fn syncing(&mut self) -> Option<&mut Syncing> {
        self.rare.as_mut()?.sync.as_mut()
    }

    /// The place in a conversation, if it is one of the session's.
    pub(super) fn place_in(&self, conversation: u32) -> Option<u32> {
        let found = self
            .joined
            .binary_search_by_key(&conversation, |j| j.conversation)
            .ok()?;
        Some(self.joined[found].place)
    }

    pub(super) fn shrink(&mut self, now: Micros) {
        if self.rare.as_ref().is_some_and(|rare| rare.is_idle(now)) {
            self.rare = None;
        }
        if self.joined.capacity() > self.joined.len() + self.joined.len() / 4 {
            // Not `shrink_to_fit`: an allocator leaves what became less by a half where it is.
            self.joined = self.joined.as_slice().to_vec();
        }
    }
}

/// Whole seconds since 1970.
pub(super) fn seconds(at: Micros) -> u32 {
    (at / 1_000_000) as u32
}

/// The sessions of a worker by slot and by user.
pub(super) struct Sessions {
    slots: Vec<Option<Session>>,
    /// The first slot of each user; the others hang behind it.
    users: HashTable<Slot>,
    seed: u64,
    next_id: u64,
    pub count: usize,
}

impl Sessions {
    pub(super) fn new(session_base: u64, seed: u64) -> Self {
        Sessions {
            slots: Vec::new(),
            users: HashTable::new(),
            seed,
            next_id: session_base,
            count: 0,
        }
    }

    /// Puts a new session into a slot and gives it its id, whose low bits are the slot: whoever
    /// names the session by its id needs no map.
    pub(super) fn open(&mut self, slot: Slot, format: Format, now: Micros) -> SessionId {
        debug_assert!(
            slot < 1 << SLOT_BITS,
            "a worker has at most a million sessions"
        );
        self.next_id = self.next_id.wrapping_add(1);
        let id = SessionId(self.next_id << SLOT_BITS | u64::from(slot));
        let place = slot as usize;
        if self.slots.len() <= place {
            self.slots.resize_with(place + 1, || None);
        }
        self.count += usize::from(self.slots[place].is_none());
        self.slots[place] = Some(Session::new(id, format, now));
        id
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Session> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Session> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// The slot of a session that is still there.
    pub(super) fn slot_of(&self, id: SessionId) -> Option<Slot> {
        let slot = (id.0 & ((1 << SLOT_BITS) - 1)) as Slot;
        (self.get(slot)?.id == id).then_some(slot)
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Session> {
        self.unlink(slot);
        let session = self.slots.get_mut(slot as usize)?.take()?;
        self.count -= 1;
        if self.users.capacity() > 4 * self.users.len() + 256 {
            let (slots, seed) = (&self.slots, self.seed);
            self.users
                .shrink_to_fit(|&slot| hash(seed, user_of(slots, slot).0));
        }
        Some(session)
    }

    /// Makes an authenticated session one of its user's.
    pub(super) fn link(&mut self, slot: Slot) {
        let Some(user) = self.get(slot).map(|s| s.user) else {
            return;
        };
        let (slots, seed) = (&mut self.slots, self.seed);
        let found = self
            .users
            .find_mut(hash(seed, user.0), |&s| user_of(slots, s) == user);
        let next = match found {
            Some(first) => std::mem::replace(first, slot),
            None => {
                self.users.insert_unique(hash(seed, user.0), slot, |&s| {
                    hash(seed, user_of(slots, s).0)
                });
                NOBODY
            }
        };
        if let Some(session) = self.get_mut(slot) {
            session.next_of_user = next;
        }
    }

    fn unlink(&mut self, slot: Slot) {
        let Some((user, next)) = self.get(slot).map(|s| (s.user, s.next_of_user)) else {
            return;
        };
        let slots = &self.slots;
        let Ok(entry) = self
            .users
            .find_entry(hash(self.seed, user.0), |&s| user_of(slots, s) == user)
        else {
            return;
        };
        let first = *entry.get();
        if first == slot {
            match next {
                NOBODY => drop(entry.remove()),
                next => *entry.into_mut() = next,
            }
            return;
        }
        let mut at = first;
        while let Some(session) = self.get_mut(at) {
            if session.next_of_user == slot {
                session.next_of_user = next;
                return;
            }
            at = session.next_of_user;
        }
    }

    /// The slots of a user's authenticated sessions.
    pub(super) fn of_user(&self, user: UserId) -> impl Iterator<Item = Slot> + '_ {
        let slots = &self.slots;
        let first = self
            .users
            .find(hash(self.seed, user.0), |&s| user_of(slots, s) == user)
            .copied();
        std::iter::successors(first, move |&slot| {
            match slots.get(slot as usize)?.as_ref()?.next_of_user {
                NOBODY => None,
                next => Some(next),
            }
        })
    }

    /// All sessions there are.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Session)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(slot, s)| Some((slot as Slot, s.as_ref()?)))
    }

    /// Heap bytes of the tables themselves, for the test that guards them.
    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        let rare = |s: &Session| s.rare.as_ref().map_or(0, |_| size_of::<Rare>());
        self.slots.len() * size_of::<Option<Session>>()
            + self.users.allocation_size()
            + self
                .iter()
                .map(|(_, s)| s.joined.capacity() * size_of::<Joined>() + rare(s))
                .sum::<usize>()
    }
}

fn user_of(slots: &[Option<Session>], slot: Slot) -> UserId {
    slots
        .get(slot as usize)
        .and_then(|s| s.as_ref())
        .map_or(UserId(0), |s| s.user)
}

/// A keyed hash for ids the server itself gave out.
pub(super) fn hash(seed: u64, id: u64) -> u64 {
    let mixed = (id ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 32)
}
