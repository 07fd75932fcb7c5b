//! The section `[cassandra]` of the configuration.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings_core::ports::store::STORE_DEADLINE;

use crate::{Secret, StartError};

/// Whose answers a read or write waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// More than half of all replicas, in whatever data centre.
    #[default]
    Quorum,
    /// More than half of the replicas in the local data centre: where each region has its own
    /// routers and is brought up to date from the log.
    LocalQuorum,
}

/// How the store reaches Cassandra, and how its tables are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Nodes to ask first, as `host:port` or `host` (port 9042). The others are learned from them.
    pub hosts: Vec<String>,
    /// The keyspace; letters, digits and `_`, at most 48.
    pub keyspace: String,
    /// The data centre next to this server. Empty: the only one there is.
    pub local_datacenter: String,
    /// Copies of each row in the local data centre: `migrate` makes the keyspace so, and a keyspace
    /// with fewer is refused at start.
    pub replication_factor: u32,
    /// `quorum` or `local_quorum`, for reads and writes alike.
    pub consistency: Consistency,
    /// Empty: no login.
    pub username: String,
    /// Of `username`.
    pub password: Secret,
    /// Whether to speak TLS. Nodes are checked by their IP address, which their certificates must name.
    pub tls: bool,
    /// PEM file with the certificates that sign the nodes'; needed with `tls`.
    pub tls_ca_file: String,
    /// Nodes behind address translation, each `announced=reachable` (`10.0.0.1=192.0.2.1:19042`);
    /// others are reached as they announce themselves, and `hosts` as they are named.
    pub address_map: Vec<String>,
    /// How long opening a connection may take.
    pub connect_timeout_ms: u64,
    /// How long a call may take, retries included; more than 5,000 counts as 5,000.
    pub request_timeout_ms: u64,
    /// How often an idle connection is asked whether it still lives.
    pub heartbeat_ms: u64,
    /// How long the answer to a heartbeat may take; then the connection is closed.
    pub heartbeat_timeout_ms: u64,
    /// Connections to each node of the local data centre.
    pub connections_local: usize,
    /// Connections to each node elsewhere; 0: none, and requests never leave the data centre. The
    /// driver knows one size for all nodes, so any other number than 0 allows requests to go
    /// elsewhere when no local node answers, over as many connections as `connections_local` says.
    pub connections_remote: usize,
    /// Requests under way on one connection, at most 32,768, which is the protocol's limit. The
    /// driver spreads requests over a node's connections, so what is enforced is the sum over
    /// all local ones; further requests wait, within their time.
    pub max_requests_per_connection: usize,
    /// A read that takes longer is asked of a second node as well; 0: never. At most one read in
    /// ten is, so that a slow cluster isn't asked twice as much.
    pub speculative_read_ms: u64,
    /// The same for writes, which are repeatable: what gets past a node that hangs.
    pub speculative_write_ms: u64,
    /// How many partitions one put writes at the same time.
    pub concurrent_batches: usize,
    /// Rows of one partition that are written by one request.
    pub batch_rows_max: usize,
    /// Bytes of one partition after which a further request is begun.
    pub batch_bytes_max: usize,
    /// After how many days event rows expire: 365 or more, since a sender's row names events up to
    /// half a year back; 0: never. `migrate` puts it into the table.
    pub events_ttl_days: u32,
    /// Refuse nodes that acknowledge a write before it is on their disk (`commitlog_sync:
    /// periodic`): the log is trimmed behind the store, trusting its word.
    pub require_durable_commitlog: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            hosts: vec!["127.0.0.1:9042".into()],
            keyspace: "tidings".into(),
            local_datacenter: String::new(),
            replication_factor: 3,
            consistency: Consistency::Quorum,
            username: String::new(),
            password: Secret::default(),
            tls: false,
            tls_ca_file: String::new(),
            address_map: Vec::new(),
            connect_timeout_ms: 5_000,
            request_timeout_ms: 5_000,
            heartbeat_ms: 30_000,
            heartbeat_timeout_ms: 5_000,
            connections_local: 8,
            connections_remote: 2,
            max_requests_per_connection: 32_768,
            speculative_read_ms: 50,
            speculative_write_ms: 100,
            concurrent_batches: 128,
            batch_rows_max: 100,
            batch_bytes_max: 64 << 10,
            events_ttl_days: 365,
            require_durable_commitlog: true,
        }
    }
}

/// The least `events_ttl_days` besides 0 (see [`tidings_core::rows::BEFORE_BY_SEQ_MAX`]).
const EVENTS_TTL_DAYS_MIN: u32 = 365;
/// Cassandra's limit is 20 years.
const EVENTS_TTL_DAYS_MAX: u32 = 7_300;
/// Each connection numbers the requests under way with 15 bits.
const REQUESTS_MAX: usize = 32_768;

impl Settings {
    /// The time of a whole call.
    pub(super) fn deadline(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms).min(STORE_DEADLINE)
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// Seconds; 0: none.
    pub(super) fn events_ttl(&self) -> u32 {
        self.events_ttl_days * 24 * 3600
    }

    /// Finds what can be seen to be wrong without asking anybody.
    pub(super) fn validate(&self) -> Result<(), StartError> {
        let wrong = |setting, reason: &str| Err(StartError::wrong(setting, reason));
        if self.hosts.is_empty() || self.hosts.iter().any(|host| host.trim().is_empty()) {
            return wrong("cassandra.hosts", "name at least one node, as host:port");
        }
        if !keyspace_is_plain(&self.keyspace) {
            return wrong(
                "cassandra.keyspace",
                "use lower-case letters, digits and _, beginning with a letter, at most 48 characters",
            );
        }
        if self.replication_factor == 0 {
            return wrong("cassandra.replication_factor", "must be at least 1");
        }
        if self.username.is_empty() && !self.password.0.is_empty() {
            return wrong("cassandra.username", "a password is set but no user");
        }
        if self.tls && self.tls_ca_file.is_empty() {
            return wrong("cassandra.tls_ca_file", "needed with tls");
        }
        for (setting, value) in [
            ("cassandra.connect_timeout_ms", self.connect_timeout_ms),
            ("cassandra.request_timeout_ms", self.request_timeout_ms),
            ("cassandra.heartbeat_ms", self.heartbeat_ms),
            ("cassandra.heartbeat_timeout_ms", self.heartbeat_timeout_ms),
            ("cassandra.connections_local", self.connections_local as u64),
            (
                "cassandra.concurrent_batches",
                self.concurrent_batches as u64,
            ),
            ("cassandra.batch_bytes_max", self.batch_bytes_max as u64),
        ] {
            if value == 0 {
                return wrong(setting, "must be at least 1");
            }
        }
        if !(1..=REQUESTS_MAX).contains(&self.max_requests_per_connection) {
            return wrong(
                "cassandra.max_requests_per_connection",
                "must be 1 to 32,768, the protocol's limit",
            );
        }
        if !(1..=1_000).contains(&self.batch_rows_max) {
            return wrong("cassandra.batch_rows_max", "must be 1 to 1,000");
        }
        let days = EVENTS_TTL_DAYS_MIN..=EVENTS_TTL_DAYS_MAX;
        if self.events_ttl_days != 0 && !days.contains(&self.events_ttl_days) {
            return wrong(
                "cassandra.events_ttl_days",
                "must be 365 to 7,300, or 0 to keep events for ever: younger ones are still read to decide about new ones",
            );
        }
        Ok(())
    }
}

/// Whether it can stand in a statement as it is.
fn keyspace_is_plain(name: &str) -> bool {
    name.len() <= 48
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}
