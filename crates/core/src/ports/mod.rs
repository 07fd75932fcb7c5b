//! What the core asks of the outside, named after what the domain needs.
//!
//! Each port's documentation says what is durable, ordered, idempotent and stale;
//! each has one behavioural suite in [`crate::conformance`] that every
//! implementation passes.

use std::future::Future;
use std::pin::Pin;

pub mod blobs;
pub mod dead_letters;
pub mod directory;
pub mod disk;
pub mod log;
pub mod members;
pub mod ownership;
pub mod peers;
pub mod registry;
pub mod store;

/// A future that owns what it needs or borrows from `'a`, as ports return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
