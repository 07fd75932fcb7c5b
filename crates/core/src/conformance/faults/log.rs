//! What may become of appends and commits that fail.

use super::{Scenario, Seen, Subject, Way, calm, how_much, when};
use crate::conformance::log::{append, conversation_in, read_on, record};
use crate::ids::{ConversationId, Partition, Position};
use crate::ports::BoxFuture;
use crate::ports::log::{Log, LogError};
use crate::record::Committed;

const P: Partition = Partition(0);

/// Records in the call whose answer is lost.
const CALL: usize = 3;

/// A log whose partition has an owner.
pub trait Owned: Subject<dyn Log> {
    /// Has the caller over the failing way own the partition.
    fn own(&self) -> BoxFuture<'_, ()>;

    /// Has the other one take it over, while the first doesn't know.
    fn replace(&self) -> BoxFuture<'_, ()>;
}

/// [`an_append_whose_answer_is_lost_is_there_or_not_and_once`].
pub const ANSWER_LOST: Scenario = Scenario {
    name: "an append whose answer is lost",
    allowed: &["nothing", "a part", "all"],
};

/// [`an_append_held_up_comes_late_or_never_and_not_behind_a_later_one`].
pub const HELD_UP: Scenario = Scenario {
    name: "an append that is held up",
    allowed: &["at once", "late", "never"],
};

/// [`a_replaced_owner_never_moves_the_position_back`].
pub const REPLACED: Scenario = Scenario {
    name: "a commit of a replaced owner",
    allowed: &["refused", "taken"],
};

struct Texts<'a> {
    subject: &'a dyn Subject<dyn Log>,
    conversation: ConversationId,
    from: Position,
}

