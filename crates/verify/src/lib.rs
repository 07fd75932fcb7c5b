//! A checker of recorded histories for every promise.
