//! Reading JSON strictly: an object is first split into the texts of its
//! fields, then those that are asked for are read as what they must be.
//!
//! Refused anywhere: a key given twice (two readers could see two messages),
//! more than 32 levels in a field's value, anything RFC 8259 does not allow
//! (`NaN`, trailing commas, …). Recursion is bounded by that depth.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

use crate::codes::ErrorCode;
use crate::error::DecodeError;
use crate::hex::{parse_hex16, parse_hex32};
use crate::limits::{JSON_DEPTH_MAX, JSON_FIELDS_MAX, NUMBER_MAX};
use crate::names::{Named, UNKNOWN};

type Result<T> = std::result::Result<T, DecodeError>;

/// The fields of one object, each the text of its value.
pub(crate) struct Fields<'a> {
    /// The `type` the fields belong to, for sentences about them.
    pub(crate) what: &'static str,
    fields: Vec<(Cow<'a, str>, &'a str)>,
}

impl<'a> Fields<'a> {
    /// Splits the object that `text` is.
    pub(crate) fn parse(text: &'a str) -> Result<Self> {
        if !text.starts_with('{') {
            return Err(DecodeError::bad("A JSON object was expected."));
        }
        let fields = parse_with(text, ObjectSeed)?;
        for (_, value) in &fields {
            if value.starts_with(['{', '[']) {
                check_text(value)?;
            }
        }
        Ok(Fields {
            what: "frame",
            fields,
        })
    }

    /// The text of a field's value; `None`: it is not there.
    pub(crate) fn raw(&self, key: &str) -> Option<&'a str> {
        self.fields
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| *value)
    }

    /// As [`Fields::raw`], with `null` as not there.
    fn given(&self, key: &str) -> Option<&'a str> {
        self.raw(key).filter(|value| *value != "null")
    }

    fn must_be(&self, key: &str, what: &str) -> DecodeError {
        DecodeError::bad(format!("`{key}` of `{}` must be {what}.", self.what))
    }

    /// A whole number below 2^53; 0: not there.
    pub(crate) fn number(&self, key: &'static str) -> Result<u64> {
        let Some(value) = self.given(key) else {
            return Ok(0);
        };
        let number = value.parse().ok().filter(|n| *n <= NUMBER_MAX);
        number.ok_or_else(|| self.must_be(key, "a whole number from 0 to 2^53 - 1"))
    }

    /// A whole number below 2^32; 0: not there.
    pub(crate) fn number32(&self, key: &'static str) -> Result<u32> {
        let number = u32::try_from(self.number(key)?);
        number.map_err(|_| self.must_be(key, "a whole number from 0 to 2^32 - 1"))
    }

    /// An id; 0: not there.
    pub(crate) fn id(&self, key: &'static str) -> Result<u64> {
        let Some(text) = self.text(key)? else {
            return Ok(0);
        };
        parse_hex16(&text).ok_or_else(|| self.must_be(key, "16 lower-case hex digits"))
    }

    /// A message id.
    pub(crate) fn long_id(&self, key: &'static str) -> Result<Option<[u8; 16]>> {
        let Some(text) = self.text(key)? else {
            return Ok(None);
        };
        let id = parse_hex32(&text).ok_or_else(|| self.must_be(key, "32 lower-case hex digits"));
        id.map(Some)
    }

    /// A string, borrowed unless it holds escapes.
    pub(crate) fn text(&self, key: &'static str) -> Result<Option<Cow<'a, str>>> {
        let Some(value) = self.given(key) else {
            return Ok(None);
        };
        if !value.starts_with('"') {
            return Err(self.must_be(key, "a string"));
        }
        let text = parse_with(value, StringSeed).map_err(|_| self.must_be(key, "a valid string"));
        text.map(Some)
    }

    /// A string of its own; empty: not there.
    pub(crate) fn string(&self, key: &'static str) -> Result<String> {
        Ok(self.text(key)?.unwrap_or_default().into_owned())
    }

    /// `true` or `false`; false: not there.
    pub(crate) fn flag(&self, key: &'static str) -> Result<bool> {
        match self.given(key) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(self.must_be(key, "true or false")),
        }
    }

    /// The name of an enum's value, from a client: it must be one this version knows.
    pub(crate) fn name<E: Named>(&self, key: &'static str) -> Result<Option<E>> {
        let Some(text) = self.text(key)? else {
            return Ok(None);
        };
        E::from_name(&text)
            .map(Some)
            .ok_or_else(|| self.must_be(key, "a name of the protocol"))
    }

    /// The name of an enum's value, from a server, which may be a later one.
    pub(crate) fn name_or_unknown<E: Named + Into<i32>>(&self, key: &'static str) -> Result<i32> {
        let Some(text) = self.text(key)? else {
            return Ok(0);
        };
        Ok(E::from_name(&text).map_or(UNKNOWN, E::into))
    }

    /// An array of at most `max` elements, each read from its text.
    pub(crate) fn list<T>(
        &self,
        key: &'static str,
        max: usize,
        read: impl FnMut(&'a str) -> Result<T>,
    ) -> Result<Vec<T>> {
        let Some(value) = self.given(key) else {
            return Ok(Vec::new());
        };
        if !value.starts_with('[') {
            return Err(self.must_be(key, "an array"));
        }
        match elements(value, max)? {
            Some(elements) => elements.into_iter().map(read).collect(),
            None => Err(DecodeError::new(
                ErrorCode::TooLong,
                format!("`{key}` of `{}` has more than {max} entries.", self.what),
            )),
        }
    }
}

