//! What a server is made of, whoever is behind each port. The one place that chooses.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tidings_core::in_process::InProcessPeers;
use tidings_core::ports::BoxFuture;
use tidings_core::ports::dead_letters::DeadLetters;
use tidings_core::ports::directory::Directory;
use tidings_core::ports::log::Log;
use tidings_core::ports::members::MemberLists;
use tidings_core::ports::ownership::Ownership;
use tidings_core::ports::peers::Peers;
use tidings_core::ports::registry::Registry;
use tidings_core::ports::store::Store;
use tidings_protocol::wire::Feature;

use crate::config::{Config, Mode};
use crate::embedded;
use crate::metrics::Page;

/// A server's parts.
pub struct Parts {
    /// Records.
    pub log: Arc<dyn Log>,
    /// Which of its partitions are routed here.
    pub ownership: Arc<dyn Ownership>,
    /// Rows.
    pub store: Arc<dyn Store>,
    /// Records that can't be read.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// Who is who.
    pub directory: Arc<dyn Directory>,
    /// Who is in a conversation, near at hand.
    pub members: Arc<dyn MemberLists>,
    /// Who is where.
    pub registry: Arc<dyn Registry>,
    /// The way between gateways and routers.
    pub peers: Arc<dyn Peers>,
    /// The queues of those that are here.
    pub local: Arc<InProcessPeers>,
    /// This server's number among gateways' ids.
    pub server: u32,
    /// The log's epoch, which cursors carry.
    pub epoch: u32,
    /// The folder of the keys that sign tokens: the same for all servers.
    pub keys: PathBuf,
    /// How each part is.
    pub health: Vec<Box<dyn Part>>,
    /// The parts' own figures.
    pub figures: Box<dyn Figures>,
    /// What is done at the end.
    pub keeper: Box<dyn Keeper>,
}

/// A part as readiness asks it. One that isn't well makes the server degraded, never unready: what it is
/// for is missing, the rest goes on.
pub trait Part: Send + Sync {
    /// Its name in `/health/ready`.
    fn name(&self) -> &'static str;

    /// What clients get less of while the part is as it is. Asked often, so it tells what is known.
    fn impairs(&self) -> Vec<Feature> {
        Vec::new()
    }

    /// Its circuit breakers.
    fn breakers(&self) -> Vec<Breaker> {
        Vec::new()
    }

    /// Details to show, or what is wrong in a few words.
    fn check(&self) -> BoxFuture<'_, Result<Value, String>>;
}

/// How a circuit breaker stands.
#[derive(Clone, Copy, Debug)]
pub struct Breaker {
    /// Before which engine, and which of its calls.
    pub name: &'static str,
    /// 0: closed, all calls go through; 1: half open, one does; 2: open, none.
    pub state: u8,
    /// Times it opened.
    pub opened: u64,
    /// Calls that it didn't let through.
    pub rejected: u64,
}

/// Figures for a scrape.
pub trait Figures: Send + Sync {
    /// Writes them.
    fn write(&self, page: &mut Page<'_>) -> std::fmt::Result;
}

/// The end of the parts, after routing has ended.
pub trait Keeper: Send + Sync {
    /// Called when the server begins to drain, before its sessions are sent away.
    fn drain(&self) {}

