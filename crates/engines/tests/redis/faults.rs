//! Wrong settings, a Redis that is away or hangs, and failovers.

use super::*;

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

/// Whether this server says this of its replication.
async fn says(node: &str, what: &str) -> bool {
    let info = tell(node, &["INFO", "replication"]).await;
    info.is_ok_and(|info| format!("{info:?}").contains(what))
}

/// A replica that has all its primary's data.
async fn follows(node: &str) -> bool {
    says(node, "role:slave").await && says(node, "master_link_status:up").await
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
    // Until then the old one may still say that it is the primary, and who loads the new one's data refuses commands.
    until("the others follow the new primary", 30, || async {
        let new = primary().await;
        for node in on_each(6379) {
            if node != new && !follows(&node).await {
                return false;
            }
        }
        new != before
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

#[tokio::test]
async fn a_failover_of_a_cluster_is_followed() {
    let Some(redis) = redis().await else { return };
    if !redis.is_cluster() {
        eprintln!(
            "SKIPPED: no Redis Cluster runs; `cluster/stack up --redis cluster redis` starts it"
        );
        return;
    }
    let settings = redis.settings.clone();
    drop(redis);
    let quiet = QUIET.write().await;
    let registry = RedisRegistry::open(Settings {
        timeout_ms: 100,
        ..settings.clone()
    })
    .await
    .expect("opens");
    let nodes = tell(CLUSTER, &["CLUSTER", "NODES"]).await.expect("listed");
    let nodes: String = redis::from_redis_value(nodes).expect("text");
    let replica = nodes
        .lines()
        .find(|line| line.contains("slave") && line.contains(" connected"))
        .and_then(|line| line.split([' ', '@']).nth(1))
        .expect("a replica");
    tell(replica, &["CLUSTER", "FAILOVER"])
        .await
        .expect("begins");
    let begun = Instant::now();
    let (mut last, mut failed, mut good, mut user) = (begun, 0, 0, a_user().0);
    while good < 200 {
        user = user.wrapping_add(1);
        if registry
            .put_session(entry(UserId(user), 1, 1))
            .await
            .is_err()
        {
            (last, failed, good) = (Instant::now(), failed + 1, 0);
        } else if good > 0 || says(replica, "role:master").await {
            good += 1;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "followed within 30 s"
        );
    }
    println!(
        "cluster failover: {failed} calls failed, the last {:?} after it",
        last - begun
    );
    assert!(last - begun < Duration::from_secs(4), "{:?}", last - begun);
    drop(quiet);
    let redis = Redis {
        settings,
        _quiet: QUIET.read().await,
    };
    redis.clean().await;
}
