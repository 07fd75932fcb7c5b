//! Connections of devices, and messages between gateways and routers.
//!
//! A connection keeps its order and loses nothing until it ends, cut or half open. Messages of
//! peers keep their order within a conversation or are lost, and overtake those of others.

use std::collections::VecDeque;

use bytes::Bytes;
use tidings_core::ids::{Micros, Partition, SessionId};
use tidings_core::ports::peers::{ToGateway, ToRouter};
use tidings_gateway::logic::Slot;
use tidings_protocol::{CloseCode, Format};

use crate::Bug;
use crate::world::{Event, GatewayInput, MS, SECOND, World};

/// What a gateway writes to a socket.
#[derive(Debug)]
pub(crate) enum Written {
    Frame(Bytes),
    Close(CloseCode),
}

/// One connection, from its first to its last byte.
pub(crate) struct Connection {
    pub device: usize,
    pub gateway: usize,
    pub gateway_life: u64,
    pub slot: Slot,
    pub session: SessionId,
    pub format: Format,
    up: VecDeque<Vec<u8>>,
    down: VecDeque<Written>,
    up_at: Micros,
    down_at: Micros,
    /// Whether the gateway has it open.
    pub is_open: bool,
    /// Nothing arrives any more, and neither side is told.
    pub is_half_open: bool,
    /// The client doesn't read: bytes wait at the gateway.
    pub is_blocked: bool,
    pub waiting: Vec<Bytes>,
    pub queued: usize,
    pub is_overflowed: bool,
    pub heard: Micros,
}

impl World {
    /// A device's attempt to connect arrives.
    pub fn connect(&mut self, device: usize, life: u64, attempt: u64) {
        if !self.devices[device].is_attempt(life, attempt) {
            return;
        }
        let gateway = self.random.below(self.gateways.len() as u64) as usize;
        if !self.gateways[gateway].is_up() {
            return self.device_disconnected(device, None);
        }
        let format = self.devices[device].format;
        self.connections.push(Connection {
            device,
            gateway,
            gateway_life: self.gateways[gateway].life,
            slot: 0,
            session: SessionId(0),
            format,
            up: VecDeque::new(),
            down: VecDeque::new(),
            up_at: 0,
            down_at: 0,
            is_open: true,
            is_half_open: false,
            is_blocked: false,
            waiting: Vec::new(),
            queued: 0,
            is_overflowed: false,
            heard: self.now,
        });
        let connection = self.connections.len() - 1;
        self.gateway_opens(gateway, connection);
        self.device_connected(device, connection);
    }

    fn client_delay(&mut self) -> Micros {
        let most = self.plan.client_delay;
        if !self.healing && self.random.permille(5) {
            return self.random.below(2 * SECOND);
        }
        self.random.between(most / 10, most)
    }

    /// A client writes.
    pub fn write_up(&mut self, connection: usize, bytes: Vec<u8>) {
        let delay = self.client_delay();
        let now = self.now;
        let c = &mut self.connections[connection];
        if c.is_half_open {
            return;
        }
        c.up.push_back(bytes);
        c.up_at = (now + delay).max(c.up_at + 1);
        let at = c.up_at;
        self.at(at, Event::Up(connection));
    }

    /// The next bytes of a client arrive.
    pub fn up(&mut self, connection: usize) {
        let now = self.now;
        let c = &mut self.connections[connection];
        let Some(bytes) = c.up.pop_front() else {
            return;
        };
        if c.is_open && !c.is_half_open {
            c.heard = now;
            self.mix_bytes(&bytes);
            self.gateway_message(connection, &bytes);
        }
    }

    /// A gateway writes.
    pub fn write_down(&mut self, connection: usize, what: Written) {
        let delay = self.client_delay();
        let now = self.now;
        let c = &mut self.connections[connection];
        if c.is_half_open {
            return;
        }
        c.down.push_back(what);
        c.down_at = (now + delay).max(c.down_at + 1);
        let at = c.down_at;
        self.at(at, Event::Down(connection));
    }

