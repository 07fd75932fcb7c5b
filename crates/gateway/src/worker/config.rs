//! What a worker is told once, when it starts.

use std::net::IpAddr;

use crate::ws::Limits;
use crate::ws::handshake::Policy;

/// Limits and times of one worker. Times are in milliseconds and are kept to the next tick: never
/// early, at most one tick late.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Which requests become sessions.
    pub policy: Policy,
    /// What a client may send in one frame and one message.
    pub limits: Limits,
    /// The grain of all timers.
    pub tick_ms: u32,
    /// From accept to the end of the request head, a TLS handshake included.
    pub handshake_ms: u32,
    /// From the upgrade to [`super::Io::authenticated`]; 0 counts every session as authenticated.
    pub auth_ms: u32,
    /// The longest time without a byte while a frame or message is incomplete.
    pub slow_frame_ms: u32,
    /// How long a closed session may take to read its close frame and hang up.
    pub linger_ms: u32,
    /// The most bytes that wait for one session's socket. A single larger frame is taken when
    /// nothing else waits.
    pub queue_bytes_max: u32,
    /// The most frames that wait for one session's socket.
    pub queue_frames_max: u32,
    /// After an overflow: how long until the socket has taken what was left.
    pub overflow_ms: u32,
    /// The longest time in which a blocked socket may take nothing.
    pub write_stall_ms: u32,
    /// Frames a session may send per second in the long run; 0 switches the limit off.
    pub frames_per_second: u32,
    /// Frames a session may send at once.
    pub frame_burst: u32,
    /// Bytes read from one session before the others have their turn.
    pub read_turn_bytes_max: usize,
    /// Connections accepted before the sessions have their turn.
    pub accepts_turn_max: usize,
    /// Whether unencrypted connections of other machines are taken: only behind a proxy that ends
    /// TLS (row 40).
    pub plain_from_outside: bool,
    /// Addresses of proxies: who connects through them is who they say in `X-Forwarded-For`.
    pub proxies: Vec<IpAddr>,
}

impl WorkerConfig {
    /// Whether it is a proxy's address.
    pub(super) fn is_proxy(&self, peer: IpAddr) -> bool {
        self.proxies.contains(&peer.to_canonical())
    }

    /// Whether a connection may be taken at all: encrypted, of this machine, or by configuration.
    pub(super) fn admits(&self, is_tls: bool, peer: IpAddr) -> bool {
        is_tls || self.plain_from_outside || peer.to_canonical().is_loopback()
    }
}

impl Default for WorkerConfig {
    /// The defaults of the security checklist, rows 4, 8, 10 and 14; queues as in goal G20 of the
    /// performance notes.
    fn default() -> Self {
        WorkerConfig {
            policy: Policy::default(),
            limits: Limits::default(),
            tick_ms: 1000,
            handshake_ms: 10_000,
            auth_ms: 5_000,
            slow_frame_ms: 30_000,
            linger_ms: 5_000,
            queue_bytes_max: 256 << 10,
            queue_frames_max: 1024,
            overflow_ms: 10_000,
            write_stall_ms: 30_000,
            frames_per_second: 100,
            frame_burst: 200,
            read_turn_bytes_max: 256 << 10,
            accepts_turn_max: 64,
            plain_from_outside: false,
            proxies: Vec::new(),
        }
    }
}

/// How many connections all workers of a process take together.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// Connections of any kind until they are closed or handed over to HTTP.
    pub connections_max: usize,
    /// Of these, the ones that haven't authenticated.
    pub unauthenticated_max: usize,
    /// Of these, the ones of one address (of one /64 network for IPv6).
    pub unauthenticated_per_ip_max: u32,
    /// Whether loopback peers are counted in the first limit only.
    pub exempt_loopback: bool,
}

impl PoolLimits {
    /// The defaults of the security checklist, row 4: a tenth of the pool, 20 an address.
    pub fn of(connections_max: usize) -> Self {
        PoolLimits {
            connections_max,
            unauthenticated_max: (connections_max / 10).max(1),
            unauthenticated_per_ip_max: 20,
            exempt_loopback: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unencrypted_connections_come_from_this_machine_only() {
        let closed = WorkerConfig::default();
        let open = WorkerConfig {
            plain_from_outside: true,
            ..WorkerConfig::default()
        };
        for (peer, plain) in [
            ("127.0.0.9", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.0.0.1", false),
            ("::ffff:10.0.0.1", false),
            ("2001:db8::1", false),
        ] {
            let peer = peer.parse().expect("an address");
            assert_eq!(closed.admits(false, peer), plain, "{peer}");
            assert!(closed.admits(true, peer) && open.admits(false, peer));
        }
    }
}
