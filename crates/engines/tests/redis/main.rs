//! The registry on Redis keeps its port's promises, on whichever of the stack's two Redis runs.

mod faults;
mod lost;
mod promises;
#[path = "../stack/mod.rs"]
mod stack;
#[path = "../stack/way.rs"]
mod way;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Client;
use tidings_core::conformance;
use tidings_core::ids::{ConversationId, DeviceId, GatewayId, SessionId, UserId};
use tidings_core::ports::members::Members;
use tidings_core::ports::registry::{Mark, Presence, Registry, RegistryError, SessionEntry};
use tidings_engines::redis::{Mode, RedisRegistry, Settings};
use tidings_engines::{Secret, StartError};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{RwLock, RwLockReadGuard, watch};

/// A failover disturbs everybody else.
static QUIET: RwLock<()> = RwLock::const_new(());

const SENTINEL: &str = "127.0.0.1:26379";
const CLUSTER: &str = "127.0.0.1:7379";

/// Settings for the Redis that runs, under a prefix of their own; what was written there goes at the end.
struct Redis {
    settings: Settings,
    _quiet: RwLockReadGuard<'static, ()>,
}

fn on_each(port: u16) -> Vec<String> {
    (1..=3).map(|n| format!("127.0.0.{n}:{port}")).collect()
}

async fn redis() -> Option<Redis> {
    let quiet = QUIET.read().await;
    let (mode, port) = if std::net::TcpStream::connect(CLUSTER).is_ok() {
        (Mode::Cluster, 7379)
    } else if stack::runs("Redis", SENTINEL) {
        (Mode::Sentinel, 26379)
    } else {
        return None;
    };
    let run = getrandom::u64().expect("random");
    let settings = Settings {
        mode,
        nodes: on_each(port),
        key_prefix: format!("t{run:016x}:"),
        // These tests are about what is right; a busy machine may take its time. One test is about time.
        timeout_ms: 3_000,
        session_cache_ms: 0,
        ..Settings::default()
    };
    Some(Redis {
        settings,
        _quiet: quiet,
    })
}

impl Redis {
    async fn open(&self) -> RedisRegistry {
        self.open_with(|_| {}).await
    }

    async fn open_with(&self, change: impl FnOnce(&mut Settings)) -> RedisRegistry {
        let mut settings = self.settings.clone();
        change(&mut settings);
        RedisRegistry::open(settings).await.expect("opens")
    }

    fn is_cluster(&self) -> bool {
        self.settings.mode == Mode::Cluster
    }

    /// Removes everything of this test, on every primary.
    async fn clean(&self) {
        let nodes = if self.is_cluster() {
            [on_each(7379), on_each(7380)].concat()
        } else {
            on_each(6379)
        };
        for node in nodes {
            let client = Client::open(format!("redis://{node}/")).expect("an address");
            let Ok(mut conn) = client.get_multiplexed_async_connection().await else {
                continue;
            };
            let mut cursor = 0_u64;
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor)
                    .arg("MATCH")
                    .arg(format!("{}*", self.settings.key_prefix))
                    .arg("COUNT")
                    .arg(1_000);
                let (next, keys): (u64, Vec<String>) =
                    scan.query_async(&mut conn).await.expect("scan");
                for key in keys {
                    // Replicas refuse, and lose it when their primary does.
                    let _ = redis::cmd("DEL")
                        .arg(key)
                        .query_async::<()>(&mut conn)
                        .await;
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
    }
}

async fn primary() -> String {
    let client = Client::open(format!("redis://{SENTINEL}/")).expect("an address");
    let mut conn = client
        .get_multiplexed_async_connection()
        .await
        .expect("a Sentinel");
    let (host, port): (String, String) = redis::cmd("SENTINEL")
        .arg("GET-MASTER-ADDR-BY-NAME")
        .arg("tidings")
        .query_async(&mut conn)
        .await
        .expect("the primary");
    format!("{host}:{port}")
}

/// Asks until it is so, for at most this long.
async fn until<F: Future<Output = bool>>(what: &str, seconds: u64, mut so: impl FnMut() -> F) {
    let begun = Instant::now();
    while !so().await {
        assert!(
            begun.elapsed() < Duration::from_secs(seconds),
            "{what}: not in {seconds} s"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn entry(user: UserId, device: u64, session: u64) -> SessionEntry {
    SessionEntry {
        user,
        device: DeviceId(device),
        session: SessionId(user.0.wrapping_add(session)),
        gateway: GatewayId(3),
    }
}

fn a_user() -> UserId {
    UserId(getrandom::u64().expect("random"))
}

async fn told(registry: &RedisRegistry, gateway: GatewayId, user: UserId) -> Option<Presence> {
    let changes = registry.changes().await.expect("changes");
    let of_gateway = changes.into_iter().filter(|(of, _)| *of == gateway);
    of_gateway
        .flat_map(|(_, users)| users)
        .find(|presence| presence.user == user)
        .map(|presence| presence.state)
}

/// Figures, not a judgement: `cargo test -p tidings-engines --test redis -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "measures for half a minute"]
async fn latencies_at_500_calls_a_second() {
    let Some(redis) = redis().await else { return };
    let registry = Arc::new(redis.open().await);
    let first = a_user().0;
    type Call = fn(Arc<RedisRegistry>, UserId) -> tidings_core::ports::BoxFuture<'static, bool>;
    let kinds: [(&str, Call); 4] = [
        ("put_session", |r, u| {
            Box::pin(async move { r.put_session(entry(u, 1, 1)).await.is_ok() })
        }),
        ("sessions_of", |r, u| {
            Box::pin(async move { r.sessions_of(u).await.is_ok() })
        }),
        ("put_marks", |r, user| {
            let mark = Mark {
                user,
                conversation: ConversationId(1),
                seq: 1,
            };
            Box::pin(async move { r.put_marks(vec![mark]).await.is_ok() })
        }),
        ("marks_of", |r, u| {
            Box::pin(async move { r.marks_of(u, 100).await.is_ok() })
        }),
    ];
    for (name, call) in kinds {
        let mut tick = tokio::time::interval(Duration::from_millis(2));
        let mut calls = Vec::new();
        for n in 0..3_000_u64 {
            tick.tick().await;
            let (registry, user) = (Arc::clone(&registry), UserId(first.wrapping_add(n % 1_000)));
            calls.push(tokio::spawn(async move {
                let begun = Instant::now();
                assert!(call(registry, user).await);
                begun.elapsed()
            }));
        }
        let mut times = Vec::new();
        for call in calls {
            times.push(call.await.expect("answered"));
        }
        times.sort_unstable();
        let at = |part: f64| times[(times.len() as f64 * part) as usize];
        println!(
            "{name}: p50 {:?}, p99 {:?}, most {:?}",
            at(0.5),
            at(0.99),
            times[times.len() - 1]
        );
    }
    redis.clean().await;
}
