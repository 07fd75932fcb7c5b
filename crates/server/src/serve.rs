//! The start and the end of a server.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tidings_core::ids::GatewayId;
use tidings_core::in_process::{InProcessPeers, RouterInbox, rest};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::directory::Directory;
use tidings_core::ports::log::Log;
use tidings_core::ports::peers::ToRouter;
use tidings_core::ports::store::Store;
use tidings_gateway::host::{self, Gateways, UserCache};
use tidings_gateway::logic::{AuthFailure, GatewayMetrics, Principal, Settings};
use tidings_gateway::tls::Tls;
use tidings_gateway::worker::{self, HttpHandoff, Pool, PoolLimits, Stats, WorkerConfig};
use tokio::sync::watch;

use crate::admin::{self, Health};
use crate::auth::{Auth, AuthError, AuthSettings, ExternalAlgorithm, ExternalKey, Verdict};
use crate::config::Config;
use crate::embedded::PARTITION;
use crate::http::{self, App, AppParts};
use crate::metrics::{Scrape, Sources};
use crate::routed::Routed;
use crate::routing::{self, Gauge, Parts, Requests};
use crate::{embedded, relay, system};

/// The HTTP API's id among gateways; workers have 1, 2, 3, ….
const HTTP_GATEWAY: GatewayId = GatewayId(1 << 20);

/// Everything must have ended so long after a signal to stop.
const STOP_MAX: Duration = Duration::from_secs(10);

/// How often the threads of the control runtime give memory back. One that isn't woken again does it
/// at its last chance but this, so it is short.
const CONTROL_REST_AFTER: Duration = Duration::from_secs(1);

/// Users whose lists of conversations are remembered.
const USERS_CACHED_MAX: usize = 200_000;

struct Tokens(Arc<Auth>);

fn failure(error: AuthError) -> AuthFailure {
    match error {
        AuthError::Expired => AuthFailure::Expired,
        AuthError::Revoked | AuthError::Disabled => AuthFailure::Revoked,
        AuthError::Directory(_) | AuthError::TooBusy { .. } => AuthFailure::Unavailable,
        _ => AuthFailure::Invalid,
    }
}

fn principal(p: crate::auth::Principal) -> Principal {
    Principal {
        user: p.user,
        device: p.device,
        sign_in: p.sign_in,
        issued: p.issued,
        expires: p.expires,
    }
}

impl host::Authenticator for Tokens {
    fn verify_now(&self, token: &str, device: &str) -> Option<Result<Principal, AuthFailure>> {
        if token.starts_with("tti_") {
            return Some(self.0.redeem_ticket(token).map(principal).map_err(failure));
        }
        match self.0.verify(token, device) {
            Ok(Verdict::Known(known)) => Some(Ok(principal(known))),
            Ok(Verdict::Unknown) => None,
            Err(error) => Some(Err(failure(error))),
        }
    }

    fn verify(
        &self,
        token: String,
        device: String,
    ) -> BoxFuture<'_, Result<Principal, AuthFailure>> {
        Box::pin(async move {
            self.0
                .verify_first(&token, &device)
                .await
                .map(principal)
                .map_err(failure)
        })
    }
}

struct FromPeers(RouterInbox);

impl Requests for FromPeers {
    fn receive<'a>(&'a mut self, into: &'a mut Vec<(GatewayId, ToRouter)>) -> BoxFuture<'a, ()> {
        Box::pin(self.0.recv_many(into))
    }
}

/// Settings of authentication, with the keys' files read.
pub fn auth_settings(config: &Config) -> anyhow::Result<AuthSettings> {
    let mut external_keys = Vec::new();
    for key in &config.auth.keys {
        let public_key = std::fs::read_to_string(&key.public_key).with_context(|| {
            format!(
                "auth.keys: can't read the public key {} of \"{}\"",
                key.public_key, key.kid
            )
        })?;
        let algorithm = if key.algorithm == "RS256" {
            ExternalAlgorithm::RS256
        } else {
            ExternalAlgorithm::EdDSA
        };
        external_keys.push(ExternalKey {
            kid: key.kid.clone(),
            algorithm,
            public_key,
            issuer: key.issuer.clone(),
            audience: key.audience.clone(),
        });
    }
    Ok(AuthSettings {
        access_life: Duration::from_secs(config.auth.access_minutes * 60),
        refresh_life: Duration::from_secs(config.auth.refresh_days * 24 * 3600),
        external_keys,
        ..AuthSettings::default()
    })
}

/// [`rest`] for threads that sleep and wake all the time.
fn rest_sometimes() {
    thread_local!(static LAST: Cell<Option<Instant>> = const { Cell::new(None) });
    let now = Instant::now();
    if LAST
        .get()
        .is_none_or(|last| now - last >= CONTROL_REST_AFTER)
    {
        LAST.set(Some(now));
        rest();
    }
}

