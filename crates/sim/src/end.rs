//! The end of a history: everything heals and settles, and then what must hold is recorded.

use std::collections::{BTreeMap, BTreeSet};

use tidings_core::ids::{ConversationId, UserId};
use tidings_core::record::{Encoding, Kind, Role};
use tidings_core::rows::EventRow;
use tidings_protocol::wire;
use tidings_verify::history::{Deliver, EventKind, Final, Member, Unknown};

use crate::devices::Device;
use crate::recorded::plain_hash;
use crate::reference;
use crate::setup::FAULTS_FOR;
use crate::world::{Event, MS, SECOND, START, World};

/// An accepted message: conversation, sender, counter and id.
type Accepted = (u64, u64, u64, u64);

/// How long a healed cluster may take until everybody has everything: four times the client's
/// longest backoff, and more than a dead connection takes to be noticed by its heartbeats.
const SETTLES_WITHIN: u64 = 240 * SECOND;

/// A session gives a sign of life to the registry every 30 s, at the next tick.
const SIGN_OF_LIFE: u64 = 35 * SECOND;

/// Every history has so many numbered messages.
const NUMBERED_MIN: usize = 1_000;

/// The auditor's user and device id; those of the others are small.
const AUDITOR: u64 = u64::MAX;

type Rooms = BTreeMap<ConversationId, reference::Room>;

impl World {
    /// Plays the whole history.
    pub fn play(&mut self) {
        let end = START + FAULTS_FOR;
        while self.step(end) {}
        self.heal();
        let mut limit = self.now + SETTLES_WITHIN;
        let mut is_last = false;
        while self.now < limit {
            let until = self.now + SECOND;
            while self.step(until) {}
            self.fetch_all_older();
            if self.has_settled() {
                if is_last {
                    break;
                }
                if self.numbered.len() >= NUMBERED_MIN {
                    // What has healed takes new messages from everybody, and they arrive.
                    is_last = true;
                    limit = self.now + SETTLES_WITHIN;
                    self.write_everywhere();
                    continue;
                }
                // Who was down or removed for long wrote little: some of it is made up for now.
                for _ in 0..50 {
                    self.write();
                }
            }
        }
        self.conclude();
    }

    fn heal(&mut self) {
        self.healing = true;
        self.weather = Default::default();
        self.note(|| "healing".to_owned());
        for partition in 0..self.plan.partitions {
            self.router_up(partition);
        }
        for gateway in 0..self.gateways.len() {
            self.gateway_ends(gateway);
            self.gateway_back(gateway);
        }
        for connection in 0..self.connections.len() {
            if self.connections[connection].is_blocked {
                self.after(MS, Event::Unblock(connection));
            }
        }
        for d in 0..self.devices.len() {
            self.devices[d].dies_after = None;
            if self.devices[d].core.is_none() {
                self.boot(d);
            }
        }
    }

    fn fetch_all_older(&mut self) {
        for d in 0..self.devices.len() {
            for room in self.plan.conversations.clone() {
                self.fetch_older(d, room.id);
            }
        }
    }

    /// Whether nothing is missing anywhere.
    fn has_settled(&self) -> bool {
        if !self.directory.is_relayed() || self.router_behind() {
            return false;
        }
        let rooms = reference::read(&self.logs);
        self.devices
            .iter()
            .all(|device| lacks(device, &rooms).is_none())
    }

