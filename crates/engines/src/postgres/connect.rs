//! Connections: from settings to the driver, and from its errors to advice.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Connection, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::settings::{Settings, Tls};
use crate::StartError;

/// Which of the two ways to the database.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through PgBouncer, as all calls go.
    Pooled,
    /// To PostgreSQL itself, for migrations.
    Direct,
}

impl Way {
    fn host_setting(self, settings: &Settings) -> &'static str {
        if self == Way::Direct && !settings.direct_host.is_empty() {
            "postgres.direct_host"
        } else {
            "postgres.host"
        }
    }

    fn address(self, settings: &Settings) -> (&str, u16) {
        match self {
            Way::Pooled => (&settings.host, settings.port),
            Way::Direct if settings.direct_host.is_empty() => {
                (&settings.host, settings.direct_port)
            }
            Way::Direct => (&settings.direct_host, settings.direct_port),
        }
    }
}

/// What the driver is told. Nothing here rests on the state of a session, which PgBouncer wouldn't keep.
pub(super) fn config(settings: &Settings, way: Way) -> Config {
    let (host, port) = way.address(settings);
    let mut config = Config::new();
    config
        .host(host)
        .port(port)
        .dbname(&settings.database)
        .user(&settings.user)
        .password(&settings.password.0)
        .application_name("tidings")
        .ssl_mode(match settings.tls {
            Tls::Off => SslMode::Disable,
            Tls::Require => SslMode::Require,
        })
        .connect_timeout(Duration::from_millis(settings.connect_timeout_ms))
        .keepalives_idle(Duration::from_secs(30));
    config
}

/// The encryption that the settings ask for; none: plain text.
pub(super) fn tls(settings: &Settings) -> Result<Option<MakeRustlsConnect>, StartError> {
    if settings.tls == Tls::Off {
        return Ok(None);
    }
    let wrong = |reason: String| StartError::wrong("postgres.tls_ca", reason);
    if settings.tls_ca.is_empty() {
        let reason =
            "tls = \"require\" needs the file with the certificates that may vouch for the server";
        return Err(wrong(reason.into()));
    }
    let file = &settings.tls_ca;
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(file)
        .map_err(|error| wrong(format!("can't read {file}: {error}")))?;
    for certificate in certificates {
        let added = certificate
            .map_err(|error| error.to_string())
            .and_then(|one| roots.add(one).map_err(|error| error.to_string()));
        added.map_err(|error| wrong(format!("{file} holds no good certificate: {error}")))?;
    }
    if roots.is_empty() {
        return Err(wrong(format!("{file} holds no certificate (PEM)")));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Some(MakeRustlsConnect::new(config)))
}

/// One connection outside the pool. The task that serves it ends with the client.
pub(super) async fn connect(settings: &Settings, way: Way) -> Result<Client, StartError> {
    let config = config(settings, way);
    let tls = tls(settings)?;
    let connecting = async {
        match tls {
            None => config.connect(NoTls).await.map(serve),
            Some(tls) => config.connect(tls).await.map(serve),
        }
    };
    // The driver's own limit is for the socket only; a server that says nothing then would hold it.
    let limit = Duration::from_millis(settings.connect_timeout_ms.saturating_mul(2));
    match tokio::time::timeout(limit, connecting).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => Err(advice(&error, settings, way)),
        Err(_) => Err(StartError::away(
            way.host_setting(settings),
            format!("{} says nothing", place(settings, way)),
        )),
    }
}

fn serve<S, T>((client, connection): (Client, Connection<S, T>)) -> Client
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the directory's database ended");
        }
    });
    client
}

fn place(settings: &Settings, way: Way) -> String {
    let (host, port) = way.address(settings);
    let what = if way == Way::Direct {
        "PostgreSQL"
    } else {
        "PgBouncer"
    };
    format!("{what} at {host}:{port}")
}

/// What an operator can do about a connection that wasn't made. PgBouncer 1.18 has one code for
/// everything it says itself, so its words are what tells them apart.
pub(super) fn advice(error: &tokio_postgres::Error, settings: &Settings, way: Way) -> StartError {
    let place = place(settings, way);
    let (user, database) = (&settings.user, &settings.database);
    let Some(said) = error.as_db_error() else {
        let reason = format!("{place} can't be used: {}", in_full(error));
        let encrypted = settings.tls == Tls::Require && reason.to_lowercase().contains("tls");
        return if encrypted {
            StartError::wrong("postgres.tls", reason)
        } else {
            StartError::away(way.host_setting(settings), reason)
        };
    };
    let words = said.message();
    let code = said.code();
    let login = *code == SqlState::INVALID_PASSWORD
        || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
        || words.contains("authentication failed")
        || words.contains("no such user");
    if login {
        let reason = format!(
            "{place} refuses user {user} with this password ({words}); see postgres.user too"
        );
        return StartError::wrong("postgres.password", reason);
    }
    let database_missing = *code == SqlState::INVALID_CATALOG_NAME
        || words.contains("no such database")
        || (words.contains("database") && words.contains("does not exist"));
    if database_missing {
        let reason = format!("{place} has no database {database}: create it, or name another");
        return StartError::wrong("postgres.database", reason);
    }
    StartError::away(way.host_setting(settings), format!("{place} says: {words}"))
}

/// An error with all that is behind it, on one line.
pub(super) fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string().replace('\n', " "));
        cause = error.source();
    }
    text
}
