//! UTF-8 checked while it arrives.

/// A byte that can't continue the text seen so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidUtf8;

/// Validates text that comes in pieces, failing at the first byte that can't be right.
///
/// At most three bytes are kept: the beginning of a code point whose end hasn't come.
#[derive(Debug, Default, Clone, Copy)]
pub struct Utf8 {
    pending: [u8; 4],
    pending_len: u8,
}

impl Utf8 {
    /// Takes the next piece.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), InvalidUtf8> {
        while self.pending_len > 0 {
            let Some((&byte, rest)) = bytes.split_first() else {
                return Ok(());
            };
            bytes = rest;
            self.pending[usize::from(self.pending_len)] = byte;
            self.pending_len += 1;
            match std::str::from_utf8(&self.pending[..usize::from(self.pending_len)]) {
                Ok(_) => self.pending_len = 0,
                // A length means a byte that is wrong whatever follows; none means "more to come".
                Err(error) if error.error_len().is_some() => return Err(InvalidUtf8),
                Err(_) => {}
            }
        }
        if let Err(error) = simdutf8::compat::from_utf8(bytes) {
            if error.error_len().is_some() {
                return Err(InvalidUtf8);
            }
            let tail = &bytes[error.valid_up_to()..];
            self.pending[..tail.len()].copy_from_slice(tail);
            self.pending_len = tail.len() as u8;
        }
        Ok(())
    }

    /// Whether the text may end here, that is, not inside a code point.
    pub fn is_complete(&self) -> bool {
        self.pending_len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::{InvalidUtf8, Utf8};

    /// Feeds one byte at a time and returns the index of the byte that was refused.
    fn first_bad(bytes: &[u8]) -> Option<usize> {
        let mut utf8 = Utf8::default();
        bytes.iter().position(|&byte| utf8.feed(&[byte]).is_err())
    }

    #[test]
    fn the_first_impossible_byte_is_refused_at_once() {
        for (bytes, bad) in [
            (&b"plain"[..], None),
            ("κόσμε 🦀".as_bytes(), None),
            (b"a\x80", Some(1)),
            (b"\xc0\xaf", Some(0)),
            (b"\xe0\x80\xaf", Some(1)),
            (b"\xed\xa0\x80", Some(1)),
            (b"\xf4\x90\x80\x80", Some(1)),
            (b"\xf8\x88\x80\x80\x80", Some(0)),
            (b"\xf0\x9f\xa6x", Some(3)),
        ] {
            assert_eq!(first_bad(bytes), bad, "{bytes:x?}");
        }
    }

    #[test]
    fn a_code_point_may_be_split_anywhere_but_not_left_open() {
        let text = "aé€🦀z".as_bytes();
        for split in 0..=text.len() {
            let mut utf8 = Utf8::default();
            assert_eq!(utf8.feed(&text[..split]), Ok(()));
            let inside = std::str::from_utf8(&text[..split]).is_err();
            assert_eq!(utf8.is_complete(), !inside, "split at {split}");
            assert_eq!(utf8.feed(&text[split..]), Ok(()));
            assert!(utf8.is_complete());
        }
        assert_eq!(Utf8::default().feed(b"ok\xff"), Err(InvalidUtf8));
    }
}
