//! A way to PgBouncer that can freeze, be cut, or be encrypted.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Open,
    Frozen,
    /// Connections made before this many cuts are closed.
    Cut(u32),
}

/// Forwards bytes to PgBouncer.
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<watch::Sender<State>>,
    cuts: std::sync::atomic::AtomicU32,
}

impl Proxy {
    pub async fn start() -> Proxy {
        Proxy::with(None).await
    }

    /// Encrypts; the certificate (PEM) is what `tls_ca` must hold.
    pub async fn encrypted() -> (Proxy, String) {
        let names = vec!["127.0.0.1".to_owned()];
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        (Proxy::with(Some(acceptor)).await, cert.pem())
    }

    async fn with(tls: Option<TlsAcceptor>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(watch::Sender::new(State::Open));
        let states = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, tls.clone(), states.subscribe()));
            }
        });
        Proxy {
            address,
            state,
            cuts: 0.into(),
        }
    }

    /// Nothing goes through any more, and nothing is closed.
    pub fn freeze(&self) {
        self.state.send_replace(State::Frozen);
    }

    pub fn thaw(&self) {
        self.state.send_replace(State::Open);
    }

    /// Closes all connections; new ones go through.
    pub fn cut(&self) {
        let cuts = self.cuts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.state.send_replace(State::Cut(cuts));
    }
}

async fn serve(mut client: TcpStream, tls: Option<TlsAcceptor>, state: watch::Receiver<State>) {
    let Ok(server) = TcpStream::connect("127.0.0.1:6433").await else {
        return;
    };
    let Some(tls) = tls else {
        return forward(client, server, state).await;
    };
    // A client asks for encryption with 8 bytes and begins when told `S`.
    let mut asked = [0; 8];
    if client.read_exact(&mut asked).await.is_err() || client.write_all(b"S").await.is_err() {
        return;
    }
    if let Ok(client) = tls.accept(client).await {
        forward(client, server, state).await;
    }
}

async fn forward(
    client: impl AsyncRead + AsyncWrite,
    server: TcpStream,
    state: watch::Receiver<State>,
) {
    let (from_client, to_client) = tokio::io::split(client);
    let (from_server, to_server) = tokio::io::split(server);
    tokio::select! {
        () = pump(from_client, to_server, state.clone()) => {}
        () = pump(from_server, to_client, state) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
) {
    let begun = *state.borrow();
    let mut bytes = vec![0; 16 << 10];
    loop {
        let read = tokio::select! {
            read = from.read(&mut bytes) => read,
            _ = state.changed() => {
                let now = *state.borrow_and_update();
                if matches!(now, State::Cut(_)) && now != begun {
                    return;
                }
                continue;
            }
        };
        let Ok(n @ 1..) = read else { return };
        if state.wait_for(|now| *now != State::Frozen).await.is_err() {
            return;
        }
        if to.write_all(&bytes[..n]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}
