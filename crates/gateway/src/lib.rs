//! Listeners, sessions, WebSocket and HTTP.
//!
//! The I/O half lives in [`ws`] (RFC 6455 without I/O), [`http_head`] (request heads), [`tls`]
//! and [`worker`] (one thread, one epoll, one listener, a slab of sessions). Logic reaches it
//! only through [`worker::Handler`] and [`worker::Io`].

pub mod host;
pub mod http_head;
pub mod logic;
pub mod seldom;
pub mod tls;
mod turns;
pub mod worker;
pub mod ws;