    /// Records what is expected of everybody, and compares the rows with the log.
    fn conclude(&mut self) {
        let at = self.now;
        if !self.has_settled() {
            self.broken
                .push(format!("not settled: {}", self.unsettled()));
        }
        let rooms = reference::read(&self.logs);
        for (id, room) in &rooms {
            for (user, ranges) in &room.visible {
                for &(from_seq, to_seq) in ranges {
                    self.record(Member {
                        at,
                        conversation: id.0,
                        user: user.0,
                        from_seq,
                        to_seq,
                    });
                }
            }
            let rows: Vec<reference::Fact> = self.store.events(*id).map(fact).collect();
            if let Some((row, said)) = rows.iter().zip(&room.facts).find(|(a, b)| a != b) {
                self.broken
                    .push(format!("{id}: the row is {row:?}, the log says {said:?}"));
            } else if rows.len() != room.facts.len() {
                let (rows, facts) = (rows.len(), room.facts.len());
                self.broken
                    .push(format!("{id}: {rows} rows, the log says {facts}"));
            }
        }
        self.judge_members(&rooms);
        self.judge_registry();
        self.judge_hidden(&rooms);
        self.record_audit(&rooms);
        let accepted: BTreeSet<Accepted> = (rooms.iter())
            .flat_map(|(id, room)| {
                room.facts
                    .iter()
                    .map(|f| (id.0, f.sender.0, f.counter, f.id))
            })
            .collect();
        for d in 0..self.devices.len() {
            self.forget_lost_lives(d, &accepted);
            let (user, device) = (self.devices[d].user, self.devices[d].device);
            for (id, room) in &rooms {
                let Some(grant) = room.grants.get(&UserId(user)) else {
                    continue;
                };
                let have = self.devices[d].core.as_ref().map_or(0, |c| c.have(id.0));
                let head = match grant.role {
                    Role::None if have == 0 => continue,
                    Role::None => grant.visible_to,
                    _ => room.head.seq,
                };
                self.record(Final {
                    at,
                    user,
                    device,
                    conversation: id.0,
                    head,
                });
            }
        }
    }

    /// An auditor reads all rows: what was written while its author was the only member, who then was
    /// removed and invited anew, nobody else can ever be shown.
    fn record_audit(&mut self, rooms: &Rooms) {
        let (at, user, device) = (self.now, AUDITOR, AUDITOR);
        for (id, room) in rooms {
            let conversation = id.0;
            let rows: Vec<EventRow> = self.store.events(*id).cloned().collect();
            self.record(Member {
                at,
                conversation,
                user,
                from_seq: 1,
                to_seq: 0,
            });
            for row in rows {
                let of_server = row.members.is_some();
                let encoding = match row.encoding {
                    Encoding::Identity => wire::Encoding::Identity,
                    Encoding::Zstd => wire::Encoding::Zstd,
                };
                self.record(Deliver {
                    at,
                    user,
                    device,
                    conversation,
                    seq: row.seq,
                    ts: row.ts,
                    author: row.user.0,
                    sender: row.sender.0,
                    grant: row.grant,
                    counter: row.counter,
                    id: if of_server { 0 } else { row.id.0 },
                    kind: match row.kind {
                        Kind::Text => EventKind::Text,
                        Kind::Json => EventKind::Json,
                        Kind::Empty => EventKind::Empty,
                        Kind::Members => EventKind::Members,
                    },
                    body_hash: plain_hash(encoding, &row.body),
                });
            }
            self.record(Final {
                at,
                user,
                device,
                conversation,
                head: room.head.seq,
            });
        }
    }

    /// What a life numbered that a restored backup doesn't know is nothing anybody waits for. If it
    /// reached the log the device is shown it like anybody, or it is hidden from its user by now.
    fn forget_lost_lives(&mut self, d: usize, accepted: &BTreeSet<Accepted>) {
        if !self.devices[d].was_restored {
            return;
        }
        for numbered in self.devices[d].sent.clone() {
            let lane = self.devices[d].disk.lanes.get(&numbered.0);
            // A message may wait without a number, for a grant: then it has none of that life's either.
            let is_waiting = lane.is_some_and(|l| {
                let mut queue = l.queue.iter().take(l.numbered);
                queue.any(|m| m.id == numbered.4) || l.sent_as(numbered.3, numbered.4).is_some()
            });
            if is_waiting {
                continue;
            }
            let (conversation, sender, grant, counter, id) = numbered;
            // The message may be accepted under another number: this one isn't.
            if !accepted.contains(&(conversation, sender, counter, id)) {
                self.record_given_up(d, numbered);
                continue;
            }
            self.record(Unknown {
                at: self.now,
                user: self.devices[d].user,
                device: self.devices[d].device,
                conversation,
                sender,
                grant,
                counter,
                id,
            });
        }
    }

