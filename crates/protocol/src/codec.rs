//! The one codec interface over both formats.

use std::vec;

use prost::Message;

use crate::codes::ErrorCode;
use crate::command::CommandRef;
use crate::error::DecodeError;
use crate::event::{EventRef, Page};
use crate::limits::COMMANDS_PER_FRAME_MAX;
use crate::update::check_update;
use crate::wire::{ClientFrame, Command, HistoryPage, ServerFrame, SyncPage, Update};
use crate::{Format, frame, json, proto};

/// The commands of one frame, read one at a time.
///
/// After the first error there is nothing more: what stands behind a bad
/// command is not carried out, so that the sends of a connection keep their order.
pub struct Commands<'a> {
    items: CommandItems<'a>,
    failed: bool,
}

enum CommandItems<'a> {
    Proto(proto::Items<'a>),
    Json(vec::IntoIter<&'a str>),
}

/// Opens a client's frame. A frame whose envelope is broken or holds too many
/// commands is refused here, before any of it is carried out.
///
/// In protobuf nothing is allocated, here or for a `send` read afterwards.
pub fn commands_decode(format: Format, payload: &[u8]) -> Result<Commands<'_>, DecodeError> {
    let items = match format {
        Format::Proto => CommandItems::Proto(proto::Items::new(payload)?),
        Format::Json => match json::frame_items(payload, COMMANDS_PER_FRAME_MAX)? {
            Some(items) => CommandItems::Json(items.into_iter()),
            None => return Err(proto::too_many_commands()),
        },
    };
    Ok(Commands {
        items,
        failed: false,
    })
}

impl<'a> Iterator for Commands<'a> {
    type Item = Result<CommandRef<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let command = match &mut self.items {
            CommandItems::Proto(items) => proto::command(items.next()?),
            CommandItems::Json(items) => json::command(items.next()?),
        };
        self.failed = command.is_err();
        Some(command)
    }
}

/// Reads a client's whole frame; the first bad command refuses all of it.
pub fn decode_client_frame(format: Format, payload: &[u8]) -> Result<ClientFrame, DecodeError> {
    let commands = commands_decode(format, payload)?.map(|c| c.map(|c| c.to_wire()));
    Ok(ClientFrame {
        commands: commands.collect::<Result<_, _>>()?,
    })
}

/// Appends a client's frame. In JSON bodies are written plain, so whole frames may grow.
pub fn encode_client_frame(format: Format, client_frame: &ClientFrame, out: &mut Vec<u8>) {
    encode_frame(format, &client_frame.commands, encode_command, out);
}

/// Appends one command as an item of a frame (see [`frame`]).
pub fn encode_command(format: Format, command: &Command, out: &mut Vec<u8>) {
    match format {
        Format::Proto => proto::item(command, out),
        Format::Json => json::write_command(command, out),
    }
}

/// Reads a server's frame. Updates and names that only a later server knows do
/// not fail it: an unknown update has no content, an unknown name is
/// [`crate::UNKNOWN`] in JSON and its number in protobuf.
pub fn decode_server_frame(format: Format, payload: &[u8]) -> Result<ServerFrame, DecodeError> {
    match format {
        Format::Proto => {
            let frame = ServerFrame::decode(payload).map_err(|e| {
                DecodeError::new(ErrorCode::BadRequest, format!("Not a `ServerFrame`: {e}."))
            })?;
            frame.updates.iter().try_for_each(check_update)?;
            Ok(frame)
        }
        Format::Json => {
            let items = json::frame_items(payload, usize::MAX)?.unwrap_or_default();
            let updates = items
                .into_iter()
                .map(json::update)
                .collect::<Result<_, _>>()?;
            Ok(ServerFrame { updates })
        }
    }
}

/// Appends a server's frame.
pub fn encode_server_frame(format: Format, server_frame: &ServerFrame, out: &mut Vec<u8>) {
    encode_frame(format, &server_frame.updates, encode_update, out);
}

/// Appends one update as an item of a frame (see [`frame`]).
pub fn encode_update(format: Format, update: &Update, out: &mut Vec<u8>) {
    match format {
        Format::Proto => proto::item(update, out),
        Format::Json => json::write_update(update, out),
    }
}

fn encode_frame<T>(
    format: Format,
    items: &[T],
    encode: impl Fn(Format, &T, &mut Vec<u8>),
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(frame::open(format, items.len()));
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.extend_from_slice(frame::between(format));
        }
        encode(format, item, out);
    }
    out.extend_from_slice(frame::close(format, items.len()));
}

/// Appends an event as an item of a frame: the same bytes as [`encode_update`]
/// of the same event, without making one. JSON shows bodies inflated.
pub fn encode_event(format: Format, r#ref: u64, event: &EventRef<'_>, out: &mut Vec<u8>) {
    match format {
        Format::Proto => proto::event_update(r#ref, event, out),
        Format::Json => json::write_event(r#ref, event, out),
    }
}

/// Appends an event to `events`, a buffer that holds only events of one page
/// and goes into [`encode_sync_page`] or [`encode_history_page`]. Its length is
/// what the events add to the frame, so a page can be cut to fit.
pub fn encode_page_event(format: Format, page: Page, event: &EventRef<'_>, events: &mut Vec<u8>) {
    match format {
        Format::Proto => proto::page_event(page, event, events),
        Format::Json => json::page_event(event, events),
    }
}

/// Appends a sync page as an item of a frame: `page` without events of its own,
/// and the `events` that [`encode_page_event`] wrote for [`Page::Sync`].
pub fn encode_sync_page(
    format: Format,
    r#ref: u64,
    page: SyncPage,
    events: &[u8],
    out: &mut Vec<u8>,
) {
    debug_assert!(page.events.is_empty(), "the events are given encoded");
    match format {
        Format::Proto => proto::sync_page(r#ref, page, events, out),
        Format::Json => json::sync_page(r#ref, &page, events, out),
    }
}

/// Appends a history page as an item of a frame: `page` without events of its
/// own, and the `events` that [`encode_page_event`] wrote for [`Page::History`].
pub fn encode_history_page(
    format: Format,
    r#ref: u64,
    page: HistoryPage,
    events: &[u8],
    out: &mut Vec<u8>,
) {
    debug_assert!(page.events.is_empty(), "the events are given encoded");
    match format {
        Format::Proto => proto::history_page(r#ref, page, events, out),
        Format::Json => json::history_page(r#ref, &page, events, out),
    }
}
