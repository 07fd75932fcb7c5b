//! The registry of a cluster: what Redis didn't take waits in Kafka.

use std::sync::Arc;
use std::time::Duration;

use tidings_core::ids::{ConversationId, GatewayId, Micros, SessionId, UserId};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::directory::{Directory, DirectoryError};
use tidings_core::ports::members::{MemberLists, Members, listed};
use tidings_core::ports::registry::{
    Mark, Presence, PresenceChanges, Registry, RegistryError, SessionEntry, UserPresence,
};
use tidings_engines::kafka::{self, Pending};
use tidings_engines::redis::{MembershipCache, RedisRegistry};

/// Redis, whose marks go to the topic `pending-messages` while it is away.
pub struct SavedMarks {
    /// Redis.
    pub registry: Arc<RedisRegistry>,
    /// The topic.
    pub pending: Pending,
}

type Answer<'a, T> = BoxFuture<'a, Result<T, RegistryError>>;

impl Registry for SavedMarks {
    fn put_session(&self, entry: SessionEntry) -> Answer<'_, ()> {
        self.registry.put_session(entry)
    }

    fn remove_session(&self, user: UserId, session: SessionId, at: Micros) -> Answer<'_, ()> {
        self.registry.remove_session(user, session, at)
    }

    fn sessions_of(&self, user: UserId) -> Answer<'_, Vec<SessionEntry>> {
        self.registry.sessions_of(user)
    }

    fn set_presence(&self, user: UserId, session: SessionId, state: Presence) -> Answer<'_, ()> {
        self.registry.set_presence(user, session, state)
    }

    fn presence(&self, users: Vec<UserId>) -> Answer<'_, Vec<UserPresence>> {
        self.registry.presence(users)
    }

    fn watch(&self, gateway: GatewayId, users: Vec<UserId>) -> Answer<'_, ()> {
        self.registry.watch(gateway, users)
    }

    fn changes(&self) -> Answer<'_, PresenceChanges> {
        self.registry.changes()
    }

    fn put_marks(&self, marks: Vec<Mark>) -> Answer<'_, ()> {
        Box::pin(async move {
            let Err(error) = self.registry.put_marks(marks.clone()).await else {
                return Ok(());
            };
            let waiting: Vec<kafka::Mark> = marks
                .iter()
                .map(|mark| kafka::Mark {
                    recipient: mark.user,
                    conversation: mark.conversation,
                    seq: mark.seq,
                })
                .collect();
            let (report, queued) = tokio::sync::oneshot::channel();
            self.pending
                .put(&waiting, Box::new(move |result| _ = report.send(result)));
            match queued.await {
                Ok(Ok(())) => Ok(()),
                _ => Err(error),
            }
        })
    }

    fn claim(&self, key: u128, life: Duration) -> Answer<'_, bool> {
        self.registry.claim(key, life)
    }

    fn clear_mark(&self, mark: Mark) -> Answer<'_, ()> {
        self.registry.clear_mark(mark)
    }

    fn marks_of(&self, user: UserId, limit: usize) -> Answer<'_, Vec<Mark>> {
        self.registry.marks_of(user, limit)
    }
}

/// Lists of members in the server and in Redis, behind them the directory.
pub struct CachedMembers {
    /// The lists.
    pub cache: MembershipCache,
    /// Who knows.
    pub directory: Arc<dyn Directory>,
}

impl MemberLists for CachedMembers {
    fn members(
        &self,
        conversation: ConversationId,
        at_least: u64,
    ) -> BoxFuture<'_, Result<Arc<Members>, DirectoryError>> {
        Box::pin(async move {
            let load = listed(&*self.directory, conversation);
            let members = self.cache.get(conversation, at_least, load).await;
            members.map_err(|error| (*error).clone())
        })
    }

    fn changed(&self, conversation: ConversationId, version: u64) -> BoxFuture<'_, ()> {
        Box::pin(self.cache.changed(conversation, version))
    }
}

/// Gives what waits in the topic to Redis, for as long as the process lives. Who has come by then needs
/// no mark.
pub async fn work_off(pending: Pending, registry: Arc<RedisRegistry>) {
    let work = |marks: Vec<kafka::Mark>| {
        let registry = registry.clone();
        async move {
            let mut waiting = Vec::with_capacity(marks.len());
            for mark in marks {
                let sessions = registry.sessions_of(mark.recipient).await;
                if sessions.map_err(|error| error.to_string())?.is_empty() {
                    waiting.push(Mark {
                        user: mark.recipient,
                        conversation: mark.conversation,
                        seq: mark.seq,
                    });
                }
            }
            let put = registry.put_marks(waiting).await;
            put.map_err(|error| error.to_string())
        }
    };
    if let Err(error) = pending.run(work).await {
        tracing::error!(%error, "pending messages are not worked off");
    }
}