    /// Makes durable what should be, says good-bye, and closes; within this time if the disk answers.
    fn end(&self, within: Duration) -> BoxFuture<'_, ()>;
}

/// Opens the directory alone, and says in which folder the keys are that sign tokens.
///
/// # Errors
/// As [`open`].
pub async fn directory(config: &Config) -> anyhow::Result<(Arc<dyn Directory>, PathBuf)> {
    match config.server.mode {
        Mode::Embedded => {
            let directory = embedded::directory(config)?;
            Ok((directory, embedded::keys(config)?))
        }
        #[cfg(feature = "cluster")]
        Mode::Cluster => Box::pin(crate::cluster::directory(config)).await,
        #[cfg(not(feature = "cluster"))]
        Mode::Cluster => Err(without_cluster()),
    }
}

/// What dead letters are replayed with.
pub struct Replaying {
    /// The letters.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// Where their records are appended again.
    pub log: Arc<dyn Log>,
    /// What is known of their senders.
    pub store: Arc<dyn Store>,
    /// Whether a server routes what is appended meanwhile; else the next start does.
    pub is_routed: bool,
}

/// Opens the dead letters alone, to be read.
///
/// # Errors
/// As [`open`].
pub async fn dead_letters(config: &Config) -> anyhow::Result<Arc<dyn DeadLetters>> {
    match config.server.mode {
        Mode::Embedded => Ok(embedded::dead_letters(config)),
        #[cfg(feature = "cluster")]
        Mode::Cluster => Box::pin(crate::cluster::dead_letters(config)).await,
        #[cfg(not(feature = "cluster"))]
        Mode::Cluster => Err(without_cluster()),
    }
}

/// Opens what dead letters are replayed with.
///
/// # Errors
/// As [`open`].
pub async fn replaying(config: &Config) -> anyhow::Result<Replaying> {
    match config.server.mode {
        Mode::Embedded => embedded::replaying(config),
        #[cfg(feature = "cluster")]
        Mode::Cluster => Box::pin(crate::cluster::replaying(config)).await,
        #[cfg(not(feature = "cluster"))]
        Mode::Cluster => Err(without_cluster()),
    }
}

/// Makes and upgrades what the engines hold; a line for each thing done.
///
/// # Errors
/// As [`open`].
pub async fn migrate(config: &Config) -> anyhow::Result<Vec<String>> {
    match config.server.mode {
        Mode::Embedded => Ok(vec![
            "server.mode is embedded: everything is made and upgraded at the start".to_owned(),
        ]),
        #[cfg(feature = "cluster")]
        Mode::Cluster => Box::pin(crate::cluster::migrate(config)).await,
        #[cfg(not(feature = "cluster"))]
        Mode::Cluster => Err(without_cluster()),
    }
}

#[cfg(not(feature = "cluster"))]
fn without_cluster() -> anyhow::Error {
    anyhow::anyhow!(
        "server.mode: this program was built without cluster mode: cargo build --release --features cluster"
    )
}

/// Tries again for as long as `wait` while what is missing may come by itself, less and less often.
///
/// # Errors
/// The last one.
pub async fn waiting<T, F: Future<Output = anyhow::Result<T>>>(
    wait: Duration,
    mut open: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let until = tokio::time::Instant::now() + wait;
    let mut pause = Duration::from_millis(250);
    loop {
        let error = match open().await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        if !may_pass(&error) || tokio::time::Instant::now() + pause > until {
            return Err(error);
        }
        tracing::warn!("{error:#}; waiting for it");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(WAIT_PAUSE_MAX);
    }
}

/// The longest pause between two tries of a start.
const WAIT_PAUSE_MAX: Duration = Duration::from_secs(5);

#[cfg(feature = "cluster")]
fn may_pass(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<tidings_engines::StartError>();
    error.is_some_and(|error| error.may_pass)
}

/// What the embedded parts miss doesn't come by itself.
#[cfg(not(feature = "cluster"))]
fn may_pass(_: &anyhow::Error) -> bool {
    false
}

/// Opens what the settings choose. Called within the control runtime.
///
/// # Errors
/// When something can't be opened: one line that names the setting or the folder.
pub async fn open(config: &Config) -> anyhow::Result<Parts> {
    match config.server.mode {
        Mode::Embedded => embedded::parts(config),
        #[cfg(feature = "cluster")]
        Mode::Cluster => Box::pin(crate::cluster::parts(config)).await,
        #[cfg(not(feature = "cluster"))]
        Mode::Cluster => Err(without_cluster()),
    }
}
