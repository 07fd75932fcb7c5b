//! The section `[redis]`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings_core::ports::registry::REGISTRY_DEADLINE;

use crate::{Secret, StartError};

/// How Redis is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One server, the first of `nodes`.
    #[default]
    Standalone,
    /// A primary with replicas; `nodes` are the Sentinels, which are asked who the primary is.
    Sentinel,
    /// Redis Cluster; `nodes` are some of its members.
    Cluster,
}

/// Settings of the section `[redis]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How Redis is run: `standalone`, `sentinel` or `cluster`.
    pub mode: Mode,
    /// Addresses as `host:port`: the server, the Sentinels, or members of the cluster. Name several:
    /// one that is down is passed over.
    pub nodes: Vec<String>,
    /// The name that the Sentinels have for the primary; only for `sentinel`.
    pub service: String,
    /// The ACL user; empty: the default one.
    pub user: String,
    /// Its password; empty: none.
    pub password: Secret,
    /// The Sentinels' own ACL user; empty: the default one.
    pub sentinel_user: String,
    /// The Sentinels' own password; empty: none.
    pub sentinel_password: Secret,
    /// The database's number; a cluster has only 0.
    pub database: i64,
    /// TLS to Redis and the Sentinels.
    pub tls: bool,
    /// Certificates (PEM) of the authorities that are trusted for it; empty: the system's.
    pub tls_ca_file: String,
    /// What every key and channel begins with, for a Redis shared with others.
    pub key_prefix: String,
    /// Whether a start without Redis fails. `false`: the server starts degraded and connects when Redis
    /// is there; a wrong password or service name still ends the start.
    pub required: bool,
    /// The longest a call waits for an answer; the send path waits for some of them, so not above 100.
    pub timeout_ms: u64,
    /// The longest it takes to connect to one node, TLS and log-in included.
    pub connect_timeout_ms: u64,
    /// Calls on their way at once; more wait, at most `timeout_ms`.
    pub in_flight_max: usize,
    /// A session not refreshed for so long is forgotten. Gateways refresh every 30 s.
    pub session_ttl_s: u64,
    /// Sessions of one user; of more the oldest are forgotten.
    pub sessions_per_user_max: usize,
    /// How long a user's last-seen is kept.
    pub last_seen_days: u64,
    /// How old an answer about a user's sessions may be when no change was heard of; 0: always asked.
    pub session_cache_ms: u64,
    /// Users whose sessions are in that cache.
    pub session_cache_max: usize,
    /// Users whose presence this server watches for its sessions; of more the rest shows no changes.
    pub watched_max: usize,
    /// How long a mark of something that waits is kept after the last one of its user.
    pub marks_days: u64,
    /// Marks of one user; with so many waiting one more says nothing.
    pub marks_per_user_max: usize,
    /// Recent events kept of one conversation; 0: none.
    pub recent_events_max: usize,
    /// An event of more bytes isn't kept there.
    pub recent_bytes_max: usize,
    /// How long a conversation's recent events are kept after the last one.
    pub recent_ttl_s: u64,
    /// How long a conversation's list of members is kept in Redis.
    pub members_ttl_s: u64,
    /// How long it is kept in the server, where changes are heard of by messages that can be lost.
    pub members_cache_ttl_s: u64,
    /// Members in all the lists that one server keeps (8 bytes each).
    pub members_cache_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            mode: Mode::Standalone,
            nodes: vec!["127.0.0.1:6379".to_owned()],
            service: "tidings".to_owned(),
            user: String::new(),
            password: Secret::default(),
            sentinel_user: String::new(),
            sentinel_password: Secret::default(),
            database: 0,
            tls: false,
            tls_ca_file: String::new(),
            key_prefix: String::new(),
            required: true,
            timeout_ms: REGISTRY_DEADLINE.as_millis() as u64,
            connect_timeout_ms: 1_000,
            in_flight_max: 4_096,
            session_ttl_s: 90,
            sessions_per_user_max: 64,
            last_seen_days: 30,
            session_cache_ms: 60_000,
            session_cache_max: 100_000,
            watched_max: 200_000,
            marks_days: 30,
            marks_per_user_max: 1_000,
            recent_events_max: 50,
            recent_bytes_max: 64 << 10,
            recent_ttl_s: 600,
            members_ttl_s: 3_600,
            members_cache_ttl_s: 600,
            members_cache_max: 4_000_000,
        }
    }
}

const DAY_MS: u64 = 86_400_000;

impl Settings {
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(super) fn session_ttl(&self) -> Duration {
        Duration::from_secs(self.session_ttl_s)
    }

    pub(super) fn last_seen_ms(&self) -> u64 {
        self.last_seen_days * DAY_MS
    }

    pub(super) fn marks_ms(&self) -> u64 {
        self.marks_days * DAY_MS
    }

    /// What is wrong with the settings by themselves.
    pub(super) fn checked(&self) -> Result<(), StartError> {
        let needed = |setting, given: bool, reason: &str| {
            given
                .then_some(())
                .ok_or_else(|| StartError::wrong(setting, reason))
        };
        needed(
            "redis.nodes",
            !self.nodes.is_empty(),
            "names no address; give at least one as host:port",
        )?;
        for node in &self.nodes {
            if host_and_port(node).is_none() {
                let reason = format!("`{node}` isn't of the form host:port");
                return Err(StartError::wrong("redis.nodes", reason));
            }
        }
        needed(
            "redis.service",
            self.mode != Mode::Sentinel || !self.service.is_empty(),
            "is empty; give the name that the Sentinels monitor",
        )?;
        needed(
            "redis.database",
            self.database >= 0 && (self.mode != Mode::Cluster || self.database == 0),
            "must be 0 or more, and 0 for a cluster",
        )?;
        needed(
            "redis.key_prefix",
            !self.key_prefix.contains(['{', '}']),
            "must hold no braces: they say which of a key's parts chooses its slot",
        )?;
        needed(
            "redis.timeout_ms",
            (1..=5_000).contains(&self.timeout_ms),
            "must be between 1 and 5000",
        )?;
        for (setting, value, max) in [
            ("redis.connect_timeout_ms", self.connect_timeout_ms, 60_000),
            ("redis.session_ttl_s", self.session_ttl_s, 86_400),
            ("redis.last_seen_days", self.last_seen_days, 3_650),
            ("redis.marks_days", self.marks_days, 3_650),
            ("redis.recent_ttl_s", self.recent_ttl_s, 86_400),
            ("redis.members_ttl_s", self.members_ttl_s, 30 * 86_400),
            (
                "redis.members_cache_ttl_s",
                self.members_cache_ttl_s,
                86_400,
            ),
            ("redis.in_flight_max", self.in_flight_max as u64, 1 << 20),
            (
                "redis.sessions_per_user_max",
                self.sessions_per_user_max as u64,
                10_000,
            ),
            (
                "redis.marks_per_user_max",
                self.marks_per_user_max as u64,
                100_000,
            ),
        ] {
            if !(1..=max).contains(&value) {
                let reason = format!("must be between 1 and {max}");
                return Err(StartError::wrong(setting, reason));
            }
        }
        Ok(())
    }
}

/// The parts of `host:port`; an IPv6 address stands in brackets.
pub(super) fn host_and_port(node: &str) -> Option<(&str, u16)> {
    let (host, port) = node.rsplit_once(':')?;
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    let port: u16 = port.parse().ok()?;
    (!host.is_empty() && port > 0).then_some((host, port))
}
