//! Tokens as a customer's backend would sign them: EdDSA, with a key made for one run.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

/// What the server's configuration and the tokens agree on.
pub const KID: &str = "bench";
/// `iss` of all tokens.
pub const ISSUER: &str = "tidings-bench";
/// `aud` of all tokens.
pub const AUDIENCE: &str = "tidings";

/// Longer than any run.
const LIFE_S: u64 = 4 * 3600;

/// SubjectPublicKeyInfo of an Ed25519 key up to its 32 bytes (RFC 8410 section 4).
const SPKI_HEAD: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Makes a key: the private half as PKCS#8 into one file, the public half as PEM into another.
pub fn make(private: &Path, public: &Path) -> anyhow::Result<()> {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new())
        .map_err(|_| anyhow!("can't make a key"))?;
    let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref())
        .map_err(|_| anyhow!("the key made can't be read"))?;
    let spki = [&SPKI_HEAD[..], key.public_key().as_ref()].concat();
    std::fs::write(private, pkcs8.as_ref())
        .with_context(|| format!("can't write {}", private.display()))?;
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        STANDARD.encode(spki)
    );
    std::fs::write(public, pem).with_context(|| format!("can't write {}", public.display()))
}

/// Signs tokens.
pub struct Signer {
    key: Ed25519KeyPair,
    header: String,
    issued: u64,
}

impl Signer {
    /// With the private key in a file.
    pub fn read(private: &Path) -> anyhow::Result<Signer> {
        let pkcs8 =
            std::fs::read(private).with_context(|| format!("can't read {}", private.display()))?;
        let key = Ed25519KeyPair::from_pkcs8(&pkcs8)
            .map_err(|_| anyhow!("{} is no Ed25519 key", private.display()))?;
        let header =
            URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"EdDSA","typ":"JWT","kid":"{KID}"}}"#));
        let issued = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        Ok(Signer {
            key,
            header,
            issued,
        })
    }

    /// A token of the user with this number.
    pub fn token(&self, user: usize) -> String {
        let claims = format!(
            r#"{{"iss":"{ISSUER}","aud":"{AUDIENCE}","sub":"{}","iat":{},"exp":{}}}"#,
            subject(user),
            self.issued,
            self.issued + LIFE_S
        );
        let message = format!("{}.{}", self.header, URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

/// The `sub` of the user with this number.
pub fn subject(user: usize) -> String {
    format!("u{user}")
}
