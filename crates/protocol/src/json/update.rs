//! Updates in JSON.

use super::command::{cursor, write_cursor};
use super::event::{event, listed_event, page_event, write_event};
use super::read::Fields;
use super::write::Object;
use crate::error::DecodeError;
use crate::event::EventRef;
use crate::message_id;
use crate::names::name_of;
use crate::wire::{
    Ack, ConversationKind, Delayed, Error, Feature, FeatureState, Heads, Hello, HistoryPage,
    Lagging, Limits, Mode, Pong, Presence, PresenceUpdate, Ready, ReauthRequired, Receipt,
    Receipts, Reconnect, Role, Status, SyncDone, SyncPage, TypingUpdate, Update, UserPresence,
    update,
};

type Result<T> = std::result::Result<T, DecodeError>;

/// Writes one update; one without content, which a server never makes, as an empty object.
pub(crate) fn write_update(u: &Update, out: &mut Vec<u8>) {
    use update::Update as U;
    let open = |out, name| Object::typed(out, name, u.r#ref);
    let Some(content) = &u.update else {
        return Object::open(out).close();
    };
    match content {
        U::Hello(u) => {
            let mut o = open(out, "hello");
            o.number("version", u.version);
            o.number_unless_0("oldest", u.oldest);
            o.number("heartbeat_ms", u.heartbeat_ms);
            o.number("server_time", u.server_time);
            if let Some(limits) = &u.limits {
                write_limits(limits, o.key("limits"));
            }
            o.close();
        }
        U::Ready(u) => {
            let mut o = open(out, "ready");
            o.id("user", u.user);
            o.id("device", u.device);
            o.id("session", u.session);
            o.number("epoch", u.epoch);
            o.number("expires", u.expires);
            o.number_unless_0("version", u.version);
            o.close();
        }
        U::Ack(ack) => write_ack(u.r#ref, ack, out),
        U::Event(event) => write_event(u.r#ref, &EventRef::of(event), out),
        U::SyncPage(page) => {
            let mut events = Vec::new();
            page.events
                .iter()
                .for_each(|e| page_event(&EventRef::of(e), &mut events));
            sync_page(u.r#ref, page, &events, out);
        }
        U::SyncDone(u) => {
            let mut o = open(out, "sync_done");
            o.number("epoch", u.epoch);
            o.number("conversations", u.conversations);
            o.flag("complete", u.complete);
            o.flag("reset", u.reset);
            o.close();
        }
        U::HistoryPage(page) => {
            let mut events = Vec::new();
            page.events
                .iter()
                .for_each(|e| page_event(&EventRef::of(e), &mut events));
            history_page(u.r#ref, page, &events, out);
        }
        U::Heads(u) => {
            let mut o = open(out, "heads");
            o.list("heads", &u.heads, write_cursor);
            o.close();
        }
        U::Receipts(u) => {
            let mut o = open(out, "receipts");
            o.id("conversation", u.conversation);
            o.list("receipts", &u.receipts, |out, receipt| {
                let mut o = Object::open(out);
                o.id("user", receipt.user);
                o.number("delivered", receipt.delivered);
                o.number("read", receipt.read);
                o.close();
            });
            o.close();
        }
        U::Typing(u) => {
            let mut o = open(out, "typing");
            o.id("conversation", u.conversation);
            o.id("user", u.user);
            o.flag("on", u.on);
            o.close();
        }
        U::Presence(u) => {
            let mut o = open(out, "presence");
            o.list("users", &u.users, |out, user| {
                let mut o = Object::open(out);
                o.id("user", user.user);
                o.name("state", name_of::<Presence>(user.state));
                o.number_unless_0("last_seen", user.last_seen);
                o.close();
            });
            o.close();
        }
        U::Error(u) => {
            let mut o = open(out, "error");
            o.text("code", &u.code);
            o.text("message", &u.message);
            o.number_unless_0("retry_after_ms", u.retry_after_ms);
            o.id_unless_0("conversation", u.conversation);
            o.id_unless_0("sender", u.sender);
            o.number_unless_0("counter", u.counter);
            o.close();
        }
        U::Reconnect(u) => {
            let mut o = open(out, "reconnect");
            o.number("after_ms", u.after_ms);
            o.close();
        }
        U::ReauthRequired(u) => {
            let mut o = open(out, "reauth_required");
            o.number("expires", u.expires);
            o.close();
        }
        U::Pong(u) => {
            let mut o = open(out, "pong");
            o.number("server_time", u.server_time);
            o.close();
        }
        U::Delayed(u) => {
            let mut o = open(out, "delayed");
            o.id("conversation", u.conversation);
            o.number("seq", u.seq);
            o.close();
        }
        U::Lagging(_) => open(out, "lagging").close(),
        U::Mode(u) => {
            let mut o = open(out, "mode");
            o.name("feature", name_of::<Feature>(u.feature));
            o.name("state", name_of::<FeatureState>(u.state));
            o.number("since", u.since);
            o.close();
        }
    }
}

fn write_limits(limits: &Limits, out: &mut Vec<u8>) {
    let mut o = Object::open(out);
    o.number("frame_bytes_max", limits.frame_bytes_max);
    o.number("text_bytes_max", limits.text_bytes_max);
    o.number("sends_per_second", limits.sends_per_second);
    o.number("commands_per_frame_max", limits.commands_per_frame_max);
    o.number("page_max", limits.page_max);
    o.close();
}

fn write_ack(r#ref: u64, ack: &Ack, out: &mut Vec<u8>) {
    let mut o = Object::typed(out, "ack", r#ref);
    o.name("status", name_of::<Status>(ack.status));
    if ack.counter != 0 {
        let id = message_id(ack.conversation, ack.sender, ack.grant, ack.counter);
        o.long_id("message_id", &id);
    }
    o.id("conversation", ack.conversation);
    o.id("sender", ack.sender);
    o.number("grant", ack.grant);
    o.number("counter", ack.counter);
    o.id_unless_0("id", ack.id);
    o.number_unless_0("seq", ack.seq);
    o.number_unless_0("ts", ack.ts);
    o.number("head", ack.head);
    if ack.duplicate {
        o.flag("duplicate", true);
    }
    o.close();
}

/// Writes a sync page around events that are already written; `page.events` does not count.
pub(crate) fn sync_page(r#ref: u64, page: &SyncPage, events: &[u8], out: &mut Vec<u8>) {
    let mut o = Object::typed(out, "sync_page", r#ref);
    o.id("conversation", page.conversation);
    o.name("conversation_kind", name_of::<ConversationKind>(page.kind));
    if !page.title.is_empty() {
        o.text("title", &page.title);
    }
    o.number("head", page.head);
    o.number("grant", page.grant);
    o.name("role", name_of::<Role>(page.role));
    o.number("visible_from", page.visible_from);
    o.number("read", page.read);
    write_events(&mut o, events);
    o.number_unless_0("missing_from", page.missing_from);
    o.close();
}

/// Writes a history page around events that are already written; `page.events` does not count.
pub(crate) fn history_page(r#ref: u64, page: &HistoryPage, events: &[u8], out: &mut Vec<u8>) {
    let mut o = Object::typed(out, "history_page", r#ref);
    o.id("conversation", page.conversation);
    o.number("from", page.from);
    o.number("to", page.to);
    write_events(&mut o, events);
    o.number("head", page.head);
    o.close();
}

fn write_events(o: &mut Object<'_>, events: &[u8]) {
    let out = o.key("events");
    out.push(b'[');
    out.extend_from_slice(events);
    out.push(b']');
}

const NAMES: [&str; 19] = [
    "message",
    "ack",
    "members",
    "hello",
    "ready",
    "sync_page",
    "sync_done",
    "history_page",
    "heads",
    "receipts",
    "typing",
    "presence",
    "error",
    "reconnect",
    "reauth_required",
    "pong",
    "delayed",
    "lagging",
    "mode",
];

/// Reads one update. A `type` of a later server gives an update without content, to be ignored.
pub(crate) fn update(text: &str) -> Result<Update> {
    use update::Update as U;
    let mut fields = Fields::parse(text)?;
    let r#ref = fields.number("ref")?;
    let name = fields
        .text("type")?
        .ok_or_else(|| DecodeError::bad("`type` is missing."))?;
    fields.what = NAMES
        .iter()
        .find(|known| **known == name)
        .copied()
        .unwrap_or_default();
    // As many as the frame has room for: a server is not guarded against here.
    let any = usize::MAX;
    let f = &fields;
    let content = match f.what {
        "message" | "members" => U::Event(event(f)?),
        "ack" => U::Ack(ack(f)?),
        "hello" => U::Hello(Hello {
            version: f.number32("version")?,
            heartbeat_ms: f.number32("heartbeat_ms")?,
            server_time: f.number("server_time")?,
            limits: f.raw("limits").map(limits).transpose()?,
            oldest: f.number32("oldest")?,
        }),
        "ready" => U::Ready(Ready {
            user: f.id("user")?,
            device: f.id("device")?,
            session: f.id("session")?,
            epoch: f.number32("epoch")?,
            expires: f.number("expires")?,
            version: f.number32("version")?,
        }),
        "sync_page" => U::SyncPage(SyncPage {
            conversation: f.id("conversation")?,
            kind: f.name_or_unknown::<ConversationKind>("conversation_kind")?,
            title: f.string("title")?,
            head: f.number("head")?,
            grant: f.number("grant")?,
            role: f.name_or_unknown::<Role>("role")?,
            visible_from: f.number("visible_from")?,
            read: f.number("read")?,
            events: f.list("events", any, listed_event)?,
            missing_from: f.number("missing_from")?,
        }),
        "sync_done" => U::SyncDone(SyncDone {
            epoch: f.number32("epoch")?,
            conversations: f.number32("conversations")?,
            complete: f.flag("complete")?,
            reset: f.flag("reset")?,
        }),
        "history_page" => U::HistoryPage(HistoryPage {
            conversation: f.id("conversation")?,
            from: f.number("from")?,
            to: f.number("to")?,
            events: f.list("events", any, listed_event)?,
            head: f.number("head")?,
        }),
        "heads" => U::Heads(Heads {
            heads: f.list("heads", any, cursor)?,
        }),
        "receipts" => U::Receipts(Receipts {
            conversation: f.id("conversation")?,
            receipts: f.list("receipts", any, receipt)?,
        }),
        "typing" => U::Typing(TypingUpdate {
            conversation: f.id("conversation")?,
            user: f.id("user")?,
            on: f.flag("on")?,
        }),
        "presence" => U::Presence(PresenceUpdate {
            users: f.list("users", any, user_presence)?,
        }),
        "error" => U::Error(Error {
            code: f.string("code")?,
            message: f.string("message")?,
            retry_after_ms: f.number32("retry_after_ms")?,
            conversation: f.id("conversation")?,
            sender: f.id("sender")?,
            counter: f.number("counter")?,
        }),
        "reconnect" => U::Reconnect(Reconnect {
            after_ms: f.number32("after_ms")?,
        }),
        "reauth_required" => U::ReauthRequired(ReauthRequired {
            expires: f.number("expires")?,
        }),
        "pong" => U::Pong(Pong {
            server_time: f.number("server_time")?,
        }),
        "delayed" => U::Delayed(Delayed {
            conversation: f.id("conversation")?,
            seq: f.number("seq")?,
        }),
        "lagging" => U::Lagging(Lagging {}),
        "mode" => U::Mode(Mode {
            feature: f.name_or_unknown::<Feature>("feature")?,
            state: f.name_or_unknown::<FeatureState>("state")?,
            since: f.number("since")?,
        }),
        _ => {
            return Ok(Update {
                r#ref,
                update: None,
            });
        }
    };
    Ok(Update {
        r#ref,
        update: Some(content),
    })
}

fn ack(f: &Fields<'_>) -> Result<Ack> {
    Ok(Ack {
        conversation: f.id("conversation")?,
        sender: f.id("sender")?,
        grant: f.number("grant")?,
        counter: f.number("counter")?,
        id: f.id("id")?,
        status: f.name_or_unknown::<Status>("status")?,
        seq: f.number("seq")?,
        ts: f.number("ts")?,
        head: f.number("head")?,
        duplicate: f.flag("duplicate")?,
    })
}

fn limits(text: &str) -> Result<Limits> {
    let mut f = Fields::parse(text)?;
    f.what = "limits";
    Ok(Limits {
        frame_bytes_max: f.number32("frame_bytes_max")?,
        text_bytes_max: f.number32("text_bytes_max")?,
        sends_per_second: f.number32("sends_per_second")?,
        commands_per_frame_max: f.number32("commands_per_frame_max")?,
        page_max: f.number32("page_max")?,
    })
}

fn receipt(text: &str) -> Result<Receipt> {
    let mut f = Fields::parse(text)?;
    f.what = "receipts";
    Ok(Receipt {
        user: f.id("user")?,
        delivered: f.number("delivered")?,
        read: f.number("read")?,
    })
}

fn user_presence(text: &str) -> Result<UserPresence> {
    let mut f = Fields::parse(text)?;
    f.what = "presence";
    Ok(UserPresence {
        user: f.id("user")?,
        state: f.name_or_unknown::<Presence>("state")?,
        last_seen: f.number("last_seen")?,
    })
}
