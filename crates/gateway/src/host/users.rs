//! Which conversations users have and whom they block, remembered so that a reconnect doesn't ask
//! the directory.
//!
//! A list is as good as the directory's as long as every change of members is heard of: each is an
//! event that comes to every gateway, later than the directory's own commit. A list read before
//! such an event and put in after it is kept out by the part's generation. Events that were lost
//! show in the routers' digests; then everything is forgotten.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tidings_core::ids::{ConversationId, UserId};

use crate::logic::Listed;

const PARTS: usize = 32;

#[derive(Default)]
struct Part {
    lists: HashMap<UserId, Box<[ConversationId]>>,
    /// The direct conversations with those they have blocked, of users in `lists` who have.
    blocked: HashMap<UserId, Box<[ConversationId]>>,
    /// Counts what was forgotten.
    generation: u64,
}

impl Part {
    fn remove(&mut self, user: UserId) {
        self.lists.remove(&user);
        self.blocked.remove(&user);
    }
}

/// Lists of users' conversations, shared by the workers of a process.
pub struct UserCache {
    parts: Vec<Mutex<Part>>,
    users_max: usize,
}

impl UserCache {
    /// A cache of the lists of at most about `users_max` users.
    pub fn new(users_max: usize) -> Self {
        UserCache {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            users_max,
        }
    }

    /// What is remembered of a user; else the generation to give back to [`UserCache::put`].
    pub(super) fn get(&self, user: UserId) -> Result<Listed, u64> {
        let part = self.part(user);
        let conversations = part.lists.get(&user).ok_or(part.generation)?;
        Ok(Listed {
            conversations: conversations.to_vec(),
            blocked: part.blocked.get(&user).map_or(Vec::new(), |b| b.to_vec()),
        })
    }

    /// Remembers a list that was read after the generation was had.
    pub(super) fn put(&self, user: UserId, listed: &Listed, generation: u64) {
        let mut part = self.part(user);
        if part.generation != generation {
            return;
        }
        if part.lists.len() >= self.users_max.div_ceil(PARTS) {
            // Full: as good a victim as any.
            if let Some(victim) = part.lists.keys().next().copied() {
                part.remove(victim);
            }
        }
        part.lists.insert(user, listed.conversations[..].into());
        if !listed.blocked.is_empty() {
            part.blocked.insert(user, listed.blocked[..].into());
        }
    }

    /// The users' conversations have changed.
    pub fn forget(&self, users: impl Iterator<Item = UserId>) {
        for user in users {
            let mut part = self.part(user);
            part.generation += 1;
            part.remove(user);
        }
    }

    /// Anybody's conversations may have changed.
    pub fn forget_all(&self) {
        for part in &self.parts {
            let mut part = lock(part);
            part.generation += 1;
            part.lists = HashMap::new();
            part.blocked = HashMap::new();
        }
    }

    fn part(&self, user: UserId) -> MutexGuard<'_, Part> {
        lock(&self.parts[(user.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % PARTS])
    }
}

fn lock(part: &Mutex<Part>) -> MutexGuard<'_, Part> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_read_before_a_change_is_never_remembered_after_it() {
        let cache = UserCache::new(64);
        let (user, list) = (UserId(1), Listed::from(vec![ConversationId(5)]));
        let generation = cache.get(user).expect_err("nothing yet");
        cache.put(user, &list, generation);
        assert_eq!(cache.get(user), Ok(list.clone()));
        cache.forget([user].into_iter());
        let read = cache.get(user).expect_err("forgotten");
        cache.forget([user].into_iter());
        cache.put(user, &list, read);
        let read = cache.get(user).expect_err("read before the change");
        cache.put(user, &list, read);
        cache.forget_all();
        assert!(cache.get(user).is_err());
    }

    #[test]
    fn it_stays_within_its_bound() {
        let cache = UserCache::new(64);
        for user in 0..1000 {
            let generation = cache.get(UserId(user)).expect_err("new");
            cache.put(UserId(user), &Listed::default(), generation);
        }
        let kept = (0..1000)
            .filter(|&user| cache.get(UserId(user)).is_ok())
            .count();
        assert!((32..=64).contains(&kept), "{kept}");
    }
}
