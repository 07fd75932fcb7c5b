//! Two servers over one database: what both do at once is one order of transactions.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use tidings_core::conformance::directory::user;
use tidings_core::ids::UserId;
use tidings_core::ports::directory::{
    Accounts, BLOCKS_PER_USER_MAX, Conversations, Credentials, DirectoryError, ExternalSubject,
    LoginName, NewConversation, NewSignIn, NewUser, PAGE_MAX, Refusal, RevocationSubject, Rotation,
    SecretHash, What,
};
use tidings_core::record::Role;
use tidings_engines::postgres::{PostgresDirectory, Settings};

use crate::base::{open, with_database};
use crate::channel;

type Server = Arc<PostgresDirectory>;

/// A test of two servers over one database.
async fn two<F: Future<Output = ()>>(what: &str, test: impl FnOnce(Server, Server) -> F) {
    with_database(what, |settings| async move {
        let (one, other) = (open(&settings).await, open(&settings).await);
        test(Arc::new(one), Arc::new(other)).await;
    })
    .await;
}

fn nobody() -> NewUser {
    NewUser {
        login: None,
        display_name: "x".into(),
        password: None,
    }
}

async fn crowd(directory: &PostgresDirectory, n: usize) -> Vec<UserId> {
    let made = directory.create_users(vec![nobody(); n]).await.unwrap();
    made.into_iter().map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_that_begins_from_both_sides_has_one_conversation() {
    two("race_direct", |one, other| async move {
        let users = crowd(&one, 80).await;
        let calls = users.chunks(2).map(|pair| async {
            let (ann, bob) = (pair[0], pair[1]);
            let (a, b) = tokio::join!(one.create_direct(ann, bob), other.create_direct(bob, ann));
            let (a, b) = (a.unwrap(), b.unwrap());
            assert_eq!(a.conversation, b.conversation);
            assert!(a.created != b.created, "one of them made it");
            assert_eq!(
                one.members(a.conversation.id, UserId(0), 9)
                    .await
                    .unwrap()
                    .len(),
                2
            );
        });
        join_all(calls).await;
        assert_eq!(
            one.outbox_pending(PAGE_MAX).await.unwrap().len(),
            40,
            "one event each"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_under_a_key_happens_once_on_all_servers() {
    two("race_key", |one, other| async move {
        let ann = user(&*one, "ann").await;
        for i in 0..20 {
            let new = NewConversation {
                idempotency_key: Some(format!("key {i}")),
                ..channel(ann)
            };
            let both = tokio::join!(
                one.create_conversation(new.clone()),
                other.create_conversation(new)
            );
            let (a, b) = (both.0.unwrap(), both.1.unwrap());
            assert_eq!(a.conversation, b.conversation);
            assert!(a.created != b.created);
        }
        assert_eq!(one.outbox_pending(PAGE_MAX).await.unwrap().len(), 20);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_taken_once_on_all_servers() {
    two("race_names", |one, other| async move {
        let named = |i: usize| NewUser {
            login: Some(LoginName {
                name: format!("N{i}"),
                key: format!("n{i}"),
            }),
            ..nobody()
        };
        for round in 0..10 {
            // In opposite orders, so that each could wait for the other.
            let names: Vec<NewUser> = (0..100).map(|i| named(round * 100 + i)).collect();
            let reversed = names.iter().rev().cloned().collect();
            let both = tokio::join!(one.create_users(names), other.create_users(reversed));
            let (a, mut b) = (both.0.unwrap(), both.1.unwrap());
            b.reverse();
            for pair in a.iter().zip(&b) {
                let taken = Err(DirectoryError::Conflict(What::LoginName));
                assert!((pair.0.is_ok()) != (pair.1.is_ok()), "{pair:?}");
                assert!(*pair.0 == taken || *pair.1 == taken);
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_given_out_by_two_servers_have_no_hole() {
    two("race_versions", |one, other| async move {
        let ann = user(&*one, "ann").await;
        let id = one
            .create_conversation(channel(ann))
            .await
            .unwrap()
            .conversation
            .id;
        let crowd = crowd(&one, 120).await;
        let joins = crowd.iter().enumerate().map(|(i, &member)| {
            let server = if i % 2 == 0 { &one } else { &other };
            async move { server.join(id, member).await.unwrap().version }
        });
        let mut versions = join_all(joins).await;
        versions.sort_unstable();
        assert_eq!(versions, (2..=121).collect::<Vec<_>>());
        let pending = other.outbox_pending(PAGE_MAX).await.unwrap();
        let told: Vec<u64> = pending.iter().map(|entry| entry.change.version).collect();
        assert_eq!(
            told,
            (1..=121).collect::<Vec<_>>(),
            "and are told in their order"
        );
        for entry in &pending[1..] {
            let change = entry.change.changes[0];
            let member = other.member(id, change.user).await.unwrap().unwrap();
            assert_eq!(
                member.since, entry.change.version,
                "row and record say the same"
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_owners_who_step_down_at_once_one_stays() {
    two("race_owners", |one, other| async move {
        let (ann, bob) = (user(&*one, "ann").await, user(&*one, "bob").await);
        for _ in 0..20 {
            let id = one
                .create_conversation(channel(ann))
                .await
                .unwrap()
                .conversation
                .id;
            one.add_members(id, ann, vec![bob], Role::Owner)
                .await
                .unwrap();
            let both = tokio::join!(
                one.set_role(id, ann, ann, Role::Member),
                other.set_role(id, bob, bob, Role::Member)
            );
            let refused = Err(DirectoryError::Refused(Refusal::LastOwner));
            assert!(both.0.is_ok() != both.1.is_ok(), "{both:?}");
            assert!(both.0 == refused || both.1 == refused);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_used_on_two_servers_is_noticed() {
    two("race_tokens", |one, other| async move {
        let ann = user(&*one, "ann").await;
        for round in 0..30u8 {
            let phones = tokio::join!(
                one.device_named(ann, format!("phone {round}")),
                other.device_named(ann, format!("phone {round}"))
            );
            let device = phones.0.unwrap();
            assert_eq!(Ok(device.clone()), phones.1, "made once");
            let token = |n: u8| SecretHash([[round, n]; 16].concat().try_into().unwrap());
            let new = NewSignIn {
                user: ann,
                device: device.id,
                refresh: token(0),
                expires: i64::MAX as u64,
            };
            let signed = tokio::join!(one.sign_in(new.clone()), other.sign_in(new));
            assert_eq!(signed.0, signed.1, "a repeat is the same sign-in");
            let used = tokio::join!(
                one.rotate(token(0), token(1), i64::MAX as u64),
                other.rotate(token(0), token(2), i64::MAX as u64)
            );
            let used = [used.0.unwrap(), used.1.unwrap()];
            let rotated = used
                .iter()
                .filter(|u| matches!(u, Rotation::Rotated(_)))
                .count();
            let reused = used
                .iter()
                .filter(|u| matches!(u, Rotation::Reused(_)))
                .count();
            assert_eq!((rotated, reused), (1, 1), "{used:?}");
            for dead in [token(1), token(2)] {
                let answer = one.rotate(dead, token(9), i64::MAX as u64).await;
                assert_eq!(answer, Ok(Rotation::Refused), "the family is dead");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_sign_in_slips_past_what_ends_it() {
    two("race_shut", |one, other| async move {
        for round in 0..30u8 {
            let ann = user(&*one, &format!("ann {round}")).await;
            let device = one.add_device(ann, "phone".into()).await.unwrap().id;
            let token = SecretHash([round; 32]);
            let new = NewSignIn {
                user: ann,
                device,
                refresh: token,
                expires: i64::MAX as u64,
            };
            let (signed, ended) = if round % 2 == 0 {
                let both = tokio::join!(one.sign_in(new), other.set_disabled(ann, true));
                (both.0, both.1.map(drop))
            } else {
                let both = tokio::join!(one.sign_in(new), other.remove_device(ann, device));
                (both.0, both.1.map(drop))
            };
            ended.unwrap();
            let expected = [
                DirectoryError::Refused(Refusal::Disabled),
                DirectoryError::NotFound(What::Device),
            ];
            assert!(signed.is_ok() || expected.contains(signed.as_ref().unwrap_err()));
            let next = SecretHash([round | 128; 32]);
            let answer = one.rotate(token, next, i64::MAX as u64).await;
            assert_eq!(answer, Ok(Rotation::Refused), "after {signed:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_revocations_misses_none() {
    two("race_revisions", |one, other| async move {
        let users = crowd(&one, 200).await;
        let done = AtomicBool::new(false);
        let revoke = async {
            let calls = users.iter().enumerate().map(|(i, &user)| {
                let server = if i % 2 == 0 { &one } else { &other };
                server.revoke(RevocationSubject::User(user))
            });
            for answer in join_all(calls).await {
                answer.unwrap();
            }
            done.store(true, Ordering::Relaxed);
        };
        let read = async {
            let mut seen = HashSet::new();
            let mut last = 0;
            loop {
                let is_last = done.load(Ordering::Relaxed);
                for revocation in one.revocations_after(last, 7).await.unwrap() {
                    assert_eq!(revocation.revision, last + 1, "in order, without a hole");
                    last = revocation.revision;
                    seen.insert(revocation.subject);
                }
                if is_last && last == 200 {
                    return seen.len();
                }
            }
        };
        let ((), seen) = tokio::join!(revoke, read);
        assert_eq!(seen, 200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_hold_on_all_servers_together() {
    two("race_bounds", |one, other| async move {
        let ann = user(&*one, "ann").await;
        let room = 5;
        let others = crowd(&one, BLOCKS_PER_USER_MAX - room).await;
        join_all(others.iter().map(|&other| one.set_block(ann, other, true))).await;
        let more = crowd(&one, 4 * room).await;
        let calls = more.iter().enumerate().map(|(i, &blocked)| {
            let server = if i % 2 == 0 { &one } else { &other };
            server.set_block(ann, blocked, true)
        });
        let answers = join_all(calls).await;
        let set = answers.iter().filter(|answer| answer.is_ok()).count();
        assert_eq!(set, room, "{answers:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn those_who_sign_in_at_once_ask_together_and_each_gets_its_own_answer() {
    with_database("together", |settings| async move {
        let directory = Arc::new(open(&settings).await);
        let ann = user(&*directory, "ann").await;
        let subject = |n: usize| ExternalSubject {
            issuer: "crm".to_owned(),
            subject: n.to_string(),
        };
        let mut known = Vec::new();
        for n in 0..40 {
            let (user, device) = directory
                .subject_on_device(subject(n), format!("user {n}"), "phone".to_owned())
                .await
                .unwrap();
            let with_ann = directory.create_direct(ann, user.id).await.unwrap();
            known.push((user, device, with_ann.conversation.id));
        }
        let before = directory.metrics().calls.load(Ordering::Relaxed);
        // Twice each, as two devices of one user come too; and some who aren't known yet.
        let asking = (0..100).map(|n| {
            let directory = directory.clone();
            tokio::spawn(async move {
                let asked = subject(n % 50);
                let name = format!("user {}", n % 50);
                let (user, device) = directory
                    .subject_on_device(asked.clone(), name, "phone".to_owned())
                    .await
                    .unwrap();
                assert_eq!(user.external, Some(asked));
                let lists = directory.lists_of(user.id).await.unwrap();
                (n % 50, user, device, lists)
            })
        });
        for asking in asking.collect::<Vec<_>>() {
            let (n, user, device, lists) = asking.await.unwrap();
            match known.get(n) {
                Some((of, on, with_ann)) => {
                    assert_eq!((&user, &device), (of, on));
                    assert_eq!(lists.conversations, [*with_ann]);
                }
                None => assert_eq!(lists.conversations, []),
            }
            assert_eq!(lists.blocked, []);
        }
        let calls = directory.metrics().calls.load(Ordering::Relaxed) - before;
        // Two for each of the 80 who are known would be 160, and the others need more.
        assert!(calls < 160, "{calls}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn more_callers_than_connections_all_get_answers() {
    with_database("callers", |small| async move {
        let settings = Settings {
            pool_max: 25,
            pool_min_idle: 8,
            ..small
        };
        let directory = Arc::new(open(&settings).await);
        let ann = user(&*directory, "ann").await;
        let id = directory
            .create_conversation(channel(ann))
            .await
            .unwrap()
            .conversation
            .id;
        let callers = crowd(&directory, 64).await.into_iter().map(|member| {
            let directory = directory.clone();
            tokio::spawn(async move {
                directory.join(id, member).await.unwrap();
                for i in 0..20 {
                    directory
                        .set_display_name(member, format!("{i}"))
                        .await
                        .unwrap();
                    let found = directory.users(vec![member]).await.unwrap();
                    assert_eq!(
                        found[0].display_name,
                        format!("{i}"),
                        "one's own write is read"
                    );
                    assert!(directory.member(id, member).await.unwrap().is_some());
                    directory.create_direct(ann, member).await.unwrap();
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
        let metrics = directory.metrics();
        let read = |gauge: &std::sync::atomic::AtomicU64| gauge.load(Ordering::Relaxed);
        assert!(read(&metrics.pool_size) <= 25, "{metrics:?}");
        assert_eq!(
            (read(&metrics.pool_in_use), read(&metrics.pool_waiters)),
            (0, 0)
        );
        assert_eq!((read(&metrics.errors), read(&metrics.pool_refused)), (0, 0));
        assert!(read(&metrics.pool_wait_us) > 0 && read(&metrics.pool_waits) >= 64 * 81);
        assert_eq!(
            directory.conversation(id).await.unwrap().unwrap().version,
            65
        );
    })
    .await;
}
