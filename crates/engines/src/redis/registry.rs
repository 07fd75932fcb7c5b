//! The port itself.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::try_join_all;
use redis::{RedisResult, ScriptInvocation};
use tidings_core::ids::{ConversationId, DeviceId, GatewayId, Micros, Seq, SessionId, UserId};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::registry::{
    Mark, Presence, PresenceChanges, Registry, RegistryError, SessionEntry, UserPresence,
};

use super::connect::Conn;
use super::link::lock;
use super::metrics::{add, set};
use super::{RedisRegistry, Shared};

type Answer<'a, T> = BoxFuture<'a, Result<T, RegistryError>>;

/// Marks that one script call carries: a long script holds up everybody.
const MARKS_PER_CALL: usize = 200;

/// A user as Redis has it.
struct Seen {
    sessions: Vec<(SessionEntry, Presence)>,
    last_seen: Micros,
}

impl Shared {
    /// A call on a user's sessions, with the arguments that all of these have.
    fn on_user<'a>(&self, script: &'a redis::Script, user: UserId) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(self.key("user_session", user))
            .key(self.key("last_seen", user))
            .arg(self.settings.session_ttl().as_micros() as u64)
            .arg(self.settings.last_seen_ms())
            .arg(self.channel_of(user))
            .arg(user.to_string());
        call
    }

    async fn read(&self, mut conn: Conn, user: UserId) -> RedisResult<Seen> {
        let call = self.on_user(&self.scripts.read, user);
        let lines: Vec<String> = call.invoke_async(&mut conn).await?;
        let mut lines = lines.iter();
        let last_seen = lines.next().and_then(|at| at.parse().ok()).unwrap_or(0);
        let sessions = lines.filter_map(|line| parse(user, line)).collect();
        Ok(Seen {
            sessions,
            last_seen,
        })
    }

    async fn presence_of(&self, users: &[UserId]) -> Result<Vec<UserPresence>, RegistryError> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        self.link
            .call(|conn| {
                try_join_all(users.iter().map(move |&user| {
                    let conn = conn.clone();
                    async move { Ok(self.read(conn, user).await?.presence(user)) }
                }))
            })
            .await
    }

    /// A call that changes a user's sessions and answers whether it did. Whether or not an answer
    /// came, what was known of the user may be out of date.
    async fn change(&self, user: UserId, call: ScriptInvocation<'_>) -> Result<(), RegistryError> {
        let answer = self
            .link
            .call(|mut conn| async move { call.invoke_async::<u8>(&mut conn).await })
            .await;
        if answer != Ok(0) {
            self.changed(user);
        }
        answer.map(|_| ())
    }
}

impl Seen {
    fn presence(&self, user: UserId) -> UserPresence {
        let rank = |state: &Presence| state_number(*state);
        let states = self.sessions.iter().map(|(_, state)| *state);
        let state = states.max_by_key(rank).unwrap_or_default();
        UserPresence {
            user,
            state,
            last_seen: if state == Presence::Offline {
                self.last_seen
            } else {
                0
            },
        }
    }
}

fn state_number(state: Presence) -> u8 {
    match state {
        Presence::Offline => 0,
        Presence::Away => 1,
        Presence::Online => 2,
    }
}

/// A line of the script: "session device gateway state".
fn parse(user: UserId, line: &str) -> Option<(SessionEntry, Presence)> {
    let mut parts = line.split(' ');
    let mut hex = || u64::from_str_radix(parts.next()?, 16).ok();
    let (session, device) = (SessionId(hex()?), DeviceId(hex()?));
    let gateway = GatewayId(parts.next()?.parse().ok()?);
    let state = match parts.next()? {
        "0" => Presence::Offline,
        "1" => Presence::Away,
        "2" => Presence::Online,
        _ => return None,
    };
    let entry = SessionEntry {
        user,
        device,
        session,
        gateway,
    };
    Some((entry, state))
}

