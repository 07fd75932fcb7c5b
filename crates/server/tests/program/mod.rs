//! Which program is tested: the real binary, or one with its command line that `TIDINGS_TEST_PROGRAM`
//! names, as `cluster/three` (docs/cluster.md).

// Not every test asks for all of it.
#![allow(dead_code)]

use std::ffi::OsString;
use std::process::Command;

const BINARY: &str = env!("CARGO_BIN_EXE_tidings");

/// Whether this isn't the binary alone.
pub fn is_another() -> bool {
    std::env::var_os("TIDINGS_TEST_PROGRAM").is_some()
}

/// Its path.
pub fn path() -> OsString {
    std::env::var_os("TIDINGS_TEST_PROGRAM").unwrap_or_else(|| BINARY.into())
}

/// What the other program starts in its turn.
pub fn started() -> OsString {
    std::env::var_os("CHAT_BINARY").unwrap_or_else(|| BINARY.into())
}

/// To start it, without this test's own settings, which aren't its.
pub fn command() -> Command {
    let mut command = Command::new(path());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDINGS_") {
            command.env_remove(name);
        }
    }
    command.env("CHAT_BINARY", started());
    command
}
