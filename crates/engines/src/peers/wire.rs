//! How values are written between servers: fields one after the other in the order of their
//! declaration, numbers as varints, ids as 8 bytes, no names and no tags but an enum's.
//!
//! The layout is that of [`super::hello::VERSION`]: whoever changes a message raises it, writes the new
//! one only over links whose [`super::link::Link::version`] has it, and the old one over the others
//! (docs/upgrades.md). `tests/fixtures/peers-1.hex` has every message as version 1 writes it.

use std::sync::Arc;

use bytes::Bytes;
use tidings_core::ids::{
    ConversationId, DeviceId, GatewayId, MessageKey, Partition, Position, SenderId, SessionId,
    UserId,
};
use tidings_core::ports::directory::{Revocation, RevocationSubject, SignInId};
use tidings_core::ports::peers::{Handed, Opened, ToGateway, ToRouter};
use tidings_core::record::{ConversationKind, Encoding, Kind, Role};
use tidings_core::rows::{
    Before, CursorRow, EventRow, GrantState, MemberChange, MembersBody, SenderState,
};
use tidings_core::sequencer::{Answer, Verdict};
use tidings_core::varint::{self, Malformed, Reader};

use super::hello::Hello;
use super::item::{Item, To};
use super::owners::Term;

/// Elements that are given room before one of them was read: a count is only a claim.
const ROOM_MAX: usize = 1024;

/// A value with a layout.
pub(super) trait Wire: Sized {
    /// Appends it.
    fn put(&self, out: &mut Vec<u8>);

    /// Reads what [`Wire::put`] wrote.
    fn get(r: &mut Reader<'_>) -> Result<Self, Malformed>;
}

impl Wire for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        varint::put(out, *self);
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        r.varint()
    }
}

impl Wire for u32 {
    fn put(&self, out: &mut Vec<u8>) {
        varint::put(out, u64::from(*self));
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        r.varint32()
    }
}

impl Wire for u8 {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        r.byte()
    }
}

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        match r.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(r.malformed()),
        }
    }
}

/// A body gets memory of its own: a small one that is kept must not keep the frame it came in.
impl Wire for Bytes {
    fn put(&self, out: &mut Vec<u8>) {
        varint::put_bytes(out, self);
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        r.owned_bytes()
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        varint::put_bytes(out, self.as_bytes());
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(r.bytes()?).map_err(|_| r.malformed())?;
        Ok(text.to_owned())
    }
}

fn put_all<T: Wire>(all: &[T], out: &mut Vec<u8>) {
    varint::put(out, all.len() as u64);
    for one in all {
        one.put(out);
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_all(self, out);
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = usize::try_from(r.varint()?).map_err(|_| r.malformed())?;
        let mut all = Vec::with_capacity(count.min(ROOM_MAX));
        for _ in 0..count {
            all.push(T::get(r)?);
        }
        Ok(all)
    }
}

impl<T: Wire> Wire for Arc<[T]> {
    fn put(&self, out: &mut Vec<u8>) {
        put_all(self, out);
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Vec::get(r).map(Arc::from)
    }
}

impl<T: Wire> Wire for Arc<T> {
    fn put(&self, out: &mut Vec<u8>) {
        T::put(self, out);
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        T::get(r).map(Arc::new)
    }
}

impl<T: Wire> Wire for Box<T> {
    fn put(&self, out: &mut Vec<u8>) {
        T::put(self, out);
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        T::get(r).map(Box::new)
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        bool::get(r)?.then(|| T::get(r)).transpose()
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok((A::get(r)?, B::get(r)?))
    }
}

/// Random 64-bit ids: a varint would make them longer.
macro_rules! ids {
    ($($id:ident),*) => {$(
        impl Wire for $id {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.0.to_le_bytes());
            }

            fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
                r.fixed64().map($id)
            }
        }
    )*};
}

ids!(
    UserId,
    DeviceId,
    SignInId,
    ConversationId,
    SenderId,
    MessageKey
);

