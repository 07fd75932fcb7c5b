//! Identifiers as JSON shows them: lower-case hex of fixed length.

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Appends the digits of `bytes`.
pub(crate) fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.extend_from_slice(&[
            DIGITS[usize::from(byte >> 4)],
            DIGITS[usize::from(byte & 15)],
        ]);
    }
}

fn text(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|d| char::from(DIGITS[usize::from(d)]))
        .collect()
}

/// An id as 16 lower-case hex digits, the highest first.
pub fn to_hex16(id: u64) -> String {
    text(&id.to_be_bytes())
}

/// A message id as 32 lower-case hex digits.
pub fn to_hex32(id: &[u8; 16]) -> String {
    text(id)
}

/// The id of exactly 16 lower-case hex digits; anything else is none, so that
/// an id has one spelling.
pub fn parse_hex16(text: &str) -> Option<u64> {
    parse::<8>(text).map(u64::from_be_bytes)
}

/// The message id of exactly 32 lower-case hex digits.
pub fn parse_hex32(text: &str) -> Option<[u8; 16]> {
    parse::<16>(text)
}

fn parse<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn digit(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        assert_eq!(to_hex16(0xf3), "00000000000000f3");
        assert_eq!(parse_hex16("00000000000000f3"), Some(0xf3));
        for other in [
            "f3",
            "00000000000000F3",
            "+0000000000000f3",
            "00000000000000f3 ",
            "",
        ] {
            assert_eq!(parse_hex16(other), None, "{other:?}");
        }
        let id = *b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\xff";
        assert_eq!(parse_hex32(&to_hex32(&id)), Some(id));
    }
}
