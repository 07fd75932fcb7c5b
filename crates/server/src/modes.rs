//! Which features are less than usual now: because a part is impaired, or because there is more to do than
//! can be done. Clients are told, and the least important work is left out first.
//!
//! Overload shows in two figures: how long a gateway worker takes to come to what it is told, and how long
//! most sends wait for their acknowledgement. As they grow, typing is left out, then presence, receipts and
//! whole pages of history. How many sends may wait is limited always, by what is acknowledged in half a second
//! (Little's law): what comes above it is refused before it makes the others late. What is acknowledged is
//! never touched.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tidings_core::ids::Micros;
use tidings_gateway::host::Gateways;
use tidings_gateway::logic::{GatewayMetrics, LATENCY_BOUNDS};
use tidings_protocol::wire::{Feature, FeatureState, Mode};
use tokio::sync::watch;

use crate::admin::Health;
use crate::system;

/// How often it is looked.
const EVERY: Duration = Duration::from_millis(500);

/// Looks in a row that find overload before something is left out: a hiccup is none.
const LOOKS_WORSE: u8 = 2;

/// Looks in a row that find all well before a feature is whole again, so that it doesn't flap.
const LOOKS_BETTER: u8 = 4;

/// What is left out at which delay of most sends, or of a worker's turn, in the order of its worth.
const SHED_AT: [(Feature, Duration); 5] = [
    (Feature::Typing, Duration::from_millis(500)),
    (Feature::Presence, Duration::from_millis(625)),
    (Feature::Receipts, Duration::from_millis(750)),
    (Feature::History, Duration::from_millis(875)),
    (Feature::Delivery, WAIT_MAX),
];

/// Features, in the order of their numbers.
pub const FEATURES: [Feature; 5] = [
    Feature::Delivery,
    Feature::Presence,
    Feature::Typing,
    Feature::Receipts,
    Feature::History,
];

/// The features as they are, for the metrics.
#[derive(Default)]
pub struct Modes {
    states: [AtomicU8; FEATURES.len()],
    /// Times that a feature became less than usual.
    pub changes: AtomicU64,
}

impl Modes {
    /// 0: as usual, 1: reduced, 2: off.
    pub fn state(&self, feature: Feature) -> u8 {
        self.states[feature as usize].load(Ordering::Relaxed)
    }
}

/// What there is to look at.
pub struct Watched {
    /// The parts, and where the features' states are shown.
    pub health: Arc<Health>,
    /// The workers, who tell the clients.
    pub gateways: Arc<Gateways>,
    /// What they count.
    pub metrics: Vec<Arc<GatewayMetrics>>,
}

/// Looks until the server stops.
pub async fn run(watched: Watched, mut stop: watch::Receiver<bool>) {
    let mut deciding = Deciding::default();
    let mut acks = Acks::default();
    let mut waiting = WaitingMax::default();
    loop {
        watched.gateways.limit_sends(waiting.now());
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = stop.changed() => return,
        }
        let turn = watched.gateways.probe();
        let acked = acks.since_last(&watched.metrics);
        let was_full = watched.gateways.sends_refused() > 0;
        waiting.look(&acked, watched.gateways.sends_waiting(), was_full);
        // Whoever is refused would have waited as long at least.
        let refused = if was_full { WAIT_MAX } else { Duration::ZERO };
        let delay = turn.max(acked.most_took).max(refused);
        let health = &watched.health;
        let impaired: Vec<Vec<Feature>> = health.parts.iter().map(|part| part.impairs()).collect();
        for (feature, state) in deciding.look(impaired.concat(), delay) {
            health.modes.states[feature as usize].store(state as u8, Ordering::Relaxed);
            if state != FeatureState::Normal {
                health.modes.changes.fetch_add(1, Ordering::Relaxed);
            }
            tracing::warn!(?feature, ?state, "mode");
            watched.gateways.mode_changed(Mode {
                feature: feature.into(),
                state: state.into(),
                since: system::now(),
            });
        }
        look_again(health, &impaired).await;
    }
}

