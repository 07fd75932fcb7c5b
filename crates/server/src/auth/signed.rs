//! Numbers under the server's signature: the form of access tokens and tickets.
//!
//! A prefix, then base64url of the numbers (8 bytes each, big endian) and 32 bytes of HMAC-SHA256 over
//! the prefix and them. The prefix is signed too: a signature for one kind is none for another.

use super::AuthError;
use super::secrets::{self, ServerKey};

const SIGNATURE: usize = 32;

/// The text of these numbers.
pub(super) fn text<const N: usize>(key: &ServerKey, prefix: &str, numbers: [u64; N]) -> String {
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
    let signature = key.sign(&message(prefix, &bytes));
    bytes.extend(signature);
    format!("{prefix}{}", secrets::text(&bytes))
}

/// The numbers of a text that this server, or one with the same key, has made. `BYTES` is the length of
/// the numbers and the signature.
pub(super) fn numbers<const N: usize, const BYTES: usize>(
    key: &ServerKey,
    prefix: &str,
    text: &str,
) -> Result<[u64; N], AuthError> {
    const { assert!(BYTES == 8 * N + SIGNATURE) };
    let body = text.strip_prefix(prefix).ok_or(AuthError::Invalid)?;
    let bytes = secrets::bytes::<BYTES>(body).ok_or(AuthError::Invalid)?;
    let (claims, signature) = bytes.split_at(8 * N);
    if !key.verify(&message(prefix, claims), signature) {
        return Err(AuthError::Invalid);
    }
    let mut numbers = [0; N];
    for (number, bytes) in numbers.iter_mut().zip(claims.chunks_exact(8)) {
        *number = bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte));
    }
    Ok(numbers)
}

fn message(prefix: &str, claims: &[u8]) -> Vec<u8> {
    [prefix.as_bytes(), claims].concat()
}
