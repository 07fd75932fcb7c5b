//! Two real browsers on the page, against the real binary.

use std::process::Command;

#[test]
fn two_people_chat_in_two_browsers_and_miss_nothing_while_offline() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/web.sh");
    let status = Command::new("bash")
        .arg(script)
        .env("TIDINGS_BIN", env!("CARGO_BIN_EXE_tidings"))
        .status();
    assert!(
        status.expect("a shell to run the browsers with").success(),
        "the browsers failed, or can't be installed: see above"
    );
}
