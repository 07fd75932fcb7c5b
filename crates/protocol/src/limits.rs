//! The bounds of the protocol, each stated once, with its unit and its argument.
//!
//! Those that a deployment may change are defaults here; `hello` carries the
//! ones in force.

/// Bytes of one WebSocket message, either way, its frame headers not counted.
///
/// Large enough for the largest body in its worst JSON form (checked below) and
/// for a sync with [`SYNC_CURSORS_MAX`] cursors; small enough that a thousand
/// half-received messages are 256 MiB at most.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;

/// Fragments of one WebSocket message: a message of full size may arrive in
/// pieces of 256 bytes, which no real client goes below.
pub const FRAGMENTS_MAX: usize = 1024;

/// Bytes of a body after inflating, text or JSON: about eight printed pages.
/// A longer text is a file.
pub const TEXT_BYTES_MAX: usize = 16 * 1024;

/// The most a deployment may raise [`TEXT_BYTES_MAX`] to, and what is ever
/// inflated: a sixth of a frame less a kilobyte of envelope, since JSON may
/// write one byte as six (`\u0001`).
pub const INFLATED_BYTES_MAX: usize = (FRAME_BYTES_MAX - 1024) / 6;

/// Bodies above this many bytes are compressed by their sender. Below it zstd
/// without a dictionary saves next to nothing on chat text.
pub const COMPRESS_ABOVE_BYTES: usize = 1024;

/// Inflated bytes per compressed byte; text in a human language stays under 10.
pub const INFLATE_RATIO_MAX: u64 = 100;

/// Levels of arrays and objects in the value of a JSON field. The protocol's
/// own values have two; recursion is bounded by it.
pub const JSON_DEPTH_MAX: u32 = 32;

/// Fields of one JSON object of the protocol. The largest has 16.
pub const JSON_FIELDS_MAX: usize = 64;

/// Commands of one frame: an outbox of 256 sends in one write; more than that
/// is another frame. Bounds what one readable socket can make a worker do.
pub const COMMANDS_PER_FRAME_MAX: usize = 256;

/// Events of one page. With chat text of 100 bytes a full page is about 75 KB
/// of protobuf, well within a frame; longer texts cut a page short.
pub const PAGE_MAX: u32 = 500;

/// Events of one conversation that a sync sends at first unless the client
/// asks for another number: what a screen shows and a little more.
pub const PAGE_DEFAULT: u32 = 100;

/// Cursors of one sync. In protobuf a cursor takes at most 20 bytes with its
/// headers, in JSON 59 and a comma, so 4,096 fit into one frame in both.
pub const SYNC_CURSORS_MAX: usize = 4096;

/// Users watched for presence by one session.
pub const WATCH_MAX: usize = 1000;

/// Bytes of an access token: those of large identity providers stay under 4 KiB.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Bytes of a device's name.
pub const DEVICE_BYTES_MAX: usize = 64;

/// Sends of one user in a second, as a default; three times as much closes the connection.
pub const SENDS_PER_SECOND: u32 = 20;

/// WebSocket frames a second from one connection, and the burst above it.
pub const FRAMES_PER_SECOND: u32 = 100;

/// Frames that may come at once before [`FRAMES_PER_SECOND`] applies.
pub const FRAMES_BURST: u32 = 200;

/// Members named by one membership event.
pub const MEMBER_CHANGES_MAX: usize = 1000;

/// The largest seq, counter, grant, time or ref: JSON readers that hold numbers
/// as doubles read all integers up to here exactly (RFC 8259 section 6). As
/// microseconds it ends in the year 2255.
pub const NUMBER_MAX: u64 = (1 << 53) - 1;

/// Milliseconds between a server's heartbeats; they must come every 30 s, and
/// a server's timer may be late.
pub const HEARTBEAT_MS: u32 = 25_000;

/// Milliseconds from the upgrade to the `auth` command.
pub const AUTH_WITHIN_MS: u32 = 5_000;

/// Milliseconds of silence after which a session is stale and closed with 4009.
pub const STALE_AFTER_MS: u32 = 300_000;

/// Milliseconds before the end of a token at which `reauth_required` is sent.
pub const REAUTH_BEFORE_MS: u32 = 60_000;

const _: () = {
    assert!(TEXT_BYTES_MAX <= INFLATED_BYTES_MAX);
    assert!(SYNC_CURSORS_MAX * 60 + 1024 <= FRAME_BYTES_MAX);
    assert!(WATCH_MAX * 19 + 1024 <= FRAME_BYTES_MAX);
    assert!(MEMBER_CHANGES_MAX * 80 + 1024 <= FRAME_BYTES_MAX);
    assert!(TOKEN_BYTES_MAX < FRAME_BYTES_MAX);
    assert!(PAGE_DEFAULT <= PAGE_MAX);
    assert!(HEARTBEAT_MS < STALE_AFTER_MS);
};
