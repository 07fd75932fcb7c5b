//! The bytes of a stored state and of stored operations.
//!
//! Numbers are little-endian and of fixed width, lists and bodies have their length (u32)
//! in front, an operation begins with its number. A reader takes exactly the bytes there
//! are, so a payload with something behind it is none of this version's.

use bytes::Bytes;
use tidings_protocol::wire::{Encoding, Kind};

use crate::saved::{Cursor, Lane, PersistOp, Queued, Refused, Saved};

pub(super) fn put_saved(out: &mut Vec<u8>, saved: &Saved) {
    u32(out, saved.epoch);
    u64(out, saved.sender);
    u64(out, saved.last_local);
    count(out, saved.lanes.len());
    for (conversation, lane) in &saved.lanes {
        u64(out, *conversation);
        for number in [
            lane.sender,
            lane.grant,
            lane.acked,
            lane.acked_id,
            lane.acked_seq,
            lane.answered_at,
        ] {
            u64(out, number);
        }
        out.push(lane.over.into());
        count(out, lane.numbered);
        count(out, lane.queue.len());
        lane.queue
            .iter()
            .for_each(|message| put_message(out, message));
    }
    put_cursors(out, saved.cursors.iter().map(|(c, k)| (*c, k)));
}

pub(super) fn saved(payload: &[u8]) -> Option<Saved> {
    let mut r = Reader(payload);
    let (epoch, sender, last_local) = (r.u32()?, r.u64()?, r.u64()?);
    let mut saved = Saved {
        epoch,
        sender,
        last_local,
        ..Saved::default()
    };
    for _ in 0..r.u32()? {
        let conversation = r.u64()?;
        let mut lane = Lane {
            sender: r.u64()?,
            grant: r.u64()?,
            acked: r.u64()?,
            acked_id: r.u64()?,
            acked_seq: r.u64()?,
            answered_at: r.u64()?,
            over: r.bool()?,
            numbered: r.u32()? as usize,
            ..Lane::default()
        };
        for _ in 0..r.u32()? {
            lane.queue.push_back(r.message()?);
        }
        if lane.numbered > lane.queue.len() {
            return None;
        }
        saved.lanes.insert(conversation, lane);
    }
    saved.cursors.extend(r.cursors()?);
    r.end().then_some(saved)
}

pub(super) fn put_op(out: &mut Vec<u8>, op: &PersistOp) {
    match op {
        PersistOp::Sender { sender } => {
            out.push(1);
            u64(out, *sender);
        }
        PersistOp::Epoch { epoch } => {
            out.push(2);
            u32(out, *epoch);
        }
        PersistOp::Reset { epoch, sender } => {
            out.push(3);
            u32(out, *epoch);
            u64(out, *sender);
        }
        PersistOp::Queued {
            conversation,
            message,
        } => {
            out.push(4);
            u64(out, *conversation);
            put_message(out, message);
        }
        PersistOp::Under {
            conversation,
            sender,
            grant,
            at,
        } => {
            out.push(5);
            [*conversation, *sender, *grant, *at]
                .into_iter()
                .for_each(|n| u64(out, n));
        }
        PersistOp::Numbered {
            conversation,
            count,
        } => {
            out.push(6);
            u64(out, *conversation);
            u32(out, *count);
        }
        PersistOp::Acked {
            conversation,
            counter,
            id,
            seq,
            at,
        } => {
            out.push(7);
            for number in [*conversation, *counter, *id, *seq, *at] {
                u64(out, number);
            }
        }
        PersistOp::Over { conversation } => {
            out.push(8);
            u64(out, *conversation);
        }
        PersistOp::Replaced {
            conversation,
            counter,
            refused,
        } => {
            out.push(9);
            [*conversation, *counter, refused.id, refused.chained]
                .into_iter()
                .for_each(|n| u64(out, n));
            bytes(out, refused.code.as_bytes());
        }
        PersistOp::Settled {
            conversation,
            local,
        } => {
            out.push(10);
            u64(out, *conversation);
            u64(out, *local);
        }
        PersistOp::Fresh {
            conversation,
            sender,
            decided,
        } => {
            out.push(11);
            u64(out, *conversation);
            u64(out, *sender);
            count(out, decided.len());
            decided.iter().for_each(|local| u64(out, *local));
        }
        PersistOp::Cursors { rows } => {
            out.push(12);
            put_cursors(out, rows.iter().map(|(c, k)| (*c, k)));
        }
    }
}

