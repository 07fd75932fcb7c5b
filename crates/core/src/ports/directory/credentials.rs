//! Refresh tokens, API keys, and what is revoked.

use std::fmt;

use super::Answer;
use crate::ids::{DeviceId, Micros, UserId};

/// The SHA-256 of a 256-bit random secret; never printed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SecretHash(pub [u8; 32]);

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

/// One sign-in of a device: the family that its refresh tokens and access tokens belong to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SignInId(pub u64);

/// A key of a customer's server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ApiKeyId(pub u64);

/// A sign-in to record.
#[derive(Clone, Debug)]
pub struct NewSignIn {
    /// Who signed in.
    pub user: UserId,
    /// On which of the user's devices.
    pub device: DeviceId,
    /// Of the family's first refresh token.
    pub refresh: SecretHash,
    /// When that token ends.
    pub expires: Micros,
}

/// A sign-in that is alive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SignIn {
    /// The family.
    pub id: SignInId,
    /// Who signed in.
    pub user: UserId,
    /// On which device.
    pub device: DeviceId,
}

/// What became of a refresh token that was offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rotation {
    /// It was the family's current one: the new one stands in its place.
    Rotated(SignIn),
    /// It had been used before, so somebody has a copy: the family is dead, its access tokens are revoked.
    Reused(Revocation),
    /// Unknown, expired, or of a dead family.
    Refused,
}

/// An API key to record.
#[derive(Clone, Debug)]
pub struct NewApiKey {
    /// Of the secret half.
    pub secret: SecretHash,
    /// The operator's name for it.
    pub name: String,
    /// What it may be used for, sorted and without spaces.
    pub scopes: Vec<String>,
}

/// An API key that is alive.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// The half of the key that isn't secret.
    pub id: ApiKeyId,
    /// Of the secret half; compare in constant time.
    pub secret: SecretHash,
    /// The operator's name for it.
    pub name: String,
    /// What it may be used for.
    pub scopes: Vec<String>,
    /// When it was made.
    pub created: Micros,
}

/// Whose tokens a revocation refuses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RevocationSubject {
    /// All of a user.
    User(UserId),
    /// Those of one device.
    Device(DeviceId),
    /// Those of one sign-in.
    SignIn(SignInId),
}

/// Tokens of a subject that were issued before an instant count no more; its live sessions close.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Revocation {
    /// 1, 2, 3, … in the order of their transactions; a subject revoked again moves to a new one.
    pub revision: u64,
    /// Whose tokens.
    pub subject: RevocationSubject,
    /// A token issued at or after this instant is good.
    pub not_before: Micros,
}

/// Refresh tokens, API keys, and what is revoked. See [`super`] for what holds for every method.
pub trait Credentials: Send + Sync {
    /// Records a sign-in with its first refresh token. A repeat with the same hash answers with
    /// the sign-in made before.
    fn sign_in(&self, new: NewSignIn) -> Answer<'_, SignIn>;

    /// Uses a refresh token: single use, the next one stands in its place.
    ///
    /// Not repeatable: a second try with the same token is a reuse and kills the family, which is
    /// the point; a client that lost the answer signs in again.
    fn rotate(&self, used: SecretHash, next: SecretHash, expires: Micros) -> Answer<'_, Rotation>;

    /// Ends a sign-in: its refresh tokens die, and the revocation returned refuses its access tokens.
    /// A repeat revokes again.
    fn end_sign_in(&self, user: UserId, id: SignInId) -> Answer<'_, Revocation>;

    /// Revokes everything issued to a subject up to now, and kills its refresh tokens. A repeat revokes again.
    fn revoke(&self, subject: RevocationSubject) -> Answer<'_, Revocation>;

    /// Revocations with a revision above `revision`, in order, at most `limit`. A subject has one row,
    /// so a reader that starts at 0 and goes on from the last revision it saw knows all that count.
    fn revocations_after(&self, revision: u64, limit: usize) -> Answer<'_, Vec<Revocation>>;

    /// Forgets what no token can need any more: refresh tokens that expired before `now`, and
    /// revocations of devices and sign-ins whose instant is before `issued_before` (tokens issued
    /// then have all expired). Those of users stay. Answers how many rows went, at most 10,000 a call.
    fn forget_expired(&self, now: Micros, issued_before: Micros) -> Answer<'_, usize>;

    /// Records an API key. A repeat makes another one.
    fn create_api_key(&self, new: NewApiKey) -> Answer<'_, ApiKey>;

    /// The key with this id, if it is alive.
    fn api_key(&self, id: ApiKeyId) -> Answer<'_, Option<ApiKey>>;

    /// All living keys, oldest first, at most [`super::PAGE_MAX`].
    fn api_keys(&self) -> Answer<'_, Vec<ApiKey>>;

    /// Ends a key; ended twice it is `NotFound(ApiKey)`.
    fn remove_api_key(&self, id: ApiKeyId) -> Answer<'_, ()>;
}
