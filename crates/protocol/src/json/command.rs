//! Commands in JSON.

use std::borrow::Cow;

use bytes::Bytes;

use super::read::Fields;
use super::write::{Object, push_id};
use crate::body::inflate;
use crate::codes::ErrorCode;
use crate::command::{CommandRef, RawSend, Request, check_other};
use crate::error::DecodeError;
use crate::limits::{INFLATED_BYTES_MAX, SYNC_CURSORS_MAX, WATCH_MAX};
use crate::names::{Named, name_of};
use crate::wire::{
    Auth, Command, Cursor, Delivered, Encoding, History, Kind, Ping, Presence, Read, SetPresence,
    Sync, Typing, Watch, command,
};

type Result<T> = std::result::Result<T, DecodeError>;

/// Reads one command from its object.
pub(crate) fn command(text: &str) -> Result<CommandRef<'_>> {
    let mut fields = Fields::parse(text)?;
    let r#ref = fields.number("ref")?;
    let request = request(&mut fields, r#ref).map_err(|e| e.with_ref(r#ref))?;
    Ok(CommandRef { r#ref, request })
}

fn request<'a>(fields: &mut Fields<'a>, r#ref: u64) -> Result<Request<'a>> {
    use command::Command as C;
    let name = fields
        .text("type")?
        .ok_or_else(|| DecodeError::bad("`type` is missing."))?;
    fields.what = NAMES
        .iter()
        .find(|known| **known == name)
        .copied()
        .unwrap_or_default();
    let f = &*fields;
    let other = match f.what {
        "send" => return send(f)?.check(r#ref).map(Request::Send),
        "auth" => C::Auth(Auth {
            token: f.string("token")?,
            device: f.string("device")?,
            version: f.number32("version")?,
            oldest: f.number32("oldest")?,
        }),
        "delivered" => C::Delivered(Delivered {
            conversation: f.id("conversation")?,
            seq: f.number("seq")?,
        }),
        "read" => C::Read(Read {
            conversation: f.id("conversation")?,
            seq: f.number("seq")?,
            message_id: f
                .long_id("message_id")?
                .map_or_else(Bytes::new, Bytes::from_owner),
        }),
        "typing" => C::Typing(Typing {
            conversation: f.id("conversation")?,
            on: f.flag("on")?,
        }),
        "presence" => {
            let state = f.name::<Presence>("state")?;
            let state = state.ok_or_else(|| DecodeError::bad("`state` of `presence` is missing."));
            C::Presence(SetPresence {
                state: state?.into(),
            })
        }
        "watch" => C::Watch(Watch {
            users: f.list("users", WATCH_MAX, id)?,
        }),
        "sync" => C::Sync(Sync {
            epoch: f.number32("epoch")?,
            cursors: f.list("cursors", SYNC_CURSORS_MAX, cursor)?,
            page: f.number32("page")?,
        }),
        "history" => C::History(History {
            conversation: f.id("conversation")?,
            before: f.number("before")?,
            after: f.number("after")?,
            limit: f.number32("limit")?,
        }),
        "ping" => C::Ping(Ping {}),
        _ => {
            let message = "`type` is not a command this server knows.";
            return Err(DecodeError::new(ErrorCode::UnknownType, message));
        }
    };
    check_other(&other)?;
    Ok(Request::Other(other))
}

const NAMES: [&str; 10] = [
    "send",
    "auth",
    "delivered",
    "read",
    "typing",
    "presence",
    "watch",
    "sync",
    "history",
    "ping",
];

fn send<'a>(f: &Fields<'a>) -> Result<RawSend<'a>> {
    let kind = f.name::<Kind>("kind")?.unwrap_or(Kind::Text);
    Ok(RawSend {
        conversation: f.id("conversation")?,
        sender: f.id("sender")?,
        grant: f.number("grant")?,
        counter: f.number("counter")?,
        id: f.id("id")?,
        previous: f.id("previous")?,
        kind: kind.into(),
        encoding: Encoding::Identity.into(),
        body: body(f, kind)?,
    })
}

/// The body of a message: a string for text, any value for JSON.
pub(super) fn body<'a>(f: &Fields<'a>, kind: Kind) -> Result<Cow<'a, [u8]>> {
    Ok(match kind {
        Kind::Json => match f.raw("body") {
            Some(value) => Cow::Borrowed(value.as_bytes()),
            None => return Err(DecodeError::bad("`body` of a `json` message is missing.")),
        },
        _ => match f.text("body")? {
            Some(Cow::Borrowed(text)) => Cow::Borrowed(text.as_bytes()),
            Some(Cow::Owned(text)) => Cow::Owned(text.into_bytes()),
            None => Cow::Borrowed(&[]),
        },
    })
}

