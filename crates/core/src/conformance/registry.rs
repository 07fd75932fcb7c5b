//! What every [`Registry`] promises, checked over the trait.
//!
//! [`all`] runs everything with users of its own, made from `run`. A broken promise is a panic.
//! Nothing here is bounded in time: the caller puts a deadline around it.

use std::time::Duration;

use crate::ids::{ConversationId, DeviceId, GatewayId, SessionId, UserId};
use crate::ports::registry::{Mark, Presence, Registry, SessionEntry, UserPresence};

/// Runs every check of this module. `run` differs from run to run on a registry that lasts.
pub async fn all(registry: &dyn Registry, run: u64) {
    a_session_is_found_until_it_is_removed(registry, run).await;
    a_late_removal_never_removes_a_newer_session(registry, run).await;
    repeats_are_harmless(registry, run).await;
    presence_is_the_best_of_a_users_sessions(registry, run).await;
    watched_users_that_changed_are_told_once(registry, run).await;
    the_greater_mark_stays_and_only_what_was_seen_is_cleared(registry, run).await;
    a_claim_is_granted_once(registry, run).await;
}

const OK: &str = "the registry answers";

fn user(run: u64, check: u64) -> UserId {
    UserId(run.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(check))
}

fn entry(user: UserId, device: u64, session: u64) -> SessionEntry {
    SessionEntry {
        user,
        device: DeviceId(device),
        session: SessionId(user.0.wrapping_add(session)),
        gateway: GatewayId(3),
    }
}

async fn presence(registry: &dyn Registry, user: UserId) -> UserPresence {
    registry.presence(vec![user]).await.expect(OK)[0]
}

async fn a_session_is_found_until_it_is_removed(registry: &dyn Registry, run: u64) {
    let user = user(run, 1);
    assert_eq!(registry.sessions_of(user).await.expect(OK), []);
    let (first, second) = (entry(user, 1, 1), entry(user, 2, 2));
    registry.put_session(first).await.expect(OK);
    registry.put_session(second).await.expect(OK);
    assert_eq!(
        registry.sessions_of(user).await.expect(OK),
        [first, second],
        "in the order they came"
    );
    registry
        .remove_session(user, first.session, 50)
        .await
        .expect(OK);
    assert_eq!(registry.sessions_of(user).await.expect(OK), [second]);
    let now = presence(registry, user).await;
    assert_eq!(
        (now.state, now.last_seen),
        (Presence::Online, 0),
        "one session is left"
    );
    registry
        .remove_session(user, second.session, 77)
        .await
        .expect(OK);
    let now = presence(registry, user).await;
    assert_eq!((now.state, now.last_seen), (Presence::Offline, 77));
}

async fn a_late_removal_never_removes_a_newer_session(registry: &dyn Registry, run: u64) {
    let user = user(run, 2);
    let (old, new) = (entry(user, 1, 1), entry(user, 1, 2));
    registry.put_session(old).await.expect(OK);
    registry.put_session(new).await.expect(OK);
    registry
        .remove_session(user, old.session, 5)
        .await
        .expect(OK);
    registry
        .remove_session(user, old.session, 6)
        .await
        .expect(OK);
    assert_eq!(registry.sessions_of(user).await.expect(OK), [new]);
}

async fn repeats_are_harmless(registry: &dyn Registry, run: u64) {
    let user = user(run, 3);
    let one = entry(user, 1, 1);
    for _ in 0..3 {
        registry.put_session(one).await.expect(OK);
    }
    registry
        .set_presence(user, one.session, Presence::Away)
        .await
        .expect(OK);
    registry.put_session(one).await.expect(OK);
    assert_eq!(registry.sessions_of(user).await.expect(OK), [one]);
    assert_eq!(
        presence(registry, user).await.state,
        Presence::Away,
        "a refresh says nothing new"
    );
}

