//! Tickets: what a browser puts into a URL in place of a token, good once and for seconds.
//!
//! A ticket says for whom it speaks and is signed, so every server can read it: `tti_`, then base64url
//! of 64 bytes (user, device, sign-in, issued and expiry of the token; its own end; 16 random ones) and the
//! 32 bytes of HMAC-SHA256 over the prefix and them. That it is good once is claimed in the registry.

use std::time::Duration;

use tidings_core::ids::{DeviceId, Micros, UserId};
use tidings_core::ports::directory::SignInId;

use super::secrets::{self, ServerKey};
use super::{AuthError, Principal, signed};

const PREFIX: &str = "tti_";

/// How long a ticket is good (reliability.md, row 3).
const LIFE: Duration = Duration::from_secs(30);

/// Claims are remembered for longer than the ticket is good: servers' clocks may differ a little.
pub(super) const CLAIM_LIFE: Duration = Duration::from_secs(120);

pub(super) fn is_ticket(token: &str) -> bool {
    token.starts_with(PREFIX)
}

pub(super) fn issue(key: &ServerKey, p: &Principal, now: Micros) -> Result<String, AuthError> {
    let random = secrets::fresh()?;
    let word = |at: usize| {
        random[at..at + 8]
            .iter()
            .fold(0, |n, b| n << 8 | u64::from(*b))
    };
    let until = now + LIFE.as_micros() as Micros;
    let fields = [
        p.user.0,
        p.device.0,
        p.sign_in.0,
        p.issued,
        p.expires,
        until,
        word(0),
        word(8),
    ];
    Ok(signed::text(key, PREFIX, fields))
}

/// For whom it speaks, and what has to be claimed first.
pub(super) fn verify(
    key: &ServerKey,
    ticket: &str,
    now: Micros,
) -> Result<(Principal, u128), AuthError> {
    let [user, device, sign_in, issued, expires, until, high, low] =
        signed::numbers::<8, 96>(key, PREFIX, ticket)?;
    if until <= now {
        return Err(AuthError::Expired);
    }
    let principal = Principal {
        user: UserId(user),
        device: DeviceId(device),
        sign_in: SignInId(sign_in),
        issued,
        expires,
    };
    Ok((principal, u128::from(high) << 64 | u128::from(low)))
}
