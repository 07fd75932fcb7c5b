//! The bare loop that a cluster's servers are compared with: the drivers of Kafka and Cassandra alone
//! append, read and store what a chat server would for the same messages. No decisions, no clients.
//!
//! `cluster/cost` starts one for each server. Topic and tables are those that `tidings migrate` makes.
//! Arguments are `name=value`, see [`Plan`]. It says what it found as one line of JSON.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord};
use rdkafka::{Offset, TopicPartitionList};
use scylla::client::PoolSize;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::Consistency;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use tidings_core::ids::{ConversationId, MessageKey, SenderId, UserId};
use tidings_core::record::{Content, Record, Send};

type Failure = Box<dyn std::error::Error + std::marker::Send + Sync>;

/// As the servers' settings have them by default.
const LINGER_MS: &str = "5";
const FETCH_WAIT_MS: &str = "300";
const COMMIT_EVERY: Duration = Duration::from_millis(200);
const CONCURRENT: usize = 128;
/// Batches being stored at once.
const BATCHES_MAX: usize = 256;
/// Of a row's `meta`, and of the state rows' values, as a server's are for such messages.
const META_BYTES: usize = 58;
const HEAD_BYTES: usize = 20;
const SENDER_BYTES: usize = 34;

/// What is to be done.
struct Plan {
    given: HashMap<String, String>,
    /// Partitions to read.
    own: Vec<i32>,
    partitions: u32,
    /// Messages a second, to all partitions.
    rate: f64,
    /// When the loop begins, in milliseconds since 1970; what is counted begins `warm_s` later.
    start_us: u64,
    counted_us: u64,
    end_us: u64,
    until_us: u64,
    conversations: u64,
    body: usize,
}

impl Plan {
    fn read() -> Result<Plan, Failure> {
        let given: HashMap<String, String> = std::env::args()
            .skip(1)
            .filter_map(|a| a.split_once('=').map(|(n, v)| (n.into(), v.into())))
            .collect();
        let start_us = get::<u64>(&given, "start_ms")? * 1000;
        let counted_us = start_us + (get::<f64>(&given, "warm_s")? * 1e6) as u64;
        let end_us = counted_us + get::<u64>(&given, "seconds")? * 1_000_000;
        let until_us = end_us + (get::<f64>(&given, "tail_s")? * 1e6) as u64;
        let own: String = get(&given, "own")?;
        Ok(Plan {
            own: own.split(',').map(str::parse).collect::<Result<_, _>>()?,
            partitions: get(&given, "partitions")?,
            rate: get(&given, "rate")?,
            conversations: get::<u64>(&given, "conversations")?.max(1),
            body: get(&given, "body")?,
            start_us,
            counted_us,
            end_us,
            until_us,
            given,
        })
    }

    fn text(&self, name: &str) -> Result<String, Failure> {
        get(&self.given, name)
    }

    fn client(&self) -> Result<ClientConfig, Failure> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.text("brokers")?)
            .set("socket.nagle.disable", "true");
        Ok(config)
    }
}

fn get<T: FromStr>(given: &HashMap<String, String>, name: &str) -> Result<T, Failure>
where
    T::Err: std::error::Error + std::marker::Send + Sync + 'static,
{
    let value = given
        .get(name)
        .ok_or_else(|| format!("{name}=… is missing"))?;
    Ok(value.parse()?)
}

/// Microseconds since 1970: the loops append to each other's partitions.
fn now_us() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |d| d.as_micros() as u64)
}

fn sleep_until(us: u64) {
    std::thread::sleep(Duration::from_micros(us.saturating_sub(now_us())));
}

/// What this process has used, in microseconds; the kernel counts hundredths of a second.
fn cpu_us() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.filter_map(|f| f.parse::<u64>().ok()).sum::<u64>() * 10_000
}

/// A message as read: where, what, and when it was to be appended.
struct Row {
    conversation: i64,
    seq: i64,
    ts: i64,
    partition: i32,
    offset: i64,
    intended: u64,
    body: Bytes,
}

struct Store {
    session: Session,
    event: PreparedStatement,
    state: PreparedStatement,
    requests: AtomicU64,
    /// Behind what is stored, by partition.
    stored: Vec<AtomicI64>,
    latencies: Mutex<Vec<u64>>,
    counted: std::ops::Range<u64>,
}

