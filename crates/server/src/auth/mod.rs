//! Who is speaking: passwords, tokens, keys, tickets, and what is revoked.
//!
//! [`Auth`] is the one entry. Its fast path ([`Auth::verify`]) neither blocks nor waits, so a
//! gateway worker calls it in its loop; only an external token at first sight needs
//! the directory, and says so ([`Verdict::Unknown`]). Everything else is for the HTTP API.
//!
//! | token | form | kept where |
//! |---|---|---|
//! | access | `tac_…`, signed with the server's key, 15 minutes | nowhere |
//! | refresh | `tre_…`, 256 random bits, single use | hashed in the directory |
//! | API key | `tak_<id>_…`, 256 random bits | hashed in the directory |
//! | ticket | `tti_…`, who it speaks for, signed, single use, 30 s | that it was used, in the registry |
//! | external | JWT of a configured key | the hash of good ones, in memory |
//!
//! Nothing here prints a secret: their types have no `Debug`, or one that shows nothing.

use std::time::Duration;

use tidings_core::ids::{DeviceId, Micros, UserId};
use tidings_core::ports::directory::{ApiKeyId, DirectoryError, SignInId};

mod access;
mod accounts;
mod bounded;
mod external;
pub mod names;
mod password;
mod revocations;
mod secrets;
mod service;
mod signed;
#[cfg(test)]
mod tests;
mod throttle;
mod tickets;
mod verified;

pub use external::{ExternalAlgorithm, ExternalKey, TOKEN_BYTES_MAX};
pub use password::PASSWORD_BYTES;
#[cfg(feature = "cluster")]
pub use secrets::make_server_key;
pub use service::{Auth, AuthOpenError, AuthSettings, Clock};

/// Whom a token speaks for, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Principal {
    /// The user.
    pub user: UserId,
    /// The user's device.
    pub device: DeviceId,
    /// The sign-in an own token belongs to; 0 for tokens of a customer's backend.
    pub sign_in: SignInId,
    /// When the token was issued; what is revoked after that refuses it.
    pub issued: Micros,
    /// When it ends.
    pub expires: Micros,
}

/// What the fast path says of a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is good.
    Known(Principal),
    /// An external token not seen before, or not lately: [`Auth::verify_first`] decides.
    Unknown,
}

/// Which server speaks, and what it may do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiPrincipal {
    /// The key.
    pub key: ApiKeyId,
    /// The operator's name for it.
    pub name: String,
    /// What it may be used for.
    pub scopes: Vec<String>,
}

/// What a sign-in or a refresh gives.
#[derive(Clone)]
pub struct Tokens {
    /// Who signed in.
    pub user: UserId,
    /// On which device.
    pub device: DeviceId,
    /// The access token.
    pub access: String,
    /// When the access token ends.
    pub access_expires: Micros,
    /// The refresh token, good once.
    pub refresh: String,
    /// When the refresh token ends.
    pub refresh_expires: Micros,
}

/// Why somebody isn't let in, sorted by remedy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AuthError {
    /// The token, key or ticket isn't good and never will be: sign in again. 401.
    #[error("not a valid token")]
    Invalid,
    /// It was good: refresh. 401; a live session closes with 4001.
    #[error("the token has expired")]
    Expired,
    /// It was revoked: sign in again. 401; a live session closes with 4002.
    #[error("the token has been revoked")]
    Revoked,
    /// Unknown name or wrong password, which isn't told apart. 401.
    #[error("wrong name or password")]
    Credentials,
    /// The account is shut. 403.
    #[error("the account is disabled")]
    Disabled,
    /// Too many wrong passwords: wait. 429.
    #[error("too many attempts, retry after {} s", retry_after.as_secs())]
    Throttled {
        /// How long.
        retry_after: Duration,
    },
    /// The server has too much to do: wait. 429.
    #[error("too busy, retry after {} ms", retry_after.as_millis())]
    TooBusy {
        /// How long.
        retry_after: Duration,
    },
    /// The name can't be used: nothing visible, spaces in a login name, or over 64 characters. 400.
    #[error("the name can't be used")]
    Name,
    /// The name, or one that looks like it, is taken. 409.
    #[error("the name is taken")]
    NameTaken,
    /// The password isn't 8 to 1,024 bytes long. 400.
    #[error("the password must have 8 to 1,024 bytes")]
    PasswordLength,
    /// The password is among those that are tried first. 400.
    #[error("the password is too easily guessed")]
    PasswordCommon,
    /// The directory says no: by its own remedy.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl AuthError {
    /// Too much to do, for a second.
    fn busy() -> AuthError {
        AuthError::TooBusy {
            retry_after: Duration::from_secs(1),
        }
    }
}
