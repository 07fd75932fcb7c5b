//! How long a record takes, and what it costs: run by hand.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use tidings_core::ids::{ConversationId, Partition, Position};
use tidings_core::ports::log::{Append, Log};
use tidings_engines::kafka::KafkaLog;

use super::parts::{Own, run};

/// The processor time of this process so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .expect("fields")
        .split_whitespace()
        .collect();
    let ticks = |n: usize| fields[n].parse::<u64>().expect("a number");
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// Appends at a rate for a while, reads all; gives append-to-read latencies.
async fn load(log: &Arc<KafkaLog>, rate: u64, batch: u64, lasts: Duration) -> Vec<Duration> {
    let from: Vec<Position> = (0..log.partitions())
        .map(|p| log.end(Partition(p)))
        .collect();
    let began = Instant::now();
    let total = rate * lasts.as_secs();
    let (done, mut read) = tokio::sync::mpsc::unbounded_channel();
    let mut readers = tokio::task::JoinSet::new();
    for partition in (0..log.partitions()).map(Partition) {
        let (log, done, mut from) = (Arc::clone(log), done.clone(), from[partition.0 as usize]);
        readers.spawn(async move {
            loop {
                let records = log
                    .read(partition, from, 256 << 10)
                    .await
                    .expect("readable");
                let now = began.elapsed();
                for record in &records {
                    let sent = record.payload[..8].try_into().map(u64::from_be_bytes);
                    let sent = Duration::from_nanos(sent.expect("8 bytes"));
                    if done.send(now.saturating_sub(sent)).is_err() {
                        return;
                    }
                }
                from = records[records.len() - 1].position.next();
            }
        });
    }
    let sending = Arc::clone(log);
    let sender = tokio::spawn(async move {
        for call in 0..total / batch {
            let due = Duration::from_nanos(call * batch * 1_000_000_000 / rate);
            tokio::time::sleep_until((began + due).into()).await;
            let records = (0..batch)
                .map(|i| {
                    let payload = payload(began.elapsed(), call, i);
                    Append {
                        conversation: ConversationId((call * batch + i) * 7919),
                        payload: Bytes::from(payload),
                    }
                })
                .collect();
            sending.append(records, Box::new(|result| result.expect("taken")));
        }
    });
    let mut took = Vec::new();
    while (took.len() as u64) < total / batch * batch {
        took.push(read.recv().await.expect("readers run"));
    }
    sender.await.expect("no panic");
    took.sort();
    took
}

/// The same load by the driver alone: what the log costs beside it.
fn bare(own: &Own, rate: u64, batch: u64, lasts: Duration) -> Vec<Duration> {
    let mut config = rdkafka::ClientConfig::new();
    config
        .set("bootstrap.servers", own.settings.brokers.join(","))
        .set("socket.nagle.disable", "true");
    let producer: ThreadedProducer<DefaultProducerContext> = config
        .clone()
        .set("enable.idempotence", "true")
        .set("compression.type", &own.settings.compression)
        .set("linger.ms", own.settings.linger_ms.to_string())
        .create()
        .expect("a producer");
    let consumer: BaseConsumer = config
        .set("group.id", "test-bare")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", own.settings.fetch_wait_ms.to_string())
        .create()
        .expect("a consumer");
    let topic = own.settings.topic.clone();
    let mut list = TopicPartitionList::new();
    for partition in 0..own.settings.partitions {
        let (_, end) = consumer
            .fetch_watermarks(&topic, partition as i32, Duration::from_secs(5))
            .expect("the end");
        list.add_partition_offset(&topic, partition as i32, Offset::Offset(end))
            .expect("a position");
    }
    consumer.assign(&list).expect("assigned");
    let (began, total) = (Instant::now(), rate * lasts.as_secs() / batch * batch);
    let partitions = own.settings.partitions;
    let sender = std::thread::spawn(move || {
        for call in 0..total / batch {
            let due = Duration::from_nanos(call * batch * 1_000_000_000 / rate);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            for i in 0..batch {
                let conversation = ConversationId((call * batch + i) * 7919);
                let payload = payload(began.elapsed(), call, i);
                let key = conversation.0.to_be_bytes();
                let record = BaseRecord::to(&topic)
                    .partition((conversation.slot() % partitions) as i32)
                    .key(&key[..])
                    .payload(&payload[..]);
                assert!(producer.send(record).is_ok());
            }
        }
        producer.flush(Duration::from_secs(10)).expect("taken");
    });
    let mut took = Vec::new();
    while (took.len() as u64) < total {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            let payload = message.payload().expect("bytes");
            let sent = payload[..8].try_into().map(u64::from_be_bytes);
            let sent = Duration::from_nanos(sent.expect("8 bytes"));
            took.push(began.elapsed().saturating_sub(sent));
        }
    }
    sender.join().expect("no panic");
    took.sort();
    took
}

fn payload(at: Duration, call: u64, i: u64) -> Vec<u8> {
    let text = format!(
        "{:x} I'll be there at nine, can you bring the {i} keys?",
        call * 7919
    );
    let mut payload = (at.as_nanos() as u64).to_be_bytes().to_vec();
    payload.extend(text.bytes().cycle().take(192));
    payload
}

#[test]
#[ignore = "a measurement, for a quiet machine"]
fn latency_and_processor_time() {
    run(async {
        for (compression, linger_ms, rate, batch) in [
            ("zstd", 5, 200, 1),
            ("zstd", 5, 10_000, 20),
            ("lz4", 5, 10_000, 20),
        ] {
            let mut own = Own::migrated("load", 12).await;
            own.settings.compression = compression.to_owned();
            own.settings.linger_ms = linger_ms;
            let log = Arc::new(own.open().await);
            load(&log, 200, 1, Duration::from_secs(1)).await;
            let before = cpu();
            tokio::time::sleep(Duration::from_secs(3)).await;
            let idle = (cpu() - before).as_secs_f64() / 3.0;
            let (before, began) = (cpu(), Instant::now());
            let took = load(&log, rate, batch, Duration::from_secs(8)).await;
            let (used, lasted) = (cpu() - before, began.elapsed());
            log.shutdown();
            let before = cpu();
            let alone = bare(&own, rate, batch, Duration::from_secs(8));
            let alone_used = cpu() - before;
            println!(
                "the driver alone: p50 {:?} p99 {:?}, {alone_used:?} of processor time",
                alone[alone.len() / 2],
                alone[alone.len() * 99 / 100],
            );
            let at = |part: usize| took[(took.len() * part / 1000).min(took.len() - 1)];
            let metrics = log.metrics();
            let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            println!(
                "{compression} linger {linger_ms} ms {rate}/s by {batch}: append to read p50 {:?} p99 {:?} p99.9 {:?}; {} records in {lasted:?}, \
                 {used:?} of processor time ({:.1} us a record), report after {} us on average; at rest {:.1} % of a core",
                at(500),
                at(990),
                at(999),
                took.len(),
                used.as_secs_f64() * 1e6 / took.len() as f64,
                get(&metrics.produce_us) / get(&metrics.appended).max(1),
                idle * 100.0,
            );
        }
    });
}
