//! Finding the other servers, and connecting to them.

use std::net::SocketAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Duration, Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::frame::Connection;
use super::hello::{self, Hello, HelloError};
use super::metrics::add;
use super::settings::may_be_plain;
use super::shared::Shared;

/// The most addresses that are connected to.
const ADDRESSES_MAX: usize = 256;

/// An address that was this server's own isn't another's soon.
const OWN_PAUSE: Duration = Duration::from_secs(60);

/// How an address of `peers.servers` stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not reached yet, or no longer: why.
    Trying(String),
    /// Linked with this server.
    Linked(u32),
    /// It is this server's own.
    Own,
    /// Another address of a server that is linked.
    Twice(u32),
}

/// A setting's entry and the name its certificates must have; none without TLS.
pub(super) struct Server {
    pub host_port: String,
    pub name: ServerName<'static>,
}

/// Looks the servers up again and again, and keeps a task for each address. A cluster that listens
/// on IPv4 meets there: a name's other addresses lead nowhere.
pub(super) async fn discover(shared: Arc<Shared>, servers: Vec<Server>, listen: SocketAddr) {
    let mut dialers: HashMap<SocketAddr, (usize, CancellationToken)> = HashMap::new();
    let mut failures: HashMap<usize, String> = HashMap::new();
    loop {
        for (at, server) in servers.iter().enumerate() {
            let looked_up = timeout(shared.times.connect, lookup_host(&server.host_port)).await;
            let found: HashSet<SocketAddr> = match looked_up {
                Ok(Ok(found)) => {
                    failures.remove(&at);
                    found
                        .filter(|address| listen.is_ipv6() || address.is_ipv4())
                        .collect()
                }
                // What was found before is kept: a name server that is away is no reason to part.
                refused => {
                    let reason = match refused {
                        Ok(Err(error)) => error.to_string(),
                        _ => "no answer in time".to_owned(),
                    };
                    if failures.get(&at) != Some(&reason) {
                        tracing::warn!(
                            server = server.host_port,
                            reason,
                            "can't look a server up (peers.servers)"
                        );
                        failures.insert(at, reason);
                    }
                    continue;
                }
            };
            dialers.retain(|address, (of, gone)| {
                let stays = *of != at || found.contains(address);
                if !stays {
                    gone.cancel();
                }
                stays
            });
            for address in found {
                if dialers.contains_key(&address) {
                    continue;
                }
                if dialers.len() >= ADDRESSES_MAX {
                    tracing::warn!(%address, "too many servers: this one is left out");
                    continue;
                }
                let gone = shared.stop.child_token();
                dialers.insert(address, (at, gone.clone()));
                let task = dial(Arc::clone(&shared), address, server.name.clone(), gone);
                shared.tasks.spawn(task);
            }
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = sleep(shared.times.resolve) => {}
        }
    }
}

/// Keeps a link to the server at an address, until the address is gone or this server drains.
async fn dial(
    shared: Arc<Shared>,
    address: SocketAddr,
    name: ServerName<'static>,
    gone: CancellationToken,
) {
    let mut backoff = shared.times.retry_min;
    let mut told = String::new();
    while !gone.is_cancelled() {
        let connected = tokio::select! {
            () = gone.cancelled() => break,
            connected = connect(&shared, address, name.clone()) => connected,
        };
        let (standing, pause) = match connected {
            Ok((_, theirs)) if theirs.is(&shared.hello) => (Standing::Own, OWN_PAUSE),
            Ok((connection, theirs)) => match shared.open(&theirs, address) {
                Some(link) => {
                    told.clear();
                    backoff = shared.times.retry_min;
                    let server = format!("{:06x}", link.server);
                    tracing::info!(%address, server, version = link.version, "linked with a server");
                    shared
                        .standing()
                        .insert(address, Standing::Linked(link.server));
                    let since = Instant::now();
                    let ended = link.run(connection, &shared).await;
                    shared.close(&link);
                    ended.count(&shared.metrics);
                    if !gone.is_cancelled() {
                        tracing::warn!(%address, server, %ended, seconds = since.elapsed().as_secs(), "a link is down");
                    }
                    (Standing::Trying(ended.to_string()), jittered(backoff))
                }
                None => (Standing::Twice(theirs.server), shared.times.resolve),
            },
            Err(error) => {
                add(&shared.metrics.connect_failed, 1);
                let reason = error.to_string();
                if told != reason {
                    tracing::warn!(%address, reason, "can't link with a server; trying on");
                    told.clone_from(&reason);
                }
                let pause = jittered(backoff);
                backoff = (2 * backoff).min(shared.times.retry_max);
                (Standing::Trying(reason), pause)
            }
        };
        shared.standing().insert(address, standing);
        tokio::select! {
            () = gone.cancelled() => break,
            () = sleep(pause) => {}
        }
    }
    shared.standing().remove(&address);
}

async fn connect(
    shared: &Shared,
    address: SocketAddr,
    name: ServerName<'static>,
) -> Result<(Connection, Hello), HelloError> {
    if shared.tls.is_plain() && !may_be_plain(address.ip()) {
        let reason = "peers.insecure_loopback goes with loopback addresses only";
        return Err(HelloError::Objection(reason.to_owned()));
    }
    let within = shared.times.connect;
    let reach = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        shared.tls.connect(stream, name).await
    };
    let stream = timeout(within, reach)
        .await
        .map_err(|_| HelloError::Late)??;
    let mut connection = Connection::new(stream);
    let theirs = hello::greet(&mut connection, &shared.hello, within).await?;
    Ok((connection, theirs))
}

/// Between a half and the whole of it, so that servers that lost each other don't meet in step.
fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}
