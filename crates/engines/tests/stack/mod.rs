//! Whether the engines of `cluster/stack` run, which these tests need.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Whether something listens there. Where CI says `TIDINGS_STACK_REQUIRED`, it must; elsewhere the test
/// says that it proved nothing.
pub fn runs(engine: &str, address: &str) -> bool {
    let address: SocketAddr = address.parse().expect("an address in a test");
    if TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok() {
        return true;
    }
    assert!(
        std::env::var_os("TIDINGS_STACK_REQUIRED").is_none(),
        "{engine} doesn't answer at {address}: cluster/stack up"
    );
    eprintln!("SKIPPED: {engine} doesn't run at {address}; `cluster/stack up` starts it");
    false
}
