//! What a real chat log takes on Cassandra's disk, and what writing and reading it costs the nodes.
//!
//! ```text
//! cluster/stack up cassandra
//! cargo run -p tidings-engines --example cassandra_bytes -- ubuntu-irc.jsonl.gz
//! ```
//!
//! The file has one JSON object a line, messages with `nick` and `text`. They are played as a server
//! would store them: conversations of 500 messages in a row, a user and an outbox for each nick,
//! random ids, seconds between messages. Each table of the comparison gets the same messages with
//! the same keys, timestamps and time to live, is flushed and compacted on all nodes, and measured
//! on the first. CPU is that of all nodes' processes, so nothing else should use them meanwhile.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, TryStreamExt};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::batch::{Batch, BatchStatement, BatchType};
use tidings_core::ids::{ConversationId, MessageKey, Position, SenderId, UserId};
use tidings_core::record::Kind;
use tidings_core::rows::{Before, EventRow};
use tidings_engines::cassandra::CassandraStore;

type Failure = Box<dyn std::error::Error>;

const MESSAGES: usize = 100_000;
/// Messages of one conversation.
const ROOM: usize = 500;
/// Rows written by one request.
const BATCH: usize = 50;
const PAGE: i64 = 100;
const PAGES: usize = 1_000;
const NODES: usize = 3;

/// How a message becomes a row.
#[derive(Clone, Copy)]
enum Form {
    /// The store's own.
    Binary,
    /// All fields by name, compressed message by message.
    JsonSnappy,
    /// The same, not compressed.
    Json,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: cassandra_bytes FILE.jsonl.gz")?;
    let rows = play(&read(&path)?);
    let text: usize = rows.iter().map(|row| row.body.len()).sum();
    println!(
        "{} messages, {:.1} bytes of text each\n",
        rows.len(),
        text as f64 / rows.len() as f64
    );
    let session = SessionBuilder::new()
        .known_node("127.0.0.1:9042")
        .build()
        .await?;
    let keyspace = format!("bytes_{}", std::process::id());
    let make = "WITH replication = {'class': 'NetworkTopologyStrategy', 'dc1': 3}";
    session
        .query_unpaged(format!("CREATE KEYSPACE {keyspace} {make}"), ())
        .await?;
    let result = all(&session, &keyspace, &rows).await;
    session
        .query_unpaged(format!("DROP KEYSPACE {keyspace}"), ())
        .await?;
    result
}