impl Registry for RedisRegistry {
    fn put_session(&self, entry: SessionEntry) -> Answer<'_, ()> {
        let shared = &self.shared;
        let mut call = shared.on_user(&shared.scripts.put, entry.user);
        call.arg(entry.session.to_string())
            .arg(entry.device.to_string())
            .arg(entry.gateway.0)
            .arg(shared.settings.sessions_per_user_max);
        Box::pin(shared.change(entry.user, call))
    }

    fn remove_session(&self, user: UserId, session: SessionId, at: Micros) -> Answer<'_, ()> {
        let shared = &self.shared;
        let mut call = shared.on_user(&shared.scripts.remove, user);
        call.arg(session.to_string()).arg(at);
        Box::pin(shared.change(user, call))
    }

    fn sessions_of(&self, user: UserId) -> Answer<'_, Vec<SessionEntry>> {
        let shared = &self.shared;
        Box::pin(async move {
            let asked = match shared.sessions.get(user) {
                Ok(sessions) => {
                    add(&shared.metrics.session_cache_hits, 1);
                    return Ok(sessions);
                }
                Err(asked) => asked,
            };
            add(&shared.metrics.session_cache_misses, 1);
            let seen = shared.link.call(|conn| shared.read(conn, user)).await?;
            let sessions: Vec<SessionEntry> = seen.sessions.iter().map(|(e, _)| *e).collect();
            shared.sessions.learn(user, asked, &sessions);
            Ok(sessions)
        })
    }

    fn set_presence(&self, user: UserId, session: SessionId, state: Presence) -> Answer<'_, ()> {
        let shared = &self.shared;
        let mut call = shared.on_user(&shared.scripts.set_state, user);
        call.arg(session.to_string()).arg(state_number(state));
        Box::pin(shared.change(user, call))
    }

    fn presence(&self, users: Vec<UserId>) -> Answer<'_, Vec<UserPresence>> {
        Box::pin(async move { self.shared.presence_of(&users).await })
    }

    fn watch(&self, gateway: GatewayId, users: Vec<UserId>) -> Answer<'_, ()> {
        let mut watching = lock(&self.shared.watching);
        let refused = watching.watch(gateway, users);
        add(&self.shared.metrics.watch_refused, refused as u64);
        set(&self.shared.metrics.watched, watching.len() as u64);
        Box::pin(std::future::ready(Ok(())))
    }

    fn changes(&self) -> Answer<'_, PresenceChanges> {
        let shared = &self.shared;
        Box::pin(async move {
            let (changed, others) = lock(&shared.watching).take(shared.settings.session_ttl());
            // Held until told: a dropped or failed call must not lose a change.
            let mut taken = Taken(shared, changed);
            let users: Vec<UserId> = taken.1.iter().copied().chain(others).collect();
            let read = shared.presence_of(&users).await?;
            let changed = std::mem::take(&mut taken.1);
            let told = lock(&shared.watching).tell(read, &changed);
            let count: usize = told.iter().map(|(_, users)| users.len()).sum();
            add(&shared.metrics.presence_told, count as u64);
            Ok(told)
        })
    }

    fn put_marks(&self, marks: Vec<Mark>) -> Answer<'_, ()> {
        let shared = &self.shared;
        Box::pin(async move {
            let mut by_user: HashMap<UserId, Vec<Mark>> = HashMap::new();
            for mark in marks {
                by_user.entry(mark.user).or_default().push(mark);
            }
            let mut calls = Vec::with_capacity(by_user.len());
            for (user, marks) in &by_user {
                for marks in marks.chunks(MARKS_PER_CALL) {
                    let mut call = shared.scripts.put_marks.prepare_invoke();
                    call.key(shared.key("pending_messages", user))
                        .arg(shared.settings.marks_ms())
                        .arg(shared.settings.marks_per_user_max);
                    for mark in marks {
                        call.arg(mark.conversation.to_string()).arg(mark.seq);
                    }
                    calls.push(call);
                }
            }
            if calls.is_empty() {
                return Ok(());
            }
            let all = shared.link.call(|conn| {
                try_join_all(calls.into_iter().map(move |call| {
                    let mut conn = conn.clone();
                    async move { call.invoke_async::<()>(&mut conn).await }
                }))
            });
            all.await.map(|_| ())
        })
    }

    fn claim(&self, key: u128, life: Duration) -> Answer<'_, bool> {
        let shared = &self.shared;
        Box::pin(async move {
            let mut command = redis::cmd("SET");
            command
                .arg(shared.key("claim", format_args!("{key:032x}")))
                .arg(1)
                .arg("NX")
                .arg("PX")
                .arg((life.as_millis() as u64).max(1));
            let set: Option<String> = shared
                .link
                .call(|mut conn| async move { command.query_async(&mut conn).await })
                .await?;
            Ok(set.is_some())
        })
    }

    fn clear_mark(&self, mark: Mark) -> Answer<'_, ()> {
        let shared = &self.shared;
        Box::pin(async move {
            let mut call = shared.scripts.clear_mark.prepare_invoke();
            call.key(shared.key("pending_messages", mark.user))
                .arg(mark.conversation.to_string())
                .arg(mark.seq);
            shared
                .link
                .call(|mut conn| async move { call.invoke_async::<()>(&mut conn).await })
                .await
        })
    }

    fn marks_of(&self, user: UserId, limit: usize) -> Answer<'_, Vec<Mark>> {
        let shared = &self.shared;
        Box::pin(async move {
            let limit = limit.min(shared.settings.marks_per_user_max);
            if limit == 0 {
                return Ok(Vec::new());
            }
            let mut command = redis::cmd("HRANDFIELD");
            command
                .arg(shared.key("pending_messages", user))
                .arg(limit)
                .arg("WITHVALUES");
            let pairs: Vec<(String, Seq)> = shared
                .link
                .call(|mut conn| async move { command.query_async(&mut conn).await })
                .await?;
            let mark = |(conversation, seq): (String, Seq)| {
                Some(Mark {
                    user,
                    conversation: ConversationId(u64::from_str_radix(&conversation, 16).ok()?),
                    seq,
                })
            };
            Ok(pairs.into_iter().filter_map(mark).collect())
        })
    }
}

/// Changed users on their way; put back unless told.
struct Taken<'a>(&'a Shared, std::collections::HashSet<UserId>);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.1.is_empty() {
            lock(&self.0.watching).put_back(std::mem::take(&mut self.1));
        }
    }
}
