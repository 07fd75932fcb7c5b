//! What is said over a link, one after the other.

use tidings_core::ids::{GatewayId, Partition};
use tidings_core::ports::peers::{ToGateway, ToRouter};
use tidings_core::rows::EventRow;
use tidings_core::varint::{Malformed, Reader};

use std::sync::Arc;

use super::owners::Term;
use super::wire::Wire;

/// One thing said. What a router says is of the last term its server told over the same link.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    /// The sender's router has taken a partition over.
    TookOver { partition: Partition, term: Term },
    /// The sender's router has given a partition up.
    Resigned { partition: Partition },
    /// From a gateway worker of the sender to a router of the receiver.
    ToRouter {
        worker: u8,
        partition: Partition,
        message: ToRouter,
    },
    /// From a router of the sender to gateway workers of the receiver.
    ToGateway {
        partition: Partition,
        to: To,
        message: ToGateway,
    },
    /// To all gateway workers of the receiver, from no router.
    Notice { message: ToGateway },
}

/// Which workers of the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    All,
    Some(Workers),
}

/// A set of a server's workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Workers([u64; 4]);

impl Workers {
    pub fn one(worker: u8) -> Workers {
        let mut all = Workers::default();
        all.add(worker);
        all
    }

    fn add(&mut self, worker: u8) {
        self.0[usize::from(worker >> 6)] |= 1 << (worker & 63);
    }

    fn has(&self, worker: u8) -> bool {
        self.0[usize::from(worker >> 6)] >> (worker & 63) & 1 == 1
    }

    pub fn count(&self) -> u32 {
        self.0.iter().map(|bits| bits.count_ones()).sum()
    }

    pub fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        self.0
            .iter()
            .zip([0u8, 64, 128, 192])
            .flat_map(|(&bits, base)| {
                let mut left = bits;
                std::iter::from_fn(move || {
                    let lowest = left.trailing_zeros() as u8;
                    (left != 0).then(|| {
                        left &= left - 1;
                        base + lowest
                    })
                })
            })
    }
}

impl Wire for Workers {
    fn put(&self, out: &mut Vec<u8>) {
        u64::from(self.count()).put(out);
        out.extend(self.iter());
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut all = Workers::default();
        for &worker in r.bytes()? {
            all.add(worker);
        }
        Ok(all)
    }
}

/// The worker's part of a gateway's number.
pub(super) fn worker_of(gateway: GatewayId) -> u8 {
    gateway.0 as u8
}

impl Item {
    /// Whether it goes to gateways, which must learn of it if it is lost.
    pub fn is_to_gateway(&self) -> bool {
        matches!(self, Item::ToGateway { .. } | Item::Notice { .. })
    }

    /// About how many bytes it takes, for the bound of a queue.
    pub fn weight(&self) -> usize {
        32 + match self {
            Item::TookOver { .. } | Item::Resigned { .. } => 0,
            Item::ToRouter { message, .. } => match message {
                ToRouter::Open { conversations, .. }
                | ToRouter::Interest { conversations, .. }
                | ToRouter::Close(conversations) => 8 * conversations.len(),
                ToRouter::Cursors(cursors) => 24 * cursors.len(),
                ToRouter::FannedOut(handed) => 12 * handed.len(),
                ToRouter::Typing { .. } | ToRouter::Tail { .. } => 0,
            },
            Item::ToGateway { message, .. } | Item::Notice { message } => match message {
                ToGateway::Event { row, .. } => row_weight(row),
                ToGateway::Tail { rows, .. } => rows.iter().map(row_weight).sum(),
                ToGateway::Opened { states, later, .. } => 64 * states.len() + 8 * later.len(),
                ToGateway::Receipts { cursors, .. } => 24 * cursors.len(),
                ToGateway::Digest { heads, changes, .. } => 12 * (heads.len() + changes.len()),
                ToGateway::Interested { heads, .. } => 12 * heads.len(),
                ToGateway::Answer { .. } => 64,
                ToGateway::Typing { .. }
                | ToGateway::TookOver { .. }
                | ToGateway::BlockChanged { .. }
                | ToGateway::Delayed { .. }
                | ToGateway::Replaced { .. }
                | ToGateway::Revoked(_) => 0,
            },
        }
    }

    /// Takes in what says the same to one more worker, so that it goes over the link once: a router
    /// that fans an event out names a server's workers one after the other. False: it is something
    /// else.
    pub fn merge(&mut self, other: &Item) -> bool {
        if let (
            Item::ToGateway {
                partition,
                to: To::Some(workers),
                message,
            },
            Item::ToGateway {
                partition: same_partition,
                to: To::Some(more),
                message: same,
            },
        ) = (self, other)
            && *partition == *same_partition
            && is_same(message, same)
            && !more.iter().any(|worker| workers.has(worker))
        {
            more.iter().for_each(|worker| workers.add(worker));
            return true;
        }
        false
    }
}

fn row_weight(row: &Arc<EventRow>) -> usize {
    let members = row
        .members
        .as_ref()
        .map_or(0, |m| 32 + m.title.len() + 48 * m.changes.len());
    96 + row.body.len() + members
}

/// Whether it is the same shared content, without a look at it.
fn is_same(a: &ToGateway, b: &ToGateway) -> bool {
    match (a, b) {
        (
            ToGateway::Event { row, except, taken },
            ToGateway::Event {
                row: other,
                except: other_except,
                taken: other_taken,
            },
        ) => Arc::ptr_eq(row, other) && except == other_except && taken == other_taken,
        (ToGateway::Receipts { cursors, .. }, ToGateway::Receipts { cursors: other, .. }) => {
            Arc::ptr_eq(cursors, other)
        }
        (ToGateway::Typing { .. }, ToGateway::Typing { .. }) => a == b,
        _ => false,
    }
}
