//! The registry of one process: maps in parts, each under its own lock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::ready;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::ids::{ConversationId, GatewayId, Micros, Seq, SessionId, UserId};
use crate::ports::BoxFuture;
use crate::ports::registry::{
    Mark, Presence, PresenceChanges, Registry, RegistryError, SessionEntry, UserPresence,
};

/// Parts of the maps: more than there are threads to meet.
const PARTS: usize = 64;

/// Users of one part whose last-seen is remembered after they left; a million in all parts. When
/// there are more, the quarter that left first is forgotten.
const GONE_MAX: usize = 16 << 10;

/// Marks of one user; a user with more has so much waiting that one more says nothing.
const MARKS_PER_USER_MAX: usize = 1_000;

/// Users of one part with marks.
const MARKED_MAX: usize = 16 << 10;

/// How long a session is known without a refresh: heartbeats refresh it, which come every 30 s.
pub const SESSION_TTL: Micros = 90_000_000;

#[derive(Clone, Copy)]
struct Live {
    entry: SessionEntry,
    state: Presence,
    refreshed: Micros,
}

#[derive(Default)]
struct Part {
    live: HashMap<UserId, Vec<Live>>,
    gone: HashMap<UserId, Micros>,
    marks: HashMap<UserId, BTreeMap<ConversationId, Seq>>,
}

#[derive(Default)]
struct Watching {
    by_gateway: BTreeMap<GatewayId, HashSet<UserId>>,
    changed: HashSet<UserId>,
}

/// Claims remembered: those beyond are refused until some have run out.
const CLAIMS_MAX: usize = 64 << 10;

/// [`Registry`] within one process. Every future is ready at once.
pub struct InProcessRegistry {
    parts: Vec<Mutex<Part>>,
    watching: Mutex<Watching>,
    /// When each claim runs out.
    claims: Mutex<HashMap<u128, Micros>>,
    clock: Box<dyn Fn() -> Micros + Send + Sync>,
    ttl: Micros,
}

impl InProcessRegistry {
    /// An empty registry that forgets sessions not refreshed for [`SESSION_TTL`] by this clock.
    pub fn new(clock: impl Fn() -> Micros + Send + Sync + 'static) -> Self {
        InProcessRegistry {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            watching: Mutex::default(),
            claims: Mutex::default(),
            clock: Box::new(clock),
            ttl: SESSION_TTL,
        }
    }

    fn part(&self, user: UserId) -> MutexGuard<'_, Part> {
        let mixed = user.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        lock(&self.parts[mixed as usize % PARTS])
    }

    fn note_change(&self, user: UserId) {
        let mut watching = lock(&self.watching);
        if watching
            .by_gateway
            .values()
            .any(|users| users.contains(&user))
        {
            watching.changed.insert(user);
        }
    }

    fn presence_of(&self, user: UserId) -> UserPresence {
        let oldest = (self.clock)().saturating_sub(self.ttl);
        let part = self.part(user);
        let live = part
            .live
            .get(&user)
            .into_iter()
            .flatten()
            .filter(|l| l.refreshed >= oldest);
        let rank = |state: &Presence| match state {
            Presence::Offline => 0,
            Presence::Away => 1,
            Presence::Online => 2,
        };
        let state = live.map(|l| l.state).max_by_key(rank).unwrap_or_default();
        let gone = part.gone.get(&user).copied().unwrap_or_default();
        UserPresence {
            user,
            state,
            last_seen: if state == Presence::Offline { gone } else { 0 },
        }
    }
}

