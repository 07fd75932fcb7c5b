//! The receiving side: connections that other servers made.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use hashbrown::HashMap;
use tidings_core::ids::Partition;
use tidings_core::varint::{Malformed, Reader};
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Duration, Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::frame::{self, Connection, Ended};
use super::hello::{self, Hello, HelloError};
use super::item::Item;
use super::metrics::{add, sub};
use super::owners::Term;
use super::shared::Shared;
use super::tls::Stream;
use super::wire::Wire;

/// Handshakes at a time: who has shown no certificate yet takes no more memory than this many do.
const HANDSHAKES_MAX: usize = 64;

/// The wait after the system refused a connection: no descriptors are left, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which connection of each server is heard: the last. One that this server hasn't noticed to be
/// dead may still hold frames older than those of the next.
#[derive(Default)]
pub(super) struct Turns {
    servers: Mutex<Numbered>,
}

#[derive(Default)]
struct Numbered {
    last: u64,
    turns: HashMap<u32, Arc<Mutex<u64>>>,
}

struct Turn {
    number: u64,
    current: Arc<Mutex<u64>>,
}

impl Turns {
    /// The next connection of a server; the one before is not heard any more when this returns.
    fn begin(&self, server: u32) -> Turn {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.last += 1;
        let number = servers.last;
        let current = Arc::clone(servers.turns.entry(server).or_default());
        *current.lock().unwrap_or_else(PoisonError::into_inner) = number;
        Turn { number, current }
    }

    /// Whether it was still the last one.
    fn end(&self, server: u32, turn: &Turn) -> bool {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_last = turn.during(|| ()).is_some();
        if is_last {
            servers.turns.remove(&server);
        }
        is_last
    }
}

impl Turn {
    /// Does something while it is this connection's turn, if it is.
    fn during<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (*current == self.number).then(act)
    }
}

/// Accepts connections until this server drains.
pub(super) async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let accept = async {
            let permit = Arc::clone(&handshakes).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = accept => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let task = serve(Arc::clone(&shared), stream, address, permit.ok());
                shared.tasks.spawn(task);
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection between servers");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, from the first byte to the last.
async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    address: SocketAddr,
    handshake: Option<OwnedSemaphorePermit>,
) {
    let met = tokio::select! {
        () = shared.stop.cancelled() => return,
        met = meet(&shared, stream) => met,
    };
    drop(handshake);
    let error = match met {
        Ok(Some((theirs, connection))) => return hear(&shared, &theirs, connection).await,
        Ok(None) => return,
        Err(error) => error,
    };
    add(&shared.metrics.refused, 1);
    // The other side, if it is a server, says it more loudly.
    if matches!(error, HelloError::Objection(_)) {
        tracing::warn!(%address, %error, "refused a server");
    } else {
        tracing::info!(%address, %error, "refused a connection between servers");
    }
}

/// Who is there; nothing when it is this server itself.
async fn meet(
    shared: &Shared,
    stream: TcpStream,
) -> Result<Option<(Hello, Connection)>, HelloError> {
    stream.set_nodelay(true)?;
    let within = shared.times.connect;
    let stream = timeout(within, shared.tls.accept(stream))
        .await
        .map_err(|_| HelloError::Late)??;
    let mut connection = Connection::new(stream);
    let theirs = hello::receive(&mut connection, &shared.hello, within).await?;
    Ok((!theirs.is(&shared.hello)).then_some((theirs, connection)))
}

/// Hears a server until its connection ends.
async fn hear(shared: &Arc<Shared>, theirs: &Hello, connection: Connection) {
    let server = theirs.server;
    let mut heard = Heard {
        server,
        is_newer: shared.hello.is_behind(theirs),
        turn: None,
        terms: HashMap::new(),
    };
    let ended = match heard.run(connection, shared).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    };
    if let Some(turn) = &heard.turn {
        ended.count(&shared.metrics);
        sub(&shared.metrics.heard, 1);
        if shared.turns.end(server, turn) {
            shared.forget(server);
            tracing::info!(server = format!("{server:06x}"), %ended, "a server isn't heard any more");
        }
    }
}

/// One server, as far as one connection says.
struct Heard {
    server: u32,
    /// Whether it knows versions that this release doesn't. What it says against the version agreed on
    /// is passed over: it would only come back and say it again.
    is_newer: bool,
    /// Nothing until the first frame: the other side may still find that it has a link already.
    turn: Option<Turn>,
    /// Of the sender's routers.
    terms: HashMap<Partition, Term>,
}

