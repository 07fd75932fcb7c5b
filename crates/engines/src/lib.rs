//! The ports' second implementations, for many servers over existing engines.
//!
//! Each module stands behind one port of `tidings-core` and passes the same behavioural suite
//! as the embedded part ([`tidings_core::conformance`]), against the real engine.

pub mod breaker;
pub mod cassandra;
pub mod kafka;
pub mod peers;
pub mod postgres;
pub mod redis;
pub mod s3;
mod secret;
mod start;

pub use secret::Secret;
pub use start::StartError;
