//! The end of a history: everything heals and settles, and then what must hold is recorded.

use std::collections::BTreeSet;

use tidings_core::record::Role;
use tidings_verify::history::{Final, Member};

use crate::reference;
use crate::setup::FAULTS_FOR;
use crate::world::{Event, MS, SECOND, START, World};

/// How long a healed cluster may take until everybody has everything: four times the client's
/// longest backoff, and more than a dead connection takes to be noticed by its heartbeats.
const SETTLES_WITHIN: u64 = 240 * SECOND;

impl World {
    /// Plays the whole history.
    pub fn play(&mut self) {
        let end = START + FAULTS_FOR;
        while self.step(end) {}
        self.heal();
        let limit = self.now + SETTLES_WITHIN;
        while self.now < limit {
            let until = self.now + SECOND;
            while self.step(until) {}
            self.fetch_all_older();
            if self.has_settled() {
                break;
            }
        }
        self.conclude();
    }

    fn heal(&mut self) {
        self.healing = true;
        self.weather = Default::default();
        self.note(|| "healing".to_owned());
        self.router_up();
        for gateway in 0..self.gateways.len() {
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
        let rooms = reference::read(&self.log);
        self.devices.iter().all(|device| {
            let Some(core) = &device.core else {
                return false;
            };
            let is_decided = core.snapshot().lanes.iter().all(|(&id, lane)| {
                let room = rooms.get(&tidings_core::ids::ConversationId(id));
                let grant =
                    room.and_then(|r| r.grants.get(&tidings_core::ids::UserId(device.user)));
                let may_write = grant.is_some_and(|g| g.role.may_write());
                lane.numbered == 0
                    && lane.doubts.is_empty()
                    && (lane.queue.is_empty() || !may_write)
            });
            is_decided
                && device.holes.values().all(Vec::is_empty)
                && rooms.iter().all(|(id, room)| {
                    let grant = room.grants.get(&tidings_core::ids::UserId(device.user));
                    match grant {
                        Some(g) if g.role != Role::None => core.have(id.0) >= room.head.seq,
                        Some(g) => core.have(id.0) == 0 || core.have(id.0) >= g.visible_to,
                        None => true,
                    }
                })
        })
    }

    /// Records what is expected of everybody, and compares the rows with the log.
    fn conclude(&mut self) {
        let at = self.now;
        if !self.has_settled() {
            self.broken
                .push(format!("not settled: {}", self.unsettled()));
        }
        let rooms = reference::read(&self.log);
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
        self.judge_hidden(&rooms);
        let accepted: BTreeSet<u64> = rooms
            .values()
            .flat_map(|room| room.facts.iter().map(|fact| fact.id))
            .collect();
        for d in 0..self.devices.len() {
            self.forget_lost_lives(d, &accepted);
            let (user, device) = (self.devices[d].user, self.devices[d].device);
            for (id, room) in &rooms {
                let Some(grant) = room.grants.get(&tidings_core::ids::UserId(user)) else {
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

    /// What a life numbered that a restored backup doesn't know, and that never reached the log,
    /// is nothing anybody waits for.
    fn forget_lost_lives(&mut self, d: usize, accepted: &BTreeSet<u64>) {
        if !self.devices[d].was_restored {
            return;
        }
        for numbered in self.devices[d].sent.clone() {
            let lane = self.devices[d].disk.lanes.get(&numbered.0);
            let is_waiting = lane.is_some_and(|l| l.queue.iter().any(|m| m.has_id(numbered.4)));
            if !accepted.contains(&numbered.4) && !is_waiting {
                self.record_given_up(d, numbered);
            }
        }
    }

    /// Nothing may be called hidden that its user may see for good.
    fn judge_hidden(
        &mut self,
        rooms: &std::collections::BTreeMap<tidings_core::ids::ConversationId, reference::Room>,
    ) {
        for (user, conversation, from, to) in std::mem::take(&mut self.hidden) {
            let room = rooms.get(&tidings_core::ids::ConversationId(conversation));
            let visible = room.and_then(|r| r.visible.get(&tidings_core::ids::UserId(user)));
            let last = visible.and_then(|ranges| ranges.last()).copied();
            let (first, last) = last.unwrap_or((u64::MAX, 0));
            let last = if last == 0 { u64::MAX } else { last };
            if from.max(first) <= to.min(last) {
                self.broken.push(format!(
                    "user {user} was told that {from} to {to} of {conversation:x} are hidden, and may see from {first}"
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
        let rooms = reference::read(&self.log);
        for device in &self.devices {
            let Some(core) = &device.core else { continue };
            for (id, room) in &rooms {
                let (have, head) = (core.have(id.0), room.head.seq);
                let grant = room.grants.get(&tidings_core::ids::UserId(device.user));
                let lane = core
                    .snapshot()
                    .lanes
                    .get(&id.0)
                    .cloned()
                    .unwrap_or_default();
                let holes = device.holes.get(&id.0).cloned().unwrap_or_default();
                if have < head || lane.numbered > 0 || !lane.doubts.is_empty() || !holes.is_empty()
                {
                    what += &format!(
                        "\n  device {:x} ({:?}, ready {}) in {id}: has {have} of {head}, grant {grant:?}, holes {holes:?}, numbered {}, doubts {}, acked {}, sender {:x}",
                        device.device,
                        device.mode,
                        core.is_ready(),
                        lane.numbered,
                        lane.doubts.len(),
                        lane.acked,
                        lane.sender
                    );
                }
            }
        }
        what
    }
}

fn fact(row: &tidings_core::rows::EventRow) -> reference::Fact {
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
