//! Making frames: encoded once for each format, headers included, shared by every socket.

use bytes::Bytes;
use tidings_core::ids::Seq;
use tidings_core::record;
use tidings_core::rows::{EventRow, MembersBody};
use tidings_protocol::wire::{self, Update, update};
use tidings_protocol::{
    EventRef, Format, Page, encode_event, encode_history_page, encode_page_event, encode_update,
    frame,
};

use crate::ws::{FrameBuilder, Opcode};

/// The kind of WebSocket message that carries a format.
pub(super) fn opcode(format: Format) -> Opcode {
    match format {
        Format::Proto => Opcode::Binary,
        Format::Json => Opcode::Text,
    }
}

/// A frame of one update.
pub(super) fn update_frame(format: Format, r#ref: u64, update: update::Update) -> Bytes {
    let mut builder = FrameBuilder::with_capacity(64);
    encode_update(
        format,
        &Update {
            r#ref,
            update: Some(update),
        },
        builder.payload(),
    );
    builder.finish(opcode(format))
}

/// A frame of one event.
pub(super) fn event_frame(format: Format, row: &EventRow) -> Bytes {
    let mut builder = FrameBuilder::with_capacity(row.body.len() + 96);
    with_event(row, |event| {
        encode_event(format, 0, event, builder.payload())
    });
    builder.finish(opcode(format))
}

/// Several updates on their way into one frame.
#[derive(Default)]
pub(super) struct Pack {
    items: Vec<u8>,
    count: usize,
}

impl Pack {
    /// Adds the item that `encode` appends.
    pub(super) fn push(&mut self, format: Format, encode: impl FnOnce(&mut Vec<u8>)) {
        if self.count > 0 {
            self.items.extend_from_slice(frame::between(format));
        }
        encode(&mut self.items);
        self.count += 1;
    }

    /// Adds an update.
    pub(super) fn update(&mut self, format: Format, r#ref: u64, update: update::Update) {
        self.push(format, |out| {
            encode_update(
                format,
                &Update {
                    r#ref,
                    update: Some(update),
                },
                out,
            )
        });
    }

    pub(super) fn bytes(&self) -> usize {
        self.items.len()
    }

    /// The frame of all that was added, if anything was; the pack is empty afterwards.
    pub(super) fn take(&mut self, format: Format) -> Option<Bytes> {
        if self.count == 0 {
            return None;
        }
        let mut builder = FrameBuilder::with_capacity(self.items.len() + 2);
        let payload = builder.payload();
        payload.extend_from_slice(frame::open(format, self.count));
        payload.extend_from_slice(&self.items);
        payload.extend_from_slice(frame::close(format, self.count));
        self.items = Vec::new();
        self.count = 0;
        Some(builder.finish(opcode(format)))
    }
}

/// The most encoded bytes of events in one page: half of what a frame may have, as the last
/// event of a page may take nearly the other half in JSON.
const PAGE_BYTES_MAX: usize = 128 << 10;

/// Encodes the first `rows` that fit into a page; answers the bytes and the last seq among them.
pub(super) fn page_events(
    format: Format,
    page: Page,
    rows: &[&EventRow],
) -> (Vec<u8>, Option<Seq>) {
    let mut events = Vec::with_capacity(
        rows.iter()
            .map(|r| r.body.len() + 80)
            .sum::<usize>()
            .min(PAGE_BYTES_MAX),
    );
    let mut last = None;
    for row in rows {
        if events.len() >= PAGE_BYTES_MAX {
            break;
        }
        with_event(row, |event| {
            encode_page_event(format, page, event, &mut events)
        });
        last = Some(row.seq);
    }
    (events, last)
}

fn with_event(row: &EventRow, encode: impl FnOnce(&EventRef<'_>)) {
    let members = row.members.as_deref().map(wire_members);
    encode(&EventRef {
        conversation: row.conversation.0,
        seq: row.seq,
        ts: row.ts,
        user: row.user.0,
        sender: row.sender.0,
        grant: row.grant,
        counter: row.counter,
        id: row.id.0,
        kind: match row.kind {
            record::Kind::Text => wire::Kind::Text,
            record::Kind::Json => wire::Kind::Json,
            record::Kind::Empty => wire::Kind::Empty,
            record::Kind::Members => wire::Kind::Members,
        },
        encoding: match row.encoding {
            record::Encoding::Identity => wire::Encoding::Identity,
            record::Encoding::Zstd => wire::Encoding::Zstd,
        },
        body: &row.body,
        members: members.as_ref(),
    });
}

fn wire_members(body: &MembersBody) -> wire::Members {
    let changes = body.changes.iter().map(|change| wire::MemberChange {
        user: change.user.0,
        role: role(change.role).into(),
        ended: ended(change.before.grant, change.before.role, change.role),
    });
    wire::Members {
        version: body.version,
        changes: changes.collect(),
        kind: conversation_kind(body.kind).into(),
        title: body.title.clone(),
    }
}

/// The grant that a change of role ended: none when both roles may, or both may not, write.
fn ended(grant: Seq, before: record::Role, after: record::Role) -> Seq {
    let keeps = after.is_member() && before.may_write() == after.may_write();
    if keeps { 0 } else { grant }
}

pub(super) fn role(role: record::Role) -> wire::Role {
    match role {
        record::Role::None => wire::Role::None,
        record::Role::Reader => wire::Role::Reader,
        record::Role::Member => wire::Role::Member,
        record::Role::Admin => wire::Role::Admin,
        record::Role::Owner => wire::Role::Owner,
    }
}

pub(super) fn conversation_kind(kind: record::ConversationKind) -> wire::ConversationKind {
    match kind {
        record::ConversationKind::Direct => wire::ConversationKind::Direct,
        record::ConversationKind::Group => wire::ConversationKind::Group,
        record::ConversationKind::Channel => wire::ConversationKind::Channel,
    }
}

/// A history page as one frame's text or bytes, for answers outside a session. `page` has no
/// events of its own.
pub fn history_page(format: Format, page: wire::HistoryPage, rows: &[EventRow]) -> Vec<u8> {
    let mut events = Vec::new();
    for row in rows {
        with_event(row, |event| {
            encode_page_event(format, Page::History, event, &mut events);
        });
    }
    let mut item = Vec::with_capacity(events.len() + 128);
    encode_history_page(format, 0, page, &events, &mut item);
    item
}
