//! The directory on PostgreSQL keeps the promises of its port, through PgBouncer and beside others.
//!
//! Needs `cluster/stack up postgres`. Each test has a database of its own, removed at its end.

#![allow(clippy::unwrap_used, reason = "these are tests, their helpers too")]

#[path = "../stack/mod.rs"]
mod stack;

mod base;
mod faults;
mod proxy;
mod races;
mod start;

use std::sync::atomic::Ordering;

use base::{open, with_database};
use tidings_core::conformance::directory::{all, user};
use tidings_core::ids::UserId;
use tidings_core::ports::directory::{
    Accounts, Conversations, Credentials, DirectoryError, NewConversation, Refusal,
    RevocationSubject, What, direct_conversation,
};
use tidings_core::record::{ConversationKind, Role};
use tidings_engines::postgres::migrate;

fn channel(creator: UserId) -> NewConversation {
    NewConversation {
        kind: ConversationKind::Channel,
        title: "news".into(),
        creator,
        members: vec![],
        join_role: Role::Member,
        idempotency_key: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_keeps_the_promises_of_a_directory() {
    with_database("suite", |settings| async move {
        let directory = open(&settings).await;
        all(&directory).await;
        let metrics = directory.metrics();
        assert_eq!(metrics.errors.load(Ordering::Relaxed), 0, "{metrics:?}");
    })
    .await;
}

#[tokio::test]
async fn a_second_start_on_the_same_data_goes_on() {
    with_database("again", |settings| async move {
        let directory = open(&settings).await;
        let ann = user(&directory, "ann").await;
        let opened = directory.create_conversation(channel(ann)).await.unwrap();
        let revoked = directory
            .revoke(RevocationSubject::User(ann))
            .await
            .unwrap();
        drop(directory);

        let again = migrate(&settings).await.unwrap();
        assert!(
            again.len() == 1 && again[0].contains("up to date"),
            "{again:?}"
        );
        let directory = open(&settings).await;
        let found = directory
            .user_by_login("ann".into())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(found.id, ann);
        assert_eq!(directory.revocations_after(0, 10).await, Ok(vec![revoked]));
        assert_eq!(directory.outbox_pending(10).await.unwrap().len(), 1);
        let bob = user(&directory, "bob").await;
        let joined = directory.join(opened.conversation.id, bob).await.unwrap();
        assert_eq!(joined.version, 2, "versions go on");
        let next = directory
            .revoke(RevocationSubject::User(bob))
            .await
            .unwrap();
        assert_eq!(next.revision, revoked.revision + 1, "revisions go on");
    })
    .await;
}

#[tokio::test]
async fn another_pair_under_the_derived_id_is_a_conflict() {
    with_database("pair", |settings| async move {
        let directory = open(&settings).await;
        let (ann, bob) = (user(&directory, "ann").await, user(&directory, "bob").await);
        let id = direct_conversation(ann, bob).conversation.0;
        let other = base::direct(&settings).await;
        let insert = format!(
            "insert into conversations (id, kind, title, version, join_role, low, high, created)
             values ({id}, 0, '', 1, 0, 5, 6, 0)"
        );
        other.batch_execute(&insert).await.unwrap();
        let conflict = directory.create_direct(ann, bob).await;
        assert_eq!(conflict, Err(DirectoryError::Conflict(What::DirectId)));
    })
    .await;
}

#[tokio::test]
async fn a_text_that_sql_cannot_hold_is_refused_or_not_found() {
    with_database("nul", |settings| async move {
        let directory = open(&settings).await;
        let ann = user(&directory, "ann").await;
        let invalid = DirectoryError::Refused(Refusal::Invalid);
        let renamed = directory.set_display_name(ann, "A\0nn".into()).await;
        assert_eq!(renamed, Err(invalid.clone()));
        let titled = NewConversation {
            title: "\0".into(),
            ..channel(ann)
        };
        assert_eq!(directory.create_conversation(titled).await, Err(invalid));
        assert_eq!(directory.user_by_login("a\0nn".into()).await, Ok(None));
        assert!(
            directory
                .password_of("a\0nn".into())
                .await
                .unwrap()
                .is_none()
        );
        directory
            .set_display_name(ann, "Ann".into())
            .await
            .expect("and it goes on");
    })
    .await;
}