/// Starts everything, serves until SIGTERM or SIGINT, drains, and ends.
///
/// # Errors
/// When something can't be opened or bound: one line that names the setting.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let began = Instant::now();
    let storage = embedded::storage(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_name("control")
        .on_thread_park(rest_sometimes)
        .enable_all()
        .build()
        .context("can't start the runtime")?;
    let _entered = runtime.enter();
    let directory: Arc<dyn Directory> = embedded::directory(config)?;
    let auth_dir = config.data.dir.join("auth");
    embedded::make_private(&auth_dir)?;
    let auth = Arc::new(runtime.block_on(Auth::open(
        &auth_dir,
        directory.clone(),
        auth_settings(config)?,
        Arc::new(system::now),
    ))?);
    let log: Arc<dyn Log> = storage.log.clone();
    let store: Arc<dyn Store> = storage.store.clone();
    let (stop, stopped) = watch::channel(false);
    let peers = Arc::new(InProcessPeers::new(log.partitions()));
    let (router, gauge, broken) = route(&log, &store, &directory, &peers, stopped.clone())?;
    runtime.spawn(relay::run(directory.clone(), log.clone(), stopped.clone()));

    let gateways = Arc::new(Gateways::default());
    let registry = embedded::registry();
    let (routed, answers) = Routed::new(
        HTTP_GATEWAY,
        log.clone(),
        store.clone(),
        directory.clone(),
        peers.clone(),
        system::now,
        system::random,
    );
    runtime.spawn(answers);
    let sending = routed.clone();
    let parts = AppParts {
        directory: directory.clone(),
        auth: auth.clone(),
        registry: registry.clone(),
        gateways: gateways.clone(),
        routed,
        clock: system::now,
    };
    let app = Arc::new(App::new(parts, config.auth.sign_up, &config.limits));
    let ports = host::Ports {
        log: log.clone(),
        store: store.clone(),
        directory: directory.clone(),
        registry,
        peers: peers.clone(),
        authenticator: Arc::new(Tokens(auth.clone())),
        users: Arc::new(UserCache::new(USERS_CACHED_MAX)),
        gateways: gateways.clone(),
        runtime: runtime.handle().clone(),
        clock: system::now,
    };
    let epoch = runtime
        .block_on(log.committed(PARTITION))
        .context("can't read the log's position")?
        .epoch;
    let adopter = http::adopter(http::routes(app), runtime.handle().clone());
    let workers = Workers::start(config, &ports, epoch, &adopter)?;

    let health = Arc::new(Health {
        draining: AtomicBool::new(false),
        broken: AtomicBool::new(false),
        pool: workers.pool.clone(),
        log: storage.log.metrics().clone(),
        store: storage.store.clone(),
        directory: directory.clone(),
        scrape: Scrape::new(Sources {
            gateways: workers.metrics.clone(),
            sockets: workers.stats.clone(),
            pool: workers.pool.clone(),
            routed: sending,
            router: gauge,
            peers: peers.counts(),
            log: storage.log.metrics().clone(),
            store: storage.store.clone(),
        }),
    });
    let admin = runtime
        .block_on(tokio::net::TcpListener::bind(config.admin.listen))
        .with_context(|| format!("admin.listen: can't listen on {}", config.admin.listen))?;
    let admin_address = admin
        .local_addr()
        .context("the admin port has no address")?;
    let admin_routes = admin::routes(health.clone());
    runtime.spawn(async move {
        if let Err(error) = axum::serve(admin, admin_routes).await {
            tracing::error!(%error, "the admin port has failed");
        }
    });
    runtime.spawn(housekeeping(auth, gateways.clone(), stopped));

    tracing::info!(took_ms = began.elapsed().as_millis() as u64, "started");
    println!("tidings is ready: http://{}/", shown(workers.address));
    if let Some(address) = workers.address_tls {
        println!("and over TLS: https://{}/", shown(address));
    }
    println!("health and metrics: http://{admin_address}/health/ready");
    let why = runtime.block_on(until_stopped(&broken, &workers.tls, config));
    health.draining.store(true, Ordering::Relaxed);
    tracing::info!(why, "draining");
    gateways.drain();
    let deadline = Instant::now() + STOP_MAX;
    let drained = workers.join(deadline - Duration::from_millis(500));
    stop.send_replace(true);
    let routed = router.join().is_ok();
    // A disk that hangs must not keep the process: what isn't flushed is in the log.
    std::thread::spawn(move || {
        std::thread::sleep(
            deadline
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(100)),
        );
        tracing::error!("the disk did not answer in time; the next start goes on from the log");
        std::process::exit(75);
    });
    storage.store.flush().unwrap_or_else(
        |error| tracing::warn!(%error, "the store was not flushed; the next start reads the log"),
    );
    let settled = storage.store.settled(PARTITION);
    if settled > Default::default() {
        _ = runtime.block_on(log.commit(PARTITION, settled));
    }
    storage.log.shutdown();
    if !drained || !routed || why == "routing has ended" {
        bail!("stopped, but not cleanly: {why}");
    }
    println!("tidings has stopped");
    Ok(())
}

