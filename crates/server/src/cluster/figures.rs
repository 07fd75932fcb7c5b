//! The engines' figures for a scrape.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidings_engines::cassandra::{CassandraStore, Requests};
use tidings_engines::kafka::KafkaLog;
use tidings_engines::postgres::PostgresDirectory;
use tidings_engines::{peers, redis, s3};

use crate::metrics::Page;
use crate::parts::Figures;

/// Where they come from.
pub struct EngineFigures {
    /// Kafka's.
    pub log: Arc<KafkaLog>,
    /// Cassandra's.
    pub store: Arc<CassandraStore>,
    /// PostgreSQL's.
    pub directory: Arc<PostgresDirectory>,
    /// Redis'.
    pub registry: Arc<redis::Metrics>,
    /// S3's.
    pub blobs: Arc<s3::Metrics>,
    /// The streams' between servers.
    pub peers: Arc<peers::Metrics>,
}

enum Kind {
    Counter,
    Gauge,
    /// A counter of microseconds, shown as seconds.
    Seconds,
    /// A gauge of microseconds, shown as seconds.
    SecondsGauge,
}

use Kind::{Counter, Gauge, Seconds, SecondsGauge};

type Figure<'a> = (&'static str, &'static str, Kind, &'a AtomicU64);

impl EngineFigures {
    fn log_and_peers(&self) -> Vec<Figure<'_>> {
        let (log, peers) = (self.log.metrics(), &*self.peers);
        vec![
            (
                "chat_kafka_appended",
                "Records that Kafka took, of all topics.",
                Counter,
                &log.appended,
            ),
            (
                "chat_kafka_appended_bytes",
                "Bytes of those records' payloads, before compression.",
                Counter,
                &log.appended_bytes,
            ),
            (
                "chat_kafka_refused",
                "Records refused before they were given to Kafka, or by it.",
                Counter,
                &log.refused,
            ),
            (
                "chat_kafka_unknown",
                "Records of which nobody knows whether Kafka took them, at the time they were reported.",
                Counter,
                &log.unknown,
            ),
            (
                "chat_kafka_produce_seconds",
                "Seconds from append to Kafka's report, summed over appended.",
                Seconds,
                &log.produce_us,
            ),
            (
                "chat_kafka_queue_bytes",
                "Bytes that wait for Kafka.",
                Gauge,
                &log.queue_bytes,
            ),
            ("chat_kafka_read", "Records read.", Counter, &log.read),
            (
                "chat_kafka_read_bytes",
                "Bytes of payloads read.",
                Counter,
                &log.read_bytes,
            ),
            (
                "chat_kafka_jumps",
                "Reads that made the reader jump to another position.",
                Counter,
                &log.jumps,
            ),
            (
                "chat_kafka_commits",
                "Positions committed.",
                Counter,
                &log.commits,
            ),
            (
                "chat_kafka_commit_failures",
                "Commits that failed; each is tried again.",
                Counter,
                &log.commit_failures,
            ),
            (
                "chat_kafka_owned",
                "Partitions that this server owns.",
                Gauge,
                &log.owned,
            ),
            (
                "chat_kafka_rebalances",
                "Times that partitions came or went.",
                Counter,
                &log.rebalances,
            ),
            (
                "chat_kafka_lost",
                "Partitions that were lost without notice.",
                Counter,
                &log.lost,
            ),
            (
                "chat_kafka_producers",
                "Producers that had to be made anew after an error of no return.",
                Counter,
                &log.producers,
            ),
            (
                "chat_peers_links_up",
                "Servers this one sends to.",
                Gauge,
                &peers.links_up,
            ),
            (
                "chat_peers_heard",
                "Servers this one hears.",
                Gauge,
                &peers.heard,
            ),
            (
                "chat_peers_connected",
                "Links to other servers that came up.",
                Counter,
                &peers.connected,
            ),
            (
                "chat_peers_connect_failed",
                "Tries to connect that failed.",
                Counter,
                &peers.connect_failed,
            ),
            (
                "chat_peers_refused",
                "Connections of others that were refused: no certificate of the CA, another cluster or version.",
                Counter,
                &peers.refused,
            ),
            (
                "chat_peers_silent",
                "Links closed because nothing was heard for silence_max_ms.",
                Counter,
                &peers.silent,
            ),
            (
                "chat_peers_bad_frames",
                "Links closed because of a frame that can't be read.",
                Counter,
                &peers.bad_frames,
            ),
            (
                "chat_peers_batches_out",
                "Batches sent; messages per batch tell how well they are gathered.",
                Counter,
                &peers.batches_out,
            ),
            (
                "chat_peers_messages_out",
                "Messages sent; one for several workers of a server counts once.",
                Counter,
                &peers.messages_out,
            ),
            (
                "chat_peers_bytes_out",
                "Bytes sent, before TLS.",
                Counter,
                &peers.bytes_out,
            ),
            (
                "chat_peers_batches_in",
                "Batches received.",
                Counter,
                &peers.batches_in,
            ),
            (
                "chat_peers_messages_in",
                "Messages received.",
                Counter,
                &peers.messages_in,
            ),
            (
                "chat_peers_bytes_in",
                "Bytes received in batches.",
                Counter,
                &peers.bytes_in,
            ),
            (
                "chat_peers_to_router_dropped",
                "Messages to routers of other servers dropped: the link's queue was full, or it is down.",
                Counter,
                &peers.to_router_dropped,
            ),
            (
                "chat_peers_to_gateway_dropped",
                "Messages to gateways of other servers dropped: the link's queue was full, or it is down.",
                Counter,
                &peers.to_gateway_dropped,
            ),
            (
                "chat_peers_unowned_dropped",
                "Messages to routers dropped because nobody here knows, or has, the partition's owner.",
                Counter,
                &peers.unowned_dropped,
            ),
            (
                "chat_peers_stale_dropped",
                "Messages of routers dropped because another has taken over since.",
                Counter,
                &peers.stale_dropped,
            ),
            (
                "chat_peers_unknown_skipped",
                "Things that a server of a later release said and this one has no word for: passed over.",
                Counter,
                &peers.unknown_skipped,
            ),
            (
                "chat_peers_losses_told",
                "Batches that told the receiver of a loss.",
                Counter,
                &peers.losses_told,
            ),
            (
                "chat_peers_losses_heard",
                "Batches that told this server of a loss.",
                Counter,
                &peers.losses_heard,
            ),
            (
                "chat_peers_round_trip_seconds",
                "The round trip of the last ping, over whatever link, in seconds.",
                SecondsGauge,
                &peers.round_trip_micros,
            ),
        ]
    }

    fn store_and_directory(&self) -> Vec<Figure<'_>> {
        let (store, directory) = (self.store.metrics(), self.directory.metrics());
        vec![
            (
                "chat_cassandra_rows_written",
                "Rows and cursors written.",
                Counter,
                &store.rows_written,
            ),
            (
                "chat_cassandra_retries",
                "Attempts after one that failed.",
                Counter,
                &store.retries,
            ),
            (
                "chat_cassandra_speculative",
                "Requests asked of a second node because the first was slow.",
                Counter,
                &store.speculative,
            ),
            (
                "chat_cassandra_speculative_refused",
                "Requests that would have had to wait for the first node, had it been slow, since too many had been asked twice.",
                Counter,
                &store.speculative_refused,
            ),
            (
                "chat_cassandra_coalesced",
                "Pages that were answered by somebody else's read of the same page.",
                Counter,
                &store.coalesced,
            ),
            (
                "chat_cassandra_reread",
                "Pages read again because rows were missing in them.",
                Counter,
                &store.reread,
            ),
            (
                "chat_postgres_pool_size",
                "Open connections.",
                Gauge,
                &directory.pool_size,
            ),
            (
                "chat_postgres_pool_in_use",
                "Connections that a call holds.",
                Gauge,
                &directory.pool_in_use,
            ),
            (
                "chat_postgres_pool_idle",
                "Connections that nobody holds.",
                Gauge,
                &directory.pool_idle,
            ),
            (
                "chat_postgres_pool_waiters",
                "Calls that wait for a connection, a new one included.",
                Gauge,
                &directory.pool_waiters,
            ),
            (
                "chat_postgres_pool_waits",
                "Waits for a connection that ended, with or without one.",
                Counter,
                &directory.pool_waits,
            ),
            (
                "chat_postgres_pool_wait_seconds",
                "Their time in all, in seconds.",
                Seconds,
                &directory.pool_wait_us,
            ),
            (
                "chat_postgres_pool_refused",
                "Calls that got no connection in time or found too many waiting.",
                Counter,
                &directory.pool_refused,
            ),
            (
                "chat_postgres_pool_held_long",
                "Connections held for longer than held_warning_ms.",
                Counter,
                &directory.pool_held_long,
            ),
            (
                "chat_postgres_calls",
                "Calls begun.",
                Counter,
                &directory.calls,
            ),
            (
                "chat_postgres_errors",
                "Calls answered with Unavailable, Full or Corrupt.",
                Counter,
                &directory.errors,
            ),
            (
                "chat_postgres_retries",
                "Repeats of calls that PostgreSQL undid or whose connection had died.",
                Counter,
                &directory.retries,
            ),
        ]
    }

    fn registry_and_blobs(&self) -> Vec<Figure<'_>> {
        let (registry, blobs) = (&*self.registry, &*self.blobs);
        vec![
            ("chat_redis_calls", "Calls made.", Counter, &registry.calls),
            (
                "chat_redis_errors",
                "Calls refused by Redis or lost with its connection.",
                Counter,
                &registry.errors,
            ),
            (
                "chat_redis_timeouts",
                "Calls without an answer in time.",
                Counter,
                &registry.timeouts,
            ),
            (
                "chat_redis_disconnected",
                "Calls that failed at once, since there is no connection.",
                Counter,
                &registry.disconnected,
            ),
            (
                "chat_redis_answered",
                "Calls answered, the count of the latency.",
                Counter,
                &registry.answered,
            ),
            (
                "chat_redis_latency_seconds",
                "The sum of their latencies in seconds.",
                Seconds,
                &registry.latency_us,
            ),
            (
                "chat_redis_connects",
                "Connections made (to a primary or a cluster).",
                Counter,
                &registry.connects,
            ),
            (
                "chat_redis_connected",
                "Whether there is a connection, 0 or 1.",
                Gauge,
                &registry.connected,
            ),
            (
                "chat_redis_subscriptions",
                "Subscriptions made; each one but the first followed a lost one.",
                Counter,
                &registry.subscriptions,
            ),
            (
                "chat_redis_subscribed",
                "Whether changes of other servers are heard of, 0 or 1.",
                Gauge,
                &registry.subscribed,
            ),
            (
                "chat_redis_session_cache_hits",
                "Questions for a user's sessions answered from the cache.",
                Counter,
                &registry.session_cache_hits,
            ),
            (
                "chat_redis_session_cache_misses",
                "Those for which Redis was asked.",
                Counter,
                &registry.session_cache_misses,
            ),
            (
                "chat_redis_watched",
                "Users watched.",
                Gauge,
                &registry.watched,
            ),
            (
                "chat_redis_watch_refused",
                "Users not watched for want of room.",
                Counter,
                &registry.watch_refused,
            ),
            (
                "chat_redis_presence_told",
                "Changes of presence told to gateways.",
                Counter,
                &registry.presence_told,
            ),
            (
                "chat_redis_members_hits",
                "Lists of members found in the server.",
                Counter,
                &registry.members_hits,
            ),
            (
                "chat_redis_members_redis_hits",
                "Lists found in Redis.",
                Counter,
                &registry.members_redis_hits,
            ),
            (
                "chat_redis_members_misses",
                "Lists for which the directory was asked.",
                Counter,
                &registry.members_misses,
            ),
            (
                "chat_s3_calls",
                "Calls made; a part of an upload is one.",
                Counter,
                &blobs.calls,
            ),
            (
                "chat_s3_errors",
                "Calls that failed for want of the service: refused, broken off, no room.",
                Counter,
                &blobs.errors,
            ),
            (
                "chat_s3_timeouts",
                "Calls without an answer in time.",
                Counter,
                &blobs.timeouts,
            ),
            (
                "chat_s3_answered",
                "Calls answered, the count of the latency.",
                Counter,
                &blobs.answered,
            ),
            (
                "chat_s3_latency_seconds",
                "The sum of their latencies in seconds.",
                Seconds,
                &blobs.latency_us,
            ),
            (
                "chat_s3_bytes_put",
                "Bytes stored.",
                Counter,
                &blobs.bytes_put,
            ),
            (
                "chat_s3_bytes_got",
                "Bytes read.",
                Counter,
                &blobs.bytes_got,
            ),
            (
                "chat_s3_too_large",
                "Objects refused or removed since they were too large.",
                Counter,
                &blobs.too_large,
            ),
        ]
    }

    fn requests(&self, page: &mut Page<'_>) -> std::fmt::Result {
        let store = self.store.metrics();
        let each = |of: fn(&Requests) -> &AtomicU64| {
            let one = |name: &str, requests| (name.to_owned(), load(of(requests)));
            [one("read", &store.reads), one("write", &store.writes)].into_iter()
        };
        page.counters(
            "chat_cassandra_requests",
            "Requests answered or failed.",
            "kind",
            each(|r| &r.requests),
        )?;
        page.counters(
            "chat_cassandra_errors",
            "Requests that failed, timeouts included.",
            "kind",
            each(|r| &r.errors),
        )?;
        page.counters(
            "chat_cassandra_timeouts",
            "Requests not answered in time.",
            "kind",
            each(|r| &r.timeouts),
        )?;
        page.counters(
            "chat_cassandra_request_microseconds",
            "The sum of the requests' times.",
            "kind",
            each(|r| &r.micros),
        )
    }
}

fn load(figure: &AtomicU64) -> u64 {
    figure.load(Ordering::Relaxed)
}

impl Figures for EngineFigures {
    fn write(&self, page: &mut Page<'_>) -> std::fmt::Result {
        let all = [
            self.log_and_peers(),
            self.store_and_directory(),
            self.registry_and_blobs(),
        ];
        for (name, help, kind, value) in all.into_iter().flatten() {
            let value = load(value);
            match kind {
                Counter => page.counter(name, help, value)?,
                Gauge => page.gauge(name, help, value as i64)?,
                Seconds => page.counter_of_seconds(name, help, value)?,
                SecondsGauge => page.gauge_of_seconds(name, help, value)?,
            }
        }
        self.requests(page)
    }
}
