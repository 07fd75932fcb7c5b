//! What putting events costs: batches as a router makes them, from short ones when it is quiet to
//! long ones when it is busy, over many conversations.
//!
//! ```text
//! cluster/stack up cassandra
//! cargo run -p tidings-engines --example cassandra_puts
//! ```

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tidings_core::ids::{ConversationId, MessageKey, Partition, Position, SenderId, UserId};
use tidings_core::ports::store::Store;
use tidings_core::record::Kind;
use tidings_core::rows::{Before, EventRow};
use tidings_engines::cassandra::{CassandraStore, Settings, migrate};

type Failure = Box<dyn std::error::Error>;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let settings = Settings {
        keyspace: format!("puts_{}", std::process::id()),
        ..Settings::default()
    };
    migrate(&settings).await?;
    let store = CassandraStore::open(settings.clone()).await?;
    println!(
        "| rows a put | conversations | puts at once | p50 ms | p99 ms | rows/s | CPU µs a row, this process |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut seq = 1;
    for (rows, conversations) in [(1, 1), (10, 1), (10, 10), (100, 1), (100, 10), (100, 100)] {
        for at_once in [1, 8] {
            let puts = 100 * at_once as u64;
            let (began, cpu_began) = (Instant::now(), cpu());
            let mut times: Vec<Duration> = stream::iter(0..puts)
                .map(|put| {
                    let rows = (0..rows).map(|i| event(i % conversations, seq + put * rows + i));
                    let put = store.put_events(Partition(0), rows.collect());
                    async move {
                        let began = Instant::now();
                        put.await.map(|()| began.elapsed())
                    }
                })
                .buffer_unordered(at_once)
                .collect::<Vec<_>>()
                .await
                .into_iter()
                .collect::<Result<_, _>>()?;
            let (took, used) = (began.elapsed(), cpu() - cpu_began);
            seq += puts * rows;
            times.sort_unstable();
            let ms = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1e3;
            let total = (puts * rows) as f64;
            println!(
                "| {rows} | {conversations} | {at_once} | {:.1} | {:.1} | {:.0} | {:.1} |",
                ms(50),
                ms(99),
                total / took.as_secs_f64(),
                used.as_secs_f64() * 1e6 / total
            );
        }
    }
    let admin = scylla::client::session_builder::SessionBuilder::new()
        .known_node(&settings.hosts[0])
        .build()
        .await?;
    let drop = format!("DROP KEYSPACE {}", settings.keyspace);
    admin.query_unpaged(drop, ()).await?;
    Ok(())
}

fn event(conversation: u64, seq: u64) -> EventRow {
    let ts = 1_790_000_000_000_000 + seq * 1_000;
    let position = Position {
        epoch: 1,
        offset: seq,
    };
    let conversation = ConversationId(conversation.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 7);
    EventRow {
        user: UserId(seq % 5),
        sender: SenderId(seq % 5 + 100),
        grant: 1,
        counter: seq,
        id: MessageKey(seq.wrapping_mul(0xd6e8_feb8_6659_fd93)),
        before: Before::Seq(seq - 1),
        kind: Kind::Text,
        body: Bytes::from_static(b"a message of about as many bytes as people write to each other"),
        ..EventRow::empty(conversation, seq, position, ts, ts - 1_000)
    }
}

/// What this process has used.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    // Hundredths of a second.
    Duration::from_millis(ticks * 10)
}