/// Whoever asks for readiness, as a balancer does all the time, asks the parts.
const ASKED_WITHIN: Micros = 2_000_000;

/// How long most sends may wait for their acknowledgement before fewer are let in: well below the time after which the
/// log's answer counts as missing (`kafka.refuse_after_ms`), or clients would send again what is on its way.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// How long they shall wait then.
const WAIT_WANTED: Duration = Duration::from_millis(500);

/// While most are acknowledged sooner than this there is no overload, however many come at once.
const QUICK: Duration = Duration::from_millis(250);

/// How many sends of this server may wait for their acknowledgement.
struct WaitingMax {
    most: u32,
    is_quick: bool,
}

impl Default for WaitingMax {
    /// Nobody knows yet: half a second of 2,000 a second, as soon as it isn't quick.
    fn default() -> WaitingMax {
        WaitingMax {
            most: 1_000,
            is_quick: true,
        }
    }
}

impl WaitingMax {
    /// However slow it is: some have to come through to tell how fast it is.
    const LEAST: u32 = 64;
    const MOST: u32 = 1 << 16;

    fn now(&self) -> u32 {
        if self.is_quick { Self::MOST } else { self.most }
    }

    /// As many as are acknowledged in the time they shall wait, once most wait for too long and more wait than that
    /// (else they were late for another reason); never less than that while they are in time, and a little more when
    /// there was no room.
    fn look(&mut self, acked: &Acked, waiting: u64, was_full: bool) {
        let of_a_second = f64::from(acked.count) / EVERY.as_secs_f64();
        let wanted = (of_a_second * WAIT_WANTED.as_secs_f64()) as u32;
        if acked.count > 0 || waiting == 0 {
            self.is_quick = acked.most_took < QUICK;
        }
        if acked.most_took <= WAIT_MAX {
            self.most = self.most.max(wanted);
            if was_full && acked.count > 0 {
                self.most += self.most / 4;
            }
        } else if waiting > wanted.into() {
            // Not at once: what is acknowledged now was let in when more could wait.
            self.most = wanted.clamp(self.most / 2, self.most);
        }
        self.most = self.most.clamp(Self::LEAST, Self::MOST);
    }
}

/// A breaker that isn't closed waits for a call to see whether its engine is back, and one before an engine that is
/// away opens by calls: nobody else may make one.
/// On a server that nobody asks how it is, all are asked: a connection that was cut shows only when it is used.
async fn look_again(health: &Health, impaired: &[Vec<Feature>]) {
    let is_unasked = health.asked.load(Ordering::Relaxed) + ASKED_WITHIN < system::now();
    let asked = health
        .parts
        .iter()
        .zip(impaired)
        .filter(|(part, impaired)| {
            let breakers = part.breakers();
            !breakers.is_empty()
                && (is_unasked
                    || !impaired.is_empty()
                    || breakers.iter().any(|breaker| breaker.state != 0))
        });
    let asked = asked.map(|(part, _)| tokio::time::timeout(EVERY, part.check()));
    futures_util::future::join_all(asked).await;
    if is_unasked {
        health.asked.store(system::now(), Ordering::Relaxed);
    }
}

/// What is acknowledged from one look to the next.
#[derive(Default)]
struct Acks {
    before: [u64; LATENCY_BOUNDS.len() + 1],
}

/// Of one look.
struct Acked {
    count: u32,
    /// Nine of ten took no longer, as far as the buckets tell.
    most_took: Duration,
}

