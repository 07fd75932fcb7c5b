//! Tokens of a customer's backend: checklist rows 15 and 16.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Value, json};
use sha2::Sha256;

use super::super::secrets::text;
use super::super::{AuthError, AuthSettings, ExternalAlgorithm, ExternalKey, Verdict};
use super::{Fixture, SECOND, START};
use tidings_core::ids::Micros;
use tidings_core::ports::directory::{Accounts, Credentials, ExternalSubject, RevocationSubject};

const NOW: Micros = START / SECOND;

/// A customer's backend with a key of each kind.
struct Shop {
    ed: EncodingKey,
    ed_public: String,
    rsa: EncodingKey,
    rsa_public: String,
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n")
}

impl Shop {
    fn new() -> Shop {
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
        Shop {
            ed: EncodingKey::from_ed_der(private.as_ref()),
            ed_public: pem(&spki),
            rsa: EncodingKey::from_rsa_pem(private_pem(rsa_private.as_ref()).as_bytes())
                .expect("a key can be read"),
            rsa_public: pem(rsa_public.as_ref()),
        }
    }

    fn settings(&self) -> AuthSettings {
        let key = |kid: &str, algorithm, public_key: &str| ExternalKey {
            kid: kid.into(),
            algorithm,
            public_key: public_key.into(),
            issuer: "shop".into(),
            audience: "tidings".into(),
        };
        AuthSettings {
            external_keys: vec![
                key("ed", ExternalAlgorithm::EdDSA, &self.ed_public),
                key("rsa", ExternalAlgorithm::RS256, &self.rsa_public),
            ],
            ..AuthSettings::default()
        }
    }

    /// A token of these very texts, signed with the Ed25519 key.
    fn raw(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", text(header.as_bytes()), text(claims.as_bytes()));
        let signature =
            crypto::sign(message.as_bytes(), &self.ed, Algorithm::EdDSA).expect("signing works");
        format!("{message}.{signature}")
    }

    fn ed(&self, claims: &Value) -> String {
        self.raw(
            r#"{"alg":"EdDSA","typ":"JWT","kid":"ed"}"#,
            &claims.to_string(),
        )
    }

    fn rsa(&self, header: &Value, claims: &Value) -> String {
        let message = format!(
            "{}.{}",
            text(header.to_string().as_bytes()),
            text(claims.to_string().as_bytes())
        );
        let signature =
            crypto::sign(message.as_bytes(), &self.rsa, Algorithm::RS256).expect("signing works");
        format!("{message}.{signature}")
    }
}

fn private_pem(der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")
}

fn claims() -> Value {
    json!({"iss": "shop", "aud": "tidings", "sub": "7", "name": "Seven", "exp": NOW + 600, "iat": NOW})
}

/// Good claims with one member changed; null removes it.
fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    let members = claims.as_object_mut().expect("claims are an object");
    if value.is_null() {
        members.remove(name);
    } else {
        members.insert(name.into(), value);
    }
    claims
}

#[tokio::test]
async fn a_good_token_is_known_after_its_first_sight() {
    let shop = Shop::new();
    let f = Fixture::with(shop.settings()).await;
    let token = shop.ed(&claims());
    assert_eq!(f.auth.verify(&token, "phone"), Ok(Verdict::Unknown));
    let principal = f.auth.verify_first(&token, "phone").await.unwrap();
    assert_eq!(
        (principal.issued, principal.expires),
        (START, START + 600 * SECOND)
    );
    assert_eq!(
        f.auth.verify(&token, "phone"),
        Ok(Verdict::Known(principal))
    );
    let user = f
        .directory
        .users(vec![principal.user])
        .await
        .unwrap()
        .remove(0);
    assert_eq!(user.display_name, "Seven");
    assert_eq!(
        user.external,
        Some(ExternalSubject {
            issuer: "shop".into(),
            subject: "7".into()
        })
    );

    let rsa = shop.rsa(
        &json!({"alg": "RS256", "typ": "JWT", "kid": "rsa"}),
        &claims(),
    );
    let tablet = f.auth.verify_first(&rsa, "tablet").await.unwrap();
    assert_eq!(
        tablet.user, principal.user,
        "the same subject, whichever key"
    );
    assert_ne!(tablet.device, principal.device);

    f.pass(1);
    f.directory
        .revoke(RevocationSubject::Device(principal.device))
        .await
        .unwrap();
    f.auth.poll_revocations().await.unwrap();
    assert_eq!(
        f.auth.verify(&token, "phone"),
        Err(AuthError::Revoked),
        "looked at on every use"
    );
    assert!(f.auth.verify(&rsa, "tablet").is_ok());
    f.pass(600);
    assert_eq!(
        f.auth.verify(&rsa, "tablet"),
        Ok(Verdict::Unknown),
        "forgotten with its expiry"
    );
    assert_eq!(
        f.auth.verify_first(&rsa, "tablet").await,
        Err(AuthError::Expired)
    );
}

