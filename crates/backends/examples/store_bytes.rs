//! What a real chat log takes in the embedded store, and what writing and reading it costs.
//!
//! ```text
//! cargo run --release -p tidings-backends --example store_bytes -- ubuntu-irc.jsonl.gz
//! ```
//!
//! The file has one JSON object a line, messages with `nick` and `text`. They are played as a
//! server would store them: a user, an outbox and a join for each nick, random ids, times some
//! tenths of a millisecond apart, state rows and cursors. First all in one conversation: a table
//! over codecs and block sizes, then the columns of the default. Then the texts dealt out to many
//! direct conversations, two users each.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidings_backends::disk::{Rng, SimDisk};
use tidings_backends::lsm::{Codec, LsmStore, Options};
use tidings_core::ids::{ConversationId, MessageKey, Partition, Position, SenderId, UserId};
use tidings_core::ports::store::Store;
use tidings_core::record::{ConversationKind, Kind, Role};
use tidings_core::rows::{
    Before, CursorRow, EventRow, GrantState, HeadState, MemberChange, MembersBody, SenderState,
    StateKey, StateRow, StateValue,
};

const P: Partition = Partition(0);
/// Rows put by one call, as a router does that reads records in batches.
const BATCH: usize = 64;
/// A page as a client asks for.
const PAGE: u64 = 200;

type Failure = Box<dyn std::error::Error>;

/// So many direct conversations: about 20 messages each.
const DIRECT: u64 = 10_000;

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
    let head = "| zstd | block KiB | bytes a message | write µs: put | write µs: flush and merge | read µs, pages of";
    println!("\n{head} {PAGE} | one row µs |\n|---|---|---|---|---|---|---|");
    for level in [1, 3, 9] {
        for block_kib in [16, 32, 64, 128] {
            let block_bytes = block_kib << 10;
            measure(&messages, 1, Codec { block_bytes, level })?;
        }
    }
    let store = measure(&messages, 1, Options::default().codec)?;
    println!("\n| column | bytes a message |\n|---|---|");
    for (name, bytes) in store.column_bytes()?.iter().filter(|(_, bytes)| *bytes > 0) {
        println!("| {name} | {:.3} |", *bytes as f64 / messages.len() as f64);
    }
    println!(
        "\n{DIRECT} direct conversations\n{head} all | one row µs |\n|---|---|---|---|---|---|---|"
    );
    measure(&messages, DIRECT, Options::default().codec)?;
    Ok(())
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

/// A conversation as its router sees it.
struct Room {
    id: ConversationId,
    head: HeadState,
    members: HashMap<String, (UserId, SenderId, SenderState)>,
}

/// What all conversations share.
struct Server {
    rng: Rng,
    now: u64,
    offset: u64,
    steps: Vec<Step>,
}

/// The rows of the whole log; with more than one conversation the texts are dealt out at random
/// to two users in each.
fn play(messages: &[(String, String)], rooms: u64) -> (Vec<Room>, Vec<Step>) {
    let mut server = Server {
        rng: Rng::new(1),
        now: 1_790_000_000_000_000,
        offset: 1000,
        steps: Vec::new(),
    };
    let room = |_| Room {
        id: ConversationId(server.rng.next_u64()),
        head: HeadState::default(),
        members: HashMap::new(),
    };
    let mut all: Vec<Room> = (0..rooms).map(room).collect();
    for (nick, text) in messages {
        let room = &mut all[server.rng.below(rooms) as usize];
        if rooms == 1 {
            server.say(room, nick, text);
        } else {
            let nick = if server.rng.chance(1, 2) { "a" } else { "b" };
            server.say(room, nick, text);
        }
    }
    (all, server.steps)
}

impl Server {
    fn say(&mut self, room: &mut Room, nick: &str, text: &str) {
        if !room.members.contains_key(nick) {
            let member = self.join(room);
            room.members.insert(nick.to_owned(), member);
        }
        let place = self.next(room);
        let Some((user, outbox, sender)) = room.members.get_mut(nick) else {
            return;
        };
        let before = if sender.seq == 0 {
            Before::Nothing
        } else {
            Before::Seq(sender.seq)
        };
        let id = MessageKey(self.rng.next_u64());
        *sender = SenderState {
            grant: sender.grant,
            counter: sender.counter + 1,
            id,
            seq: place.seq,
            ts: place.ts,
        };
        let event = EventRow {
            user: *user,
            sender: *outbox,
            grant: sender.grant,
            counter: sender.counter,
            id,
            before,
            body: Bytes::copy_from_slice(text.as_bytes()),
            ..place
        };
        let (key, value) = (
            StateKey::Sender(*user, *outbox),
            StateValue::Sender(*sender),
        );
        self.push(event, room.head, key, value);
    }