pub(super) fn op(payload: &[u8]) -> Option<PersistOp> {
    let mut r = Reader(payload);
    let op = match r.byte()? {
        1 => PersistOp::Sender { sender: r.u64()? },
        2 => PersistOp::Epoch { epoch: r.u32()? },
        3 => PersistOp::Reset {
            epoch: r.u32()?,
            sender: r.u64()?,
        },
        4 => PersistOp::Queued {
            conversation: r.u64()?,
            message: r.message()?,
        },
        5 => PersistOp::Under {
            conversation: r.u64()?,
            sender: r.u64()?,
            grant: r.u64()?,
            at: r.u64()?,
        },
        6 => PersistOp::Numbered {
            conversation: r.u64()?,
            count: r.u32()?,
        },
        7 => PersistOp::Acked {
            conversation: r.u64()?,
            counter: r.u64()?,
            id: r.u64()?,
            seq: r.u64()?,
            at: r.u64()?,
        },
        8 => PersistOp::Over {
            conversation: r.u64()?,
        },
        9 => PersistOp::Replaced {
            conversation: r.u64()?,
            counter: r.u64()?,
            refused: Refused {
                id: r.u64()?,
                chained: r.u64()?,
                code: r.text()?,
            },
        },
        10 => PersistOp::Settled {
            conversation: r.u64()?,
            local: r.u64()?,
        },
        11 => {
            let (conversation, sender) = (r.u64()?, r.u64()?);
            let mut decided = Vec::new();
            for _ in 0..r.u32()? {
                decided.push(r.u64()?);
            }
            PersistOp::Fresh {
                conversation,
                sender,
                decided,
            }
        }
        12 => PersistOp::Cursors { rows: r.cursors()? },
        _ => return None,
    };
    r.end().then_some(op)
}

fn put_message(out: &mut Vec<u8>, message: &Queued) {
    u64(out, message.local);
    u64(out, message.id);
    // Both enums have values below 32 by the schema.
    out.push(message.kind as u8);
    out.push(message.encoding as u8);
    u32(out, message.plain_bytes);
    u64(out, message.chained);
    bytes(out, &message.body);
    out.push(message.refused.is_some().into());
    if let Some(refused) = &message.refused {
        u64(out, refused.id);
        u64(out, refused.chained);
        bytes(out, refused.code.as_bytes());
    }
}

fn put_cursors<'a>(out: &mut Vec<u8>, rows: impl ExactSizeIterator<Item = (u64, &'a Cursor)>) {
    count(out, rows.len());
    for (conversation, cursor) in rows {
        [conversation, cursor.have, cursor.read, cursor.looked]
            .into_iter()
            .for_each(|n| u64(out, n));
        count(out, cursor.holes.len());
        for (from, to) in &cursor.holes {
            u64(out, *from);
            u64(out, *to);
        }
    }
}

fn u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn count(out: &mut Vec<u8>, count: usize) {
    u32(
        out,
        u32::try_from(count).expect("an outbox and its lists are bounded far below 2^32"),
    );
}

fn bytes(out: &mut Vec<u8>, content: &[u8]) {
    count(out, content.len());
    out.extend_from_slice(content);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[b]| b)
    }

    fn bool(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        let (content, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(content)
    }

    fn text(&mut self) -> Option<String> {
        Some(std::str::from_utf8(self.bytes()?).ok()?.to_owned())
    }

    fn message(&mut self) -> Option<Queued> {
        Some(Queued {
            local: self.u64()?,
            id: self.u64()?,
            kind: Kind::try_from(i32::from(self.byte()?)).ok()?,
            encoding: Encoding::try_from(i32::from(self.byte()?)).ok()?,
            plain_bytes: self.u32()?,
            chained: self.u64()?,
            body: Bytes::copy_from_slice(self.bytes()?),
            refused: match self.bool()? {
                true => Some(Refused {
                    id: self.u64()?,
                    chained: self.u64()?,
                    code: self.text()?,
                }),
                false => None,
            },
        })
    }

    fn cursors(&mut self) -> Option<Vec<(u64, Cursor)>> {
        let mut rows = Vec::new();
        for _ in 0..self.u32()? {
            let conversation = self.u64()?;
            let mut cursor = Cursor {
                have: self.u64()?,
                read: self.u64()?,
                looked: self.u64()?,
                ..Cursor::default()
            };
            for _ in 0..self.u32()? {
                cursor.holes.push((self.u64()?, self.u64()?));
            }
            rows.push((conversation, cursor));
        }
        Some(rows)
    }

    fn end(&self) -> bool {
        self.0.is_empty()
    }
}