impl Store {
    async fn open(plan: &Plan) -> Result<Store, Failure> {
        let profile = ExecutionProfile::builder()
            .consistency(Consistency::Quorum)
            .request_timeout(Some(Duration::from_secs(5)))
            .build();
        let hosts = plan.text("hosts")?;
        let session = SessionBuilder::new()
            .known_nodes(hosts.split(','))
            .default_execution_profile_handle(profile.into_handle())
            // As the stack's chat servers have it.
            .pool_size(PoolSize::PerHost(std::num::NonZeroUsize::MIN))
            .disallow_shard_aware_port(true)
            .tcp_nodelay(true)
            .build()
            .await?;
        let keyspace = plan.text("keyspace")?;
        let event = session
            .prepare(format!(
                "INSERT INTO {keyspace}.events (conversation, bucket, seq, meta, body) \
                 VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?"
            ))
            .await?;
        let state = session
            .prepare(format!(
                "INSERT INTO {keyspace}.state (conversation, key, value) VALUES (?, ?, ?) USING TIMESTAMP ?"
            ))
            .await?;
        Ok(Store {
            session,
            event,
            state,
            requests: AtomicU64::new(0),
            stored: (0..plan.partitions).map(|_| AtomicI64::new(-1)).collect(),
            latencies: Mutex::default(),
            counted: plan.counted_us..plan.end_us,
        })
    }

