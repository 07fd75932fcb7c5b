//! The JSON form of the schema: familiar flat objects with a `type`.
//!
//! `read` and `write` know JSON and nothing of the schema; `command`, `update`
//! and `event` say how its messages look.

mod command;
mod event;
mod read;
mod update;
mod write;

pub(crate) use command::{command, write_command};
pub(crate) use event::{page_event, write_event};
pub(crate) use read::{check_value, frame_items};
pub(crate) use update::{history_page, sync_page, update, write_update};
