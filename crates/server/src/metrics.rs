//! What `/metrics` shows: figures gathered elsewhere, under their names.
//!
//! Nothing is counted here. Workers, router, log and store keep their own figures where they
//! are cheap to keep, each written by one thread; a scrape reads and adds them up.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tidings_core::in_process::PeerCounts;
use tidings_core::record::Kind;
use tidings_gateway::host::Gateways;
use tidings_gateway::logic::{GatewayMetrics, LATENCY_BOUNDS};
use tidings_gateway::worker::{Pool, Stats};
use tidings_protocol::{CloseCode, ErrorCode, Named};

use crate::aside::Aside;
use crate::modes::{FEATURES, Modes};
use crate::parts::{Breaker, Part};
use crate::routed::Routed;
use crate::routers::Routers;
use crate::waiting::Waiting;

/// Where the figures come from.
#[derive(Clone)]
pub struct Sources {
    /// Of each gateway worker.
    pub gateways: Vec<Arc<GatewayMetrics>>,
    /// Of all gateway workers together.
    pub workers: Arc<Gateways>,
    /// Of each worker's sockets.
    pub sockets: Vec<Arc<Stats>>,
    /// All connections.
    pub pool: Arc<Pool>,
    /// Of messages without a session.
    pub routed: Arc<Routed>,
    /// Of the routers here.
    pub routers: Arc<Routers>,
    /// What waits for members without a session.
    pub waiting: Arc<Waiting>,
    /// Records that can't be read.
    pub aside: Arc<Aside>,
    /// How the features are.
    pub modes: Arc<Modes>,
    /// Whose circuit breakers are shown.
    pub parts: Arc<[Box<dyn Part>]>,
    /// Messages dropped between them.
    pub peers: Arc<PeerCounts>,
    /// Those of log, store and so on.
    pub engines: Arc<dyn crate::parts::Figures>,
}

/// The text of a scrape, in the OpenMetrics format.
pub struct Scrape(Registry);

impl Scrape {
    /// A scrape of these sources.
    pub fn new(sources: Sources) -> Scrape {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Figures(sources)));
        Scrape(registry)
    }

    /// The present figures.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string fails only if a figure's own encoding does.
        prometheus_client::encoding::text::encode(&mut text, &self.0).unwrap_or_default();
        text
    }
}

struct Figures(Sources);

impl std::fmt::Debug for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Figures")
    }
}

/// Where figures are written, each under its name.
pub struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// A counter; `_total` is added to its name.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> std::fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(
            self.0
                .encode_descriptor(name, help, None, MetricType::Counter)?,
        )
    }

    /// A counter of microseconds, shown as seconds.
    pub fn counter_of_seconds(&mut self, name: &str, help: &str, us: u64) -> std::fmt::Result {
        let counter = ConstCounter::new(us as f64 / 1e6);
        counter.encode(
            self.0
                .encode_descriptor(name, help, None, MetricType::Counter)?,
        )
    }

    /// A gauge of microseconds, shown as seconds.
    pub fn gauge_of_seconds(&mut self, name: &str, help: &str, us: u64) -> std::fmt::Result {
        let gauge = ConstGauge::new(us as f64 / 1e6);
        gauge.encode(
            self.0
                .encode_descriptor(name, help, None, MetricType::Gauge)?,
        )
    }

    /// Counters of one name, told apart by a label.
    pub fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl Iterator<Item = (String, u64)>,
    ) -> std::fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (of, value) in values {
            ConstCounter::new(value).encode(family.encode_family(&[(label, of.as_str())])?)?;
        }
        Ok(())
    }

    /// Gauges of one name, told apart by a label.
    pub fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl Iterator<Item = (String, i64)>,
    ) -> std::fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (of, value) in values {
            ConstGauge::new(value).encode(family.encode_family(&[(label, of.as_str())])?)?;
        }
        Ok(())
    }

    /// A gauge.
    pub fn gauge(&mut self, name: &str, help: &str, value: i64) -> std::fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(
            self.0
                .encode_descriptor(name, help, None, MetricType::Gauge)?,
        )
    }
}

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let page = &mut Page(encoder);
        self.connections(page)?;
        self.messages(page)?;
        self.latency(page)?;
        self.degraded(page)?;
        self.storage(page)
    }
}

impl Figures {
    fn sum(&self, of: impl Fn(&GatewayMetrics) -> &AtomicU64) -> u64 {
        self.0
            .gateways
            .iter()
            .map(|g| of(g).load(Ordering::Relaxed))
            .sum()
    }

    fn level(&self, of: impl Fn(&GatewayMetrics) -> &AtomicI64) -> i64 {
        self.0
            .gateways
            .iter()
            .map(|g| of(g).load(Ordering::Relaxed))
            .sum()
    }

    fn socket(&self, of: impl Fn(&Stats) -> &AtomicU64) -> u64 {
        self.0
            .sockets
            .iter()
            .map(|s| of(s).load(Ordering::Relaxed))
            .sum()
    }

