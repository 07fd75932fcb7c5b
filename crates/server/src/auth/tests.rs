//! The rows of the security checklist that live here, against the real directory.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidings_backends::sqlite::{SqliteDirectory, SqliteSettings};
use tidings_core::ids::{Micros, UserId};
use tidings_core::in_process::InProcessRegistry;
use tidings_core::ports::directory::{
    Accounts, Credentials, Directory, DirectoryError, NewUser, RevocationSubject,
};

use super::{Auth, AuthError, AuthSettings, Principal, Verdict};

mod external;

const SECOND: Micros = 1_000_000;
const START: Micros = 1_700_000_000 * SECOND;
const PASSWORD: &str = "a green teapot sings";

/// Authentication over a directory in a folder of its own, with a clock set by hand.
struct Fixture {
    auth: Auth,
    directory: Arc<SqliteDirectory>,
    now: Arc<AtomicU64>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Fixture {
        Fixture::with(AuthSettings::default()).await
    }

    async fn with(settings: AuthSettings) -> Fixture {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let now = Arc::new(AtomicU64::new(START));
        let clock = {
            let now = now.clone();
            Arc::new(move || now.load(Ordering::Relaxed))
        };
        let seed = AtomicU64::new(1);
        let random = Arc::new(move || {
            seed.fetch_add(1, Ordering::Relaxed)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        let directory = SqliteDirectory::open(
            folder.path(),
            &SqliteSettings::default(),
            clock.clone(),
            random,
        );
        let directory = Arc::new(directory.expect("the directory opens"));
        let shared: Arc<dyn Directory> = directory.clone();
        let by = now.clone();
        let registry = Arc::new(InProcessRegistry::new(move || by.load(Ordering::Relaxed)));
        let auth = Auth::open(folder.path(), shared, registry, settings, clock)
            .await
            .expect("authentication starts");
        Fixture {
            auth,
            directory,
            now,
            _folder: folder,
        }
    }

    fn pass(&self, seconds: u64) {
        self.now.fetch_add(seconds * SECOND, Ordering::Relaxed);
    }

    async fn sign_in(&self, login: &str) -> Result<super::Tokens, AuthError> {
        self.auth
            .sign_in(ip(1), login, PASSWORD, None, "phone")
            .await
    }

    fn known(&self, token: &str) -> Result<Principal, AuthError> {
        match self.auth.verify(token, "")? {
            Verdict::Known(principal) => Ok(principal),
            Verdict::Unknown => panic!("not an own token"),
        }
    }
}

fn ip(n: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, n])
}

#[tokio::test]
async fn an_account_signs_up_in_on_and_out() {
    let f = Fixture::new().await;
    let ann = f.auth.sign_up("Ann", PASSWORD, None).await.unwrap();
    assert_eq!(
        f.auth.sign_up("аnn", PASSWORD, None).await,
        Err(AuthError::NameTaken),
        "a Cyrillic look-alike"
    );
    assert_eq!(
        f.auth.sign_up("two words", PASSWORD, None).await,
        Err(AuthError::Name)
    );
    assert_eq!(
        f.auth.sign_up("bob", "short", None).await,
        Err(AuthError::PasswordLength)
    );

    let first = f.sign_in("ann").await.unwrap();
    let principal = f.known(&first.access).unwrap();
    assert_eq!((principal.user, principal.device), (ann, first.device));
    assert_eq!(principal.expires, START + 900 * SECOND, "15 minutes");
    let again = f
        .auth
        .sign_in(ip(1), "ANN", PASSWORD, Some(first.device), "phone")
        .await
        .unwrap();
    assert_eq!(
        again.device, first.device,
        "a known device stays the same one"
    );

    f.pass(900);
    assert_eq!(f.known(&first.access), Err(AuthError::Expired));
    let second = f.auth.refresh(&first.refresh).await.unwrap();
    let principal = f.known(&second.access).unwrap();
    assert_eq!(
        (principal.user, principal.device),
        (ann, first.device),
        "a refresh is the same user and device"
    );

    f.pass(1);
    f.auth.sign_out(&principal).await.unwrap();
    assert_eq!(f.known(&second.access), Err(AuthError::Revoked));
    assert_eq!(
        f.auth.refresh(&second.refresh).await.err(),
        Some(AuthError::Invalid)
    );
    assert!(
        f.auth.refresh(&again.refresh).await.is_ok(),
        "another sign-in lives on"
    );
}

