//! A light connection: protobuf over a WebSocket on a nonblocking socket, nothing held while idle.
//!
//! 2,000 of them share two cores with the server they load, so events are skipped by their
//! length once their seq is known; all other updates are decoded.

use std::io::{self, Cursor, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use tidings_protocol::wire::Update;
use tidings_protocol::{Format, decode_server_frame, limits};
use tungstenite::handshake::{client::generate_key, derive_accept_key};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// The longest answer to an upgrade that is read.
const UPGRADE_BYTES_MAX: usize = 8 * 1024;
/// The longest frame that is read: a server may be configured above the published default.
const FRAME_BYTES_MAX: u64 = 16 * limits::FRAME_BYTES_MAX as u64;

pub(super) struct Wire {
    pub stream: TcpStream,
    /// The beginning of what isn't whole yet.
    inbound: Vec<u8>,
    outbound: Vec<u8>,
    written: usize,
    /// The `Sec-WebSocket-Accept` that is waited for.
    accept: Option<String>,
    mask: u32,
}

/// What came.
pub(super) enum Heard {
    /// The seq of an event.
    Event(u64),
    /// Anything else.
    Update(Box<Update>),
    /// The server closes, with this code.
    Closed(Option<u16>),
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Wire {
    /// Begins to connect; the upgrade is asked for as soon as the socket can be written.
    pub fn connect(address: SocketAddr, user: u64, mask: u32) -> io::Result<Wire> {
        let stream = TcpStream::connect(address)?;
        // Frames are small and written whole: waiting for more would hold each up for 40 ms.
        stream.set_nodelay(true)?;
        let key = generate_key();
        let request = format!(
            "GET /v1/ws?user={user:016x} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\
             Sec-WebSocket-Protocol: {}\r\n\r\n",
            Format::Proto.subprotocol()
        );
        Ok(Wire {
            stream,
            inbound: Vec::new(),
            outbound: request.into_bytes(),
            written: 0,
            accept: Some(derive_accept_key(key.as_bytes())),
            mask: mask | 1,
        })
    }

    /// Queues one frame of items as `encode_command` appends them.
    pub fn put(&mut self, items: &[u8]) {
        self.frame(OpCode::Data(Data::Binary), items);
    }

    /// Queues a close.
    pub fn put_close(&mut self, code: u16) {
        self.frame(OpCode::Control(Control::Close), &code.to_be_bytes());
    }

    fn frame(&mut self, opcode: OpCode, payload: &[u8]) {
        // xorshift32: peers are told apart, nothing here is secret.
        self.mask ^= self.mask << 13;
        self.mask ^= self.mask >> 17;
        self.mask ^= self.mask << 5;
        let mask = self.mask.to_le_bytes();
        let header = FrameHeader {
            opcode,
            mask: Some(mask),
            ..FrameHeader::default()
        };
        header
            .format(payload.len() as u64, &mut self.outbound)
            .expect("writing to memory does not fail");
        let masked = payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, key)| byte ^ key);
        self.outbound.extend(masked);
    }

    /// Writes what the socket takes. The rest goes on when it is writable again.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.written < self.outbound.len() {
            match self.stream.write(&self.outbound[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Not connected yet: writable will tell.
                Err(e) if e.kind() == io::ErrorKind::NotConnected => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.written = 0;
        self.outbound.clear();
        self.outbound.shrink_to(1024);
        Ok(())
    }

    /// Reads until the socket has nothing more. `scratch` is shared by all connections.
    pub fn read(&mut self, scratch: &mut [u8], heard: &mut Vec<Heard>) -> io::Result<()> {
        loop {
            let count = match self.stream.read(scratch) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            if self.inbound.is_empty() {
                let used = self.take(&scratch[..count], heard)?;
                self.inbound.extend_from_slice(&scratch[used..count]);
            } else {
                let mut inbound = std::mem::take(&mut self.inbound);
                inbound.extend_from_slice(&scratch[..count]);
                let used = self.take(&inbound, heard)?;
                if used < inbound.len() {
                    inbound.drain(..used);
                    self.inbound = inbound;
                }
            }
            // A short read has emptied the socket: epoll(7) tells of what comes after it.
            if count < scratch.len() {
                return Ok(());
            }
        }
    }

    /// Takes what is whole; answers how much that was.
    fn take(&mut self, bytes: &[u8], heard: &mut Vec<Heard>) -> io::Result<usize> {
        let mut used = 0;
        if let Some(accept) = &self.accept {
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
                if bytes.len() > UPGRADE_BYTES_MAX {
                    return Err(bad("a longer answer than an upgrade has"));
                }
                return Ok(0);
            };
            let head = String::from_utf8_lossy(&bytes[..end]);
            if !head.starts_with("HTTP/1.1 101 ") || !head.contains(accept.as_str()) {
                return Err(bad("the upgrade was refused"));
            }
            self.accept = None;
            used = end + 4;
        }
        loop {
            let rest = &bytes[used..];
            let mut cursor = Cursor::new(rest);
            let header = FrameHeader::parse(&mut cursor).map_err(|_| bad("no frame header"))?;
            let Some((header, length)) = header else {
                return Ok(used);
            };
            if length > FRAME_BYTES_MAX {
                return Err(bad("a frame that is too long"));
            }
            let begin = cursor.position() as usize;
            let end = begin + length as usize;
            let Some(payload) = rest.get(begin..end) else {
                return Ok(used);
            };
            used += end;
            match header.opcode {
                OpCode::Data(Data::Binary) if header.is_final => items(payload, heard)?,
                OpCode::Control(Control::Ping) => {
                    self.frame(OpCode::Control(Control::Pong), payload);
                }
                OpCode::Control(Control::Close) => {
                    let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    heard.push(Heard::Closed(code));
                    return Ok(used);
                }
                OpCode::Control(Control::Pong) => {}
                _ => return Err(bad("a frame of a kind the server doesn't send")),
            }
        }
    }
}

