//! What the orchestrator and its load processes say to each other: one JSON value a line.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What a load process is to do next.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Order {
    /// Signs users `first..first + count` in, or back in with their cursors, and syncs them.
    Open {
        first: usize,
        count: usize,
        /// Handshakes under way at once.
        window: usize,
        /// Whether conversations met for the first time are read from their beginning.
        whole: bool,
        seconds: f64,
    },
    /// Opens bare sockets to the probe, with or without a WebSocket upgrade.
    OpenRaw {
        address: SocketAddr,
        count: usize,
        window: usize,
        upgrade: bool,
        seconds: f64,
    },
    /// Cuts sessions off without a word.
    CutOff { first: usize, count: usize },
    /// Closes the bare sockets.
    CloseRaw,
    /// Sends messages and waits until everybody has them.
    Send(SendPlan),
    /// Users `first..first + count` stop reading.
    Stall { first: usize, count: usize },
    /// They read again, and catch up.
    Resume { seconds: f64 },
    /// Has users `first..first + count`, who are cut off meanwhile, come back as apps do, until all have been
    /// away and have caught up.
    Return {
        first: usize,
        count: usize,
        seconds: f64,
    },
    /// Waits for so many bytes on all bare sockets together since the last such order.
    AwaitRaw { bytes: u64, seconds: f64 },
    /// Keeps the sessions alive for a time.
    Rest { seconds: f64 },
    /// Compares what each session has with the highest seq of its conversations.
    Check,
}

/// Who sends what, when.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SendPlan {
    /// Users `first..first + count` take turns.
    pub first: usize,
    /// How many.
    pub count: usize,
    /// In an open loop these take turns instead, if any are named.
    #[serde(default)]
    pub among: Vec<usize>,
    /// The conversation; 0: each sender's smallest one.
    pub conversation: u64,
    /// Bursts a second, at their intended times; 0: closed loop.
    pub rate: f64,
    /// Messages of one burst, which is one frame.
    pub burst: u32,
    /// Closed loop: unacknowledged messages of one sender.
    pub in_flight: u32,
    /// Bursts in all; 0: for `seconds`.
    pub bursts: u64,
    /// How long bursts are begun; when `bursts` is given, the deadline for all.
    pub seconds: f64,
    /// Bytes of a body, at least 16.
    pub body: usize,
    /// Who is refused gives the message up and waits as told, and the order ends with the last send.
    #[serde(default)]
    pub gives_up: bool,
}

/// What came of an order. Fields that say nothing about it are zero.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    /// From the order's first deed to its last effect.
    pub seconds: f64,
    /// Sessions or sockets that are open and complete.
    pub opened: u64,
    /// Messages sent, acknowledged and received.
    pub sent: u64,
    pub acked: u64,
    /// Given up when they were refused, and not sent as the server wanted none.
    pub refused: u64,
    pub withheld: u64,
    /// Acknowledged in each second.
    pub by_second: Vec<u64>,
    pub delivered: u64,
    /// Events that came in pages.
    pub paged: u64,
    /// Deliveries that were due.
    pub due: u64,
    /// Bytes received and the reads they took.
    pub bytes: u64,
    pub reads: u64,
    /// Found by `check`, or on the way.
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    /// Sessions told `lagging`, and connections the server closed.
    pub lagging: u64,
    pub closed: u64,
    /// Intended time to ack, and to each delivery.
    pub ack: Quantiles,
    pub deliver: Quantiles,
    /// From being cut off to having caught up, of each session that came back.
    pub away: Quantiles,
    /// The parts of that: until the attempt that succeeded, until that was signed in, and from there on.
    pub stages: [Quantiles; 3],
    /// Attempts to come back, also those that failed.
    pub attempts: u64,
    /// From asking to the first page, in microseconds.
    pub first_page_us: u64,
    /// CPU of the probe itself, where it measures it.
    pub cpu_ns: u64,
    /// The time ran out.
    pub late: bool,
    /// The first few errors, and how often each was met.
    pub problems: BTreeMap<String, u64>,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Quantiles {
    /// Of a histogram of nanoseconds.
    pub fn of(histogram: &hdrhistogram::Histogram<u64>) -> Quantiles {
        let us = |q| histogram.value_at_quantile(q) as f64 / 1e3;
        Quantiles {
            p50: us(0.5),
            p99: us(0.99),
            max: histogram.max() as f64 / 1e3,
        }
    }
}

/// What the bare server is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum RawOrder {
    /// Writes to every socket `writes` times, each `bytes` long, a round every `interval_us`.
    Fan {
        writes: u64,
        bytes: usize,
        interval_us: u64,
    },
    /// Forgets all sockets that were closed.
    Sweep,
}
