//! The Autobahn cases against the gateway's own WebSocket code: every one OK or informational.

use std::process::Command;

#[test]
fn every_autobahn_case_is_ok_or_informational() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance.sh");
    let status = Command::new("sh")
        .arg(script)
        .status()
        .expect("a shell to run the cases with");
    assert!(
        status.success(),
        "the cases failed, or what runs them can't be installed: see above"
    );
}
