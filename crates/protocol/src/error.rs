//! Why a frame could not be read.

use std::borrow::Cow;

use crate::codes::ErrorCode;
use crate::wire::{Error, Update, update};

/// A frame or command that could not be read, as the client is told.
///
/// `message` is a sentence of ours saying what is wrong and where; it holds
/// nothing the client sent, so it may be logged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct DecodeError {
    /// `bad_request`, `unknown_type` or `too_long`.
    pub code: ErrorCode,
    /// What is wrong and where.
    pub message: Cow<'static, str>,
    /// The command's `ref` where it could be read, else 0.
    pub r#ref: u64,
    /// The conversation of a refused send where it could be read, else 0.
    pub conversation: u64,
    /// The sender of a refused send where it could be read, else 0.
    pub sender: u64,
    /// The counter of a refused send where it could be read, else 0.
    pub counter: u64,
}

impl DecodeError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        let message = message.into();
        DecodeError {
            code,
            message,
            r#ref: 0,
            conversation: 0,
            sender: 0,
            counter: 0,
        }
    }

    pub(crate) fn bad(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::BadRequest, message)
    }

    pub(crate) fn with_ref(mut self, r#ref: u64) -> Self {
        self.r#ref = r#ref;
        self
    }

    /// The `error` update that tells the client.
    pub fn to_update(&self) -> Update {
        Update {
            r#ref: self.r#ref,
            update: Some(update::Update::Error(Error {
                code: self.code.as_str().to_owned(),
                message: self.message.clone().into_owned(),
                retry_after_ms: 0,
                conversation: self.conversation,
                sender: self.sender,
                counter: self.counter,
            })),
        }
    }
}
