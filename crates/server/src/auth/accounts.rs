//! [`Auth`]: signing up, in, on and out.

use std::net::IpAddr;

use tidings_core::ids::{DeviceId, Micros, UserId};
use tidings_core::ports::directory::{
    Device, DirectoryError, NewSignIn, NewUser, Revocation, Rotation, SecretHash, What,
};

use super::password::Password;
use super::service::micros;
use super::{Auth, AuthError, Principal, Tokens, names, secrets};

/// The longest name of a device in bytes (the schema's `Auth.device`).
const DEVICE_BYTES_MAX: usize = 64;

/// A device's name fit to be shown; "device" where nothing is left of it.
pub(super) fn device_name(raw: &str) -> String {
    let name = names::display_name(raw).filter(|name| name.len() <= DEVICE_BYTES_MAX);
    name.unwrap_or_else(|| "device".to_owned())
}

impl Auth {
    /// Creates an account. The password is hashed before the name is looked at, so a taken name takes as
    /// long as a free one.
    pub async fn sign_up(
        &self,
        login: &str,
        password: &str,
        display_name: Option<&str>,
    ) -> Result<UserId, AuthError> {
        let login = names::login_name(login).ok_or(AuthError::Name)?;
        let display_name = match display_name {
            Some(name) => names::display_name(name).ok_or(AuthError::Name)?,
            None => login.name.clone(),
        };
        let hash = self
            .hasher
            .hash(Password::chosen(password, &login.name)?)
            .await?;
        let new = NewUser {
            login: Some(login),
            display_name,
            password: Some(hash),
        };
        let made = self.directory.create_users(vec![new]).await?.pop();
        match made {
            Some(Ok(user)) => Ok(user),
            Some(Err(DirectoryError::Conflict(What::LoginName))) => Err(AuthError::NameTaken),
            Some(Err(error)) => Err(error.into()),
            None => Err(DirectoryError::Corrupt("a creation without an answer".into()).into()),
        }
    }

    /// Signs in with a password, on a device known before or a new one of this name.
    ///
    /// Unknown names, accounts without a password and wrong passwords answer the same in the same time,
    /// and count the same against the throttle.
    pub async fn sign_in(
        &self,
        address: IpAddr,
        login: &str,
        password: &str,
        device: Option<DeviceId>,
        new_device: &str,
    ) -> Result<Tokens, AuthError> {
        let asked = self.now();
        let user = self.check_password(address, login, password).await?;
        let device = match device {
            Some(device) if self.devices_has(user, device).await? => device,
            _ => {
                self.directory
                    .add_device(user, device_name(new_device))
                    .await?
                    .id
            }
        };
        self.begin(user, device, asked).await
    }

    async fn devices_has(&self, user: UserId, device: DeviceId) -> Result<bool, AuthError> {
        Ok(self
            .directory
            .devices(user)
            .await?
            .iter()
            .any(|own: &Device| own.id == device))
    }

    async fn check_password(
        &self,
        address: IpAddr,
        login: &str,
        password: &str,
    ) -> Result<UserId, AuthError> {
        // A name that can't exist is thrown with all others into one account of the throttle.
        let key = names::login_name(login)
            .map(|login| login.key)
            .unwrap_or_default();
        let attempt = self
            .throttle
            .begin(&key, address, self.now())
            .map_err(|retry_after| AuthError::Throttled { retry_after })?;
        let checked = async {
            let stored = if key.is_empty() {
                None
            } else {
                self.directory.password_of(key).await?
            };
            let hash = stored.as_ref().and_then(|stored| stored.hash.clone());
            // A password that can't have been set still takes the time of one that could.
            let (offered, possible) = match Password::offered(password) {
                Some(offered) => (offered, true),
                None => (Password::impossible(), false),
            };
            let right = self.hasher.matches(offered, hash).await? && possible;
            Ok::<_, AuthError>(stored.filter(|_| right))
        };
        match checked.await {
            Ok(Some(stored)) => {
                self.throttle.right(attempt);
                if stored.disabled {
                    Err(AuthError::Disabled)
                } else {
                    Ok(stored.user)
                }
            }
            Ok(None) => Err(AuthError::Credentials),
            Err(error) => {
                self.throttle.undecided(attempt);
                Err(error)
            }
        }
    }

    /// Tokens for a user on a device without a password: for a server with an API key that vouches for them.
    pub async fn sign_in_as(&self, user: UserId, new_device: &str) -> Result<Tokens, AuthError> {
        let asked = self.now();
        let device = self
            .directory
            .device_named(user, device_name(new_device))
            .await?
            .id;
        self.begin(user, device, asked).await
    }

    async fn begin(
        &self,
        user: UserId,
        device: DeviceId,
        asked: Micros,
    ) -> Result<Tokens, AuthError> {
        let (refresh, hash) = fresh_refresh_token()?;
        let expires = asked + micros(self.settings.refresh_life);
        let sign_in = self
            .directory
            .sign_in(NewSignIn {
                user,
                device,
                refresh: hash,
                expires,
            })
            .await?;
        Ok(self.tokens(sign_in, asked, refresh, expires))
    }

    /// Fresh tokens for a refresh token, which is used up. Used a second time it kills its family: the
    /// access tokens are revoked at once, here and at the other servers as they hear of it.
    pub async fn refresh(&self, token: &str) -> Result<Tokens, AuthError> {
        let asked = self.now();
        let used = token
            .strip_prefix("tre_")
            .and_then(secrets::bytes::<32>)
            .ok_or(AuthError::Invalid)?;
        let (refresh, next) = fresh_refresh_token()?;
        let expires = asked + micros(self.settings.refresh_life);
        match self
            .directory
            .rotate(secrets::stored(&*used), next, expires)
            .await?
        {
            Rotation::Rotated(sign_in) => Ok(self.tokens(sign_in, asked, refresh, expires)),
            Rotation::Reused(revocation) => {
                tracing::warn!("a refresh token was used twice, its sign-in is ended");
                self.apply(revocation);
                Err(AuthError::Revoked)
            }
            Rotation::Refused => Err(AuthError::Invalid),
        }
    }

    /// Ends the principal's sign-in. For an external token, which has none, the device's tokens up to
    /// now are revoked.
    pub async fn sign_out(&self, principal: &Principal) -> Result<Revocation, AuthError> {
        let revocation = if principal.sign_in.0 == 0 {
            let subject =
                tidings_core::ports::directory::RevocationSubject::Device(principal.device);
            self.directory.revoke(subject).await?
        } else {
            self.directory
                .end_sign_in(principal.user, principal.sign_in)
                .await?
        };
        Ok(self.apply(revocation))
    }

    /// Changes a password: the old one is asked for like at a sign-in, and everything signed in is ended,
    /// the asking session too.
    pub async fn change_password(
        &self,
        address: IpAddr,
        user: UserId,
        old: &str,
        new: &str,
    ) -> Result<Revocation, AuthError> {
        let account = self.directory.users(vec![user]).await?.pop();
        let login = account
            .and_then(|account| account.login)
            .ok_or(AuthError::Credentials)?;
        let new = Password::chosen(new, &login)?;
        if self.check_password(address, &login, old).await? != user {
            return Err(AuthError::Credentials);
        }
        let hash = self.hasher.hash(new).await?;
        Ok(self.apply(self.directory.set_password(user, hash).await?))
    }
}

fn fresh_refresh_token() -> Result<(String, SecretHash), AuthError> {
    let secret = secrets::fresh()?;
    Ok((
        format!("tre_{}", secrets::text(&*secret)),
        secrets::stored(&*secret),
    ))
}
