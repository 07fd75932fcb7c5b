//! What a real chat log takes in the embedded store, and what writing and reading it costs.
//!
//! ```text
//! cargo run --release -p tidings-backends --example store_bytes -- ubuntu-irc.jsonl.gz
//! ```
//!
//! The file has one JSON object a line, messages with `nick` and `text`. They are played as a
//! server would store them: one conversation, a user, an outbox and a join for each nick, random
//! ids, times some tenths of a millisecond apart, state rows and cursors. Prints a table over
//! codecs and block sizes, then the columns of the default.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidings_backends::disk::{Rng, SimDisk};
use tidings_backends::lsm::{Codec, LsmStore, Options};
use tidings_core::ids::{ConversationId, MessageKey, Partition, Position, SenderId, Seq, UserId};
use tidings_core::ports::store::Store;
use tidings_core::record::{ConversationKind, Encoding, Kind, Role};
use tidings_core::rows::{
    Before, CursorRow, EventRow, GrantState, HeadState, MemberChange, MembersBody, SenderState,
    StateKey, StateRow, StateValue,
};

const P: Partition = Partition(0);
const ROOM: ConversationId = ConversationId(0x5bd1_e995_97f4_a7c1);
/// Rows put by one call, as a router does that reads records in batches.
const BATCH: usize = 64;
/// A page as a client asks for.
const PAGE: u64 = 200;

type Failure = Box<dyn std::error::Error>;

/// What one record leaves.
struct Step {
    event: EventRow,
    state: [StateRow; 2],
}

fn main() -> Result<(), Failure> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: store_bytes FILE.jsonl.gz")?;
    let messages = read(&path)?;
    let text: usize = messages.iter().map(|(_, text)| text.len()).sum();
    println!(
        "{} messages, {:.1} bytes of text each",
        messages.len(),
        text as f64 / messages.len() as f64
    );
    println!(
        "\n| zstd | block KiB | bytes a message | write µs: put | write µs: flush and merge | read µs, pages of {PAGE} | one row µs |"
    );
    println!("|---|---|---|---|---|---|---|");
    for level in [1, 3, 9] {
        for block_kib in [16, 32, 64, 128] {
            measure(
                &messages,
                Codec {
                    block_bytes: block_kib << 10,
                    level,
                },
                false,
            )?;
        }
    }
    measure(&messages, Options::default().codec, true)
}

fn read(path: &str) -> Result<Vec<(String, String)>, Failure> {
    let mut messages = Vec::new();
    for line in BufReader::new(flate2::read::GzDecoder::new(std::fs::File::open(path)?)).lines() {
        let line: serde_json::Value = serde_json::from_str(&line?)?;
        if let (Some(nick), Some(text)) = (line["nick"].as_str(), line["text"].as_str()) {
            messages.push((nick.to_owned(), text.to_owned()));
        }
    }
    Ok(messages)
}

/// The rows of the whole log.
fn steps(messages: &[(String, String)]) -> Vec<Step> {
    let mut rng = Rng::new(1);
    let mut nicks: HashMap<&str, (UserId, SenderState, SenderId)> = HashMap::new();
    let mut head = HeadState {
        kind: ConversationKind::Group,
        ts: 1_790_000_000_000_000,
        ..HeadState::default()
    };
    let mut steps = Vec::new();
    let mut offset = 1000;
    for (nick, text) in messages {
        let (user, sender, outbox) = nicks.entry(nick).or_insert_with(|| {
            let user = UserId(rng.next_u64());
            let join = join(user, &mut head, &mut offset, &mut rng);
            let sender = SenderState {
                grant: join.event.seq,
                ..SenderState::default()
            };
            steps.push(join);
            (user, sender, SenderId(rng.next_u64()))
        });
        let place = next(&mut head, &mut offset, &mut rng);
        let before = if sender.seq == 0 {
            Before::Nothing
        } else {
            Before::Seq(sender.seq)
        };
        *sender = SenderState {
            counter: sender.counter + 1,
            id: MessageKey(rng.next_u64()),
            seq: head.seq,
            ts: head.ts,
            ..*sender
        };
        let event = EventRow {
            user: *user,
            sender: *outbox,
            grant: sender.grant,
            counter: sender.counter,
            id: sender.id,
            before,
            body: Bytes::copy_from_slice(text.as_bytes()),
            ..place
        };
        let row = StateValue::Sender(*sender);
        steps.push(Step {
            state: state(&event, head, StateKey::Sender(*user, *outbox), row),
            event,
        });
    }
    steps
}

