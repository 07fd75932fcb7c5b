//! The real clock and the real random numbers; everything else is given them.

use std::time::{SystemTime, UNIX_EPOCH};

use tidings_core::ids::Micros;

/// Microseconds since 1970.
pub fn now() -> Micros {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as Micros)
}

/// 64 random bits of the system's generator.
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("a system without random numbers can't serve safely");
    u64::from_le_bytes(bytes)
}
