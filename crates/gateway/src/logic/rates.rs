//! Rates, each kept as one number: when the next unit would fit exactly (the generic cell rate
//! algorithm, equal to a token bucket).

use std::collections::HashMap;

use tidings_core::ids::{Micros, UserId};

use super::settings::{SECOND, Settings};

/// One rate's state.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Rate(Micros);

impl Rate {
    /// Takes `cost` (the time the units need at the rate) unless more than `burst` would be
    /// ahead; then says how long to wait.
    pub(super) fn take(&mut self, now: Micros, cost: Micros, burst: Micros) -> Result<(), Micros> {
        let at = self.0.max(now);
        let ahead = at - now + cost;
        if ahead > burst.max(cost) {
            return Err(ahead - burst);
        }
        self.0 = at + cost;
        Ok(())
    }

    pub(super) fn is_idle(&self, now: Micros) -> bool {
        self.0 <= now
    }
}

/// What a rate says of a send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SendRate {
    /// It fits.
    Fits,
    /// Not before so many milliseconds.
    Later(u32),
    /// Three times over: the connection is closed.
    Close,
}

#[derive(Clone, Copy, Default)]
struct UserRates {
    sends: Rate,
    tries: Rate,
    bytes: Rate,
}

/// The rates of the users that send now. Empty when nobody does.
#[derive(Default)]
pub(super) struct Rates {
    users: HashMap<UserId, UserRates>,
}

impl Rates {
    /// Counts a send of `bytes` (checklist row 26).
    pub(super) fn send(
        &mut self,
        settings: &Settings,
        user: UserId,
        bytes: usize,
        now: Micros,
    ) -> SendRate {
        if settings.sends_per_second == 0 && settings.send_bytes_per_minute == 0 {
            return SendRate::Fits;
        }
        let rates = self.users.entry(user).or_default();
        if settings.sends_per_second > 0 {
            let cost = SECOND / Micros::from(settings.sends_per_second);
            // Every try counts here, so a client that doesn't slow down is cut off.
            if rates.tries.take(now, (cost / 3).max(1), SECOND).is_err() {
                return SendRate::Close;
            }
            if let Err(wait) = rates.sends.take(now, cost, SECOND) {
                return SendRate::Later((wait / 1000 + 1) as u32);
            }
        }
        let minute = 60 * SECOND;
        if let Some(cost) = (bytes as u64 * minute).checked_div(settings.send_bytes_per_minute)
            && let Err(wait) = rates.bytes.take(now, cost, minute)
        {
            return SendRate::Later((wait / 1000 + 1) as u32);
        }
        SendRate::Fits
    }

    /// Forgets who is below all rates again.
    pub(super) fn tick(&mut self, now: Micros) {
        if self.users.is_empty() {
            return;
        }
        self.users
            .retain(|_, r| !(r.sends.is_idle(now) && r.tries.is_idle(now) && r.bytes.is_idle(now)));
        if self.users.capacity() > 4 * self.users.len() + 64 {
            self.users.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidings_core::ids::GatewayId;

    #[test]
    fn twenty_a_second_fit_and_three_times_as_many_tries_close() {
        let settings = Settings::new(GatewayId(1), 4);
        let mut rates = Rates::default();
        let at = 1_000 * SECOND;
        let verdicts: Vec<SendRate> = (0..70)
            .map(|_| rates.send(&settings, UserId(1), 10, at))
            .collect();
        assert!(verdicts[..20].iter().all(|&v| v == SendRate::Fits));
        assert!(
            verdicts[20..60]
                .iter()
                .all(|&v| matches!(v, SendRate::Later(ms) if (50..=51).contains(&ms)))
        );
        assert!(verdicts[60..].contains(&SendRate::Close));
        assert_eq!(
            rates.send(&settings, UserId(2), 10, at),
            SendRate::Fits,
            "another user"
        );
        assert_eq!(
            rates.send(&settings, UserId(1), 10, at + SECOND),
            SendRate::Fits
        );
        rates.tick(at + 10 * SECOND);
        assert!(rates.users.is_empty());
    }

    #[test]
    fn five_megabytes_a_minute_fit() {
        let settings = Settings {
            sends_per_second: 0,
            ..Settings::new(GatewayId(1), 4)
        };
        let mut rates = Rates::default();
        let at = 1_000 * SECOND;
        let sent = (0..1000)
            .take_while(|_| rates.send(&settings, UserId(1), 16 << 10, at) == SendRate::Fits)
            .count();
        assert_eq!(sent, 5_000_000 / (16 << 10));
    }
}
