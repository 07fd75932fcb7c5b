//! Connections: the driver's session by our settings, and why there is none.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use scylla::client::PoolSize;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::cluster::metadata::{Peer, Strategy};
use scylla::errors::{
    ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError, MetadataError,
    NewSessionError, TranslationError,
};
use scylla::policies::address_translator::{AddressTranslator, UntranslatedPeer};
use scylla::policies::host_filter::HostFilter;
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::statement::Consistency as DriverConsistency;

use super::settings::{Consistency, Settings};
use crate::StartError;

/// The port of nodes that are named without one.
const PORT: u16 = 9042;

impl Consistency {
    pub(super) fn of_driver(self) -> DriverConsistency {
        match self {
            Consistency::Quorum => DriverConsistency::Quorum,
            Consistency::LocalQuorum => DriverConsistency::LocalQuorum,
        }
    }
}

/// Opens a session. Its requests have consistency and deadline by the settings, unless a
/// statement says otherwise.
pub(super) async fn connect(settings: &Settings) -> Result<Session, StartError> {
    settings.validate()?;
    let mut policy = DefaultPolicy::builder()
        .token_aware(true)
        .permit_dc_failover(settings.connections_remote > 0);
    if !settings.local_datacenter.is_empty() {
        policy = policy.prefer_datacenter(settings.local_datacenter.clone());
    }
    let profile = ExecutionProfile::builder()
        .consistency(settings.consistency.of_driver())
        .request_timeout(Some(settings.deadline()))
        .load_balancing_policy(policy.build())
        .build();
    let connections = NonZeroUsize::new(settings.connections_local).unwrap_or(NonZeroUsize::MIN);
    let mut builder = SessionBuilder::new()
        .known_nodes(settings.hosts.iter().map(|host| with_port(host)))
        .default_execution_profile_handle(profile.into_handle())
        .connection_timeout(settings.connect_timeout())
        .hostname_resolution_timeout(Some(settings.connect_timeout()))
        .pool_size(PoolSize::PerHost(connections))
        .disallow_shard_aware_port(true)
        .tcp_nodelay(true)
        .keepalive_interval(Duration::from_millis(settings.heartbeat_ms))
        .keepalive_timeout(Duration::from_millis(settings.heartbeat_timeout_ms))
        .keyspaces_to_fetch([&settings.keyspace]);
    if !settings.username.is_empty() {
        builder = builder.user(&settings.username, &settings.password.0);
    }
    if settings.tls {
        builder = builder.tls_context(Some(tls(&settings.tls_ca_file)?));
    }
    if !settings.address_map.is_empty() {
        builder = builder.address_translator(Arc::new(AddressMap::parse(&settings.address_map)?));
    }
    if settings.connections_remote == 0 && !settings.local_datacenter.is_empty() {
        builder = builder.host_filter(Arc::new(OneDatacenter(settings.local_datacenter.clone())));
    }
    // Several nodes may be tried one after another, each within the time to connect.
    let limit = settings.connect_timeout() * (settings.hosts.len() as u32).clamp(1, 3);
    match tokio::time::timeout(limit, builder.build()).await {
        Ok(session) => session.map_err(|error| start_error(&error, settings)),
        Err(_) => Err(StartError::away(
            "cassandra.hosts",
            format!(
                "none of {} answered within {} ms: is Cassandra up, and are these its addresses?",
                settings.hosts.join(", "),
                limit.as_millis()
            ),
        )),
    }
}

/// Keeps away from the nodes of other data centres.
struct OneDatacenter(String);

impl HostFilter for OneDatacenter {
    fn accept(&self, peer: &Peer) -> bool {
        peer.datacenter.as_ref() == Some(&self.0)
    }
}

fn with_port(host: &str) -> String {
    let host = host.trim();
    let bare_v6 = host.matches(':').count() > 1 && !host.starts_with('[');
    if bare_v6 {
        format!("[{host}]:{PORT}")
    } else if host.contains(':') && !host.ends_with(']') {
        host.to_owned()
    } else {
        format!("{host}:{PORT}")
    }
}

/// Where nodes are reached, by the address that they announce. Without a port: nodes announce none,
/// and the driver takes that of the node which it asked.
struct AddressMap(HashMap<IpAddr, SocketAddr>);

impl AddressMap {
    fn parse(lines: &[String]) -> Result<AddressMap, StartError> {
        let pair = |line: &String| {
            let (announced, reachable) = line.split_once('=')?;
            let announced = announced.trim().parse().ok()?;
            Some((announced, reachable.trim().parse().ok()?))
        };
        let lines = lines.iter().map(|line| {
            pair(line).ok_or_else(|| {
                let reason = format!("'{line}' isn't of the form IP=IP:PORT");
                StartError::wrong("cassandra.address_map", reason)
            })
        });
        Ok(AddressMap(lines.collect::<Result<_, _>>()?))
    }
}

