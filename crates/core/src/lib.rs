//! Domain types, ports and the way of a message: no sockets, no drivers.
//!
//! Start with [`path`]: it tells the story of a message from the gateway's
//! append to the committed log position. [`sequencer`] holds the pure decision,
//! [`rows`] every stored key and value, [`ports`] what the outside must promise.

pub mod conformance;
pub mod ids;
pub mod in_process;
pub mod membership;
pub mod path;
pub mod planted;
pub mod ports;
pub mod record;
pub mod router;
pub mod rows;
pub mod sequencer;
pub mod undo;
pub mod varint;
