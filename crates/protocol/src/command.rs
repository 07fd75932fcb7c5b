//! One command as a gateway gets it: a send borrowed from the frame, the rest owned.

use std::borrow::Cow;

use bytes::Bytes;

use crate::body::{BodyError, check_body};
use crate::codes::ErrorCode;
use crate::error::DecodeError;
use crate::limits::{self, NUMBER_MAX};
use crate::wire::{self, Encoding, Kind, command};

/// One command of a frame.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandRef<'a> {
    /// Given back in answers and errors; 0: none.
    pub r#ref: u64,
    /// What is asked.
    pub request: Request<'a>,
}

/// What a command asks.
#[derive(Debug, Clone, PartialEq)]
pub enum Request<'a> {
    /// A send: the hot path, without a copy of its body.
    Send(SendRef<'a>),
    /// Any other command; never [`command::Command::Send`].
    Other(command::Command),
}

/// A send whose fields are in range. Its body is looked at by [`SendRef::check_body`].
#[derive(Debug, Clone, PartialEq)]
pub struct SendRef<'a> {
    /// The conversation it goes to.
    pub conversation: u64,
    /// The outbox it comes from.
    pub sender: u64,
    /// The seq of the event that let the user write.
    pub grant: u64,
    /// 1, 2, 3, … per (conversation, sender, grant).
    pub counter: u64,
    /// The message's own 8 random bytes; not 0.
    pub id: u64,
    /// The id under `counter - 1`; 0 exactly for the first.
    pub previous: u64,
    /// Text, JSON or empty.
    pub kind: Kind,
    /// How `body` is encoded.
    pub encoding: Encoding,
    /// The body as it came; borrowed from the frame unless JSON escapes had to be undone.
    pub body: Cow<'a, [u8]>,
}

impl SendRef<'_> {
    /// Checks the body against its kind and `inflated_max` bytes, and gives it back inflated.
    pub fn check_body(&self, inflated_max: usize) -> Result<Cow<'_, [u8]>, BodyError> {
        check_body(self.kind, self.encoding, &self.body, inflated_max)
    }

    /// The same as a message of the schema, with its own copy of the body.
    pub fn to_wire(&self) -> wire::Send {
        wire::Send {
            conversation: self.conversation,
            sender: self.sender,
            grant: self.grant,
            counter: self.counter,
            id: self.id,
            previous: self.previous,
            kind: self.kind.into(),
            body: Bytes::copy_from_slice(&self.body),
            encoding: self.encoding.into(),
        }
    }
}

impl CommandRef<'_> {
    /// The same as a message of the schema.
    pub fn to_wire(&self) -> wire::Command {
        let command = match &self.request {
            Request::Send(send) => command::Command::Send(send.to_wire()),
            Request::Other(other) => other.clone(),
        };
        wire::Command {
            r#ref: self.r#ref,
            command: Some(command),
        }
    }
}

/// The fields of a send as read, before anything is known of their ranges.
#[derive(Default)]
pub(crate) struct RawSend<'a> {
    pub conversation: u64,
    pub sender: u64,
    pub grant: u64,
    pub counter: u64,
    pub id: u64,
    pub previous: u64,
    pub kind: i32,
    pub encoding: i32,
    pub body: Cow<'a, [u8]>,
}

