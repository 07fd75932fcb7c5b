//! Dead letters on their way to where they are kept, and why no partition waits for them.
//!
//! A letter is tried a bounded number of times within a bounded time. Meanwhile records behind it are routed
//! as ever; only the committed position stays before it, so that after a crash the next router meets the
//! record again. When the tries are used up it is logged with its position and reason, counted, and the position
//! goes on: from then on the record is in the log alone, for as long as that keeps it (docs/dead-letters.md).

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidings_core::ids::Position;
use tidings_core::ports::BoxFuture;
use tidings_core::ports::dead_letters::{DeadLetter, DeadLetterError, DeadLetters, PUT_DEADLINE};
use tokio::time::Instant;

/// How often a letter is tried. With the pauses and the deadline of each this is about what
/// [`WITHIN`] leaves room for.
const TRIES_MAX: u32 = 8;

/// How long after it was met a letter may hold back the committed position.
const WITHIN: Duration = Duration::from_secs(30);

/// The first pause between two tries; each further one may be twice as long, up to the last.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Letters of one partition that may wait, and their bytes. Beyond it they count as not set aside.
const WAITING_MAX: usize = 1000;
const WAITING_BYTES_MAX: usize = 16 << 20;

/// Letters of one partition that are tried at once.
const AT_ONCE: usize = 4;

/// Where letters go, and how many did.
pub struct Aside {
    letters: Arc<dyn DeadLetters>,
    random: fn() -> u64,
    /// Letters that were set aside; one met again after a crash counts again.
    pub set_aside: AtomicU64,
    /// Letters that could not be.
    pub failed: AtomicU64,
}

