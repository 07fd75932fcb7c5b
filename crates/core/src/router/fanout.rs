//! Step 4: one frame to each gateway that wants the conversation, and who has handed it on.

use std::collections::{HashMap, VecDeque};

use super::conversation::Conversation;
use super::flight::Cargo;
use super::{Counters, INBOX_MEMBERS_MAX};
use crate::ids::{ConversationId, GatewayId, Micros, Seq};
use crate::path::{Effect, Router};
use crate::ports::peers::{Handed, ToGateway};

/// Events told to gateways that haven't said yet that their sessions have them.
#[derive(Debug, Default)]
pub(crate) struct Handing {
    open: HashMap<(ConversationId, Seq), u32>,
    /// In order of time, for giving up.
    order: VecDeque<(Micros, ConversationId, Seq)>,
}

impl Handing {
    fn told(&mut self, conversation: ConversationId, seq: Seq, gateways: u32, now: Micros) {
        self.open.insert((conversation, seq), gateways);
        self.order.push_back((now, conversation, seq));
    }

    fn done(&mut self, handed: Handed, counters: &mut Counters) {
        let key = (handed.conversation, handed.seq);
        if let Some(left) = self.open.get_mut(&key) {
            *left -= 1;
            if *left == 0 {
                self.open.remove(&key);
                counters.delivered += 1;
            }
        }
        while let Some(&(_, conversation, seq)) = self.order.front() {
            if self.open.contains_key(&(conversation, seq)) {
                break;
            }
            self.order.pop_front();
        }
    }

    /// Stops waiting for gateways that said nothing since `before`.
    pub fn forget_before(&mut self, before: Micros, counters: &mut Counters) {
        while let Some(&(at, conversation, seq)) = self.order.front() {
            if at > before {
                break;
            }
            self.order.pop_front();
            if self.open.remove(&(conversation, seq)).is_some() {
                counters.undelivered += 1;
            }
        }
    }
}

impl Router {
    /// Tells one event to the gateways concerned: all of them if it changes members.
    pub(crate) fn fan_out(&mut self, cargo: Cargo) {
        self.counters.fanned_out += 1;
        let (id, seq) = (cargo.row.conversation, cargo.row.seq);
        let everybody = cargo.row.members.is_some();
        let row = cargo.row.clone();
        let message = ToGateway::Event {
            row: cargo.row,
            except: cargo.except,
            taken: cargo.taken,
        };
        let conversation: &Conversation = self.conversations.entry(id).or_default();
        let gateways = conversation.interested.len() as u32;
        let is_small = conversation.head().members <= INBOX_MEMBERS_MAX;
        if everybody {
            self.out.push(Effect::Broadcast(message));
        } else {
            for &to in &conversation.interested {
                self.out.push(Effect::Send {
                    to,
                    message: message.clone(),
                });
            }
        }
        if is_small || everybody {
            self.out.push(Effect::FannedOut { row, is_small });
        }
        self.gateways.moved(id, seq);
        if everybody {
            self.gateways.members_changed(id, seq);
            // No message: nobody wrote it, so delivered ÷ sent doesn't count it.
        } else if gateways == 0 {
            self.counters.delivered += 1;
        } else {
            self.handed.told(id, seq, gateways, self.now);
        }
    }

    pub(crate) fn fanned_out(&mut self, handed: Vec<Handed>) {
        for one in handed {
            self.handed.done(one, &mut self.counters);
        }
    }

    pub(crate) fn interest(&mut self, id: ConversationId, gateway: GatewayId) {
        let conversation = self.conversation(id);
        if !conversation.interested.contains(&gateway) {
            conversation.interested.reserve_exact(1);
            conversation.interested.push(gateway);
        }
    }
}
