//! Servers of a cluster in one process, with certificates of their own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tempfile::TempDir;
use tidings_core::ids::{GatewayId, Partition, Position};
use tidings_core::in_process::{GatewayInbox, InProcessPeers, RouterInbox};
use tidings_core::ports::peers::{Peers, ToGateway, ToRouter};
use tidings_engines::peers::{Metrics, Settings, StreamPeers, draw_server_number};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Of the log of every cluster here.
pub const PARTITIONS: u32 = 4;

/// Nothing that is waited for takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A cluster's own CA and its files.
pub struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a CA");
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).expect("written");
        Authority { dir, issuer }
    }

    /// Settings of a server with a certificate for the loopback addresses.
    pub fn settings(&self, listen: SocketAddr, servers: &[SocketAddr]) -> Settings {
        let names = [
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            listen.ip().to_string(),
        ];
        let mut params = CertificateParams::new(names).expect("names");
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let file = |name: String, content: String| {
            let path = self.dir.path().join(name);
            std::fs::write(&path, content).expect("written");
            path.to_str().expect("a path in UTF-8").to_owned()
        };
        Settings {
            listen: listen.to_string(),
            servers: servers.iter().map(SocketAddr::to_string).collect(),
            certificate: file(format!("{}.pem", listen.port()), certificate.pem()),
            key: file(format!("{}.key", listen.port()), key.serialize_pem()),
            ca: self
                .dir
                .path()
                .join("ca.pem")
                .to_str()
                .expect("UTF-8")
                .to_owned(),
            resolve_interval_ms: 500,
            ..Settings::default()
        }
    }
}

/// Addresses that were free a moment ago.
pub fn addresses<const N: usize>() -> [SocketAddr; N] {
    static CALLS: AtomicU8 = AtomicU8::new(1);
    // On an address of its own: ports of 127.0.0.1 are taken by any connection that is made meanwhile.
    let [.., high, low] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(
        127,
        64 | (high % 64),
        low,
        CALLS.fetch_add(1, Ordering::Relaxed),
    );
    let held = [(); N].map(|()| TcpListener::bind((host, 0)).expect("a port"));
    held.each_ref()
        .map(|listener| listener.local_addr().expect("an address"))
}

/// One server with two gateway workers, 1 and 2.
pub struct Node {
    pub peers: StreamPeers,
    pub metrics: Arc<Metrics>,
    pub server: u32,
    local: Arc<InProcessPeers>,
    workers: Vec<(GatewayInbox, Vec<ToGateway>, bool)>,
}

impl Node {
    pub async fn open(settings: &Settings) -> Node {
        Node::open_as(settings, 1..=1).await
    }

    /// One that speaks these versions.
    pub async fn open_as(settings: &Settings, versions: RangeInclusive<u32>) -> Node {
        let local = Arc::new(InProcessPeers::with_bound(PARTITIONS, 1 << 20));
        let server = draw_server_number().expect("a number");
        let local_too = Arc::clone(&local);
        let peers = StreamPeers::open_as(settings, server, PARTITIONS, local_too, versions)
            .await
            .expect("it opens");
        let worker = |n| {
            let inbox = local.add_gateway(GatewayId::new(server, n), Box::new(|| ()));
            (inbox, Vec::new(), false)
        };
        Node {
            metrics: peers.metrics(),
            server,
            workers: vec![worker(1), worker(2)],
            local,
            peers,
        }
    }

    pub fn gateway(&self, worker: u8) -> GatewayId {
        GatewayId::new(self.server, worker)
    }

    pub fn router(&self, partition: Partition) -> RouterInbox {
        self.local.router_inbox(partition).expect("a partition")
    }

    pub fn took_over(&self, partition: Partition, offset: u64) {
        self.peers
            .took_over(partition, Position { epoch: 1, offset });
    }

    /// All that has come to a worker.
    pub fn got(&mut self, worker: u8) -> &mut Vec<ToGateway> {
        let (inbox, got, lost) = &mut self.workers[usize::from(worker) - 1];
        let mut new = Vec::new();
        *lost |= inbox.take(&mut new);
        got.append(&mut new);
        got
    }

    /// Whether a worker was told of a loss since the last question.
    pub fn has_lost(&mut self, worker: u8) -> bool {
        self.got(worker);
        std::mem::take(&mut self.workers[usize::from(worker) - 1].2)
    }

    /// Forgets all that has come so far.
    pub fn clear(&mut self) {
        for worker in [1, 2] {
            self.got(worker).clear();
            self.has_lost(worker);
        }
    }

    /// How often the workers were told that a partition has another router.
    pub fn told_of(&mut self, partition: Partition) -> [usize; 2] {
        let told = ToGateway::TookOver { partition };
        [1, 2].map(|worker| self.got(worker).iter().filter(|m| **m == told).count())
    }
}

/// A cluster in which everybody knows everybody, linked.
pub async fn cluster<const N: usize>(change: impl Fn(&mut Settings)) -> [Node; N] {
    let authority = Authority::new();
    let addresses = addresses::<N>();
    let mut nodes = Vec::new();
    for listen in addresses {
        let mut settings = authority.settings(listen, &addresses);
        change(&mut settings);
        nodes.push(Node::open(&settings).await);
    }
    for node in &nodes {
        until("all are linked", || node.peers.links().len() == N - 1).await;
    }
    nodes.try_into().ok().expect("N nodes")
}

/// Waits for something; says what it was when it doesn't come.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The next messages to a router.
pub async fn received(inbox: &RouterInbox, count: usize) -> Vec<(GatewayId, ToRouter)> {
    let mut all = Vec::new();
    while all.len() < count {
        let mut new = Vec::new();
        tokio::time::timeout(PATIENCE, inbox.recv_many(&mut new))
            .await
            .expect("messages to the router");
        all.append(&mut new);
    }
    all
}

/// Forwards connections, until it is frozen: then it keeps them, and forwards nothing.
pub struct Proxy {
    pub address: SocketAddr,
    frozen: Arc<AtomicBool>,
}

impl Proxy {
    pub async fn to(target: SocketAddr) -> Proxy {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let frozen = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&frozen);
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let Ok(to) = tokio::net::TcpStream::connect(target).await else {
                    continue;
                };
                let (from_read, from_write) = from.into_split();
                let (to_read, to_write) = to.into_split();
                tokio::spawn(forward(from_read, to_write, Arc::clone(&shared)));
                tokio::spawn(forward(to_read, from_write, Arc::clone(&shared)));
            }
        });
        Proxy { address, frozen }
    }

    pub fn freeze(&self, is_frozen: bool) {
        self.frozen.store(is_frozen, Ordering::Relaxed);
    }
}

async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    frozen: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        while frozen.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
}