    fn join(&mut self, room: &mut Room) -> (UserId, SenderId, SenderState) {
        let user = UserId(self.rng.next_u64());
        room.head.version += 1;
        room.head.members += 1;
        let place = self.next(room);
        let change = MemberChange {
            user,
            role: Role::Member,
            before: GrantState::default(),
        };
        let kind = ConversationKind::Group;
        let members = MembersBody {
            version: room.head.version,
            kind,
            title: "ubuntu".into(),
            changes: vec![change],
        };
        let seq = place.seq;
        let event = EventRow {
            user,
            kind: Kind::Members,
            members: Some(Box::new(members)),
            ..place
        };
        let grant = GrantState {
            grant: seq,
            role: Role::Member,
            visible_from: 1,
            visible_to: 0,
        };
        self.push(
            event,
            room.head,
            StateKey::Grant(user),
            StateValue::Grant(grant),
        );
        (
            user,
            SenderId(self.rng.next_u64()),
            SenderState {
                grant: seq,
                ..SenderState::default()
            },
        )
    }

    /// An event row with the next place in the conversation and nothing in it.
    fn next(&mut self, room: &mut Room) -> EventRow {
        let ts_before = room.head.ts;
        self.offset += 1;
        self.now += 100 + self.rng.below(900);
        room.head.seq += 1;
        room.head.ts = self.now;
        let position = Position {
            epoch: 1,
            offset: self.offset,
        };
        EventRow {
            kind: Kind::Text,
            ..EventRow::empty(room.id, room.head.seq, position, self.now, ts_before)
        }
    }

    fn push(&mut self, event: EventRow, head: HeadState, key: StateKey, value: StateValue) {
        let (conversation, position, ts) = (event.conversation, event.position, event.ts);
        let row = |key, value| StateRow {
            conversation,
            key,
            position,
            ts,
            value,
        };
        let state = [row(StateKey::Head, StateValue::Head(head)), row(key, value)];
        self.steps.push(Step { event, state });
    }
}

fn measure(messages: &[(String, String)], rooms: u64, codec: Codec) -> Result<LsmStore, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let (rooms, steps) = play(messages, rooms);
    // Flushed below, so that its time is told apart from that of the puts.
    let options = Options {
        codec,
        threads: false,
        flush_bytes: usize::MAX,
        ..Options::default()
    };
    let store = LsmStore::open(Arc::new(SimDisk::new()), options)?;

    let began = cpu();
    let mut putting = Duration::ZERO;
    let mut since_flush = 0;
    let mut steps = steps.into_iter();
    while steps.len() > 0 {
        let batch: Vec<Step> = steps.by_ref().take(BATCH).collect();
        let end = batch
            .last()
            .map(|s| s.event.position.next())
            .unwrap_or_default();
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
    runtime.block_on(store.put_cursors(P, rooms.iter().flat_map(cursors).collect()))?;
    store.compact_all()?;
    let writing = cpu() - began - putting;

    let began = cpu();
    for room in &rooms {
        let mut read = 0;
        while read < room.head.seq {
            let page = store.read_events(room.id, read + 1, read + PAGE, usize::MAX);
            let page = runtime.block_on(page)?.len() as u64;
            assert_ne!(page, 0, "everything that was put is read");
            read += page;
        }
    }
    let reading = cpu() - began;

    let mut rng = Rng::new(2);
    let began = cpu();
    for _ in 0..2000 {
        let room = &rooms[rng.below(rooms.len() as u64) as usize];
        let seq = 1 + rng.below(room.head.seq);
        runtime.block_on(store.read_events(room.id, seq, seq, usize::MAX))?;
    }
    let single = (cpu() - began).as_secs_f64() * 1e6 / 2000.0;
    let count = messages.len() as f64;
    let per = |time: Duration| time.as_secs_f64() * 1e6 / count;
    let bytes = store.figures().segment_bytes as f64 / count;
    let Codec { block_bytes, level } = codec;
    let times = format!(
        "{:.2} | {:.2} | {:.2}",
        per(putting),
        per(writing),
        per(reading)
    );
    println!(
        "| {level} | {} | {bytes:.2} | {times} | {single:.0} |",
        block_bytes >> 10
    );
    Ok(store)
}

fn cursors(room: &Room) -> impl Iterator<Item = CursorRow> {
    let (conversation, delivered) = (room.id, room.head.seq);
    let cursor = move |(user, ..): &(UserId, SenderId, SenderState)| CursorRow {
        conversation,
        user: *user,
        delivered,
        read: delivered,
    };
    room.members.values().map(cursor)
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
