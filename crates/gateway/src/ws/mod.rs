//! WebSocket by RFC 6455, server side, without I/O.
//!
//! Invariants:
//! 1. A session between two frames holds no buffer: [`Decoder`] is one empty pointer then.
//! 2. Nothing is allocated for a length that a header only claims; buffers grow with bytes
//!    received, up to the limits that were checked against the header.
//! 3. Text is judged as it arrives: the first byte that can't belong to UTF-8 ends the session.
//! 4. No extension is ever negotiated, so every RSV bit is an error.

mod decoder;
mod frame;
pub mod handshake;
mod mask;
mod utf8;

pub use decoder::{Decoder, Event, Limits, Violation};
pub use frame::{FrameBuilder, Opcode, close_code_is_valid, close_frame, server_frame};
pub use mask::unmask;
pub use utf8::{InvalidUtf8, Utf8};