    /// The next bytes of a gateway arrive.
    pub fn down(&mut self, connection: usize) {
        let now = self.now;
        let c = &mut self.connections[connection];
        let Some(what) = c.down.pop_front() else {
            return;
        };
        let device = c.device;
        if c.is_half_open || self.devices[device].connection != Some(connection) {
            return;
        }
        match what {
            Written::Frame(bytes) => {
                self.mix_bytes(&bytes);
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (opcode, payload, after) = split_frame(rest);
                    rest = after;
                    if opcode == 9 {
                        // The client's library answers a ping by itself.
                        self.connections[connection].heard = now;
                    } else {
                        self.device_frame(connection, payload);
                    }
                }
            }
            Written::Close(code) => self.device_disconnected(device, Some(code.code())),
        }
    }

    /// A connection ends for both sides; the gateway hears of it a little later, and of what was
    /// on its way up before.
    pub fn cut(&mut self, connection: usize, tells_client: bool) {
        let keeps_up = self.random.permille(500);
        let c = &mut self.connections[connection];
        c.down.clear();
        if !keeps_up {
            c.up.clear();
        }
        let (device, gateway, life, slot) = (c.device, c.gateway, c.gateway_life, c.slot);
        let at = c.up_at.max(self.now) + 1;
        if c.is_open {
            self.at(
                at,
                Event::Gateway(gateway, life, GatewayInput::Closed(slot)),
            );
        }
        if self.devices[device].connection == Some(connection) {
            if tells_client {
                self.device_disconnected(device, None);
            } else {
                self.devices[device].connection = None;
            }
        }
    }

    /// A slow reader has read what waited.
    pub fn unblock(&mut self, connection: usize) {
        let c = &mut self.connections[connection];
        c.is_blocked = false;
        c.queued = 0;
        let waiting = std::mem::take(&mut c.waiting);
        let (is_open, gateway, life, slot) = (c.is_open, c.gateway, c.gateway_life, c.slot);
        for frame in waiting {
            self.write_down(connection, Written::Frame(frame));
        }
        if is_open {
            self.after(
                MS,
                Event::Gateway(gateway, life, GatewayInput::Drained(slot)),
            );
        }
    }

    /// When a message arrives that keeps its order within these conversations; `None`: never.
    fn peer_arrival(
        &mut self,
        to_router: bool,
        from: usize,
        to: usize,
        conversations: &[u64],
    ) -> Option<Micros> {
        let (gateway, router) = if to_router { (from, to) } else { (to, from) };
        let server = self.server_of(router);
        let is_cut = self.weather.cuts.iter().any(|cut| {
            (cut.to_router, cut.gateway, Some(cut.server)) == (to_router, gateway, server)
                && self.now < cut.until
        });
        if is_cut {
            return None;
        }
        let lossy = self.now < self.weather.peers_lossy;
        let loss = if lossy { self.weather.peers_loss } else { 4 };
        if !self.healing && self.random.permille(loss) {
            return None;
        }
        let most = match lossy {
            true => 800 * MS,
            false => self.plan.peer_delay,
        };
        let mut at = self.now + self.random.between(most / 20, most);
        for &conversation in conversations {
            let last = self.ways.get(&(to_router, from, to, conversation));
            // One more, for what comes twice.
            at = at.max(last.map_or(0, |last| last + 2));
        }
        for &conversation in conversations {
            self.ways.insert((to_router, from, to, conversation), at);
        }
        Some(at)
    }

    /// From a router to a gateway.
    pub fn send_to_gateway(&mut self, router: usize, gateway: usize, message: ToGateway) {
        let about: Vec<u64> = match &message {
            ToGateway::Answer { answer, .. } => vec![answer.conversation.0],
            ToGateway::Event { row, .. } => vec![row.conversation.0],
            ToGateway::Opened { states, later, .. } => {
                let states = states.iter().map(|state| state.conversation.0);
                states.chain(later.iter().map(|c| c.0)).collect()
            }
            ToGateway::Tail { rows, .. } => {
                rows.iter().take(1).map(|row| row.conversation.0).collect()
            }
            ToGateway::Receipts { conversation, .. } | ToGateway::Typing { conversation, .. } => {
                vec![conversation.0]
            }
            ToGateway::Interested { heads, .. } => heads.iter().map(|head| head.0.0).collect(),
            // Digests keep their own order too.
            ToGateway::Digest { heads, changes, .. } => {
                let named = heads.iter().chain(changes.iter());
                named.map(|one| one.0.0).chain([0]).collect()
            }
            ToGateway::TookOver { .. }
            | ToGateway::BlockChanged { .. }
            | ToGateway::Delayed { .. }
            | ToGateway::Replaced { .. }
            | ToGateway::Revoked(_) => vec![0],
        };
        if let Some(at) = self.peer_arrival(false, router, gateway, &about) {
            if !self.healing && self.random.permille(10) {
                // It comes twice, and before what follows it.
                self.at(at - 1, Event::ToGateway(router, gateway, message.clone()));
            }
            self.at(at, Event::ToGateway(router, gateway, message));
        }
    }

    /// From a gateway to the router that owns the partition, as far as is known.
    pub fn send_to_router(&mut self, gateway: usize, partition: Partition, message: ToRouter) {
        let Some(mut router) = self.owners[partition.0 as usize] else {
            return;
        };
        if self.has(Bug::AnswersOfZombie) {
            let is_of_it = |&other: &usize| {
                let node = self.routers[other].as_ref();
                other != router && node.is_some() && self.router_partitions[other] == partition.0
            };
            router = (0..self.routers.len()).find(is_of_it).unwrap_or(router);
        }
        let about: Vec<u64> = match &message {
            ToRouter::Open { conversations, .. }
            | ToRouter::Interest { conversations, .. }
            | ToRouter::Close(conversations) => conversations.iter().map(|c| c.0).collect(),
            ToRouter::Cursors(rows) => rows.iter().map(|row| row.conversation.0).collect(),
            ToRouter::Typing { conversation, .. } | ToRouter::Tail { conversation, .. } => {
                vec![conversation.0]
            }
            ToRouter::FannedOut(handed) => handed.iter().map(|h| h.conversation.0).collect(),
        };
        if let Some(at) = self.peer_arrival(true, gateway, router, &about) {
            let is_asked = matches!(message, ToRouter::Open { .. } | ToRouter::Interest { .. });
            if !self.healing && !is_asked && self.random.permille(10) {
                self.at(at - 1, Event::ToRouter(router, gateway, message.clone()));
            }
            self.at(at, Event::ToRouter(router, gateway, message));
        }
    }
}

/// Opcode, payload and what follows of the first WebSocket frame.
fn split_frame(bytes: &[u8]) -> (u8, &[u8], &[u8]) {
    let (head, len) = match bytes[1] {
        126 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
        127 => (
            10,
            u64::from_be_bytes(bytes[2..10].try_into().expect("8 bytes")) as usize,
        ),
        len => (2, usize::from(len)),
    };
    (
        bytes[0] & 15,
        &bytes[head..head + len],
        &bytes[head + len..],
    )
}
