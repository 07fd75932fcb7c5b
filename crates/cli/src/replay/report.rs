//! What came of a replay, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};

use super::observers::Observed;
use super::order::Compared;

/// What became of the writing.
pub(super) struct Played {
    pub acked: u64,
    pub seconds: f64,
    pub opened: u64,
    /// Closed by the server or broken.
    pub lost: u64,
    /// Closed to make room for another nick.
    pub evicted: u64,
    pub most_open: usize,
    /// Answers `gap`.
    pub gaps: u64,
    /// Refusals to be tried again, by code.
    pub refusals: BTreeMap<String, u64>,
    /// How long the published rates held the log up, in seconds.
    pub held: f64,
    /// From send to ack, in microseconds.
    pub latency: Histogram<u64>,
    /// The highest seq an answer named.
    pub head: u64,
}

pub(super) struct Replayed {
    pub nicks: usize,
    pub system: u64,
    pub messages: usize,
    pub seed: u64,
    pub played: Played,
    pub observed: Observed,
    pub order: Compared,
}

impl Replayed {
    /// Whether everything was accepted, seen and, if played in order, is in the file's order.
    pub fn is_good(&self, in_order: bool) -> bool {
        self.played.acked == self.messages as u64
            && self.observed.troubles.is_empty()
            && self.order.untold == 0
            && (!in_order || self.order.swapped == 0)
    }

    fn rate(&self) -> f64 {
        self.played.acked as f64 / self.played.seconds.max(1e-9)
    }
}

impl Serialize for Replayed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let played = &self.played;
        let latency = |q: f64| played.latency.value_at_quantile(q) as f64 / 1000.0;
        serde_json::json!({
            "messages": self.messages,
            "system_lines": self.system,
            "nicks": self.nicks,
            "accepted": played.acked,
            "seconds": played.seconds,
            "messages_per_second": self.rate(),
            "ack_ms": { "p50": latency(0.5), "p99": latency(0.99), "max": latency(1.0) },
            "connections": played.opened,
            "connections_most": played.most_open,
            "evicted": played.evicted,
            "lost": played.lost,
            "gaps": played.gaps,
            "refusals": played.refusals,
            "held_by_limits_s": played.held,
            "order": {
                "untold": self.order.untold,
                "swapped": self.order.swapped,
                "farthest": self.order.farthest,
            },
            "observed": self.observed,
            "seed": self.seed,
        })
        .serialize(serializer)
    }
}

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let played = &self.played;
        let mut row = |name: &str, value: String| writeln!(f, "{name:<26} {value:>12}");
        row("messages of the log", self.messages.to_string())?;
        row("  accepted", played.acked.to_string())?;
        row("system lines, not sent", self.system.to_string())?;
        row("nicks", self.nicks.to_string())?;
        row("seconds", format!("{:.1}", played.seconds))?;
        row("messages/s", format!("{:.0}", self.rate()))?;
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            let micros = played.latency.value_at_quantile(quantile);
            let name = format!("send to ack, {name}, ms");
            row(&name, format!("{:.2}", micros as f64 / 1000.0))?;
        }
        row("connections opened", played.opened.to_string())?;
        row("  at once, at most", played.most_open.to_string())?;
        row("  closed to make room", played.evicted.to_string())?;
        row("  lost", played.lost.to_string())?;
        row("answers `gap`", played.gaps.to_string())?;
        for (code, count) in &played.refusals {
            row(&format!("refused, {code}"), count.to_string())?;
        }
        row("held by the limits, s", format!("{:.1}", played.held))?;
        row("neighbours swapped", self.order.swapped.to_string())?;
        row("  farthest from its place", self.order.farthest.to_string())?;
        row("messages never seen", self.order.untold.to_string())?;
        row("observers", self.observed.observers.to_string())?;
        row("  disconnections", self.observed.disconnections.to_string())?;
        row("seed", self.seed.to_string())?;
        for trouble in &self.observed.troubles {
            writeln!(f, "an observer: {trouble}")?;
        }
        Ok(())
    }
}
