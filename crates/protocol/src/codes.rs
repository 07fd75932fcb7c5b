//! Error codes and close codes, each with what the client does next.
//!
//! A client that meets a code it does not know still acts rightly: an unknown
//! error is retried only if it carries `retry_after_ms`, an unknown close code
//! is judged by its range ([`Advice::of_code`]).

/// What the sender of a refused command does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Remedy {
    /// The same command never succeeds. A numbered send is replaced by an empty one.
    Never,
    /// The same command may succeed after `retry_after_ms`.
    Later,
    /// A fresh token is needed first.
    FreshToken,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $remedy:ident;)*) => {
        /// Why a command was refused; the `code` of an `error` update.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $($(#[$doc])* $variant,)* }

        impl ErrorCode {
            /// Every code, in the order of `docs/protocol.md`.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant,)*];

            /// The stable name on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$variant => $name,)* }
            }

            /// What the client does about it.
            pub const fn remedy(self) -> Remedy {
                match self { $(ErrorCode::$variant => Remedy::$remedy,)* }
            }
        }
    };
}

error_codes! {
    /// A frame or command that is malformed, or a field out of its range.
    BadRequest = "bad_request", Never;
    /// A command this server does not know; it is older than the client.
    UnknownType = "unknown_type", Never;
    /// The token was refused.
    Unauthorized = "unauthorized", FreshToken;
    /// Not allowed, or no such conversation: the two look the same.
    Forbidden = "forbidden", Never;
    /// A body, list or name above its published limit.
    TooLong = "too_long", Never;
    /// Refused for good by a rule of this server.
    Refused = "refused", Never;
    /// A cursor or seq beyond the head of its conversation.
    BadCursor = "bad_cursor", Never;
    /// More than the published rate.
    RateLimited = "rate_limited", Later;
    /// A part of the server does not answer now; a send may or may not have been taken.
    Unavailable = "unavailable", Later;
    /// No room to store anything; reading works.
    StorageFull = "storage_full", Later;
    /// Old history cannot be read now; live messages flow.
    HistoryDelayed = "history_delayed", Later;
    /// A fault of the server, which is logged there.
    Internal = "internal", Later;
}

impl ErrorCode {
    /// The code of this name; `None`: a later server's.
    pub fn from_name(name: &str) -> Option<ErrorCode> {
        Self::ALL.iter().copied().find(|code| code.as_str() == name)
    }

    /// Whether the same command may succeed later without any change.
    pub const fn retry(self) -> bool {
        matches!(self.remedy(), Remedy::Later)
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a client does after its connection was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Advice {
    /// Come back at once (with the usual jitter), with a fresh token if it was for that.
    Reconnect,
    /// Come back after a delay: the backoff, starting one step up.
    ReconnectLater,
    /// Do not come back by itself: the user or the developer must do something.
    GiveUp,
}

macro_rules! close_codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, $advice:ident;)*) => {
        /// Why a server closed a connection; the close frame's status code.
        ///
        /// The 1xxx codes are those of RFC 6455 section 7.4.1 and its registry.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum CloseCode { $($(#[$doc])* $variant = $code,)* }

        impl CloseCode {
            /// Every code a server sends, in rising order.
            pub const ALL: &'static [CloseCode] = &[$(CloseCode::$variant,)*];

            /// The reason sent with the code; at most 123 bytes.
            pub const fn reason(self) -> &'static str {
                match self { $(CloseCode::$variant => $name,)* }
            }

            /// What the client does about it.
            pub const fn advice(self) -> Advice {
                match self { $(CloseCode::$variant => Advice::$advice,)* }
            }
        }
    };
}

close_codes! {
    /// The client asked for it.
    Normal = 1000, "normal", GiveUp;
    /// The server goes away, for good as far as it knows.
    GoingAway = 1001, "going away", Reconnect;
    /// The client broke the WebSocket protocol.
    Protocol = 1002, "protocol error", ReconnectLater;
    /// A text message under the binary subprotocol, or the other way round.
    WrongType = 1003, "wrong message type", GiveUp;
    /// Text that is not UTF-8.
    InvalidUtf8 = 1007, "invalid utf-8", ReconnectLater;
    /// No `auth` in time, another command before it, or a frame without progress.
    Policy = 1008, "policy violation", ReconnectLater;
    /// A message above the frame limit.
    TooBig = 1009, "message too big", ReconnectLater;
    /// A fault of the server in this connection.
    Internal = 1011, "internal error", ReconnectLater;
    /// The server restarts or drains; a `reconnect` update said when to come back.
    Restart = 1012, "restart", Reconnect;
    /// The server is full or cut off.
    TryLater = 1013, "try again later", ReconnectLater;
    /// The token's end came and no fresh one before it.
    TokenExpired = 4001, "token expired", Reconnect;
    /// The session, device or user was revoked.
    Revoked = 4002, "revoked", GiveUp;
    /// What was asked is not this user's, again and again.
    Forbidden = 4003, "forbidden", GiveUp;
    /// The client read too slowly, also after being told so by `lagging`.
    TooSlow = 4004, "too slow", ReconnectLater;
    /// A newer connection of the same device took this one's place.
    Replaced = 4005, "replaced", GiveUp;
    /// The state the connection rests on is gone: connect and sync anew.
    ResumeInvalid = 4006, "resume invalid", Reconnect;
    /// Far above the published rates.
    Rate = 4008, "rate limit", ReconnectLater;
    /// Nothing was heard from the client for too long.
    Heartbeat = 4009, "heartbeat missed", Reconnect;
    /// This server does not speak the client's version of the schema.
    Version = 4010, "unsupported version", GiveUp;
}

impl CloseCode {
    /// The number in the close frame.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The code of this number; `None`: not one a server of this version sends.
    pub fn from_code(code: u16) -> Option<CloseCode> {
        Self::ALL.iter().copied().find(|c| c.code() == code)
    }
}

impl Advice {
    /// What a client does after any close code, known or not.
    ///
    /// A code of a later version falls into a range: 4500–4999 say give up, all
    /// others come back later, and so does a connection that ended without a
    /// code (1005, 1006, 1015 as a WebSocket library reports them).
    pub fn of_code(code: u16) -> Advice {
        match CloseCode::from_code(code) {
            Some(known) => known.advice(),
            None if (4500..5000).contains(&code) => Advice::GiveUp,
            None => Advice::ReconnectLater,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_codes() {
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_name(code.as_str()), Some(code));
        }
        for &code in CloseCode::ALL {
            assert_eq!(CloseCode::from_code(code.code()), Some(code));
            assert!(
                code.reason().len() <= 123,
                "RFC 6455 5.5: 125 bytes with the code"
            );
        }
    }

    #[test]
    fn an_unknown_close_code_is_judged_by_its_range() {
        assert_eq!(Advice::of_code(1006), Advice::ReconnectLater);
        assert_eq!(Advice::of_code(4123), Advice::ReconnectLater);
        assert_eq!(Advice::of_code(4500), Advice::GiveUp);
        assert_eq!(Advice::of_code(4002), Advice::GiveUp);
        assert_eq!(Advice::of_code(4001), Advice::Reconnect);
    }

    #[test]
    fn codes_that_must_never_be_sent_are_not_ours() {
        for reserved in [1004, 1005, 1006, 1015] {
            assert_eq!(CloseCode::from_code(reserved), None);
        }
    }
}
