//! The server's own access tokens.
//!
//! A token says who, on which device, under which sign-in, from when to when, and is signed with
//! the server's key: `tac_`, then base64url of 40 bytes (user, device, sign-in, issued,
//! expires; 8 bytes each, big endian) and the 32 bytes of HMAC-SHA256 over the prefix and
//! them. A format of one algorithm has no algorithm to confuse; checking one takes about
//! a microsecond, so nothing is cached.

use tidings_core::ids::{DeviceId, Micros, UserId};
use tidings_core::ports::directory::SignInId;

use super::secrets::ServerKey;
use super::{AuthError, Principal, signed};

const PREFIX: &str = "tac_";

/// Whether a token is one of these, and not one of a customer's backend.
pub(super) fn is_own(token: &str) -> bool {
    token.starts_with(PREFIX)
}

pub(super) fn issue(key: &ServerKey, p: &Principal) -> String {
    let fields = [p.user.0, p.device.0, p.sign_in.0, p.issued, p.expires];
    signed::text(key, PREFIX, fields)
}

pub(super) fn verify(key: &ServerKey, token: &str, now: Micros) -> Result<Principal, AuthError> {
    let [user, device, sign_in, issued, expires] = signed::numbers::<5, 72>(key, PREFIX, token)?;
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
