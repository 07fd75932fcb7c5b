//! Ports whose other side is in this very process: nothing in them outlives it, and by what they
//! promise nothing has to.

mod members;
pub mod peers;
pub mod registry;
mod rest;

pub use members::InProcessMembers;
pub use peers::{GatewayInbox, InProcessPeers, PeerCounts, RouterInbox};
pub use registry::InProcessRegistry;
pub use rest::{REST_AFTER, on_rest, rest};
