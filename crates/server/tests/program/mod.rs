//! Which program is tested: the real binary, or one with its command line that `TIDINGS_TEST_PROGRAM`
//! names, as `cluster/three` (docs/cluster.md).

// Not every test asks for all of it.
#![allow(dead_code)]

use std::ffi::OsString;
use std::process::Command;

const BINARY: &str = env!("CARGO_BIN_EXE_tidings");

/// Why something can't be tested where the program isn't one server alone. All there is of it.
#[derive(Clone, Copy)]
pub enum Alone {
    /// It looks into the embedded data folder, or opens it twice: others have none.
    Folder,
    /// A balancer reads requests first: it mends bare line feeds and folded headers, which RFC
    /// 9112 (2.2, 5.2) allows.
    Bytes,
}

/// Whether the program is the binary alone; else says what isn't tested.
pub fn is_alone(why: Alone) -> bool {
    let another = std::env::var_os("TIDINGS_TEST_PROGRAM");
    if let Some(program) = &another {
        let what = match why {
            Alone::Folder => "the embedded folder",
            Alone::Bytes => "bare line feeds, folded headers",
        };
        println!("not tested with {}: {what}", program.display());
    }
    another.is_none()
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