    /// Who may do what by the log is what the directory says.
    fn judge_members(&mut self, rooms: &Rooms) {
        for founding in self.plan.conversations.clone() {
            for &user in &self.plan.users.clone() {
                let grant = rooms.get(&founding.id).and_then(|r| r.grants.get(&user));
                let by_log = grant.map_or(Role::None, |grant| grant.role);
                let role = self.directory.role(founding.id, user);
                if by_log != role {
                    let (user, id) = (user.0, founding.id);
                    self.broken.push(format!(
                        "user {user} is {role:?} in {id} by the directory, {by_log:?} by the log"
                    ));
                }
            }
        }
    }

    /// Who is connected is found by the registry.
    fn judge_registry(&mut self) {
        for d in 0..self.devices.len() {
            let (name, connection) = (self.devices[d].device, self.devices[d].connection);
            let is_ready = self.devices[d].core.as_ref().is_some_and(|c| c.is_ready());
            let Some(connection) = connection.filter(|_| is_ready) else {
                continue;
            };
            if !self.connections[connection].is_open {
                continue; // Half open: its gateway has given it up, and the client doesn't know yet.
            }
            let session = self.connections[connection].session;
            let entered = self.registry.of(name);
            if self
                .registry
                .may_miss(session, self.now.saturating_sub(SIGN_OF_LIFE))
            {
                continue;
            }
            if !entered.iter().any(|one| one.1 == session) {
                self.broken.push(format!(
                    "device {name:x} has session {session:?}, the registry says {entered:?}"
                ));
            }
        }
    }

    /// Nothing may be called hidden that its user may see for good.
    fn judge_hidden(&mut self, rooms: &Rooms) {
        for (user, conversation, from, to) in std::mem::take(&mut self.hidden) {
            let room = rooms.get(&ConversationId(conversation));
            let visible = room.and_then(|r| r.visible.get(&UserId(user)));
            // It lies outside of what one of the user's times as a member allows.
            let is_outside = |&(first, last): &(u64, u64)| {
                let last = if last == 0 { u64::MAX } else { last };
                from.max(first) > to.min(last)
            };
            if !visible.is_none_or(|ranges| ranges.iter().any(is_outside)) {
                self.broken.push(format!(
                    "user {user} was told that {from} to {to} of {conversation:x} are hidden, and may see them"
                ));
            }
        }
    }

    fn unsettled(&self) -> String {
        let mut what = String::new();
        if !self.directory.is_relayed() {
            what += "directory's outbox; ";
        }
        if self.router_behind() {
            what += "router behind the log; ";
        }
        let rooms = reference::read(&self.logs);
        for lacking in self.devices.iter().filter_map(|d| lacks(d, &rooms)) {
            what += &lacking;
        }
        what
    }
}

/// What a device still waits for.
fn lacks(device: &Device, rooms: &Rooms) -> Option<String> {
    let name = device.device;
    let Some(core) = &device.core else {
        return Some(format!("\n  device {name:x} is off"));
    };
    let saved = core.snapshot();
    for (id, room) in rooms {
        let grant = room.grants.get(&UserId(device.user)).copied();
        let grant = grant.unwrap_or_default();
        let have = core.have(id.0);
        let upto = match grant.role {
            Role::None if have == 0 => 0,
            Role::None => grant.visible_to,
            _ => room.head.seq,
        };
        let lane = saved.lanes.get(&id.0).cloned().unwrap_or_default();
        let waits = !lane.queue.is_empty() && grant.role.may_write();
        let holes = device.holes.get(&id.0).cloned().unwrap_or_default();
        if have < upto || lane.numbered > 0 || waits || !holes.is_empty() {
            return Some(format!(
                "\n  device {name:x} ({:?}, ready {}) in {id}: has {have} of {upto}, {grant:?}, holes {holes:?}, outbox {}, numbered {} under {}, acked {}",
                device.mode,
                core.is_ready(),
                lane.queue.len(),
                lane.numbered,
                lane.grant,
                lane.acked,
            ));
        }
    }
    None
}

fn fact(row: &EventRow) -> reference::Fact {
    reference::Fact {
        seq: row.seq,
        position: row.position,
        ts: row.ts,
        user: row.user,
        sender: row.sender,
        counter: row.counter,
        id: row.id.0,
    }
}
