//! Streams between servers: gateways and routers of different processes.
//!
//! Each server connects to all others and sends over the connections it made; what it receives
//! comes over those the others made, so that no two servers have to agree on one. Both ends show a
//! certificate of the cluster's own CA ([`tls`]). A link is a bounded queue whose content is
//! written as one batch whenever the write before is done ([`link`], [`queue`]), in the order it
//! was put in. What doesn't fit is dropped, and the next batch says so: the receiver's gateways then
//! learn that something was lost, as they do in one process.
//!
//! Who owns a partition is said by its owner to all ([`owners`]): each take-over has a term, of
//! which the greater counts, and what a router of a lower term says is dropped wherever the greater
//! one is known. What crosses a link is thereby of the term that its server told last over it.
//!
//! Nothing here has to arrive, see [`tidings_core::ports::peers`].

mod dial;
mod frame;
mod hello;
mod incoming;
mod item;
mod link;
mod metrics;
mod owners;
mod queue;
mod settings;
mod shared;
mod tls;
mod wire;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tidings_core::ids::{GatewayId, Partition, Position};
use tidings_core::in_process::InProcessPeers;
use tidings_core::ports::peers::{Peers, ToGateway, ToRouter};
use tokio::net::TcpListener;

pub use dial::Standing;
pub use metrics::Metrics;
pub use settings::Settings;

use crate::StartError;
use dial::Server;
use hello::Hello;
use shared::Shared;
use tls::Tls;

/// How long a drain waits for what is queued to be written.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// A link that is up, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// The other server's number.
    pub server: u32,
    /// Where it was reached.
    pub address: SocketAddr,
    /// The version of messages that both speak.
    pub version: u32,
    /// The round trip of the last ping in microseconds; 0: none yet.
    pub round_trip_micros: u64,
}

/// [`Peers`] of one server of a cluster. Its tasks end when it is dropped.
pub struct StreamPeers {
    shared: Arc<Shared>,
    listening: Option<SocketAddr>,
}

/// A number for a server, for [`StreamPeers::open`] and [`GatewayId::new`]: 24 random bits.
///
/// # Errors
/// When the system has no random bytes.
pub fn draw_server_number() -> Result<u32, StartError> {
    Ok((random()? as u32 & 0xff_ffff).max(1))
}

fn random() -> Result<u64, StartError> {
    getrandom::u64().map_err(|error| {
        StartError::wrong(
            "peers",
            format!("the system gives no random bytes: {error}"),
        )
    })
}

impl StreamPeers {
    /// Listens, and begins to look for the other servers. `server` is this one's number
    /// ([`draw_server_number`]), `local` has the queues of its gateways and routers, and all servers
    /// must have the same number of `partitions`. Wants a running tokio runtime.
    ///
    /// # Errors
    /// A setting that can't work, a file that can't be read, an address that isn't free. That the
    /// others aren't reached is none: see [`StreamPeers::check`].
    pub async fn open(
        settings: &Settings,
        server: u32,
        partitions: u32,
        local: Arc<InProcessPeers>,
    ) -> Result<StreamPeers, StartError> {
        StreamPeers::open_as(
            settings,
            server,
            partitions,
            local,
            hello::OLDEST..=hello::VERSION,
        )
        .await
    }

