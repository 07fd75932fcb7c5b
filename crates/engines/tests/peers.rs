//! Streams between servers, over loopback with certificates.

mod peers_cluster;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use peers_cluster::{Authority, Node, PARTITIONS, Proxy, addresses, cluster, received, until};
use tidings_core::ids::{
    ConversationId, GatewayId, MessageKey, Partition, Position, SenderId, SessionId, UserId,
};
use tidings_core::in_process::InProcessPeers;
use tidings_core::ports::peers::{Handed, Opened, Peers, ToGateway, ToRouter};
use tidings_core::record::{ConversationKind, Encoding, Kind, Role};
use tidings_core::rows::{
    Before, CursorRow, EventRow, GrantState, MemberChange, MembersBody, SenderState,
};
use tidings_core::sequencer::{Answer, Verdict};
use tidings_engines::peers::{Settings, Standing, StreamPeers};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const P: Partition = Partition(1);
const C: ConversationId = ConversationId(0xc0ffee);
const U: UserId = UserId(u64::MAX);

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn typing(user: u64) -> ToGateway {
    ToGateway::Typing {
        conversation: C,
        user: UserId(user),
        on: true,
    }
}

fn answer() -> ToGateway {
    ToGateway::Answer {
        session: SessionId(1 << 50),
        answer: Answer {
            conversation: C,
            sender: SenderId(4),
            grant: 3,
            verdict: Verdict::Fork,
            counter: 2,
            id: MessageKey(1),
            seq: 9,
            ts: 8,
            head: 10,
        },
        taken: 77,
    }
}

fn message(conversation: u64, seq: u64, body: &[u8]) -> Arc<EventRow> {
    let position = Position {
        epoch: 1,
        offset: seq + 1000,
    };
    let ts = 1_800_000_000_000_000 + seq;
    Arc::new(EventRow {
        user: UserId(conversation ^ 7),
        sender: SenderId(conversation ^ 8),
        grant: 1,
        counter: seq,
        id: MessageKey(seq ^ 9),
        before: Before::Seq(seq - 1),
        kind: Kind::Text,
        body: body.to_vec().into(),
        ..EventRow::empty(ConversationId(conversation), seq, position, ts, ts - 1)
    })
}

fn grant() -> GrantState {
    GrantState {
        grant: 3,
        role: Role::Admin,
        visible_from: 2,
        visible_to: 99,
    }
}

fn cursor() -> CursorRow {
    CursorRow {
        conversation: C,
        user: U,
        delivered: 300,
        read: 200,
    }
}

fn every_to_router() -> Vec<ToRouter> {
    vec![
        ToRouter::Open {
            request: 1,
            user: U,
            conversations: vec![C, ConversationId(0)],
        },
        ToRouter::Interest {
            request: 2,
            conversations: vec![C],
        },
        ToRouter::Close(vec![C]),
        ToRouter::Cursors(vec![cursor()]),
        ToRouter::Typing {
            conversation: C,
            user: U,
            on: true,
        },
        ToRouter::FannedOut(vec![Handed {
            conversation: C,
            seq: 8,
        }]),
        ToRouter::FannedOut(vec![]),
        ToRouter::Tail {
            request: u64::MAX,
            conversation: C,
            from: 7,
        },
    ]
}

