//! The gateway workers of a server: their listeners, limits and threads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tidings_core::ids::GatewayId;
use tidings_gateway::host;
use tidings_gateway::logic::{GatewayMetrics, Settings};
use tidings_gateway::tls::Tls;
use tidings_gateway::worker::{self, HttpHandoff, Pool, PoolLimits, Stats, WorkerConfig};

use crate::config::Config;
use crate::system;

/// The most workers a server can have: their numbers have eight bits, and the HTTP API has one.
const WORKERS_MAX: usize = 254;

pub(crate) fn pem(chain: &str, key: &str) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(key)
        .with_context(|| format!("server.tls_key: can't read {key}"))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        bail!("server.tls_key: {key} may be read by others; chmod 600 it");
    }
    let read = |setting: &str, path: &str| {
        std::fs::read(path).with_context(|| format!("{setting}: can't read {path}"))
    };
    Ok((
        read("server.tls_certificate", chain)?,
        read("server.tls_key", key)?,
    ))
}

/// The gateway workers.
pub(crate) struct Workers {
    pub address: SocketAddr,
    pub address_tls: Option<SocketAddr>,
    pub pool: Arc<Pool>,
    pub metrics: Vec<Arc<GatewayMetrics>>,
    pub stats: Vec<Arc<Stats>>,
    threads: Vec<JoinHandle<()>>,
    pub tls: Option<Tls>,
}

impl Workers {
    pub fn start(
        config: &Config,
        ports: &host::Ports,
        (server, epoch): (u32, u32),
        adopter: &impl Fn() -> HttpHandoff,
    ) -> anyhow::Result<Workers> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count = if config.server.workers == 0 {
            cores
        } else {
            config.server.workers
        };
        let pool = Arc::new(Pool::new(PoolLimits {
            unauthenticated_per_ip_max: config.limits.unauthenticated_per_address,
            ..PoolLimits::of(config.server.connections_max)
        }));
        let tls = match config.server.listen_tls.as_str() {
            "" => None,
            _ => {
                let (chain, key) = pem(&config.server.tls_certificate, &config.server.tls_key)?;
                Some(Tls::from_pem(&chain, &key).context("server.tls_certificate")?)
            }
        };
        let first = worker::bind(config.server.listen)
            .with_context(|| format!("server.listen: can't listen on {}", config.server.listen))?;
        let address = first.local_addr().context("server.listen has no address")?;
        if !address.ip().is_loopback() && !config.server.plain_from_outside {
            tracing::warn!(
                %address,
                "plain connections of other machines are refused: use server.listen_tls, or server.plain_from_outside behind a proxy that ends TLS"
            );
        }
        let mut address_tls = None;
        let mut listeners = vec![(first, None)];
        for _ in 1..count {
            listeners.push((worker::bind(address).context("server.listen")?, None));
        }
        if let Some(tls) = &tls {
            let wanted: SocketAddr = config
                .server
                .listen_tls
                .parse()
                .context("server.listen_tls")?;
            let first = worker::bind(wanted)
                .with_context(|| format!("server.listen_tls: can't listen on {wanted}"))?;
            let address = first
                .local_addr()
                .context("server.listen_tls has no address")?;
            address_tls = Some(address);
            listeners.push((first, Some(tls.clone())));
            for _ in 1..count {
                listeners.push((
                    worker::bind(address).context("server.listen_tls")?,
                    Some(tls.clone()),
                ));
            }
        }
        let mut workers = Workers {
            address,
            address_tls,
            pool,
            metrics: Vec::new(),
            stats: Vec::new(),
            threads: Vec::new(),
            tls,
        };
        if listeners.len() > WORKERS_MAX {
            bail!(
                "server.workers: {count} workers have {} listeners, more than {WORKERS_MAX}",
                listeners.len()
            );
        }
        for (place, (listener, tls)) in listeners.into_iter().enumerate() {
            workers.add(
                config,
                ports,
                (server, epoch),
                place as u8 + 1,
                listener,
                tls,
                adopter(),
            )?;
        }
        Ok(workers)
    }

    #[allow(clippy::too_many_arguments)]
    fn add(
        &mut self,
        config: &Config,
        ports: &host::Ports,
        (server, epoch): (u32, u32),
        number: u8,
        listener: std::net::TcpListener,
        tls: Option<Tls>,
        http: HttpHandoff,
    ) -> anyhow::Result<()> {
        let mut io = WorkerConfig {
            queue_bytes_max: config.limits.session_queue_bytes as u32,
            ..WorkerConfig::default()
        };
        io.policy.subprotocols = host::subprotocols();
        io.policy.origins = config.server.origins.clone();
        io.proxies.clone_from(&config.server.proxies);
        io.plain_from_outside = config.server.plain_from_outside;
        io.frames_per_second = config.limits.frames_per_second;
        io.frame_burst = config.limits.frames_per_second.saturating_mul(2);
        let settings = Settings {
            epoch,
            // Unique over restarts: 2⁴⁰ sessions of this worker, from a random start.
            session_base: system::random() >> 1,
            hash_seed: system::random(),
            sends_per_second: config.limits.sends_per_second,
            sign_ins_at_once: config.limits.sign_ins_at_once.max(1),
            send_bytes_per_minute: config.limits.send_bytes_per_minute,
            heartbeat: config.server.heartbeat_s * 1_000_000,
            drain_spread: config.server.drain_spread_s * 1_000_000,
            ..Settings::new(GatewayId::new(server, number), ports.log.partitions())
        };
        let metrics = Arc::new(GatewayMetrics::default());
        let parts = worker::Parts {
            config: io,
            pool: self.pool.clone(),
            listener,
            tls,
            http,
        };
        let worker = host::worker(parts, settings, ports.clone(), metrics.clone())
            .context("can't start a gateway worker")?;
        self.metrics.push(metrics);
        self.stats.push(worker.stats());
        let thread = std::thread::Builder::new()
            .name(format!("gateway-{number}"))
            .spawn(move || {
                if let Err(error) = worker.run() {
                    tracing::error!(%error, "a gateway worker has failed");
                }
            })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Waits for all workers; false: some were still busy at the deadline.
    pub fn join(self, deadline: Instant) -> bool {
        while Instant::now() < deadline && !self.threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.threads.iter().all(JoinHandle::is_finished)
    }
}
