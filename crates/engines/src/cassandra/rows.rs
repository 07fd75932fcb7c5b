//! Rows as bytes in Cassandra's columns.
//!
//! Each cell costs bytes of its own, so a row is one blob, and a body beside it, which a redaction
//! can overwrite. What Cassandra keeps anyway isn't written twice: key columns, and the time, which
//! is the write timestamp. Fields that repeat from row to row come first and side by side, where the
//! table's compression finds them; 8-byte ids are raw, other numbers in 7-bit groups.
//!
//! Event (`events.meta`), format 1:
//!
//! | field | when |
//! |---|---|
//! | format, kind + 16 × encoding, flags | |
//! | user; sender, grant | sender, grant only with `OUTBOX` |
//! | epoch, offset (8 bytes, highest first) | |
//! | counter, id | with `OUTBOX` |
//! | ts − ts_before | |
//! | seq − before, or the sender's state | by the flags' lowest two bits |
//! | version, kind, title, changes | with `MEMBERS` |
//!
//! State (`state.value`): epoch (4 bytes) and offset (8), both highest first, so that of two values
//! with one timestamp Cassandra keeps the later position too; then the format and the value.

use bytes::Bytes;
use tidings_core::ids::{ConversationId, MessageKey, Position, SenderId, Seq, UserId};
use tidings_core::record::{ConversationKind, Encoding, Kind, Role};
use tidings_core::rows::{
    Before, EventRow, GrantState, HeadState, MemberChange, MembersBody, SenderState, StateKey,
    StateRow, StateValue,
};
use tidings_core::varint::{self, Malformed, Reader};

const FORMAT: u8 = 1;

const BEFORE_SEQ: u8 = 1;
const BEFORE_ROW: u8 = 2;
const BEFORE_MASK: u8 = 3;
/// Sender, grant, counter and id are there; else all are 0.
const OUTBOX: u8 = 4;
const MEMBERS: u8 = 8;
/// All bits that format 1 knows.
const KNOWN: u8 = 15;

const EVENT: &str = "event row";
const STATE: &str = "state row";

const KEY_HEAD: u8 = 0;
const KEY_GRANT: u8 = 1;
const KEY_SENDER: u8 = 2;

/// A value that doesn't hold the time it is stamped with, but another one.
const OWN_TIME: u8 = 1;

/// The bytes of `events.meta`.
pub fn encode_event(row: &EventRow) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    let (before, earlier) = match &row.before {
        Before::Nothing => (0, None),
        Before::Seq(_) => (BEFORE_SEQ, None),
        Before::Row(state) => (BEFORE_ROW, Some(state)),
    };
    let outbox = (row.sender, row.grant, row.counter, row.id)
        != (SenderId::default(), 0, 0, MessageKey::default());
    let mut flags = before;
    if outbox {
        flags |= OUTBOX;
    }
    if row.members.is_some() {
        flags |= MEMBERS;
    }
    out.extend([FORMAT, row.kind as u8 | (row.encoding as u8) << 4, flags]);
    out.extend(row.user.0.to_le_bytes());
    if outbox {
        out.extend(row.sender.0.to_le_bytes());
        varint::put(&mut out, row.grant);
    }
    varint::put(&mut out, u64::from(row.position.epoch));
    out.extend(row.position.offset.to_be_bytes());
    if outbox {
        varint::put(&mut out, row.counter);
        out.extend(row.id.0.to_le_bytes());
    }
    varint::put(&mut out, row.ts.wrapping_sub(row.ts_before));
    if let Before::Seq(seq) = row.before {
        varint::put(&mut out, row.seq.wrapping_sub(seq));
    }
    if let Some(state) = earlier {
        put_sender(&mut out, state);
        varint::put(&mut out, state.ts);
    }
    if let Some(members) = &row.members {
        put_members(&mut out, members);
    }
    out
}

fn put_members(out: &mut Vec<u8>, members: &MembersBody) {
    varint::put(out, members.version);
    out.push(members.kind as u8);
    varint::put_bytes(out, members.title.as_bytes());
    varint::put(out, members.changes.len() as u64);
    for change in &members.changes {
        out.extend(change.user.0.to_le_bytes());
        out.push(change.role as u8);
        put_grant(out, &change.before);
    }
}

