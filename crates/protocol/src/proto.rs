//! The protobuf form where prost's own would allocate or copy: a `send` is read
//! in place, an event is written from borrowed parts. Both give the same as
//! prost does, which the property tests hold them to.

use std::borrow::Cow;

use bytes::{Buf, BufMut};
use prost::Message;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint,
    encoded_len_varint, fixed64, skip_field, uint64,
};

use crate::codes::ErrorCode;
use crate::command::{CommandRef, RawSend, Request, check_other};
use crate::error::DecodeError;
use crate::event::EventRef;
use crate::limits::COMMANDS_PER_FRAME_MAX;
use crate::wire::{self, Members, command};

/// Field numbers of the schema that are written or read here by hand.
mod field {
    pub const ITEMS: u32 = 1;
    pub const COMMAND_SEND: u32 = 2;
    pub const REF: u32 = 15;
    pub const UPDATE_EVENT: u32 = 4;
    pub const SYNC_PAGE: u32 = 5;
    pub const HISTORY_PAGE: u32 = 7;
    pub const SYNC_PAGE_EVENTS: u32 = 9;
    pub const SYNC_PAGE_MISSING_FROM: u32 = 10;
    pub const HISTORY_PAGE_EVENTS: u32 = 4;
    pub const HISTORY_PAGE_HEAD: u32 = 5;
}

/// The commands of a frame, still encoded.
pub(crate) struct Items<'a>(&'a [u8]);

impl<'a> Items<'a> {
    /// Walks the frame once, so that a broken envelope is found before its
    /// first command is carried out.
    pub(crate) fn new(frame: &'a [u8]) -> Result<Self, DecodeError> {
        let (mut rest, mut count) = (frame, 0);
        while let Some(item) = next_item(&mut rest).transpose() {
            item.map_err(|_| DecodeError::bad("The frame is not a `ClientFrame`."))?;
            count += 1;
            if count > COMMANDS_PER_FRAME_MAX {
                return Err(too_many_commands());
            }
        }
        Ok(Items(frame))
    }
}

pub(crate) fn too_many_commands() -> DecodeError {
    DecodeError::new(
        ErrorCode::TooLong,
        format!("The frame holds more than {COMMANDS_PER_FRAME_MAX} commands."),
    )
}

impl<'a> Iterator for Items<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        // `new` has walked all of it without an error.
        next_item(&mut self.0).ok().flatten()
    }
}

fn next_item<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Malformed> {
    while rest.has_remaining() {
        match decode_key(rest)? {
            (field::ITEMS, WireType::LengthDelimited) => return take(rest).map(Some),
            (tag, wire_type) => skip_field(wire_type, tag, rest, DecodeContext::default())?,
        }
    }
    Ok(None)
}

/// What is wrong with some bytes; a few words that hold nothing of them.
struct Malformed(Cow<'static, str>);

impl From<prost::DecodeError> for Malformed {
    fn from(e: prost::DecodeError) -> Self {
        Malformed(e.to_string().into())
    }
}

impl From<Malformed> for DecodeError {
    fn from(e: Malformed) -> Self {
        DecodeError::bad(format!("A command is malformed: {}.", e.0))
    }
}

const fn broken(what: &'static str) -> Malformed {
    Malformed(Cow::Borrowed(what))
}

fn take<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let len = decode_varint(rest)?;
    match usize::try_from(len)
        .ok()
        .and_then(|len| rest.split_at_checked(len))
    {
        Some((taken, behind)) => {
            *rest = behind;
            Ok(taken)
        }
        None => Err(broken("a length goes beyond the end")),
    }
}

fn take_fixed64(rest: &mut &[u8]) -> Result<u64, Malformed> {
    match rest.split_first_chunk() {
        Some((bytes, behind)) => {
            *rest = behind;
            Ok(u64::from_le_bytes(*bytes))
        }
        None => Err(broken("the end comes inside a number")),
    }
}