impl<'a> RawSend<'a> {
    /// Checks what can be told of a send by itself, whichever format it came in.
    pub(crate) fn check(self, r#ref: u64) -> Result<SendRef<'a>, DecodeError> {
        match self.problem() {
            None => {}
            Some(message) => {
                return Err(DecodeError {
                    conversation: self.conversation,
                    sender: self.sender,
                    counter: self.counter,
                    ..DecodeError::bad(message).with_ref(r#ref)
                });
            }
        }
        Ok(SendRef {
            conversation: self.conversation,
            sender: self.sender,
            grant: self.grant,
            counter: self.counter,
            id: self.id,
            previous: self.previous,
            kind: Kind::try_from(self.kind).unwrap_or_default(),
            encoding: Encoding::try_from(self.encoding).unwrap_or_default(),
            body: self.body,
        })
    }

    fn problem(&self) -> Option<&'static str> {
        let number = 1..=NUMBER_MAX;
        Some(match self {
            s if s.conversation == 0 => "`conversation` of `send` is missing or 0.",
            s if s.sender == 0 => "`sender` of `send` is missing or 0.",
            s if !number.contains(&s.grant) => "`grant` of `send` is not between 1 and 2^53 - 1.",
            s if !number.contains(&s.counter) => {
                "`counter` of `send` is not between 1 and 2^53 - 1."
            }
            s if s.id == 0 => "`id` of `send` is missing or 0.",
            s if s.counter == 1 && s.previous != 0 => {
                "`previous` of `send` must be left out with counter 1."
            }
            s if s.counter > 1 && s.previous == 0 => {
                "`previous` of `send` is missing; only counter 1 has none."
            }
            s if !matches!(
                Kind::try_from(s.kind),
                Ok(Kind::Text | Kind::Json | Kind::Empty)
            ) =>
            {
                "`kind` of `send` is not `text`, `json` or `empty`."
            }
            s if Encoding::try_from(s.encoding).is_err() => {
                "`encoding` of `send` is not one this server knows."
            }
            _ => return None,
        })
    }
}

/// Checks what can be told of any other command by itself, whichever format it came in.
pub(crate) fn check_other(command: &command::Command) -> Result<(), DecodeError> {
    use command::Command::{
        Auth, Delivered, History, Ping, Presence, Read, Send, Sync, Typing, Watch,
    };
    let bad = |message: &'static str| Err(DecodeError::bad(message));
    let long = |message: &'static str| Err(DecodeError::new(ErrorCode::TooLong, message));
    match command {
        Auth(c) if c.token.is_empty() => bad("`token` of `auth` is missing."),
        Auth(c) if c.token.len() > limits::TOKEN_BYTES_MAX => {
            long("`token` of `auth` is longer than 8 KiB.")
        }
        Auth(c) if c.device.len() > limits::DEVICE_BYTES_MAX => {
            long("`device` of `auth` is longer than 64 bytes.")
        }
        Delivered(c) if c.conversation == 0 => bad("`conversation` of `delivered` is missing."),
        Delivered(c) if !(1..=NUMBER_MAX).contains(&c.seq) => {
            bad("`seq` of `delivered` is not between 1 and 2^53 - 1.")
        }
        Read(c) if c.conversation == 0 => bad("`conversation` of `read` is missing."),
        Read(c) if c.seq > NUMBER_MAX => bad("`seq` of `read` is above 2^53 - 1."),
        Read(c) if c.seq == 0 && c.message_id.len() != 16 => {
            bad("`read` names neither a `seq` nor a `message_id` of 16 bytes.")
        }
        Typing(c) if c.conversation == 0 => bad("`conversation` of `typing` is missing."),
        Presence(c) if wire::Presence::try_from(c.state).is_err() => {
            bad("`state` of `presence` is not `online`, `away` or `offline`.")
        }
        Watch(c) if c.users.len() > limits::WATCH_MAX => {
            long("`users` of `watch` has more than 1,000 entries.")
        }
        Sync(c) if c.cursors.len() > limits::SYNC_CURSORS_MAX => {
            long("`cursors` of `sync` has more than 4,096 entries.")
        }
        Sync(c)
            if c.cursors
                .iter()
                .any(|c| c.conversation == 0 || c.seq > NUMBER_MAX) =>
        {
            bad("A cursor of `sync` has no `conversation`, or a `seq` above 2^53 - 1.")
        }
        History(c) if c.conversation == 0 => bad("`conversation` of `history` is missing."),
        History(c) if c.before.max(c.after) > NUMBER_MAX => {
            bad("`before` or `after` of `history` is above 2^53 - 1.")
        }
        Auth(_) | Send(_) | Delivered(_) | Read(_) | Typing(_) | Presence(_) | Watch(_)
        | Sync(_) | History(_) | Ping(_) => Ok(()),
    }
}
