//! Tokens, tickets, keys, ids and names, as anybody may send them.

#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tidings_backends::sqlite::{SqliteDirectory, SqliteSettings};
use tidings_core::ids::Micros;
use tidings_core::in_process::InProcessRegistry;
use tidings_core::ports::directory::Directory;
use tidings_fuzz::Input;
use tidings_protocol::{Format, parse_hex16, parse_hex32, to_hex16, to_hex32};
use tokio::runtime::{Builder, Runtime};

use auth::{
    Auth, AuthError, AuthSettings, ExternalAlgorithm, ExternalKey, Principal, Verdict, names,
};

/// The files alone: the whole crate would bring all else that a server is made of, and takes minutes to build.
#[allow(dead_code, unused_imports, unexpected_cfgs)]
#[rustfmt::skip]
#[path = "../../../crates/server/src/auth/mod.rs"]
mod auth;

const NOW: Micros = 1_700_000_000_000_000;

/// The key pair of RFC 8037, appendix A, published with its secret half (here in PKCS #8).
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n\
    -----END PUBLIC KEY-----\n";
const SECRET: &str = "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v_VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g";

struct World {
    auth: Auth,
    runtime: Runtime,
    access: String,
    ticket: String,
    api_key: String,
    backend: EncodingKey,
}

/// Made once. The clock stands still, so what is good stays good.
static WORLD: LazyLock<World> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let folder = scratch();
    let clock: Arc<dyn Fn() -> Micros + Send + Sync> = Arc::new(|| NOW);
    let (settings, seed) = (
        SqliteSettings::default(),
        std::sync::atomic::AtomicU64::new(1),
    );
    let random = Arc::new(move || seed.fetch_add(1, std::sync::atomic::Ordering::Relaxed) << 32);
    let directory = SqliteDirectory::open(&folder, &settings, clock.clone(), random);
    let directory: Arc<dyn Directory> = Arc::new(directory.expect("a directory"));
    let registry = Arc::new(InProcessRegistry::new(|| NOW));
    let settings = AuthSettings {
        external_keys: vec![ExternalKey {
            kid: "ed".into(),
            algorithm: ExternalAlgorithm::EdDSA,
            public_key: PUBLIC.into(),
            issuer: "shop".into(),
            audience: "tidings".into(),
        }],
        ..AuthSettings::default()
    };
    let good = "what is set up is good";
    let (auth, access, ticket, api_key) = runtime.block_on(async {
        let auth = Auth::open(&folder, directory, registry, settings, clock);
        let auth = auth.await.expect(good);
        let password = "a green teapot sings";
        auth.sign_up("ann", password, None).await.expect(good);
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let tokens = auth.sign_in(here, "ann", password, None, "phone").await;
        let access = tokens.expect(good).access;
        let Ok(Verdict::Known(ann)) = auth.verify(&access, "") else {
            panic!("{good}")
        };
        let ticket = auth.issue_ticket(&ann).expect(good);
        let api_key = auth.create_api_key("fuzz", vec!["users".into()]).await;
        (auth, access, ticket, api_key.expect(good).1)
    });
    // All of it is open; nobody finds it by its name any more.
    let _ = std::fs::remove_dir_all(&folder);
    World {
        auth,
        runtime,
        access,
        ticket,
        api_key,
        backend: EncodingKey::from_ed_der(&URL_SAFE_NO_PAD.decode(SECRET).expect(good)),
    }
});

/// A folder in memory where there is one: each account of a good token is a synced write.
fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let folder = parent.join(format!("tidings-fuzz-tokens-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for scratch");
    folder
}

/// A good token after the fuzzer's edits: places and bytes, then what is put behind it.
fn edited(good: &str, input: &mut Input<'_>) -> String {
    let mut bytes = good.as_bytes().to_vec();
    for edit in input.piece().as_chunks::<2>().0 {
        let at = usize::from(edit[0]) % bytes.len();
        bytes[at] = edit[1];
    }
    bytes.extend_from_slice(input.rest());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whoever hands in this text, by each way there is.
fn judge_text(world: &World, text: &str) {
    let is_own = text == world.access;
    let first = world.auth.verify(text, "phone");
    assert_eq!(matches!(first, Ok(Verdict::Known(_))), is_own, "{text:?}");
    world.runtime.block_on(async {
        // The ticket is good once, so it is never asked for as it is.
        if text != world.ticket {
            let known = world.auth.verify_first(text, "phone").await;
            assert!(known.is_err() || is_own, "{text:?} is a second spelling");
            let known = world.auth.redeem_ticket(text).await;
            assert_eq!(known, Err(AuthError::Invalid));
        }
        let server = world.auth.verify_api_key(text).await;
        assert_eq!(server.is_ok(), text == world.api_key, "{text:?}");
    });
}

/// A token that a customer's backend has signed, whatever it says.
fn judge_signed(world: &World, header: &[u8], claims: &[u8]) {
    let text = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
    let message = format!("{}.{}", text(header), text(claims));
    let signature = crypto::sign(message.as_bytes(), &world.backend, Algorithm::EdDSA);
    let token = format!("{message}.{}", signature.expect("signing works"));
    let known: Result<Principal, AuthError> = world
        .runtime
        .block_on(world.auth.verify_first(&token, "phone"));
    let Ok(principal) = known else { return };
    assert!(principal.expires > NOW && principal.issued <= NOW + 60_000_000);
    let json = |part| serde_json::from_slice::<Value>(part).expect("it was read");
    let (header, claims) = (json(header), json(claims));
    assert_eq!(
        (&header["alg"], &header["kid"]),
        (&"EdDSA".into(), &"ed".into())
    );
    assert_eq!(claims["iss"], "shop");
    assert!(
        claims["sub"]
            .as_str()
            .is_some_and(|sub| (1..=255).contains(&sub.len()))
    );
    let for_us = |aud: &Value| aud == "tidings";
    assert!(
        for_us(&claims["aud"])
            || claims["aud"]
                .as_array()
                .is_some_and(|a| a.iter().any(for_us))
    );
}

fn judge_names(text: &str) {
    if let Some(id) = parse_hex16(text) {
        assert_eq!(to_hex16(id), text, "an id has one spelling");
    }
    if let Some(id) = parse_hex32(text) {
        assert_eq!(to_hex32(&id), text, "an id has one spelling");
    }
    if let Some(format) = Format::negotiate(text) {
        assert!(text.contains(format.subprotocol()));
    }
    if let Some(name) = names::display_name(text) {
        assert!((1..=names::NAME_CHARS_MAX).contains(&name.chars().count()));
        assert_eq!(
            names::display_name(&name).as_ref(),
            Some(&name),
            "of {text:?}"
        );
    }
    if let Some(login) = names::login_name(text) {
        let again = names::login_name(&login.name).map(|again| (again.name, again.key));
        assert_eq!(again, Some((login.name, login.key)), "of {text:?}");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let world = &*WORLD;
    let mut input = Input::new(bytes);
    match input.byte() {
        0 => judge_text(world, &String::from_utf8_lossy(input.rest())),
        1 => judge_text(world, &edited(&world.access, &mut input)),
        2 => judge_text(world, &edited(&world.ticket, &mut input)),
        3 => judge_text(world, &edited(&world.api_key, &mut input)),
        4 => {
            let header = input.piece();
            judge_signed(world, header, input.rest());
        }
        _ => judge_names(&String::from_utf8_lossy(input.rest())),
    }
});