#[tokio::test]
async fn a_refresh_token_used_twice_ends_its_family() {
    let f = Fixture::new().await;
    f.auth.sign_up("ann", PASSWORD, None).await.unwrap();
    let stolen = f.sign_in("ann").await.unwrap();
    f.pass(1);
    let thief = f.auth.refresh(&stolen.refresh).await.unwrap();
    f.pass(1);
    assert_eq!(
        f.auth.refresh(&stolen.refresh).await.err(),
        Some(AuthError::Revoked)
    );
    assert_eq!(
        f.known(&thief.access),
        Err(AuthError::Revoked),
        "its access tokens die at once"
    );
    assert_eq!(
        f.auth.refresh(&thief.refresh).await.err(),
        Some(AuthError::Invalid)
    );
    for bad in [
        "",
        "tre_",
        "tre_AAAA",
        thief.access.as_str(),
        &stolen.refresh[4..],
    ] {
        assert_eq!(
            f.auth.refresh(bad).await.err(),
            Some(AuthError::Invalid),
            "{bad}"
        );
    }
    let unused = f.sign_in("ann").await.unwrap();
    f.pass(30 * 24 * 3_600);
    assert_eq!(
        f.auth.refresh(&unused.refresh).await.err(),
        Some(AuthError::Invalid),
        "30 days unused"
    );
    f.pass(1);
    assert!(f.auth.forget_expired().await.unwrap() > 0);
}

#[tokio::test]
async fn unknown_names_and_wrong_passwords_look_the_same() {
    let f = Fixture::new().await;
    f.auth.sign_up("ann", PASSWORD, None).await.unwrap();
    let token_only = NewUser {
        login: super::names::login_name("bob"),
        display_name: "bob".into(),
        password: None,
    };
    f.directory.create_users(vec![token_only]).await.unwrap();
    for (login, password) in [
        ("ann", "a blue teapot sings"),
        ("nobody", PASSWORD),
        ("bob", PASSWORD),
        ("bob", "impossible"),
        ("", PASSWORD),
        ("not a name", PASSWORD),
        ("ann", ""),
        ("ann", &"x".repeat(5_000)),
    ] {
        let answer = f.auth.sign_in(ip(1), login, password, None, "").await;
        assert_eq!(
            answer.err(),
            Some(AuthError::Credentials),
            "{login:?} {password:?}"
        );
    }
}

#[tokio::test]
async fn guessing_is_throttled_and_the_owner_comes_in() {
    let f = Fixture::new().await;
    f.auth.sign_up("ann", PASSWORD, None).await.unwrap();
    f.sign_in("ann").await.unwrap();
    for i in 0..10 {
        let guess = f
            .auth
            .sign_in(ip(10 + i), "ann", "a wrong guess", None, "")
            .await;
        assert_eq!(guess.err(), Some(AuthError::Credentials), "guess {i}");
    }
    let guess = f.auth.sign_in(ip(99), "ann", PASSWORD, None, "").await;
    assert_eq!(
        guess.err(),
        Some(AuthError::Throttled {
            retry_after: Duration::from_secs(30)
        })
    );
    f.sign_in("ann")
        .await
        .expect("from home the owner comes in");
    for i in 0..10 {
        let guess = f
            .auth
            .sign_in(ip(99), "nobody", "a wrong guess", None, "")
            .await;
        assert_eq!(guess.err(), Some(AuthError::Credentials), "guess {i}");
    }
    let guess = f
        .auth
        .sign_in(ip(98), "nobody", "a wrong guess", None, "")
        .await;
    assert!(
        matches!(guess.err(), Some(AuthError::Throttled { .. })),
        "a name that isn't there counts the same"
    );
}

