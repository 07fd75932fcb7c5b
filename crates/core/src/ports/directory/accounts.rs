//! Users, their devices, and whom they have blocked.

use std::fmt;

use super::{Answer, DirectoryError, Revocation};
use crate::ids::{DeviceId, Micros, UserId};

/// How many users one call creates at most.
pub const BULK_USERS_MAX: usize = 1_000;

/// How many devices one user has at most; beyond it the one seen longest ago goes.
pub const DEVICES_PER_USER_MAX: usize = 256;

/// The most users one may block. Gateways hold the list of whoever is connected: 8 KB at most.
pub const BLOCKS_PER_USER_MAX: usize = 1_000;

/// A login name with the key it is unique under.
///
/// The caller makes the key (NFC, lower case, confusable folding), so that two
/// names a reader can't tell apart have the same one; the directory compares keys
/// byte by byte and gives the name back as it was chosen.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LoginName {
    /// As the user wrote it.
    pub name: String,
    /// What it is unique under.
    pub key: String,
}

/// Whom a customer's own backend means: its issuer's name and its name for the user.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ExternalSubject {
    /// The token's `iss`.
    pub issuer: String,
    /// The token's `sub`.
    pub subject: String,
}

/// A password's hash in PHC string form; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(pub String);

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

/// An account to create.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// The name to sign in and be found with; none: found by id only.
    pub login: Option<LoginName>,
    /// The name shown to others.
    pub display_name: String,
    /// None: signs in by tokens only.
    pub password: Option<PasswordHash>,
}

/// An account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct User {
    /// The account's id.
    pub id: UserId,
    /// The login name as it was chosen.
    pub login: Option<String>,
    /// The name shown to others.
    pub display_name: String,
    /// Who the user is at a customer's backend.
    pub external: Option<ExternalSubject>,
    /// When the account was made.
    pub created: Micros,
    /// Whether the account is shut: no sign-in, no new membership.
    pub disabled: bool,
}

/// What a sign-in by password is checked against.
#[derive(Clone, Debug)]
pub struct StoredPassword {
    /// Whose it is.
    pub user: UserId,
    /// None: this account has no password.
    pub hash: Option<PasswordHash>,
    /// Whether the account is shut.
    pub disabled: bool,
}

/// One client of a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// The device's id.
    pub id: DeviceId,
    /// Whose it is.
    pub user: UserId,
    /// The client's name for it, at most 64 bytes.
    pub name: String,
    /// When it first signed in.
    pub created: Micros,
    /// When it was last connected, as far as reported.
    pub last_seen: Micros,
}

/// Users, their devices, and whom they have blocked. See [`super`] for what holds for every method.
pub trait Accounts: Send + Sync {
    /// Creates accounts, at most [`BULK_USERS_MAX`], in one transaction.
    ///
    /// The answer has one entry a user, in order: an entry whose login name is taken
    /// (by an account or an earlier entry) says `Conflict(LoginName)`, and the others
    /// stand. Repeated after an unknown outcome, users with a login name answer
    /// `Conflict`; those without are created twice.
    fn create_users(&self, users: Vec<NewUser>) -> Answer<'_, Vec<Result<UserId, DirectoryError>>>;

    /// The account of an external subject, created with this display name at first sight.
    ///
    /// Callers at the same time get the same account; a repeat changes nothing.
    /// The display name of an account that exists stays.
    fn user_of_subject(&self, subject: ExternalSubject, display_name: String) -> Answer<'_, User>;

    /// The accounts with these ids, at most [`super::PAGE_MAX`]; unknown ids are left out, the order is by id.
    fn users(&self, ids: Vec<UserId>) -> Answer<'_, Vec<User>>;

    /// The account whose login name has this key.
    fn user_by_login(&self, key: String) -> Answer<'_, Option<User>>;

    /// What a sign-in under this login key is checked against; none: no such account.
    fn password_of(&self, key: String) -> Answer<'_, Option<StoredPassword>>;

    /// Replaces a password and ends everything signed in under the old one: all refresh tokens of
    /// the user die, and the revocation returned (of the user) refuses the older access tokens.
    ///
    /// A repeat sets the same password and revokes again.
    fn set_password(&self, user: UserId, hash: PasswordHash) -> Answer<'_, Revocation>;

    /// Changes the name shown to others. A repeat is harmless.
    fn set_display_name(&self, user: UserId, display_name: String) -> Answer<'_, ()>;

    /// Shuts an account or opens it again. Shutting kills all refresh tokens and returns a revocation of the user.
    fn set_disabled(&self, user: UserId, disabled: bool) -> Answer<'_, Option<Revocation>>;

    /// Records a new device. A repeat makes another one. Of more than [`DEVICES_PER_USER_MAX`] the
    /// one seen longest ago is removed as by [`Accounts::remove_device`].
    fn add_device(&self, user: UserId, name: String) -> Answer<'_, Device>;

    /// The device of this user that has this name, made at first sight as by
    /// [`Accounts::add_device`]: for tokens that name no device.
    fn device_named(&self, user: UserId, name: String) -> Answer<'_, Device>;

    /// [`Accounts::user_of_subject`] and [`Accounts::device_named`] at once, as each sign-in by a customer's token needs
    /// both; what is known already costs one question. Whoever is shut out has the device if it was made before.
    fn subject_on_device(
        &self,
        subject: ExternalSubject,
        display_name: String,
        device: String,
    ) -> Answer<'_, (User, Device)> {
        Box::pin(async move {
            let user = self.user_of_subject(subject, display_name).await?;
            let device = self.device_named(user.id, device).await?;
            Ok((user, device))
        })
    }

    /// All devices of a user, oldest first, at most [`super::PAGE_MAX`].
    fn devices(&self, user: UserId) -> Answer<'_, Vec<Device>>;

    /// Reports when devices were last connected, at most [`super::PAGE_MAX`]; the later time wins, unknown
    /// devices are ignored.
    fn devices_seen(&self, seen: Vec<(DeviceId, Micros)>) -> Answer<'_, ()>;

    /// Removes a device: its refresh tokens die, and the revocation returned refuses its access tokens.
    /// Removed twice, it is `NotFound(Device)`.
    fn remove_device(&self, user: UserId, device: DeviceId) -> Answer<'_, Revocation>;

    /// Blocks (`true`) or unblocks another user. A repeat is harmless. More than
    /// [`BLOCKS_PER_USER_MAX`] are refused.
    fn set_block(&self, user: UserId, other: UserId, blocked: bool) -> Answer<'_, ()>;

    /// Whether `user` has blocked `other`.
    fn has_blocked(&self, user: UserId, other: UserId) -> Answer<'_, bool>;

    /// Which of these users, at most [`super::PAGE_MAX`], have blocked `user`; in the order asked.
    fn blockers_among(&self, user: UserId, among: Vec<UserId>) -> Answer<'_, Vec<UserId>>;
}
