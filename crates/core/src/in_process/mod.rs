//! Ports whose other side is in this very process: nothing in them outlives it, and by what they
//! promise nothing has to.

pub mod peers;
pub mod registry;

pub use peers::{GatewayInbox, InProcessPeers, PeerCounts, RouterInbox};
pub use registry::InProcessRegistry;
