//! What the tests of the log on Kafka share: topics of their own, and a proxy before the brokers that can be cut.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use tidings_engines::kafka::{KafkaLog, Settings, migrate};

pub const BROKER: &str = "127.0.0.1:9092";

/// Runs a test's future; no test waits for ever.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async {
            tokio::time::timeout(Duration::from_secs(120), test)
                .await
                .expect("the test ends in time")
        })
}

/// Differs from run to run.
pub fn run_id() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    now.as_nanos() as u64 & 0xffff_ffff_ffff
}

/// Topics and a group of this test's own, removed at the end.
pub struct Own {
    pub settings: Settings,
}

impl Own {
    pub fn new(name: &str, partitions: u32) -> Own {
        let named = |what: &str| format!("test-{name}-{:x}-{what}", run_id());
        Own {
            settings: Settings {
                brokers: (1..=3).map(|n| format!("127.0.0.{n}:9092")).collect(),
                topic: named("messages"),
                pending_topic: named("pending"),
                dead_letter_topic: named("dead"),
                group: named("routers"),
                pending_group: named("marks"),
                partitions,
                ..Settings::default()
            },
        }
    }

    pub async fn migrated(name: &str, partitions: u32) -> Own {
        let own = Own::new(name, partitions);
        let lines = migrate(&own.settings).await.expect("topics can be made");
        assert_eq!(lines.len(), 4, "{lines:?}");
        own
    }

    pub async fn open(&self) -> KafkaLog {
        KafkaLog::open(self.settings.clone())
            .await
            .expect("the log opens")
    }

    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new()
            .set("bootstrap.servers", BROKER)
            .create()
            .expect("an admin client")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let (admin, settings) = (self.admin(), self.settings.clone());
        // A runtime of its own, since this may run within one.
        let clean = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(async {
                    let options =
                        AdminOptions::new().request_timeout(Some(Duration::from_secs(10)));
                    let topics = [
                        settings.topic.as_str(),
                        &settings.pending_topic,
                        &settings.dead_letter_topic,
                    ];
                    _ = admin.delete_topics(&topics, &options).await;
                    let groups = [settings.group.as_str(), &settings.pending_group];
                    _ = admin.delete_groups(&groups, &options).await;
                });
        });
        _ = clean.join();
    }
}

const OPEN: u8 = 0;
const CUT: u8 = 1;
const HUNG: u8 = 2;
const MUTE: u8 = 3;

/// A proxy before all three brokers. It gives the brokers' addresses in their answers as its own, so a client that
/// begins with it stays with it.
pub struct Proxy {
    mode: Arc<AtomicU8>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    pub brokers: Vec<String>,
}

impl Proxy {
    pub fn new() -> Proxy {
        let mode = Arc::new(AtomicU8::new(OPEN));
        let open = Arc::new(Mutex::new(Vec::new()));
        let mut brokers = Vec::new();
        // Other tests have proxies, too.
        let first = run_id() / 1000;
        let (digit, listeners) = (first..first + 8)
            .map(|n| b'2' + (n % 8) as u8)
            .find_map(|digit| Some((digit, listeners(digit)?)))
            .expect("an address of the proxy's");
        for (n, (address, listener)) in (1..=3).zip(listeners) {
            brokers.push(address);
            let (mode, open) = (Arc::clone(&mode), Arc::clone(&open));
            std::thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    if mode.load(Ordering::Relaxed) == CUT {
                        continue;
                    }
                    let Ok(broker) = TcpStream::connect(format!("127.0.0.{n}:9092")) else {
                        continue;
                    };
                    let clone = |stream: &TcpStream| stream.try_clone().expect("a handle");
                    let mut all = open.lock().expect("no panic");
                    all.extend([clone(&client), clone(&broker)]);
                    let (from, to) = (clone(&client), clone(&broker));
                    let sees = Arc::clone(&mode);
                    std::thread::spawn(move || pump(from, to, &sees, None));
                    let sees = Arc::clone(&mode);
                    std::thread::spawn(move || pump(broker, client, &sees, Some(digit)));
                }
            });
        }
        Proxy {
            mode,
            open,
            brokers,
        }
    }

    /// Closes all connections and takes no further ones.
    pub fn cut(&self) {
        self.mode.store(CUT, Ordering::Relaxed);
        for stream in self.open.lock().expect("no panic").drain(..) {
            _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Passes nothing on, and says nothing.
    pub fn hang(&self) {
        self.mode.store(HUNG, Ordering::Relaxed);
    }

    /// Passes requests on and swallows the answers.
    pub fn mute(&self) {
        self.mode.store(MUTE, Ordering::Relaxed);
    }

    pub fn mend(&self) {
        self.mode.store(OPEN, Ordering::Relaxed);
    }
}

/// One for each broker, on addresses that differ from theirs by this digit.
fn listeners(digit: u8) -> Option<Vec<(String, TcpListener)>> {
    let address = |n| format!("127.{}.0.{n}:9092", digit as char);
    let listener = |n| Some((address(n), TcpListener::bind(address(n)).ok()?));
    (1..=3).map(listener).collect()
}

/// Passes whole frames on, with the brokers' addresses changed in answers.
fn pump(mut from: TcpStream, mut to: TcpStream, mode: &AtomicU8, digit: Option<u8>) {
    let mut next = || -> std::io::Result<()> {
        let mut len = [0; 4];
        from.read_exact(&mut len)?;
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        from.read_exact(&mut frame)?;
        if let Some(digit) = digit {
            let port = 9092u32.to_be_bytes();
            for at in 0..frame.len().saturating_sub(12) {
                if frame[at..].starts_with(b"127.0.0.") && frame[at + 9..at + 13] == port {
                    frame[at + 4] = digit;
                }
            }
        }
        while mode.load(Ordering::Relaxed) == HUNG {
            std::thread::sleep(Duration::from_millis(10));
        }
        if digit.is_some() && mode.load(Ordering::Relaxed) == MUTE {
            return Ok(());
        }
        to.write_all(&len)?;
        to.write_all(&frame)
    };
    while next().is_ok() {}
    _ = to.shutdown(Shutdown::Both);
    _ = from.shutdown(Shutdown::Both);
}
