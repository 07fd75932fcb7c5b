//! A database that hangs, vanishes or is overrun: answers in time, and on again afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tidings_core::conformance::directory::user;
use tidings_core::ids::ConversationId;
use tidings_core::ports::directory::{Accounts, Conversations, DirectoryError};
use tidings_engines::postgres::{PostgresDirectory, Settings};
use tokio_postgres::Client;

use crate::base::{direct, open, with_database};
use crate::channel;
use crate::proxy::Proxy;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[track_caller]
fn is_unavailable<T: std::fmt::Debug>(answer: Result<T, DirectoryError>) {
    assert!(
        matches!(answer, Err(DirectoryError::Unavailable { .. })),
        "{answer:?}"
    );
}

/// Repeats a look until it holds; the test fails after ten seconds without.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < ms(10_000), "never: {what}");
        tokio::task::yield_now().await;
    }
}

/// Holds a conversation's row, as another server would that hangs in the middle of a change.
async fn hold(client: &Client, id: ConversationId) {
    let lock = format!(
        "begin; select from conversations where id = {} for update",
        id.0
    );
    client.batch_execute(&lock).await.unwrap();
}

#[tokio::test]
async fn a_frozen_database_is_reported_in_time() {
    with_database("frozen", |settings| async move {
        let proxy = Proxy::start().await;
        let settings = Settings {
            port: proxy.address.port(),
            call_timeout_ms: 500,
            ..settings
        };
        let directory = open(&settings).await;
        let ann = user(&directory, "ann").await;
        directory.check().await.expect("it answers");
        proxy.freeze();
        let began = Instant::now();
        let answers = tokio::join!(
            directory.users(vec![ann]),
            directory.set_display_name(ann, "Ann".into()),
            directory.create_conversation(channel(ann)),
            directory.add_device(ann, "phone".into()),
        );
        assert!(
            began.elapsed() >= ms(450) && began.elapsed() < ms(1500),
            "{:?}",
            began.elapsed()
        );
        is_unavailable(answers.0);
        is_unavailable(answers.1);
        is_unavailable(answers.2);
        is_unavailable(answers.3);
        let began = Instant::now();
        directory.check().await.expect_err("not ready");
        assert!(began.elapsed() < ms(1500));
        proxy.thaw();
        until("answers again", async || {
            directory.users(vec![ann]).await.is_ok()
        })
        .await;
        directory
            .set_display_name(ann, "Ann".into())
            .await
            .expect("changes too");
    })
    .await;
}

#[tokio::test]
async fn lost_connections_are_replaced() {
    with_database("lost", |settings| async move {
        let proxy = Proxy::start().await;
        let settings = Settings {
            port: proxy.address.port(),
            ..settings
        };
        let directory = open(&settings).await;
        let ann = user(&directory, "ann").await;
        let id = directory
            .create_conversation(channel(ann))
            .await
            .unwrap()
            .conversation
            .id;
        for round in 0..5 {
            proxy.cut();
            let found = directory.users(vec![ann]).await;
            assert_eq!(found.map(|found| found.len()), Ok(1), "a read is repeated");
            proxy.cut();
            let bob = loop {
                let made = directory.device_named(ann, format!("phone {round}")).await;
                match made {
                    Ok(device) => break device,
                    Err(error) => is_unavailable::<()>(Err(error)),
                }
            };
            assert_eq!(
                directory.devices(ann).await.unwrap().len(),
                round + 1,
                "{bob:?}"
            );
        }
        assert_eq!(
            directory.conversation(id).await.unwrap().unwrap().version,
            1
        );
    })
    .await;
}