async fn all(session: &Session, keyspace: &str, rows: &[EventRow]) -> Result<(), Failure> {
    let none = "{'enabled': false}".to_owned();
    let lz4 = |kib| format!("{{'class': 'LZ4Compressor', 'chunk_length_in_kb': {kib}}}");
    let zstd = |level, kib| {
        format!(
            "{{'class': 'ZstdCompressor', 'compression_level': {level}, 'chunk_length_in_kb': {kib}}}"
        )
    };
    let tables = [
        ("JSON, Snappy per message", Form::JsonSnappy, none.clone()),
        ("JSON", Form::Json, lz4(16)),
        ("JSON", Form::Json, zstd(3, 16)),
        ("binary", Form::Binary, none),
        ("binary", Form::Binary, lz4(16)),
        ("binary", Form::Binary, zstd(1, 16)),
        ("binary", Form::Binary, zstd(3, 16)),
        ("binary", Form::Binary, zstd(9, 16)),
        ("binary", Form::Binary, zstd(3, 64)),
        ("binary", Form::Binary, zstd(9, 64)),
    ];
    println!(
        "| rows | table compression | bytes a message | of the first | CPU µs a message: write | flush, compact | CPU µs, page of {PAGE} | ms |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut first = None;
    for (i, (name, form, compression)) in tables.into_iter().enumerate() {
        let table = format!("t{i}");
        let figures = measure(session, keyspace, &table, form, &compression, rows).await?;
        let first = *first.get_or_insert(figures.bytes);
        let shown: String = compression
            .replace("'class': ", "")
            .replace("'enabled': false", "none")
            .chars()
            .filter(|c| !"{}'".contains(*c))
            .collect();
        println!(
            "| {name} | {shown} | {:.1} | {:.1} % | {:.1} | {:.1} | {:.0} | {:.2} |",
            figures.bytes,
            100.0 * figures.bytes / first,
            figures.write,
            figures.compact,
            figures.read,
            figures.read_ms
        );
    }
    Ok(())
}

fn read(path: &str) -> Result<Vec<(String, String)>, Failure> {
    let mut messages = Vec::new();
    for line in BufReader::new(flate2::read::GzDecoder::new(std::fs::File::open(path)?)).lines() {
        let line: serde_json::Value = serde_json::from_str(&line?)?;
        if let (Some(nick), Some(text)) = (line["nick"].as_str(), line["text"].as_str()) {
            messages.push((nick.to_owned(), text.to_owned()));
        }
        if messages.len() == MESSAGES {
            break;
        }
    }
    Ok(messages)
}

/// The event rows that a server makes of the messages.
fn play(messages: &[(String, String)]) -> Vec<EventRow> {
    let mut random = Random(7);
    let mut rows: Vec<EventRow> = Vec::with_capacity(messages.len());
    for room in messages.chunks(ROOM) {
        let conversation = ConversationId(random.next());
        let mut members: HashMap<&str, (UserId, SenderId, u64, Before)> = HashMap::new();
        let (mut ts, mut offset) = (1_790_000_000_000_000, random.below(1 << 30));
        for (i, (nick, text)) in room.iter().enumerate() {
            let seq = i as u64 + 2;
            let ts_before = ts;
            ts += random.below(30_000_000) + 1;
            offset += random.below(2_000) + 1;
            let position = Position { epoch: 1, offset };
            let member = members.entry(nick).or_insert_with(|| {
                (
                    UserId(random.next()),
                    SenderId(random.next()),
                    0,
                    Before::Nothing,
                )
            });
            member.2 += 1;
            rows.push(EventRow {
                user: member.0,
                sender: member.1,
                grant: 1,
                counter: member.2,
                id: MessageKey(random.next()),
                before: member.3,
                kind: Kind::Text,
                body: Bytes::copy_from_slice(text.as_bytes()),
                ..EventRow::empty(conversation, seq, position, ts, ts_before)
            });
            member.3 = Before::Seq(seq);
        }
    }
    rows
}

fn json(row: &EventRow) -> Vec<u8> {
    let before = match row.before {
        Before::Seq(seq) => seq,
        _ => 0,
    };
    let body = String::from_utf8_lossy(&row.body);
    serde_json::json!({
        "conversation": row.conversation.to_string(), "seq": row.seq,
        "epoch": row.position.epoch, "offset": row.position.offset,
        "ts": row.ts, "ts_before": row.ts_before,
        "user": row.user.to_string(), "sender": row.sender.to_string(),
        "grant": row.grant, "counter": row.counter, "id": row.id.to_string(),
        "before": before, "kind": "text", "body": body,
    })
    .to_string()
    .into_bytes()
}

struct Figures {
    bytes: f64,
    write: f64,
    compact: f64,
    read: f64,
    read_ms: f64,
}

async fn measure(
    session: &Session,
    keyspace: &str,
    table: &str,
    form: Form,
    compression: &str,
    rows: &[EventRow],
) -> Result<Figures, Failure> {
    let days = "{'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'DAYS', 'compaction_window_size': 13}";
    session
        .query_unpaged(
            format!(
                "CREATE TABLE {keyspace}.{table} (conversation bigint, bucket bigint, seq bigint, \
                 meta blob, body blob, PRIMARY KEY ((conversation, bucket), seq)) WITH compression = {compression} \
                 AND compaction = {days} AND default_time_to_live = 31536000"
            ),
            (),
        )
        .await?;
    let columns = match form {
        Form::Binary => "(conversation, bucket, seq, meta, body) VALUES (?, 0, ?, ?, ?)",
        // One cell, since nothing of it can be overwritten alone.
        _ => "(conversation, bucket, seq, meta) VALUES (?, 0, ?, ?)",
    };
    let insert = session
        .prepare(format!(
            "INSERT INTO {keyspace}.{table} {columns} USING TIMESTAMP ?"
        ))
        .await?;
    let messages = rows.len() as f64;
    let begin = cpu();
    stream::iter(rows.chunks(BATCH).map(Ok::<_, Failure>))
        .try_for_each_concurrent(16, |chunk| {
            let insert = &insert;
            async move {
                let statement = || BatchStatement::PreparedStatement(insert.clone());
                let statements = chunk.iter().map(|_| statement()).collect();
                let batch = Batch::new_with_statements(BatchType::Unlogged, statements);
                let key = |row: &EventRow| (row.conversation.0 as i64, row.seq as i64);
                match form {
                    Form::Binary => {
                        let values: Vec<_> = chunk
                            .iter()
                            .map(|row| {
                                let meta = CassandraStore::encoded_event(row);
                                (
                                    key(row).0,
                                    key(row).1,
                                    meta,
                                    row.body.clone(),
                                    row.ts as i64,
                                )
                            })
                            .collect();
                        session.batch(&batch, values).await?;
                    }
                    _ => {
                        let values = chunk
                            .iter()
                            .map(|row| {
                                let bytes = match form {
                                    Form::Json => json(row),
                                    _ => snap::raw::Encoder::new().compress_vec(&json(row))?,
                                };
                                Ok((key(row).0, key(row).1, bytes, row.ts as i64))
                            })
                            .collect::<Result<Vec<_>, Failure>>()?;
                        session.batch(&batch, values).await?;
                    }
                }
                Ok(())
            }
        })
        .await?;
    let written = cpu();
    for node in 1..=NODES {
        nodetool(node, &["flush", keyspace, table])?;
        nodetool(node, &["compact", keyspace, table])?;
    }
    let compacted = cpu();
    let select = session
        .prepare(format!(
            "SELECT seq, writetime(meta), meta, body FROM {keyspace}.{table} \
             WHERE conversation = ? AND bucket = 0 AND seq >= ? AND seq < ?"
        ))
        .await?;
    let (mut random, rooms) = (Random(9), rows.len() / ROOM);
    let began = Instant::now();
    for _ in 0..PAGES {
        let room = random.below(rooms as u64) as usize;
        let conversation = rows[room * ROOM].conversation.0 as i64;
        let from = random.below(ROOM as u64 - PAGE as u64) as i64 + 2;
        let page = session
            .execute_unpaged(&select, (conversation, from, from + PAGE))
            .await?
            .into_rows_result()?;
        assert_eq!(page.rows_num(), PAGE as usize);
    }
    let read = cpu();
    Ok(Figures {
        bytes: size(&data_of(keyspace, table)?)? as f64 / messages,
        write: micros(written - begin) / messages,
        compact: micros(compacted - written) / messages,
        read: micros(read - compacted) / PAGES as f64,
        read_ms: began.elapsed().as_secs_f64() * 1e3 / PAGES as f64,
    })
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn stack() -> PathBuf {
    let home = std::env::var_os("HOME")
        .map(PathBuf::from)
        .unwrap_or_default();
    std::env::var_os("TIDINGS_STACK").map_or(home.join(".cache/tidings/stack"), PathBuf::from)
}

fn nodetool(node: usize, arguments: &[&str]) -> Result<(), Failure> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cluster/stack");
    let done = Command::new(script)
        .arg("nodetool")
        .arg(node.to_string())
        .args(arguments)
        .stdout(Stdio::null())
        .status()?;
    if done.success() {
        Ok(())
    } else {
        Err(format!("nodetool {arguments:?}: {done}").into())
    }
}

/// The folder of the first node's copy.
fn data_of(keyspace: &str, table: &str) -> Result<PathBuf, Failure> {
    let folder = stack().join("data/cassandra1/data").join(keyspace);
    for entry in std::fs::read_dir(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with(&format!("{table}-")) {
            return Ok(entry.path());
        }
    }
    Err(format!("no table in {}", folder.display()).into())
}

/// All files: data, indexes, filters.
fn size(folder: &Path) -> Result<u64, Failure> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let metadata = entry?.metadata()?;
        bytes += if metadata.is_file() {
            metadata.len()
        } else {
            0
        };
    }
    Ok(bytes)
}

/// What the nodes' processes have used; their pid files begin with the pid.
fn cpu() -> Duration {
    let of = |node: usize| -> Option<u64> {
        let file = std::fs::read_to_string(stack().join(format!("run/cassandra{node}"))).ok()?;
        let pid = file.split_whitespace().next()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace().skip(11);
        Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
    };
    // Hundredths of a second.
    Duration::from_millis((1..=NODES).filter_map(of).sum::<u64>() * 10)
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}
