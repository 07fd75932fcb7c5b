//! Whose presence this server's gateways want, and what they were told.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::time::{Duration, Instant};

use tidings_core::ids::{GatewayId, UserId};
use tidings_core::ports::registry::{PresenceChanges, UserPresence};

/// Changed users read for one call of `changes`; the others come with the next.
const CHANGES_MAX: usize = 1_000;

/// Users looked at again in one call without a word of a change.
const SWEEP_MAX: f64 = 200.0;

#[derive(Default)]
struct Watched {
    gateways: u32,
    known: Option<UserPresence>,
}

pub(super) struct Watching {
    by_gateway: BTreeMap<GatewayId, HashSet<UserId>>,
    users: BTreeMap<UserId, Watched>,
    changed: HashSet<UserId>,
    swept: Option<UserId>,
    swept_at: Instant,
    max: usize,
}

impl Watching {
    pub fn new(max: usize) -> Watching {
        Watching {
            by_gateway: BTreeMap::new(),
            users: BTreeMap::new(),
            changed: HashSet::new(),
            swept: None,
            swept_at: Instant::now(),
            max,
        }
    }

    /// Users watched.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Replaces what a gateway wants; how many users found no room.
    pub fn watch(&mut self, gateway: GatewayId, users: Vec<UserId>) -> usize {
        let before = self.by_gateway.remove(&gateway).unwrap_or_default();
        let mut now = HashSet::with_capacity(users.len());
        let mut refused = 0;
        for user in users {
            if now.contains(&user) {
                continue;
            }
            if !before.contains(&user) {
                if self.users.len() >= self.max && !self.users.contains_key(&user) {
                    refused += 1;
                    continue;
                }
                self.users.entry(user).or_default().gateways += 1;
            }
            now.insert(user);
        }
        for user in before.difference(&now) {
            if let Some(watched) = self.users.get_mut(user) {
                watched.gateways -= 1;
                if watched.gateways == 0 {
                    self.users.remove(user);
                    self.changed.remove(user);
                }
            }
        }
        if !now.is_empty() {
            self.by_gateway.insert(gateway, now);
        }
        refused
    }

    /// A user may have changed.
    pub fn note(&mut self, user: UserId) {
        if self.users.contains_key(&user) {
            self.changed.insert(user);
        }
    }

    /// Anybody may have changed.
    pub fn note_all(&mut self) {
        self.changed = self.users.keys().copied().collect();
    }

    /// Takes users to read: those that changed, and others in turn, so that each is looked at once in `round`.
    /// Whoever dies with its server says nothing.
    pub fn take(&mut self, round: Duration) -> (HashSet<UserId>, Vec<UserId>) {
        let changed: HashSet<UserId> = self.changed.iter().copied().take(CHANGES_MAX).collect();
        self.changed.retain(|user| !changed.contains(user));
        let due = self.users.len() as f64 * self.swept_at.elapsed().as_secs_f64()
            / round.as_secs_f64().max(0.001);
        let mut others = Vec::new();
        if due >= 1.0 {
            self.swept_at = Instant::now();
            let due = (due.min(SWEEP_MAX) as usize).min(self.users.len());
            let from = self.swept.map_or(Bound::Unbounded, Bound::Excluded);
            let behind = self.users.range((from, Bound::Unbounded));
            let round = behind.chain(self.users.range(..));
            others.extend(round.take(due).map(|(user, _)| *user));
            self.swept = others.last().copied();
            others.retain(|user| !changed.contains(user));
        }
        (changed, others)
    }

    /// Puts back what couldn't be read.
    pub fn put_back(&mut self, users: HashSet<UserId>) {
        for user in users {
            self.note(user);
        }
    }

    /// What to tell each gateway, now that these users were read; `changed` are those of whom a change was heard.
    pub fn tell(&mut self, read: Vec<UserPresence>, changed: &HashSet<UserId>) -> PresenceChanges {
        let mut news = Vec::new();
        for presence in read {
            let Some(watched) = self.users.get_mut(&presence.user) else {
                continue;
            };
            let before = watched.known.replace(presence);
            let is_news = match before {
                Some(before) => before != presence,
                // The gateway has asked itself when it began to watch.
                None => changed.contains(&presence.user),
            };
            if is_news {
                news.push(presence);
            }
        }
        news.sort_unstable_by_key(|presence| presence.user);
        self.by_gateway
            .iter()
            .map(|(gateway, users)| {
                let of_gateway = news.iter().filter(|p| users.contains(&p.user));
                (*gateway, of_gateway.copied().collect::<Vec<_>>())
            })
            .filter(|(_, told)| !told.is_empty())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidings_core::ports::registry::Presence;

    fn online(user: UserId) -> UserPresence {
        UserPresence {
            user,
            state: Presence::Online,
            last_seen: 0,
        }
    }

    #[test]
    fn an_echo_of_what_was_told_tells_nothing() {
        let mut watching = Watching::new(10);
        let (user, gateway) = (UserId(1), GatewayId(2));
        watching.watch(gateway, vec![user]);
        watching.note(user);
        watching.note(UserId(9));
        let (changed, _) = watching.take(Duration::from_secs(90));
        assert_eq!(changed, HashSet::from([user]));
        let told = watching.tell(vec![online(user)], &changed);
        assert_eq!(told, [(gateway, vec![online(user)])]);
        watching.note(user);
        let (changed, _) = watching.take(Duration::from_secs(90));
        assert_eq!(watching.tell(vec![online(user)], &changed), []);
    }

    #[test]
    fn everybody_is_looked_at_in_turn_and_a_change_nobody_spoke_of_is_told() {
        let mut watching = Watching::new(10);
        let gateway = GatewayId(2);
        let users: Vec<UserId> = (1..=5).map(UserId).collect();
        watching.watch(gateway, users.clone());
        let mut seen = Vec::new();
        while seen.len() < 2 * users.len() {
            let (changed, others) = watching.take(Duration::ZERO);
            assert_eq!(
                watching.tell(others.iter().copied().map(online).collect(), &changed),
                []
            );
            seen.extend(others);
        }
        assert_eq!(seen[..10], [users.clone(), users].concat());
        let gone = UserPresence {
            state: Presence::Offline,
            ..online(UserId(3))
        };
        let told = watching.tell(vec![gone], &HashSet::new());
        assert_eq!(told, [(gateway, vec![gone])]);
    }

    #[test]
    fn it_stays_within_its_bound_and_forgets_whom_nobody_watches() {
        let mut watching = Watching::new(3);
        let users = |of: std::ops::Range<u64>| of.map(UserId).collect::<Vec<_>>();
        assert_eq!(watching.watch(GatewayId(1), users(0..3)), 0);
        assert_eq!(watching.watch(GatewayId(2), users(2..6)), 3);
        assert_eq!(watching.watch(GatewayId(1), Vec::new()), 0);
        assert_eq!(watching.len(), 1, "the one that the other gateway watches");
        watching.note_all();
        watching.watch(GatewayId(2), Vec::new());
        assert_eq!((watching.len(), watching.changed.len()), (0, 0));
    }
}