impl AddressTranslator for AddressMap {
    fn translate_address<'a, 'b, 'f>(
        &'a self,
        peer: &'b UntranslatedPeer,
    ) -> Pin<Box<dyn Future<Output = Result<SocketAddr, TranslationError>> + Send + 'f>>
    where
        'a: 'f,
        'b: 'f,
        Self: 'f,
    {
        let announced = peer.untranslated_address();
        let reachable = self.0.get(&announced.ip()).copied();
        Box::pin(std::future::ready(Ok(reachable.unwrap_or(announced))))
    }
}

fn tls(ca_file: &str) -> Result<Arc<rustls::ClientConfig>, StartError> {
    let wrong = |reason: String| {
        StartError::wrong(
            "cassandra.tls_ca_file",
            format!(
                "{ca_file}: {reason}: it must be PEM with the certificates that sign the nodes'"
            ),
        )
    };
    let mut roots = rustls::RootCertStore::empty();
    let certificates =
        CertificateDer::pem_file_iter(ca_file).map_err(|error| wrong(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("no certificate in it".into()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Says which setting is to blame for a session that didn't come about.
fn start_error(error: &NewSessionError, settings: &Settings) -> StartError {
    let hosts = settings.hosts.join(", ");
    match error {
        NewSessionError::FailedToResolveAnyHostname(names) => StartError::away(
            "cassandra.hosts",
            format!("no address is known for {}: correct the name", names.join(", ")),
        ),
        NewSessionError::MetadataError(error) => refused(error, settings).unwrap_or_else(|| {
            StartError::away(
                "cassandra.hosts",
                format!("none of {hosts} answers: is Cassandra up, and are these its addresses? ({error})"),
            )
        }),
        other => StartError::wrong("cassandra.hosts", format!("{hosts}: {other}")),
    }
}

/// A login that wasn't taken, or a certificate.
fn refused(error: &MetadataError, settings: &Settings) -> Option<StartError> {
    let MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
        last_connection_error,
    }) = error
    else {
        return None;
    };
    match last_connection_error {
        ConnectionError::ConnectionSetupRequestError(setup) => match setup.get_error() {
            ConnectionSetupRequestErrorKind::MissingAuthentication => Some(StartError::wrong(
                "cassandra.username",
                "Cassandra asks for a login: set user and password",
            )),
            ConnectionSetupRequestErrorKind::DbError(DbError::AuthenticationError, reason) => {
                Some(StartError::wrong(
                    "cassandra.password",
                    format!("Cassandra refuses the user {}: {reason}", settings.username),
                ))
            }
            _ => None,
        },
        ConnectionError::IoError(error) if settings.tls && is_tls(error) => {
            Some(StartError::wrong(
                "cassandra.tls_ca_file",
                format!("the node's certificate isn't accepted: {error}"),
            ))
        }
        _ => None,
    }
}

fn is_tls(error: &std::io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<rustls::Error>())
}

/// The data centre next to us: as set, else the only one.
pub(super) fn local_datacenter(
    session: &Session,
    settings: &Settings,
) -> Result<String, StartError> {
    let state = session.get_cluster_state();
    let mut names: Vec<String> = state
        .get_nodes_info()
        .iter()
        .filter_map(|node| node.datacenter.clone())
        .collect();
    names.sort_unstable();
    names.dedup();
    let there = names.join(", ");
    let wrong = |reason| Err(StartError::wrong("cassandra.local_datacenter", reason));
    match names.as_slice() {
        [only] if settings.local_datacenter.is_empty() => Ok(only.clone()),
        _ if settings.local_datacenter.is_empty() => {
            wrong(format!("there are several, so name the local one: {there}"))
        }
        _ if names.contains(&settings.local_datacenter) => Ok(settings.local_datacenter.clone()),
        _ => wrong(format!(
            "no node is in {}; there is {there}",
            settings.local_datacenter
        )),
    }
}

/// How many nodes there are in the data centre, and how many of them we are connected to.
pub(super) fn nodes(session: &Session, datacenter: &str) -> (usize, usize) {
    let state = session.get_cluster_state();
    let local = || {
        state
            .get_nodes_info()
            .iter()
            .filter(|node| node.datacenter.as_deref() == Some(datacenter))
    };
    (
        local().count(),
        local().filter(|node| node.is_connected()).count(),
    )
}

/// Copies of each row in the data centre; `None` where the keyspace isn't there.
pub(super) fn copies(session: &Session, keyspace: &str, datacenter: &str) -> Option<usize> {
    let state = session.get_cluster_state();
    let copies = match &state.get_keyspace(keyspace)?.strategy {
        Strategy::NetworkTopologyStrategy {
            datacenter_repfactors,
        } => datacenter_repfactors.get(datacenter).copied().unwrap_or(0),
        Strategy::SimpleStrategy { replication_factor } => *replication_factor,
        _ => 0,
    };
    Some(copies)
}
