//! Frames out of bytes, as they come.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;

use super::frame::{Opcode, close_code_is_valid};
use super::mask::unmask;
use super::utf8::{InvalidUtf8, Utf8};

/// What a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest payload of one frame, in bytes.
    pub frame_bytes_max: usize,
    /// The longest message over all its fragments, in bytes.
    pub message_bytes_max: usize,
    /// The most fragments of one message.
    pub fragments_max: u32,
}

impl Default for Limits {
    /// 256 KiB and 1,024 fragments (security checklist, row 10).
    fn default() -> Self {
        Limits {
            frame_bytes_max: 256 << 10,
            message_bytes_max: 256 << 10,
            fragments_max: 1024,
        }
    }
}

/// Why a session ends by the client's own bytes; each kind is a close code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Framing that RFC 6455 forbids: 1002.
    #[error("{0}")]
    Protocol(&'static str),
    /// Text that isn't UTF-8: 1007.
    #[error("text is not UTF-8")]
    Utf8,
    /// A frame or message above the limits: 1009.
    #[error("message is too big")]
    TooBig,
}

impl Violation {
    /// The close code that tells the client.
    pub fn code(self) -> u16 {
        match self {
            Violation::Protocol(_) => 1002,
            Violation::Utf8 => 1007,
            Violation::TooBig => 1009,
        }
    }
}

impl From<InvalidUtf8> for Violation {
    fn from(_: InvalidUtf8) -> Self {
        Violation::Utf8
    }
}

/// One frame's worth of news. Payloads are unmasked and lie in the caller's buffer when the whole
/// frame does, else in the decoder's.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole message: [`Opcode::Text`] (valid UTF-8) or [`Opcode::Binary`].
    Message {
        /// Text or Binary.
        opcode: Opcode,
        /// The message over all its fragments.
        payload: &'a mut [u8],
    },
    /// A fragment that doesn't end its message.
    Fragment,
    /// To be answered by a pong of the same payload.
    Ping(&'a [u8]),
    /// An answer to a ping, or unasked-for.
    Pong(&'a [u8]),
    /// The client says goodbye; a valid code and reason, if it gave any.
    Close {
        /// The client's close code.
        code: Option<u16>,
        /// Its reason, often empty.
        reason: &'a str,
    },
}

/// A frame whose payload isn't all there.
#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: Opcode,
    is_final: bool,
    mask: [u8; 4],
    len: usize,
    got: usize,
}

/// A message whose last frame isn't all there.
#[derive(Debug)]
struct Message {
    opcode: Opcode,
    utf8: Utf8,
    fragments: u32,
}

/// What is kept while something is incomplete.
#[derive(Debug)]
struct Partial {
    /// The first bytes of a header that was cut; 14 is the longest.
    head: [u8; 14],
    head_len: u8,
    frame: Option<Frame>,
    message: Option<Message>,
    /// The message's payload so far, unmasked.
    buffer: Vec<u8>,
    /// The payload so far of a control frame that was cut.
    control: [u8; 125],
}

impl Partial {
    fn boxed() -> Box<Partial> {
        Box::new(Partial {
            head: [0; 14],
            head_len: 0,
            frame: None,
            message: None,
            buffer: Vec::new(),
            control: [0; 125],
        })
    }

    fn is_idle(&self) -> bool {
        self.head_len == 0 && self.frame.is_none() && self.message.is_none()
    }
}

/// The receiving half of one session: one pointer, empty between frames.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
}

impl Decoder {
    /// Whether nothing is incomplete.
    pub fn is_idle(&self) -> bool {
        self.partial.as_deref().is_none_or(Partial::is_idle)
    }

