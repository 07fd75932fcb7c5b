//! What waits for a link: bounded, swapped out whole, one wake a batch.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::item::Item;

/// A queue's capacity above this is given back after a burst.
const KEPT: usize = 1 << 10;

#[derive(Default)]
struct Waiting {
    items: Vec<Item>,
    bytes: usize,
    /// Whether something for gateways was dropped since the last [`Queue::take`].
    has_lost: bool,
    /// Whether the link was told to look since then.
    is_woken: bool,
}

/// The queue of one link.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    ready: Notify,
    messages_max: usize,
    bytes_max: usize,
}

impl Queue {
    pub fn new(messages_max: usize, bytes_max: usize) -> Queue {
        Queue {
            waiting: Mutex::default(),
            ready: Notify::new(),
            messages_max,
            bytes_max,
        }
    }

    /// Puts a message in, if it fits. One that `can_wait` goes with the next that can't, with the
    /// next ping at the latest.
    pub fn push(&self, item: Item, can_wait: bool) -> bool {
        let must_wake = {
            let mut waiting = self.lock();
            if waiting
                .items
                .last_mut()
                .is_some_and(|last| last.merge(&item))
            {
                return true;
            }
            let weight = item.weight();
            let is_full = waiting.items.len() >= self.messages_max
                || (waiting.bytes + weight > self.bytes_max && !waiting.items.is_empty());
            if is_full {
                waiting.has_lost |= item.is_to_gateway();
                return false;
            }
            waiting.bytes += weight;
            waiting.items.push(item);
            let must_wake = !waiting.is_woken && (!can_wait || waiting.items.len() >= KEPT);
            waiting.is_woken |= must_wake;
            must_wake
        };
        if must_wake {
            self.ready.notify_one();
        }
        true
    }

    /// Puts in what must not be lost: it is about partitions and so rare.
    pub fn push_always(&self, item: Item) {
        self.lock().items.push(item);
        self.ready.notify_one();
    }

    /// Waits until there may be something to take.
    pub async fn ready(&self) {
        self.ready.notified().await;
    }

    /// Moves all into `into`, which must be empty; whether something for gateways was dropped since
    /// the last call.
    pub fn take(&self, into: &mut Vec<Item>) -> bool {
        into.shrink_to(KEPT);
        let mut waiting = self.lock();
        std::mem::swap(&mut waiting.items, into);
        waiting.bytes = 0;
        waiting.is_woken = false;
        std::mem::take(&mut waiting.has_lost)
    }

    /// A panic while it was locked leaves whole messages in it, so it may be used on.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
