//! How many wrong passwords an account and an address may try.
//!
//! An attempt counts as wrong from its beginning, so a thousand at the same time are bounded
//! like a thousand in turn; a right password takes its count back. Behind the bound each
//! further wrong one doubles the wait, and counts decay, so nobody is shut out for good. From an
//! address where the owner has signed in before, the account's count is kept apart: strangers
//! who guess elsewhere can't keep the owner out.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tidings_core::ids::Micros;

use super::bounded::Bounded;

/// Wrong attempts an account takes before it must wait (reliability.md, row 21).
const WRONG_PER_ACCOUNT: u32 = 10;
/// The same for an address; an IPv6 customer has a whole /64.
const WRONG_PER_ADDRESS: u32 = 50;
/// The first wait; doubles with each further wrong attempt.
const WAIT_FIRST: Duration = Duration::from_secs(30);
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(15 * 60);
/// One wrong attempt is forgotten in this time.
const DECAY: Duration = Duration::from_secs(60);
/// Accounts, addresses and trusted pairs remembered: about 10 MB when full.
const REMEMBERED_MAX: usize = 100_000;

/// Wrong attempts of one account or address.
#[derive(Clone, Copy, Default)]
struct Count {
    wrong: u32,
    since: Micros,
    until: Micros,
}

impl Count {
    fn decay(&mut self, now: Micros) {
        let forgotten = now.saturating_sub(self.since) / micros(DECAY);
        self.wrong = self
            .wrong
            .saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX));
        self.since += forgotten * micros(DECAY);
        if self.wrong == 0 {
            self.since = now;
        }
    }

    fn add(&mut self, now: Micros, max: u32) {
        self.wrong += 1;
        if self.wrong >= max {
            let doublings = (self.wrong - max).min(16);
            let wait = micros(WAIT_FIRST)
                .saturating_mul(1 << doublings)
                .min(micros(WAIT_MAX));
            self.until = now.saturating_add(wait);
        }
    }
}

struct Tables {
    counts: Bounded<u64, Count>,
    trusted: Bounded<u64, ()>,
}

/// The table of wrong attempts.
pub(super) struct Throttle {
    hasher: RandomState,
    tables: Mutex<Tables>,
}

/// An attempt under way, counted as wrong until [`Throttle::right`] takes it back.
pub(super) struct Attempt {
    account: u64,
    address: u64,
    pair: u64,
}

impl Throttle {
    pub(super) fn new() -> Throttle {
        let tables = Tables {
            counts: Bounded::new(REMEMBERED_MAX),
            trusted: Bounded::new(REMEMBERED_MAX),
        };
        Throttle {
            hasher: RandomState::new(),
            tables: Mutex::new(tables),
        }
    }

    /// Begins an attempt at an account (its login key, whether it exists or not), or says how long to wait.
    pub(super) fn begin(
        &self,
        login_key: &str,
        address: IpAddr,
        now: Micros,
    ) -> Result<Attempt, Duration> {
        let network = network(address);
        let pair = self.hasher.hash_one(("pair", login_key, network));
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let account = match tables.trusted.get(&pair) {
            Some(()) => pair,
            None => self.hasher.hash_one(("account", login_key)),
        };
        let attempt = Attempt {
            account,
            address: self.hasher.hash_one(("address", network)),
            pair,
        };
        let bounds = [
            (attempt.account, WRONG_PER_ACCOUNT),
            (attempt.address, WRONG_PER_ADDRESS),
        ];
        let mut wait = 0;
        for (key, _) in bounds {
            if let Some(count) = tables.counts.get(&key) {
                wait = wait.max(count.until.saturating_sub(now));
            }
        }
        if wait > 0 {
            return Err(Duration::from_micros(wait));
        }
        for (key, max) in bounds {
            let mut count = tables.counts.get(&key).copied().unwrap_or(Count {
                since: now,
                ..Count::default()
            });
            count.decay(now);
            count.add(now, max);
            tables.counts.insert(key, count);
        }
        Ok(attempt)
    }