impl Heard {
    async fn run(
        &mut self,
        connection: Connection,
        shared: &Arc<Shared>,
    ) -> Result<std::convert::Infallible, Ended> {
        let Connection {
            mut frames,
            mut out,
        } = connection;
        // Half as long again as pings take to come: an answer to one says the same as a beat.
        let mut beat = interval(shared.times.ping * 3 / 2);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        loop {
            tokio::select! {
                () = shared.stop.cancelled() => return Err(Ended::Draining),
                frame = frames.next() => {
                    let frame = frame.ok_or(Ended::Closed)?.map_err(Ended::by_reading)?;
                    last = Instant::now();
                    if let Some(pong) = self.frame(&frame, shared)? {
                        say(&mut out, &pong, shared).await?;
                        beat.reset();
                    }
                }
                // That a link is alive is told apart from what goes over it, whose way may be jammed.
                _ = beat.tick() => {
                    let mut frame = Vec::new();
                    let start = frame::begin(&mut frame, frame::BEAT);
                    frame::finish(&mut frame, start);
                    say(&mut out, &frame, shared).await?;
                }
                () = sleep_until(last + shared.times.silence) => return Err(Ended::Silent),
            }
        }
    }

    /// Takes a frame; what is to be answered.
    fn frame(&mut self, frame: &[u8], shared: &Arc<Shared>) -> Result<Option<Vec<u8>>, Ended> {
        if self.turn.is_none() {
            self.turn = Some(shared.turns.begin(self.server));
            // What its connection before said is told again, or isn't so any more.
            shared.forget(self.server);
            add(&shared.metrics.heard, 1);
        }
        let mut r = Reader::new(frame, "frame between servers");
        match r.byte()? {
            frame::PING => {
                let mut pong = Vec::new();
                let start = frame::begin(&mut pong, frame::PONG);
                pong.extend_from_slice(r.take(8)?);
                frame::finish(&mut pong, start);
                Ok(Some(pong))
            }
            frame::BATCH => {
                add(&shared.metrics.batches_in, 1);
                add(&shared.metrics.bytes_in, frame.len() as u64 + 4);
                let turn = self.turn.as_ref().ok_or(Ended::Replaced)?;
                turn.during(|| batch(self.server, self.is_newer, &mut self.terms, r, shared))
                    .ok_or(Ended::Replaced)??;
                Ok(None)
            }
            _ if self.is_newer => {
                add(&shared.metrics.unknown_skipped, 1);
                Ok(None)
            }
            _ => Err(Ended::Malformed),
        }
    }
}

/// The next item; nothing when it is one that only later releases know.
fn item(r: &mut Reader<'_>, is_newer: bool) -> Result<Option<Item>, Malformed> {
    let head = r.take(frame::ITEM_HEAD_BYTES)?;
    let length = u32::from_le_bytes(head.try_into().map_err(|_| r.malformed())?);
    let length = usize::try_from(length).map_err(|_| r.malformed())?;
    let mut r = Reader::new(r.take(length)?, "item between servers");
    match Item::get(&mut r) {
        // Fields that were added behind the last.
        Ok(item) if r.is_empty() || is_newer => Ok(Some(item)),
        Err(_) if is_newer => Ok(None),
        Ok(_) => Err(r.malformed()),
        Err(malformed) => Err(malformed),
    }
}

fn batch(
    server: u32,
    is_newer: bool,
    terms: &mut HashMap<Partition, Term>,
    mut r: Reader<'_>,
    shared: &Shared,
) -> Result<(), Ended> {
    if r.byte()? & frame::LOST != 0 {
        add(&shared.metrics.losses_heard, 1);
        shared.local.lost();
    }
    let mut messages = 0;
    while !r.is_empty() {
        let Some(item) = item(&mut r, is_newer)? else {
            add(&shared.metrics.unknown_skipped, 1);
            continue;
        };
        messages += 1;
        match item {
            Item::TookOver { partition, term } => {
                if !shared.state().owners.contains(partition) {
                    return Err(Ended::Malformed);
                }
                terms.insert(partition, term);
                shared.claimed(server, partition, term);
            }
            Item::Resigned { partition } => {
                terms.remove(&partition);
                shared.resigned_there(server, partition);
            }
            Item::Notice { message } => shared.local.deliver_to_all(&message),
            Item::ToRouter {
                worker,
                partition,
                message,
            } => shared.to_router_here(server, worker, partition, message),
            Item::ToGateway {
                partition,
                to,
                message,
            } => shared.to_gateways_here(partition, terms.get(&partition).copied(), to, message),
        }
    }
    add(&shared.metrics.messages_in, messages);
    Ok(())
}

async fn say(out: &mut WriteHalf<Stream>, frame: &[u8], shared: &Shared) -> Result<(), Ended> {
    let write = async {
        out.write_all(frame).await?;
        out.flush().await
    };
    match timeout(shared.times.silence, write).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(Ended::Silent),
    }
}
