//! Exhaustive search over small worlds, with the code's own decisions.
//!
//! The simulation (`crates/sim`) runs the real program for long and by chance; this looks at *every*
//! order of events of a few devices, records, routers and replicas. What is decided is decided by
//! `tidings_core`; what stands around it is a model of the rules:
//!
//! - [`client`]: devices, connections, the log; answers heard at any time, again, or never
//! - [`once`]: an HTTP caller that repeats its request under one key
//! - [`store`]: routers, crashes, zombies, writes in doubt, three replicas
//!
//! `docs/model.md` has the rules, the cases and their figures.

pub mod cases;
pub mod client;
pub mod history;
pub mod once;
pub mod search;
pub mod store;
