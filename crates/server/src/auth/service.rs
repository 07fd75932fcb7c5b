//! [`Auth`]: tokens verified, issued and revoked.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use subtle::ConstantTimeEq;
use tidings_core::ids::{DeviceId, Micros, UserId};
use tidings_core::ports::directory::{
    ApiKey, ApiKeyId, Directory, DirectoryError, NewApiKey, PAGE_MAX, Refusal, Revocation,
    RevocationSubject, SignIn,
};

use tidings_core::ports::registry::{REGISTRY_DEADLINE, Registry};

use super::external::{ExternalKey, ExternalKeys};
use super::password::Hasher;
use super::revocations::Revocations;
use super::secrets::{self, ServerKey};
use super::throttle::Throttle;
use super::verified::{Verified, token_key};
use super::{ApiPrincipal, AuthError, Principal, Tokens, Verdict, access, tickets};

/// Where the time comes from, microseconds since 1970.
pub type Clock = Arc<dyn Fn() -> Micros + Send + Sync>;

/// What can be set.
#[derive(Clone, Debug)]
pub struct AuthSettings {
    /// How long an access token is good. Default and most 15 minutes: it bounds what a server that can't
    /// reach the directory may still let in (reliability.md, row 18).
    pub access_life: Duration,
    /// How long a refresh token is good when it isn't used. Default 30 days.
    pub refresh_life: Duration,
    /// The keys of customers' backends. Default none.
    pub external_keys: Vec<ExternalKey>,
    /// How long a revoked device or sign-in is remembered: at least as long as the longest external
    /// token lives. Default 30 days.
    pub revocations_kept: Duration,
}

impl Default for AuthSettings {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        AuthSettings {
            access_life: Duration::from_secs(15 * 60),
            refresh_life: 30 * day,
            external_keys: Vec::new(),
            revocations_kept: 30 * day,
        }
    }
}

