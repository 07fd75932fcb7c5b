//! What the `tidings` binary is made of: configuration, accounts, the HTTP API, the start and the end.

pub mod auth;