    /// As [`StreamPeers::open`], but speaks these versions: for tests of upgrades, which meet releases
    /// that aren't there yet.
    #[doc(hidden)]
    pub async fn open_as(
        settings: &Settings,
        server: u32,
        partitions: u32,
        local: Arc<InProcessPeers>,
        versions: RangeInclusive<u32>,
    ) -> Result<StreamPeers, StartError> {
        let hello = Hello {
            oldest: *versions.start(),
            newest: *versions.end(),
            ..Hello::new(&settings.cluster, server, random()?, partitions)
        };
        if settings.is_alone() {
            let shared = Shared::new(settings, hello, Tls::plain(), local);
            return Ok(StreamPeers {
                shared: Arc::new(shared),
                listening: None,
            });
        }
        let address = settings.checked()?;
        let tls = if settings.insecure_loopback {
            Tls::plain()
        } else {
            Tls::load(settings)?
        };
        let servers = settings
            .servers
            .iter()
            .map(|host_port| {
                let name = if tls.is_plain() {
                    ServerName::IpAddress(address.ip().into())
                } else {
                    Tls::name_of(settings, host_port)?
                };
                Ok(Server {
                    host_port: host_port.clone(),
                    name,
                })
            })
            .collect::<Result<Vec<_>, StartError>>()?;
        let not_free = |error| {
            StartError::away(
                "peers.listen",
                format!("can't listen on {address}: {error}"),
            )
        };
        let listener = TcpListener::bind(address).await.map_err(not_free)?;
        let listening = Some(listener.local_addr().map_err(not_free)?);
        let shared = Arc::new(Shared::new(settings, hello, tls, local));
        let tasks = &shared.tasks;
        tasks.spawn(incoming::listen(Arc::clone(&shared), listener));
        tasks.spawn(dial::discover(Arc::clone(&shared), servers, address));
        Ok(StreamPeers { shared, listening })
    }

    /// This server's number.
    pub fn server(&self) -> u32 {
        self.shared.me()
    }

    /// Where it listens; nowhere when it is alone.
    pub fn listening(&self) -> Option<SocketAddr> {
        self.listening
    }

    /// What was sent, received and dropped.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.shared.metrics)
    }

    /// The links that are up.
    pub fn links(&self) -> Vec<LinkStatus> {
        let state = self.shared.state();
        let status = |link: &Arc<link::Link>| LinkStatus {
            server: link.server,
            address: link.address,
            version: link.version,
            round_trip_micros: link.round_trip.load(Ordering::Relaxed),
        };
        state.links.values().map(status).collect()
    }

    /// How each address stands that `peers.servers` was found to mean.
    pub fn addresses(&self) -> Vec<(SocketAddr, Standing)> {
        let standing = self.shared.standing();
        standing.iter().map(|(a, s)| (*a, s.clone())).collect()
    }

    /// The server whose router owns a partition, as far as is known here.
    pub fn owner(&self, partition: Partition) -> Option<u32> {
        self.shared.state().owners.owner(partition)
    }

    /// Whether all servers found are reached. Doesn't wait.
    ///
    /// # Errors
    /// Which are not, and why.
    pub async fn check(&self) -> Result<(), String> {
        let away = self
            .addresses()
            .into_iter()
            .filter_map(|(address, standing)| match standing {
                Standing::Trying(reason) => Some(format!("{address}: {reason}")),
                Standing::Linked(_) | Standing::Own | Standing::Twice(_) => None,
            });
        let away: Vec<String> = away.collect();
        if away.is_empty() {
            Ok(())
        } else {
            Err(away.join("; "))
        }
    }

    /// Gives all partitions up, writes what is queued, for at most a second, and closes all links.
    pub async fn shutdown(&self) {
        let mine = self.shared.state().owners.mine();
        for (partition, _) in mine {
            self.shared.resigned(partition);
        }
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(DRAIN_MAX, self.shared.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("what other servers were to get isn't all written: they ask again");
        }
    }
}

impl Drop for StreamPeers {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Peers for StreamPeers {
    fn to_router(&self, from: GatewayId, partition: Partition, message: ToRouter) {
        self.shared.to_router(from, partition, message);
    }

    fn to_gateway(&self, from: Partition, to: GatewayId, message: ToGateway) {
        self.shared.to_gateway(from, to, message);
    }

    fn broadcast(&self, from: Partition, message: ToGateway) {
        self.shared.broadcast(from, message);
    }

    fn took_over(&self, partition: Partition, end: Position) {
        self.shared.took_over(partition, end);
    }

    fn resigned(&self, partition: Partition) {
        self.shared.resigned(partition);
    }

    fn has_others(&self) -> bool {
        self.shared.has_others()
    }

    fn to_other(&self, to: GatewayId, message: ToGateway) {
        self.shared.to_other(to, message);
    }

    fn to_others(&self, message: ToGateway) {
        self.shared.to_others(&message);
    }
}
