//! The log on Kafka, against the brokers of `cluster/stack`.

#[path = "kafka_parts/dead_letters.rs"]
mod dead_letters;
#[path = "kafka_parts/load.rs"]
mod load;
#[path = "kafka_parts/lost.rs"]
mod lost;
#[path = "kafka_parts/mod.rs"]
mod parts;
mod stack;
#[path = "kafka_parts/start.rs"]
mod start;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parts::{BROKER, Own, Proxy, run, run_id};
use tidings_core::conformance::log as suite;
use tidings_core::ids::{ConversationId, Partition, Position, UserId};
use tidings_core::ports::log::{Append, Log, LogError};
use tidings_core::ports::ownership::{Change, Ownership};
use tidings_engines::kafka::{KafkaLog, KafkaOwnership, Mark, Pending, Settings};

const P: Partition = Partition(0);

async fn change(ownership: &KafkaOwnership) -> Change {
    ownership.next().await
}

/// Takes changes, lets go at once, until so many are owned.
async fn settle(ownership: &KafkaOwnership, owned: usize) {
    while ownership.owned().len() != owned {
        // Not every change of the count is one to take: look again now and then.
        let next = tokio::time::timeout(Duration::from_millis(20), ownership.next()).await;
        if let Ok(Change::Lost(partition)) = next {
            ownership.released(partition);
        }
    }
}

#[test]
fn it_keeps_the_promises_over_a_reopening_and_with_small_buffers() {
    if !stack::runs("Kafka", BROKER) {
        return;
    }
    run(async {
        let own = Own::migrated("suite", 3).await;
        let log = own.open().await;
        for partition in 0..3 {
            assert_eq!(
                log.committed(Partition(partition)).await,
                Ok(log.end(Partition(partition)))
            );
        }
        suite::all(&log, 1).await;
        let ends: Vec<Position> = (0..3).map(|p| log.end(Partition(p))).collect();
        let committed = log.committed(P).await.expect("it is known");
        assert_eq!(log.check().await, Ok(()));
        drop(log);

        // Nearly nothing is kept or fetched ahead, so that readers chase each other.
        let tight = Settings {
            keep_bytes: 300,
            read_ahead_bytes: 1024,
            fetch_bytes: 2048,
            queue_bytes: 100_000,
            ..own.settings.clone()
        };
        let log = KafkaLog::open(tight).await.expect("it opens");
        for (partition, end) in ends.iter().enumerate() {
            assert_eq!(log.end(Partition(partition as u32)), *end);
        }
        assert_eq!(log.committed(P).await, Ok(committed));
        suite::all(&log, 2).await;
        suite::reports_say_what_was_appended(&log, 3, 500, 2_000).await;
        assert!(log.metrics().refused.load(Ordering::Relaxed) > 0);
        let jumps = log.metrics().jumps.load(Ordering::Relaxed);
        assert!(jumps > 20, "{jumps}");
    });
}

#[test]
fn two_readers_far_apart_both_get_on_and_another_server_sees_the_same() {
    if !stack::runs("Kafka", BROKER) {
        return;
    }
    run(async {
        let own = Own::migrated("apart", 1).await;
        let small = Settings {
            keep_bytes: 2_000,
            ..own.settings.clone()
        };
        let log = KafkaLog::open(small).await.expect("it opens");
        let conversation = suite::conversation_in(&log, P, 1);
        for call in 0..5 {
            let records = (0..20)
                .map(|i| suite::record(conversation, &format!("{call} {i}"), 200))
                .collect();
            suite::append(&log, records).await.expect("taken");
        }
        let from = |offset| Position { epoch: 1, offset };
        let began = Instant::now();
        let (first, last) = tokio::join!(
            suite::read_on(&log, P, from(0), 100),
            suite::read_on(&log, P, from(50), 50),
        );
        assert_eq!(first[50..], last);
        eprintln!(
            "{} jumps by {:?}",
            log.metrics().jumps.load(Ordering::Relaxed),
            began.elapsed()
        );

        // One that waits at the end is served although another reads old records again and again.
        let mut waiting = log.read(P, from(100), 1000);
        let pending = futures_util::poll!(waiting.as_mut());
        assert!(pending.is_pending());
        let other = own.open().await;
        suite::append(&other, vec![suite::record(conversation, "other", 0)])
            .await
            .expect("taken");
        let old = async {
            loop {
                suite::read_on(&log, P, from(0), 20).await;
            }
        };
        let found = tokio::select! {
            found = waiting => found.expect("it can be read"),
            () = old => unreachable!("it never ends"),
        };
        assert_eq!(found[0].position, from(100));
        let seen = suite::read_on(&other, P, from(0), 101).await;
        assert_eq!(seen[..100], first);
        // The end covers what anybody could read before.
        suite::append(&other, vec![suite::record(conversation, "more", 0)])
            .await
            .expect("taken");
        suite::read_on(&other, P, from(101), 1).await;
        log.committed(P).await.expect("known");
        assert_eq!(log.end(P), from(102));
    });
}