impl Part {
    fn forget_some_gone(&mut self) {
        if self.gone.len() <= GONE_MAX {
            return;
        }
        let mut times: Vec<Micros> = self.gone.values().copied().collect();
        let quarter = times.len() / 4;
        let (_, &mut oldest, _) = times.select_nth_unstable(quarter);
        self.gone.retain(|_, at| *at > oldest);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn done<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, Result<T, RegistryError>> {
    Box::pin(ready(Ok(value)))
}

impl Registry for InProcessRegistry {
    fn put_session(&self, entry: SessionEntry) -> BoxFuture<'_, Result<(), RegistryError>> {
        let refreshed = (self.clock)();
        let is_new = {
            let mut part = self.part(entry.user);
            let live = part
                .live
                .entry(entry.user)
                .or_insert_with(|| Vec::with_capacity(1));
            match live.iter_mut().find(|l| l.entry.session == entry.session) {
                Some(known) => {
                    known.refreshed = refreshed;
                    false
                }
                None => {
                    live.reserve_exact(1);
                    live.push(Live {
                        entry,
                        state: Presence::Online,
                        refreshed,
                    });
                    true
                }
            }
        };
        if is_new {
            self.note_change(entry.user);
        }
        done(())
    }

    fn remove_session(
        &self,
        user: UserId,
        session: SessionId,
        at: Micros,
    ) -> BoxFuture<'_, Result<(), RegistryError>> {
        let is_gone = {
            let mut part = self.part(user);
            let Some(live) = part.live.get_mut(&user) else {
                return done(());
            };
            let before = live.len();
            live.retain(|l| l.entry.session != session);
            let is_gone = live.len() < before;
            if live.is_empty() {
                part.live.remove(&user);
                part.gone.insert(user, at);
                part.forget_some_gone();
                if part.live.capacity() > 4 * part.live.len() + 64 {
                    part.live.shrink_to_fit();
                }
            }
            is_gone
        };
        if is_gone {
            self.note_change(user);
        }
        done(())
    }

