//! Two real browsers on the page, against the real binary.

#[path = "program/mod.rs"]
mod program;

use std::process::Command;

#[test]
fn two_people_chat_in_two_browsers_and_miss_nothing_while_offline() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/web.sh");
    let status = Command::new("bash")
        .arg(script)
        .env("TIDINGS_BIN", program::path())
        .env("CHAT_BINARY", program::started())
        .status();
    assert!(
        status.expect("a shell to run the browsers with").success(),
        "the browsers failed, or can't be installed: see above"
    );
}
