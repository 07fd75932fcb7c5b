//! Writing JSON objects straight into a buffer.

use crate::hex::push_hex;

/// An object being written; closed by [`Object::close`].
pub(crate) struct Object<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

impl<'a> Object<'a> {
    /// Begins an object.
    pub(crate) fn open(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Object { out, empty: true }
    }

    /// Begins an object with a `type`, and a `ref` unless that is 0.
    pub(crate) fn typed(out: &'a mut Vec<u8>, name: &str, r#ref: u64) -> Self {
        let mut object = Object::open(out);
        object.name("type", name);
        object.number_unless_0("ref", r#ref);
        object
    }

    /// Writes the key and gives the place for its value.
    pub(crate) fn key(&mut self, key: &str) -> &mut Vec<u8> {
        self.out
            .extend_from_slice(if self.empty { b"\"" } else { b",\"" });
        self.empty = false;
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    pub(crate) fn number(&mut self, key: &str, value: impl Into<u64>) {
        push_number(self.key(key), value.into());
    }

    pub(crate) fn number_unless_0(&mut self, key: &str, value: impl Into<u64>) {
        let value = value.into();
        if value != 0 {
            push_number(self.key(key), value);
        }
    }

    pub(crate) fn id(&mut self, key: &str, id: u64) {
        push_id(self.key(key), &id.to_be_bytes());
    }

    pub(crate) fn id_unless_0(&mut self, key: &str, id: u64) {
        if id != 0 {
            self.id(key, id);
        }
    }

    pub(crate) fn long_id(&mut self, key: &str, id: &[u8]) {
        push_id(self.key(key), id);
    }

    /// A name of the schema, which needs no escapes.
    pub(crate) fn name(&mut self, key: &str, name: &str) {
        let out = self.key(key);
        out.push(b'"');
        out.extend_from_slice(name.as_bytes());
        out.push(b'"');
    }

    pub(crate) fn text(&mut self, key: &str, text: &str) {
        push_string(self.key(key), text);
    }

    pub(crate) fn flag(&mut self, key: &str, flag: bool) {
        self.key(key)
            .extend_from_slice(if flag { b"true" } else { b"false" });
    }

    /// An array whose elements are written by `write`.
    pub(crate) fn list<T>(
        &mut self,
        key: &str,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Vec<u8>, T),
    ) {
        let out = self.key(key);
        out.push(b'[');
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            write(out, item);
        }
        out.push(b']');
    }

    /// Ends the object.
    pub(crate) fn close(self) {
        self.out.push(b'}');
    }
}

/// Appends an id as a string of hex digits.
pub(crate) fn push_id(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    push_hex(out, bytes);
    out.push(b'"');
}

fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        // A digit, so below 256.
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// Appends a string with the escapes RFC 8259 section 7 requires and no others.
fn push_string(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    let mut plain_from = 0;
    for (i, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[plain_from..i]);
        plain_from = i + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                out.extend_from_slice(b"\\u00");
                push_hex(out, &[control]);
            }
        }
    }
    out.extend_from_slice(&bytes[plain_from..]);
    out.push(b'"');
}
