//! External tokens that were found good.

use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use tidings_core::ids::{DeviceId, Micros, UserId};
use tidings_core::ports::directory::SignInId;

use super::Principal;
use super::bounded::Bounded;

/// Tokens remembered: at about 60 bytes each 4 MB when full, and room for every client of a
/// reconnect storm on one machine (performance.md has 15,000).
const TOKENS_MAX: usize = 65_536;

/// The table is cut in parts with a lock each, so that gateway workers don't wait for each other.
const PARTS: usize = 16;

/// What a token and a device's name are remembered under: half a SHA-256 of the whole of them.
/// Another token that finds an entry would be a second preimage of 128 bits; two tokens made to
/// collide (2^64 tries) win nothing, as whoever was checked under the first is whom the second
/// speaks for.
pub(super) type TokenKey = [u8; 16];

pub(super) fn token_key(token: &str, device: &str) -> TokenKey {
    let mut hash = Sha256::new();
    hash.update((token.len() as u64).to_be_bytes());
    hash.update(token.as_bytes());
    hash.update(device.as_bytes());
    let whole: [u8; 32] = hash.finalize().into();
    *whole.first_chunk().expect("32 is more than 16")
}

/// A [`Principal`] of a token that belongs to no sign-in, as all external ones.
#[derive(Clone, Copy)]
struct Known {
    user: UserId,
    device: DeviceId,
    issued: Micros,
    expires: Micros,
}

/// External tokens whose signature was checked and whose user is known.
pub(super) struct Verified {
    parts: [Mutex<Bounded<TokenKey, Known>>; PARTS],
}

impl Verified {
    pub(super) fn new() -> Verified {
        Verified {
            parts: std::array::from_fn(|_| Mutex::new(Bounded::new(TOKENS_MAX / PARTS))),
        }
    }

    fn part(&self, key: &TokenKey) -> &Mutex<Bounded<TokenKey, Known>> {
        &self.parts[usize::from(key[0]) % PARTS]
    }

    /// Who the token is; an expired one is forgotten. Revocation is for the caller to check.
    pub(super) fn get(&self, key: &TokenKey, now: Micros) -> Option<Principal> {
        let mut part = self
            .part(key)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = *part.get(key)?;
        if known.expires <= now {
            part.remove(key);
            return None;
        }
        Some(Principal {
            user: known.user,
            device: known.device,
            sign_in: SignInId::default(),
            issued: known.issued,
            expires: known.expires,
        })
    }

    /// Remembers a principal without a sign-in.
    pub(super) fn insert(&self, key: TokenKey, principal: Principal) {
        let known = Known {
            user: principal.user,
            device: principal.device,
            issued: principal.issued,
            expires: principal.expires,
        };
        let mut part = self
            .part(&key)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        part.insert(key, known);
    }
}