impl Acks {
    fn since_last(&mut self, metrics: &[Arc<GatewayMetrics>]) -> Acked {
        let mut now = [0u64; LATENCY_BOUNDS.len() + 1];
        for gateway in metrics {
            for (sum, bucket) in now.iter_mut().zip(&gateway.latency.buckets) {
                *sum += bucket.load(Ordering::Relaxed);
            }
        }
        let news = now
            .iter()
            .zip(&self.before)
            .map(|(now, before)| now - before);
        let news: Vec<u64> = news.collect();
        self.before = now;
        let count: u64 = news.iter().sum();
        let mut left = count.div_ceil(10);
        // From the slowest on, until a tenth is behind: the lower bound of that bucket.
        let mut took = 0;
        for (at, &news) in news.iter().enumerate().rev() {
            if news >= left && count > 0 {
                took = at.checked_sub(1).map_or(0, |below| LATENCY_BOUNDS[below]);
                break;
            }
            left -= news;
        }
        Acked {
            count: u32::try_from(count).unwrap_or(u32::MAX),
            most_took: Duration::from_micros(took),
        }
    }
}

/// The decisions, without a clock.
#[derive(Default)]
struct Deciding {
    states: [FeatureState; FEATURES.len()],
    /// Looks in a row that say otherwise than the state.
    otherwise: [u8; FEATURES.len()],
}