    fn connections(&self, page: &mut Page<'_>) -> std::fmt::Result {
        let refused = self.socket(|s| &s.refused);
        page.gauge(
            "chat_connections_active",
            "Open WebSocket connections.",
            self.0.pool.connections() as i64,
        )?;
        page.counter(
            "chat_connection_attempts",
            "Connections accepted or refused.",
            self.socket(|s| &s.accepted) + refused,
        )?;
        let failures = refused + self.socket(|s| &s.handshake_failures) + self.sum(|g| &g.failures);
        page.counter(
            "chat_connection_failures",
            "Connections that never became a session, but for those that left without a word.",
            failures,
        )?;
        page.gauge(
            "chat_sessions_active",
            "Sessions that signed in.",
            self.level(|g| &g.sessions),
        )?;
        page.gauge(
            "chat_sessions_stale",
            "Sessions closed because nothing came for 5 minutes.",
            self.sum(|g| &g.stale) as i64,
        )?;
        page.counter(
            "chat_sign_ins_sent_away",
            "Connections told to come back later, as more wanted to sign in than could.",
            self.sum(|g| &g.sent_away),
        )?;
        page.counter(
            "chat_sessions_lagging",
            "Times a session read too slowly and was sent to catch up.",
            self.sum(|g| &g.lagging),
        )?;
        page.counter(
            "chat_sessions_dead",
            "Sessions that didn't confirm three times.",
            self.sum(|g| &g.dead),
        )?;
        page.counter("chat_syncs", "Catch-ups answered.", self.sum(|g| &g.syncs))?;
        page.counter(
            "chat_syncs_incomplete",
            "Catch-ups of which a part could not be had.",
            self.sum(|g| &g.syncs_incomplete),
        )?;
        page.counter(
            "chat_reads_recent",
            "Reads of events that were in the gateway's memory.",
            self.sum(|g| &g.reads_recent),
        )?;
        page.counter(
            "chat_reads_shared",
            "Reads of events answered by an equal one under way.",
            self.sum(|g| &g.reads_shared),
        )?;
        page.counter(
            "chat_panics",
            "Panics contained to their connection.",
            self.socket(|s| &s.panics),
        )?;
        page.counter(
            "chat_socket_writes",
            "Write calls on sockets.",
            self.socket(|s| &s.writes),
        )?;
        page.counter(
            "chat_socket_sent_bytes",
            "Bytes written to sockets.",
            self.socket(|s| &s.bytes_out),
        )?;
        let closes = CloseCode::ALL.iter().map(|&code| {
            (
                code.code().to_string(),
                self.0.gateways.iter().map(|g| g.closes(code)).sum(),
            )
        });
        page.counters(
            "chat_closes",
            "Sessions closed by the server, by close code.",
            "code",
            closes,
        )?;
        let refusals = ErrorCode::ALL.iter().map(|&code| {
            (
                code.as_str().to_owned(),
                self.0.gateways.iter().map(|g| g.refusals(code)).sum(),
            )
        });
        page.counters(
            "chat_refusals",
            "Commands refused, by error code.",
            "code",
            refusals,
        )
    }

    fn messages(&self, page: &mut Page<'_>) -> std::fmt::Result {
        let router = self.0.routers.counters();
        let kinds = [
            ("text", Kind::Text),
            ("json", Kind::Json),
            ("empty", Kind::Empty),
        ];
        let taken = kinds.iter().enumerate().map(|(i, &(name, kind))| {
            let count = self.sum(|g| &g.taken[i]) + self.0.routed.taken(kind);
            (name.to_owned(), count)
        });
        page.counters(
            "chat_messages_sent",
            "Messages taken from clients and appended.",
            "type",
            taken,
        )?;
        page.counter(
            "chat_messages_delivered",
            "Messages that every gateway concerned has handed on.",
            router.delivered,
        )?;
        let failed = self.sum(|g| &g.failed) + router.undelivered;
        page.counter(
            "chat_messages_failed",
            "Messages refused for good, or not handed on by some gateway.",
            failed,
        )?;
        page.counter(
            "chat_deliveries",
            "Events put on sockets, one a session.",
            self.sum(|g| &g.deliveries),
        )?;
        page.gauge(
            "chat_pending_messages",
            "Events pushed and not yet confirmed by a device.",
            self.level(|g| &g.pending),
        )?;
        page.counter(
            "chat_messages_duplicate",
            "Sends answered as known.",
            router.duplicates,
        )?;
        page.counter(
            "chat_messages_conflicting",
            "Repeats of a counter with another id.",
            router.conflicts,
        )?;
        page.counter(
            "chat_verdicts_refused",
            "Sends answered stale, over, gap or fork.",
            router.refused,
        )?;
        page.counter(
            "chat_dead_letters",
            "Records that could not be read.",
            router.dead_letters,
        )?;
        page.counter(
            "chat_dead_letters_set_aside",
            "Dead letters that `tidings dead-letters` shows.",
            self.0.aside.set_aside.load(Ordering::Relaxed),
        )?;
        page.counter(
            "chat_dead_letters_not_set_aside",
            "Dead letters that are in the log only: all tries to set them aside failed.",
            self.0.aside.failed.load(Ordering::Relaxed),
        )?;
        page.counter(
            "chat_inbox_marks",
            "Marks put for members without a session.",
            self.0.waiting.marks.load(Ordering::Relaxed),
        )?;
        page.counter(
            "chat_inbox_marks_cleared",
            "Marks that a member's cursor has reached.",
            self.0.workers.marks_cleared.load(Ordering::Relaxed),
        )?;
        page.counter(
            "chat_inbox_marks_dropped",
            "Marks not put: no room, or the registry and the log refused.",
            self.0.waiting.dropped.load(Ordering::Relaxed),
        )?;
        page.counter(
            "chat_resends",
            "Events pushed again because nobody confirmed them.",
            self.sum(|g| &g.resent),
        )?;
        page.counter(
            "chat_gaps",
            "Holes noticed between router and gateway.",
            self.sum(|g| &g.gaps),
        )?;
        page.counter(
            "chat_digest_gaps",
            "Digests of heads that a gateway missed.",
            self.sum(|g| &g.digest_gaps),
        )?;
        let dropped = self.0.peers.to_gateway_dropped.load(Ordering::Relaxed)
            + self.0.peers.to_router_dropped.load(Ordering::Relaxed);
        page.counter(
            "chat_peer_messages_dropped",
            "Messages that didn't fit a queue between servers.",
            dropped,
        )
    }

