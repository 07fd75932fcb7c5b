//! Where users' sessions were a moment ago, so that a busy conversation asks once and not for each message.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tidings_core::ids::UserId;
use tidings_core::ports::registry::SessionEntry;

use super::link::lock;

const PARTS: usize = 64;

#[derive(Default)]
struct Part {
    /// Counts what was forgotten: an answer asked for before the last one may be out of date.
    forgotten: u64,
    known: HashMap<UserId, (Instant, Vec<SessionEntry>)>,
}

/// What is in here was true at most `life` ago, and nothing newer has been heard of.
pub(super) struct SessionCache {
    parts: Vec<Mutex<Part>>,
    part_max: usize,
    life: Duration,
}

/// When an answer was asked for.
#[derive(Clone, Copy)]
pub(super) struct Asked(u64, Instant);

impl SessionCache {
    pub fn new(max: usize, life: Duration) -> SessionCache {
        SessionCache {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            part_max: max / PARTS,
            life,
        }
    }

    fn part(&self, user: UserId) -> &Mutex<Part> {
        &self.parts[spread(user) % PARTS]
    }

    /// The user's sessions, or what to give [`SessionCache::learn`] with the answer.
    pub fn get(&self, user: UserId) -> Result<Vec<SessionEntry>, Asked> {
        let part = lock(self.part(user));
        match part.known.get(&user) {
            Some((at, sessions)) if at.elapsed() < self.life => Ok(sessions.clone()),
            _ => Err(Asked(part.forgotten, Instant::now())),
        }
    }

    /// Keeps an answer, unless something has changed since it was asked for.
    pub fn learn(&self, user: UserId, asked: Asked, sessions: &[SessionEntry]) {
        let mut part = lock(self.part(user));
        if part.forgotten != asked.0 || self.life.is_zero() || self.part_max == 0 {
            return;
        }
        if part.known.len() >= self.part_max && !part.known.contains_key(&user) {
            // Most of it has run out by now; a question more for the rest is cheaper than an order of ages.
            let life = self.life;
            part.known.retain(|_, (at, _)| at.elapsed() < life);
            if part.known.len() >= self.part_max {
                part.known.clear();
            }
        }
        part.known.insert(user, (asked.1, sessions.to_vec()));
    }

    /// The user's sessions have changed.
    pub fn forget(&self, user: UserId) {
        let mut part = lock(self.part(user));
        part.forgotten += 1;
        part.known.remove(&user);
    }

    /// Changes may have been missed.
    pub fn forget_all(&self) {
        for part in &self.parts {
            let mut part = lock(part);
            part.forgotten += 1;
            part.known.clear();
        }
    }
}

/// A number that spreads users evenly.
pub(super) fn spread(user: UserId) -> usize {
    (user.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidings_core::ids::{DeviceId, GatewayId, SessionId};

    #[test]
    fn an_answer_asked_for_before_a_change_is_not_kept() {
        let cache = SessionCache::new(1_000, Duration::from_secs(60));
        let user = UserId(7);
        let entry = SessionEntry {
            user,
            device: DeviceId(1),
            session: SessionId(2),
            gateway: GatewayId(3),
        };
        let asked = cache.get(user).expect_err("nothing known");
        cache.forget(user);
        cache.learn(user, asked, &[]);
        let asked = cache.get(user).expect_err("it may be out of date");
        cache.learn(user, asked, &[entry]);
        assert_eq!(cache.get(user).ok(), Some(vec![entry]));
        cache.forget_all();
        assert!(cache.get(user).is_err());
    }

    #[test]
    fn it_stays_within_its_bound() {
        let cache = SessionCache::new(PARTS * 4, Duration::from_secs(60));
        for user in (0..10_000).map(UserId) {
            if let Err(asked) = cache.get(user) {
                cache.learn(user, asked, &[]);
            }
        }
        let known: usize = cache.parts.iter().map(|p| lock(p).known.len()).sum();
        assert!(known > 0 && known <= PARTS * 4, "{known}");
    }
}
