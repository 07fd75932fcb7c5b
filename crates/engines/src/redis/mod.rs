//! The registry on Redis, with Sentinel or as a Redis Cluster.
//!
//! Nothing in it is the only copy: sessions come back by the gateways' refresh, marks are a hint
//! beside the cursors, recent events and members are caches. So Redis may lose all it has, be
//! away, or answer from an older state after a failover, and nobody is told anything wrong for
//! longer than a session's time to live.
//!
//! - One shared connection; calls are written together as they come and answered in one stream.
//! - Each call ends within `timeout_ms`. When Redis doesn't answer, calls fail at once until it does.
//! - Keys of one user share a slot, and so do those of one conversation.

mod cache;
mod connect;
mod link;
mod members;
mod metrics;
mod recent;
mod registry;
mod scripts;
mod settings;
mod subscriber;
mod watching;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidings_core::ids::{ConversationId, UserId};
use tidings_core::ports::members::Members;
use tokio::task::AbortHandle;

use crate::StartError;
use crate::breaker::BreakerMetrics;
use cache::{SessionCache, spread};
use link::{Link, lock};
use scripts::Scripts;
use watching::Watching;

pub use members::MembershipCache;
pub use metrics::Metrics;
pub use recent::RecentCache;
pub use settings::{Mode, Settings};

/// Channels that changes of sessions and presence are spread over.
const CHANNELS: usize = 16;

/// The longest [`RedisRegistry::check`] takes.
const CHECK_DEADLINE: Duration = Duration::from_secs(1);

/// What the registry, its caches and its tasks share.
struct Shared {
    settings: Settings,
    metrics: Arc<Metrics>,
    link: Link,
    scripts: Scripts,
    sessions: SessionCache,
    members: moka::future::Cache<ConversationId, Arc<Members>>,
    watching: Mutex<Watching>,
}

impl Shared {
    fn key(&self, kind: &str, id: impl std::fmt::Display) -> String {
        format!("{}{kind}:{{{id}}}", self.settings.key_prefix)
    }

    fn channel_of(&self, user: UserId) -> String {
        self.channel(spread(user) % CHANNELS)
    }

    fn channel(&self, n: usize) -> String {
        format!("{}presence:{n}", self.settings.key_prefix)
    }

    fn members_channel(&self) -> String {
        format!("{}members", self.settings.key_prefix)
    }

    fn channels(&self) -> Vec<String> {
        let of_users = (0..CHANNELS).map(|n| self.channel(n));
        of_users.chain([self.members_channel()]).collect()
    }

    /// A user's sessions or presence have changed.
    fn changed(&self, user: UserId) {
        self.sessions.forget(user);
        lock(&self.watching).note(user);
    }
}

/// The registry of many servers. Dropped, it ends its background work.
pub struct RedisRegistry {
    shared: Arc<Shared>,
    tasks: Vec<AbortHandle>,
}

impl Drop for RedisRegistry {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl RedisRegistry {
    /// Connects, and keeps the connection up in the background of the present runtime.
    ///
    /// With `required = false` it also succeeds while Redis is away, for a server that serves
    /// without: every call then fails at once until Redis is there. What waiting doesn't cure (wrong password,
    /// unknown service, wrong mode) is an error in any case.
    pub async fn open(settings: Settings) -> Result<RedisRegistry, StartError> {
        let metrics = Arc::new(Metrics::default());
        let shared = Arc::new(Shared {
            link: Link::new(&settings, Arc::clone(&metrics))?,
            scripts: Scripts::new(),
            sessions: SessionCache::new(
                settings.session_cache_max,
                Duration::from_millis(settings.session_cache_ms),
            ),
            members: members::cache(&settings),
            watching: Mutex::new(Watching::new(settings.watched_max)),
            metrics,
            settings,
        });
        let address = match shared.link.connect().await {
            Ok(address) => address,
            Err(error) if error.may_pass && !shared.settings.required => {
                tracing::warn!(%error, "redis: starting without");
                None
            }
            Err(error) => return Err(error),
        };
        let keeper = Arc::clone(&shared);
        let tasks = vec![
            tokio::spawn(async move { keeper.link.keep(address).await }).abort_handle(),
            tokio::spawn(subscriber::run(Arc::clone(&shared))).abort_handle(),
        ];
        Ok(RedisRegistry { shared, tasks })
    }

    /// Whether Redis answers now; at most a second.
    pub async fn check(&self) -> Result<(), String> {
        let ping = self
            .shared
            .link
            .call(|mut conn| async move { redis::cmd("PING").query_async::<()>(&mut conn).await });
        match tokio::time::timeout(CHECK_DEADLINE, ping).await {
            Ok(answer) => answer.map_err(|error| error.0),
            Err(_) => Err("no answer in a second".to_owned()),
        }
    }

    /// The breaker's figures.
    pub fn breaker(&self) -> Arc<BreakerMetrics> {
        Arc::clone(self.shared.link.breaker.metrics())
    }

    /// The counters.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.shared.metrics)
    }

    /// Events of late, for when the store is slow.
    pub fn recent(&self) -> RecentCache {
        RecentCache::new(Arc::clone(&self.shared))
    }

    /// Who is in a conversation, near at hand.
    pub fn membership(&self) -> MembershipCache {
        MembershipCache::new(Arc::clone(&self.shared))
    }
}
