//! The real binary, from outside.

mod accounts;
mod bad_input;
mod clients;
mod conversations;
mod life;
mod limits;
mod messages;
mod operations;
mod secrets;
mod servers;
mod settings;
mod support;
mod tls;
