//! A small exact server, and a world of devices, connections and faults around it.
//!
//! The server is the log and the decision of design.md's verdict table and nothing else;
//! it is written apart from the real one, so that the two can be wrong only separately.

// Each test binary uses its own part of this.
#![allow(dead_code, unused_imports)]

pub mod bench;
mod server;
mod world;

pub use server::{CONVERSATION, Conversation, ME, OTHER, Server, send_of};
pub use world::{Faults, World};

/// Numbers from a seed (splitmix64).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next one.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
