//! Mutual TLS among the servers of a cluster: both sides show a certificate of its CA.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::settings::{Settings, host_of};
use crate::StartError;

/// A connection, whether with TLS or not.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(super) type Stream = Box<dyn Duplex>;

/// What both sides of a handshake need; nothing of it for plain connections.
#[derive(Clone)]
pub(super) struct Tls(Option<(TlsConnector, TlsAcceptor)>);

impl Tls {
    /// No TLS.
    pub fn plain() -> Tls {
        Tls(None)
    }

    /// Reads the files.
    pub fn load(settings: &Settings) -> Result<Tls, StartError> {
        let chain = certificates("peers.certificate", &settings.certificate)?;
        let authorities = certificates("peers.ca", &settings.ca)?;
        let key = PrivateKeyDer::from_pem_file(given("peers.key", &settings.key)?)
            .map_err(|error| unreadable("peers.key", &settings.key, &error))?;
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(|error| {
                let reason = format!("{} isn't a CA's certificate: {error}", settings.ca);
                StartError::wrong("peers.ca", reason)
            })?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions: &[_] = &[&rustls::version::TLS13];
        let mismatch = |error: rustls::Error| {
            let reason = format!(
                "{} and peers.certificate don't go together: {error}",
                settings.key
            );
            StartError::wrong("peers.key", reason)
        };
        let no_tls13 = "the provider has TLS 1.3";
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .expect(no_tls13)
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(mismatch)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| StartError::wrong("peers.ca", error.to_string()))?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect(no_tls13)
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(mismatch)?;
        Ok(Tls(Some((
            TlsConnector::from(Arc::new(client)),
            TlsAcceptor::from(Arc::new(server)),
        ))))
    }

    /// The name a server's certificate must be good for.
    pub fn name_of(settings: &Settings, server: &str) -> Result<ServerName<'static>, StartError> {
        let (setting, name) = if settings.server_name.is_empty() {
            ("peers.servers", host_of(server).unwrap_or(server))
        } else {
            ("peers.server_name", settings.server_name.as_str())
        };
        ServerName::try_from(name.to_owned()).map_err(|_| {
            StartError::wrong(
                setting,
                format!("{name:?} is no name that a certificate can have"),
            )
        })
    }

    /// The connecting side.
    pub async fn connect(
        &self,
        stream: TcpStream,
        name: ServerName<'static>,
    ) -> std::io::Result<Stream> {
        Ok(match &self.0 {
            Some((connector, _)) => Box::new(connector.connect(name, stream).await?),
            None => Box::new(stream),
        })
    }

    /// The other side.
    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<Stream> {
        Ok(match &self.0 {
            Some((_, acceptor)) => Box::new(acceptor.accept(stream).await?),
            None => Box::new(stream),
        })
    }

    /// Whether nothing is encrypted.
    pub fn is_plain(&self) -> bool {
        self.0.is_none()
    }
}

fn given<'a>(setting: &'static str, file: &'a str) -> Result<&'a str, StartError> {
    if file.is_empty() {
        let reason =
            "must name a PEM file: servers meet with certificates of the cluster's CA only";
        return Err(StartError::wrong(setting, reason));
    }
    Ok(file)
}

fn unreadable(setting: &'static str, file: &str, error: &dyn std::fmt::Display) -> StartError {
    StartError::wrong(setting, format!("{file} can't be read: {error}"))
}

fn certificates(
    setting: &'static str,
    file: &str,
) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let all: Vec<_> = CertificateDer::pem_file_iter(given(setting, file)?)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(setting, file, &error))?;
    if all.is_empty() {
        return Err(StartError::wrong(
            setting,
            format!("{file} holds no certificate"),
        ));
    }
    Ok(all)
}
