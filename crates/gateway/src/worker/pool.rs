//! Admission and health, shared by the workers of a process. Touched when connections come, prove
//! who they are, and go; never on a message's way.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tidings_core::ids::Micros;

use super::config::PoolLimits;
use crate::turns::Turns;

/// Refused connections that are kept however full it is.
const LINGERING_MIN: usize = 64;

/// The connections of all workers, counted.
#[derive(Debug)]
pub struct Pool {
    limits: PoolLimits,
    connections: AtomicUsize,
    unauthenticated: AtomicUsize,
    /// Bounded by `unauthenticated`; the map's hash is keyed, so addresses can't be made to collide.
    per_ip: Mutex<HashMap<IpAddr, u32>>,
    unhealthy: AtomicBool,
    /// Refused ones that are kept until their client has read why.
    lingering: AtomicUsize,
    started: Instant,
    /// Connections that have proven who they are, or are gone.
    let_go: AtomicUsize,
    turns: Mutex<Refused>,
}

/// Those for whom there was no room.
#[derive(Debug, Default)]
struct Refused {
    turns: Turns,
    /// When the rate was measured last, and what `let_go` was then.
    measured: Micros,
    let_go: usize,
}

/// The address that counts towards the limit per address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unproven {
    /// Counted in both limits for the unauthenticated.
    Counted(IpAddr),
    /// Counted in the limit of all: it comes through a proxy, which has yet to say from where.
    Proxied,
    /// A loopback peer that the configuration exempts.
    Exempt,
}

