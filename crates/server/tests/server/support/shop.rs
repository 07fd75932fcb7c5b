//! A customer's own backend: keys, and the tokens it signs.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Value, json};

use super::Setup;

/// A backend with a key of each kind.
pub struct Shop {
    ed: EncodingKey,
    rsa: EncodingKey,
    ed_public: String,
    rsa_public: String,
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

impl Shop {
    /// With fresh keys.
    pub fn new() -> Shop {
        let pair = Ed25519KeyPair::generate().expect("a key can be made");
        // The SubjectPublicKeyInfo of RFC 8410 is these bytes and the key.
        let mut spki = vec![
            0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
        ];
        spki.extend_from_slice(pair.public_key().as_ref());
        let private = pair.to_pkcs8v1().expect("a key can be written");
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key can be made");
        let rsa_private = AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa).expect("a key can be written");
        let rsa_public =
            AsDer::<PublicKeyX509Der<'_>>::as_der(rsa.public_key()).expect("a key can be written");
        let rsa_private = pem("PRIVATE KEY", rsa_private.as_ref());
        Shop {
            ed: EncodingKey::from_ed_der(private.as_ref()),
            rsa: EncodingKey::from_rsa_pem(rsa_private.as_bytes()).expect("a key can be read"),
            ed_public: pem("PUBLIC KEY", &spki),
            rsa_public: pem("PUBLIC KEY", rsa_public.as_ref()),
        }
    }

    /// A server that knows the keys by the names `ed` and `rsa`.
    pub fn setup(&self, setup: Setup) -> Setup {
        let mut file = String::new();
        for (kid, algorithm, public) in [
            ("ed", "EdDSA", &self.ed_public),
            ("rsa", "RS256", &self.rsa_public),
        ] {
            let path = setup.file(&format!("{kid}.pem"), public, 0o644);
            file += &format!(
                "[[auth.keys]]\nkid = \"{kid}\"\nalgorithm = \"{algorithm}\"\npublic_key = {path:?}\n\
                 issuer = \"shop\"\naudience = \"tidings\"\n"
            );
        }
        setup.file("tidings.toml", &file, 0o600);
        setup
    }

    /// What a good token says of a subject.
    pub fn claims(subject: &str) -> Value {
        json!({
            "iss": "shop", "aud": "tidings", "sub": subject, "name": "Somebody of the shop",
            "iat": now(), "exp": now() + 600,
        })
    }

    /// A token with this header, signed by the key of this kind.
    pub fn sign(&self, by: Algorithm, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let key = match by {
            Algorithm::EdDSA => &self.ed,
            _ => &self.rsa,
        };
        let signature = crypto::sign(message.as_bytes(), key, by).expect("signing works");
        format!("{message}.{signature}")
    }

    /// A token by the Ed25519 key.
    pub fn ed(&self, claims: &Value) -> String {
        let header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": "ed" });
        self.sign(Algorithm::EdDSA, &header, claims)
    }

    /// A token by the RSA key.
    pub fn rsa(&self, claims: &Value) -> String {
        let header = json!({ "alg": "RS256", "typ": "JWT", "kid": "rsa" });
        self.sign(Algorithm::RS256, &header, claims)
    }

    /// The RSA public key, as published.
    pub fn rsa_public(&self) -> &str {
        &self.rsa_public
    }
}
