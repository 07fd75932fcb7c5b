//! The store on a real Cassandra of three nodes (`cluster/stack up cassandra`).

#[path = "cassandra/lost.rs"]
mod lost;
#[path = "cassandra/support.rs"]
mod support;
#[path = "stack/way.rs"]
mod way;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use support::{NODES, Proxies, admin, fresh_name, with_keyspace};
use tidings_core::conformance;
use tidings_core::ids::{ConversationId, Partition, Position, Seq, UserId};
use tidings_core::ports::store::{Store, StoreError};
use tidings_core::record::Kind;
use tidings_core::rows::{CursorRow, EventRow, HeadState, StateKey, StateRow, StateValue};
use tidings_engines::cassandra::{CassandraStore, SCHEMA, Settings, migrate};

const P: Partition = Partition(3);
const C: ConversationId = ConversationId(u64::MAX - 11);
const ALL: usize = usize::MAX;

fn at(offset: u64) -> Position {
    Position { epoch: 1, offset }
}

fn ts(seq: Seq) -> u64 {
    1_790_000_000_000_000 + seq * 1_000
}

fn event(seq: Seq) -> EventRow {
    let mut row = EventRow::empty(C, seq, at(seq * 2), ts(seq), ts(seq - 1));
    row.user = UserId(8);
    row.kind = Kind::Text;
    row.body = Bytes::from(format!("text {seq}"));
    row
}

fn head(seq: Seq) -> StateRow {
    StateRow {
        conversation: C,
        key: StateKey::Head,
        position: at(seq * 2),
        ts: ts(seq),
        value: StateValue::Head(HeadState {
            seq,
            ts: ts(seq),
            ..HeadState::default()
        }),
    }
}

async fn open(settings: &Settings) -> CassandraStore {
    CassandraStore::open(settings.clone())
        .await
        .expect("the store opens")
}

async fn put(store: &CassandraStore, seqs: impl IntoIterator<Item = Seq>) {
    let rows = seqs.into_iter().map(event).collect();
    store.put_events(P, rows).await.expect("events are put");
}

#[test]
fn it_keeps_what_every_store_promises() {
    with_keyspace(|settings| async move {
        let store = open(&settings).await;
        conformance::store::all(&store, 1).await;
        assert_eq!(store.settle(P, at(77)).await, Ok(at(77)));
        let metrics = store.metrics();
        assert!(metrics.writes.requests.load(Ordering::Relaxed) > 0);
        assert_eq!(metrics.writes.errors.load(Ordering::Relaxed), 0);
        assert_eq!(metrics.reads.errors.load(Ordering::Relaxed), 0);
    });
}

/// A new owner and a zombie: each writes the same records, one of them long after the other.
#[test]
fn the_later_record_stays_though_another_server_writes_late() {
    with_keyspace(|settings| async move {
        let (new, zombie) = (open(&settings).await, open(&settings).await);
        for seq in (1..=40).rev() {
            let store = if seq % 2 == 0 { &new } else { &zombie };
            store.put_state(P, vec![head(seq)]).await.expect("put");
            let found = new.read_state(C, vec![StateKey::Head]).await.expect("read");
            assert_eq!(found, [Some(head(40))], "after {seq} came late");
        }
        let side_by_side = (1..=60).map(|seq| {
            let store = if seq % 2 == 0 { &new } else { &zombie };
            store.put_state(P, vec![head(seq)])
        });
        for result in join_all(side_by_side).await {
            result.expect("put");
        }
        let found = zombie.read_state(C, vec![StateKey::Head]).await;
        assert_eq!(found, Ok(vec![Some(head(60))]));
    });
}

#[test]
fn a_cursor_never_goes_back_whichever_server_writes_last() {
    with_keyspace(|settings| async move {
        let (one, other) = (open(&settings).await, open(&settings).await);
        let cursor = |user, delivered, read| CursorRow {
            conversation: C,
            user: UserId(user),
            delivered,
            read,
        };
        one.put_cursors(P, vec![cursor(1, 90, 50), cursor(2, 7, 0)])
            .await
            .expect("put");
        for n in (1..90).rev() {
            let late = vec![cursor(1, n, n.min(49)), cursor(2, 1, 0)];
            other.put_cursors(P, late).await.expect("put");
        }
        // More users than one request names, in another order than they are stored.
        let users = (1..=250).rev().map(UserId).collect();
        let found = one.read_cursors(C, users).await;
        assert_eq!(found, Ok(vec![cursor(2, 7, 0), cursor(1, 90, 50)]));
    });
}