impl Pool {
    /// An empty pool.
    pub fn new(limits: PoolLimits) -> Self {
        Pool {
            limits,
            connections: AtomicUsize::new(0),
            unauthenticated: AtomicUsize::new(0),
            per_ip: Mutex::default(),
            unhealthy: AtomicBool::new(false),
            lingering: AtomicUsize::new(0),
            started: Instant::now(),
            let_go: AtomicUsize::new(0),
            turns: Mutex::default(),
        }
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Of these, the ones that haven't authenticated (exempt ones aside).
    pub fn unauthenticated(&self) -> usize {
        self.unauthenticated.load(Ordering::Relaxed)
    }

    /// Whether a worker saw more than 100 panics within a minute. Stays set: only a restart
    /// brings back a state that can be trusted.
    pub fn is_unhealthy(&self) -> bool {
        self.unhealthy.load(Ordering::Relaxed)
    }

    pub(super) fn set_unhealthy(&self) {
        self.unhealthy.store(true, Ordering::Relaxed);
    }

    /// Counts a new connection, or names the status it is refused with.
    pub(super) fn admit(&self, ip: IpAddr, is_proxy: bool) -> Result<Unproven, u16> {
        let ip = ip.to_canonical();
        if self.connections.fetch_add(1, Ordering::Relaxed) >= self.limits.connections_max {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(503);
        }
        if self.limits.exempt_loopback && ip.is_loopback() {
            return Ok(Unproven::Exempt);
        }
        if self.unauthenticated.fetch_add(1, Ordering::Relaxed) >= self.limits.unauthenticated_max {
            self.unauthenticated.fetch_sub(1, Ordering::Relaxed);
            self.leave();
            return Err(503);
        }
        if is_proxy {
            return Ok(Unproven::Proxied);
        }
        self.count(ip).inspect_err(|_| {
            self.unauthenticated.fetch_sub(1, Ordering::Relaxed);
            self.leave();
        })
    }

    /// Counts one that is in the limit of all for its address, too, or names the status it is
    /// refused with.
    pub(super) fn count(&self, ip: IpAddr) -> Result<Unproven, u16> {
        let key = network(ip.to_canonical());
        let mut per_ip = self.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        let count = per_ip.entry(key).or_default();
        if *count >= self.limits.unauthenticated_per_ip_max {
            return Err(429);
        }
        *count += 1;
        Ok(Unproven::Counted(key))
    }

    /// Whether a refused connection may be kept: as many as there is room for connections, and always a few.
    pub(super) fn linger(&self) -> bool {
        let room = self
            .limits
            .connections_max
            .saturating_sub(self.connections());
        let may = self.lingering.fetch_add(1, Ordering::Relaxed) < room.max(LINGERING_MIN);
        if !may {
            self.lingered();
        }
        may
    }

    /// One that was kept is gone.
    pub(super) fn lingered(&self) {
        self.lingering.fetch_sub(1, Ordering::Relaxed);
    }

    /// In how many seconds one that is refused may come back, by how fast others made room lately.
    pub(super) fn retry_after(&self) -> u64 {
        let now = self.started.elapsed().as_micros() as Micros;
        // Other keys each time: for whom there is no turn any more is spread.
        self.retry_after_at(now, RandomState::new().hash_one(now))
    }

    fn retry_after_at(&self, now: Micros, hash: u64) -> u64 {
        const SECOND: Micros = 1_000_000;
        let mut refused = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_sub(refused.measured);
        if passed >= SECOND {
            let all = self.let_go.load(Ordering::Relaxed);
            let let_go = (all - std::mem::replace(&mut refused.let_go, all)) as u64;
            refused.measured = now;
            match passed < 3 * SECOND {
                true => refused.turns.measured((let_go * SECOND / passed) as usize),
                false => refused.turns.rest(),
            }
        }
        let wait = refused.turns.of(self.limits.unauthenticated_max);
        refused.turns.give(now, wait, hash).div_ceil(SECOND)
    }

    /// A connection is no longer unauthenticated.
    pub(super) fn proven(&self, unproven: Unproven) {
        if unproven == Unproven::Exempt {
            return;
        }
        self.let_go.fetch_add(1, Ordering::Relaxed);
        self.unauthenticated.fetch_sub(1, Ordering::Relaxed);
        let Unproven::Counted(key) = unproven else {
            return;
        };
        let mut per_ip = self.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = per_ip.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                per_ip.remove(&key);
            }
        }
    }

    /// A connection is gone, or no longer a worker's.
    pub(super) fn leave(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One customer's IPv6 network is one address: within a /64 anybody has as many as he likes.
fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn pool_of_40(unauthenticated_per_ip_max: u32) -> Pool {
        Pool::new(PoolLimits {
            unauthenticated_per_ip_max,
            ..PoolLimits::of(40)
        })
    }

    #[test]
    fn each_limit_refuses_with_its_status_and_gives_back_what_it_counted() {
        let pool = pool_of_40(2);
        let admit = |address| pool.admit(ip(address), false);
        let first = admit("10.0.0.1").expect("first");
        admit("::ffff:10.0.0.1").expect("the same address, second");
        assert_eq!(admit("10.0.0.1"), Err(429));
        admit("2001:db8::1").expect("another");
        admit("2001:db8::ffff").expect("its neighbour");
        assert_eq!(admit("10.0.0.2"), Err(503), "4 of 40 is a tenth");
        assert_eq!((pool.connections(), pool.unauthenticated()), (4, 4));

        pool.proven(first);
        assert_eq!(admit("2001:db8::2"), Err(429));
        admit("10.0.0.1").expect("room again");
        assert_eq!((pool.connections(), pool.unauthenticated()), (5, 4));
    }

    #[test]
    fn the_refused_are_kept_as_long_as_there_is_room() {
        let pool = Pool::new(PoolLimits::of(100));
        let kept = |pool: &Pool| (0..200).take_while(|_| pool.linger()).count();
        assert_eq!(kept(&pool), 100);
        pool.lingered();
        assert_eq!(kept(&pool), 1);
        let full = Pool::new(PoolLimits {
            exempt_loopback: true,
            ..PoolLimits::of(10)
        });
        let admitted = (0..20).take_while(|_| full.admit(ip("127.0.0.1"), false).is_ok());
        assert_eq!((admitted.count(), kept(&full)), (10, LINGERING_MIN));
    }

    #[test]
    fn who_is_refused_is_given_a_turn_by_how_fast_others_make_room() {
        let pool = Pool::new(PoolLimits::of(10_000));
        let at = |now| pool.retry_after_at(now, 0);
        // A thousand are before it, five hundred a second is the guess.
        assert_eq!(at(10_000_000), 3);
        assert!((0..500).all(|_| at(10_500_000) <= 4));
        for _ in 0..2_000 {
            let unproven = pool.admit(ip("10.0.0.1"), true);
            pool.proven(unproven.expect("room"));
        }
        // Now it is known to be two thousand a second.
        assert_eq!(at(11_000_000), 3);
        assert!((0..2_000).all(|_| at(11_000_000) <= 4));
        assert_eq!(at(40_000_000), 3, "and forgotten");
    }

    #[test]
    fn who_comes_through_a_proxy_counts_for_the_address_it_names() {
        let pool = pool_of_40(1);
        let [first, second] = [(); 2].map(|()| pool.admit(ip("10.0.0.9"), true));
        assert_eq!(
            (first, second),
            (Ok(Unproven::Proxied), Ok(Unproven::Proxied))
        );
        let named = pool
            .count(ip("10.0.0.1"))
            .expect("the first of its address");
        assert_eq!(pool.count(ip("10.0.0.1")), Err(429));
        pool.proven(named);
        pool.proven(Unproven::Proxied);
        assert_eq!(pool.unauthenticated(), 0);
        assert!(pool.count(ip("10.0.0.1")).is_ok());
    }

    #[test]
    fn loopback_is_exempt_when_told_so_but_not_from_the_whole() {
        let limits = PoolLimits {
            exempt_loopback: true,
            ..PoolLimits::of(30)
        };
        let pool = Pool::new(limits);
        for _ in 0..30 {
            assert_eq!(pool.admit(ip("127.0.0.9"), false), Ok(Unproven::Exempt));
        }
        assert_eq!(pool.admit(ip("127.0.0.1"), false), Err(503));
    }
}
