//! Tickets: what a browser puts into a URL in place of a token, good once and for seconds.
//!
//! A ticket says for whom it speaks and is signed, so every server can read it: `tti_`, then base64url
//! of 64 bytes (user, device, sign-in, issued and expiry of the token; its own end; 16 random ones) and the
//! 32 bytes of HMAC-SHA256 over the prefix and them. That it is good once is claimed in the registry.

use std::time::Duration;

use tidings_core::ids::{DeviceId, Micros, UserId};
use tidings_core::ports::directory::SignInId;

use super::secrets::{self, ServerKey};
use super::{AuthError, Principal};

const PREFIX: &str = "tti_";
const CLAIMS: usize = 64;
const TICKET: usize = CLAIMS + 32;

/// How long a ticket is good (reliability.md, row 3).
const LIFE: Duration = Duration::from_secs(30);

/// Claims are remembered for longer than the ticket is good: servers' clocks may differ a little.
pub(super) const CLAIM_LIFE: Duration = Duration::from_secs(120);

pub(super) fn is_ticket(token: &str) -> bool {
    token.starts_with(PREFIX)
}

pub(super) fn issue(key: &ServerKey, p: &Principal, now: Micros) -> Result<String, AuthError> {
    let random = secrets::fresh()?;
    let mut ticket = [0u8; TICKET];
    let until = now + LIFE.as_micros() as Micros;
    let fields = [
        p.user.0,
        p.device.0,
        p.sign_in.0,
        p.issued,
        p.expires,
        until,
    ];
    for (slot, field) in ticket.chunks_exact_mut(8).zip(fields) {
        slot.copy_from_slice(&field.to_be_bytes());
    }
    ticket[48..CLAIMS].copy_from_slice(&random[..16]);
    let signature = key.sign(&message(&ticket[..CLAIMS]));
    ticket[CLAIMS..].copy_from_slice(&signature);
    Ok(format!("{PREFIX}{}", secrets::text(&ticket)))
}

/// For whom it speaks, and what has to be claimed first.
pub(super) fn verify(
    key: &ServerKey,
    ticket: &str,
    now: Micros,
) -> Result<(Principal, u128), AuthError> {
    let body = ticket.strip_prefix(PREFIX).ok_or(AuthError::Invalid)?;
    let ticket = secrets::bytes::<TICKET>(body).ok_or(AuthError::Invalid)?;
    let (claims, signature) = ticket.split_at(CLAIMS);
    if !key.verify(&message(claims), signature) {
        return Err(AuthError::Invalid);
    }
    let mut fields = [0u64; 8];
    for (field, bytes) in fields.iter_mut().zip(claims.chunks_exact(8)) {
        *field = bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte));
    }
    let [user, device, sign_in, issued, expires, until, high, low] = fields;
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

/// The prefix is signed too: a signature for another kind of token is none for this.
fn message(claims: &[u8]) -> [u8; PREFIX.len() + CLAIMS] {
    let mut message = [0u8; PREFIX.len() + CLAIMS];
    message[..PREFIX.len()].copy_from_slice(PREFIX.as_bytes());
    message[PREFIX.len()..].copy_from_slice(claims);
    message
}
