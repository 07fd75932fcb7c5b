//! How often a user may do what invites abuse.

use std::num::NonZeroU32;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tidings_core::ids::UserId;

use super::error::Problem;
use crate::config::Limits;

/// Users that are remembered before those at rest are dropped.
const KEYS_MAX: usize = 100_000;

/// Quotas by user.
pub struct Quotas {
    lookups: DefaultKeyedRateLimiter<UserId>,
    joins: DefaultKeyedRateLimiter<UserId>,
    sends: Option<DefaultKeyedRateLimiter<UserId>>,
}

impl Quotas {
    /// Quotas as configured.
    pub fn new(limits: &Limits) -> Quotas {
        let hourly = |n: u32| {
            RateLimiter::keyed(Quota::per_hour(
                NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN),
            ))
        };
        Quotas {
            lookups: hourly(limits.lookups_per_hour),
            joins: hourly(limits.joins_per_hour),
            sends: NonZeroU32::new(limits.sends_per_second)
                .map(|n| RateLimiter::keyed(Quota::per_second(n))),
        }
    }

    /// A message; as on a session, 0 is no limit.
    pub fn send(&self, user: UserId) -> Result<(), Problem> {
        match &self.sends {
            Some(sends) => check(sends, user),
            None => Ok(()),
        }
    }

    /// A look-up of other users.
    pub fn look_up(&self, user: UserId) -> Result<(), Problem> {
        check(&self.lookups, user)
    }

    /// A change of members. Servers aren't limited.
    pub fn join(&self, user: UserId) -> Result<(), Problem> {
        if user.0 == 0 {
            Ok(())
        } else {
            check(&self.joins, user)
        }
    }
}

fn check(limiter: &DefaultKeyedRateLimiter<UserId>, user: UserId) -> Result<(), Problem> {
    if limiter.len() > KEYS_MAX {
        limiter.retain_recent();
    }
    limiter
        .check_key(&user)
        .map_err(|until| Problem::limited(until.wait_time_from(DefaultClock::default().now())))
}
