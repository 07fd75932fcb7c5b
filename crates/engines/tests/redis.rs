//! The registry on Redis keeps its port's promises, on whichever of the stack's two Redis runs.

mod stack;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Client;
use tidings_core::conformance;
use tidings_core::ids::{ConversationId, DeviceId, GatewayId, SessionId, UserId};
use tidings_core::ports::registry::{Mark, Presence, Registry, RegistryError, SessionEntry};
use tidings_engines::redis::{Members, Mode, RedisRegistry, Settings};
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

#[tokio::test]
async fn it_keeps_the_promises_of_a_registry() {
    let Some(redis) = redis().await else { return };
    for session_cache_ms in [0, 1_000] {
        let registry = redis
            .open_with(|s| s.session_cache_ms = session_cache_ms)
            .await;
        conformance::registry::all(&registry, getrandom::u64().expect("random")).await;
        registry.check().await.expect("healthy");
    }
    redis.clean().await;
}

#[tokio::test]
async fn sessions_of_a_dead_server_run_out_and_watchers_are_told() {
    let Some(redis) = redis().await else { return };
    let short = |s: &mut Settings| s.session_ttl_s = 1;
    let (dying, living) = (redis.open_with(short).await, redis.open_with(short).await);
    let (user, gateway) = (a_user(), GatewayId(9));
    let (dead, alive) = (entry(user, 1, 1), entry(user, 2, 2));
    living.watch(gateway, vec![user]).await.expect("watch");
    dying.put_session(dead).await.expect("put");
    living.put_session(alive).await.expect("put");
    assert_eq!(living.sessions_of(user).await, Ok(vec![dead, alive]));
    until("the change is told", 5, || async {
        told(&living, gateway, user).await == Some(Presence::Online)
    })
    .await;
    drop(dying);
    until("the dead one's runs out", 5, || async {
        living.put_session(alive).await.expect("refreshed");
        living.sessions_of(user).await.expect("read") == [alive]
    })
    .await;
    until("nobody refreshes, and the watcher is told", 5, || async {
        told(&living, gateway, user).await == Some(Presence::Offline)
    })
    .await;
    let seen = living.presence(vec![user]).await.expect("read")[0].last_seen;
    assert!(
        seen > 1_700_000_000_000_000,
        "the last refresh is its last-seen: {seen}"
    );
    redis.clean().await;
}

#[tokio::test]
async fn what_one_server_does_the_other_sees() {
    let Some(redis) = redis().await else { return };
    let (here, there) = (
        redis.open().await,
        redis.open_with(|s| s.session_cache_ms = 60_000).await,
    );
    let (user, gateway) = (a_user(), GatewayId(9));
    let (old, new) = (entry(user, 1, 1), entry(user, 1, 2));
    until("both hear each other", 5, || async {
        use std::sync::atomic::Ordering::Relaxed;
        here.metrics().subscribed.load(Relaxed) == 1
            && there.metrics().subscribed.load(Relaxed) == 1
    })
    .await;
    there.watch(gateway, vec![user]).await.expect("watch");
    assert_eq!(
        there.sessions_of(user).await,
        Ok(Vec::new()),
        "now it is in the cache"
    );
    here.put_session(old).await.expect("put");
    until("the cache is told", 5, || async {
        there.sessions_of(user).await == Ok(vec![old])
    })
    .await;
    until("the watcher is told", 5, || async {
        told(&there, gateway, user).await == Some(Presence::Online)
    })
    .await;
    there.put_session(new).await.expect("put");
    assert_eq!(
        there.sessions_of(user).await,
        Ok(vec![old, new]),
        "its own change at once"
    );
    for at in [5, 6] {
        here.remove_session(user, old.session, at)
            .await
            .expect("removed");
    }
    until("only the old one is gone", 5, || async {
        there.sessions_of(user).await == Ok(vec![new])
    })
    .await;
    here.set_presence(user, new.session, Presence::Away)
        .await
        .expect("set");
    until("a change of state is told", 5, || async {
        told(&there, gateway, user).await == Some(Presence::Away)
    })
    .await;
    redis.clean().await;
}

