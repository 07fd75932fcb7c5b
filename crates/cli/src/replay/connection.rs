//! What the writers' loop keeps of a nick and of its connection.

use std::time::{Duration, Instant};

use super::outbox::Outbox;
use super::wire::Wire;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Stage {
    Upgrading,
    Authenticating,
    Syncing,
    Ready,
}

pub(super) struct Connection {
    pub nick: usize,
    pub wire: Wire,
    pub stage: Stage,
    /// When it was opened, and then when it was ready.
    pub since: Instant,
    pub sync_at: Option<Instant>,
    pub device: u64,
    /// Commands not in a frame yet.
    pub items: Vec<u8>,
    pub commands: usize,
    pub is_dirty: bool,
    /// The last message this nick is needed for, as far as is known.
    pub needed: usize,
    pub seen: u64,
    pub confirmed: u64,
    pub confirmed_at: Instant,
    pub wrote_at: Instant,
    pub frames: Rate,
}

/// When the next unit would fit exactly.
#[derive(Clone, Copy)]
pub(super) struct Rate(pub Instant);

impl Rate {
    /// Takes one unit of `per_second` (0: no limit) with a second's burst, a tenth below the
    /// limit as clocks differ; else says when it fits.
    pub fn take(&mut self, now: Instant, per_second: u32) -> Result<(), Instant> {
        if per_second == 0 {
            return Ok(());
        }
        let cost = Duration::from_secs_f64(1.0 / (0.9 * f64::from(per_second)));
        let at = self.0.max(now);
        let fits = now + Duration::from_millis(800).max(cost);
        if at + cost > fits {
            return Err(now + (at + cost - fits));
        }
        self.0 = at + cost;
        Ok(())
    }
}

pub(super) struct Writer {
    pub outbox: Outbox,
    pub connection: Option<usize>,
    /// Refused for now: all that waits is sent again then.
    pub again_at: Option<Instant>,
    /// Sent again lately; gaps of the same burst ask for nothing more.
    pub sent_again: Option<(u64, Instant)>,
    pub connect_after: Option<Instant>,
    pub failures: u32,
    pub rate: Rate,
}