impl Aside {
    /// Letters go there; `random` spreads the tries of many servers.
    pub fn new(letters: Arc<dyn DeadLetters>, random: fn() -> u64) -> Aside {
        Aside {
            letters,
            random,
            set_aside: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    fn given_up(&self, letter: &DeadLetter, error: &dyn std::fmt::Display) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let heading = &letter.heading;
        tracing::error!(
            partition = heading.partition.0,
            epoch = heading.position.epoch,
            offset = heading.position.offset,
            appended = heading.appended,
            conversation = heading.conversation.map(tracing::field::display),
            bytes = heading.bytes,
            reason = heading.reason,
            %error,
            "a dead letter could not be set aside; its record is in the log only, until that is trimmed"
        );
    }

    /// Tries until it is set aside or given up.
    async fn set_aside(self: Arc<Self>, letter: DeadLetter, until: Instant) -> Position {
        let position = letter.heading.position;
        let mut tries = 0;
        let error = loop {
            tries += 1;
            let within = until
                .saturating_duration_since(Instant::now())
                .min(PUT_DEADLINE);
            let put = tokio::time::timeout(within, self.letters.put(letter.clone()));
            let error = match put.await {
                Ok(Ok(())) => {
                    self.set_aside.fetch_add(1, Ordering::Relaxed);
                    return position;
                }
                // No try of ours makes room.
                Ok(Err(error @ (DeadLetterError::Full(_) | DeadLetterError::Damaged(_)))) => {
                    break error.to_string();
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {within:?}"),
            };
            let pause = pause_before(tries, (self.random)());
            if tries == TRIES_MAX || Instant::now() + pause >= until {
                break error;
            }
            tracing::warn!(?position, tries, error, "a dead letter is tried again");
            tokio::time::sleep(pause).await;
        };
        self.given_up(&letter, &error);
        position
    }
}

/// Between a half and the whole of what doubles with each try.
fn pause_before(tries: u32, random: u64) -> Duration {
    let whole = PAUSE
        .saturating_mul(1 << (tries - 1).min(16))
        .min(PAUSE_MAX);
    let half = whole / 2;
    half + half.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
}

/// The letters of one router that are on their way.
pub struct Letters {
    aside: Arc<Aside>,
    queue: VecDeque<(DeadLetter, Instant)>,
    bytes: usize,
    tried: usize,
    /// Where those stand in the log that are neither set aside nor given up.
    open: BTreeSet<Position>,
}

impl Letters {
    /// None yet.
    pub fn new(aside: Arc<Aside>) -> Letters {
        Letters {
            aside,
            queue: VecDeque::new(),
            bytes: 0,
            tried: 0,
            open: BTreeSet::new(),
        }
    }

    /// Takes one, or gives it up at once when too many wait: they can't hold up the partition.
    pub fn take(&mut self, letter: DeadLetter) {
        let bytes = self.bytes + letter.payload.len();
        if self.queue.len() >= WAITING_MAX || bytes > WAITING_BYTES_MAX {
            return self.aside.given_up(&letter, &"too many wait");
        }
        self.bytes = bytes;
        self.open.insert(letter.heading.position);
        self.queue.push_back((letter, Instant::now() + WITHIN));
    }

    /// A call to make now, if there is one; its answer goes to [`Letters::done`].
    pub fn start(&mut self) -> Option<BoxFuture<'static, Position>> {
        if self.tried >= AT_ONCE {
            return None;
        }
        let (letter, until) = self.queue.pop_front()?;
        self.bytes -= letter.payload.len();
        self.tried += 1;
        Some(Box::pin(self.aside.clone().set_aside(letter, until)))
    }

    /// The letter of this position is set aside or given up.
    pub fn done(&mut self, position: Position) {
        self.tried = self.tried.saturating_sub(1);
        self.open.remove(&position);
    }

    /// How far may be committed of what is settled: not past a letter that is on its way.
    pub fn committable(&self, settled: Position) -> Position {
        self.open
            .first()
            .map_or(settled, |first| settled.min(*first))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use tidings_core::ids::Partition;
    use tidings_core::ports::dead_letters::{Key, Page};

    use super::*;

    /// Fails so many times, then takes letters.
    #[derive(Default)]
    struct Flaky {
        failures: Mutex<Vec<DeadLetterError>>,
        taken: Mutex<Vec<DeadLetter>>,
    }

    impl DeadLetters for Flaky {
        fn put(&self, letter: DeadLetter) -> BoxFuture<'_, Result<(), DeadLetterError>> {
            let failure = self.failures.lock().expect("no panic").pop();
            Box::pin(std::future::ready(match failure {
                Some(error) => Err(error),
                None => {
                    self.taken.lock().expect("no panic").push(letter);
                    Ok(())
                }
            }))
        }

        fn list(&self, _: Option<Key>, _: usize) -> BoxFuture<'_, Result<Page, DeadLetterError>> {
            unreachable!("nobody looks")
        }

        fn get(&self, _: Key) -> BoxFuture<'_, Result<Option<DeadLetter>, DeadLetterError>> {
            unreachable!("nobody looks")
        }
    }

    fn at(offset: u64) -> Position {
        Position { epoch: 1, offset }
    }

    fn letter(offset: u64, bytes: usize) -> DeadLetter {
        let key = (Partition(0), at(offset));
        DeadLetter::new(key, 1, None, "why".to_owned(), Bytes::from(vec![0; bytes]))
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime")
            .block_on(test)
    }

    fn flaky(failures: Vec<DeadLetterError>) -> (Arc<Flaky>, Arc<Aside>) {
        let flaky = Arc::new(Flaky {
            failures: failures.into(),
            ..Flaky::default()
        });
        let aside = Arc::new(Aside::new(flaky.clone(), || 0));
        (flaky, aside)
    }

    fn counted(aside: &Aside) -> (u64, u64) {
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (count(&aside.set_aside), count(&aside.failed))
    }

    fn away() -> DeadLetterError {
        DeadLetterError::Unavailable("away".into())
    }

    #[test]
    fn a_letter_is_tried_again_and_holds_back_the_position_until_then() {
        run(async {
            let (flaky, aside) = flaky(vec![away(); 2]);
            let mut letters = Letters::new(aside.clone());
            letters.take(letter(5, 10));
            letters.take(letter(7, 10));
            assert_eq!(letters.committable(at(4)), at(4));
            assert_eq!(letters.committable(at(9)), at(5));
            let first = letters.start().expect("a call").await;
            letters.done(first);
            assert_eq!(letters.committable(at(9)), at(7));
            let second = letters.start().expect("a call").await;
            letters.done(second);
            assert_eq!(letters.committable(at(9)), at(9));
            assert!(letters.start().is_none());
            assert_eq!(flaky.taken.lock().expect("no panic").len(), 2);
            assert_eq!(counted(&aside), (2, 0));
        });
    }

    #[test]
    fn a_letter_is_given_up_when_its_tries_or_its_time_are_used_up_or_no_try_helps() {
        run(async {
            let full = DeadLetterError::Full("full".into());
            let (taken, aside) = flaky(vec![full]);
            let mut letters = Letters::new(aside.clone());
            letters.take(letter(1, 10));
            let position = letters.start().expect("a call").await;
            assert_eq!((position, counted(&aside)), (at(1), (0, 1)));
            // No time is left: one try, and no pause.
            taken.failures.lock().expect("no panic").push(away());
            let late = aside.clone().set_aside(letter(2, 10), Instant::now());
            assert_eq!(late.await, at(2));
            assert_eq!(counted(&aside), (0, 2));
        });
        let pauses = (1..TRIES_MAX).map(|tries| pause_before(tries, u64::MAX));
        assert!(pauses.sum::<Duration>() < WITHIN);
        assert_eq!(pause_before(1, 0), PAUSE / 2);
        assert!(pause_before(60, u64::MAX) <= PAUSE_MAX);
    }

    #[test]
    fn too_many_letters_are_given_up_and_few_are_tried_at_once() {
        let (_, aside) = flaky(vec![]);
        run(async {
            let mut letters = Letters::new(aside.clone());
            for offset in 0..WAITING_MAX as u64 + 3 {
                letters.take(letter(offset, 10));
            }
            assert_eq!(counted(&aside), (0, 3));
            let calls: Vec<_> = std::iter::from_fn(|| letters.start()).collect();
            assert_eq!(calls.len(), AT_ONCE);
            let mut large = Letters::new(aside.clone());
            large.take(letter(1, WAITING_BYTES_MAX));
            large.take(letter(2, 1));
            assert_eq!(counted(&aside), (0, 4));
        });
    }
}