#[test]
fn a_thousand_readers_of_one_page_are_one_read() {
    with_keyspace(|settings| async move {
        let store = open(&settings).await;
        put(&store, 1..=100).await;
        let before = store.metrics().reads.requests.load(Ordering::Relaxed);
        let readers = (0..1_000).map(|_| store.read_events(C, 1, 100, ALL));
        let expected: Vec<EventRow> = (1..=100).map(event).collect();
        for page in join_all(readers).await {
            assert_eq!(page.expect("read"), expected);
        }
        let metrics = store.metrics();
        let requests = metrics.reads.requests.load(Ordering::Relaxed) - before;
        assert_eq!(requests, 1);
        assert_eq!(metrics.coalesced.load(Ordering::Relaxed), 999);
    });
}

/// The older read has its answer from before the put, but hasn't been looked at.
#[test]
fn a_reader_who_joins_an_older_read_sees_what_was_put_in_between() {
    with_keyspace(|settings| async move {
        let store = open(&settings).await;
        put(&store, 1..=9).await;
        let mut older = store.read_events(C, 1, Seq::MAX, ALL);
        assert!(futures_util::poll!(&mut older).is_pending());
        for seq in 10..=14 {
            put(&store, [seq]).await;
        }
        let newer = store.read_events(C, 1, Seq::MAX, ALL).await.expect("read");
        assert_eq!(newer.len(), 14);
        assert_eq!(store.metrics().coalesced.load(Ordering::Relaxed), 1);
        assert!(older.await.is_ok());
    });
}

/// Buckets whose events have expired are passed over; the head row says how far to look.
#[test]
fn events_are_found_behind_expired_ones() {
    with_keyspace(|settings| async move {
        let store = open(&settings).await;
        put(&store, 44_990..=45_010).await;
        store.put_state(P, vec![head(44_995)]).await.expect("put");
        let expected: Vec<EventRow> = (44_990..=45_010).map(event).collect();
        let all = store.read_events(C, 1, Seq::MAX, ALL).await;
        assert_eq!(all, Ok(expected.clone()));
        let since = store.read_events_since(C, at(1)).await;
        assert_eq!(since, Ok(expected.clone()));
        let since = store.read_events_since(C, at(44_998 * 2 + 1)).await;
        assert_eq!(since, Ok(expected[9..].to_vec()));
    });
}

/// What a redaction writes, and what it leaves when the event expires before it.
#[test]
fn an_overwritten_body_stays_and_a_body_alone_is_no_event() {
    with_keyspace(|settings| async move {
        let store = open(&settings).await;
        put(&store, 1..=4).await;
        let admin = admin().await;
        for seq in [2, 5] {
            let redact = format!(
                "UPDATE {}.events USING TIMESTAMP {} SET body = 0x \
                 WHERE conversation = {} AND bucket = 0 AND seq = {seq}",
                settings.keyspace,
                ts(9),
                C.0 as i64
            );
            admin.query_unpaged(redact, ()).await.expect("overwritten");
        }
        put(&store, 1..=4).await;
        let found = store.read_events(C, 1, 9, ALL).await.expect("read");
        let bodies: Vec<&[u8]> = found.iter().map(|row| &row.body[..]).collect();
        assert_eq!(bodies, [&b"text 1"[..], b"", b"text 3", b"text 4"]);
        assert_eq!(found[1].ts, ts(2));
    });
}

#[test]
fn damaged_rows_are_named() {
    with_keyspace(|settings| async move {
        let store = open(&settings).await;
        put(&store, 1..=3).await;
        let (keyspace, c) = (&settings.keyspace, C.0 as i64);
        let admin = admin().await;
        for damage in [
            format!(
                "UPDATE {keyspace}.events SET meta = 0x0102 WHERE conversation = {c} AND bucket = 0 AND seq = 2"
            ),
            format!(
                "INSERT INTO {keyspace}.state (conversation, key, value) VALUES ({c}, 0x00, 0x01)"
            ),
        ] {
            admin.query_unpaged(damage, ()).await.expect("damaged");
        }
        let is_named = |error: StoreError, key: &str| {
            let StoreError::Corrupt(reason) = error else {
                panic!("{error:?}")
            };
            assert!(
                reason.contains(key) && reason.contains(&C.to_string()),
                "{reason}"
            );
        };
        let page = store.read_events(C, 1, 3, ALL).await;
        is_named(page.expect_err("damaged"), "event 2");
        let head = store.read_state(C, vec![StateKey::Head]).await;
        is_named(head.expect_err("damaged"), "Head");
    });
}