#[tokio::test]
async fn a_full_pool_refuses_in_time_and_tells_who_holds_it() {
    with_database("full", |settings| async move {
        let settings = Settings {
            pool_max: 1,
            pool_min_idle: 0,
            pool_waiters_max: 1,
            acquire_timeout_ms: 300,
            held_warning_ms: 200,
            ..settings
        };
        let directory = Arc::new(open(&settings).await);
        let (ann, bob) = (
            user(&*directory, "ann").await,
            user(&*directory, "bob").await,
        );
        let id = directory
            .create_conversation(channel(ann))
            .await
            .unwrap()
            .conversation
            .id;
        let other = direct(&settings).await;
        hold(&other, id).await;
        let joining = tokio::spawn({
            let directory = directory.clone();
            async move { directory.join(id, bob).await }
        });
        until("the join holds the connection", async || {
            read(&directory.metrics().pool_in_use) == 1
        })
        .await;
        let began = Instant::now();
        let waiting = tokio::spawn({
            let directory = directory.clone();
            async move { directory.users(vec![ann]).await }
        });
        until("one waits", async || {
            read(&directory.metrics().pool_waiters) == 1
        })
        .await;
        is_unavailable(directory.users(vec![bob]).await);
        assert!(
            began.elapsed() < ms(250),
            "with too many waiting the next isn't kept"
        );
        is_unavailable(waiting.await.unwrap());
        assert!(
            began.elapsed() >= ms(290) && began.elapsed() < ms(1000),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(read(&directory.metrics().pool_refused), 2);
        until("it is told", async || {
            read(&directory.metrics().pool_held_long) == 1
        })
        .await;
        other.batch_execute("rollback").await.unwrap();
        assert_eq!(
            joining.await.unwrap().unwrap().version,
            2,
            "and the join goes through"
        );
        directory
            .users(vec![ann])
            .await
            .expect("there is a connection again");
    })
    .await;
}

#[tokio::test]
async fn a_change_that_waits_too_long_leaves_nothing_behind() {
    with_database("stuck", |settings| async move {
        let settings = Settings {
            call_timeout_ms: 300,
            ..settings
        };
        let directory = open(&settings).await;
        let (ann, bob) = (user(&directory, "ann").await, user(&directory, "bob").await);
        let id = directory
            .create_conversation(channel(ann))
            .await
            .unwrap()
            .conversation
            .id;
        let other = direct(&settings).await;
        hold(&other, id).await;
        is_unavailable(directory.join(id, bob).await);
        // PostgreSQL ends the statement by itself, though nobody is there to tell it.
        until("nobody waits for the row", async || {
            let waiting = "select from pg_stat_activity
                           where datname = current_database() and wait_event_type = 'Lock'";
            other.query_typed(waiting, &[]).await.unwrap().is_empty()
        })
        .await;
        other.batch_execute("rollback").await.unwrap();
        assert_eq!(directory.member(id, bob).await, Ok(None));
        assert_eq!(
            directory.join(id, bob).await.unwrap().version,
            2,
            "no version was lost"
        );
    })
    .await;
}

#[tokio::test]
async fn a_dropped_future_leaves_its_call_running() {
    with_database("dropped", |settings| async move {
        let directory = open(&settings).await;
        let (ann, bob) = (user(&directory, "ann").await, user(&directory, "bob").await);
        let mut call = directory.create_direct(ann, bob);
        std::future::poll_fn(|context| {
            assert!(call.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        drop(call);
        until("the conversation is there", async || {
            let found = directory.conversations_of(ann, ConversationId(0), 9).await;
            found.unwrap().len() == 1
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_pool_at_rest_keeps_a_few_connections() {
    with_database("rest", |settings| async move {
        let settings = Settings {
            pool_max: 6,
            pool_min_idle: 3,
            idle_timeout_ms: 100,
            ..settings
        };
        let directory = open(&settings).await;
        let sized = async |size: u64, directory: &PostgresDirectory| {
            let metrics = directory.metrics();
            read(&metrics.pool_size) == size && read(&metrics.pool_idle) == size
        };
        until("some are opened at the start", async || {
            sized(3, &directory).await
        })
        .await;
        let ann = user(&directory, "ann").await;
        let id = directory
            .create_conversation(channel(ann))
            .await
            .unwrap()
            .conversation
            .id;
        let other = direct(&settings).await;
        hold(&other, id).await;
        let calls = (0..6).map(|i| directory.set_title(id, ann, format!("{i}")));
        let all = futures_util::future::join_all(calls);
        let release = async {
            until("all are in use", async || {
                read(&directory.metrics().pool_in_use) == 6
            })
            .await;
            other.batch_execute("rollback").await.unwrap();
        };
        let (answers, ()) = tokio::join!(all, release);
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        until("the rest goes", async || sized(3, &directory).await).await;
    })
    .await;
}