    fn latency(&self, page: &mut Page<'_>) -> std::fmt::Result {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let mut buckets: Vec<(f64, u64)> = LATENCY_BOUNDS
            .iter()
            .map(|&us| (us as f64 / 1e6, 0))
            .collect();
        buckets.push((f64::MAX, 0));
        let mut sum = 0;
        for gateway in &self.0.gateways {
            sum += load(&gateway.latency.sum);
            for (bucket, count) in buckets.iter_mut().zip(&gateway.latency.buckets) {
                bucket.1 += load(count);
            }
        }
        let count = buckets.iter().map(|b| b.1).sum();
        let help = "Seconds from a send's arrival to its acknowledgement.";
        let mut histogram =
            page.0
                .encode_descriptor("chat_message_latency", help, None, MetricType::Histogram)?;
        histogram.encode_histogram::<NoLabelSet>(sum as f64 / 1e6, count, &buckets, None)
    }

    fn degraded(&self, page: &mut Page<'_>) -> std::fmt::Result {
        let modes = &self.0.modes;
        page.gauges(
            "chat_mode",
            "How a feature is: 0 as usual, 1 reduced, 2 off.",
            "feature",
            FEATURES.iter().map(|&feature| {
                let state = i64::from(modes.state(feature));
                (feature.name().to_owned(), state)
            }),
        )?;
        page.counter(
            "chat_mode_changes",
            "Times that a feature became less than usual.",
            modes.changes.load(Ordering::Relaxed),
        )?;
        page.counter(
            "chat_sends_shed",
            "Sends refused because the server had more to do than it could.",
            self.sum(|g| &g.shed),
        )?;
        page.gauge(
            "chat_sends_waiting",
            "Sends that wait for their answer.",
            self.0.workers.sends_waiting() as i64,
        )?;
        page.gauge(
            "chat_sends_waiting_max",
            "How many sends may wait; more are refused for a second or a few.",
            self.0.workers.sends_waiting_max() as i64,
        )?;
        let breakers: Vec<Breaker> = self.0.parts.iter().flat_map(|p| p.breakers()).collect();
        if breakers.is_empty() {
            return Ok(());
        }
        let named = |of: fn(&Breaker) -> u64| {
            let breakers = breakers.iter();
            breakers.map(move |breaker| (breaker.name.to_owned(), of(breaker)))
        };
        page.gauges(
            "chat_breaker_state",
            "What a circuit breaker does: 0 closed, 1 half open, 2 open.",
            "breaker",
            named(|breaker| breaker.state.into()).map(|(name, state)| (name, state as i64)),
        )?;
        page.counters(
            "chat_breaker_opened",
            "Times that a circuit breaker opened.",
            "breaker",
            named(|breaker| breaker.opened),
        )?;
        page.counters(
            "chat_breaker_rejected",
            "Calls that a circuit breaker didn't let through.",
            "breaker",
            named(|breaker| breaker.rejected),
        )
    }

    fn storage(&self, page: &mut Page<'_>) -> std::fmt::Result {
        let router = self.0.routers.counters();
        self.0.engines.write(page)?;
        let backlogs = self.0.routers.backlogs().into_iter();
        page.gauges(
            "chat_backlog_records",
            "Records committed and not yet stored, of the partitions routed here.",
            "partition",
            backlogs.map(|(partition, records)| (partition.0.to_string(), records as i64)),
        )?;
        page.counter(
            "chat_store_retries",
            "Writes sent to the store again.",
            router.store_retries,
        )?;
        page.counter(
            "chat_cold_loads",
            "Conversations read from the store.",
            router.cold_loads,
        )?;
        page.counter(
            "chat_cold_rows_undone",
            "Cold reads that were ahead of their record.",
            router.undone,
        )
    }
}
