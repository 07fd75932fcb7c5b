//! Who is in a conversation: in the server, behind it in Redis, behind that in the directory.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use tidings_core::ids::{ConversationId, UserId};
use tidings_core::ports::members::Members;

use super::Shared;
use super::metrics::add;
use super::settings::Settings;

/// The local part: bounded by the members in it.
pub(super) fn cache(settings: &Settings) -> Cache<ConversationId, Arc<Members>> {
    Cache::builder()
        .max_capacity(settings.members_cache_max)
        .weigher(|_, members: &Arc<Members>| {
            u32::try_from(members.users.len())
                .unwrap_or(u32::MAX)
                .max(1)
        })
        .time_to_live(Duration::from_secs(settings.members_cache_ttl_s))
        .build()
}

impl Shared {
    /// A conversation's members have changed: earlier lists are out of date.
    pub(super) async fn members_changed(&self, conversation: ConversationId, version: u64) {
        let known = self.members.get(&conversation).await;
        if known.is_none_or(|members| members.version < version) {
            self.members.invalidate(&conversation).await;
        }
    }
}

/// Lists of members by conversation and version. A list may be older than the directory by what
/// [`Settings::members_cache_ttl_s`] says, so whoever needs a version names it.
#[derive(Clone)]
pub struct MembershipCache {
    shared: Arc<Shared>,
}

impl MembershipCache {
    pub(super) fn new(shared: Arc<Shared>) -> MembershipCache {
        MembershipCache { shared }
    }

    /// The members as of version `at_least` or later; `load` reads them from the directory and is asked only
    /// where nobody has them, once however many ask at the same time. What it gives is the answer even if
    /// older.
    pub async fn get<E, F>(
        &self,
        conversation: ConversationId,
        at_least: u64,
        load: F,
    ) -> Result<Arc<Members>, Arc<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<Members, E>>,
    {
        let shared = &self.shared;
        if let Some(members) = shared.members.get(&conversation).await {
            if members.version >= at_least {
                add(&shared.metrics.members_hits, 1);
                return Ok(members);
            }
            shared.members.invalidate(&conversation).await;
        }
        let fill = async {
            if let Some(members) = self.read_shared(conversation, at_least).await {
                add(&shared.metrics.members_redis_hits, 1);
                return Ok(Arc::new(members));
            }
            add(&shared.metrics.members_misses, 1);
            let members = load.await?;
            self.put_shared(conversation, &members).await;
            Ok(Arc::new(members))
        };
        shared.members.try_get_with(conversation, fill).await
    }

    /// Says that the members have changed with this version, here and to all servers. Nothing is promised
    /// when Redis is away: lists then run out by their time to live.
    pub async fn changed(&self, conversation: ConversationId, version: u64) {
        let shared = &self.shared;
        shared.members_changed(conversation, version).await;
        let mut call = shared.scripts.put_members.prepare_invoke();
        call.key(shared.key("members", conversation))
            .arg(version)
            .arg("")
            .arg(shared.settings.members_ttl_s * 1_000);
        let mut publish = redis::cmd("PUBLISH");
        publish
            .arg(shared.members_channel())
            .arg(format!("{conversation} {version}"));
        let told = shared
            .link
            .call(|mut conn| async move {
                call.invoke_async::<()>(&mut conn).await?;
                publish.query_async::<()>(&mut conn).await
            })
            .await;
        if let Err(error) = told {
            tracing::debug!(%error, "redis: a change of members wasn't told");
        }
    }

    /// A list from Redis; an error is a miss.
    async fn read_shared(&self, conversation: ConversationId, at_least: u64) -> Option<Members> {
        let mut command = redis::cmd("HMGET");
        command
            .arg(self.shared.key("members", conversation))
            .arg("version")
            .arg("users");
        let (version, users): (Option<u64>, Option<Vec<u8>>) = self
            .shared
            .link
            .call(|mut conn| async move { command.query_async(&mut conn).await })
            .await
            .ok()?;
        let (version, users) = (version?, users?);
        let (ids, rest) = users.as_chunks::<8>();
        (version >= at_least && rest.is_empty()).then(|| Members {
            version,
            users: ids
                .iter()
                .map(|id| UserId(u64::from_be_bytes(*id)))
                .collect(),
        })
    }

    async fn put_shared(&self, conversation: ConversationId, members: &Members) {
        // An empty list can't be told from none there, and costs nothing to read.
        if members.users.is_empty() {
            return;
        }
        let users: Vec<u8> = members
            .users
            .iter()
            .flat_map(|u| u.0.to_be_bytes())
            .collect();
        let mut call = self.shared.scripts.put_members.prepare_invoke();
        call.key(self.shared.key("members", conversation))
            .arg(members.version)
            .arg(users)
            .arg(self.shared.settings.members_ttl_s * 1_000);
        let put = self
            .shared
            .link
            .call(|mut conn| async move { call.invoke_async::<()>(&mut conn).await })
            .await;
        if let Err(error) = put {
            tracing::debug!(%error, "redis: a list of members wasn't kept");
        }
    }
}