#[tokio::test]
async fn whatever_is_revoked_refuses_older_tokens_everywhere() {
    let f = Fixture::new().await;
    let ann = f.auth.sign_up("ann", PASSWORD, None).await.unwrap();
    let mut seen = 0;
    for case in [
        "user", "device", "sign-in", "password", "disabled", "removed",
    ] {
        let old = f.sign_in("ann").await.unwrap();
        let ticket = f.auth.issue_ticket(&f.known(&old.access).unwrap()).unwrap();
        let principal = f.known(&old.access).unwrap();
        f.pass(1);
        // "user", "device" and "sign-in" as another server would do it: known here after a poll.
        let elsewhere = match case {
            "user" => Some(RevocationSubject::User(ann)),
            "device" => Some(RevocationSubject::Device(old.device)),
            "sign-in" => Some(RevocationSubject::SignIn(principal.sign_in)),
            _ => None,
        };
        if let Some(subject) = elsewhere {
            f.directory.revoke(subject).await.unwrap();
            assert!(f.known(&old.access).is_ok(), "{case}: not known here yet");
        } else {
            match case {
                "password" => drop(
                    f.auth
                        .change_password(ip(1), ann, PASSWORD, PASSWORD)
                        .await
                        .unwrap(),
                ),
                "disabled" => drop(f.auth.set_disabled(ann, true).await.unwrap()),
                _ => drop(f.auth.remove_device(ann, old.device).await.unwrap()),
            }
            assert_eq!(
                f.known(&old.access),
                Err(AuthError::Revoked),
                "{case}: known here at once"
            );
        }
        let told = f.auth.poll_revocations().await.unwrap();
        assert!(
            told.len() == 1 && told[0].revision > seen,
            "{case}: gateways are told once"
        );
        seen = told[0].revision;
        assert_eq!(f.known(&old.access), Err(AuthError::Revoked), "{case}");
        assert_eq!(f.auth.check(&principal), Err(AuthError::Revoked), "{case}");
        assert_eq!(
            f.auth.redeem_ticket(&ticket).await,
            Err(AuthError::Revoked),
            "{case}"
        );
        assert_eq!(
            f.auth.refresh(&old.refresh).await.err(),
            Some(AuthError::Invalid),
            "{case}"
        );
        if case == "disabled" {
            assert_eq!(f.sign_in("ann").await.err(), Some(AuthError::Disabled));
            f.auth.set_disabled(ann, false).await.unwrap();
        }
        let fresh = f.sign_in("ann").await.unwrap();
        assert!(
            f.known(&fresh.access).is_ok(),
            "{case}: a later token is good"
        );
    }
    let wrong = f
        .auth
        .change_password(ip(1), ann, "not the old one", PASSWORD)
        .await;
    assert_eq!(wrong.err(), Some(AuthError::Credentials));
    let unknown = f.auth.set_disabled(UserId(5), true).await;
    assert!(matches!(
        unknown,
        Err(AuthError::Directory(DirectoryError::NotFound(_)))
    ));
}

#[tokio::test]
async fn a_ticket_is_good_once_and_for_half_a_minute() {
    let f = Fixture::new().await;
    f.auth.sign_up("ann", PASSWORD, None).await.unwrap();
    let tokens = f.sign_in("ann").await.unwrap();
    let principal = f.known(&tokens.access).unwrap();
    let ticket = f.auth.issue_ticket(&principal).unwrap();
    assert_eq!(f.auth.redeem_ticket(&ticket).await, Ok(principal));
    assert_eq!(
        f.auth.redeem_ticket(&ticket).await,
        Err(AuthError::Invalid),
        "a second use"
    );
    let late = f.auth.issue_ticket(&principal).unwrap();
    f.pass(30);
    assert_eq!(f.auth.redeem_ticket(&late).await, Err(AuthError::Expired));
    let forged = format!("{}AAAA", &late[..late.len() - 4]);
    for bad in ["", "tti_", "tti_AAAA", tokens.access.as_str(), &forged] {
        assert_eq!(
            f.auth.redeem_ticket(bad).await,
            Err(AuthError::Invalid),
            "{bad}"
        );
    }
}

#[tokio::test]
async fn an_api_key_speaks_for_its_server_until_removed() {
    let f = Fixture::new().await;
    let (key, text) = f
        .auth
        .create_api_key("shop", vec!["users".into()])
        .await
        .unwrap();
    let principal = f.auth.verify_api_key(&text).await.unwrap();
    assert_eq!(
        (
            principal.key,
            principal.name.as_str(),
            principal.scopes.as_slice()
        ),
        (key.id, "shop", &["users".to_owned()][..])
    );
    let (other, other_text) = f.auth.create_api_key("other", vec![]).await.unwrap();
    let crossed = format!("tak_{:016x}_{}", other.id.0, &text[21..]);
    let upper = text.to_uppercase();
    for bad in [
        "",
        "tak_",
        "tak_1_2",
        &crossed,
        &text[..text.len() - 1],
        &upper,
        &format!("{text}A"),
    ] {
        assert_eq!(
            f.auth.verify_api_key(bad).await,
            Err(AuthError::Invalid),
            "{bad}"
        );
    }
    f.directory.remove_api_key(key.id).await.unwrap();
    assert_eq!(f.auth.verify_api_key(&text).await, Err(AuthError::Invalid));
    assert!(f.auth.verify_api_key(&other_text).await.is_ok());
    assert!(
        !format!("{other:?}").contains(&other_text[21..]),
        "keys aren't printed"
    );
}

#[tokio::test]
async fn a_server_vouches_for_a_user() {
    let f = Fixture::new().await;
    let bob = NewUser {
        login: None,
        display_name: "bob".into(),
        password: None,
    };
    let bob = f
        .directory
        .create_users(vec![bob])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    let one = f.auth.sign_in_as(bob, "robot").await.unwrap();
    let two = f.auth.sign_in_as(bob, "robot").await.unwrap();
    assert_eq!(
        (one.user, one.device),
        (bob, two.device),
        "one device a name"
    );
    assert!(f.known(&two.access).is_ok());
    assert!(f.auth.sign_in_as(UserId(5), "robot").await.is_err());
}
