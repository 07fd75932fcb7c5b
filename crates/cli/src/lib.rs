//! Operator commands: replay, bench, verify.