#[tokio::test]
async fn what_is_lost_comes_back_by_a_refresh() {
    let Some(redis) = redis().await else { return };
    let registry = redis.open().await;
    let user = a_user();
    registry.put_session(entry(user, 1, 1)).await.expect("put");
    redis.clean().await;
    assert_eq!(registry.sessions_of(user).await, Ok(Vec::new()));
    registry
        .put_session(entry(user, 1, 1))
        .await
        .expect("refreshed");
    assert_eq!(
        registry.sessions_of(user).await,
        Ok(vec![entry(user, 1, 1)])
    );
    redis.clean().await;
}

#[tokio::test]
async fn sessions_and_marks_of_a_user_are_bounded() {
    let Some(redis) = redis().await else { return };
    let registry = redis
        .open_with(|s| (s.sessions_per_user_max, s.marks_per_user_max) = (2, 3))
        .await;
    let user = a_user();
    for n in 1..=4 {
        registry.put_session(entry(user, n, n)).await.expect("put");
    }
    let newest = vec![entry(user, 3, 3), entry(user, 4, 4)];
    assert_eq!(registry.sessions_of(user).await, Ok(newest));
    let marks = |seq| {
        (1..=5).map(move |n| Mark {
            user,
            conversation: ConversationId(n),
            seq,
        })
    };
    registry.put_marks(marks(1).collect()).await.expect("put");
    registry.put_marks(marks(2).collect()).await.expect("put");
    let kept = registry.marks_of(user, 100).await.expect("read");
    assert!(
        kept.len() == 3 && kept.iter().all(|mark| mark.seq == 2),
        "{kept:?}"
    );
    redis.clean().await;
}

#[tokio::test]
async fn recent_events_are_few_in_order_and_replaced() {
    let Some(redis) = redis().await else { return };
    let recent = redis.open_with(|s| s.recent_events_max = 3).await.recent();
    let conversation = ConversationId(a_user().0);
    for seq in [1, 2, 4, 3, 5] {
        recent
            .put_recent(conversation, seq, b"same")
            .await
            .expect("put");
    }
    recent
        .put_recent(conversation, 4, b"")
        .await
        .expect("redacted");
    let kept = recent.recent(conversation, 0).await.expect("read");
    let kept: Vec<(u64, &[u8])> = kept.iter().map(|(seq, bytes)| (*seq, &bytes[..])).collect();
    assert_eq!(kept, [(3, &b"same"[..]), (4, b""), (5, b"same")]);
    assert_eq!(recent.recent(conversation, 5).await.expect("read").len(), 1);
    redis.clean().await;
}

#[tokio::test]
async fn members_are_loaded_once_and_never_older_than_asked() {
    let Some(redis) = redis().await else { return };
    let (one, two) = (redis.open().await, redis.open().await);
    let (here, there) = (one.membership(), two.membership());
    let conversation = ConversationId(a_user().0);
    let list = |version| Members {
        version,
        users: vec![UserId(1), UserId(version)],
    };
    let loads = std::sync::atomic::AtomicU32::new(0);
    let load = |version| {
        loads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::future::ready(Ok::<_, String>(list(version)))
    };
    let unasked = || async { Err::<Members, String>("asked the directory".to_owned()) };
    assert_eq!(
        *here.get(conversation, 0, load(5)).await.expect("loaded"),
        list(5)
    );
    assert_eq!(
        *here.get(conversation, 5, unasked()).await.expect("here"),
        list(5)
    );
    assert_eq!(
        *there
            .get(conversation, 5, unasked())
            .await
            .expect("in Redis"),
        list(5)
    );
    assert_eq!(
        *there.get(conversation, 6, load(6)).await.expect("loaded"),
        list(6)
    );
    here.changed(conversation, 7).await;
    until("the other server hears of it", 5, || async {
        there
            .get(conversation, 0, load(7))
            .await
            .is_ok_and(|m| *m == list(7))
    })
    .await;
    // A directory's slow answer from before doesn't take the place of a later list.
    let third = redis.open().await.membership();
    here.changed(conversation, 9).await;
    assert_eq!(
        *third.get(conversation, 0, load(8)).await.expect("loaded"),
        list(8)
    );
    let fourth = redis.open().await.membership();
    assert!(
        fourth.get(conversation, 0, unasked()).await.is_err(),
        "8 isn't kept in Redis"
    );
    redis.clean().await;
}

/// Passes bytes on unless frozen.
struct Proxy {
    address: String,
    frozen: watch::Sender<bool>,
}

