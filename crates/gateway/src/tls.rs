//! TLS for listeners: rustls with aws-lc-rs, certificates that can be replaced while running.
//!
//! TLS 1.2 and 1.3 only, no renegotiation (rustls has none), no early data, resumption by
//! stateless tickets: a reconnecting client costs no private-key operation and the server keeps
//! no session table.

use std::sync::{Arc, RwLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection};

/// How much a TLS session may hold that the kernel didn't take, in bytes: one full record and
/// its overhead fit.
const TLS_BUFFER_BYTES_MAX: usize = 32 << 10;

/// Why a certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The PEM text doesn't hold what it should.
    #[error("read {what} from PEM: {source}")]
    Pem {
        /// Certificate chain or private key.
        what: &'static str,
        /// What the parser says.
        source: rustls::pki_types::pem::Error,
    },
    /// The PEM text holds no certificate.
    #[error("PEM holds no certificate")]
    NoCertificate,
    /// The key is of no known kind, or isn't the certificate's.
    #[error("use certificate and key: {0}")]
    Unusable(#[from] rustls::Error),
}

/// What a listener needs to speak TLS. Clones share one certificate.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    current: Arc<Current>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

/// The certificate that the next handshake uses. A read lock costs nothing beside a handshake.
struct Current(RwLock<Arc<CertifiedKey>>);

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self
            .0
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Some(Arc::clone(&current))
    }
}

impl Tls {
    /// From a certificate chain (leaf first) and its private key, both PEM.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let certified = certified_key(certificates, key)?;
        let current = Arc::new(Current(RwLock::new(certified)));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        config.send_tls13_tickets = 1;
        config.max_early_data_size = 0;
        Ok(Tls {
            config: Arc::new(config),
            current,
        })
    }

    /// Replaces the certificate for all handshakes from now on; sessions that are open stay.
    ///
    /// On an error the present one stays in use.
    pub fn reload(&self, certificates: &[u8], key: &[u8]) -> Result<(), TlsError> {
        let certified = certified_key(certificates, key)?;
        *self
            .current
            .0
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = certified;
        Ok(())
    }

    /// The state of one new connection.
    pub(crate) fn accept(&self) -> Result<Box<ServerConnection>, TlsError> {
        let mut connection = ServerConnection::new(Arc::clone(&self.config))?;
        connection.set_buffer_limit(Some(TLS_BUFFER_BYTES_MAX));
        Ok(Box::new(connection))
    }
}

fn certified_key(certificates: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(certificates)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem {
            what: "certificate chain",
            source,
        })?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|source| TlsError::Pem {
        what: "private key",
        source,
    })?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match()?;
    Ok(Arc::new(certified))
}
