//! A keyspace of its own for a test, and proxies that can hang.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::unprepared::Statement;
use tidings_engines::cassandra::{Settings, migrate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[path = "../stack/mod.rs"]
mod stack;

pub const NODES: usize = 3;

pub fn node(n: usize) -> String {
    format!("127.0.0.{}:9042", n + 1)
}

/// A name that no other test and no other run uses.
pub fn fresh_name() -> String {
    let mut random = [0; 6];
    getrandom::fill(&mut random).expect("random bytes");
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("test_store_{hex}")
}

/// A session beside the store's.
pub async fn admin() -> Session {
    SessionBuilder::new()
        .known_node(node(0))
        .build()
        .await
        .expect("Cassandra answers")
}

/// Runs a test on a keyspace made by migration, and drops it whatever happens.
pub fn with_keyspace<F: Future<Output = ()> + Send + 'static>(
    test: impl FnOnce(Settings) -> F + Send + 'static,
) {
    if !stack::runs("Cassandra", &node(0)) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let settings = Settings {
            hosts: (0..NODES).map(node).collect(),
            keyspace: fresh_name(),
            connections_local: 2,
            ..Settings::default()
        };
        let keyspace = settings.keyspace.clone();
        let running = tokio::spawn(async move {
            migrate(&settings).await.expect("migrated");
            test(settings).await;
        });
        let bounded = tokio::time::timeout(Duration::from_secs(120), running).await;
        let mut drop = Statement::new(format!("DROP KEYSPACE IF EXISTS {keyspace}"));
        drop.set_request_timeout(Some(Duration::from_secs(60)));
        admin()
            .await
            .query_unpaged(drop, ())
            .await
            .expect("the keyspace is dropped");
        match bounded.expect("the test ends in time") {
            Ok(()) => {}
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    });
}

/// One in front of each node. A frozen one takes connections and bytes, but passes none on.
pub struct Proxies(Vec<(SocketAddr, watch::Sender<bool>)>);

impl Proxies {
    pub async fn start() -> Proxies {
        let mut proxies = Vec::new();
        for n in 0..NODES {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound");
            let (freeze, frozen) = watch::channel(false);
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let Ok(server) = TcpStream::connect(node(n)).await else {
                        continue;
                    };
                    let (client_in, client_out) = client.into_split();
                    let (server_in, server_out) = server.into_split();
                    tokio::spawn(pass(client_in, server_out, frozen.clone()));
                    tokio::spawn(pass(server_in, client_out, frozen.clone()));
                }
            });
            proxies.push((address, freeze));
        }
        Proxies(proxies)
    }

    pub fn hosts(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|(address, _)| address.to_string())
            .collect()
    }

    pub fn address_map(&self) -> Vec<String> {
        let line =
            |(n, (address, _)): (usize, &(SocketAddr, _))| format!("127.0.0.{}={address}", n + 1);
        self.0.iter().enumerate().map(line).collect()
    }

    pub fn freeze(&self, n: usize) {
        self.0[n].1.send_replace(true);
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut frozen: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = tokio::select! {
            _ = frozen.wait_for(|frozen| *frozen) => break,
            read = from.read(&mut buffer) => read,
        };
        match read {
            Ok(n) if n > 0 && to.write_all(&buffer[..n]).await.is_ok() => {}
            _ => return,
        }
    }
    // Held open, so that nobody is told.
    std::future::pending::<()>().await;
}