/// Counted ids.
macro_rules! numbers {
    ($($id:ident),*) => {$(
        impl Wire for $id {
            fn put(&self, out: &mut Vec<u8>) {
                self.0.put(out);
            }

            fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
                Wire::get(r).map($id)
            }
        }
    )*};
}

numbers!(SessionId, Partition, GatewayId);

/// Enums that number themselves.
macro_rules! kinds {
    ($($kind:ident),*) => {$(
        impl Wire for $kind {
            fn put(&self, out: &mut Vec<u8>) {
                out.push(*self as u8);
            }

            fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
                $kind::from_number(r.byte()?).ok_or(r.malformed())
            }
        }
    )*};
}

kinds!(Kind, Encoding, Role, ConversationKind);

macro_rules! structs {
    ($($name:ident { $($field:ident),* })*) => {$(
        impl Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                let $name { $($field),* } = self;
                $($field.put(out);)*
            }

            fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
                Ok($name { $($field: Wire::get(r)?),* })
            }
        }
    )*};
}

structs! {
    Hello { magic, oldest, newest, cluster, server, start, partitions }
    Term { epoch, offset, since }
    Position { epoch, offset }
    CursorRow { conversation, user, delivered, read }
    GrantState { grant, role, visible_from, visible_to }
    SenderState { grant, counter, id, seq, ts }
    MemberChange { user, role, before }
    MembersBody { version, kind, title, changes }
    EventRow {
        conversation, seq, position, ts, ts_before, user, sender, grant, counter, id, before, kind,
        encoding, body, members
    }
    Handed { conversation, seq }
    Opened { conversation, head, kind, grant, cursor }
    Revocation { revision, subject, not_before }
    Answer { conversation, sender, grant, verdict, counter, id, seq, ts, head }
}

/// The numbers are the tags: never reuse one.
macro_rules! enums {
    ($($name:ident { $($tag:literal => $variant:ident $(($value:ident))? $({ $($field:ident),* })?),* $(,)? })*) => {$(
        impl Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $($name::$variant $(($value))? $({ $($field),* })? => {
                        out.push($tag);
                        $($value.put(out);)?
                        $($($field.put(out);)*)?
                    })*
                }
            }

            fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
                Ok(match r.byte()? {
                    $($tag => {
                        $(let $value = Wire::get(r)?;)?
                        $name::$variant $(($value))? $({ $($field: Wire::get(r)?),* })?
                    })*
                    _ => return Err(r.malformed()),
                })
            }
        }
    )*};
}

enums! {
    Before {
        0 => Nothing,
        1 => Seq(seq),
        2 => Row(row),
    }
    Verdict {
        1 => Accepted,
        2 => Duplicate,
        3 => Stale,
        4 => Over,
        5 => Gap,
        6 => Fork,
    }
    RevocationSubject {
        1 => User(user),
        2 => Device(device),
        3 => SignIn(sign_in),
    }
    ToRouter {
        1 => Open { request, user, conversations },
        2 => Close(conversations),
        3 => Cursors(cursors),
        4 => Typing { conversation, user, on },
        5 => Tail { request, conversation, from },
        6 => FannedOut(handed),
        7 => Interest { request, conversations },
    }
    ToGateway {
        1 => Answer { session, answer, taken },
        2 => Event { row, except, taken },
        3 => Opened { request, states, later },
        4 => Tail { request, rows },
        5 => Receipts { conversation, cursors },
        6 => Typing { conversation, user, on },
        7 => Digest { partition, number, heads, changes },
        8 => TookOver { partition },
        9 => Interested { request, digest, heads },
        10 => BlockChanged { user, other, is_blocked },
        11 => Delayed { user, conversation, seq },
        12 => Replaced { session },
        13 => Revoked(revocation),
    }
    To {
        0 => All,
        1 => Some(workers),
    }
    Item {
        1 => TookOver { partition, term },
        2 => Resigned { partition },
        3 => ToRouter { worker, partition, message },
        4 => ToGateway { partition, to, message },
        5 => Notice { message },
    }
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
