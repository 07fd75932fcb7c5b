//! The tidings server.
fn main() {}