    /// The password was right: the account's count is cleared, the address's taken back by one.
    pub(super) fn right(&self, attempt: Attempt) {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.counts.remove(&attempt.account);
        if let Some(count) = tables.counts.get(&attempt.address) {
            count.wrong = count.wrong.saturating_sub(1);
            if count.wrong < WRONG_PER_ADDRESS {
                count.until = 0;
            }
        }
        tables.trusted.insert(attempt.pair, ());
    }

    /// The password was never looked at (too busy, say): the attempt counts for nothing.
    pub(super) fn undecided(&self, attempt: Attempt) {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, max) in [
            (attempt.account, WRONG_PER_ACCOUNT),
            (attempt.address, WRONG_PER_ADDRESS),
        ] {
            if let Some(count) = tables.counts.get(&key) {
                count.wrong = count.wrong.saturating_sub(1);
                if count.wrong < max {
                    count.until = 0;
                }
            }
        }
    }
}

/// What one customer has: an IPv4 address or an IPv6 /64.
fn network(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits() >> 64 << 64,
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, n])
    }

    #[test]
    fn ten_wrong_passwords_of_an_account_then_a_growing_wait() {
        let throttle = Throttle::new();
        let mut now = 1_000 * SECOND;
        for i in 0..10 {
            assert!(
                throttle.begin("ann", ip(i), now).is_ok(),
                "wrong attempt {i}"
            );
        }
        assert_eq!(
            throttle.begin("ann", ip(99), now).err(),
            Some(Duration::from_secs(30))
        );
        assert!(
            throttle.begin("bob", ip(99), now).is_ok(),
            "another account is free"
        );
        now += 30 * SECOND;
        assert!(
            throttle.begin("ann", ip(99), now).is_ok(),
            "one more after the wait"
        );
        assert_eq!(
            throttle.begin("ann", ip(99), now).err(),
            Some(Duration::from_secs(60)),
            "then the wait doubles"
        );
        now += 3_600 * SECOND;
        for i in 0..10 {
            assert!(
                throttle.begin("ann", ip(i), now).is_ok(),
                "forgotten after an hour: {i}"
            );
        }
    }

    #[test]
    fn fifty_wrong_passwords_of_an_address_whatever_the_account() {
        let throttle = Throttle::new();
        for i in 0..50 {
            assert!(
                throttle.begin(&format!("user {i}"), ip(1), SECOND).is_ok(),
                "wrong attempt {i}"
            );
        }
        assert!(throttle.begin("user 51", ip(1), SECOND).is_err());
        assert!(throttle.begin("user 51", ip(2), SECOND).is_ok());

        let of_one_network =
            |i: u64| IpAddr::from((0x2001_0db8_u128 << 96 | u128::from(i)).to_be_bytes());
        let throttle = Throttle::new();
        for i in 0..50 {
            assert!(
                throttle
                    .begin(&format!("user {i}"), of_one_network(i), SECOND)
                    .is_ok()
            );
        }
        assert!(
            throttle
                .begin("user 51", of_one_network(51), SECOND)
                .is_err(),
            "a /64 is one customer"
        );
    }

    #[test]
    fn right_passwords_cost_nothing_and_keep_the_owner_in() {
        let throttle = Throttle::new();
        for _ in 0..200 {
            let attempt = throttle
                .begin("ann", ip(1), SECOND)
                .unwrap_or_else(|_| panic!("right ones never wait"));
            throttle.right(attempt);
        }
        for i in 0..10 {
            assert!(throttle.begin("ann", ip(100 + i), SECOND).is_ok());
        }
        assert!(
            throttle.begin("ann", ip(110), SECOND).is_err(),
            "strangers must wait"
        );
        assert!(
            throttle.begin("ann", ip(1), SECOND).is_ok(),
            "the owner at home doesn't"
        );
    }

    #[test]
    fn attempts_at_the_same_time_are_all_counted() {
        let throttle = Throttle::new();
        let begun: Vec<_> = (0..100)
            .filter_map(|_| throttle.begin("ann", ip(1), SECOND).ok())
            .collect();
        assert_eq!(begun.len(), 10);
        for attempt in begun {
            throttle.undecided(attempt);
        }
        assert!(
            throttle.begin("ann", ip(1), SECOND).is_ok(),
            "undecided ones count for nothing"
        );
    }
}
