//! Passwords: which are accepted, and how they are hashed without hurting the chat.
//!
//! argon2id with 19 MiB takes tens of milliseconds of one core on purpose. It runs on threads of
//! its own behind a bounded queue: a flood of sign-ins is told to wait, and nothing else
//! notices.

use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use tidings_core::ports::directory::PasswordHash;
use tokio::sync::oneshot;
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

use super::AuthError;

/// Length of a password in bytes of its NFC form (reliability.md, row 20).
pub const PASSWORD_BYTES: std::ops::RangeInclusive<usize> = 8..=1_024;

/// Memory in KiB, passes and lanes of argon2id: OWASP's password storage cheat sheet, its
/// least for 19 MiB.
const COST: (u32, u32, u32) = (19_456, 2, 1);

/// Hashing threads: two 19 MiB blocks at once.
const THREADS: usize = 2;

/// Hashes that may wait: at 25 ms each and two threads the last one waits under a second.
const QUEUED_MAX: usize = 64;

/// A password in the form that is hashed; wiped when dropped, never printed.
pub struct Password(Zeroizing<String>);

impl Password {
    /// A password offered at sign-in: NFC, any that could have been set.
    pub fn offered(raw: &str) -> Option<Password> {
        // NFC makes a text at most three times as long or short (UAX 15).
        if raw.len() > PASSWORD_BYTES.end() * 3 {
            return None;
        }
        let normal = Zeroizing::new(raw.nfc().collect::<String>());
        PASSWORD_BYTES
            .contains(&normal.len())
            .then_some(Password(normal))
    }

    /// Stands for a password that can't have been set, so that checking it takes as long.
    pub(super) fn impossible() -> Password {
        Password(Zeroizing::new("impossible".to_owned()))
    }

    /// A password to set: also not among the common ones, and not the login name.
    pub fn chosen(raw: &str, login: &str) -> Result<Password, AuthError> {
        let password = Password::offered(raw).ok_or(AuthError::PasswordLength)?;
        let lower = Zeroizing::new(password.0.to_lowercase());
        let first = lower.chars().next();
        let one_letter = lower.chars().all(|c| Some(c) == first);
        let common = include_str!("common_passwords.txt")
            .lines()
            .any(|line| line == lower.as_str());
        if one_letter || common || *lower == login.to_lowercase() {
            return Err(AuthError::PasswordCommon);
        }
        Ok(password)
    }
}