/// Why [`Auth`] can't start.
#[derive(Debug, thiserror::Error)]
pub enum AuthOpenError {
    /// The server's key can't be read or made, or threads can't be started.
    #[error("can't start authentication: {0}")]
    Io(#[from] io::Error),
    /// A configured key can't be used.
    #[error("{0}")]
    Key(String),
    /// What is revoked can't be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Hears of each revocation made here.
type Tell = Box<dyn Fn(&Revocation) + Send + Sync>;

/// Who is speaking: see [`super`]. Its async calls need a tokio runtime around them.
pub struct Auth {
    pub(super) directory: Arc<dyn Directory>,
    pub(super) settings: AuthSettings,
    pub(super) hasher: Hasher,
    pub(super) throttle: Throttle,
    clock: Clock,
    key: ServerKey,
    external: ExternalKeys,
    verified: Verified,
    registry: Arc<dyn Registry>,
    revocations: Revocations,
    told: OnceLock<Tell>,
}

impl Auth {
    /// Reads the server's key from `folder`, or makes it there, and what is revoked from the directory.
    pub async fn open(
        folder: &Path,
        directory: Arc<dyn Directory>,
        registry: Arc<dyn Registry>,
        mut settings: AuthSettings,
        clock: Clock,
    ) -> Result<Auth, AuthOpenError> {
        settings.access_life = settings.access_life.min(Duration::from_secs(15 * 60));
        let auth = Auth {
            external: ExternalKeys::new(&settings.external_keys).map_err(AuthOpenError::Key)?,
            key: ServerKey::open(folder)?,
            hasher: Hasher::start()?,
            throttle: Throttle::new(),
            verified: Verified::new(),
            registry,
            revocations: Revocations::default(),
            told: OnceLock::new(),
            directory,
            settings,
            clock,
        };
        auth.poll_revocations().await?;
        Ok(auth)
    }

    pub(super) fn now(&self) -> Micros {
        (self.clock)()
    }

    /// Who a token speaks for, without waiting: about a microsecond for an own token and for an external
    /// one seen before. `device` is the client's name for its device; own tokens name theirs.
    pub fn verify(&self, token: &str, device: &str) -> Result<Verdict, AuthError> {
        if tickets::is_ticket(token) {
            return Ok(Verdict::Unknown);
        }
        let now = self.now();
        if access::is_own(token) {
            return self
                .unless_revoked(access::verify(&self.key, token, now)?)
                .map(Verdict::Known);
        }
        if token.len() > super::TOKEN_BYTES_MAX {
            return Err(AuthError::Invalid);
        }
        match self.verified.get(&token_key(token, device), now) {
            Some(principal) => self.unless_revoked(principal).map(Verdict::Known),
            None => Ok(Verdict::Unknown),
        }
    }

    /// Who any token or ticket speaks for; an external one is checked in full (about 0.1 ms of CPU), and its
    /// subject and device are looked up or made.
    pub async fn verify_first(&self, token: &str, device: &str) -> Result<Principal, AuthError> {
        if tickets::is_ticket(token) {
            return self.redeem_ticket(token).await;
        }
        if let Verdict::Known(principal) = self.verify(token, device)? {
            return Ok(principal);
        }
        let claims = self.external.verify(token, self.now())?;
        let name = claims.name.unwrap_or_else(|| "Somebody".to_owned());
        let named = super::accounts::device_name(device);
        let (user, known) = self
            .directory
            .subject_on_device(claims.subject, name, named)
            .await
            .map_err(|error| match error {
                DirectoryError::Refused(Refusal::Disabled) => AuthError::Disabled,
                error => error.into(),
            })?;
        if user.disabled {
            return Err(AuthError::Disabled);
        }
        let principal = Principal {
            user: user.id,
            device: known.id,
            sign_in: Default::default(),
            issued: claims.issued,
            expires: claims.expires,
        };
        let principal = self.unless_revoked(principal)?;
        self.verified.insert(token_key(token, device), principal);
        Ok(principal)
    }

    /// Whether a principal found good earlier still is: not expired, not revoked.
    pub fn check(&self, principal: &Principal) -> Result<(), AuthError> {
        if principal.expires <= self.now() {
            return Err(AuthError::Expired);
        }
        self.unless_revoked(*principal).map(|_| ())
    }

    fn unless_revoked(&self, principal: Principal) -> Result<Principal, AuthError> {
        if self.revocations.refuses(&principal) {
            Err(AuthError::Revoked)
        } else {
            Ok(principal)
        }
    }

    /// A single-use ticket for this principal: the only thing that may stand in a URL.
    pub fn issue_ticket(&self, principal: &Principal) -> Result<String, AuthError> {
        self.check(principal)?;
        tickets::issue(&self.key, principal, self.now())
    }

    /// Whom a ticket speaks for; it is used up, whatever the answer.
    ///
    /// # Errors
    /// `TooBusy` when the registry can't say whether it was used: the token is still good.
    pub async fn redeem_ticket(&self, ticket: &str) -> Result<Principal, AuthError> {
        let (principal, claim) = tickets::verify(&self.key, ticket, self.now())?;
        let claimed = tokio::time::timeout(
            REGISTRY_DEADLINE,
            self.registry.claim(claim, tickets::CLAIM_LIFE),
        );
        match claimed.await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Err(AuthError::Invalid),
            _ => {
                return Err(AuthError::TooBusy {
                    retry_after: Duration::from_secs(1),
                });
            }
        }
        self.check(&principal)?;
        Ok(principal)
    }

    /// Makes a key for a server; the second part is the key itself, which is shown once and kept nowhere.
    pub async fn create_api_key(
        &self,
        name: &str,
        scopes: Vec<String>,
    ) -> Result<(ApiKey, String), AuthError> {
        let name = super::names::display_name(name).ok_or(AuthError::Name)?;
        let secret = secrets::fresh()?;
        let key = self
            .directory
            .create_api_key(NewApiKey {
                secret: secrets::stored(&*secret),
                name,
                scopes,
            })
            .await?;
        let text = format!("tak_{:016x}_{}", key.id.0, secrets::text(&*secret));
        Ok((key, text))
    }

    /// Which server a key speaks for.
    pub async fn verify_api_key(&self, key: &str) -> Result<ApiPrincipal, AuthError> {
        let body = key.strip_prefix("tak_").ok_or(AuthError::Invalid)?;
        let (id, secret) = body.split_once('_').ok_or(AuthError::Invalid)?;
        let id = Some(id)
            .filter(|id| {
                id.len() == 16 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            })
            .and_then(|id| u64::from_str_radix(id, 16).ok())
            .ok_or(AuthError::Invalid)?;
        let secret = secrets::bytes::<32>(secret).ok_or(AuthError::Invalid)?;
        let found = self
            .directory
            .api_key(ApiKeyId(id))
            .await?
            .ok_or(AuthError::Invalid)?;
        let same = found.secret.0.ct_eq(&secrets::stored(&*secret).0);
        if !bool::from(same) {
            return Err(AuthError::Invalid);
        }
        Ok(ApiPrincipal {
            key: found.id,
            name: found.name,
            scopes: found.scopes,
        })
    }

    /// Whom to tell of what is revoked here, so that sessions close and other servers hear of it before
    /// their next poll. The first to say so is told.
    pub fn on_revoked(&self, tell: impl Fn(&Revocation) + Send + Sync + 'static) {
        _ = self.told.set(Box::new(tell));
    }

    /// Revokes everything of a subject up to now, here at once and elsewhere when they hear of it.
    pub async fn revoke(&self, subject: RevocationSubject) -> Result<Revocation, AuthError> {
        Ok(self.apply(self.directory.revoke(subject).await?))
    }

    /// Shuts an account (closing what is open) or opens it again.
    pub async fn set_disabled(
        &self,
        user: UserId,
        disabled: bool,
    ) -> Result<Option<Revocation>, AuthError> {
        let revocation = self.directory.set_disabled(user, disabled).await?;
        Ok(revocation.map(|revocation| self.apply(revocation)))
    }

    /// Removes a device of a user.
    pub async fn remove_device(
        &self,
        user: UserId,
        device: DeviceId,
    ) -> Result<Revocation, AuthError> {
        Ok(self.apply(self.directory.remove_device(user, device).await?))
    }

    pub(super) fn apply(&self, revocation: Revocation) -> Revocation {
        self.revocations.apply(&revocation);
        if let Some(tell) = self.told.get() {
            tell(&revocation);
        }
        revocation
    }

    /// Another server has revoked something. The poll shows it again.
    pub fn heard_of(&self, revocation: &Revocation) {
        self.revocations.apply(revocation);
    }

    /// Reads what has been revoked since the last call, by this server or another. To be called
    /// every second; the answer goes to this server's gateways, for which a repeat is harmless.
    pub async fn poll_revocations(&self) -> Result<Vec<Revocation>, DirectoryError> {
        let mut fresh = Vec::new();
        loop {
            let page = self
                .directory
                .revocations_after(self.revocations.read_to(), PAGE_MAX)
                .await?;
            for revocation in &page {
                self.revocations.apply(revocation);
                self.revocations.set_read_to(revocation.revision);
            }
            let more = page.len() == PAGE_MAX;
            fresh.extend(page);
            if !more {
                return Ok(fresh);
            }
        }
    }

    /// Forgets expired refresh tokens and revocations that no token can need. To be called every
    /// few minutes; answers how many rows went, and if any did, may be called again.
    pub async fn forget_expired(&self) -> Result<usize, DirectoryError> {
        let now = self.now();
        let issued_before = now.saturating_sub(micros(self.settings.revocations_kept));
        self.revocations.forget(issued_before);
        self.directory.forget_expired(now, issued_before).await
    }

    /// An access token beside a refresh token. `asked` is when the request came: a revocation made
    /// while it was being answered then refuses the token.
    pub(super) fn tokens(
        &self,
        sign_in: SignIn,
        asked: Micros,
        refresh: String,
        refresh_expires: Micros,
    ) -> Tokens {
        let access_expires = asked + micros(self.settings.access_life);
        let principal = Principal {
            user: sign_in.user,
            device: sign_in.device,
            sign_in: sign_in.id,
            issued: asked,
            expires: access_expires,
        };
        Tokens {
            user: sign_in.user,
            device: sign_in.device,
            access: access::issue(&self.key, &principal),
            access_expires,
            refresh,
            refresh_expires,
        }
    }
}

pub(super) fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