/// Reads one command.
pub(crate) fn command(item: &[u8]) -> Result<CommandRef<'_>, DecodeError> {
    if let Some((r#ref, send)) = plain_send(item)? {
        let request = Request::Send(send.check(r#ref)?);
        return Ok(CommandRef { r#ref, request });
    }
    let wire::Command { r#ref, command } = wire::Command::decode(item).map_err(Malformed::from)?;
    let request = match command {
        Some(command::Command::Send(send)) => Request::Send(
            RawSend {
                conversation: send.conversation,
                sender: send.sender,
                grant: send.grant,
                counter: send.counter,
                id: send.id,
                previous: send.previous,
                kind: send.kind,
                encoding: send.encoding,
                body: Cow::Owned(send.body.into()),
            }
            .check(r#ref)?,
        ),
        Some(other) => {
            check_other(&other).map_err(|e| e.with_ref(r#ref))?;
            Request::Other(other)
        }
        None => {
            let message = "The command is not one this server knows.";
            return Err(DecodeError::new(ErrorCode::UnknownType, message).with_ref(r#ref));
        }
    };
    Ok(CommandRef { r#ref, request })
}

/// Reads a command that is one `send` and perhaps a `ref`, as every encoder
/// writes it; `None`: anything else, left to prost.
fn plain_send(item: &[u8]) -> Result<Option<(u64, RawSend<'_>)>, Malformed> {
    let (mut rest, mut send, mut r#ref) = (item, None, 0);
    while rest.has_remaining() {
        match decode_key(&mut rest)? {
            (field::COMMAND_SEND, WireType::LengthDelimited) if send.is_none() => {
                send = Some(take(&mut rest)?);
            }
            (field::REF, WireType::Varint) => r#ref = decode_varint(&mut rest)?,
            _ => return Ok(None),
        }
    }
    let Some(mut rest) = send else {
        return Ok(None);
    };
    let mut send = RawSend::default();
    while rest.has_remaining() {
        let (tag, wire_type) = decode_key(&mut rest)?;
        match (tag, wire_type) {
            (1, WireType::SixtyFourBit) => send.conversation = take_fixed64(&mut rest)?,
            (2, WireType::SixtyFourBit) => send.sender = take_fixed64(&mut rest)?,
            (3, WireType::Varint) => send.grant = decode_varint(&mut rest)?,
            (4, WireType::Varint) => send.counter = decode_varint(&mut rest)?,
            (5, WireType::SixtyFourBit) => send.id = take_fixed64(&mut rest)?,
            (6, WireType::SixtyFourBit) => send.previous = take_fixed64(&mut rest)?,
            // Enums are the low 32 bits of their varint, as protobuf has it.
            (7, WireType::Varint) => send.kind = decode_varint(&mut rest)? as i32,
            (8, WireType::LengthDelimited) => send.body = Cow::Borrowed(take(&mut rest)?),
            (9, WireType::Varint) => send.encoding = decode_varint(&mut rest)? as i32,
            (1..=9, _) => return Err(broken("a field of `send` has another type")),
            _ => skip_field(wire_type, tag, &mut rest, DecodeContext::default())?,
        }
    }
    Ok(Some((r#ref, send)))
}

/// Appends one message as an item of a frame.
pub(crate) fn item<M: Message>(message: &M, out: &mut Vec<u8>) {
    prost::encoding::message::encode(field::ITEMS, message, out);
}

/// The parts of an event that are not at their default, with their lengths.
struct EventLen {
    members: usize,
    whole: usize,
}

fn varint_len(tag_len: usize, value: u64) -> usize {
    if value == 0 {
        0
    } else {
        tag_len + encoded_len_varint(value)
    }
}

fn event_len(e: &EventRef<'_>) -> EventLen {
    let fixed = [e.conversation, e.user, e.sender, e.id]
        .iter()
        .filter(|v| **v != 0)
        .count()
        * 9;
    let numbers = [
        e.seq,
        e.ts,
        e.grant,
        e.counter,
        e.kind as u64,
        e.encoding as u64,
    ];
    let numbers = numbers.iter().map(|v| varint_len(1, *v)).sum::<usize>();
    let blob = |len: usize| 1 + encoded_len_varint(len as u64) + len;
    let body = if e.body.is_empty() {
        0
    } else {
        blob(e.body.len())
    };
    let members = e.members.map_or(0, Members::encoded_len);
    let whole = fixed + numbers + body + e.members.map_or(0, |_| blob(members));
    EventLen { members, whole }
}

/// All fields of an event have numbers below 16, so their keys are one byte.
fn write_event(e: &EventRef<'_>, len: &EventLen, out: &mut Vec<u8>) {
    let fixed = |tag, value: u64, out: &mut Vec<u8>| {
        if value != 0 {
            fixed64::encode(tag, &value, out);
        }
    };
    let number = |tag, value: u64, out: &mut Vec<u8>| {
        if value != 0 {
            uint64::encode(tag, &value, out);
        }
    };
    fixed(1, e.conversation, out);
    number(2, e.seq, out);
    number(3, e.ts, out);
    fixed(4, e.user, out);
    fixed(5, e.sender, out);
    number(6, e.grant, out);
    number(7, e.counter, out);
    fixed(8, e.id, out);
    number(9, e.kind as u64, out);
    if !e.body.is_empty() {
        encode_key(10, WireType::LengthDelimited, out);
        encode_varint(e.body.len() as u64, out);
        out.put_slice(e.body);
    }
    number(11, e.encoding as u64, out);
    if let Some(members) = e.members {
        encode_key(12, WireType::LengthDelimited, out);
        encode_varint(len.members as u64, out);
        members.encode_raw(out);
    }
}

fn header(tag: u32, len: usize, out: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(len as u64, out);
}

/// Appends the event as an update of its own.
pub(crate) fn event_update(r#ref: u64, event: &EventRef<'_>, out: &mut Vec<u8>) {
    let len = event_len(event);
    update(field::UPDATE_EVENT, len.whole, r#ref, out, |out| {
        write_event(event, &len, out)
    });
}

/// Appends one update whose content has `len` bytes and is written by `write`.
fn update(tag: u32, len: usize, r#ref: u64, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    // Every member of the oneof that is written here has a one-byte key.
    let content = 1 + encoded_len_varint(len as u64) + len;
    let whole = content + varint_len(1, r#ref);
    out.reserve(1 + encoded_len_varint(whole as u64) + whole);
    header(field::ITEMS, whole, out);
    header(tag, len, out);
    write(out);
    if r#ref != 0 {
        uint64::encode(field::REF, &r#ref, out);
    }
}

/// Appends the event as one of a page's.
pub(crate) fn page_event(page: crate::Page, event: &EventRef<'_>, out: &mut Vec<u8>) {
    let len = event_len(event);
    out.reserve(len.whole + 8);
    let tag = match page {
        crate::Page::Sync => field::SYNC_PAGE_EVENTS,
        crate::Page::History => field::HISTORY_PAGE_EVENTS,
    };
    header(tag, len.whole, out);
    write_event(event, &len, out);
}

/// Appends an update of `head` with `events` at their place among its fields.
pub(crate) fn sync_page(r#ref: u64, mut head: wire::SyncPage, events: &[u8], out: &mut Vec<u8>) {
    let missing_from = std::mem::take(&mut head.missing_from);
    let len = head.encoded_len() + events.len() + varint_len(1, missing_from);
    update(field::SYNC_PAGE, len, r#ref, out, |out| {
        head.encode_raw(out);
        out.put_slice(events);
        if missing_from != 0 {
            uint64::encode(field::SYNC_PAGE_MISSING_FROM, &missing_from, out);
        }
    });
}

/// Appends an update of `page` with `events` at their place among its fields.
pub(crate) fn history_page(
    r#ref: u64,
    mut page: wire::HistoryPage,
    events: &[u8],
    out: &mut Vec<u8>,
) {
    let head = std::mem::take(&mut page.head);
    let len = page.encoded_len() + events.len() + varint_len(1, head);
    update(field::HISTORY_PAGE, len, r#ref, out, |out| {
        page.encode_raw(out);
        out.put_slice(events);
        if head != 0 {
            uint64::encode(field::HISTORY_PAGE_HEAD, &head, out);
        }
    });
}