    /// Event rows, a request for those of one conversation, then the rows of state.
    async fn put(&self, mut rows: Vec<Row>) -> Result<(), Failure> {
        rows.sort_by_key(|row| (row.conversation, row.seq));
        let runs: Vec<&[Row]> = rows
            .chunk_by(|a, b| a.conversation == b.conversation)
            .collect();
        let puts: Vec<_> = runs.iter().map(|run| self.events(run)).collect();
        stream::iter(puts)
            .buffer_unordered(CONCURRENT)
            .try_for_each(|()| std::future::ready(Ok(())))
            .await?;
        let now = now_us();
        {
            let mut latencies = self.latencies.lock().map_err(|_| "poisoned")?;
            let counted = rows.iter().filter(|r| self.counted.contains(&r.intended));
            latencies.extend(counted.map(|row| now.saturating_sub(row.intended)));
        }
        let puts: Vec<_> = runs.iter().map(|run| self.states(run)).collect();
        stream::iter(puts)
            .buffer_unordered(CONCURRENT)
            .try_for_each(|()| std::future::ready(Ok(())))
            .await?;
        for row in &rows {
            self.stored[row.partition as usize].fetch_max(row.offset + 1, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn events(&self, run: &[Row]) -> Result<(), Failure> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let values: Vec<_> = run
            .iter()
            .map(|row| {
                let mut meta = vec![1; META_BYTES];
                meta[20..28].copy_from_slice(&row.offset.to_be_bytes());
                meta[40..48].copy_from_slice(&row.intended.to_le_bytes());
                (
                    row.conversation,
                    row.seq / 5_000,
                    row.seq,
                    meta,
                    &row.body,
                    row.ts,
                )
            })
            .collect();
        match values.as_slice() {
            [one] => _ = self.session.execute_unpaged(&self.event, one).await?,
            many => {
                let mut batch = Batch::new(BatchType::Unlogged);
                for _ in many {
                    batch.append_statement(self.event.clone());
                }
                self.session.batch(&batch, many).await?;
            }
        }
        Ok(())
    }

    /// Head and sender, as after the last message.
    async fn states(&self, run: &[Row]) -> Result<(), Failure> {
        let Some(last) = run.last() else {
            return Ok(());
        };
        self.requests.fetch_add(1, Ordering::Relaxed);
        let value = |len: usize| {
            let mut value = vec![0; len];
            value[4..12].copy_from_slice(&last.offset.to_be_bytes());
            value
        };
        let mut sender = vec![2; 17];
        sender[1..9].copy_from_slice(&last.conversation.to_be_bytes());
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.append_statement(self.state.clone());
        batch.append_statement(self.state.clone());
        let rows = [
            (last.conversation, vec![0], value(HEAD_BYTES), last.ts),
            (last.conversation, sender, value(SENDER_BYTES), last.ts),
        ];
        self.session.batch(&batch, &rows[..]).await?;
        Ok(())
    }
}

fn row(message: &impl Message) -> Option<Row> {
    let payload = Bytes::copy_from_slice(message.payload()?);
    let record = Record::decode(&payload).ok()?;
    let Content::Send(send) = record.content else {
        return None;
    };
    Some(Row {
        conversation: record.conversation.0 as i64,
        seq: send.counter as i64,
        ts: send.taken as i64,
        partition: message.partition(),
        offset: message.offset(),
        intended: send.taken,
        body: send.body,
    })
}

/// Appends at the intended times until the end.
fn append(plan: &Plan) -> Result<(), Failure> {
    if plan.rate <= 0.0 {
        return Ok(());
    }
    let producer: BaseProducer = plan
        .client()?
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "lz4")
        .set("linger.ms", LINGER_MS)
        .create()?;
    let producer = Arc::new(producer);
    // A thread for the reports, as a server has one; a little more than whole milliseconds, since the
    // driver spins through the last part of one.
    let (reports, until) = (Arc::clone(&producer), plan.until_us);
    std::thread::spawn(move || {
        while now_us() < until {
            reports.poll(Duration::from_micros(200_050));
        }
    });
    let topic = plan.text("topic")?;
    let number: u64 = plan.text("number")?.parse()?;
    let filler = "as many bytes as people write to each other, and a few more. ".repeat(80);
    let mut payload = Vec::new();
    for n in 0.. {
        let intended = plan.start_us + (n as f64 * 1e6 / plan.rate) as u64;
        if intended >= plan.end_us {
            break;
        }
        sleep_until(intended);
        // Conversations of this round and this loop alone.
        let which = ((number << 32) | (n % plan.conversations)) ^ (plan.start_us << 20);
        let conversation = ConversationId(which.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let counter = n / plan.conversations + 1;
        let id = |counter: u64| {
            MessageKey((conversation.0 ^ counter).wrapping_mul(0xd6e8_feb8_6659_fd93))
        };
        let record = Record {
            conversation,
            content: Content::Send(Send {
                user: UserId(conversation.0 ^ 1),
                sender: SenderId(conversation.0 ^ 2),
                grant: 1,
                counter,
                id: id(counter),
                previous: id(counter - 1),
                once: false,
                kind: Default::default(),
                encoding: Default::default(),
                body: Bytes::copy_from_slice(&filler.as_bytes()[..plan.body.min(filler.len())]),
                origin: Default::default(),
                taken: intended,
            }),
        };
        payload.clear();
        record.encode(&mut payload);
        let key = conversation.0.to_be_bytes();
        let record = BaseRecord::to(&topic)
            .partition((conversation.slot() % plan.partitions) as i32)
            .key(&key[..])
            .payload(&payload[..]);
        producer.send(record).map_err(|(error, _)| error)?;
    }
    // Until the last records are taken.
    sleep_until(plan.until_us);
    Ok(())
}

/// Reads what comes to its partitions, as much at once as is there, and has it stored.
fn consume(
    plan: &Plan,
    store: &Arc<Store>,
    runtime: &tokio::runtime::Runtime,
) -> Result<(), Failure> {
    let consumer: BaseConsumer = plan
        .client()?
        .set("group.id", plan.text("group")?)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("fetch.wait.max.ms", FETCH_WAIT_MS)
        .create()?;
    let topic = plan.text("topic")?;
    let mut list = TopicPartitionList::new();
    for &partition in &plan.own {
        let (_, end) = consumer.fetch_watermarks(&topic, partition, Duration::from_secs(5))?;
        list.add_partition_offset(&topic, partition, Offset::Offset(end))?;
    }
    consumer.assign(&list)?;
    let at_once = Arc::new(tokio::sync::Semaphore::new(BATCHES_MAX));
    let mut committed = now_us();
    while now_us() < plan.until_us {
        let mut rows = Vec::new();
        let mut wait = Duration::from_millis(50);
        while let Some(message) = consumer.poll(wait) {
            rows.extend(row(&message?));
            wait = Duration::ZERO;
        }
        if !rows.is_empty() {
            let permit = runtime.block_on(Arc::clone(&at_once).acquire_owned())?;
            let store = Arc::clone(store);
            runtime.spawn(async move {
                if let Err(error) = store.put(rows).await {
                    eprintln!("bare loop: {error}");
                    std::process::exit(1);
                }
                drop(permit);
            });
        }
        if now_us() - committed >= COMMIT_EVERY.as_micros() as u64 {
            committed = now_us();
            let mut list = TopicPartitionList::new();
            for &partition in &plan.own {
                let stored = store.stored[partition as usize].swap(-1, Ordering::Relaxed);
                if stored >= 0 {
                    list.add_partition_offset(&topic, partition, Offset::Offset(stored))?;
                }
            }
            if list.count() > 0 {
                consumer.commit(&list, CommitMode::Async)?;
            }
        }
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let plan = Plan::read()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let store = Arc::new(runtime.block_on(Store::open(&plan))?);
    let used = std::thread::scope(|scope| {
        let appending = scope.spawn(|| append(&plan));
        let consuming = scope.spawn(|| consume(&plan, &store, &runtime));
        sleep_until(plan.counted_us);
        let before = cpu_us();
        sleep_until(plan.end_us);
        let used = cpu_us() - before;
        appending.join().map_err(|_| "appending panicked")??;
        consuming.join().map_err(|_| "consuming panicked")??;
        Ok::<_, Failure>(used)
    })?;
    let latencies = store.latencies.lock().map_err(|_| "poisoned")?;
    let said = serde_json::json!({
        "messages": latencies.len(),
        "cpu_us": used,
        "requests": store.requests.load(Ordering::Relaxed) * (plan.end_us - plan.counted_us)
            / (plan.end_us - plan.start_us),
        "latencies_us": &*latencies,
    });
    println!("{said}");
    Ok(())
}