fn every_to_gateway() -> Vec<ToGateway> {
    let members = EventRow {
        before: Before::Row(SenderState {
            grant: 1,
            counter: 2,
            id: MessageKey(3),
            seq: 4,
            ts: 5,
        }),
        kind: Kind::Members,
        encoding: Encoding::Zstd,
        members: Some(Box::new(MembersBody {
            version: 5,
            kind: ConversationKind::Channel,
            title: "Brötchen".to_owned(),
            changes: vec![MemberChange {
                user: U,
                role: Role::Reader,
                before: grant(),
            }],
        })),
        ..(*message(C.0, 5, b"")).clone()
    };
    let heads = |n| -> Arc<[_]> { vec![(C, n), (ConversationId(n), 1)].into() };
    vec![
        answer(),
        ToGateway::Event {
            row: message(C.0, 4, "schön".as_bytes()),
            except: SessionId(9),
            taken: 12,
        },
        ToGateway::Event {
            row: Arc::new(members),
            except: SessionId(0),
            taken: 0,
        },
        ToGateway::Opened {
            request: 5,
            states: vec![Opened {
                conversation: C,
                head: 3,
                kind: ConversationKind::Group,
                grant: grant(),
                cursor: cursor(),
            }],
            later: vec![C],
        },
        ToGateway::TookOver {
            partition: Partition(3),
        },
        ToGateway::Interested {
            request: 6,
            digest: 1 << 40,
            heads: heads(4),
        },
        ToGateway::Tail {
            request: 7,
            rows: vec![message(C.0, 1, b"a"), message(C.0, 2, b"")],
        },
        ToGateway::Receipts {
            conversation: C,
            cursors: vec![cursor()].into(),
        },
        typing(5),
        ToGateway::Digest {
            partition: P,
            number: 11,
            heads: heads(2),
            changes: heads(3),
        },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_reaches_the_other_server_as_it_was_sent() {
    let [a, mut b] = cluster(|_| ()).await;
    a.took_over(P, 10);
    until("b knows the owner", || b.peers.owner(P) == Some(a.server)).await;

    let router = a.router(P);
    for message in every_to_router() {
        b.peers.to_router(b.gateway(2), P, message);
    }
    let sent: Vec<_> = every_to_router()
        .into_iter()
        .map(|message| (b.gateway(2), message))
        .collect();
    assert_eq!(received(&router, sent.len()).await, sent);

    b.clear();
    let all = every_to_gateway();
    for message in &all {
        a.peers.to_gateway(P, b.gateway(1), message.clone());
        a.peers.to_gateway(P, b.gateway(2), message.clone());
    }
    a.peers.broadcast(P, typing(6));
    let with_last = |all: &[ToGateway]| [all, &[typing(6)]].concat();
    for worker in [1, 2] {
        until("all came", || b.got(worker).len() > all.len()).await;
        assert_eq!(*b.got(worker), with_last(&all), "worker {worker}");
        assert!(!b.has_lost(worker));
    }
    until("a ping is back", || {
        read(&a.metrics.round_trip_micros) > 0 && read(&b.metrics.round_trip_micros) > 0
    })
    .await;
    println!("round trips: {:?}", [&a, &b].map(|n| n.peers.links()));
    assert_eq!(b.peers.check().await, Ok(()));
}

/// What this process has run, ended threads included: hundredths of a second, user's and system's.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<_> = behind_name.split_whitespace().collect();
    [11, 12]
        .map(|at| fields[at].parse::<u64>().expect("a number"))
        .iter()
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_kept_under_load() {
    const EACH: u64 = 50_000;
    const CONVERSATIONS: u64 = 50;
    let [a, mut b] = cluster(|settings: &mut Settings| {
        settings.queue_messages = 1 << 20;
        settings.queue_bytes = 1 << 30;
    })
    .await;
    a.took_over(P, 10);
    until("b knows the owner", || b.peers.owner(P) == Some(a.server)).await;
    b.clear();
    let rows: Vec<Vec<_>> = (0..2)
        .map(|sender| {
            let row = |n| {
                message(
                    sender * 1000 + n % CONVERSATIONS,
                    1 + n / CONVERSATIONS,
                    &[b'x'; 57],
                )
            };
            (0..EACH).map(row).collect()
        })
        .collect();

    let (peers, to) = (&a.peers, b.gateway(1));
    let (began, cpu) = (Instant::now(), cpu_ticks());
    std::thread::scope(|scope| {
        for rows in &rows {
            scope.spawn(move || {
                for row in rows {
                    let event = |row| ToGateway::Event {
                        row,
                        except: SessionId(0),
                        taken: 1,
                    };
                    peers.to_gateway(P, to, event(Arc::clone(row)));
                }
            });
        }
    });
    let pushed = began.elapsed();
    until("all events came", || b.got(1).len() as u64 == 2 * EACH).await;
    let (took, cpu) = (began.elapsed(), cpu_ticks() - cpu);

    let mut next = std::collections::HashMap::new();
    for message in b.got(1) {
        let ToGateway::Event { row, .. } = message else {
            panic!("{message:?}");
        };
        let seq = next.entry(row.conversation).or_insert(0);
        *seq += 1;
        assert_eq!(row.seq, *seq);
    }
    assert!(!b.has_lost(1));
    let (events, batches) = (2.0 * EACH as f64, read(&a.metrics.batches_out));
    println!(
        "{events} events of 57 bytes: {:.0}/s, {:.2} µs CPU each on both sides and the test, put into the queue in {:.2} µs each by two threads; {:.0} a batch, {:.0} bytes each",
        events / took.as_secs_f64(),
        cpu as f64 * 1e4 / events,
        pushed.as_secs_f64() * 1e6 / events * 2.0,
        events / batches as f64,
        read(&a.metrics.bytes_out) as f64 / events,
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused() {
    let (ours, other) = (Authority::new(), Authority::new());
    let [a_at, b_at, c_at, d_at, e_at] = addresses();
    let a = Node::open(&ours.settings(a_at, &[a_at])).await;
    // A certificate of another CA, another cluster's name, another log.
    let stranger = Node::open(&other.settings(b_at, &[a_at])).await;
    // One that trusts our servers and shows its own certificate.
    let spy = Settings {
        ca: ours.settings(a_at, &[]).ca,
        ..other.settings(e_at, &[a_at])
    };
    let spy = Node::open(&spy).await;
    let mut named = ours.settings(c_at, &[a_at]);
    named.cluster = "elsewhere".to_owned();
    let named = Node::open(&named).await;
    let local = Arc::new(InProcessPeers::new(PARTITIONS + 1));
    let other_log = ours.settings(d_at, &[a_at]);
    let other_log = StreamPeers::open(&other_log, 77, PARTITIONS + 1, local)
        .await
        .expect("it opens");
    until("a knows its own address", || {
        a.peers.addresses() == [(a_at, Standing::Own)]
    })
    .await;
    for (peers, reason) in [
        (&stranger.peers, "invalid peer certificate"),
        (&spy.peers, "fatal alert"),
        (&named.peers, "peers.cluster"),
        (&other_log, "partitions"),
    ] {
        until(reason, || {
            matches!(&peers.addresses()[..], [(_, Standing::Trying(why))] if why.contains(reason))
        })
        .await;
        assert!(peers.check().await.is_err_and(|why| why.contains(reason)));
        assert_eq!(peers.links(), []);
    }
    until("all were counted", || read(&a.metrics.refused) >= 4).await;
    assert_eq!(read(&a.metrics.heard), 0);

    // Somebody without any certificate, who sends what isn't TLS.
    let before = read(&a.metrics.refused);
    let plain = Settings {
        listen: "127.0.0.1:0".to_owned(),
        servers: vec![a_at.to_string()],
        insecure_loopback: true,
        ..Settings::default()
    };
    let plain = Node::open(&plain).await;
    until("it was counted", || read(&a.metrics.refused) > before).await;
    assert_eq!((plain.peers.links(), read(&a.metrics.heard)), (vec![], 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_is_noticed_and_its_return_is_told() {
    let authority = Authority::new();
    let [a_at, b_at] = addresses();
    let (to_a, to_b) = (Proxy::to(a_at).await, Proxy::to(b_at).await);
    let a = Node::open(&authority.settings(a_at, &[to_b.address])).await;
    let mut b = Node::open(&authority.settings(b_at, &[to_a.address])).await;
    a.took_over(P, 10);
    until("b can talk to the router", || b.told_of(P) == [1, 1]).await;
    b.clear();

    let freeze = |is_frozen| [&to_a, &to_b].map(|proxy| proxy.freeze(is_frozen));
    freeze(true);
    let since = Instant::now();
    until("both have noticed", || {
        let is_gone = |node: &Node| node.peers.links().is_empty() && read(&node.metrics.heard) == 0;
        is_gone(&a) && is_gone(&b) && b.peers.owner(P).is_none()
    })
    .await;
    let noticed = since.elapsed();
    println!("noticed after {noticed:?}");
    assert!(noticed < Duration::from_secs(3));
    assert_eq!(a.peers.owner(P), Some(a.server), "its own router is here");
    a.peers.to_gateway(P, b.gateway(1), typing(1));
    b.peers.to_router(b.gateway(1), P, ToRouter::Close(vec![C]));
    assert_eq!(read(&a.metrics.to_gateway_dropped), 1);
    assert_eq!(read(&b.metrics.unowned_dropped), 1);
    assert!(a.peers.check().await.is_err());

    freeze(false);
    until("b can talk to the router again", || b.told_of(P) >= [1, 1]).await;
    assert!(b.has_lost(1) && b.has_lost(2), "what was dropped is lost");
    a.peers.to_gateway(P, b.gateway(1), typing(2));
    until("it came", || b.got(1).last() == Some(&typing(2))).await;
    assert!(!b.got(1).contains(&typing(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_is_not_heard_any_more() {
    let authority = Authority::new();
    let [a_at, b_at, c_at] = addresses();
    // The two routers don't know of each other.
    let a = Node::open(&authority.settings(a_at, &[c_at])).await;
    let b = Node::open(&authority.settings(b_at, &[c_at])).await;
    let mut c = Node::open(&authority.settings(c_at, &[a_at, b_at])).await;
    a.took_over(P, 10);
    until("c can talk to the first", || c.told_of(P) == [1, 1]).await;
    until("the first is linked", || a.peers.links().len() == 1).await;
    a.peers.to_gateway(P, c.gateway(1), typing(1));
    until("the first is heard", || c.got(1).last() == Some(&typing(1))).await;

    b.took_over(P, 10);
    until("c can talk to the second", || c.told_of(P) == [2, 2]).await;
    assert_eq!(
        (a.peers.owner(P), c.peers.owner(P)),
        (Some(a.server), Some(b.server))
    );
    a.peers.to_gateway(P, c.gateway(1), typing(2));
    a.peers.broadcast(P, typing(3));
    until("the zombie's are dropped", || {
        read(&c.metrics.stale_dropped) == 2
    })
    .await;
    b.peers.to_gateway(P, c.gateway(1), typing(4));
    until("the second is heard", || {
        c.got(1).last() == Some(&typing(4))
    })
    .await;
    assert!(!c.got(1).contains(&typing(2)) && !c.got(2).contains(&typing(3)));
    // But for what the log alone decides: the second may have begun behind it.
    a.peers.to_gateway(P, c.gateway(1), answer());
    until("its answer is heard", || c.got(1).contains(&answer())).await;

    // What a gateway asks goes to the second, and a question that strays to a router that isn't
    // there is dropped.
    let router = b.router(P);
    c.peers.to_router(c.gateway(1), P, ToRouter::Close(vec![C]));
    assert_eq!(
        received(&router, 1).await,
        [(c.gateway(1), ToRouter::Close(vec![C]))]
    );
    c.peers
        .to_router(c.gateway(1), Partition(2), ToRouter::Close(vec![C]));
    assert_eq!(read(&c.metrics.unowned_dropped), 1);

    // An owner's end brings no former one back.
    b.peers.shutdown().await;
    until("c has heard it", || c.peers.owner(P).is_none()).await;
    a.peers.to_gateway(P, c.gateway(1), typing(5));
    until("still dropped", || read(&c.metrics.stale_dropped) == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_was_overtaken_is_silenced_at_its_own_server() {
    let [mut a, mut b] = cluster(|_| ()).await;
    a.took_over(P, 10);
    until("b has heard it", || b.peers.owner(P) == Some(a.server)).await;
    b.took_over(P, 11);
    until("a has heard it", || a.told_of(P) == [2, 2]).await;
    a.clear();
    a.peers.to_gateway(P, a.gateway(1), typing(1));
    a.peers.to_gateway(P, b.gateway(1), typing(1));
    a.peers.broadcast(P, typing(1));
    assert_eq!(read(&a.metrics.stale_dropped), 3);
    a.took_over(P, 9);
    a.peers.broadcast(P, typing(1));
    assert_eq!(
        read(&a.metrics.stale_dropped),
        4,
        "an earlier end of the log is an earlier term"
    );
    assert_eq!(a.peers.owner(P), Some(b.server));
    a.peers.resigned(P);
    b.peers.broadcast(P, typing(2));
    until("the owner is heard", || a.got(2).last() == Some(&typing(2))).await;
    assert_eq!(*a.got(1), [typing(2)]);
    assert!(!b.got(1).contains(&typing(1)));

    // It claimed the partition late and finds out: the owner is heard again.
    a.took_over(P, 12);
    until("b has heard it", || b.peers.owner(P) == Some(a.server)).await;
    a.peers.resigned(P);
    until("b is the owner again", || {
        a.peers.owner(P) == Some(b.server)
    })
    .await;
    b.peers.broadcast(P, typing(3));
    until("the owner is heard", || a.got(2).last() == Some(&typing(3))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_dropped_counted_and_told() {
    const SENT: u64 = 200_000;
    let [a, mut b] = cluster(|settings: &mut Settings| settings.queue_messages = 100).await;
    a.took_over(P, 10);
    until("b knows the owner", || b.peers.owner(P) == Some(a.server)).await;
    b.clear();
    for n in 0..SENT {
        a.peers.to_gateway(P, b.gateway(1), typing(n));
    }
    let dropped = read(&a.metrics.to_gateway_dropped);
    assert!(dropped > 0, "the test is too slow to fill a queue");
    until("the rest came", || b.got(1).len() as u64 == SENT - dropped).await;
    let users: Vec<_> = b
        .got(1)
        .iter()
        .map(|m| match m {
            ToGateway::Typing { user, .. } => user.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(users.is_sorted(), "the rest in order");
    // The loss may have been behind the last that fitted.
    a.peers.to_gateway(P, b.gateway(1), typing(SENT));
    until("the last came", || b.got(1).last() == Some(&typing(SENT))).await;
    assert!(b.has_lost(1) && b.has_lost(2));
    assert!(read(&b.metrics.losses_heard) > 0);
    a.peers.to_gateway(P, b.gateway(1), typing(SENT + 1));
    until("one more", || b.got(1).last() == Some(&typing(SENT + 1))).await;
    assert!(!b.has_lost(1), "told once");
}

#[tokio::test]
async fn what_cannot_be_read_ends_the_connection_and_is_counted() {
    let [at, nobody] = addresses();
    let plain = Settings {
        listen: at.to_string(),
        servers: vec![nobody.to_string()],
        cluster: "x".to_owned(),
        insecure_loopback: true,
        ..Settings::default()
    };
    let a = Node::open(&plain).await;
    // Kind, magic, versions, cluster, server, start, partitions.
    let mut magic = Vec::new();
    tidings_core::varint::put(&mut magic, 0x7469_6469);
    let hello = [&[1], &magic[..], &[1, 1, 1, b'x', 9, 5, PARTITIONS as u8]].concat();
    let unknown_frame = [0, 0, 0, 1, 99];
    let unknown_item = [0, 0, 0, 7, 3, 0, 1, 0, 0, 0, 99];
    let cut_item = [0, 0, 0, 8, 3, 0, 2, 0, 0, 0, 2, 0x80];
    let more_than_an_item = [0, 0, 0, 9, 3, 0, 3, 0, 0, 0, 2, 1, 1];
    let item_too_long = [0, 0, 0, 8, 3, 0, 9, 0, 0, 0, 2, 1];
    let no_such_partition = [0, 0, 0, 11, 3, 0, 5, 0, 0, 0, 1, 77, 1, 1, 1];
    let too_long = [0x7f, 0xff, 0xff, 0xff];
    let bad: [&[u8]; 7] = [
        &unknown_frame,
        &unknown_item,
        &cut_item,
        &more_than_an_item,
        &item_too_long,
        &no_such_partition,
        &too_long,
    ];
    for (n, bytes) in bad.into_iter().enumerate() {
        let mut stream = tokio::net::TcpStream::connect(at)
            .await
            .expect("it listens");
        let length = (hello.len() as u32).to_be_bytes();
        let ping = [0, 0, 0, 9, 4, 0, 0, 0, 0, 0, 0, 0, 0];
        let all = [&length, &hello[..], &ping, bytes].concat();
        stream.write_all(&all).await.expect("it reads");
        let mut answered = Vec::new();
        let closed = stream.read_to_end(&mut answered);
        _ = tokio::time::timeout(Duration::from_millis(1900), closed)
            .await
            .expect("closed before it is silent for too long");
        assert_eq!(answered[4], 1, "a hello");
        until("it was counted", || {
            read(&a.metrics.bad_frames) == n as u64 + 1
        })
        .await;
    }
    until("nobody is heard", || read(&a.metrics.heard) == 0).await;
    assert_eq!(read(&a.metrics.silent), 0);
}

/// A server of version 2, which no release speaks yet, sends what it brings in spite of what was agreed.
#[tokio::test]
async fn what_only_a_later_release_knows_is_passed_over() {
    let [at, nobody] = addresses();
    let plain = Settings {
        listen: at.to_string(),
        servers: vec![nobody.to_string()],
        cluster: "x".to_owned(),
        insecure_loopback: true,
        ..Settings::default()
    };
    let a = Node::open(&plain).await;
    let mut magic = Vec::new();
    tidings_core::varint::put(&mut magic, 0x7469_6469);
    let hello = [&[1], &magic[..], &[1, 2, 1, b'x', 9, 5, PARTITIONS as u8]].concat();
    let length = (hello.len() as u32).to_be_bytes();
    let unknown_frame = [0, 0, 0, 3, 99, 1, 2];
    // An unknown item, a take-over of partition 2 with two fields more, and another unknown item.
    let items = [
        &[2, 0, 0, 0, 99, 1][..],
        &[7, 0, 0, 0, 1, 2, 1, 1, 1, 8, 9],
        &[1, 0, 0, 0, 77],
    ]
    .concat();
    let batch = [&[0, 0, 0, items.len() as u8 + 2, 3, 0][..], &items].concat();
    let mut stream = tokio::net::TcpStream::connect(at)
        .await
        .expect("it listens");
    let all = [&length, &hello[..], &unknown_frame, &batch].concat();
    stream.write_all(&all).await.expect("it reads");
    until("what it knows was taken", || {
        a.peers.owner(Partition(2)) == Some(9)
    })
    .await;
    until("the rest was counted", || {
        read(&a.metrics.unknown_skipped) == 3
    })
    .await;
    assert_eq!(
        (read(&a.metrics.bad_frames), read(&a.metrics.heard)),
        (0, 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_of_two_releases_speak_what_both_know() {
    let authority = Authority::new();
    let addresses: [_; 3] = addresses();
    let mut nodes = Vec::new();
    for (listen, versions) in addresses.into_iter().zip([1..=1, 1..=2, 1..=2]) {
        let settings = authority.settings(listen, &addresses);
        nodes.push(Node::open_as(&settings, versions).await);
    }
    for node in &nodes {
        until("all are linked", || node.peers.links().len() == 2).await;
    }
    let [mut old, mut new, newer] = <[Node; 3]>::try_from(nodes).ok().expect("three");
    let spoken = |of: &Node, with: &Node| {
        let links = of.peers.links();
        let link = links.iter().find(|link| link.server == with.server);
        link.expect("linked").version
    };
    assert_eq!((spoken(&old, &new), spoken(&new, &old)), (1, 1));
    assert_eq!((spoken(&new, &newer), spoken(&newer, &new)), (2, 2));

    // The new server's router with the old one's gateway, and the other way round.
    new.took_over(P, 10);
    old.took_over(Partition(2), 10);
    until("each knows the other's", || {
        old.peers.owner(P) == Some(new.server) && new.peers.owner(Partition(2)) == Some(old.server)
    })
    .await;
    all_is_said_between(&mut old, &new, P).await;
    all_is_said_between(&mut new, &old, Partition(2)).await;
}

/// Every message there is, from a server's gateway to another's router and back.
async fn all_is_said_between(gateway: &mut Node, router: &Node, partition: Partition) {
    gateway.clear();
    let (worker, inbox) = (gateway.gateway(1), router.router(partition));
    for message in every_to_router() {
        gateway.peers.to_router(worker, partition, message);
    }
    let asked = every_to_router().into_iter().map(|m| (worker, m));
    let asked: Vec<_> = asked.collect();
    assert_eq!(received(&inbox, asked.len()).await, asked);
    let said = every_to_gateway();
    for message in &said {
        router.peers.to_gateway(partition, worker, message.clone());
    }
    until("all came", || gateway.got(1).len() >= said.len()).await;
    assert_eq!(*gateway.got(1), said);
    assert!(!gateway.has_lost(1));
    for node in [&*gateway, router] {
        assert_eq!(read(&node.metrics.unknown_skipped), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_two_releases_apart_refuse_each_other_and_say_what_to_do() {
    let authority = Authority::new();
    let [a_at, b_at] = addresses();
    let old = Node::open(&authority.settings(a_at, &[b_at])).await;
    let new = Node::open_as(&authority.settings(b_at, &[a_at]), 2..=3).await;
    for node in [&old, &new] {
        until("each says why", || {
            matches!(&node.peers.addresses()[..], [(_, Standing::Trying(why))]
                if why.contains("versions") && why.contains("upgrade one release at a time"))
        })
        .await;
        assert_eq!(node.peers.links(), []);
    }
    until("both were counted", || {
        read(&old.metrics.refused) > 0 && read(&new.metrics.refused) > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_gateways_hear_of_a_new_router_and_drains_are_known_at_once() {
    let [mut a, mut b, mut c] = cluster(|_| ()).await;
    a.took_over(P, 10);
    a.took_over(Partition(2), 10);
    for node in [&mut a, &mut b, &mut c] {
        until("told", || node.told_of(P) == [1, 1]).await;
        until("told", || node.told_of(Partition(2)) == [1, 1]).await;
    }
    a.peers.broadcast(P, typing(1));
    let since = Instant::now();
    a.peers.shutdown().await;
    for node in [&mut b, &mut c] {
        until("what was queued came", || {
            node.got(2).last() == Some(&typing(1))
        })
        .await;
        until("nobody owns it", || node.peers.owner(P).is_none()).await;
        until("not heard", || read(&node.metrics.heard) == 1).await;
    }
    assert!(
        since.elapsed() < Duration::from_millis(1500),
        "{:?}",
        since.elapsed()
    );
    b.took_over(P, 12);
    for node in [&mut b, &mut c] {
        until("told again", || node.told_of(P) == [2, 2]).await;
    }
}

#[tokio::test]
async fn alone_it_is_as_in_one_process() {
    let local = Arc::new(InProcessPeers::new(PARTITIONS));
    let inbox = local.add_gateway(GatewayId::new(5, 1), Box::new(|| ()));
    let router = local.router_inbox(P).expect("a partition");
    let peers = StreamPeers::open(&Settings::default(), 5, PARTITIONS, local)
        .await
        .expect("it opens");
    peers.took_over(P, Position::default());
    peers.to_router(GatewayId::new(5, 1), P, ToRouter::Close(vec![C]));
    assert_eq!(received(&router, 1).await.len(), 1);
    peers.to_gateway(P, GatewayId::new(5, 1), typing(1));
    let mut got = Vec::new();
    assert!(!inbox.take(&mut got));
    assert_eq!(got, [ToGateway::TookOver { partition: P }, typing(1)]);
    assert_eq!((peers.listening(), peers.check().await), (None, Ok(())));
}

#[tokio::test]
async fn what_cannot_work_is_said_at_the_start() {
    let authority = Authority::new();
    let [at, taken] = addresses();
    let good = authority.settings(at, &[at]);
    let held = std::net::TcpListener::bind(taken).expect("it was free");
    let other_key = authority.settings(taken, &[at]).key;
    type Change<'a> = &'a dyn Fn(&mut Settings);
    let bad: [(&str, bool, Change<'_>); 7] = [
        ("peers.certificate", false, &|s| {
            s.certificate = String::new()
        }),
        ("peers.certificate", false, &|s| {
            s.certificate = s.key.clone()
        }),
        ("peers.key", false, &|s| s.key = "/nowhere".to_owned()),
        ("peers.key", false, &|s| s.key = other_key.clone()),
        ("peers.ca", false, &|s| s.ca = String::new()),
        ("peers.server_name", false, &|s| {
            s.server_name = "a b".to_owned()
        }),
        ("peers.listen", true, &|s| s.listen = taken.to_string()),
    ];
    for (setting, may_pass, change) in bad {
        let mut settings = good.clone();
        change(&mut settings);
        let local = Arc::new(InProcessPeers::new(PARTITIONS));
        let Err(error) = StreamPeers::open(&settings, 5, PARTITIONS, local).await else {
            panic!("{setting} is taken as it is");
        };
        assert_eq!(
            (error.setting, error.may_pass),
            (setting, may_pass),
            "{error}"
        );
    }
    drop(held);
}
