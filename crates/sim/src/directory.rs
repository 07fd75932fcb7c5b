//! The directory as a model: members and versions, with an outbox that a relay carries into the log.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tidings_core::ids::{ConversationId, Micros, UserId};
use tidings_core::ports::log::Append;
use tidings_core::record::{Content, ConversationKind, Membership, Record, Role, RoleChange};

use crate::Bug;
use crate::setup::Founding;
use crate::world::{Event, MS, SECOND, World};

#[derive(Default)]
struct Room {
    kind: ConversationKind,
    version: u64,
    members: BTreeMap<UserId, Role>,
}

/// The directory.
#[derive(Default)]
pub(crate) struct SimDirectory {
    rooms: BTreeMap<ConversationId, Room>,
    outbox: BTreeMap<(ConversationId, u64), Membership>,
    sent: BTreeMap<(ConversationId, u64), Micros>,
    /// Who was removed from where.
    left: BTreeSet<(ConversationId, UserId)>,
}

impl SimDirectory {
    pub fn found(&mut self, founding: &Founding) {
        let kind = founding.kind;
        self.rooms.insert(
            founding.id,
            Room {
                kind,
                ..Room::default()
            },
        );
        self.change(founding.id, &founding.members);
    }

    /// One transaction: the members, the version and the outbox.
    pub fn change(&mut self, conversation: ConversationId, changes: &[(UserId, Role)]) {
        let Some(room) = self.rooms.get_mut(&conversation) else {
            return;
        };
        room.version += 1;
        for &(user, role) in changes {
            if role == Role::None {
                room.members.remove(&user);
                self.left.insert((conversation, user));
            } else {
                room.members.insert(user, role);
            }
        }
        let change = Membership {
            version: room.version,
            by: UserId(0),
            changes: changes
                .iter()
                .map(|&(user, role)| RoleChange { user, role })
                .collect(),
            kind: room.kind,
            title: "room".to_owned(),
        };
        self.outbox.insert((conversation, room.version), change);
    }

    pub fn role(&self, conversation: ConversationId, user: UserId) -> Role {
        let room = self.rooms.get(&conversation);
        room.and_then(|room| room.members.get(&user))
            .copied()
            .unwrap_or_default()
    }

    pub fn conversations_of(&self, user: UserId) -> Vec<ConversationId> {
        self.rooms
            .iter()
            .filter(|(_, room)| room.members.contains_key(&user))
            .map(|(&id, _)| id)
            .collect()
    }

    /// The log has all versions up to this one.
    pub fn done(&mut self, conversation: ConversationId, version: u64) {
        self.outbox
            .retain(|&(c, v), _| c != conversation || v > version);
    }

    pub fn is_relayed(&self) -> bool {
        self.outbox.is_empty()
    }
}

impl World {
    /// A turn of the relay: what waits is appended; while things go wrong also twice and in any order.
    pub fn relay(&mut self) {
        let (now, relays_once) = (self.now, self.has(Bug::RelayedOnce));
        self.directory
            .sent
            .retain(|_, &mut at| relays_once || now < at + 3 * SECOND);
        let mut due: Vec<(ConversationId, u64)> = self
            .directory
            .outbox
            .keys()
            .filter(|key| !self.directory.sent.contains_key(key))
            .copied()
            .collect();
        if !self.healing && self.random.permille(300) {
            self.random.shuffle(&mut due);
        }
        for key in due {
            self.directory.sent.insert(key, now);
            let mut payload = Vec::new();
            let content = Content::Membership(self.directory.outbox[&key].clone());
            let conversation = key.0;
            Record {
                conversation,
                content,
            }
            .encode(&mut payload);
            let append = Append {
                conversation,
                payload: Bytes::from(payload),
            };
            let delay = self.random.below(5 * MS);
            if self.healing || !self.random.permille(100) {
                self.after(delay, Event::Append(vec![append.clone()], None));
            }
            if !self.healing && self.random.permille(200) {
                let delay = self.random.below(2 * SECOND);
                self.after(delay, Event::Append(vec![append], None));
            }
        }
        let pause = self.random.between(20 * MS, 120 * MS);
        self.after(pause, Event::Relay);
    }

    /// A change of members, as somebody asked the directory for.
    pub fn change_members(&mut self) {
        let rooms: Vec<ConversationId> = self
            .plan
            .conversations
            .iter()
            .filter(|founding| founding.kind != ConversationKind::Direct)
            .map(|founding| founding.id)
            .collect();
        let users = self.plan.users.clone();
        let (Some(room), Some(user)) = (self.random.pick(&rooms), self.random.pick(&users)) else {
            return;
        };
        let left = self.directory.left.contains(&(room, user));
        let is_channel = self
            .plan
            .conversations
            .iter()
            .any(|founding| founding.id == room && founding.kind == ConversationKind::Channel);
        if left && is_channel {
            // Who comes back to a channel may see what happened meanwhile, which was hidden when
            // it was asked for before: no history says when.
            return;
        }
        let role = match (self.directory.role(room, user), self.random.below(3)) {
            (Role::None, 0) => Role::Reader,
            (Role::None, _) => Role::Member,
            (Role::Member, 0) => Role::Reader,
            (Role::Reader, 0) => Role::Member,
            (Role::Member, 1) => Role::Admin,
            _ => Role::None,
        };
        self.note(|| format!("user {} becomes {role:?} in {room}", user.0));
        self.directory.change(room, &[(user, role)]);
    }
}