    fn sessions_of(&self, user: UserId) -> BoxFuture<'_, Result<Vec<SessionEntry>, RegistryError>> {
        let oldest = (self.clock)().saturating_sub(self.ttl);
        let part = self.part(user);
        let live = part.live.get(&user).into_iter().flatten();
        done(
            live.filter(|l| l.refreshed >= oldest)
                .map(|l| l.entry)
                .collect(),
        )
    }

    fn set_presence(
        &self,
        user: UserId,
        session: SessionId,
        state: Presence,
    ) -> BoxFuture<'_, Result<(), RegistryError>> {
        let is_changed = {
            let mut part = self.part(user);
            let live = part
                .live
                .get_mut(&user)
                .into_iter()
                .flatten()
                .find(|l| l.entry.session == session);
            live.is_some_and(|l| std::mem::replace(&mut l.state, state) != state)
        };
        if is_changed {
            self.note_change(user);
        }
        done(())
    }

    fn presence(
        &self,
        users: Vec<UserId>,
    ) -> BoxFuture<'_, Result<Vec<UserPresence>, RegistryError>> {
        done(
            users
                .into_iter()
                .map(|user| self.presence_of(user))
                .collect(),
        )
    }

    fn watch(
        &self,
        gateway: GatewayId,
        users: Vec<UserId>,
    ) -> BoxFuture<'_, Result<(), RegistryError>> {
        let mut watching = lock(&self.watching);
        if users.is_empty() {
            watching.by_gateway.remove(&gateway);
        } else {
            watching
                .by_gateway
                .insert(gateway, users.into_iter().collect());
        }
        done(())
    }

    fn changes(&self) -> BoxFuture<'_, Result<PresenceChanges, RegistryError>> {
        let (mut changed, gateways) = {
            let mut watching = lock(&self.watching);
            let changed: Vec<UserId> = std::mem::take(&mut watching.changed).into_iter().collect();
            let mut gateways: BTreeMap<GatewayId, Vec<UserId>> = BTreeMap::new();
            for (&gateway, users) in &watching.by_gateway {
                gateways.insert(
                    gateway,
                    changed
                        .iter()
                        .copied()
                        .filter(|u| users.contains(u))
                        .collect(),
                );
            }
            (changed, gateways)
        };
        changed.sort_unstable();
        let now: HashMap<UserId, UserPresence> =
            changed.iter().map(|&u| (u, self.presence_of(u))).collect();
        let told = gateways
            .into_iter()
            .filter(|(_, users)| !users.is_empty())
            .map(|(gateway, mut users)| {
                users.sort_unstable();
                (gateway, users.iter().map(|u| now[u]).collect())
            });
        done(told.collect())
    }

    fn put_marks(&self, marks: Vec<Mark>) -> BoxFuture<'_, Result<(), RegistryError>> {
        for mark in marks {
            let mut part = self.part(mark.user);
            if part.marks.len() >= MARKED_MAX && !part.marks.contains_key(&mark.user) {
                continue;
            }
            let of_user = part.marks.entry(mark.user).or_default();
            if of_user.len() < MARKS_PER_USER_MAX || of_user.contains_key(&mark.conversation) {
                let seq = of_user.entry(mark.conversation).or_default();
                *seq = mark.seq.max(*seq);
            }
        }
        done(())
    }

    fn claim(&self, key: u128, life: Duration) -> BoxFuture<'_, Result<bool, RegistryError>> {
        let now = (self.clock)();
        let mut claims = lock(&self.claims);
        if claims.len() >= CLAIMS_MAX {
            claims.retain(|_, until| *until > now);
        }
        if claims.len() >= CLAIMS_MAX {
            return Box::pin(ready(Err(RegistryError("too many claims".to_owned()))));
        }
        let until = now.saturating_add(life.as_micros() as Micros);
        let is_first = match claims.get_mut(&key) {
            Some(known) if *known > now => false,
            Some(known) => {
                *known = until;
                true
            }
            None => {
                claims.insert(key, until);
                true
            }
        };
        done(is_first)
    }

    fn clear_mark(&self, mark: Mark) -> BoxFuture<'_, Result<(), RegistryError>> {
        let mut part = self.part(mark.user);
        if let Some(of_user) = part.marks.get_mut(&mark.user) {
            if of_user
                .get(&mark.conversation)
                .is_some_and(|&seq| seq <= mark.seq)
            {
                of_user.remove(&mark.conversation);
            }
            if of_user.is_empty() {
                part.marks.remove(&mark.user);
            }
        }
        done(())
    }

    fn marks_of(
        &self,
        user: UserId,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Mark>, RegistryError>> {
        let part = self.part(user);
        let marks = part.marks.get(&user).into_iter().flatten();
        done(
            marks
                .take(limit)
                .map(|(&conversation, &seq)| Mark {
                    user,
                    conversation,
                    seq,
                })
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::{Context, Poll, Waker};

    /// Every future of this registry is ready at once.
    fn now<T>(mut future: BoxFuture<'_, T>) -> T {
        match future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("not ready at once"),
        }
    }

    #[test]
    fn it_keeps_the_promises_of_a_registry() {
        let registry = InProcessRegistry::new(|| 1_000_000_000);
        now(Box::pin(crate::conformance::registry::all(&registry, 1)));
    }

    #[test]
    fn a_session_without_refresh_is_forgotten() {
        let time = Arc::new(AtomicU64::new(1_000_000_000));
        let clock = Arc::clone(&time);
        let registry = InProcessRegistry::new(move || clock.load(Ordering::Relaxed));
        let (user, session) = (UserId(1), SessionId(2));
        let entry = SessionEntry {
            user,
            session,
            device: crate::ids::DeviceId(3),
            gateway: GatewayId(4),
        };
        now(registry.put_session(entry)).expect("put");
        time.fetch_add(SESSION_TTL - 1, Ordering::Relaxed);
        now(registry.put_session(entry)).expect("refreshed");
        time.fetch_add(SESSION_TTL, Ordering::Relaxed);
        assert_eq!(now(registry.sessions_of(user)).expect("read"), [entry]);
        time.fetch_add(1, Ordering::Relaxed);
        assert_eq!(now(registry.sessions_of(user)).expect("read"), []);
        assert_eq!(
            now(registry.presence(vec![user])).expect("read")[0].state,
            Presence::Offline
        );
    }

    #[test]
    fn those_who_left_long_ago_are_forgotten_first() {
        let mut part = Part::default();
        for user in 0..=GONE_MAX as u64 {
            part.gone.insert(UserId(user), user);
        }
        part.forget_some_gone();
        assert!(part.gone.len() < GONE_MAX && part.gone.len() > GONE_MAX / 2);
        assert!(
            part.gone.contains_key(&UserId(GONE_MAX as u64)) && !part.gone.contains_key(&UserId(0))
        );
    }
}