impl Proxy {
    async fn to(target: String, listener: TcpListener) -> Proxy {
        let address = listener.local_addr().expect("bound").to_string();
        let (frozen, is_frozen) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let (target, mut is_frozen) = (target.clone(), is_frozen.clone());
                tokio::spawn(async move {
                    loop {
                        // A frozen connection never goes on: that of a host that is cut off.
                        if is_frozen.wait_for(|frozen| !frozen).await.is_err() {
                            return;
                        }
                        let Ok(mut to) = TcpStream::connect(&target).await else {
                            return;
                        };
                        tokio::select! {
                            _ = copy_bidirectional(&mut from, &mut to) => return,
                            frozen = is_frozen.wait_for(|frozen| *frozen) => drop(frozen),
                        }
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        Proxy { address, frozen }
    }
}

#[tokio::test]
async fn a_redis_that_hangs_costs_a_deadline_then_nothing_and_nothing_is_missed() {
    let Some(redis) = redis().await else { return };
    if redis.is_cluster() {
        eprintln!(
            "SKIPPED: members of a cluster name their own addresses, so no proxy stands before them"
        );
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let proxy = Proxy::to(primary().await, listener).await;
    let there = redis.open().await;
    let here = redis
        .open_with(|s| {
            s.mode = Mode::Standalone;
            s.nodes = vec![proxy.address.clone()];
            s.timeout_ms = 100;
        })
        .await;
    let (user, gateway) = (a_user(), GatewayId(9));
    here.watch(gateway, vec![user]).await.expect("watch");
    proxy.frozen.send_replace(true);
    let (mut longest, begun) = (Duration::ZERO, Instant::now());
    let last = loop {
        let asked = Instant::now();
        let answer = here.sessions_of(user).await;
        longest = longest.max(asked.elapsed());
        if matches!(answer, Err(RegistryError(why)) if why.starts_with("not connected")) {
            break asked.elapsed();
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "it fails at once");
    };
    assert!(
        longest < Duration::from_millis(250),
        "no call waits longer: {longest:?}"
    );
    assert!(last < Duration::from_millis(50), "{last:?}");
    here.check().await.expect_err("it says so");
    there.put_session(entry(user, 1, 1)).await.expect("put");
    proxy.frozen.send_replace(false);
    until("it goes on", 10, || async { here.check().await.is_ok() }).await;
    until("what changed meanwhile is told", 10, || async {
        here.changes().await.is_ok_and(|changes| {
            changes.iter().any(|(_, users)| {
                users
                    .iter()
                    .any(|p| p.user == user && p.state == Presence::Online)
            })
        })
    })
    .await;
    redis.clean().await;
}

async fn refused(settings: Settings) -> StartError {
    RedisRegistry::open(settings).await.err().expect("refused")
}

#[tokio::test]
async fn each_wrong_setting_is_named_at_the_start() {
    let Some(redis) = redis().await else { return };
    let good = &redis.settings;
    let nowhere = vec!["127.0.0.1:1".to_owned()];
    let password = Secret("wrong-and-secret".to_owned());
    let mut cases = vec![
        (
            "redis.nodes",
            true,
            Settings {
                nodes: nowhere,
                ..good.clone()
            },
        ),
        (
            "redis.nodes",
            false,
            Settings {
                nodes: Vec::new(),
                ..good.clone()
            },
        ),
        (
            "redis.nodes",
            false,
            Settings {
                nodes: vec!["redis".to_owned()],
                ..good.clone()
            },
        ),
        (
            "redis.password",
            false,
            Settings {
                password,
                ..good.clone()
            },
        ),
        (
            "redis.timeout_ms",
            false,
            Settings {
                timeout_ms: 0,
                ..good.clone()
            },
        ),
    ];
    if redis.is_cluster() {
        cases.push((
            "redis.mode",
            false,
            Settings {
                mode: Mode::Standalone,
                ..good.clone()
            },
        ));
    } else {
        let primary = primary().await;
        let replica = on_each(6379)
            .into_iter()
            .find(|node| *node != primary)
            .expect("three");
        let standalone = |node: String| Settings {
            mode: Mode::Standalone,
            nodes: vec![node],
            ..good.clone()
        };
        cases.push((
            "redis.service",
            false,
            Settings {
                service: "other".to_owned(),
                ..good.clone()
            },
        ));
        cases.push(("redis.nodes", false, standalone(replica)));
        cases.push(("redis.mode", false, standalone(SENTINEL.to_owned())));
        cases.push((
            "redis.mode",
            false,
            Settings {
                nodes: on_each(6379),
                ..good.clone()
            },
        ));
        cases.push((
            "redis.mode",
            false,
            Settings {
                mode: Mode::Cluster,
                nodes: on_each(6379),
                ..good.clone()
            },
        ));
        cases.push((
            "redis.database",
            false,
            Settings {
                database: 9_999,
                ..good.clone()
            },
        ));
    }
    for (setting, may_pass, settings) in cases {
        let error = refused(settings).await;
        eprintln!("{error}");
        assert_eq!(
            (error.setting, error.may_pass),
            (setting, may_pass),
            "{error}"
        );
        assert!(
            !error.reason.contains("secret") && !error.reason.contains('\n'),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_server_that_may_start_without_redis_finds_it_later() {
    let Some(redis) = redis().await else { return };
    if redis.is_cluster() {
        eprintln!("SKIPPED: shown with Sentinel");
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let registry = redis
        .open_with(|s| {
            s.required = false;
            s.mode = Mode::Standalone;
            s.nodes = vec![address.clone()];
        })
        .await;
    let user = a_user();
    registry.sessions_of(user).await.expect_err("nobody there");
    let listener = TcpListener::bind(&address).await.expect("the same port");
    let _proxy = Proxy::to(primary().await, listener).await;
    until("it is found", 10, || async {
        registry.sessions_of(user).await.is_ok()
    })
    .await;
}

/// One command to one server.
async fn tell(node: &str, command: &[&str]) -> redis::RedisResult<redis::Value> {
    let client = Client::open(format!("redis://{node}/")).expect("an address");
    let mut conn = client.get_multiplexed_async_connection().await?;
    let mut line = redis::cmd(command[0]);
    line.arg(&command[1..]);
    line.query_async(&mut conn).await
}

/// How long calls fail after this is done to a Redis, until another is primary and calls are good again.
async fn fails_for(registry: &RedisRegistry, node: &str, command: &[&str]) -> Duration {
    let (user, before) = (a_user(), primary().await);
    tell(node, command).await.expect("done");
    let begun = Instant::now();
    let (mut first, mut last, mut good) = (None, Instant::now(), 0);
    while good < 100 {
        let asked = Instant::now();
        if registry.put_session(entry(user, 1, 1)).await.is_err() {
            first.get_or_insert(asked);
            (last, good) = (Instant::now(), 0);
        } else if good > 0 || primary().await != before {
            good += 1;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "followed within 30 s"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let failing = first.map_or(Duration::ZERO, |first| last - first);
    println!(
        "{command:?}: calls failed for {failing:?}, the last {:?} after it",
        last - begun
    );
    // Until then the old one may still say that it is the primary.
    until("the old primary is a replica", 30, || async {
        let info = tell(&before, &["INFO", "replication"]).await;
        info.is_ok_and(|info| format!("{info:?}").contains("role:slave"))
    })
    .await;
    failing
}

#[tokio::test]
async fn a_failover_by_the_sentinels_is_followed() {
    let Some(redis) = redis().await else { return };
    if redis.is_cluster() {
        eprintln!("SKIPPED: a cluster has no Sentinels");
        return;
    }
    let settings = redis.settings.clone();
    // From here on nobody else is at work.
    drop(redis);
    let quiet = QUIET.write().await;
    let registry = RedisRegistry::open(Settings {
        timeout_ms: 100,
        ..settings.clone()
    })
    .await
    .expect("opens");
    // Held for longer than the Sentinels wait, it answers nobody, as a hung one.
    let hung = fails_for(
        &registry,
        &primary().await,
        &["CLIENT", "PAUSE", "8000", "ALL"],
    )
    .await;
    assert!(hung < Duration::from_secs(8), "{hung:?}");
    let told = fails_for(&registry, SENTINEL, &["SENTINEL", "FAILOVER", "tidings"]).await;
    assert!(told < Duration::from_secs(4), "{told:?}");
    drop(quiet);
    let redis = Redis {
        settings,
        _quiet: QUIET.read().await,
    };
    redis.clean().await;
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