fn id(text: &str) -> Result<u64> {
    let digits = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    digits
        .and_then(crate::parse_hex16)
        .ok_or_else(|| DecodeError::bad("`users` of `watch` must be strings of 16 hex digits."))
}

/// A cursor, in a `sync` or in `heads`.
pub(super) fn cursor(text: &str) -> Result<Cursor> {
    let mut f = Fields::parse(text)?;
    f.what = "cursor";
    Ok(Cursor {
        conversation: f.id("conversation")?,
        seq: f.number("seq")?,
    })
}

/// Writes a cursor.
pub(super) fn write_cursor(out: &mut Vec<u8>, cursor: &Cursor) {
    let mut o = Object::open(out);
    o.id("conversation", cursor.conversation);
    o.number("seq", cursor.seq);
    o.close();
}

/// Writes one command; one without content is written as a `ping`, which asks nothing.
pub(crate) fn write_command(c: &Command, out: &mut Vec<u8>) {
    use command::Command as C;
    let open = |out, name| Object::typed(out, name, c.r#ref);
    let Some(content) = &c.command else {
        return open(out, "ping").close();
    };
    match content {
        C::Auth(c) => {
            let mut o = open(out, "auth");
            o.text("token", &c.token);
            o.text("device", &c.device);
            o.number("version", c.version);
            o.number_unless_0("oldest", c.oldest);
            o.close();
        }
        C::Send(c) => {
            let mut o = open(out, "send");
            o.id("conversation", c.conversation);
            o.id("sender", c.sender);
            o.number("grant", c.grant);
            o.number("counter", c.counter);
            o.id("id", c.id);
            o.id_unless_0("previous", c.previous);
            let kind = Kind::try_from(c.kind).unwrap_or(Kind::Empty);
            let encoding = Encoding::try_from(c.encoding).unwrap_or_default();
            write_body(&mut o, kind, encoding, &c.body);
            o.close();
        }
        C::Delivered(c) => {
            let mut o = open(out, "delivered");
            o.id("conversation", c.conversation);
            o.number("seq", c.seq);
            o.close();
        }
        C::Read(c) => {
            let mut o = open(out, "read");
            o.id("conversation", c.conversation);
            o.number_unless_0("seq", c.seq);
            if !c.message_id.is_empty() {
                o.long_id("message_id", &c.message_id);
            }
            o.close();
        }
        C::Typing(c) => {
            let mut o = open(out, "typing");
            o.id("conversation", c.conversation);
            o.flag("on", c.on);
            o.close();
        }
        C::Presence(c) => {
            let mut o = open(out, "presence");
            o.name("state", name_of::<Presence>(c.state));
            o.close();
        }
        C::Watch(c) => {
            let mut o = open(out, "watch");
            o.list("users", &c.users, |out, user| {
                push_id(out, &user.to_be_bytes())
            });
            o.close();
        }
        C::Sync(c) => {
            let mut o = open(out, "sync");
            o.number("epoch", c.epoch);
            o.list("cursors", &c.cursors, write_cursor);
            o.number_unless_0("page", c.page);
            o.close();
        }
        C::History(c) => {
            let mut o = open(out, "history");
            o.id("conversation", c.conversation);
            o.number_unless_0("before", c.before);
            o.number_unless_0("after", c.after);
            o.number_unless_0("limit", c.limit);
            o.close();
        }
        C::Ping(_) => open(out, "ping").close(),
    }
}

/// Writes `kind` and `body`, always plain. What is not what it says it is (and
/// so would break the frame of whoever reads it) is written as empty.
pub(super) fn write_body(o: &mut Object<'_>, kind: Kind, encoding: Encoding, body: &[u8]) {
    let plain = inflate(encoding, body, INFLATED_BYTES_MAX).ok();
    let text = plain
        .as_deref()
        .and_then(|plain| std::str::from_utf8(plain).ok());
    match (kind, text) {
        (Kind::Text, Some(text)) => {
            o.name("kind", kind.name());
            o.text("body", text);
        }
        (Kind::Json, Some(text)) if super::read::is_value(text) => {
            o.name("kind", kind.name());
            o.key("body").extend_from_slice(text.as_bytes());
        }
        _ => o.name("kind", Kind::Empty.name()),
    }
}
