//! Implementations of the core's ports, one module a technology.

pub mod dead_letters;
pub mod disk;
pub mod file_log;
pub mod folder;
pub mod lsm;
pub mod sqlite;
