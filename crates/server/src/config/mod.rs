//! Settings: what they are, and where each effective value came from.
//!
//! Later wins: built-in default, configuration file, environment (`TIDINGS_SECTION__KEY`),
//! flags. An unknown name is refused with the nearest valid one, whatever its source.

mod load;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use load::{ConfigError, Flags, Loaded, Origin, load};

/// Every setting, grouped by subsystem.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where clients connect.
    pub server: Server,
    /// Where operators look; loopback unless changed.
    pub admin: Admin,
    /// Where durable data is kept.
    pub data: Data,
    /// Who may sign in, and with what.
    pub auth: Auth,
    /// What one client may ask for.
    pub limits: Limits,
    /// The log's memory and files.
    pub log: LogSettings,
    /// The store's memory.
    pub store: StoreSettings,
    /// The log of a cluster.
    #[cfg(feature = "cluster")]
    pub kafka: tidings_engines::kafka::Settings,
    /// The store of a cluster.
    #[cfg(feature = "cluster")]
    pub cassandra: tidings_engines::cassandra::Settings,
    /// The directory of a cluster.
    #[cfg(feature = "cluster")]
    pub postgres: tidings_engines::postgres::Settings,
    /// The registry of a cluster.
    #[cfg(feature = "cluster")]
    pub redis: tidings_engines::redis::Settings,
    /// The blobs of a cluster.
    #[cfg(feature = "cluster")]
    pub s3: tidings_engines::s3::Settings,
    /// The other servers of a cluster.
    #[cfg(feature = "cluster")]
    pub peers: tidings_engines::peers::Settings,
}

/// What stands behind the ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Everything in this process and its folder.
    #[default]
    Embedded,
    /// Kafka, Cassandra, Redis, PostgreSQL and S3, shared with other servers.
    Cluster,
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// `embedded`: everything in this process and its folder; `cluster`: Kafka, Cassandra, Redis, PostgreSQL
    /// and S3, shared with other servers.
    pub mode: Mode,
    /// Address and port of HTTP and WebSocket.
    pub listen: SocketAddr,
    /// Address and port of TLS; empty: none. Needs `tls_certificate` and `tls_key`.
    pub listen_tls: String,
    /// PEM file of the certificate chain.
    pub tls_certificate: String,
    /// PEM file of the private key, mode 0600.
    pub tls_key: String,
    /// Whether plain connections of other machines are taken: only behind a proxy that ends TLS.
    pub plain_from_outside: bool,
    /// Addresses of the proxies in front; who connects through them is who they name last in
    /// `X-Forwarded-For`. Without it all their clients share the limits of one address.
    pub proxies: Vec<IpAddr>,
    /// Origins of pages that may open a WebSocket, beside the server's own; exact, e.g. `https://app.example.com`.
    pub origins: Vec<String>,
    /// Gateway workers; 0: one a core.
    pub workers: usize,
    /// Live connections over all workers; beyond it new ones get 503.
    pub connections_max: usize,
    /// Seconds between heartbeats, 5 to 60.
    pub heartbeat_s: u64,
    /// Seconds over which clients are told to come back when the server drains.
    pub drain_spread_s: u64,
}

impl Default for Server {
    fn default() -> Server {
        Server {
            mode: Mode::Embedded,
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            listen_tls: String::new(),
            tls_certificate: String::new(),
            tls_key: String::new(),
            plain_from_outside: false,
            proxies: Vec::new(),
            origins: Vec::new(),
            workers: 0,
            connections_max: 100_000,
            heartbeat_s: 30,
            drain_spread_s: 30,
        }
    }
}

/// Where operators look.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// Address and port of `/health/live`, `/health/ready` and `/metrics`.
    pub listen: SocketAddr,
}

impl Default for Admin {
    fn default() -> Admin {
        Admin {
            listen: SocketAddr::from(([127, 0, 0, 1], 9464)),
        }
    }
}

/// Where durable data is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// The folder; made when it isn't there.
    pub dir: PathBuf,
}

impl Default for Data {
    fn default() -> Data {
        Data {
            dir: PathBuf::from("data"),
        }
    }
}

/// Who may sign up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignUp {
    /// Only connections from this machine.
    #[default]
    Loopback,
    /// Everybody.
    Open,
    /// Nobody: users come from API keys and signed tokens.
    Closed,
}

/// A key of a customer's own backend that signs its users' tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenKey {
    /// The `kid` of the tokens.
    pub kid: String,
    /// `EdDSA` or `RS256`; tokens that say otherwise are refused.
    pub algorithm: String,
    /// PEM file of the public key.
    pub public_key: String,
    /// The `iss` the tokens must have.
    pub issuer: String,
    /// The `aud` the tokens must have.
    pub audience: String,
}

/// Who may sign in, and with what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// `loopback`, `open` or `closed`.
    pub sign_up: SignUp,
    /// Minutes an access token lives, 2 to 60.
    pub access_minutes: u64,
    /// Days a refresh token lives.
    pub refresh_days: u64,
    /// The folder of the key that signs the server's own tokens. Empty: `auth` in `data.dir`; in a cluster
    /// all servers need the same one.
    pub keys_dir: PathBuf,
    /// Keys of backends that sign tokens for their users: `[[auth.keys]]`.
    pub keys: Vec<TokenKey>,
}

