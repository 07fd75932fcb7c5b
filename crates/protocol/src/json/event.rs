//! Events in JSON: `message` for what users write, `members` for changes of members.

use bytes::Bytes;

use super::command::{body, write_body};
use super::read::Fields;
use super::write::Object;
use crate::error::DecodeError;
use crate::event::EventRef;
use crate::limits::MEMBER_CHANGES_MAX;
use crate::message_id;
use crate::names::{Named, UNKNOWN, name_of};
use crate::wire::{ConversationKind, Event, Kind, MemberChange, Members, Role};

type Result<T> = std::result::Result<T, DecodeError>;

/// Writes an event.
pub(crate) fn write_event(r#ref: u64, e: &EventRef<'_>, out: &mut Vec<u8>) {
    out.reserve(400 + e.body.len());
    let is_members = e.kind == Kind::Members;
    let mut o = Object::typed(out, if is_members { "members" } else { "message" }, r#ref);
    o.id("conversation", e.conversation);
    o.number("seq", e.seq);
    o.number("ts", e.ts);
    o.id("user", e.user);
    // The directory's events have no outbox behind them.
    if !is_members || e.sender != 0 {
        o.long_id(
            "message_id",
            &message_id(e.conversation, e.sender, e.grant, e.counter),
        );
        o.id("sender", e.sender);
        o.number("grant", e.grant);
        o.number("counter", e.counter);
        o.id("id", e.id);
    }
    match e.members {
        Some(members) if is_members => write_members(&mut o, e.seq, members),
        _ if is_members => {}
        _ => write_body(&mut o, e.kind, e.encoding, e.body),
    }
    o.close();
}

/// Appends an event as one of a page's: all but the first follow a comma.
pub(crate) fn page_event(e: &EventRef<'_>, out: &mut Vec<u8>) {
    if !out.is_empty() {
        out.push(b',');
    }
    write_event(0, e, out);
}

fn write_members(o: &mut Object<'_>, seq: u64, members: &Members) {
    o.number("version", members.version);
    o.list("changes", &members.changes, |out, change| {
        let mut o = Object::open(out);
        o.id("user", change.user);
        o.name("role", name_of::<Role>(change.role));
        o.number_unless_0("ended", change.ended);
        o.close();
    });
    if seq == 1 || members.kind != 0 {
        o.name(
            "conversation_kind",
            name_of::<ConversationKind>(members.kind),
        );
    }
    if !members.title.is_empty() {
        o.text("title", &members.title);
    }
}

/// Reads an event from the object of a `message` or `members`.
pub(super) fn event(f: &Fields<'_>) -> Result<Event> {
    let mut event = Event {
        conversation: f.id("conversation")?,
        seq: f.number("seq")?,
        ts: f.number("ts")?,
        user: f.id("user")?,
        sender: f.id("sender")?,
        grant: f.number("grant")?,
        counter: f.number("counter")?,
        id: f.id("id")?,
        ..Event::default()
    };
    if f.what == "members" {
        event.kind = Kind::Members.into();
        event.members = Some(Members {
            version: f.number("version")?,
            changes: f.list("changes", MEMBER_CHANGES_MAX, change)?,
            kind: f.name_or_unknown::<ConversationKind>("conversation_kind")?,
            title: f.string("title")?,
        });
        return Ok(event);
    }
    let kind = f
        .text("kind")?
        .map_or(Some(Kind::Text), |name| Kind::from_name(&name));
    match kind {
        Some(kind) => {
            event.kind = kind.into();
            event.body = Bytes::from(body(f, kind)?.into_owned());
        }
        None => event.kind = UNKNOWN,
    }
    Ok(event)
}

/// Reads an event of a page.
pub(super) fn listed_event(text: &str) -> Result<Event> {
    let mut f = Fields::parse(text)?;
    f.what = match f.text("type")?.as_deref() {
        Some("members") => "members",
        _ => "message",
    };
    event(&f)
}

fn change(text: &str) -> Result<MemberChange> {
    let mut f = Fields::parse(text)?;
    f.what = "changes";
    Ok(MemberChange {
        user: f.id("user")?,
        role: f.name_or_unknown::<Role>("role")?,
        ended: f.number("ended")?,
    })
}