type Job = Box<dyn FnOnce(&Argon2<'static>) + Send>;

/// A hash at the same cost that no password has: random bytes in its form. Making one from a
/// password would take 19 MiB and tens of milliseconds at every start.
fn hash_of_nothing() -> Result<PasswordHash, getrandom::Error> {
    use base64::Engine;
    let mut random = [0u8; 48];
    getrandom::fill(&mut random)?;
    let (salt, hash) = random.split_at(16);
    let encode = |bytes| base64::engine::general_purpose::STANDARD_NO_PAD.encode(bytes);
    let (memory, passes, lanes) = COST;
    let text = format!(
        "$argon2id$v=19$m={memory},t={passes},p={lanes}${}${}",
        encode(salt),
        encode(hash)
    );
    Ok(PasswordHash(text))
}

/// The threads that hash.
pub(super) struct Hasher {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    /// Compared with when there is no account, so that the answer takes as long.
    nobody: PasswordHash,
}

impl Hasher {
    pub(super) fn start() -> Result<Hasher, std::io::Error> {
        let argon = argon().map_err(std::io::Error::other)?;
        let nobody = hash_of_nothing().map_err(std::io::Error::other)?;
        let (jobs, queue) = mpsc::sync_channel::<Job>(QUEUED_MAX);
        let queue = Arc::new(Mutex::new(queue));
        let mut threads = Vec::new();
        for _ in 0..THREADS {
            let (queue, argon) = (queue.clone(), argon.clone());
            threads.push(
                std::thread::Builder::new()
                    .name("password".into())
                    .spawn(move || {
                        loop {
                            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                            let Ok(job) = job else { return };
                            job(&argon);
                        }
                    })?,
            );
        }
        Ok(Hasher {
            jobs: Some(jobs),
            threads,
            nobody,
        })
    }

    /// The hash to store, in PHC string form with its salt.
    pub(super) async fn hash(&self, password: Password) -> Result<PasswordHash, AuthError> {
        self.run(move |argon| hash(argon, password.0.as_bytes()))
            .await?
    }

    /// Whether a password is the stored one. With nothing stored it takes as long, and isn't.
    pub(super) async fn matches(
        &self,
        password: Password,
        stored: Option<PasswordHash>,
    ) -> Result<bool, AuthError> {
        let known = stored.is_some();
        let stored = stored.unwrap_or_else(|| self.nobody.clone());
        let equal = self
            .run(move |argon| {
                argon
                    .verify_password(password.0.as_bytes(), stored.0.as_str())
                    .is_ok()
            })
            .await?;
        Ok(equal && known)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Argon2<'static>) -> T + Send + 'static,
    ) -> Result<T, AuthError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |argon| {
            // Nobody waits any more: don't spend the time.
            if !answer.is_closed() {
                let _ = answer.send(work(argon));
            }
        });
        let Some(jobs) = &self.jobs else {
            return Err(AuthError::busy());
        };
        match jobs.try_send(job) {
            Ok(()) => answered.await.map_err(|_| AuthError::busy()),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(AuthError::busy()),
        }
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn argon() -> Result<Argon2<'static>, argon2::Error> {
    let (memory, passes, lanes) = COST;
    let params = Params::new(memory, passes, lanes, Some(32))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash(argon: &Argon2<'static>, password: &[u8]) -> Result<PasswordHash, AuthError> {
    let mut salt = [0u8; 16];
    getrandom::fill(&mut salt).map_err(|_| AuthError::busy())?;
    let hash = argon
        .hash_password_with_salt(password, &salt)
        .map_err(|_| AuthError::busy())?;
    Ok(PasswordHash(hash.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_passwords_can_be_chosen() {
        let umlauts = "ä".repeat(512);
        let cases = [
            ("1234567", Some(AuthError::PasswordLength)),
            ("äöüß", None),
            ("äää", Some(AuthError::PasswordLength)),
            (umlauts.as_str(), Some(AuthError::PasswordCommon)),
            ("password1", Some(AuthError::PasswordCommon)),
            ("PassWord1", Some(AuthError::PasswordCommon)),
            ("xxxxxxxxxxxx", Some(AuthError::PasswordCommon)),
            ("Annabella", Some(AuthError::PasswordCommon)),
            ("a green teapot sings", None),
        ];
        for (raw, expected) in cases {
            assert_eq!(Password::chosen(raw, "annabella").err(), expected, "{raw}");
        }
        assert!(
            Password::chosen(&"ab".repeat(512), "ann").is_ok(),
            "1,024 bytes"
        );
        assert!(
            Password::chosen(&"ab".repeat(513), "ann").is_err(),
            "1,026 bytes"
        );
        assert!(Password::offered(&"x".repeat(1 << 20)).is_none());
    }

    #[tokio::test]
    async fn a_hash_fits_its_password_in_any_unicode_form() {
        let hasher = Hasher::start().unwrap();
        let hash = hasher
            .hash(Password::chosen("caf\u{e9} au lait", "ann").unwrap())
            .await
            .unwrap();
        assert!(hash.0.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        let check = async |raw: &str, hash: Option<PasswordHash>| {
            hasher
                .matches(Password::offered(raw).unwrap(), hash)
                .await
                .unwrap()
        };
        assert!(check("cafe\u{301} au lait", Some(hash.clone())).await);
        assert!(!check("cafe au lait", Some(hash)).await);
        assert!(!check("cafe au lait", None).await);
        assert!(!check("cafe au lait", Some(PasswordHash("garbage".into()))).await);
    }

    #[tokio::test]
    async fn a_flood_is_told_to_wait() {
        let hasher = Hasher::start().unwrap();
        let hashes =
            (0..QUEUED_MAX * 2).map(|_| hasher.hash(Password::offered("a green teapot").unwrap()));
        // Polled once each: what the queue took waits, the rest is refused at once. Dropping
        // them then takes the waiting ones back, so the test doesn't hash them all.
        let mut flood: Vec<_> = hashes.map(Box::pin).collect();
        let refused = std::future::poll_fn(|cx| {
            let answers = flood.iter_mut().map(|hash| hash.as_mut().poll(cx));
            std::task::Poll::Ready(
                answers
                    .filter(|answer| {
                        matches!(
                            answer,
                            std::task::Poll::Ready(Err(AuthError::TooBusy { .. }))
                        )
                    })
                    .count(),
            )
        })
        .await;
        assert!(refused >= QUEUED_MAX - THREADS, "{refused} refused");
    }

    #[test]
    fn nobodys_hash_costs_a_whole_check_and_matches_nothing() {
        let nobody = hash_of_nothing().expect("random numbers");
        let verdict = argon()
            .expect("good parameters")
            .verify_password(b"anything", nobody.0.as_str());
        assert_eq!(
            verdict,
            Err(argon2::password_hash::Error::PasswordInvalid),
            "computed and compared, not refused by its form"
        );
    }
}