async fn presence_is_the_best_of_a_users_sessions(registry: &dyn Registry, run: u64) {
    let user_ = user(run, 4);
    let stranger = user(run, 5);
    let (a, b) = (entry(user_, 1, 1), entry(user_, 2, 2));
    registry.put_session(a).await.expect(OK);
    registry.put_session(b).await.expect(OK);
    registry
        .set_presence(user_, a.session, Presence::Away)
        .await
        .expect(OK);
    let asked = registry.presence(vec![stranger, user_]).await.expect(OK);
    let states: Vec<(UserId, Presence)> = asked.iter().map(|p| (p.user, p.state)).collect();
    assert_eq!(
        states,
        [(stranger, Presence::Offline), (user_, Presence::Online)],
        "in the order asked"
    );
    registry
        .set_presence(user_, b.session, Presence::Offline)
        .await
        .expect(OK);
    assert_eq!(
        presence(registry, user_).await.state,
        Presence::Away,
        "one is not to be seen"
    );
}

async fn watched_users_that_changed_are_told_once(registry: &dyn Registry, run: u64) {
    let (seen, unseen) = (user(run, 6), user(run, 7));
    let gateway = GatewayId(run as u32 % 1000 + 77);
    let mine = |changes: Vec<(GatewayId, Vec<UserPresence>)>| {
        changes
            .into_iter()
            .filter(|(g, _)| *g == gateway)
            .flat_map(|(_, users)| users)
            .collect::<Vec<_>>()
    };
    registry.watch(gateway, vec![seen]).await.expect(OK);
    mine(registry.changes().await.expect(OK));
    for user in [seen, unseen] {
        registry.put_session(entry(user, 1, 1)).await.expect(OK);
    }
    registry
        .set_presence(seen, entry(seen, 1, 1).session, Presence::Away)
        .await
        .expect(OK);
    let told = mine(registry.changes().await.expect(OK));
    assert_eq!(
        told,
        [UserPresence {
            user: seen,
            state: Presence::Away,
            last_seen: 0
        }],
        "as it is now, once"
    );
    assert_eq!(mine(registry.changes().await.expect(OK)), []);
    registry.watch(gateway, Vec::new()).await.expect(OK);
    registry
        .remove_session(seen, entry(seen, 1, 1).session, 9)
        .await
        .expect(OK);
    assert_eq!(
        mine(registry.changes().await.expect(OK)),
        [],
        "the last list counts"
    );
}

async fn a_claim_is_granted_once(registry: &dyn Registry, run: u64) {
    let key = |n: u64| u128::from(user(run, 9).0) << 64 | u128::from(n);
    let life = Duration::from_secs(60);
    assert!(registry.claim(key(1), life).await.expect(OK));
    assert!(!registry.claim(key(1), life).await.expect(OK));
    assert!(registry.claim(key(2), life).await.expect(OK));
}

async fn the_greater_mark_stays_and_only_what_was_seen_is_cleared(
    registry: &dyn Registry,
    run: u64,
) {
    let user = user(run, 8);
    let mark = |conversation, seq| Mark {
        user,
        conversation: ConversationId(conversation),
        seq,
    };
    registry
        .put_marks(vec![mark(1, 9), mark(1, 4), mark(2, 1)])
        .await
        .expect(OK);
    registry.put_marks(vec![mark(1, 7)]).await.expect(OK);
    let mut marks = registry.marks_of(user, 10).await.expect(OK);
    marks.sort_unstable_by_key(|m| m.conversation);
    assert_eq!(marks, [mark(1, 9), mark(2, 1)]);
    assert_eq!(registry.marks_of(user, 1).await.expect(OK).len(), 1);
    registry.clear_mark(mark(1, 8)).await.expect(OK);
    registry.clear_mark(mark(2, 1)).await.expect(OK);
    assert_eq!(registry.marks_of(user, 10).await.expect(OK), [mark(1, 9)]);
    registry.clear_mark(mark(1, 9)).await.expect(OK);
    assert_eq!(registry.marks_of(user, 10).await.expect(OK), []);
}
