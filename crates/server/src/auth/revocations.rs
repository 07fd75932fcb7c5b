//! What is revoked, as this server knows it.
//!
//! The directory has the truth; a server reads what is new once a second and applies what it
//! did itself at once. A server that can't reach the directory goes on with what it knows:
//! own tokens live 15 minutes at most, which bounds what that can miss.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use tidings_core::ids::Micros;
use tidings_core::ports::directory::{Revocation, RevocationSubject};

use super::Principal;

/// Revoked subjects, and how far the directory's list has been read.
#[derive(Default)]
pub(super) struct Revocations {
    not_before: RwLock<HashMap<RevocationSubject, Micros>>,
    revision: AtomicU64,
}

impl Revocations {
    /// Whether a token of this principal has been revoked since it was issued.
    pub(super) fn refuses(&self, principal: &Principal) -> bool {
        let subjects = [
            RevocationSubject::User(principal.user),
            RevocationSubject::Device(principal.device),
            RevocationSubject::SignIn(principal.sign_in),
        ];
        let table = self
            .not_before
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        subjects.iter().any(|subject| {
            table
                .get(subject)
                .is_some_and(|instant| principal.issued < *instant)
        })
    }

    /// Applies a revocation, wherever it is known from.
    pub(super) fn apply(&self, revocation: &Revocation) {
        let mut table = self
            .not_before
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let instant = table.entry(revocation.subject).or_default();
        *instant = revocation.not_before.max(*instant);
    }

    /// Forgets devices and sign-ins revoked before this instant: their tokens have all expired.
    pub(super) fn forget(&self, issued_before: Micros) {
        let mut table = self
            .not_before
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        table.retain(|subject, instant| {
            matches!(subject, RevocationSubject::User(_)) || *instant >= issued_before
        });
    }

    /// The last revision read from the directory.
    pub(super) fn read_to(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// All up to this revision have been applied.
    pub(super) fn set_read_to(&self, revision: u64) {
        self.revision.fetch_max(revision, Ordering::AcqRel);
    }
}
