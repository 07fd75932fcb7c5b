//! The server's own access tokens.
//!
//! A token says who, on which device, under which sign-in, from when to when, and is signed with
//! the server's key: `tac_`, then base64url of 40 bytes (user, device, sign-in, issued,
//! expires; 8 bytes each, big endian) and the 32 bytes of HMAC-SHA256 over the prefix and
//! them. A format of one algorithm has no algorithm to confuse; checking one takes about
//! a microsecond, so nothing is cached.

use tidings_core::ids::{DeviceId, Micros, UserId};
use tidings_core::ports::directory::SignInId;

use super::secrets::{self, ServerKey};
use super::{AuthError, Principal};

const PREFIX: &str = "tac_";
const CLAIMS: usize = 40;
const TOKEN: usize = CLAIMS + 32;

/// Whether a token is one of these, and not one of a customer's backend.
pub(super) fn is_own(token: &str) -> bool {
    token.starts_with(PREFIX)
}

pub(super) fn issue(key: &ServerKey, principal: &Principal) -> String {
    let mut token = [0u8; TOKEN];
    let fields = [
        principal.user.0,
        principal.device.0,
        principal.sign_in.0,
        principal.issued,
        principal.expires,
    ];
    for (slot, field) in token.chunks_exact_mut(8).zip(fields) {
        slot.copy_from_slice(&field.to_be_bytes());
    }
    let signature = key.sign(&message(&token[..CLAIMS]));
    token[CLAIMS..].copy_from_slice(&signature);
    format!("{PREFIX}{}", secrets::text(&token))
}

pub(super) fn verify(key: &ServerKey, token: &str, now: Micros) -> Result<Principal, AuthError> {
    let body = token.strip_prefix(PREFIX).ok_or(AuthError::Invalid)?;
    let token = secrets::bytes::<TOKEN>(body).ok_or(AuthError::Invalid)?;
    let (claims, signature) = token.split_at(CLAIMS);
    if !key.verify(&message(claims), signature) {
        return Err(AuthError::Invalid);
    }
    let mut fields = [0u64; 5];
    for (field, bytes) in fields.iter_mut().zip(claims.chunks_exact(8)) {
        *field = bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte));
    }
    let [user, device, sign_in, issued, expires] = fields;
    if expires <= now {
        return Err(AuthError::Expired);
    }
    Ok(Principal {
        user: UserId(user),
        device: DeviceId(device),
        sign_in: SignInId(sign_in),
        issued,
        expires,
    })
}

/// The prefix is signed too: a signature for another kind of token is none for this.
fn message(claims: &[u8]) -> [u8; PREFIX.len() + CLAIMS] {
    let mut message = [0u8; PREFIX.len() + CLAIMS];
    message[..PREFIX.len()].copy_from_slice(PREFIX.as_bytes());
    message[PREFIX.len()..].copy_from_slice(claims);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_this_key_signed_and_only_for_its_time() {
        let (folder, other_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = ServerKey::open(folder.path()).unwrap();
        let other = ServerKey::open(other_folder.path()).unwrap();
        let principal = Principal {
            user: UserId(1),
            device: DeviceId(u64::MAX >> 1),
            sign_in: SignInId(3),
            issued: 1_000,
            expires: 2_000,
        };
        let token = issue(&key, &principal);
        assert_eq!(verify(&key, &token, 1_999), Ok(principal));
        assert_eq!(verify(&key, &token, 2_000), Err(AuthError::Expired));
        assert_eq!(verify(&other, &token, 1_000), Err(AuthError::Invalid));
        for i in 0..token.len() {
            let mut forged = token.clone().into_bytes();
            forged[i] = if forged[i] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            assert_eq!(
                verify(&key, &forged, 1_000),
                Err(AuthError::Invalid),
                "character {i} changed"
            );
        }
        for bad in [
            "",
            "tac_",
            &token[..token.len() - 1],
            &format!("{token}A"),
            &format!("{token}="),
            "tac_ä",
        ] {
            assert_eq!(verify(&key, bad, 1_000), Err(AuthError::Invalid), "{bad}");
        }
    }
}