#[test]
fn a_partition_that_nobody_read_for_a_while_goes_on_where_a_reader_wants() {
    if !stack::runs("Kafka", BROKER) {
        return;
    }
    run(async {
        let own = Own::migrated("rested", 1).await;
        // What is fetched ahead stays with the client while nobody takes it.
        let log = own.open().await;
        let conversation = suite::conversation_in(&log, P, 1);
        let records = |from: u32| {
            (from..from + 20)
                .map(|i| suite::record(conversation, &i.to_string(), 100))
                .collect()
        };
        suite::append(&log, records(0)).await.expect("taken");
        let from = |offset| Position { epoch: 1, offset };
        let first = log.read(P, from(0), 1).await.expect("it can be read");
        assert_eq!(first[0].position, from(0));
        suite::append(&log, records(20)).await.expect("taken");
        tokio::time::sleep(Duration::from_secs(3)).await;
        let began = Instant::now();
        let rest = suite::read_on(&log, P, from(1), 39).await;
        assert_eq!(rest[38].position, from(39));
        // A call of the client's that is missed is made up for after a second; a stuck fetch after five.
        assert!(
            began.elapsed() < Duration::from_secs(4),
            "{:?}",
            began.elapsed()
        );
    });
}

#[test]
fn what_kafka_does_not_take_is_refused_within_two_seconds_and_nothing_loses_its_order() {
    if !stack::runs("Kafka", BROKER) {
        return;
    }
    run(async {
        let own = Own::migrated("away", 1).await;
        let proxy = Proxy::new();
        let settings = Settings {
            brokers: proxy.brokers.clone(),
            queue_bytes: 200_000,
            delivery_timeout_ms: 6_000,
            ..own.settings.clone()
        };
        let log = KafkaLog::open(settings).await.expect("it opens");
        let conversation = suite::conversation_in(&log, P, 1);
        let mut sent = 0;
        let mut results = Vec::new();
        let mut append = |log: &KafkaLog| {
            sent += 1;
            let record = Append {
                conversation,
                payload: Bytes::from(format!("{sent:08}")),
            };
            (sent, suite::append(log, vec![record]))
        };
        // A cluster that goes away, and one that hangs for longer than records are tried.
        for hangs in [false, true] {
            let (n, first) = append(&log);
            results.push((n, first.await));
            assert_eq!(results.last(), Some(&(n, Ok(()))));
            if hangs {
                proxy.hang()
            } else {
                proxy.cut()
            }
            let began = Instant::now();
            let mut open = Vec::new();
            while began.elapsed() < Duration::from_secs(4) {
                let asked = Instant::now();
                open.push((asked, append(&log)));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let mut refused_at_once = 0;
            for (_, (n, report)) in open {
                let result = report.await;
                assert!(result.is_err(), "{n}: {result:?}");
                refused_at_once += u32::from(matches!(result, Err(LogError::Unavailable(_))));
                results.push((n, result));
            }
            assert!(
                began.elapsed() < Duration::from_secs(6),
                "every report came within 2 s: {:?}",
                began.elapsed()
            );
            assert!(refused_at_once > 50, "{refused_at_once}");
            let (n, late) = append(&log);
            let asked = Instant::now();
            let late = late.await;
            assert!(
                matches!(late, Err(LogError::Unavailable(_)))
                    && asked.elapsed() < Duration::from_secs(1)
            );
            results.push((n, late));
            if hangs {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            assert!(log.check().await.is_err());
            proxy.mend();
            let mended = Instant::now();
            loop {
                let (n, report) = append(&log);
                let result = report.await;
                results.push((n, result.clone()));
                if result.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            eprintln!(
                "hangs {hangs}: taken again {:?} after it was mended",
                mended.elapsed()
            );
        }
        let (_, last) = results.last().cloned().expect("some");
        assert_eq!(last, Ok(()));
        let mut found = Vec::new();
        while found.last() != Some(&sent) {
            for record in suite::read_on(
                &log,
                P,
                Position {
                    epoch: 1,
                    offset: found.len() as u64,
                },
                1,
            )
            .await
            {
                let text = std::str::from_utf8(&record.payload).expect("a number");
                found.push(text.parse::<u64>().expect("a number"));
            }
        }
        assert!(found.is_sorted_by(|a, b| a < b), "order, and none twice");
        let found: BTreeSet<u64> = found.into_iter().collect();
        for (n, result) in results {
            match result {
                Ok(()) => assert!(found.contains(&n), "{n} was taken"),
                Err(LogError::Unknown(_)) => {}
                Err(_) => assert!(!found.contains(&n), "{n} was refused"),
            }
        }
    });
}

#[test]
fn partitions_move_when_a_server_joins_and_leaves_and_its_commits_come_first() {
    if !stack::runs("Kafka", BROKER) {
        return;
    }
    run(async {
        let own = Own::migrated("owners", 4).await;
        let (a, b) = (own.open().await, own.open().await);
        let one = KafkaOwnership::join(&a).expect("it joins");
        settle(&one, 4).await;
        for partition in 0..4 {
            let conversation = suite::conversation_in(&a, Partition(partition), 1);
            let records = (0..10)
                .map(|i| suite::record(conversation, &format!("{i}"), 0))
                .collect();
            suite::append(&a, records).await.expect("taken");
            let records = suite::read_on(
                &a,
                Partition(partition),
                Position {
                    epoch: 1,
                    offset: 0,
                },
                10,
            )
            .await;
            a.commit(Partition(partition), records[4].position)
                .await
                .expect("taken");
        }
        let two = KafkaOwnership::join(&b).expect("it joins");
        // What one server has stored up to the moment of letting go, the other begins behind.
        let mut moved = Vec::new();
        while moved.len() < 2 {
            if let Change::Lost(partition) = change(&one).await {
                a.commit(
                    partition,
                    Position {
                        epoch: 1,
                        offset: 7,
                    },
                )
                .await
                .expect("taken");
                one.released(partition);
                moved.push(partition);
            }
        }
        let mut gained = Vec::new();
        while gained.len() < 2 {
            match change(&two).await {
                Change::Gained(partition) => {
                    let committed = b.committed(partition).await;
                    assert_eq!(
                        committed,
                        Ok(Position {
                            epoch: 1,
                            offset: 7
                        })
                    );
                    assert_eq!(
                        b.end(partition),
                        Position {
                            epoch: 1,
                            offset: 10
                        }
                    );
                    gained.push(partition);
                }
                lost => panic!("{lost:?}"),
            }
        }
        moved.sort();
        gained.sort();
        assert_eq!(moved, gained);
        let mut all: Vec<Partition> = one.owned().into_iter().chain(two.owned()).collect();
        all.sort();
        assert_eq!(
            all,
            (0..4).map(Partition).collect::<Vec<_>>(),
            "one owner each"
        );

        // The one that let go changes nothing any more, the other's positions count.
        b.commit(
            gained[0],
            Position {
                epoch: 1,
                offset: 9,
            },
        )
        .await
        .expect("taken");
        a.commit(
            gained[0],
            Position {
                epoch: 1,
                offset: 8,
            },
        )
        .await
        .expect("no error");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(
            a.committed(gained[0]).await,
            Ok(Position {
                epoch: 1,
                offset: 9
            })
        );

        let began = Instant::now();
        let two = tokio::spawn(async move {
            let two = Arc::new(two);
            let leaving = Arc::clone(&two);
            let left = tokio::task::spawn_blocking(move || leaving.leave());
            let mut lost = 0;
            while lost < 2 {
                if let Change::Lost(partition) = change(&two).await {
                    two.released(partition);
                    lost += 1;
                }
            }
            left.await.expect("it leaves");
        });
        settle(&one, 4).await;
        let took = began.elapsed();
        two.await.expect("no panic");
        eprintln!("a clean leave hands over in {took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
    });
}

#[test]
fn a_router_that_does_not_let_go_delays_the_next_owner_by_no_more_than_the_bound() {
    if !stack::runs("Kafka", BROKER) {
        return;
    }
    run(async {
        let own = Own::migrated("stuck", 2).await;
        let (a, b) = (own.open().await, own.open().await);
        let one = KafkaOwnership::join(&a).expect("it joins");
        settle(&one, 2).await;
        let began = Instant::now();
        let two = KafkaOwnership::join(&b).expect("it joins");
        // Nobody takes the first one's changes: they are not told twice, and held up for 3 s.
        while two.owned().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let took = began.elapsed();
        eprintln!("without a release: {took:?}");
        assert!(took < Duration::from_secs(6), "{took:?}");
        assert_eq!((one.owned().len(), two.owned().len()), (1, 1));
    });
}

/// A process for the test below: a member that is killed.
#[test]
#[ignore = "run by the test that kills it"]
fn a_member_to_be_killed() {
    let Ok(settings) = std::env::var("TIDINGS_TEST_MEMBER") else {
        return;
    };
    let fields: Vec<&str> = settings.split(' ').collect();
    let settings = Settings {
        topic: fields[0].to_owned(),
        group: fields[1].to_owned(),
        partitions: 4,
        ..Settings::default()
    };
    run(async {
        let log = KafkaLog::open(settings).await.expect("it opens");
        let member = KafkaOwnership::join(&log).expect("it joins");
        settle(&member, 2).await;
        println!("MEMBER");
        std::future::pending::<()>().await;
    });
}

#[test]
fn the_partitions_of_a_killed_server_are_taken_over_within_eight_seconds() {
    if !stack::runs("Kafka", BROKER) {
        return;
    }
    run(async {
        let own = Own::migrated("killed", 4).await;
        let log = own.open().await;
        let one = KafkaOwnership::join(&log).expect("it joins");
        settle(&one, 4).await;
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args([
                "--exact",
                "a_member_to_be_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(
                "TIDINGS_TEST_MEMBER",
                format!("{} {}", own.settings.topic, own.settings.group),
            )
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        settle(&one, 2).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let began = Instant::now();
        child.kill().expect("it is ours");
        child.wait().expect("it ends");
        settle(&one, 4).await;
        let took = began.elapsed();
        eprintln!("taken over {took:?} after the kill");
        assert!(took < Duration::from_secs(8), "{took:?}");
    });
}

#[test]
fn marks_reach_a_worker_and_come_again_until_it_took_them() {
    if !stack::runs("Kafka", BROKER) {
        return;
    }
    run(async {
        let own = Own::migrated("marks", 3).await;
        let log = own.open().await;
        let pending = Pending::of(&log);
        let marks: Vec<Mark> = (0..200)
            .map(|n| Mark {
                recipient: UserId(n % 20),
                conversation: ConversationId(run_id()),
                seq: n,
            })
            .collect();
        let (send, reported) = tokio::sync::oneshot::channel();
        pending.put(&marks, Box::new(move |result| _ = send.send(result)));
        assert_eq!(reported.await, Ok(Ok(())));
        let (given, mut taken) = tokio::sync::mpsc::unbounded_channel();
        let mut tries = 0;
        let worker = pending.run(|batch| {
            tries += 1;
            let result = if tries == 1 {
                Err("not now".to_owned())
            } else {
                batch.into_iter().for_each(|mark| _ = given.send(mark));
                Ok(())
            };
            std::future::ready(result)
        });
        let all = async {
            let mut found = Vec::new();
            while found.len() < marks.len() {
                found.push(taken.recv().await.expect("the worker runs"));
            }
            found
        };
        let mut found = tokio::select! {
            found = all => found,
            ended = worker => panic!("{ended:?}"),
        };
        for user in 0..20 {
            let of_user: Vec<u64> = found
                .iter()
                .filter(|mark| mark.recipient == UserId(user))
                .map(|mark| mark.seq)
                .collect();
            assert!(of_user.is_sorted(), "a recipient's order");
        }
        found.sort_by_key(|mark| mark.seq);
        assert_eq!(found, marks);
    });
}
