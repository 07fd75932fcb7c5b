//! What the port promises, on one server and between two, and the caches beside it.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::*;

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
    let loads = AtomicU32::new(0);
    let load = |version| {
        loads.fetch_add(1, Relaxed);
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