/// The updates of one frame.
fn items(mut frame: &[u8], heard: &mut Vec<Heard>) -> io::Result<()> {
    while !frame.is_empty() {
        let whole = frame;
        let (update, rest) = frame
            .strip_prefix(&[0x0a])
            .and_then(|rest| {
                let (length, rest) = varint(rest)?;
                let length = usize::try_from(length).ok()?;
                Some((rest.get(..length)?, rest.get(length..)?))
            })
            .ok_or_else(|| bad("a frame that isn't one"))?;
        frame = rest;
        if let Some(seq) = event_seq(update) {
            heard.push(Heard::Event(seq));
            continue;
        }
        let item = &whole[..whole.len() - rest.len()];
        let updates = decode_server_frame(Format::Proto, item)
            .map_err(|_| bad("an update that can't be read"))?
            .updates;
        heard.extend(updates.into_iter().map(|u| Heard::Update(Box::new(u))));
    }
    Ok(())
}

/// The seq of a pushed event, if the update is one and laid out as usual: field 4, in it a
/// `fixed64` of field 1, then field 2.
fn event_seq(update: &[u8]) -> Option<u64> {
    let (_, event) = varint(update.strip_prefix(&[0x22])?)?;
    let (seq, _) = varint(
        event
            .strip_prefix(&[0x09])?
            .get(8..)?
            .strip_prefix(&[0x10])?,
    )?;
    Some(seq)
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (place, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Some((value, &bytes[place + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidings_protocol::encode_update;
    use tidings_protocol::wire::{Event, Pong, Update, update};

    #[test]
    fn events_give_their_seq_and_other_updates_are_decoded() {
        let event = update::Update::Event(Event {
            conversation: 7,
            seq: 300,
            body: "hello".into(),
            ..Event::default()
        });
        let pong = update::Update::Pong(Pong { server_time: 5 });
        let mut frame = Vec::new();
        for update in [event, pong] {
            let update = Update {
                r#ref: 0,
                update: Some(update),
            };
            encode_update(Format::Proto, &update, &mut frame);
        }
        let mut heard = Vec::new();
        items(&frame, &mut heard).expect("a good frame");
        let [Heard::Event(300), Heard::Update(update)] = &heard[..] else {
            panic!("an event and an update");
        };
        assert!(matches!(update.update, Some(update::Update::Pong(_))));
        assert!(items(&frame[..frame.len() - 1], &mut heard).is_err());
    }
}
