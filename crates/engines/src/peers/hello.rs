//! How two servers meet: each says who it is, or why it won't talk.

use std::time::Duration;

use futures_util::StreamExt;
use tidings_core::varint::Reader;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::frame::{self, Connection};
use super::wire::Wire;

/// The newest layout of messages that this release writes and reads, and the oldest it still can.
pub(super) const VERSION: u32 = 1;
pub(super) const OLDEST: u32 = 1;

/// What every hello begins with: something else that has strayed here is told from an old release.
const MAGIC: u32 = 0x7469_6469;

/// Who a server is. Fields are only ever added behind the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub magic: u32,
    /// The oldest version it writes and reads.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
    pub cluster: String,
    pub server: u32,
    /// Random: tells the process itself from another one that drew the same server number.
    pub start: u64,
    pub partitions: u32,
}

impl Hello {
    /// Of a server that speaks the versions of this release.
    pub fn new(cluster: &str, server: u32, start: u64, partitions: u32) -> Hello {
        Hello {
            magic: MAGIC,
            oldest: OLDEST,
            newest: VERSION,
            cluster: cluster.to_owned(),
            server,
            start,
            partitions,
        }
    }

    /// Whether it is the very process that says it.
    pub fn is(&self, other: &Hello) -> bool {
        (self.server, self.start) == (other.server, other.start)
    }

    /// The version that both speak: the highest that both know. Nothing newer is written to the other.
    pub fn common(&self, other: &Hello) -> u32 {
        self.newest.min(other.newest)
    }

    /// Whether the other may say things that this release has no word for.
    pub fn is_behind(&self, other: &Hello) -> bool {
        other.newest > self.newest
    }

    /// Why this server doesn't talk to that one.
    fn objection(&self, other: &Hello) -> Option<String> {
        if other.magic != MAGIC {
            return Some("it isn't a server of tidings".to_owned());
        }
        if other.newest < self.oldest || other.oldest > self.newest {
            return Some(format!(
                "it speaks versions {} to {} between servers, this one {} to {}: upgrade one release at a time",
                other.oldest, other.newest, self.oldest, self.newest
            ));
        }
        if other.cluster != self.cluster {
            return Some(format!(
                "it is of cluster {:?}, this one of {:?} (peers.cluster)",
                other.cluster, self.cluster
            ));
        }
        if other.partitions != self.partitions {
            return Some(format!(
                "its log has {} partitions, this one's {}: they read different topics",
                other.partitions, self.partitions
            ));
        }
        if other.server == self.server && other.start != self.start {
            return Some(format!(
                "it drew the same server number {:06x}: start one of them again",
                self.server
            ));
        }
        None
    }
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    #[error("no answer in time")]
    Late,
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    #[error("the connection was closed (its certificate or this server's may be refused)")]
    Closed,
    #[error("it doesn't talk as a server of this cluster does")]
    Malformed,
    #[error("{0}")]
    Objection(String),
    #[error("it refuses this server, of which it says: {0}")]
    Refused(String),
}

/// Says hello first and hears the answer.
pub(super) async fn greet(
    connection: &mut Connection,
    mine: &Hello,
    within: Duration,
) -> Result<Hello, HelloError> {
    let talk = async {
        say(connection, frame::HELLO, mine).await?;
        let theirs = hear(connection).await?;
        match mine.objection(&theirs) {
            Some(objection) => Err(HelloError::Objection(objection)),
            None => Ok(theirs),
        }
    };
    timeout(within, talk).await.unwrap_or(Err(HelloError::Late))
}

/// Hears a hello and answers it.
pub(super) async fn receive(
    connection: &mut Connection,
    mine: &Hello,
    within: Duration,
) -> Result<Hello, HelloError> {
    let talk = async {
        let theirs = hear(connection).await?;
        if let Some(objection) = mine.objection(&theirs) {
            say(connection, frame::REFUSED, &objection).await?;
            connection.out.shutdown().await?;
            return Err(HelloError::Objection(objection));
        }
        say(connection, frame::HELLO, mine).await?;
        Ok(theirs)
    };
    timeout(within, talk).await.unwrap_or(Err(HelloError::Late))
}

async fn say(connection: &mut Connection, kind: u8, what: &impl Wire) -> Result<(), HelloError> {
    let mut out = Vec::new();
    let start = frame::begin(&mut out, kind);
    what.put(&mut out);
    frame::finish(&mut out, start);
    connection.out.write_all(&out).await?;
    connection.out.flush().await?;
    Ok(())
}

async fn hear(connection: &mut Connection) -> Result<Hello, HelloError> {
    let Some(frame) = connection.frames.next().await else {
        return Err(HelloError::Closed);
    };
    let frame = frame?;
    let mut r = Reader::new(&frame, "hello");
    let malformed = |_| HelloError::Malformed;
    match r.byte().map_err(malformed)? {
        frame::HELLO => Hello::get(&mut r).map_err(malformed),
        frame::REFUSED => {
            let reason = String::get(&mut r).map_err(malformed)?;
            let plain = reason.chars().filter(|c| !c.is_control()).take(300);
            Err(HelloError::Refused(plain.collect()))
        }
        _ => Err(HelloError::Malformed),
    }
}
