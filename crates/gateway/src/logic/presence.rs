//! Presence: what users let others see, told to the sessions that asked.

use tidings_core::ids::{SessionId, UserId};
use tidings_core::ports::registry::{Presence, UserPresence};
use tidings_protocol::ErrorCode;
use tidings_protocol::wire::{self, update};

use super::outbound::{Outbound, Slot};
use super::reads::Request;
use super::session::{CLOSING, LAGGING};
use super::{GatewayCore, Refusal};

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
        if !users.is_empty() {
            self.watched_lately.push(id);
        }
        self.ask_presence(out, id, r#ref, users);
    }

    fn ask_presence<O: Outbound>(
        &mut self,
        out: &mut O,
        session: SessionId,
        r#ref: u64,
        users: Vec<UserId>,
    ) {
        let until = self.now + self.settings.answer_within;
        let request = self.request_id();
        let asked = Request::Presence {
            session,
            r#ref,
            until,
        };
        self.requests.insert(request, asked);
        out.presence(request, users);
    }

    pub(super) fn unwatch(&mut self, slot: Slot) {
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
        // What changed between the first answer and the registration was told to nobody.
        for id in std::mem::take(&mut self.watched_lately) {
            let Some(users) = self
                .sessions
                .slot_of(id)
                .and_then(|slot| self.sessions.get_mut(slot))
                .and_then(|session| session.rare.as_ref())
                .map(|rare| rare.watch.clone())
            else {
                continue;
            };
            self.ask_presence(out, id, 0, users);
        }
    }

    /// Presence of users: the answer to a request, or changes of those watched here (`None`).
    pub fn presence_changed<O: Outbound>(
        &mut self,
        out: &mut O,
        request: Option<u64>,
        users: &[UserPresence],
    ) {
        self.now = out.now();
        if let Some(request) = request {
            let Some(Request::Presence { session, r#ref, .. }) = self.requests.remove(&request)
            else {
                return;
            };
            if let Some(slot) = self.sessions.slot_of(session) {
                self.update(out, slot, r#ref, presence_update(users.iter()));
            }
            return;
        }
        let mut by_slot: Vec<(Slot, usize)> = Vec::new();
        for (i, user) in users.iter().enumerate() {
            let slots = self.watchers.get(&user.user).into_iter().flatten();
            by_slot.extend(slots.map(|&slot| (slot, i)));
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
