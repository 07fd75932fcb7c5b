//! Frames, codes and versions: the only types serialised for clients.

/// The messages of `proto/tidings.proto`.
#[allow(missing_docs)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/tidings.v1.rs"));
}
