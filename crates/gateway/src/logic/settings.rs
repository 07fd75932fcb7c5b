//! What a worker's logic is told once.

use tidings_core::ids::{ConversationId, GatewayId, Micros, Partition};
use tidings_protocol::{Versions, limits};

/// One second in microseconds.
pub(super) const SECOND: Micros = 1_000_000;

/// From the time that there is for `auth`: how long its answer may take, the wait for a turn included.
pub(super) const SIGN_IN_MAX: Micros = 10 * SECOND;

/// Limits, times and the worker's place in the deployment.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This worker.
    pub gateway: GatewayId,
    /// The versions of the schema it speaks. Only tests of upgrades change them.
    pub versions: Versions,
    /// How many partitions the log has.
    pub partitions: u32,
    /// The log's epoch, told in `ready` and `sync_done`.
    pub epoch: u32,
    /// Where session ids and the numbers of requests to routers start: random, so that they are
    /// never used twice by two processes.
    pub session_base: u64,
    /// Key of the index's hash: random.
    pub hash_seed: u64,
    /// Bytes of a body, inflated.
    pub text_bytes_max: usize,
    /// Bytes of one WebSocket message from a client; kept by the worker, told in `hello`.
    pub frame_bytes_max: usize,
    /// Sends of one user a second; three times as many close the connection; 0: no limit.
    pub sends_per_second: u32,
    /// Bytes of bodies of one user a minute; 0: no limit.
    pub send_bytes_per_minute: u64,
    /// `history`, `watch`, `read` by message and `sync` commands of one session a second.
    pub asks_per_second: u32,
    /// Users watched by one session.
    pub watch_max: usize,
    /// Sessions that sign in at once; the others wait for their turn.
    pub sign_ins_at_once: usize,
    /// From opening to `auth`.
    pub auth_within: Micros,
    /// Between heartbeats; each session's is up to a fifth longer, by its id.
    pub heartbeat: Micros,
    /// Silence after which a session is stale.
    pub stale_after: Micros,
    /// Before the token's end, when `reauth_required` is sent.
    pub reauth_before: Micros,
    /// Pushed and not confirmed for so long: sent again.
    pub resend_after: Micros,
    /// How often an event is sent again before the session counts as dead.
    pub resends_max: u8,
    /// How long a lagging session may take to drain.
    pub lag_max: Micros,
    /// How long a router or the host may take to answer.
    pub answer_within: Micros,
    /// Silence of the routers' digests after which they are reminded of this worker.
    pub digest_within: Micros,
    /// Over how long the clients of a draining worker are told to come back.
    pub drain_spread: Micros,
}

impl Settings {
    /// The protocol's limits and the defaults of design.md.
    pub fn new(gateway: GatewayId, partitions: u32) -> Self {
        let ms = |ms: u32| Micros::from(ms) * 1000;
        Settings {
            gateway,
            versions: Versions::OURS,
            partitions,
            epoch: 1,
            session_base: 1,
            hash_seed: 0,
            text_bytes_max: limits::TEXT_BYTES_MAX,
            frame_bytes_max: limits::FRAME_BYTES_MAX,
            sends_per_second: limits::SENDS_PER_SECOND,
            send_bytes_per_minute: 5_000_000,
            asks_per_second: 20,
            watch_max: limits::WATCH_MAX,
            sign_ins_at_once: 32,
            auth_within: ms(limits::AUTH_WITHIN_MS),
            heartbeat: ms(limits::HEARTBEAT_MS),
            stale_after: ms(limits::STALE_AFTER_MS),
            reauth_before: ms(limits::REAUTH_BEFORE_MS),
            resend_after: 30 * SECOND,
            resends_max: 3,
            lag_max: 30 * SECOND,
            answer_within: 2 * SECOND,
            digest_within: 25 * SECOND,
            drain_spread: 30 * SECOND,
        }
    }

    /// From opening a connection until its session must be signed in, for what cuts off those that are not.
    pub(crate) fn signed_in_within(&self) -> Micros {
        self.auth_within + SIGN_IN_MAX
    }

    pub(super) fn partition_of(&self, conversation: ConversationId) -> Partition {
        Partition(conversation.slot() % self.partitions)
    }
}
