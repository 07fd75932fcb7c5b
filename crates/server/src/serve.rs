//! The start and the end of a server.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tidings_core::ids::GatewayId;
use tidings_core::in_process::rest;
use tidings_core::ports::BoxFuture;
use tidings_core::ports::directory::Revocation;
use tidings_gateway::host::{self, Gateways, UserCache};
use tidings_gateway::logic::{AuthFailure, Principal};
use tidings_gateway::tls::Tls;
use tokio::sync::watch;

use crate::admin::{self, Health};
use crate::aside::Aside;
use crate::auth::{Auth, AuthError, AuthSettings, ExternalAlgorithm, ExternalKey, Verdict};
use crate::config::Config;
use crate::http::{self, App, AppParts};
use crate::metrics::{Scrape, Sources};
use crate::modes::{self, Modes};
use crate::parts::{self, Part, Parts};
use crate::routed::Routed;
use crate::routers::{self, Routers};
use crate::waiting::{self, Waiting};
use crate::workers::{Workers, pem};
use crate::{relay, routing, system};

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

    fn revoked(&self, revocation: &Revocation) {
        self.0.heard_of(revocation);
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

/// Threads of the control runtime: a half of the cores, one to eight. Routers, links and drivers live there; where
/// they have fewer cores than threads, those mostly wake each other.
fn control_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).clamp(1, 8)
}

/// Starts everything, serves until SIGTERM or SIGINT, drains, and ends. Engines that don't answer yet are
/// waited for as long as `wait`.
///
/// # Errors
/// When something can't be opened or bound: one line that names the setting.
pub fn run(config: &Config, wait: Duration) -> anyhow::Result<()> {
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(control_threads())
        .max_blocking_threads(8)
        .thread_name("control")
        .on_thread_park(rest_sometimes)
        .enable_all()
        .build()
        .context("can't start the runtime")?;
    let _entered = runtime.enter();
    let parts = runtime.block_on(parts::waiting(wait, || parts::open(config)))?;
    let (log, directory) = (parts.log.clone(), parts.directory.clone());
    let auth = Arc::new(runtime.block_on(Auth::open(
        &parts.keys,
        directory.clone(),
        parts.registry.clone(),
        auth_settings(config)?,
        Arc::new(system::now),
    ))?);
    let (stop, stopped) = watch::channel(false);
    let waiting = Arc::new(Waiting::default());
    let routing_parts = routing_parts(&parts, waiting.clone());
    let aside = routing_parts.aside.clone();
    let (routing, routers) = routers::start(
        routing_parts,
        parts.ownership.clone(),
        parts.local.clone(),
        stopped.clone(),
    );
    runtime.spawn(relay::run(directory.clone(), log.clone(), stopped.clone()));
    let marked = waiting::Ports {
        registry: parts.registry.clone(),
        members: parts.members.clone(),
        directory: directory.clone(),
    };
    let (marking, until) = (waiting.clone(), stopped.clone());
    runtime.spawn(async move { marking.run(marked, until).await });

    let gateways = Arc::new(Gateways::new(parts.peers.clone()));
    let told = gateways.clone();
    auth.on_revoked(move |revocation| told.revoke(revocation));
    let (routed, answers) = Routed::new(
        GatewayId::new(parts.server, GatewayId::HTTP),
        log.clone(),
        parts.store.clone(),
        directory.clone(),
        parts.peers.clone(),
        &parts.local,
        system::now,
        system::random,
    );
    runtime.spawn(answers);
    let app = Arc::new(App::new(
        AppParts {
            directory: directory.clone(),
            auth: auth.clone(),
            registry: parts.registry.clone(),
            gateways: gateways.clone(),
            routed: routed.clone(),
            clock: system::now,
        },
        config.auth.sign_up,
        &config.limits,
    ));
    let ports = host::Ports {
        log,
        store: parts.store,
        directory,
        registry: parts.registry,
        peers: parts.peers,
        local: parts.local.clone(),
        authenticator: Arc::new(Tokens(auth.clone())),
        users: Arc::new(UserCache::new(USERS_CACHED_MAX)),
        gateways: gateways.clone(),
        runtime: runtime.handle().clone(),
        clock: system::now,
    };
    let adopter = http::adopter(http::routes(app), runtime.handle().clone());
    let workers = Workers::start(config, &ports, (parts.server, parts.epoch), &adopter)?;

    let modes = Arc::<Modes>::default();
    let health_parts: Arc<[Box<dyn Part>]> = parts.health.into();
    let health = Arc::new(Health {
        draining: AtomicBool::new(false),
        routers: routers.clone(),
        pool: workers.pool.clone(),
        parts: health_parts.clone(),
        modes: modes.clone(),
        asked: AtomicU64::new(0),
        scrape: Scrape::new(Sources {
            gateways: workers.metrics.clone(),
            workers: gateways.clone(),
            sockets: workers.stats.clone(),
            pool: workers.pool.clone(),
            routed,
            routers: routers.clone(),
            waiting,
            aside,
            modes,
            parts: health_parts,
            peers: parts.local.counts(),
            engines: parts.figures.into(),
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
    runtime.spawn(modes::run(
        modes::Watched {
            health: health.clone(),
            gateways: gateways.clone(),
            metrics: workers.metrics.clone(),
        },
        stopped.clone(),
    ));
    runtime.spawn(housekeeping(auth, gateways.clone(), stopped));

    tracing::info!(took_ms = began.elapsed().as_millis() as u64, "started");
    println!("tidings is ready: http://{}/", shown(workers.address));
    if let Some(address) = workers.address_tls {
        println!("and over TLS: https://{}/", shown(address));
    }
    println!("health and metrics: http://{admin_address}/health/ready");
    let why = runtime.block_on(until_stopped(&routers, &workers.tls, config));
    health.draining.store(true, Ordering::Relaxed);
    tracing::info!(why, "draining");
    parts.keeper.drain();
    let mut deadline = Instant::now() + STOP_MAX;
    if gateways.drain() {
        deadline += Duration::from_secs(config.server.drain_spread_s);
    }
    let drained = workers.join(deadline - Duration::from_millis(500));
    stop.send_replace(true);
    let routed = runtime.block_on(routing).is_ok();
    let left = deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(100));
    runtime.block_on(parts.keeper.end(left));
    if !drained || !routed || why == "routing has ended" {
        bail!("stopped, but not cleanly: {why}");
    }
    println!("tidings has stopped");
    Ok(())
}

/// What routers work with.
pub(crate) fn routing_parts(parts: &Parts, waiting: Arc<Waiting>) -> routing::Parts {
    routing::Parts {
        log: parts.log.clone(),
        store: parts.store.clone(),
        directory: parts.directory.clone(),
        peers: parts.peers.clone(),
        waiting,
        aside: Arc::new(Aside::new(parts.dead_letters.clone(), system::random)),
        clock: system::now,
        config: tidings_core::router::Config {
            members_together: parts.store.members_together() > 0,
            ..Default::default()
        },
    }
}

/// An address as a browser takes it.
fn shown(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    }
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
                .for_each(|revocation| gateways.revoked(revocation)),
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
async fn until_stopped(routers: &Routers, tls: &Option<Tls>, config: &Config) -> &'static str {
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
                if routers.is_broken() {
                    return "routing has ended";
                }
            }
        }
    }
}
