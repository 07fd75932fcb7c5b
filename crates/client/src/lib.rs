//! The client library: durable outbox, sync, gap repair, cursors, both formats.
//!
//! - [`ClientCore`] is the client without I/O: inputs (a call of the user, a frame, the
//!   time) go in, [`Output`]s come out. A simulation runs the same code as a real client.
//! - [`Store`] keeps a client's [`Saved`] state in a folder, and survives being killed.
//! - [`Client`] runs a core over a WebSocket on tokio.

mod client;
mod client_core;
mod saved;
mod store;

pub use client::{
    Client, ClientError, ClientEvent, EventStream, Options, Token, TokenError, Traffic, Watch,
};
pub use client_core::{
    AppEvent, ClientCore, Config, ConversationInfo, FailReason, LocalId, Mode, Output, Random,
    SendError, StoredBy,
};
pub use saved::{Cursor, Lane, PersistOp, Queued, Refused, Saved};
pub use store::{Store, StoreError};
