//! Operator commands: replay, bench, verify.

pub mod api;
pub mod bench;
pub mod replay;
pub mod verify;
pub mod witness;