fn put_grant(out: &mut Vec<u8>, grant: &GrantState) {
    varint::put(out, grant.grant);
    out.push(grant.role as u8);
    varint::put(out, grant.visible_from);
    varint::put(out, grant.visible_to);
}

/// All but the time.
fn put_sender(out: &mut Vec<u8>, state: &SenderState) {
    varint::put(out, state.grant);
    varint::put(out, state.counter);
    out.extend(state.id.0.to_le_bytes());
    varint::put(out, state.seq);
}

/// Undoes [`encode_event`]; `ts` is the write timestamp.
pub fn decode_event(
    conversation: ConversationId,
    seq: Seq,
    ts: u64,
    meta: &[u8],
    body: &[u8],
) -> Result<EventRow, Malformed> {
    let mut r = Reader::new(meta, EVENT);
    let (format, kinds, flags) = (r.byte()?, r.byte()?, r.byte()?);
    if format != FORMAT || flags & !KNOWN != 0 {
        return Err(r.malformed());
    }
    let mut row = EventRow::empty(conversation, seq, Position::default(), ts, 0);
    row.kind = Kind::from_number(kinds & 15).ok_or(r.malformed())?;
    row.encoding = Encoding::from_number(kinds >> 4).ok_or(r.malformed())?;
    row.user = UserId(r.fixed64()?);
    if flags & OUTBOX != 0 {
        row.sender = SenderId(r.fixed64()?);
        row.grant = r.varint()?;
    }
    row.position.epoch = r.varint32()?;
    row.position.offset = big_endian(&mut r)?;
    if flags & OUTBOX != 0 {
        row.counter = r.varint()?;
        row.id = MessageKey(r.fixed64()?);
    }
    row.ts_before = ts.wrapping_sub(r.varint()?);
    row.before = match flags & BEFORE_MASK {
        0 => Before::Nothing,
        BEFORE_SEQ => Before::Seq(seq.wrapping_sub(r.varint()?)),
        BEFORE_ROW => {
            let mut state = sender(&mut r)?;
            state.ts = r.varint()?;
            Before::Row(state)
        }
        _ => return Err(r.malformed()),
    };
    if flags & MEMBERS != 0 {
        row.members = Some(Box::new(members(&mut r)?));
    }
    row.body = Bytes::copy_from_slice(body);
    ended(&r)?;
    Ok(row)
}

fn big_endian(r: &mut Reader<'_>) -> Result<u64, Malformed> {
    Ok(r.fixed64()?.swap_bytes())
}

fn ended(r: &Reader<'_>) -> Result<(), Malformed> {
    if r.is_empty() {
        Ok(())
    } else {
        Err(r.malformed())
    }
}

fn members(r: &mut Reader<'_>) -> Result<MembersBody, Malformed> {
    let version = r.varint()?;
    let kind = ConversationKind::from_number(r.byte()?).ok_or(r.malformed())?;
    let title = std::str::from_utf8(r.bytes()?)
        .map_err(|_| r.malformed())?
        .to_owned();
    let count = r.varint()?;
    let mut changes = Vec::new();
    for _ in 0..count {
        let user = UserId(r.fixed64()?);
        let role = Role::from_number(r.byte()?).ok_or(r.malformed())?;
        let before = grant(r)?;
        changes.push(MemberChange { user, role, before });
    }
    Ok(MembersBody {
        version,
        kind,
        title,
        changes,
    })
}

fn grant(r: &mut Reader<'_>) -> Result<GrantState, Malformed> {
    let grant = r.varint()?;
    let role = Role::from_number(r.byte()?).ok_or(r.malformed())?;
    let (visible_from, visible_to) = (r.varint()?, r.varint()?);
    Ok(GrantState {
        grant,
        role,
        visible_from,
        visible_to,
    })
}

fn sender(r: &mut Reader<'_>) -> Result<SenderState, Malformed> {
    let (grant, counter) = (r.varint()?, r.varint()?);
    let id = MessageKey(r.fixed64()?);
    let seq = r.varint()?;
    Ok(SenderState {
        grant,
        counter,
        id,
        seq,
        ts: 0,
    })
}

