//! One behavioural suite a port: plain functions over the trait that every implementation runs.

pub mod blobs;
pub mod dead_letters;
pub mod directory;
pub mod faults;
pub mod log;
pub mod registry;
pub mod store;
