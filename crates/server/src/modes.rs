//! Which features are less than usual now: because a part is impaired, or because there is more to do than
//! can be done. Clients are told, and the least important work is left out first.
//!
//! Overload shows in two figures: how long a gateway worker takes to come to what it is told, and how long
//! most sends wait for their acknowledgement. As they grow, typing is left out, then presence, receipts and
//! whole pages of history; at last new sends are taken only as fast as they are acknowledged. What is
//! acknowledged is never touched.

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
    (Feature::Typing, Duration::from_millis(1_000)),
    (Feature::Presence, Duration::from_millis(1_500)),
    (Feature::Receipts, Duration::from_millis(2_000)),
    (Feature::History, Duration::from_millis(2_500)),
    (Feature::Delivery, Duration::from_millis(4_000)),
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
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = stop.changed() => return,
        }
        let turn = watched.gateways.probe();
        let acked = acks.since_last(&watched.metrics);
        let health = &watched.health;
        let impaired: Vec<Vec<Feature>> = health.parts.iter().map(|part| part.impairs()).collect();
        for (feature, state) in deciding.look(impaired.concat(), turn.max(acked.most_took)) {
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
        let limit = deciding.is_overloaded().then(|| sends_taken(&acked));
        watched.gateways.limit_sends(limit);
        look_again(health, &impaired).await;
    }
}

/// Whoever asks for readiness, as a balancer does all the time, asks the parts.
const ASKED_WITHIN: Micros = 2_000_000;

/// Sends taken in each look however overloaded: else none would be acknowledged, and none taken for ever.
const SENDS_MIN: u32 = 16;

/// How long most sends shall wait for their acknowledgement in overload: what waits makes large batches, and
/// is worked off within seconds when less is sent.
const WAIT_WANTED: Duration = Duration::from_secs(2);

/// How many sends to take until the next look: about as many as are acknowledged; fewer as long as more wait
/// than shall, down to half, and a little more when it is less, else it would never grow again.
fn sends_taken(acked: &Acked) -> u32 {
    let part = WAIT_WANTED.as_secs_f64() / acked.most_took.as_secs_f64().max(0.001);
    (f64::from(acked.count) * part.clamp(0.5, 1.125)) as u32 + SENDS_MIN
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
    is_overloaded: bool,
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
        let is_less = self.states[Feature::Delivery as usize] != FeatureState::Normal;
        let is_late = SHED_AT
            .iter()
            .any(|&(of, at)| of == Feature::Delivery && delay >= at);
        // It lasts until delivery is as usual; what only a part refused isn't held back afterwards.
        self.is_overloaded =
            is_less && !impaired.contains(&Feature::Delivery) && (is_late || self.is_overloaded);
        changes
    }

    /// Whether sends are to be limited: what a part doesn't take it refuses by itself.
    fn is_overloaded(&self) -> bool {
        self.is_overloaded
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
        assert!(deciding.is_overloaded());
        assert_eq!(deciding.states[Feature::Typing as usize], FeatureState::Off);
    }

    #[test]
    fn overload_ends_well_below_where_it_begins() {
        let mut deciding = Deciding::default();
        for _ in 0..LOOKS_WORSE {
            deciding.look(vec![], Duration::from_secs(5));
        }
        for _ in 0..=LOOKS_BETTER {
            deciding.look(vec![], Duration::from_millis(2_500));
        }
        assert!(deciding.is_overloaded(), "it has only helped");
        for _ in 0..LOOKS_BETTER {
            deciding.look(vec![], Duration::from_millis(1_900));
        }
        assert!(!deciding.is_overloaded());
    }

    #[test]
    fn fewer_sends_are_taken_while_many_wait_and_never_none() {
        let acked = |count, took_ms| Acked {
            count,
            most_took: Duration::from_millis(took_ms),
        };
        let taken = |count, took_ms| sends_taken(&acked(count, took_ms)) - SENDS_MIN;
        assert_eq!(taken(0, 0), 0);
        assert_eq!(taken(1_000, 100), 1_125);
        assert_eq!(taken(1_000, 2_000), 1_000);
        assert_eq!(taken(1_000, 2_500), 800);
        assert_eq!(taken(1_000, 10_000), 500);
    }

    #[test]
    fn a_part_that_takes_nothing_is_no_overload() {
        let mut deciding = Deciding::default();
        deciding.look(vec![Feature::Delivery], CALM);
        assert!(!deciding.is_overloaded());
        deciding.look(vec![], CALM);
        assert!(
            !deciding.is_overloaded(),
            "nor when it takes everything again"
        );
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