/// The bytes of `state.key`: a user's rows of a kind lie together.
pub fn encode_key(key: StateKey) -> Vec<u8> {
    match key {
        StateKey::Head => vec![KEY_HEAD],
        StateKey::Grant(user) => [&[KEY_GRANT], &user.0.to_be_bytes()[..]].concat(),
        StateKey::Sender(user, sender) => [
            &[KEY_SENDER],
            &user.0.to_be_bytes()[..],
            &sender.0.to_be_bytes()[..],
        ]
        .concat(),
    }
}

/// Above the keys of the head and all grants, and below those of all senders.
pub fn first_sender_key() -> Vec<u8> {
    vec![KEY_SENDER]
}

/// Undoes [`encode_key`].
pub fn decode_key(stored: &[u8]) -> Result<StateKey, Malformed> {
    let mut r = Reader::new(stored, "state key");
    let key = match r.byte()? {
        KEY_HEAD => StateKey::Head,
        KEY_GRANT => StateKey::Grant(UserId(big_endian(&mut r)?)),
        KEY_SENDER => StateKey::Sender(UserId(big_endian(&mut r)?), SenderId(big_endian(&mut r)?)),
        _ => return Err(r.malformed()),
    };
    ended(&r)?;
    Ok(key)
}

/// The bytes of `state.value`.
pub fn encode_state(row: &StateRow) -> Vec<u8> {
    let mut out = Vec::with_capacity(48);
    out.extend(row.position.epoch.to_be_bytes());
    out.extend(row.position.offset.to_be_bytes());
    out.push(FORMAT);
    let own_time = |time: u64| u8::from(time != row.ts);
    match &row.value {
        StateValue::Head(head) => {
            out.extend([own_time(head.ts), head.kind as u8]);
            varint::put(&mut out, u64::from(head.members));
            varint::put(&mut out, head.version);
            varint::put(&mut out, head.seq);
            if head.ts != row.ts {
                varint::put(&mut out, head.ts);
            }
        }
        StateValue::Grant(grant) => put_grant(&mut out, grant),
        StateValue::Sender(state) => {
            out.push(own_time(state.ts));
            put_sender(&mut out, state);
            if state.ts != row.ts {
                varint::put(&mut out, state.ts);
            }
        }
    }
    out
}

/// Undoes [`encode_state`]; `ts` is the write timestamp.
pub fn decode_state(
    conversation: ConversationId,
    key: StateKey,
    ts: u64,
    stored: &[u8],
) -> Result<StateRow, Malformed> {
    let mut r = Reader::new(stored, STATE);
    let epoch = r.take(4)?;
    let epoch = u32::from_be_bytes(epoch.try_into().map_err(|_| r.malformed())?);
    let offset = big_endian(&mut r)?;
    if r.byte()? != FORMAT {
        return Err(r.malformed());
    }
    let value = match key {
        StateKey::Head => {
            let own_time = flag(&mut r)?;
            let kind = ConversationKind::from_number(r.byte()?).ok_or(r.malformed())?;
            let members = r.varint32()?;
            let (version, seq) = (r.varint()?, r.varint()?);
            let ts = if own_time { r.varint()? } else { ts };
            StateValue::Head(HeadState {
                seq,
                ts,
                version,
                kind,
                members,
            })
        }
        StateKey::Grant(_) => StateValue::Grant(grant(&mut r)?),
        StateKey::Sender(..) => {
            let own_time = flag(&mut r)?;
            let mut state = sender(&mut r)?;
            state.ts = if own_time { r.varint()? } else { ts };
            StateValue::Sender(state)
        }
    };
    ended(&r)?;
    Ok(StateRow {
        conversation,
        key,
        position: Position { epoch, offset },
        ts,
        value,
    })
}

