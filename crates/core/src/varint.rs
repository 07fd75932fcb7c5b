//! Little-endian base-128 numbers and the reader that stored bytes are taken apart with.

use bytes::Bytes;

/// Stored or received bytes that don't follow their layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what}: bytes end early or hold an unknown value{}", seen(*.at))]
pub struct Malformed {
    /// Which layout was expected.
    pub what: &'static str,
    /// How many bytes had been read until then, where they are read front to back.
    pub at: Option<usize>,
}

impl Malformed {
    /// Of bytes that aren't read front to back.
    pub const fn of(what: &'static str) -> Malformed {
        Malformed { what, at: None }
    }
}

fn seen(at: Option<usize>) -> String {
    at.map_or_else(String::new, |at| format!(", seen after {at} of them"))
}

/// Appends `value` in 7-bit groups, lowest first: 1 byte below 128, at most 10.
pub fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length and then the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads a layout front to back; every method fails with [`Malformed`] instead of panicking.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
    len: usize,
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// A reader over `bytes`, whose errors name `what`.
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Reader {
            rest: bytes,
            len: bytes.len(),
            what,
        }
    }

    /// The error of this layout.
    pub fn malformed(&self) -> Malformed {
        Malformed {
            what: self.what,
            at: Some(self.len - self.rest.len()),
        }
    }

    /// Whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next byte.
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        let (&first, rest) = self.rest.split_first().ok_or(self.malformed())?;
        self.rest = rest;
        Ok(first)
    }

    /// The next number written by [`put`].
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(self.malformed());
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed())
    }

    /// The next number written by [`put`] that must fit 32 bits.
    pub fn varint32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?).map_err(|_| self.malformed())
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        if n > self.rest.len() {
            return Err(self.malformed());
        }
        let (taken, rest) = self.rest.split_at(n);
        self.rest = rest;
        Ok(taken)
    }

    /// The next 8 bytes as a little-endian number.
    pub fn fixed64(&mut self) -> Result<u64, Malformed> {
        let bytes = self.take(8)?;
        Ok(u64::from_le_bytes(
            bytes.try_into().expect("take(8) gives 8 bytes"),
        ))
    }

    /// The next bytes written by [`put_bytes`].
    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let n = usize::try_from(self.varint()?).map_err(|_| self.malformed())?;
        self.take(n)
    }

    /// As [`Reader::bytes`], copied into a buffer of its own.
    pub fn owned_bytes(&mut self) -> Result<Bytes, Malformed> {
        Ok(Bytes::copy_from_slice(self.bytes()?))
    }
}
