//! What the `tidings` binary is made of: configuration, accounts, the HTTP API, the start and the end.

pub mod admin;
pub mod aside;
pub mod auth;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod config;
pub mod dead_letters;
pub mod embedded;
pub mod http;
pub mod metrics;
pub mod modes;
pub mod offline;
pub mod parts;
pub mod relay;
pub mod routed;
pub mod routers;
pub mod routing;
pub mod serve;
pub mod system;
pub mod waiting;
mod workers;