#[tokio::test]
async fn tokens_that_confuse_others_are_refused() {
    let shop = Shop::new();
    let f = Fixture::with(shop.settings()).await;
    let body = claims().to_string();
    let hs256 = {
        let message = format!(
            "{}.{}",
            text(br#"{"alg":"HS256","typ":"JWT","kid":"rsa"}"#),
            text(body.as_bytes())
        );
        let mut mac = Hmac::<Sha256>::new_from_slice(shop.rsa_public.as_bytes()).expect("any key");
        mac.update(message.as_bytes());
        format!("{message}.{}", text(&mac.finalize().into_bytes()))
    };
    let good = shop.ed(&claims());
    let unsigned = good
        .rsplit_once('.')
        .map(|(message, _)| format!("{message}."))
        .expect("three parts");
    let header = |extra: &str| {
        shop.raw(
            &format!(r#"{{"alg":"EdDSA","typ":"JWT","kid":"ed"{extra}}}"#),
            &body,
        )
    };
    let cases = [
        (
            "alg none",
            shop.raw(r#"{"alg":"none","typ":"JWT","kid":"ed"}"#, &body),
        ),
        (
            "alg none, no signature",
            format!(
                "{}.{}.",
                text(br#"{"alg":"none","typ":"JWT","kid":"ed"}"#),
                text(body.as_bytes())
            ),
        ),
        ("no signature", unsigned),
        ("HS256 with the public key", hs256),
        (
            "another key's algorithm",
            shop.raw(r#"{"alg":"RS256","typ":"JWT","kid":"ed"}"#, &body),
        ),
        (
            "another key's kid",
            shop.raw(r#"{"alg":"EdDSA","typ":"JWT","kid":"rsa"}"#, &body),
        ),
        (
            "RS256 under the Ed25519 kid",
            shop.rsa(
                &json!({"alg": "RS256", "typ": "JWT", "kid": "ed"}),
                &claims(),
            ),
        ),
        (
            "PS256 under the RSA kid",
            shop.rsa(
                &json!({"alg": "PS256", "typ": "JWT", "kid": "rsa"}),
                &claims(),
            ),
        ),
        (
            "unknown kid",
            shop.raw(r#"{"alg":"EdDSA","typ":"JWT","kid":"other"}"#, &body),
        ),
        ("no kid", shop.raw(r#"{"alg":"EdDSA","typ":"JWT"}"#, &body)),
        (
            "kid no text",
            shop.raw(r#"{"alg":"EdDSA","typ":"JWT","kid":["ed"]}"#, &body),
        ),
        ("jku", header(r#","jku":"https://127.0.0.1/keys""#)),
        ("x5u", header(r#","x5u":"https://127.0.0.1/keys""#)),
        ("jwk", header(r#","jwk":{}"#)),
        ("x5c", header(r#","x5c":[]"#)),
        ("crit", header(r#","crit":["exp"]"#)),
        ("header member twice", header(r#","kid":"ed""#)),
        (
            "typ",
            shop.raw(r#"{"alg":"EdDSA","typ":"JOSE","kid":"ed"}"#, &body),
        ),
        ("no typ", shop.raw(r#"{"alg":"EdDSA","kid":"ed"}"#, &body)),
        ("header no object", shop.raw(r#"["EdDSA"]"#, &body)),
        (
            "claims no object",
            shop.raw(r#"{"alg":"EdDSA","typ":"JWT","kid":"ed"}"#, "[]"),
        ),
        (
            "claims no JSON",
            shop.raw(r#"{"alg":"EdDSA","typ":"JWT","kid":"ed"}"#, "{"),
        ),
        (
            "text behind the claims",
            shop.raw(
                r#"{"alg":"EdDSA","typ":"JWT","kid":"ed"}"#,
                &format!("{body}{{}}"),
            ),
        ),
        ("four parts", format!("{good}.e30")),
        ("a part more in front", format!("e30.{good}")),
        ("padding", format!("{good}=")),
        ("a space", format!(" {good}")),
        ("nothing", String::new()),
        ("dots", "..".into()),
        (
            "deep JSON",
            shop.raw(
                r#"{"alg":"EdDSA","typ":"JWT","kid":"ed"}"#,
                &format!("{}1", "[".repeat(5_000)),
            ),
        ),
    ];
    for (case, token) in cases {
        assert_eq!(
            f.auth.verify_first(&token, "").await,
            Err(AuthError::Invalid),
            "{case}"
        );
    }
    // Any one character of a good token changed makes another token.
    for i in (0..good.len()).step_by(7) {
        let mut forged = good.clone().into_bytes();
        forged[i] = if forged[i] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(forged).expect("ASCII");
        assert!(
            forged == good || f.auth.verify_first(&forged, "").await.is_err(),
            "character {i} changed"
        );
    }
    assert!(f.auth.verify_first(&good, "").await.is_ok());
}

#[tokio::test]
async fn claims_are_taken_strictly() {
    let shop = Shop::new();
    let f = Fixture::with(shop.settings()).await;
    let twice = claims().to_string().replacen('{', r#"{"sub":"8","#, 1);
    let cases = [
        ("good", shop.ed(&claims()), None),
        (
            "iss",
            shop.ed(&with("iss", json!("other"))),
            Some(AuthError::Invalid),
        ),
        (
            "no iss",
            shop.ed(&with("iss", Value::Null)),
            Some(AuthError::Invalid),
        ),
        (
            "aud",
            shop.ed(&with("aud", json!("other"))),
            Some(AuthError::Invalid),
        ),
        (
            "no aud",
            shop.ed(&with("aud", Value::Null)),
            Some(AuthError::Invalid),
        ),
        (
            "aud among others",
            shop.ed(&with("aud", json!(["other", "tidings"]))),
            None,
        ),
        (
            "aud not among them",
            shop.ed(&with("aud", json!(["other", "tiding"]))),
            Some(AuthError::Invalid),
        ),
        (
            "no exp",
            shop.ed(&with("exp", Value::Null)),
            Some(AuthError::Invalid),
        ),
        (
            "exp text",
            shop.ed(&with("exp", json!("9999999999"))),
            Some(AuthError::Invalid),
        ),
        (
            "exp negative",
            shop.ed(&with("exp", json!(-1))),
            Some(AuthError::Invalid),
        ),
        (
            "exp huge",
            shop.ed(&with("exp", json!(1e300))),
            Some(AuthError::Invalid),
        ),
        (
            "exp now",
            shop.ed(&with("exp", json!(NOW))),
            Some(AuthError::Expired),
        ),
        (
            "exp in a second",
            shop.ed(&with("exp", json!(NOW + 1))),
            None,
        ),
        (
            "nbf in a minute",
            shop.ed(&with("nbf", json!(NOW + 60))),
            None,
        ),
        (
            "nbf later",
            shop.ed(&with("nbf", json!(NOW + 61))),
            Some(AuthError::Invalid),
        ),
        (
            "iat in a minute",
            shop.ed(&with("iat", json!(NOW + 60))),
            None,
        ),
        (
            "iat later",
            shop.ed(&with("iat", json!(NOW + 61))),
            Some(AuthError::Invalid),
        ),
        (
            "iat text",
            shop.ed(&with("iat", json!("now"))),
            Some(AuthError::Invalid),
        ),
        ("no iat", shop.ed(&with("iat", Value::Null)), None),
        (
            "no sub",
            shop.ed(&with("sub", Value::Null)),
            Some(AuthError::Invalid),
        ),
        (
            "empty sub",
            shop.ed(&with("sub", json!(""))),
            Some(AuthError::Invalid),
        ),
        (
            "long sub",
            shop.ed(&with("sub", json!("7".repeat(256)))),
            Some(AuthError::Invalid),
        ),
        (
            "sub a number",
            shop.ed(&with("sub", json!(7))),
            Some(AuthError::Invalid),
        ),
        (
            "name a number",
            shop.ed(&with("name", json!(7))),
            Some(AuthError::Invalid),
        ),
        (
            "a claim twice",
            shop.raw(r#"{"alg":"EdDSA","typ":"JWT","kid":"ed"}"#, &twice),
            Some(AuthError::Invalid),
        ),
        (
            "over 8 KiB",
            shop.ed(&with("more", json!("x".repeat(7_000)))),
            Some(AuthError::Invalid),
        ),
        (
            "under 8 KiB",
            shop.ed(&with("more", json!("x".repeat(5_000)))),
            None,
        ),
    ];
    for (case, token, expected) in cases {
        assert_eq!(
            f.auth.verify_first(&token, "").await.err(),
            expected,
            "{case}"
        );
    }
}

#[tokio::test]
async fn keys_that_cannot_be_used_are_named_at_the_start() {
    let shop = Shop::new();
    let mut twice = shop.settings().external_keys;
    twice[1].kid = "ed".into();
    let mut crossed = shop.settings().external_keys;
    crossed[0].public_key = shop.rsa_public.clone();
    let mut open = shop.settings().external_keys;
    open[1].audience = String::new();
    for (case, keys) in [
        ("twice", twice),
        ("of another kind", crossed),
        ("for anybody", open),
    ] {
        assert!(
            super::super::external::ExternalKeys::new(&keys).is_err(),
            "{case}"
        );
    }
}