impl Default for Auth {
    fn default() -> Auth {
        Auth {
            sign_up: SignUp::Loopback,
            access_minutes: 15,
            refresh_days: 30,
            keys_dir: PathBuf::new(),
            keys: Vec::new(),
        }
    }
}

/// What one client may ask for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Sends a second and user.
    pub sends_per_second: u32,
    /// Bytes of bodies a minute and user.
    pub send_bytes_per_minute: u64,
    /// WebSocket frames a second and session.
    pub frames_per_second: u32,
    /// Joins an hour and user.
    pub joins_per_hour: u32,
    /// Look-ups of other users an hour and user.
    pub lookups_per_hour: u32,
    /// Connections that haven't signed in, of one address.
    pub unauthenticated_per_address: u32,
    /// Sessions of each worker that sign in at once; the others wait for their turn, or are told when to come back.
    pub sign_ins_at_once: usize,
    /// Bytes of frames queued for one session that reads slowly.
    pub session_queue_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sends_per_second: 20,
            send_bytes_per_minute: 5 << 20,
            frames_per_second: 100,
            joins_per_hour: 200,
            lookups_per_hour: 100,
            unauthenticated_per_address: 20,
            sign_ins_at_once: 32,
            session_queue_bytes: 256 << 10,
        }
    }
}

/// The log's memory and files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSettings {
    /// Bytes of a segment file.
    pub segment_bytes: u64,
    /// Bytes of records that wait for the disk; beyond it sends are refused.
    pub queue_bytes: usize,
}

impl Default for LogSettings {
    fn default() -> LogSettings {
        LogSettings {
            segment_bytes: 64 << 20,
            queue_bytes: 64 << 20,
        }
    }
}

/// The store's memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSettings {
    /// Bytes of rows gathered before they are written to a segment.
    pub memtable_bytes: usize,
    /// Bytes of decoded blocks kept for readers.
    pub cache_bytes: usize,
}

impl Default for StoreSettings {
    fn default() -> StoreSettings {
        StoreSettings {
            memtable_bytes: 16 << 20,
            cache_bytes: 8 << 20,
        }
    }
}

/// Checks that single values can't: what contradicts itself or lies outside its range.
fn validate(config: &Config) -> Result<(), (String, String)> {
    let range = |key: &str, value: u64, from: u64, to: u64| {
        if (from..=to).contains(&value) {
            Ok(())
        } else {
            Err((key.to_owned(), format!("{value} is not in {from} to {to}")))
        }
    };
    range("server.heartbeat_s", config.server.heartbeat_s, 5, 60)?;
    range(
        "server.drain_spread_s",
        config.server.drain_spread_s,
        0,
        600,
    )?;
    range("server.workers", config.server.workers as u64, 0, 256)?;
    range(
        "server.connections_max",
        config.server.connections_max as u64,
        1,
        10_000_000,
    )?;
    // `reauth_required` comes a minute before a token ends: one of a minute would begin with it.
    range("auth.access_minutes", config.auth.access_minutes, 2, 60)?;
    range("auth.refresh_days", config.auth.refresh_days, 1, 365)?;
    range(
        "limits.session_queue_bytes",
        config.limits.session_queue_bytes as u64,
        16 << 10,
        16 << 20,
    )?;
    range(
        "log.segment_bytes",
        config.log.segment_bytes,
        1 << 20,
        1 << 32,
    )?;
    range(
        "log.queue_bytes",
        config.log.queue_bytes as u64,
        1 << 20,
        1 << 32,
    )?;
    range(
        "store.memtable_bytes",
        config.store.memtable_bytes as u64,
        1 << 20,
        1 << 31,
    )?;
    range(
        "store.cache_bytes",
        config.store.cache_bytes as u64,
        1 << 20,
        1 << 34,
    )?;
    let mut kids = BTreeMap::new();
    for key in &config.auth.keys {
        if kids.insert(&key.kid, ()).is_some() {
            return Err((
                "auth.keys".into(),
                format!("kid \"{}\" stands twice", key.kid),
            ));
        }
        if !["EdDSA", "RS256"].contains(&key.algorithm.as_str()) {
            return Err((
                "auth.keys".into(),
                format!("algorithm \"{}\" is not EdDSA or RS256", key.algorithm),
            ));
        }
    }
    let tls = &config.server;
    if !tls.listen_tls.is_empty() {
        if tls.listen_tls.parse::<SocketAddr>().is_err() {
            return Err((
                "server.listen_tls".into(),
                format!("\"{}\" is not an address and port", tls.listen_tls),
            ));
        }
        if tls.tls_certificate.is_empty() || tls.tls_key.is_empty() {
            return Err((
                "server.listen_tls".into(),
                "needs server.tls_certificate and server.tls_key".into(),
            ));
        }
    }
    Ok(())
}
