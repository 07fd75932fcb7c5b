//! What the tests stand on: a server process, an HTTP client, sessions, tokens.

pub mod http;
pub mod process;
#[path = "../../program/mod.rs"]
pub mod program;
pub mod session;
pub mod shop;

pub use http::Reply;
pub use process::{Person, Server, Setup};
pub use session::Session;
pub use shop::Shop;

use std::time::Duration;

/// Nothing here takes so long unless it is broken.
pub const DEADLINE: Duration = Duration::from_secs(30);