impl Deciding {
    /// What changes, given which features are impaired by a part and how long work waits.
    fn look(&mut self, impaired: Vec<Feature>, delay: Duration) -> Vec<(Feature, FeatureState)> {
        let mut changes = Vec::new();
        for (feature, at) in SHED_AT {
            let is_impaired = impaired.contains(&feature);
            let (state, otherwise) = (
                &mut self.states[feature as usize],
                &mut self.otherwise[feature as usize],
            );
            // It is whole again at half of what takes it away: not as soon as leaving it out has helped.
            let at = match state {
                FeatureState::Normal => at,
                _ => at / 2,
            };
            let is_less = is_impaired || delay >= at;
            if is_less == (*state != FeatureState::Normal) {
                *otherwise = 0;
                continue;
            }
            *otherwise += 1;
            let looks = match (is_less, is_impaired) {
                (true, true) => 1,
                (true, false) => LOOKS_WORSE,
                (false, _) => LOOKS_BETTER,
            };
            if *otherwise >= looks {
                *otherwise = 0;
                *state = match (is_less, feature) {
                    (false, _) => FeatureState::Normal,
                    (true, Feature::Typing) => FeatureState::Off,
                    (true, _) => FeatureState::Reduced,
                };
                changes.push((feature, *state));
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Duration = Duration::ZERO;

    #[test]
    fn an_impaired_part_shows_at_once_and_ends_after_a_while() {
        let mut deciding = Deciding::default();
        let reduced = (Feature::Presence, FeatureState::Reduced);
        assert_eq!(deciding.look(vec![Feature::Presence], CALM), [reduced]);
        assert_eq!(deciding.look(vec![Feature::Presence], CALM), []);
        for _ in 1..LOOKS_BETTER {
            assert_eq!(deciding.look(vec![], CALM), []);
        }
        let normal = (Feature::Presence, FeatureState::Normal);
        assert_eq!(deciding.look(vec![], CALM), [normal]);
    }

    #[test]
    fn overload_leaves_out_the_least_important_first_and_a_hiccup_nothing() {
        let mut deciding = Deciding::default();
        assert_eq!(deciding.look(vec![], Duration::from_secs(9)), []);
        assert_eq!(deciding.look(vec![], CALM), []);
        let mut order = Vec::new();
        for delay_ms in (0..6_000).step_by(100) {
            let changes = deciding.look(vec![], Duration::from_millis(delay_ms));
            order.extend(changes.iter().map(|change| change.0));
        }
        assert_eq!(
            order,
            [
                Feature::Typing,
                Feature::Presence,
                Feature::Receipts,
                Feature::History,
                Feature::Delivery
            ]
        );
        assert_eq!(deciding.states[Feature::Typing as usize], FeatureState::Off);
    }

    #[test]
    fn overload_ends_well_below_where_it_begins() {
        let mut deciding = Deciding::default();
        let delivery = |deciding: &Deciding| deciding.states[Feature::Delivery as usize];
        for _ in 0..LOOKS_WORSE {
            deciding.look(vec![], WAIT_MAX);
        }
        for _ in 0..=LOOKS_BETTER {
            deciding.look(vec![], WAIT_MAX / 2);
        }
        assert_eq!(
            delivery(&deciding),
            FeatureState::Reduced,
            "it has only helped"
        );
        for _ in 0..LOOKS_BETTER {
            deciding.look(vec![], WAIT_MAX / 2 - Duration::from_millis(1));
        }
        assert_eq!(delivery(&deciding), FeatureState::Normal);
    }

    #[test]
    fn as_many_may_wait_as_are_acknowledged_in_half_a_second_once_they_are_late() {
        let acked = |count, took_ms| Acked {
            count,
            most_took: Duration::from_millis(took_ms),
        };
        let mut max = WaitingMax {
            most: 4_000,
            is_quick: true,
        };
        let mut look = |acked: Acked, waiting, was_full| {
            max.look(&acked, waiting, was_full);
            max.now()
        };
        let (quick, slow, late) = (249, 1_000, 1_001);
        assert_eq!(
            look(acked(1_000, late), 4_000, true),
            2_000,
            "by half at most"
        );
        assert_eq!(look(acked(1_000, late), 2_000, true), 1_000);
        assert_eq!(
            look(acked(400, late), 400, false),
            1_000,
            "not for having waited for too many"
        );
        assert_eq!(
            look(acked(5_000, late), 20_000, true),
            1_000,
            "never more for being late"
        );
        assert_eq!(look(acked(500, slow), 900, false), 1_000, "there was room");
        assert_eq!(look(acked(500, slow), 1_000, true), 1_250);
        assert_eq!(
            look(acked(0, 0), 1_250, true),
            1_250,
            "nothing was acknowledged"
        );
        assert_eq!(
            look(acked(1_500, slow), 1_250, false),
            1_500,
            "what is acknowledged in time"
        );
        assert_eq!(look(acked(9, quick), 1_500, false), WaitingMax::MOST);
        assert_eq!(
            look(acked(0, 0), 1_500, false),
            WaitingMax::MOST,
            "not known"
        );
        assert_eq!(look(acked(9, slow), 1_500, false), 1_500);
        assert_eq!(
            look(acked(0, 0), 0, false),
            WaitingMax::MOST,
            "nobody sends"
        );
        for _ in 0..100 {
            look(acked(1, 60_000), 1_000, true);
        }
        assert_eq!(look(acked(1, 60_000), 1_000, true), WaitingMax::LEAST);
        for _ in 0..100 {
            look(acked(1, slow), 1_000, true);
        }
        assert_eq!(look(acked(1, slow), 1_000, true), WaitingMax::MOST);
    }

    #[test]
    fn most_of_the_sends_of_one_look_count() {
        let all = [Arc::new(GatewayMetrics::default())];
        let metrics = &all[0];
        let mut acks = Acks::default();
        let first = acks.since_last(&all);
        assert_eq!((first.count, first.most_took), (0, Duration::ZERO));
        let slow = LATENCY_BOUNDS
            .iter()
            .position(|&b| b == 1_000_000)
            .expect("a bound")
            + 1;
        metrics.latency.buckets[0].store(90, Ordering::Relaxed);
        metrics.latency.buckets[slow].store(9, Ordering::Relaxed);
        let most = acks.since_last(&all);
        assert_eq!((most.count, most.most_took), (99, Duration::ZERO));
        metrics.latency.buckets[slow].store(29, Ordering::Relaxed);
        let slowed = acks.since_last(&all);
        assert_eq!(
            (slowed.count, slowed.most_took),
            (20, Duration::from_secs(1))
        );
    }
}