fn flag(r: &mut Reader<'_>) -> Result<bool, Malformed> {
    match r.byte()? {
        0 => Ok(false),
        OWN_TIME => Ok(true),
        _ => Err(r.malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is stored there, reading it is an error at worst.
    #[test]
    fn damaged_bytes_are_an_error() {
        let c = ConversationId(1);
        let mut row = EventRow::empty(c, 9, Position::default(), 1_000, 900);
        row.sender = SenderId(4);
        row.before = Before::Seq(3);
        let meta = encode_event(&row);
        assert_eq!(decode_event(c, 9, 1_000, &meta, b""), Ok(row));
        for end in 0..meta.len() {
            assert!(decode_event(c, 9, 1_000, &meta[..end], b"").is_err());
        }
        let more = [&meta[..], &[0]].concat();
        assert!(decode_event(c, 9, 1_000, &more, b"").is_err());
        let mut newer = meta;
        newer[0] = FORMAT + 1;
        assert!(decode_event(c, 9, 1_000, &newer, b"").is_err());
        for stored in [&[][..], &[9], &[KEY_GRANT, 1], &[KEY_HEAD, 0]] {
            assert!(decode_key(stored).is_err(), "{stored:?}");
        }
        assert!(decode_state(c, StateKey::Head, 1, &[0; 12]).is_err());
    }

    /// What clusters hold already must go on being read: a change here needs another format.
    #[test]
    fn the_stored_bytes_of_format_1_stay() {
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        let c = ConversationId(0x00f3);
        let position = Position {
            epoch: 2,
            offset: 0x0102,
        };
        let grant = GrantState {
            grant: 3,
            role: Role::Admin,
            visible_from: 2,
            visible_to: 300,
        };
        let state = SenderState {
            grant: 1,
            counter: 2,
            id: MessageKey(3),
            seq: 4,
            ts: 5,
        };
        let mut text = EventRow::empty(c, 42, position, 1_000, 900);
        text.user = UserId(0xa1);
        (text.sender, text.grant, text.counter) = (SenderId(0x1122), 1, 128);
        (text.id, text.before) = (MessageKey(0xa1b2), Before::Seq(40));
        (text.kind, text.encoding) = (Kind::Text, Encoding::Zstd);
        let mut members = EventRow::empty(c, 43, position, 1_000, 900);
        (members.kind, members.before) = (Kind::Members, Before::Row(state));
        members.members = Some(Box::new(MembersBody {
            version: 200,
            kind: ConversationKind::Channel,
            title: "News".to_owned(),
            changes: vec![MemberChange {
                user: UserId(0xa1),
                role: Role::Reader,
                before: grant,
            }],
        }));
        let events = [
            (
                text,
                "011005a1000000000000002211000000000000010200000000000001028001b2a10000000000006402",
            ),
            (
                members,
                "01030a000000000000000002000000000000010264010203000000000000000405c80102044e65777301a10000000000000001030302ac02",
            ),
        ];
        for (row, stored) in events {
            let meta = encode_event(&row);
            assert_eq!(hex(&meta), stored);
            assert_eq!(decode_event(c, row.seq, row.ts, &meta, b""), Ok(row));
        }
        let head = HeadState {
            seq: 42,
            ts: 1_000,
            version: 200,
            kind: ConversationKind::Group,
            members: 3,
        };
        let states = [
            (
                StateKey::Head,
                StateValue::Head(head),
                "00 00000002000000000000010201000103c8012a",
            ),
            (
                StateKey::Grant(UserId(0xa1)),
                StateValue::Grant(grant),
                "0100000000000000a1 00000002000000000000010201030302ac02",
            ),
            (
                StateKey::Sender(UserId(0xa1), SenderId(0x1122)),
                StateValue::Sender(state),
                "0200000000000000a10000000000001122 0000000200000000000001020101010203000000000000000405",
            ),
        ];
        for (key, value, stored) in states {
            let row = StateRow {
                conversation: c,
                key,
                position,
                ts: 1_000,
                value,
            };
            let (key_bytes, bytes) = (encode_key(key), encode_state(&row));
            assert_eq!(format!("{} {}", hex(&key_bytes), hex(&bytes)), stored);
            assert_eq!(decode_key(&key_bytes), Ok(key));
            assert_eq!(decode_state(c, key, row.ts, &bytes), Ok(row));
        }
    }

    /// Cassandra keeps the greater of two values with one timestamp: the one of the later position.
    #[test]
    fn a_later_position_is_the_greater_value() {
        let row = |epoch, offset, seq| {
            encode_state(&StateRow {
                conversation: ConversationId(1),
                key: StateKey::Head,
                position: Position { epoch, offset },
                ts: 5,
                value: StateValue::Head(HeadState {
                    seq,
                    ..HeadState::default()
                }),
            })
        };
        assert!(row(1, 300, 9) < row(1, 70_000, 8));
        assert!(row(1, u64::MAX, 9) < row(2, 0, 1));
    }
}