    /// Consumes `input` up to the end of the next frame and says how many bytes that were.
    ///
    /// Call it again with the rest until the event is `None`: all of `input` is consumed then,
    /// and memory of a delivered message is released. Payload bytes in `input` are overwritten.
    /// After an error the session is over.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut [u8],
        limits: &Limits,
    ) -> Result<(usize, Option<Event<'a>>), Violation> {
        if self.partial.as_deref().is_some_and(Partial::is_idle) {
            self.partial = None;
        }
        let open = self.partial.as_deref().and_then(|partial| partial.frame);
        let (head_used, frame) = match open {
            Some(frame) => (0, frame),
            None => match self.read_header(input, limits)? {
                (used, Some(frame)) => (used, frame),
                (used, None) => return Ok((used, None)),
            },
        };
        let take = (frame.len - frame.got).min(input.len() - head_used);
        let used = head_used + take;
        let payload = &mut input[head_used..used];
        unmask(payload, frame.mask, frame.got);
        let got = frame.got + take;
        let whole = take == frame.len;

        if whole && (frame.opcode.is_control() || self.is_single(&frame)) {
            // The common case: nothing is copied.
            if let Some(partial) = &mut self.partial {
                partial.frame = None;
            }
            return Ok((used, Some(whole_event(frame.opcode, payload)?)));
        }

        let partial = self.partial.get_or_insert_with(Partial::boxed);
        partial.frame = (got < frame.len).then_some(Frame { got, ..frame });
        if frame.opcode.is_control() {
            partial.control[frame.got..got].copy_from_slice(payload);
            if got < frame.len {
                return Ok((used, None));
            }
            return Ok((
                used,
                Some(whole_event(frame.opcode, &mut partial.control[..got])?),
            ));
        }

        let message = partial.message.get_or_insert_with(|| Message {
            opcode: frame.opcode,
            utf8: Utf8::default(),
            fragments: 0,
        });
        if message.opcode == Opcode::Text {
            message.utf8.feed(payload)?;
        }
        partial.buffer.extend_from_slice(payload);
        if got < frame.len {
            return Ok((used, None));
        }
        message.fragments += 1;
        if !frame.is_final {
            return Ok((used, Some(Event::Fragment)));
        }
        if !message.utf8.is_complete() {
            return Err(Violation::Utf8);
        }
        let opcode = message.opcode;
        partial.message = None;
        Ok((
            used,
            Some(Event::Message {
                opcode,
                payload: &mut partial.buffer,
            }),
        ))
    }

    fn is_single(&self, frame: &Frame) -> bool {
        frame.is_final
            && self
                .partial
                .as_deref()
                .is_none_or(|partial| partial.message.is_none())
    }

    /// Takes a header from `input`, together with bytes of it that came earlier.
    fn read_header(
        &mut self,
        input: &[u8],
        limits: &Limits,
    ) -> Result<(usize, Option<Frame>), Violation> {
        if let Some(partial) = self.partial.as_deref_mut()
            && partial.head_len > 0
        {
            let had = usize::from(partial.head_len);
            let added = (partial.head.len() - had).min(input.len());
            partial.head[had..had + added].copy_from_slice(&input[..added]);
            let parsed = parse_header(
                &partial.head[..had + added],
                partial.message.as_ref(),
                partial.buffer.len(),
                limits,
            )?;
            return Ok(match parsed {
                Some((size, frame)) => {
                    partial.head_len = 0;
                    (size - had, Some(frame))
                }
                None => {
                    partial.head_len = (had + added) as u8;
                    (added, None)
                }
            });
        }
        let partial = self.partial.as_deref();
        let message = partial.and_then(|partial| partial.message.as_ref());
        let buffered = partial.map_or(0, |partial| partial.buffer.len());
        if let Some((size, frame)) = parse_header(input, message, buffered, limits)? {
            return Ok((size, Some(frame)));
        }
        if !input.is_empty() {
            let partial = self.partial.get_or_insert_with(Partial::boxed);
            partial.head[..input.len()].copy_from_slice(input);
            partial.head_len = input.len() as u8;
        }
        Ok((input.len(), None))
    }
}

/// A header at the start of `bytes` and its size, none while it is incomplete. What is wrong by
/// the bytes that are there is an error even then.
fn parse_header(
    bytes: &[u8],
    message: Option<&Message>,
    buffered: usize,
    limits: &Limits,
) -> Result<Option<(usize, Frame)>, Violation> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    if first & 0x70 != 0 {
        return Err(Violation::Protocol("RSV bit without an extension"));
    }
    let opcode = Opcode::from_bits(first).ok_or(Violation::Protocol("reserved opcode"))?;
    let is_final = first & 0x80 != 0;
    match (opcode, message) {
        (Opcode::Continuation, None) => {
            return Err(Violation::Protocol("continuation without a start"));
        }
        (Opcode::Text | Opcode::Binary, Some(_)) => {
            return Err(Violation::Protocol("new message inside a fragmented one"));
        }
        _ if opcode.is_control() && !is_final => {
            return Err(Violation::Protocol("fragmented control frame"));
        }
        _ => {}
    }
    let Some(&second) = bytes.get(1) else {
        return Ok(None);
    };
    if second & 0x80 == 0 {
        return Err(Violation::Protocol("client frame without a mask"));
    }
    if opcode.is_control() && second & 0x7f > 125 {
        return Err(Violation::Protocol("control frame above 125 bytes"));
    }

    let mut cursor = Cursor::new(bytes);
    let parsed = FrameHeader::parse(&mut cursor)
        .map_err(|_| Violation::Protocol("malformed frame header"))?;
    let Some((header, len)) = parsed else {
        return Ok(None);
    };
    let size = cursor.position() as usize;
    if header.len(len) != size {
        return Err(Violation::Protocol("length not in its shortest form"));
    }
    let fragments = message.map_or(0, |message| message.fragments);
    let len = usize::try_from(len).map_err(|_| Violation::TooBig)?;
    if !opcode.is_control()
        && (len > limits.frame_bytes_max
            || len > limits.message_bytes_max.saturating_sub(buffered)
            || fragments >= limits.fragments_max)
    {
        return Err(Violation::TooBig);
    }
    let mask = header
        .mask
        .ok_or(Violation::Protocol("client frame without a mask"))?;
    Ok(Some((
        size,
        Frame {
            opcode,
            is_final,
            mask,
            len,
            got: 0,
        },
    )))
}

/// The event of a frame whose payload is all there and that is no part of a fragmented message.
fn whole_event(opcode: Opcode, payload: &mut [u8]) -> Result<Event<'_>, Violation> {
    Ok(match opcode {
        Opcode::Text => {
            if simdutf8::basic::from_utf8(payload).is_err() {
                return Err(Violation::Utf8);
            }
            Event::Message { opcode, payload }
        }
        Opcode::Binary | Opcode::Continuation => Event::Message { opcode, payload },
        Opcode::Ping => Event::Ping(payload),
        Opcode::Pong => Event::Pong(payload),
        Opcode::Close => return close_event(payload),
    })
}

fn close_event(payload: &[u8]) -> Result<Event<'_>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return match payload.len() {
            0 => Ok(Event::Close {
                code: None,
                reason: "",
            }),
            _ => Err(Violation::Protocol("close frame of one byte")),
        };
    };
    let code = u16::from_be_bytes(*code);
    if !close_code_is_valid(code) {
        return Err(Violation::Protocol("close code that may not be sent"));
    }
    let reason = simdutf8::basic::from_utf8(reason).map_err(|_| Violation::Utf8)?;
    Ok(Event::Close {
        code: Some(code),
        reason,
    })
}

#[cfg(test)]
mod tests;