/// An address as a browser takes it.
fn shown(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    }
}

type Routing = (JoinHandle<()>, Arc<Gauge>, Arc<AtomicBool>);

/// Starts the thread that routes.
fn route(
    log: &Arc<dyn Log>,
    store: &Arc<dyn Store>,
    directory: &Arc<dyn Directory>,
    peers: &Arc<InProcessPeers>,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<Routing> {
    let gauge = Arc::new(Gauge::default());
    let broken = Arc::new(AtomicBool::new(false));
    let parts = Parts {
        log: log.clone(),
        store: store.clone(),
        directory: directory.clone(),
        peers: peers.clone(),
        clock: system::now,
        config: Default::default(),
    };
    let inbox = peers
        .router_inbox(PARTITION)
        .context("the log has no partition")?;
    let (for_thread, has_ended) = (gauge.clone(), broken.clone());
    let local = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start routing")?;
    let thread = std::thread::Builder::new()
        .name("router".into())
        .spawn(move || {
            let ended = local.block_on(routing::run(
                PARTITION,
                parts,
                FromPeers(inbox),
                for_thread,
                stopped,
            ));
            if let Err(error) = ended {
                tracing::error!(%error, "routing has ended; an operator must look");
                has_ended.store(true, Ordering::Relaxed);
            }
        })?;
    Ok((thread, gauge, broken))
}

/// Routes without a server around it.
pub(crate) fn route_offline(
    log: &Arc<dyn Log>,
    store: &Arc<dyn Store>,
    directory: &Arc<dyn Directory>,
    peers: &Arc<InProcessPeers>,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<(JoinHandle<()>, Arc<Gauge>)> {
    route(log, store, directory, peers, stopped).map(|(thread, gauge, _)| (thread, gauge))
}

/// Revocations made elsewhere, and what has expired.
async fn housekeeping(auth: Arc<Auth>, gateways: Arc<Gateways>, mut stop: watch::Receiver<bool>) {
    let mut turns = 0u64;
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            _ = stop.changed() => return,
        }
        match auth.poll_revocations().await {
            Ok(revocations) => revocations
                .iter()
                .for_each(|revocation| gateways.revoke(revocation)),
            Err(error) => tracing::warn!(%error, "revocations can't be read"),
        }
        turns += 1;
        if turns.is_multiple_of(300)
            && let Err(error) = auth.forget_expired().await
        {
            tracing::warn!(%error, "expired sign-ins can't be forgotten");
        }
    }
}

/// Waits for a signal to stop; reloads certificates on SIGHUP.
async fn until_stopped(broken: &AtomicBool, tls: &Option<Tls>, config: &Config) -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::hangup()),
    ) else {
        return "signals can't be heard";
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => return "SIGTERM",
            _ = interrupt.recv() => return "SIGINT",
            _ = hangup.recv() => {
                let Some(tls) = tls else { continue };
                let reloaded = pem(&config.server.tls_certificate, &config.server.tls_key)
                    .and_then(|(chain, key)| tls.reload(&chain, &key).map_err(anyhow::Error::from));
                match reloaded {
                    Ok(()) => tracing::info!("certificates reloaded"),
                    Err(error) => tracing::error!(%error, "certificates not reloaded; the old ones stay"),
                }
            }
            () = tokio::time::sleep(Duration::from_millis(500)) => {
                if broken.load(Ordering::Relaxed) {
                    return "routing has ended";
                }
            }
        }
    }
}

fn pem(chain: &str, key: &str) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
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
struct Workers {
    address: SocketAddr,
    address_tls: Option<SocketAddr>,
    pool: Arc<Pool>,
    metrics: Vec<Arc<GatewayMetrics>>,
    stats: Vec<Arc<Stats>>,
    threads: Vec<JoinHandle<()>>,
    tls: Option<Tls>,
}

impl Workers {
    fn start(
        config: &Config,
        ports: &host::Ports,
        epoch: u32,
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
        for (place, (listener, tls)) in listeners.into_iter().enumerate() {
            workers.add(
                config,
                ports,
                epoch,
                place as u32 + 1,
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
        epoch: u32,
        number: u32,
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
        io.plain_from_outside = config.server.plain_from_outside;
        io.frames_per_second = config.limits.frames_per_second;
        io.frame_burst = config.limits.frames_per_second.saturating_mul(2);
        let settings = Settings {
            epoch,
            // Unique over restarts: 2⁴⁰ sessions of this worker, from a random start.
            session_base: system::random() >> 1,
            hash_seed: system::random(),
            sends_per_second: config.limits.sends_per_second,
            send_bytes_per_minute: config.limits.send_bytes_per_minute,
            heartbeat: config.server.heartbeat_s * 1_000_000,
            drain_spread: config.server.drain_spread_s * 1_000_000,
            ..Settings::new(GatewayId(number), ports.log.partitions())
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
    fn join(self, deadline: Instant) -> bool {
        while Instant::now() < deadline && !self.threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.threads.iter().all(JoinHandle::is_finished)
    }
}