/// An event row with the next place in the conversation and nothing in it.
fn next(head: &mut HeadState, offset: &mut u64, rng: &mut Rng) -> EventRow {
    let ts_before = if head.seq == 0 { 0 } else { head.ts };
    *offset += 1;
    head.seq += 1;
    head.ts += 100 + rng.below(900);
    EventRow {
        conversation: ROOM,
        seq: head.seq,
        position: Position {
            epoch: 1,
            offset: *offset,
        },
        ts: head.ts,
        ts_before,
        user: UserId(0),
        sender: SenderId(0),
        grant: 0,
        counter: 0,
        id: MessageKey(0),
        before: Before::Nothing,
        kind: Kind::Text,
        encoding: Encoding::Identity,
        body: Bytes::new(),
        members: None,
    }
}

fn join(user: UserId, head: &mut HeadState, offset: &mut u64, rng: &mut Rng) -> Step {
    head.version += 1;
    head.members += 1;
    let place = next(head, offset, rng);
    let change = MemberChange {
        user,
        role: Role::Member,
        before: GrantState::default(),
    };
    let members = MembersBody {
        version: head.version,
        kind: ConversationKind::Group,
        title: "ubuntu".into(),
        changes: vec![change],
    };
    let event = EventRow {
        user,
        kind: Kind::Members,
        members: Some(Box::new(members)),
        ..place
    };
    let grant = GrantState {
        grant: head.seq,
        role: Role::Member,
        visible_from: 1,
        visible_to: 0,
    };
    Step {
        state: state(
            &event,
            *head,
            StateKey::Grant(user),
            StateValue::Grant(grant),
        ),
        event,
    }
}

fn state(event: &EventRow, head: HeadState, key: StateKey, value: StateValue) -> [StateRow; 2] {
    let row = |key, value| StateRow {
        conversation: ROOM,
        key,
        position: event.position,
        ts: event.ts,
        value,
    };
    [row(StateKey::Head, StateValue::Head(head)), row(key, value)]
}

fn measure(messages: &[(String, String)], codec: Codec, columns: bool) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let steps = steps(messages);
    let count = messages.len() as f64;
    let head = steps.last().map_or(0, |s| s.event.seq);
    // Flushed below, so that its time is told apart from that of the puts.
    let options = Options {
        codec,
        threads: false,
        flush_bytes: usize::MAX,
        ..Options::default()
    };
    let store = LsmStore::open(Arc::new(SimDisk::new()), options)?;

    let began = cpu();
    let mut users: HashMap<UserId, Seq> = HashMap::new();
    let mut putting = Duration::ZERO;
    let mut since_flush = 0;
    let mut steps = steps.into_iter();
    while steps.len() > 0 {
        let batch: Vec<Step> = steps.by_ref().take(BATCH).collect();
        let end = batch
            .last()
            .map(|s| s.event.position.next())
            .unwrap_or_default();
        users.extend(batch.iter().map(|s| (s.event.user, s.event.seq)));
        let (events, state): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|s| (s.event, s.state)).unzip();
        let state = state.into_iter().flatten().collect();
        let put = cpu();
        runtime.block_on(async {
            store.put_events(P, events).await?;
            store.put_state(P, state).await?;
            store.settle(P, end).await
        })?;
        putting += cpu() - put;
        since_flush += BATCH;
        if since_flush >= 50_000 {
            since_flush = 0;
            store.flush()?;
        }
    }
    let cursors = users
        .keys()
        .map(|user| CursorRow {
            conversation: ROOM,
            user: *user,
            delivered: head,
            read: head - 10,
        })
        .collect();
    runtime.block_on(store.put_cursors(P, cursors))?;
    store.compact_all()?;
    let written = cpu() - began - putting;
    let bytes = store.figures().segment_bytes;

    let began = cpu();
    let mut from = 1;
    let mut read = 0;
    while from <= head {
        let page = runtime.block_on(store.read_events(ROOM, from, from + PAGE - 1, usize::MAX))?;
        read += page.len();
        from += PAGE;
    }
    let reading = cpu() - began;
    assert_eq!(read as u64, head, "everything that was put is read");

    let mut rng = Rng::new(2);
    let began = cpu();
    for _ in 0..2000 {
        let seq = 1 + rng.below(head);
        runtime.block_on(store.read_events(ROOM, seq, seq, usize::MAX))?;
    }
    let single = cpu() - began;
    let per = |time: Duration| time.as_secs_f64() * 1e6 / count;
    println!(
        "| {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} |",
        codec.level,
        codec.block_bytes >> 10,
        bytes as f64 / count,
        per(putting),
        per(written),
        per(reading),
        single.as_secs_f64() * 1e6 / 2000.0
    );
    if columns {
        println!("\n| column | bytes a message |\n|---|---|");
        for (name, bytes) in store.column_bytes()? {
            if bytes > 0 {
                println!("| {name} | {:.3} |", bytes as f64 / count);
            }
        }
    }
    Ok(())
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec of ours that the call fills.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
