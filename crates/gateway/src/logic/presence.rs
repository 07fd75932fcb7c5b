//! Presence: what users let others see, told to the sessions that asked.

use tidings_core::ids::{SessionId, UserId};
use tidings_core::ports::registry::{Presence, UserPresence};
use tidings_protocol::ErrorCode;
use tidings_protocol::wire::{self, Feature, update};

use super::outbound::{Outbound, Slot};
use super::reads::Request;
use super::session::{CLOSING, LAGGING};
use super::{GatewayCore, Refusal};

/// Requests for watched users that are repeated in one tick.
const REPEATS_PER_TICK: usize = 1_000;

/// Watched users whom a session doesn't get to see, as they have blocked its user.
#[derive(Default)]
pub(super) struct Unseen {
    /// The request whose answer says who they are: until it comes, nobody is seen; 0: it has come.
    asked: u64,
    users: Vec<UserId>,
}

impl GatewayCore {
    /// `presence`: what others see of this session.
    pub(super) fn set_presence<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        presence: &wire::SetPresence,
    ) {
        let state = match wire::Presence::try_from(presence.state) {
            Ok(wire::Presence::Offline) => Presence::Offline,
            Ok(wire::Presence::Online) => Presence::Online,
            Ok(wire::Presence::Away) => Presence::Away,
            Err(_) => {
                let refusal = Refusal::new(
                    ErrorCode::BadRequest,
                    "`state` of `presence` is not one known.",
                    r#ref,
                );
                return self.refuse(out, slot, refusal);
            }
        };
        if self.admit_ask(out, slot, r#ref)
            && let Some(session) = self.sessions.get(slot)
        {
            out.set_presence(session.user, session.id, state);
        }
    }

    /// `watch`: the users this session wants to hear of, in place of those before.
    pub(super) fn watch<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        watch: &wire::Watch,
    ) {
        if !self.admit_ask(out, slot, r#ref) {
            return;
        }
        if watch.users.len() > self.settings.watch_max {
            return self.refuse(
                out,
                slot,
                Refusal::new(
                    ErrorCode::TooLong,
                    "More users than a session may watch.",
                    r#ref,
                ),
            );
        }
        let mut users: Vec<UserId> = watch.users.iter().copied().map(UserId).collect();
        users.sort_unstable();
        users.dedup();
        self.unwatch(slot);
        for &user in &users {
            self.watchers.entry(user).or_default().push(slot);
        }
        self.watch_changed = true;
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let id = session.id;
        session.rare().watch = users.clone();
        session.rare().watch.shrink_to_fit();
        let is_watching = !users.is_empty();
        if let Some(asked) = self.ask_presence(out, id, r#ref, users)
            && is_watching
        {
            self.watched_lately.push(id);
            let users = Vec::new();
            self.unseen.insert(slot, Unseen { asked, users });
        }
    }

    fn ask_presence<O: Outbound>(
        &mut self,
        out: &mut O,
        session: SessionId,
        r#ref: u64,
        users: Vec<UserId>,
    ) -> Option<u64> {
        let slot = self.sessions.slot_of(session)?;
        let watcher = self.sessions.get(slot)?.user;
        let until = self.now + self.settings.answer_within;
        let request = self.request_id();
        let asked = Request::Presence {
            session,
            r#ref,
            until,
        };
        self.requests.insert(request, asked);
        out.presence(request, watcher, users);
        Some(request)
    }

    pub(super) fn unwatch(&mut self, slot: Slot) {
        self.unseen.remove(&slot);
        let Some(rare) = self.sessions.get_mut(slot).and_then(|s| s.rare.as_mut()) else {
            return;
        };
        for user in std::mem::take(&mut rare.watch) {
            self.watch_changed = true;
            if let Some(slots) = self.watchers.get_mut(&user) {
                slots.retain(|&s| s != slot);
                if slots.is_empty() {
                    self.watchers.remove(&user);
                }
            }
        }
    }

    pub(super) fn tick_watch<O: Outbound>(&mut self, out: &mut O) {
        if std::mem::take(&mut self.watch_changed) {
            let mut users: Vec<UserId> = self.watchers.keys().copied().collect();
            users.sort_unstable();
            out.watch(users);
        }
        // What changed between the first answer and the registration was told to nobody, and an
        // answer that didn't come is asked for again.
        let mut lately = std::mem::take(&mut self.watched_lately);
        lately.sort_unstable();
        lately.dedup();
        if lately.len() > REPEATS_PER_TICK {
            self.watched_lately = lately.split_off(REPEATS_PER_TICK);
        }
        for id in lately {
            if let Some(slot) = self.sessions.slot_of(id) {
                self.ask_presence_again(out, slot);
            }
        }
    }

    fn ask_presence_again<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        let Some(session) = self.sessions.get(slot) else {
            return;
        };
        let Some(users) = session.rare.as_ref().map(|rare| rare.watch.clone()) else {
            return;
        };
        let id = session.id;
        if !users.is_empty()
            && let Some(request) = self.ask_presence(out, id, 0, users)
            && let Some(unseen) = self.unseen.get_mut(&slot)
            && unseen.asked != 0
            && !self.requests.contains_key(&unseen.asked)
        {
            unseen.asked = request;
        }
    }

    /// The answer to [`Outbound::presence`]: presence of the users, and who of them has blocked the
    /// watcher (`None`: it isn't known).
    pub fn presence_answered<O: Outbound>(
        &mut self,
        out: &mut O,
        request: u64,
        users: &[UserPresence],
        blockers: Option<&[UserId]>,
    ) {
        self.now = out.now();
        let Some(Request::Presence { session, r#ref, .. }) = self.requests.remove(&request) else {
            return;
        };
        let Some(slot) = self.sessions.slot_of(session) else {
            return;
        };
        let Some(blockers) = blockers else {
            self.presence_unknown(slot, session);
            if r#ref != 0 {
                self.update(out, slot, r#ref, presence_update(std::iter::empty()));
            }
            return;
        };
        let mut hidden = blockers.to_vec();
        if let Some(unseen) = self.unseen.get_mut(&slot) {
            hidden.extend(
                unseen
                    .users
                    .iter()
                    .copied()
                    .filter(|u| !blockers.contains(u)),
            );
            if unseen.asked == request {
                unseen.asked = 0;
                unseen.users.clone_from(&hidden);
            }
            if unseen.asked == 0 && unseen.users.is_empty() {
                self.unseen.remove(&slot);
            }
        }
        let shown: Vec<UserPresence> = users
            .iter()
            .filter(|user| !hidden.contains(&user.user))
            .copied()
            .chain(hidden.iter().map(|&user| offline(user)))
            .collect();
        self.update(out, slot, r#ref, presence_update(shown.iter()));
    }

    /// A request for presence got no answer.
    pub(super) fn presence_lost(&mut self, request: u64) {
        if let Some(Request::Presence { session, .. }) = self.requests.remove(&request)
            && let Some(slot) = self.sessions.slot_of(session)
        {
            self.presence_unknown(slot, session);
        }
    }

    /// Nobody is seen before it is known who may be: asked again with the next tick.
    fn presence_unknown(&mut self, slot: Slot, session: SessionId) {
        if self.unseen.get(&slot).is_some_and(|u| u.asked != 0) {
            self.watched_lately.push(session);
        }
    }

    /// Asks for everybody who is watched, with the next ticks.
    pub(super) fn watch_anew(&mut self) {
        let watching = self.sessions.iter().filter(|(_, session)| {
            let rare = session.rare.as_ref();
            rare.is_some_and(|rare| !rare.watch.is_empty())
        });
        self.watched_lately.extend(watching.map(|(_, s)| s.id));
    }

    /// A user has blocked `watcher`, or no longer does: told to the watcher's sessions that asked.
    pub(super) fn show_presence<O: Outbound>(
        &mut self,
        out: &mut O,
        watcher: UserId,
        user: UserId,
        is_shown: bool,
    ) {
        let watches = |slot: &Slot| {
            let rare = self.sessions.get(*slot).and_then(|s| s.rare.as_ref());
            rare.is_some_and(|rare| rare.watch.binary_search(&user).is_ok())
        };
        let slots: Vec<Slot> = self.sessions.of_user(watcher).filter(watches).collect();
        for slot in slots {
            let unseen = self.unseen.entry(slot).or_default();
            unseen.users.retain(|u| *u != user);
            if is_shown {
                // An answer under way may be older than this: the next one decides.
                unseen.asked = u64::MAX;
                self.ask_presence_again(out, slot);
            } else {
                unseen.users.push(user);
                self.update(out, slot, 0, presence_update([offline(user)].iter()));
            }
        }
    }

    /// Presence of users watched here has changed.
    pub fn presence_changed<O: Outbound>(&mut self, out: &mut O, users: &[UserPresence]) {
        self.now = out.now();
        if !self.is_normal(Feature::Presence) {
            return;
        }
        let mut by_slot: Vec<(Slot, usize)> = Vec::new();
        for (i, user) in users.iter().enumerate() {
            let slots = self.watchers.get(&user.user).into_iter().flatten();
            by_slot.extend(slots.map(|&slot| (slot, i)));
        }
        if !self.unseen.is_empty() {
            by_slot.retain(|(slot, i)| {
                self.unseen.get(slot).is_none_or(|unseen| {
                    unseen.asked == 0 && !unseen.users.contains(&users[*i].user)
                })
            });
        }
        by_slot.sort_unstable();
        for changes in by_slot.chunk_by(|a, b| a.0 == b.0) {
            let slot = changes[0].0;
            if self
                .sessions
                .get(slot)
                .is_some_and(|s| !s.is(LAGGING) && !s.is(CLOSING))
            {
                self.update(
                    out,
                    slot,
                    0,
                    presence_update(changes.iter().map(|&(_, i)| &users[i])),
                );
            }
        }
    }
}

/// How whoever is blocked sees the blocker.
fn offline(user: UserId) -> UserPresence {
    UserPresence {
        user,
        state: Presence::Offline,
        last_seen: 0,
    }
}

fn presence_update<'a>(users: impl Iterator<Item = &'a UserPresence>) -> update::Update {
    let users = users.map(|user| wire::UserPresence {
        user: user.user.0,
        state: match user.state {
            Presence::Offline => wire::Presence::Offline,
            Presence::Online => wire::Presence::Online,
            Presence::Away => wire::Presence::Away,
        }
        .into(),
        last_seen: user.last_seen,
    });
    update::Update::Presence(wire::PresenceUpdate {
        users: users.collect(),
    })
}
