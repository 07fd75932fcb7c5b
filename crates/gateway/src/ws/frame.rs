//! Opcodes, close codes and the frames that the server writes.

use bytes::Bytes;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// What a frame is (RFC 6455 section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// A further piece of a fragmented message.
    Continuation,
    /// UTF-8 text.
    Text,
    /// Bytes.
    Binary,
    /// The end of the session.
    Close,
    /// A question whether the peer is there.
    Ping,
    /// The answer to a ping.
    Pong,
}

impl Opcode {
    /// Whether frames of this kind may come between the fragments of a message.
    pub fn is_control(self) -> bool {
        matches!(self, Opcode::Close | Opcode::Ping | Opcode::Pong)
    }

    /// The opcode of the lower four bits of `byte`; none when it is reserved.
    pub(super) fn from_bits(byte: u8) -> Option<Opcode> {
        Some(match OpCode::from(byte & 0x0f) {
            OpCode::Data(Data::Continue) => Opcode::Continuation,
            OpCode::Data(Data::Text) => Opcode::Text,
            OpCode::Data(Data::Binary) => Opcode::Binary,
            OpCode::Control(Control::Close) => Opcode::Close,
            OpCode::Control(Control::Ping) => Opcode::Ping,
            OpCode::Control(Control::Pong) => Opcode::Pong,
            OpCode::Data(Data::Reserved(_)) | OpCode::Control(Control::Reserved(_)) => return None,
        })
    }

    fn on_wire(self) -> OpCode {
        match self {
            Opcode::Continuation => OpCode::Data(Data::Continue),
            Opcode::Text => OpCode::Data(Data::Text),
            Opcode::Binary => OpCode::Data(Data::Binary),
            Opcode::Close => OpCode::Control(Control::Close),
            Opcode::Ping => OpCode::Control(Control::Ping),
            Opcode::Pong => OpCode::Control(Control::Pong),
        }
    }
}

/// The longest header of a frame that a server writes: 2 bytes and a 64-bit length, no mask.
const HEADER_BYTES_MAX: usize = 10;

fn header(opcode: Opcode) -> FrameHeader {
    FrameHeader {
        is_final: true,
        opcode: opcode.on_wire(),
        ..FrameHeader::default()
    }
}

/// A whole, final, unmasked frame: header and payload in one allocation, shared by every socket
/// that it is written to.
///
/// Control frames carry at most 125 bytes; that is the caller's to keep.
pub fn server_frame(opcode: Opcode, payload: &[u8]) -> Bytes {
    let header = header(opcode);
    let length = payload.len() as u64;
    let mut frame = Vec::with_capacity(header.len(length) + payload.len());
    header
        .format(length, &mut frame)
        .expect("a Vec takes every write");
    frame.extend_from_slice(payload);
    Bytes::from(frame)
}

/// Encodes a payload in place behind room for the header, so that building a frame copies nothing.
#[derive(Debug)]
pub struct FrameBuilder {
    buffer: Vec<u8>,
}

impl FrameBuilder {
    /// An empty payload with room for `payload_bytes`.
    pub fn with_capacity(payload_bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(HEADER_BYTES_MAX + payload_bytes);
        buffer.resize(HEADER_BYTES_MAX, 0);
        FrameBuilder { buffer }
    }

    /// Where the payload is appended. What it already holds must stay.
    pub fn payload(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// The bytes of payload appended so far.
    pub fn payload_bytes(&self) -> usize {
        self.buffer.len() - HEADER_BYTES_MAX
    }

    /// The finished frame, ready to be sent to any number of sessions.
    pub fn finish(mut self, opcode: Opcode) -> Bytes {
        let header = header(opcode);
        let length = self.payload_bytes() as u64;
        let start = HEADER_BYTES_MAX - header.len(length);
        header
            .format(length, &mut &mut self.buffer[start..HEADER_BYTES_MAX])
            .expect("the room in front holds the longest header");
        Bytes::from(self.buffer).slice(start..)
    }
}

/// A close frame with a code and a reason, the reason cut at the 123 bytes that fit.
pub fn close_frame(code: u16, reason: &str) -> Bytes {
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut payload = [0; 125];
    payload[..2].copy_from_slice(&code.to_be_bytes());
    payload[2..2 + end].copy_from_slice(&reason.as_bytes()[..end]);
    server_frame(Opcode::Close, &payload[..2 + end])
}

/// Whether a peer may send `code` (RFC 6455 section 7.4 and the IANA registry; 1005, 1006 and
/// 1015 are for local use, the ranges of extensions below 3000 are unassigned).
pub fn close_code_is_valid(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_frames_equal_copied_frames_at_every_header_size() {
        for size in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![7; size];
            let mut builder = FrameBuilder::with_capacity(size);
            builder.payload().extend_from_slice(&payload);
            let frame = builder.finish(Opcode::Binary);
            assert_eq!(
                frame,
                server_frame(Opcode::Binary, &payload),
                "{size} bytes"
            );
            assert_eq!(frame[0], 0x82);
            assert_eq!(frame[1] & 0x80, 0, "a server never masks");
        }
    }

    #[test]
    fn a_long_close_reason_is_cut_at_a_character() {
        let frame = close_frame(4004, &"é".repeat(100));
        assert_eq!(usize::from(frame[1]), 2 + 122);
        assert_eq!(&frame[2..4], &4004u16.to_be_bytes());
        assert!(std::str::from_utf8(&frame[4..]).is_ok());
    }
}
