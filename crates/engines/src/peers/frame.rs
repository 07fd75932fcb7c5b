//! Frames on the wire: four bytes of length, a kind, and what it says.

use tidings_core::varint::Malformed;
use tokio::io::{ReadHalf, WriteHalf};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use super::metrics::{Metrics, add};
use super::tls::Stream;

/// The longest frame that is taken; a longer one ends the link.
pub(super) const FRAME_MAX: usize = 4 << 20;

/// A batch is sent when it has come this far, so that one message more still fits.
pub(super) const FRAME_FULL: usize = 256 << 10;

/// The largest message that is sent.
pub(super) const MESSAGE_MAX: usize = FRAME_MAX - FRAME_FULL - 64;

/// The kinds of frames: never reuse a number.
pub(super) const HELLO: u8 = 1;
/// Instead of a hello: a reason.
pub(super) const REFUSED: u8 = 2;
/// A byte of flags, then items to the end, each with its length (u32, little-endian) in front: a reader
/// passes over what a later version brought.
pub(super) const BATCH: u8 = 3;
/// A number to give back.
pub(super) const PING: u8 = 4;
/// The number of the last ping.
pub(super) const PONG: u8 = 5;
/// Nothing but that the sender is there.
pub(super) const BEAT: u8 = 6;

/// The length in front of an item.
pub(super) const ITEM_HEAD_BYTES: usize = 4;

/// Where a batch has its flags, from the start of the frame.
pub(super) const FLAGS_AT: usize = 5;

/// The flag of a batch before which something for gateways was dropped.
pub(super) const LOST: u8 = 1;

/// Where frames are read from.
pub(super) type Frames = FramedRead<ReadHalf<Stream>, LengthDelimitedCodec>;

/// Both halves of a connection. What is written goes out already framed: a batch is encoded into
/// the very buffer it is written from.
pub(super) struct Connection {
    pub frames: Frames,
    pub out: WriteHalf<Stream>,
}

impl Connection {
    pub fn new(stream: Stream) -> Connection {
        let codec = LengthDelimitedCodec::builder()
            .max_frame_length(FRAME_MAX)
            .new_codec();
        let (read, out) = tokio::io::split(stream);
        Connection {
            frames: FramedRead::new(read, codec),
            out,
        }
    }
}

/// Why a link or a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("this server drains")]
    Draining,
    #[error("it was closed from there")]
    Closed,
    #[error("nothing was heard for too long")]
    Silent,
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    #[error("a frame can't be read")]
    Malformed,
    #[error("there is a newer connection of that server")]
    Replaced,
}

impl From<Malformed> for Ended {
    fn from(_: Malformed) -> Self {
        Ended::Malformed
    }
}

impl Ended {
    /// What reading a frame failed with: one that is too long is malformed as well.
    pub fn by_reading(error: std::io::Error) -> Ended {
        match error.kind() {
            std::io::ErrorKind::InvalidData => Ended::Malformed,
            _ => Ended::Io(error),
        }
    }

    /// Counts what is worth a count.
    pub fn count(&self, metrics: &Metrics) {
        match self {
            Ended::Silent => add(&metrics.silent, 1),
            Ended::Malformed => add(&metrics.bad_frames, 1),
            Ended::Draining | Ended::Closed | Ended::Io(_) | Ended::Replaced => {}
        }
    }
}

/// Begins a frame at the end of `out`; [`finish`] wants what it returns.
pub(super) fn begin(out: &mut Vec<u8>, kind: u8) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.push(kind);
    start
}

/// Ends the frame that began at `start`.
pub(super) fn finish(out: &mut [u8], start: usize) {
    let length = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}