/// The objects of a frame: one, or an array of at most `max`; `None`: more.
pub(crate) fn frame_items(payload: &[u8], max: usize) -> Result<Option<Vec<&str>>> {
    let text = std::str::from_utf8(payload).map_err(|_| DecodeError::bad("Not UTF-8."))?;
    let text = text.trim_ascii();
    if text.starts_with('[') {
        elements(text, max)
    } else {
        Ok(Some(vec![text]))
    }
}

fn elements(text: &str, max: usize) -> Result<Option<Vec<&str>>> {
    parse_with(text, ArraySeed { max })
}

/// Checks that `body` is one JSON value of UTF-8 within the depth limit and without double keys.
pub(crate) fn check_value(body: &[u8]) -> Result<()> {
    check_text(std::str::from_utf8(body).map_err(|_| DecodeError::bad("Not UTF-8."))?)
}

/// Whether `text` is one JSON value: enough to stand inside another without breaking it.
pub(super) fn is_value(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

fn check_text(text: &str) -> Result<()> {
    parse_with(
        text,
        CheckSeed {
            levels: JSON_DEPTH_MAX,
        },
    )
}

fn parse_with<'a, S: DeserializeSeed<'a>>(text: &'a str, seed: S) -> Result<S::Value> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = seed
        .deserialize(&mut json)
        .and_then(|value| json.end().map(|()| value));
    value.map_err(|e| match e.classify() {
        // Said by the seeds below, in words that hold nothing of the input.
        serde_json::error::Category::Data => DecodeError::bad(format!("{e}.")),
        _ => DecodeError::bad(format!(
            "The JSON is malformed at line {} column {} of a value.",
            e.line(),
            e.column()
        )),
    })
}

/// A string, borrowed where it can be.
struct StringSeed;

impl<'de> DeserializeSeed<'de> for StringSeed {
    type Value = Cow<'de, str>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Self::Value, D::Error> {
        d.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for StringSeed {
    type Value = Cow<'de, str>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }
    fn visit_str<E>(self, text: &str) -> std::result::Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// The fields of an object, unread.
struct ObjectSeed;

impl<'de> DeserializeSeed<'de> for ObjectSeed {
    type Value = Vec<(Cow<'de, str>, &'de str)>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Self::Value, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ObjectSeed {
    type Value = Vec<(Cow<'de, str>, &'de str)>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut fields: Self::Value = Vec::with_capacity(12);
        while let Some(key) = map.next_key_seed(StringSeed)? {
            if fields.len() == JSON_FIELDS_MAX {
                return Err(A::Error::custom("an object has more than 64 fields"));
            }
            // At most 64 × 64 comparisons.
            if fields.iter().any(|(k, _)| *k == key) {
                return Err(A::Error::custom("a key is given twice"));
            }
            fields.push((key, map.next_value::<&RawValue>()?.get()));
        }
        Ok(fields)
    }
}

/// The elements of an array, unread; `None`: more than `max`.
struct ArraySeed {
    max: usize,
}

impl<'de> DeserializeSeed<'de> for ArraySeed {
    type Value = Option<Vec<&'de str>>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Self::Value, D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ArraySeed {
    type Value = Option<Vec<&'de str>>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }
    fn visit_seq<A: SeqAccess<'de>>(
        self,
        mut seq: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element::<&RawValue>()? {
            if elements.len() == self.max {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(None);
            }
            elements.push(element.get());
        }
        Ok(Some(elements))
    }
}

/// Any value with at most `levels` levels below it and no key twice.
#[derive(Clone, Copy)]
struct CheckSeed {
    levels: u32,
}

impl CheckSeed {
    fn below<E: serde::de::Error>(self) -> std::result::Result<CheckSeed, E> {
        match self.levels.checked_sub(1) {
            Some(levels) => Ok(CheckSeed { levels }),
            None => Err(E::custom("a value has more than 32 levels")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for CheckSeed {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for CheckSeed {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_bool<E>(self, _: bool) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<(), A::Error> {
        let below = self.below()?;
        while seq.next_element_seed(below)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let below = self.below()?;
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key_seed(StringSeed)? {
            if !keys.insert(key) {
                return Err(A::Error::custom("a key is given twice"));
            }
            map.next_value_seed(below)?;
        }
        Ok(())
    }
}
