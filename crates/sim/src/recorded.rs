//! What a device shows, is told and has on its disk, as records for the checker.

use tidings_client::{AppEvent, Lane, PersistOp};
use tidings_protocol::body;
use tidings_protocol::wire::{self, Encoding, Kind};
use tidings_verify::body_hash;
use tidings_verify::history::{self, EventKind, Status};

use crate::Bug;
use crate::devices::Numbered;
use crate::world::World;

impl World {
    pub fn tell(&mut self, d: usize, event: AppEvent) {
        let (at, user, device) = (self.now, self.devices[d].user, self.devices[d].device);
        match event {
            AppEvent::Message(_) | AppEvent::Members(_) if self.has(Bug::ShownAsTheyArrive) => {}
            AppEvent::Message(event) | AppEvent::Members(event) => self.record_event(d, &event),
            AppEvent::Hole { .. } if self.has(Bug::HoleIsComplete) => {}
            AppEvent::Hole {
                conversation,
                from,
                to,
            } => {
                let holes = self.devices[d].holes.entry(conversation).or_default();
                holes.push((from, to));
                holes.sort_unstable();
                self.record_later(d, conversation, from, to);
            }
            AppEvent::Older {
                conversation,
                from,
                to,
                events,
            } => {
                for event in &events {
                    // What was shown before is not shown again by an app that keeps a list.
                    let holes = self.devices[d].holes.get(&conversation);
                    let is_missing = holes
                        .is_some_and(|h| h.iter().any(|&(a, b)| a <= event.seq && event.seq <= b));
                    if is_missing {
                        self.record_event(d, event);
                    }
                }
                let holes = self.devices[d].holes.entry(conversation).or_default();
                fill(holes, from, to);
            }
            AppEvent::Synced { conversation, head } => {
                let asked = self.devices[d].asked.get(&(conversation, head));
                self.record(history::Synced {
                    at,
                    asked: asked.copied().unwrap_or(0),
                    user,
                    device,
                    conversation,
                    head,
                    complete: true,
                });
            }
            AppEvent::Receipt {
                conversation,
                user,
                delivered,
                read,
            } => self.record(history::Receipt {
                at,
                device,
                conversation,
                user,
                delivered,
                read,
            }),
            AppEvent::Unknown {
                conversation,
                local,
            } => {
                // Only where a part is hidden from a user who was removed and came back.
                self.note(|| format!("device {device} can't know in {conversation:x}"));
                self.record_unknown(d, conversation, local.0);
            }
            _ => {}
        }
    }

    pub fn record_event(&mut self, d: usize, event: &wire::Event) {
        let kind = match event.kind() {
            Kind::Text => EventKind::Text,
            Kind::Json => EventKind::Json,
            Kind::Empty => EventKind::Empty,
            Kind::Members => EventKind::Members,
        };
        let of_server = kind == EventKind::Members;
        self.record(history::Deliver {
            at: self.now,
            user: self.devices[d].user,
            device: self.devices[d].device,
            conversation: event.conversation,
            seq: event.seq,
            ts: event.ts,
            author: event.user,
            sender: event.sender,
            grant: event.grant,
            counter: event.counter,
            id: if of_server { 0 } else { event.id },
            kind,
            body_hash: plain_hash(event.encoding(), &event.body),
        });
    }

    pub fn record_hidden(&mut self, d: usize, conversation: u64, from: u64, to: u64) {
        let (user, device) = (self.devices[d].user, self.devices[d].device);
        self.hidden.push((user, conversation, from, to));
        self.record(history::Hidden {
            at: self.now,
            user,
            device,
            conversation,
            from,
            to,
        });
    }

    pub fn record_ack(&mut self, d: usize, ack: &wire::Ack) {
        self.record(history::Ack {
            at: self.now,
            user: self.devices[d].user,
            device: self.devices[d].device,
            conversation: ack.conversation,
            sender: ack.sender,
            grant: ack.grant,
            counter: ack.counter,
            id: ack.id,
            seq: ack.seq,
            ts: ack.ts,
            duplicate: ack.duplicate,
            status: match ack.status() {
                wire::Status::Sent => Status::Sent,
                wire::Status::Gap => Status::Gap,
                wire::Status::Over => Status::Over,
                wire::Status::Fork => Status::Fork,
                wire::Status::Stale => Status::Stale,
            },
        });
    }

    /// The disk has everything from here on; what was numbered by it may be sent from here on.
    pub fn sync_disk(&mut self, d: usize) {
        for op in std::mem::take(&mut self.devices[d].unsynced) {
            let changed = match &op {
                PersistOp::Numbered { conversation, .. }
                | PersistOp::Replaced { conversation, .. } => Some(*conversation),
                PersistOp::Acked {
                    conversation,
                    counter,
                    id,
                    seq,
                    ..
                } => {
                    self.record_learned(d, *conversation, *counter, *id, *seq);
                    self.record_superseded(d, *conversation, *counter, *id);
                    Some(*conversation)
                }
                PersistOp::Over { conversation } => {
                    self.record_failed(d, *conversation, &[]);
                    None
                }
                PersistOp::Fresh {
                    conversation,
                    decided,
                    ..
                } => {
                    self.record_failed(d, *conversation, decided);
                    None
                }
                _ => None,
            };
            self.devices[d].disk.apply(&op);
            if let Some(conversation) = changed {
                self.record_numbered(d, conversation);
            }
        }
    }

