//! Operator commands: replay, bench, journeys, verify.

pub mod api;
pub mod bench;
pub mod journeys;
pub mod replay;
pub mod verify;
pub mod witness;