/// A node that hangs without closing its connections costs no call more than a second attempt;
/// when all do, calls end in time.
#[test]
fn frozen_nodes_hold_no_call_beyond_its_time() {
    with_keyspace(|settings| async move {
        let proxies = Proxies::start().await;
        let store = open(&Settings {
            hosts: proxies.hosts(),
            address_map: proxies.address_map(),
            request_timeout_ms: 2_000,
            speculative_write_ms: 200,
            ..settings
        })
        .await;
        put(&store, 1..=20).await;
        proxies.freeze(1);
        let before = store.metrics().speculative.load(Ordering::Relaxed);
        for seq in 1..=20 {
            put(&store, [20 + seq]).await;
            let found = store.read_events(C, seq, seq, ALL).await;
            assert_eq!(found, Ok(vec![event(seq)]));
        }
        assert!(store.metrics().speculative.load(Ordering::Relaxed) > before);

        for node in 0..NODES {
            proxies.freeze(node);
        }
        let begun = Instant::now();
        let (read, written, cursors, state, since) = tokio::join!(
            store.read_events(C, 1, 9, ALL),
            store.put_events(P, (1..=9).map(event).collect()),
            store.read_cursors(C, vec![UserId(1)]),
            store.put_state(P, vec![head(9)]),
            store.read_events_since(C, at(0)),
        );
        for failed in [
            read.err(),
            written.err(),
            cursors.err(),
            state.err(),
            since.err(),
        ] {
            assert!(
                matches!(failed, Some(StoreError::Unavailable(_))),
                "{failed:?}"
            );
        }
        assert!(begun.elapsed() < Duration::from_millis(2_500));
        assert!(store.check().await.is_err());
        assert!(store.metrics().reads.timeouts.load(Ordering::Relaxed) >= 3);
    });
}

#[test]
fn each_start_error_names_its_setting() {
    with_keyspace(|good| async move {
        let error = |settings: Settings| async {
            let opened = CassandraStore::open(settings).await;
            opened.err().expect("it can't be opened")
        };
        let nobody = error(Settings {
            hosts: vec!["127.0.0.1:1".into()],
            ..good.clone()
        })
        .await;
        assert_eq!((nobody.setting, nobody.may_pass), ("cassandra.hosts", true));
        assert!(nobody.reason.contains("127.0.0.1:1"), "{nobody}");

        let missing = error(Settings {
            keyspace: "tidings_is_not_there".into(),
            ..good.clone()
        })
        .await;
        assert_eq!(
            (missing.setting, missing.may_pass),
            ("cassandra.keyspace", false)
        );
        assert!(missing.reason.contains("tidings migrate"), "{missing}");

        let elsewhere = error(Settings {
            local_datacenter: "dc9".into(),
            ..good.clone()
        })
        .await;
        assert_eq!(elsewhere.setting, "cassandra.local_datacenter");
        assert!(elsewhere.reason.contains("dc1"), "{elsewhere}");

        let copies = error(Settings {
            replication_factor: 5,
            ..good.clone()
        })
        .await;
        assert_eq!(copies.setting, "cassandra.replication_factor");
        let no_room = migrate(&Settings {
            keyspace: fresh_name(),
            replication_factor: 5,
            ..good.clone()
        })
        .await;
        let no_room = no_room.expect_err("there are three nodes");
        assert_eq!(no_room.setting, "cassandra.replication_factor");

        let forgets = error(Settings {
            events_ttl_days: 30,
            ..good.clone()
        })
        .await;
        assert_eq!(forgets.setting, "cassandra.events_ttl_days");

        let no_tls = error(Settings {
            tls: true,
            tls_ca_file: "/nowhere/ca.pem".into(),
            ..good.clone()
        })
        .await;
        assert_eq!(no_tls.setting, "cassandra.tls_ca_file");

        // Versions: none, and one that left this program behind.
        let admin = admin().await;
        let keyspace = good.keyspace.clone();
        let set = |version: i32, compatible: i32| {
            format!(
                "INSERT INTO {keyspace}.schema_version (id, version, compatible_from) VALUES (0, {version}, {compatible})"
            )
        };
        for (statement, advice) in [
            (set(SCHEMA + 5, SCHEMA + 1), Some("upgrade")),
            (set(SCHEMA + 5, SCHEMA), None),
            (set(SCHEMA - 1, 0), Some("tidings migrate")),
            (
                format!("TRUNCATE {keyspace}.schema_version"),
                Some("tidings migrate"),
            ),
        ] {
            admin.query_unpaged(statement, ()).await.expect("changed");
            match (CassandraStore::open(good.clone()).await, advice) {
                (Ok(store), None) => assert_eq!(store.check().await, Ok(())),
                (Err(error), Some(advice)) => {
                    assert_eq!(error.setting, "cassandra.keyspace");
                    assert!(error.reason.contains(advice), "{error}");
                }
                (opened, _) => panic!("{:?}", opened.err()),
            }
        }
    });
}

#[test]
fn migrating_again_changes_only_what_the_settings_do() {
    with_keyspace(|settings| async move {
        let nothing: Vec<String> = Vec::new();
        assert_eq!(migrate(&settings).await, Ok(nothing.clone()));
        let for_ever = Settings {
            events_ttl_days: 0,
            ..settings
        };
        let done = migrate(&for_ever).await.expect("migrated");
        assert!(
            matches!(done.as_slice(), [line] if line.contains("expire")),
            "{done:?}"
        );
        assert_eq!(migrate(&for_ever).await, Ok(nothing));
    });
}