    /// What is sent from here on under the lane's counters: a message whose previous one was
    /// replaced is sent under another id than before.
    fn record_numbered(&mut self, d: usize, conversation: u64) {
        let Some(lane) = self.devices[d].disk.lanes.get(&conversation).cloned() else {
            return;
        };
        for (counter, id) in (lane.acked + 1..).zip(lane.ids(false)) {
            let numbered = (conversation, lane.sender, lane.grant, counter, id);
            if self.devices[d].sent.contains(&numbered) {
                continue;
            }
            if let Some(message) = lane.under(counter) {
                let hash = match &message.refused {
                    None => plain_hash(message.encoding, &message.body),
                    Some(_) => body_hash(b""),
                };
                self.record_send(d, conversation, &lane, counter, id, hash);
            }
        }
    }

    fn record_send(
        &mut self,
        d: usize,
        conversation: u64,
        lane: &Lane,
        counter: u64,
        id: u64,
        body_hash: u64,
    ) {
        let device = &mut self.devices[d];
        let (sender, grant) = (lane.sender, lane.grant);
        device.sent.push((conversation, sender, grant, counter, id));
        let (user, device) = (device.user, device.device);
        self.numbered.insert((conversation, sender, grant, counter));
        self.record(history::Send {
            at: self.now,
            user,
            device,
            conversation,
            sender,
            grant,
            counter,
            id,
            body_hash,
        });
    }

    /// What is numbered in a lane, but for those decided, loses its number.
    fn record_failed(&mut self, d: usize, conversation: u64, decided: &[u64]) {
        let Some(lane) = self.devices[d].disk.lanes.get(&conversation).cloned() else {
            return;
        };
        let (ids, originals) = (lane.ids(false), lane.ids(true));
        for (place, message) in lane.queue.iter().take(lane.numbered).enumerate() {
            if decided.contains(&message.local) {
                continue;
            }
            let counter = lane.acked + 1 + place as u64;
            let mut forms = vec![ids[place], originals[place]];
            forms.dedup();
            for id in forms {
                let numbered = (conversation, lane.sender, lane.grant, counter, id);
                if self.devices[d].sent.contains(&numbered) {
                    self.record_given_up(d, numbered);
                }
            }
        }
    }

    /// A device may learn from a page of history what became of a message: that is an answer, too.
    fn record_learned(&mut self, d: usize, conversation: u64, counter: u64, id: u64, seq: u64) {
        let device = &self.devices[d];
        let Some(lane) = device.disk.lanes.get(&conversation) else {
            return;
        };
        self.record(history::Ack {
            at: self.now,
            user: device.user,
            device: device.device,
            conversation,
            sender: lane.sender,
            grant: lane.grant,
            counter,
            id,
            seq,
            ts: 0,
            duplicate: true,
            status: Status::Sent,
        });
    }

    /// All up to a counter is decided: what else was sent under these counters, a message that another
    /// stood in for or that stood behind one, never will be accepted.
    fn record_superseded(&mut self, d: usize, conversation: u64, counter: u64, id: u64) {
        let device = &self.devices[d];
        let Some(lane) = device.disk.lanes.get(&conversation) else {
            return;
        };
        let Some(is_original) = lane.sent_as(counter, id) else {
            return;
        };
        let accepted: Vec<(u64, u64)> = (lane.acked + 1..=counter)
            .zip(lane.ids(is_original))
            .collect();
        let outbox = (conversation, lane.sender, lane.grant);
        let superseded = device
            .sent
            .iter()
            .copied()
            .filter(|&(c, s, g, counter, id)| {
                let of_this = |one: &&(u64, u64)| one.0 == counter;
                (c, s, g) == outbox && accepted.iter().find(of_this).is_some_and(|a| a.1 != id)
            });
        for numbered in superseded.collect::<Vec<Numbered>>() {
            self.record_given_up(d, numbered);
        }
    }

    /// What became of a message can't be known, under whatever numbers it was ever sent.
    fn record_unknown(&mut self, d: usize, conversation: u64, local: u64) {
        let device = &self.devices[d];
        let Some(lane) = device.disk.lanes.get(&conversation) else {
            return;
        };
        let Some(place) = lane.queue.iter().position(|m| m.local == local) else {
            return;
        };
        let (ids, originals) = (lane.ids(false), lane.ids(true));
        let forms = [ids.get(place), originals.get(place)];
        let own = lane.queue[place].id;
        let is_it = |id: u64| id == own || forms.contains(&Some(&id));
        let sent = device.sent.iter().filter(|n| n.0 == conversation);
        let sent: Vec<Numbered> = sent.filter(|n| is_it(n.4)).copied().collect();
        let (user, device) = (device.user, device.device);
        for (conversation, sender, grant, counter, id) in sent {
            self.record(history::Unknown {
                at: self.now,
                user,
                device,
                conversation,
                sender,
                grant,
                counter,
                id,
            });
        }
    }

    /// A numbered message will never be accepted under its number.
    pub fn record_given_up(&mut self, d: usize, numbered: Numbered) {
        let (conversation, sender, grant, counter, id) = numbered;
        self.record(history::Failed {
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

/// Takes a range out of others.
fn fill(holes: &mut Vec<(u64, u64)>, from: u64, to: u64) {
    let mut left = Vec::new();
    for &(a, b) in holes.iter() {
        if b < from || a > to {
            left.push((a, b));
            continue;
        }
        if a < from {
            left.push((a, from - 1));
        }
        if b > to {
            left.push((to + 1, b));
        }
    }
    *holes = left;
}

pub(crate) fn plain_hash(encoding: Encoding, bytes: &[u8]) -> u64 {
    match body::inflate(encoding, bytes, usize::MAX) {
        Ok(plain) => body_hash(&plain),
        Err(_) => body_hash(bytes),
    }
}
