//! Frames, codes and versions: the only types serialised for clients.
//!
//! One schema (`proto/tidings.proto`, the [`wire`] module) has two forms,
//! chosen by WebSocket subprotocol: protobuf and JSON ([`Format`]). A frame is
//! the payload of one WebSocket message: a list of commands from a client, a
//! list of updates from a server. `docs/protocol.md` is the contract; this
//! crate is its implementation for both sides and does no I/O.
//!
//! - [`commands_decode`]: what a gateway reads, one command at a time, borrowed.
//! - [`encode_update`], [`encode_event`]: one item each; items of a format are
//!   made into a frame by [`frame`] without being encoded again.
//! - [`decode_client_frame`], [`encode_client_frame`], [`decode_server_frame`],
//!   [`encode_server_frame`]: whole frames as values.

pub mod body;
mod codec;
pub mod codes;
mod command;
mod error;
mod event;
pub mod frame;
mod hex;
mod json;
pub mod limits;
mod message_id;
mod names;
mod proto;
mod update;
mod versions;

pub use codec::{
    Commands, commands_decode, decode_client_frame, decode_server_frame, encode_client_frame,
    encode_command, encode_event, encode_history_page, encode_page_event, encode_server_frame,
    encode_sync_page, encode_update,
};
pub use codes::{CloseCode, ErrorCode};
pub use command::{CommandRef, Request, SendRef};
pub use error::DecodeError;
pub use event::{EventRef, Page};
pub use hex::{parse_hex16, parse_hex32, to_hex16, to_hex32};
pub use message_id::message_id;
pub use names::{Named, UNKNOWN};
pub use versions::Versions;

/// The messages of `proto/tidings.proto`.
#[allow(missing_docs)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/tidings.v1.rs"));
}

/// Shows all but the token, so that no log of a command holds one.
impl std::fmt::Debug for wire::Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth")
            .field("device", &self.device)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// The newest version of the schema that this crate speaks; sent in `hello` and `auth`.
pub const VERSION: u32 = 1;

/// The two forms of the schema, one per WebSocket subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Binary WebSocket messages holding protobuf.
    Proto,
    /// Text WebSocket messages holding one JSON object or an array of them.
    Json,
}

impl Format {
    /// Both formats, for loops over them.
    pub const ALL: [Format; 2] = [Format::Proto, Format::Json];

    /// The name in `Sec-WebSocket-Protocol`.
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Format::Proto => "tidings.v1.proto",
            Format::Json => "tidings.v1.json",
        }
    }

    /// The format of the first known name in a `Sec-WebSocket-Protocol` value,
    /// the client's order being its preference; `None`: no name is known.
    pub fn negotiate(offered: &str) -> Option<Format> {
        offered.split(',').find_map(|name| {
            Format::ALL
                .into_iter()
                .find(|f| f.subprotocol() == name.trim())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_subprotocol_is_taken() {
        let negotiate = Format::negotiate;
        assert_eq!(
            negotiate("tidings.v9, tidings.v1.json,tidings.v1.proto"),
            Some(Format::Json)
        );
        assert_eq!(negotiate(" tidings.v1.proto "), Some(Format::Proto));
        assert_eq!(
            negotiate("TIDINGS.V1.JSON, chat"),
            None,
            "names are case-sensitive"
        );
        assert_eq!(negotiate(""), None);
    }

    #[test]
    fn a_token_is_not_shown() {
        let auth = wire::Auth {
            token: "s3cret".into(),
            ..Default::default()
        };
        let command = Some(wire::command::Command::Auth(auth));
        assert!(!format!("{:?}", wire::Command { r#ref: 1, command }).contains("s3cret"));
    }
}
