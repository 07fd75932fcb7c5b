//! What an operator can set about the directory's database.

use serde::{Deserialize, Serialize};

use crate::Secret;

/// Whether the connections are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// Plain text: for a network that nobody else listens on.
    #[default]
    Off,
    /// Encrypted, to a server whose certificate `tls_ca` vouches for; else no connection.
    Require,
}

/// Section `[postgres]`: the directory on PostgreSQL through PgBouncer in transaction mode.
///
/// The pool's defaults are those that operators know from other services; each server has its own
/// pool, and PgBouncer's `default_pool_size` bounds what PostgreSQL sees of all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where PgBouncer is: name or address. PostgreSQL itself does too.
    pub host: String,
    /// PgBouncer's port. Default 6432.
    pub port: u16,
    /// The database. Default `tidings`.
    pub database: String,
    /// The user. Default `tidings`.
    pub user: String,
    /// The user's password.
    pub password: Secret,
    /// Where PostgreSQL itself is, for `tidings migrate` only: locks of a session don't work through
    /// PgBouncer. Empty (default): as `host`.
    pub direct_host: String,
    /// PostgreSQL's own port, for `tidings migrate` only. Default 5432.
    pub direct_port: u16,
    /// `off` (default) or `require`; the direct connection too.
    pub tls: Tls,
    /// File with the certificates (PEM) that may vouch for the server. Needed for `tls = "require"`.
    pub tls_ca: String,
    /// The most connections of this server. Default 25.
    pub pool_max: usize,
    /// How many connections are kept open though idle, if there may be so many. Default 8.
    pub pool_min_idle: usize,
    /// How many calls may wait for a connection; the next one is refused at once. Default 4,096.
    pub pool_waiters_max: usize,
    /// How long to wait for a connection of the pool, in ms; `call_timeout_ms` ends it earlier. Default 30,000.
    pub acquire_timeout_ms: u64,
    /// How long to wait for a new connection, in ms. Default 3,000.
    pub connect_timeout_ms: u64,
    /// How long a connection beyond `pool_min_idle` may be idle before it is closed, in ms. Default 600,000 (10 min).
    pub idle_timeout_ms: u64,
    /// How old a connection may grow, in ms. Default 1,800,000 (30 min).
    pub max_lifetime_ms: u64,
    /// How long a connection that has been idle may take to show that it lives, in ms. Default 3,000.
    pub validation_timeout_ms: u64,
    /// A connection held by one call for longer than this, in ms, is logged with the call's name. Default 60,000.
    pub held_warning_ms: u64,
    /// How long a call may take, in ms, the wait for a connection and repeats included. Default 5,000.
    pub call_timeout_ms: u64,
    /// How often a call is repeated that PostgreSQL undid because of another one (a deadlock, a
    /// creation at the same time) or whose connection had died before it. Default 5.
    pub retries_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            host: "127.0.0.1".into(),
            port: 6432,
            database: "tidings".into(),
            user: "tidings".into(),
            password: Secret::default(),
            direct_host: String::new(),
            direct_port: 5432,
            tls: Tls::Off,
            tls_ca: String::new(),
            pool_max: 25,
            pool_min_idle: 8,
            pool_waiters_max: 4_096,
            acquire_timeout_ms: 30_000,
            connect_timeout_ms: 3_000,
            idle_timeout_ms: 600_000,
            max_lifetime_ms: 1_800_000,
            validation_timeout_ms: 3_000,
            held_warning_ms: 60_000,
            call_timeout_ms: 5_000,
            retries_max: 5,
        }
    }
}
