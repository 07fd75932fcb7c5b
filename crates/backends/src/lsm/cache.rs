//! Inflated blocks that were read lately, bounded in bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::events::EventBlock;
use super::rows::RowBlock;

/// Names a block: the segment's number (never used twice while the store is open) and whether
/// it is of events, and which.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockId {
    /// The segment.
    pub segment: u64,
    /// Events, else state rows.
    pub events: bool,
    /// The block's index in its table.
    pub index: usize,
}

/// A block of either table.
#[derive(Clone)]
pub enum Block {
    /// Of events.
    Events(Arc<EventBlock>),
    /// Of state rows and cursors.
    Rows(Arc<RowBlock>),
}

impl Block {
    fn weight(&self) -> usize {
        match self {
            Block::Events(block) => block.weight(),
            Block::Rows(block) => block.weight(),
        }
    }
}

#[derive(Default)]
struct Inner {
    blocks: HashMap<BlockId, (Block, u64)>,
    bytes: usize,
    tick: u64,
    /// The tick of the last [`Cache::age`].
    aged: u64,
}

/// Drops the block that was used longest ago when full. Finding that one looks at all of them,
/// a few hundred, which is nothing beside the inflating that made it necessary.
pub struct Cache {
    inner: Mutex<Inner>,
    bytes_max: usize,
}

impl Cache {
    /// A cache of at most about so many bytes.
    pub fn new(bytes_max: usize) -> Cache {
        Cache {
            inner: Mutex::default(),
            bytes_max,
        }
    }

    /// The block, marked as used now.
    pub fn get(&self, id: BlockId) -> Option<Block> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.tick += 1;
        let tick = inner.tick;
        let (block, used) = inner.blocks.get_mut(&id)?;
        *used = tick;
        Some(block.clone())
    }

    /// Keeps the block, if it isn't larger than the whole cache.
    pub fn insert(&self, id: BlockId, block: Block) {
        let weight = block.weight();
        if weight > self.bytes_max {
            return;
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.tick += 1;
        let tick = inner.tick;
        if let Some((old, _)) = inner.blocks.insert(id, (block, tick)) {
            inner.bytes -= old.weight();
        }
        inner.bytes += weight;
        while inner.bytes > self.bytes_max {
            let Some(oldest) = inner
                .blocks
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(id, _)| *id)
            else {
                break;
            };
            if let Some((old, _)) = inner.blocks.remove(&oldest) {
                inner.bytes -= old.weight();
            }
        }
    }

    /// Forgets a segment that was merged away.
    pub fn forget(&self, segment: u64) {
        self.retain(|id, _| id.segment != segment);
    }

    /// Forgets what wasn't used since the last call.
    pub fn age(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let now = inner.tick;
        let since = std::mem::replace(&mut inner.aged, now);
        drop(inner);
        self.retain(|_, used| used > since);
    }

    fn retain(&self, keep: impl Fn(BlockId, u64) -> bool) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut freed = 0;
        inner.blocks.retain(|id, (block, used)| {
            let keep = keep(*id, *used);
            freed += if keep { 0 } else { block.weight() };
            keep
        });
        inner.bytes -= freed;
        if inner.blocks.is_empty() {
            inner.blocks = HashMap::new();
        }
    }
}