impl<'a> Texts<'a> {
    async fn new(subject: &'a dyn Subject<dyn Log>, run: u64) -> Texts<'a> {
        let there = subject.there();
        there.committed(P).await.expect("the log answers");
        Texts {
            subject,
            conversation: conversation_in(there, P, run),
            from: there.end(P),
        }
    }

    /// One call with these records, over the failing way.
    async fn append(&self, texts: &[&str]) -> Result<(), LogError> {
        let record = |text: &&str| record(self.conversation, text, 0);
        append(self.subject.here(), texts.iter().map(record).collect()).await
    }

    /// The same until it is taken: text and a number, which a resend doesn't keep.
    async fn append_until_taken(&self, text: &str) -> String {
        let mut tries = 0;
        loop {
            let text = format!("{text}{tries:03}");
            if self.append(&[&text]).await.is_ok() {
                return text;
            }
            tries += 1;
            self.subject.pause().await;
        }
    }

    /// How many records of the lost call another reader sees now.
    async fn seen(&self) -> usize {
        let there = self.subject.there();
        there.committed(P).await.expect("the log answers");
        if there.end(P) <= self.from {
            return 0;
        }
        let found = there.read(P, self.from, usize::MAX).await;
        let found = found.expect("what is before the end can be read");
        count(&found.iter().map(text).collect::<Vec<_>>(), "b")
    }

    /// All records up to one, the same for both readers and at growing positions.
    async fn all_until(&self, last: &str) -> Vec<String> {
        let mut both = Vec::new();
        for log in [self.subject.there(), self.subject.here()] {
            let mut found: Vec<Committed> = Vec::new();
            while found.last().map(text).as_deref() != Some(last) {
                let from = found.last().map_or(self.from, |r| r.position.next());
                found.extend(read_on(log, P, from, 1).await);
            }
            assert!(
                found.is_sorted_by(|a, b| a.position < b.position),
                "positions only grow"
            );
            both.push(found);
        }
        let placed = |records: &[Committed]| -> Vec<(Position, String)> {
            records.iter().map(|r| (r.position, text(r))).collect()
        };
        assert_eq!(
            placed(&both[0]),
            placed(&both[1]),
            "one order for every reader"
        );
        both[0].iter().map(text).collect()
    }
}

fn text(record: &Committed) -> String {
    String::from_utf8_lossy(&record.payload).into_owned()
}

fn count(texts: &[String], first: &str) -> usize {
    texts.iter().filter(|text| text.starts_with(first)).count()
}

/// Of the call's records those from its beginning are there, each once, behind what was taken before
/// and before what its caller appended later.
fn is_prefix_in_between(texts: &[String], last: &str) -> usize {
    let found = count(texts, "b");
    let mut expected: Vec<String> = vec!["a".to_owned()];
    expected.extend((0..found).map(|n| format!("b{n}")));
    // Tries of the last one that failed may be there as well, or not.
    let (before, behind) = texts.split_at(expected.len().min(texts.len()));
    assert_eq!(before, expected, "{texts:?}");
    assert!(behind.iter().all(|text| text.starts_with('c')), "{texts:?}");
    assert!(behind.is_sorted_by(|a, b| a < b), "{texts:?}");
    assert_eq!(behind.last().map(String::as_str), Some(last), "{texts:?}");
    found
}

const LOST: [&str; CALL] = ["b0", "b1", "b2"];

/// Never twice, never a later record of the call without the earlier ones, and never reported as
/// refused when it is there.
pub async fn an_append_whose_answer_is_lost_is_there_or_not_and_once(
    subject: &dyn Subject<dyn Log>,
    run: u64,
) -> Seen {
    let texts = Texts::new(subject, run).await;
    texts.append(&["a"]).await.expect("the way is open");
    subject.set(Way::AnswersLost);
    let told = texts.append(&LOST).await.expect_err("no answer comes");
    subject.set(Way::Open);
    let last = texts.append_until_taken("c").await;
    calm(subject).await;
    let found = is_prefix_in_between(&texts.all_until(&last).await, &last);
    if !matches!(told, LogError::Unknown(_)) {
        assert_eq!(found, 0, "{told}");
    }
    how_much(found, CALL)
}

/// The caller is told that nobody knows, and then it is there after all; but not behind a later
/// append of the same caller that was taken.
pub async fn an_append_held_up_comes_late_or_never_and_not_behind_a_later_one(
    subject: &dyn Subject<dyn Log>,
    run: u64,
) -> Seen {
    let texts = Texts::new(subject, run).await;
    texts.append(&["a"]).await.expect("the way is open");
    subject.set(Way::Held);
    let told = texts.append(&LOST).await.expect_err("no answer comes");
    let at_once = texts.seen().await;
    subject.set(Way::Open);
    // Half of the runs look what comes; the others go on at once, and what was held may be overtaken.
    if run.is_multiple_of(2) {
        calm(subject).await;
    }
    let last = texts.append_until_taken("c").await;
    calm(subject).await;
    let found = is_prefix_in_between(&texts.all_until(&last).await, &last);
    if !matches!(told, LogError::Unknown(_)) {
        assert_eq!(found, 0, "{told}");
    }
    when(at_once > 0, found > 0)
}

/// Whoever takes over begins at a position that only grows, whatever the one before it still commits.
pub async fn a_replaced_owner_never_moves_the_position_back(subject: &dyn Owned, run: u64) -> Seen {
    let (here, there) = (subject.here(), subject.there());
    subject.own().await;
    there.committed(P).await.expect("the log answers");
    let from = there.end(P);
    let conversation = conversation_in(there, P, run);
    let records = (0..8).map(|n| record(conversation, &format!("{n}"), 0));
    append(here, records.collect()).await.expect("taken");
    let records = read_on(there, P, from, 8).await;
    read_on(here, P, from, 8).await;
    let at = |n: usize| records[n].position;
    here.commit(P, at(2)).await.expect("it is the owner");
    while there.committed(P).await != Ok(at(2)) {
        subject.pause().await;
    }
    subject.replace().await;
    there.commit(P, at(4)).await.expect("it is the owner");
    while there.committed(P).await != Ok(at(4)) {
        subject.pause().await;
    }
    // It doesn't hear of it, or hears that it is none any more.
    _ = here.commit(P, at(3)).await;
    for _ in 0..4 {
        subject.pause().await;
        assert_eq!(there.committed(P).await, Ok(at(4)), "a position went back");
    }
    _ = here.commit(P, at(6)).await;
    calm(subject).await;
    match there.committed(P).await {
        Ok(now) if now == at(4) => "refused",
        Ok(now) if now == at(6) => "taken",
        other => panic!("{other:?} was never committed"),
    }
}
