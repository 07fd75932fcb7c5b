//! Tokens signed by a customer's own backend: JWTs of configured keys.
//!
//! RFC 8725's advice, taken strictly. The key is found by `kid` and fixes algorithm, issuer and
//! audience; what the header says about algorithms is only compared with it, and whatever
//! would fetch or bring a key of its own is refused. Every member of header and claims may
//! stand there once: two parsers that pick different ones of two must not meet.

use std::collections::HashMap;
use std::fmt;

use jsonwebtoken::{Algorithm, DecodingKey};
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tidings_core::ids::Micros;
use tidings_core::ports::directory::ExternalSubject;

use super::{AuthError, names, secrets};

/// The longest token in bytes (reliability.md, row 16).
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// How far another server's clock may run ahead: `nbf` and `iat` this far in the future are still taken.
const SKEW: Micros = 60_000_000;

/// The longest `sub` in bytes.
const SUBJECT_BYTES_MAX: usize = 255;

/// The algorithms a key may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub enum ExternalAlgorithm {
    /// Ed25519 signatures (RFC 8037).
    EdDSA,
    /// RSA PKCS#1 v1.5 with SHA-256, 2,048 bits and more (RFC 7518).
    RS256,
}

/// A customer's key, as configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalKey {
    /// The header's `kid` that means this key.
    pub kid: String,
    /// The only algorithm it is used with.
    pub algorithm: ExternalAlgorithm,
    /// The public key in PEM (SubjectPublicKeyInfo).
    pub public_key: String,
    /// What `iss` must be.
    pub issuer: String,
    /// What `aud` must be or hold.
    pub audience: String,
}

struct Key {
    algorithm: Algorithm,
    decoding: DecodingKey,
    issuer: String,
    audience: String,
}

/// The configured keys.
pub(super) struct ExternalKeys {
    by_kid: HashMap<String, Key>,
}

/// What a good token says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Claims {
    pub(super) subject: ExternalSubject,
    /// The name to show; for an account made at first sight.
    pub(super) name: Option<String>,
    /// 0 when the token doesn't say: then any revocation of the user refuses it.
    pub(super) issued: Micros,
    pub(super) expires: Micros,
}

impl ExternalKeys {
    /// Reads the keys; the error names the `kid` that can't be used.
    pub(super) fn new(keys: &[ExternalKey]) -> Result<ExternalKeys, String> {
        let mut by_kid = HashMap::new();
        for key in keys {
            let pem = key.public_key.as_bytes();
            let (algorithm, decoding) = match key.algorithm {
                ExternalAlgorithm::EdDSA => (Algorithm::EdDSA, DecodingKey::from_ed_pem(pem)),
                ExternalAlgorithm::RS256 => (Algorithm::RS256, DecodingKey::from_rsa_pem(pem)),
            };
            let decoding =
                decoding.map_err(|error| format!("key {:?} can't be read: {error}", key.kid))?;
            let (issuer, audience) = (key.issuer.clone(), key.audience.clone());
            if issuer.is_empty() || audience.is_empty() || key.kid.is_empty() {
                return Err(format!(
                    "key {:?} needs a kid, an issuer and an audience",
                    key.kid
                ));
            }
            if by_kid
                .insert(
                    key.kid.clone(),
                    Key {
                        algorithm,
                        decoding,
                        issuer,
                        audience,
                    },
                )
                .is_some()
            {
                return Err(format!("two keys are called {:?}", key.kid));
            }
        }
        Ok(ExternalKeys { by_kid })
    }

    /// Checks a token; reads no clock and asks nobody.
    pub(super) fn verify(&self, token: &str, now: Micros) -> Result<Claims, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Invalid);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(AuthError::Invalid)?;
        let (header, claims) = message.split_once('.').ok_or(AuthError::Invalid)?;
        let key = self.key_of(&object(header)?)?;
        // A signature's second encoding would make a second token of one.
        if claims.contains('.') || secrets::any(signature).is_none() {
            return Err(AuthError::Invalid);
        }
        let good = jsonwebtoken::crypto::verify(
            signature,
            message.as_bytes(),
            &key.decoding,
            key.algorithm,
        );
        if !matches!(good, Ok(true)) {
            return Err(AuthError::Invalid);
        }
        key.claims(&object(claims)?, now)
    }

    fn key_of(&self, header: &Object) -> Result<&Key, AuthError> {
        for refused in ["jku", "jwk", "x5u", "x5c", "crit", "b64", "enc", "zip"] {
            if header.0.contains_key(refused) {
                return Err(AuthError::Invalid);
            }
        }
        let member = |name: &str| header.0.get(name).and_then(Value::as_str);
        if !member("typ").is_some_and(|typ| typ.eq_ignore_ascii_case("JWT")) {
            return Err(AuthError::Invalid);
        }
        let key = member("kid")
            .and_then(|kid| self.by_kid.get(kid))
            .ok_or(AuthError::Invalid)?;
        let pinned = match key.algorithm {
            Algorithm::EdDSA => "EdDSA",
            _ => "RS256",
        };
        if member("alg") == Some(pinned) {
            Ok(key)
        } else {
            Err(AuthError::Invalid)
        }
    }
}

impl Key {
    fn claims(&self, claims: &Object, now: Micros) -> Result<Claims, AuthError> {
        let member = |name: &str| claims.0.get(name);
        let text = |name: &str| member(name).and_then(Value::as_str);
        let for_us = match member("aud") {
            Some(Value::String(one)) => *one == self.audience,
            Some(Value::Array(many)) => many.iter().any(|one| one.as_str() == Some(&self.audience)),
            _ => false,
        };
        if text("iss") != Some(&self.issuer) || !for_us {
            return Err(AuthError::Invalid);
        }
        let subject = text("sub").filter(|sub| (1..=SUBJECT_BYTES_MAX).contains(&sub.len()));
        let subject = subject.ok_or(AuthError::Invalid)?;
        let expires = member("exp").and_then(instant).ok_or(AuthError::Invalid)?;
        if expires <= now {
            return Err(AuthError::Expired);
        }
        let mut issued = 0;
        for name in ["nbf", "iat"] {
            if let Some(value) = member(name) {
                issued = instant(value).ok_or(AuthError::Invalid)?;
                if issued > now + SKEW {
                    return Err(AuthError::Invalid);
                }
            }
        }
        // The loop ends with `iat`; `nbf` alone doesn't say when the token was made.
        let issued = if member("iat").is_some() { issued } else { 0 };
        let name = match member("name") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => names::display_name(name),
            Some(_) => return Err(AuthError::Invalid),
        };
        let subject = ExternalSubject {
            issuer: self.issuer.clone(),
            subject: subject.to_owned(),
        };
        Ok(Claims {
            subject,
            name,
            issued,
            expires,
        })
    }
}

/// A NumericDate in microseconds: seconds since 1970, perhaps with a fraction, up to the year 9999.
fn instant(value: &Value) -> Option<Micros> {
    const LAST: f64 = 253_402_300_799.0;
    let seconds = value
        .as_f64()
        .filter(|seconds| (0.0..=LAST).contains(seconds))?;
    Some((seconds * 1e6) as Micros)
}

/// A JSON object whose members all have different names.
struct Object(HashMap<String, Value>);

fn object(part: &str) -> Result<Object, AuthError> {
    let json = secrets::any(part).ok_or(AuthError::Invalid)?;
    serde_json::from_slice(&json).map_err(|_| AuthError::Invalid)
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members = HashMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if members.insert(name, value).is_some() {
                        return Err(de::Error::custom("a member stands there twice"));
                    }
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}
