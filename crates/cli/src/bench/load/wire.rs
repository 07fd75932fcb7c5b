//! Frames as cheaply as a load generator needs them: it shares the machine with the server.

use prost::Message;
use tidings_protocol::wire::{ClientFrame, Command, Update, command};

/// What a server's frame holds, as far as a load generator cares.
pub enum Item<'a> {
    Event {
        conversation: u64,
        seq: u64,
        body: &'a [u8],
    },
    Other(Update),
}

/// One WebSocket frame from the server.
pub struct Frame<'a> {
    pub opcode: u8,
    pub payload: &'a [u8],
    /// Bytes with the header.
    pub whole: usize,
}

/// The frame at the beginning of `bytes`; `None`: more bytes are needed.
pub fn frame(bytes: &[u8]) -> Option<Frame<'_>> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let (head, len): (usize, usize) = match second & 0x7f {
        126 => (
            4,
            usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)),
        ),
        127 => (
            10,
            usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?,
        ),
        len => (2, usize::from(len)),
    };
    let payload = bytes.get(head..head.checked_add(len)?)?;
    Some(Frame {
        opcode: first & 0x0f,
        payload,
        whole: head + len,
    })
}

/// Appends a client's frame. The mask is zero: it must be there, but nothing needs hiding here.
pub fn client_frame(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
}

/// Appends commands as one frame.
pub fn commands(commands: Vec<command::Command>, out: &mut Vec<u8>) {
    let commands = commands
        .into_iter()
        .map(|c| Command {
            r#ref: 0,
            command: Some(c),
        })
        .collect();
    client_frame(2, &ClientFrame { commands }.encode_to_vec(), out);
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(varint(bytes)?).ok()?;
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

fn fixed64(bytes: &mut &[u8]) -> Option<u64> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*taken))
}

/// Key of `updates` in a frame, and of `event` in an update.
const UPDATES: u8 = 1 << 3 | 2;
const EVENT: u8 = 4 << 3 | 2;

/// Hands each update of a frame to `each`; `None`: the frame is malformed.
pub fn items<'a>(mut payload: &'a [u8], mut each: impl FnMut(Item<'a>)) -> Option<()> {
    while let Some((&key, rest)) = payload.split_first() {
        payload = rest;
        if key != UPDATES {
            return None;
        }
        let update = take(&mut payload)?;
        each(match update.split_first() {
            Some((&EVENT, mut rest)) => event(take(&mut rest)?)?,
            _ => Item::Other(Update::decode(update).ok()?),
        });
    }
    Some(())
}

fn event(mut bytes: &[u8]) -> Option<Item<'_>> {
    let (mut conversation, mut seq, mut body) = (0, 0, &bytes[..0]);
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        match (key >> 3, key & 7) {
            (1, 1) => conversation = fixed64(&mut bytes)?,
            (2, 0) => seq = varint(&mut bytes)?,
            (10, 2) => body = take(&mut bytes)?,
            (_, 0) => drop(varint(&mut bytes)?),
            (_, 1) => drop(fixed64(&mut bytes)?),
            (_, 2) => drop(take(&mut bytes)?),
            _ => return None,
        }
    }
    Some(Item::Event {
        conversation,
        seq,
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidings_protocol::wire::{Event, ServerFrame, update};

    #[test]
    fn events_are_read_as_the_codec_writes_them() {
        let event = Event {
            conversation: 7,
            seq: 300,
            ts: 5,
            user: 9,
            sender: 4,
            grant: 1,
            counter: 2,
            id: 3,
            body: "hello".into(),
            ..Event::default()
        };
        let updates = vec![
            Update {
                r#ref: 0,
                update: Some(update::Update::Event(event)),
            },
            Update {
                r#ref: 1,
                update: Some(update::Update::Lagging(Default::default())),
            },
        ];
        let bytes = ServerFrame { updates }.encode_to_vec();
        let mut seen = Vec::new();
        let read = items(&bytes, |item| {
            seen.push(match item {
                Item::Event {
                    conversation,
                    seq,
                    body,
                } => (conversation, seq, body.len()),
                Item::Other(update) => (0, update.r#ref, 0),
            })
        });
        assert_eq!((read, seen), (Some(()), vec![(7, 300, 5), (0, 1, 0)]));
        assert!(
            items(&bytes[..bytes.len() - 1], |_| ()).is_none(),
            "a cut frame is refused"
        );
    }

    #[test]
    fn frames_are_cut_at_their_lengths() {
        for len in [0, 125, 126, 65_535, 65_536] {
            let mut bytes = Vec::new();
            client_frame(2, &vec![7; len], &mut bytes);
            // As a server would write it: without the mask.
            bytes[1] &= 0x7f;
            let head = bytes.len() - len - 4;
            bytes.drain(head..head + 4);
            assert_eq!(
                frame(&bytes).map(|f| (f.opcode, f.payload.len(), f.whole)),
                Some((2, len, bytes.len()))
            );
            assert!(frame(&bytes[..bytes.len() - 1]).is_none());
        }
    }
}
