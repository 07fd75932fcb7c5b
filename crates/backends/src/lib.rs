//! Implementations of the core's ports, one module a technology.

pub mod folder;
pub mod sqlite;
