//! What every [`DeadLetters`] promises, checked over the trait.
//!
//! [`all`] runs everything on letters of its own, told apart by `run`, which must grow from run to run; nobody
//! else may set letters aside meanwhile. A broken promise is a panic. The caller puts a deadline around it.

use bytes::Bytes;

use crate::ids::{ConversationId, Partition, Position};
use crate::ports::dead_letters::{DeadLetter, DeadLetters, Heading, Key, PAGE_MAX};

/// Runs every check of this module on the partitions `0..partitions` of the log `epoch`.
pub async fn all(letters: &dyn DeadLetters, partitions: u32, epoch: u32, run: u64) {
    let at = |partition: u32, n: u64| {
        let offset = (run << 20) + n;
        (Partition(partition), Position { epoch, offset })
    };
    a_letter_is_shown_as_it_was_put(letters, |n| at(0, n)).await;
    the_first_of_a_key_stays(letters, at(0, 100)).await;
    a_key_without_a_letter_is_nothing(letters, at(0, 200)).await;
    lists_are_pages_in_order(letters, partitions, |partition, n| at(partition, 300 + n)).await;
}

fn letter(key: Key, text: &str) -> DeadLetter {
    let payload = Bytes::copy_from_slice(text.as_bytes());
    let conversation = Some(ConversationId(7));
    DeadLetter::new(
        key,
        1_000,
        conversation,
        format!("because of {text}"),
        payload,
    )
}

/// The position before a key's, so that a list begins with it.
fn before((partition, position): Key) -> Option<Key> {
    let offset = position.offset - 1;
    Some((partition, Position { offset, ..position }))
}

/// Every field comes back, whatever the bytes are.
pub async fn a_letter_is_shown_as_it_was_put(letters: &dyn DeadLetters, at: impl Fn(u64) -> Key) {
    let all_bytes: Vec<u8> = (0..=255).collect();
    let odd = [
        DeadLetter::new(at(1), 0, None, String::new(), Bytes::new()),
        DeadLetter::new(
            at(2),
            u64::MAX,
            Some(ConversationId(u64::MAX)),
            "ein Grund: \u{1f480}\n\0".to_owned(),
            all_bytes.into(),
        ),
        DeadLetter::new(at(3), 5, None, "x".repeat(2_000), vec![0; 300_000].into()),
    ];
    for letter in &odd {
        letters.put(letter.clone()).await.expect("it is set aside");
        let found = letters.get(letter.heading.key()).await;
        assert_eq!(found, Ok(Some(letter.clone())));
    }
    let page = letters.list(before(at(1)), 3).await.expect("a list");
    let want: Vec<Heading> = odd.into_iter().map(|letter| letter.heading).collect();
    assert_eq!(page.headings, want);
}

/// A record that is set aside again is the same letter.
pub async fn the_first_of_a_key_stays(letters: &dyn DeadLetters, key: Key) {
    let first = letter(key, "the first");
    for again in [first.clone(), first.clone(), letter(key, "another version")] {
        letters.put(again).await.expect("it is set aside");
    }
    let (partition, position) = key;
    let next = letter((partition, position.next()), "the next");
    letters.put(next.clone()).await.expect("it is set aside");
    assert_eq!(letters.get(key).await, Ok(Some(first.clone())));
    let page = letters.list(before(key), 2).await.expect("a list");
    assert_eq!(page.headings, [first.heading, next.heading]);
}

/// Nothing is no error.
pub async fn a_key_without_a_letter_is_nothing(letters: &dyn DeadLetters, key: Key) {
    assert_eq!(letters.get(key).await, Ok(None));
}

/// By partition and position, however they were put; each page goes on behind the one before.
pub async fn lists_are_pages_in_order(
    letters: &dyn DeadLetters,
    partitions: u32,
    at: impl Fn(u32, u64) -> Key,
) {
    const EACH: u64 = 7;
    // Backwards, with one twice: a takeover applies again what another router was just setting aside.
    for n in (1..=EACH).rev().chain([3]) {
        for partition in 0..partitions {
            let letter = letter(at(partition, n), &format!("{partition} {n}"));
            letters.put(letter).await.expect("it is set aside");
        }
    }
    for limit in [1, 3, 100, PAGE_MAX + 1] {
        let mut found = Vec::new();
        let mut after = before(at(0, 1));
        loop {
            let page = letters.list(after, limit).await.expect("a list");
            assert!(page.headings.len() <= limit.min(PAGE_MAX));
            let Some(last) = page.headings.last() else {
                assert!(!page.more, "an empty page with more behind it");
                break;
            };
            after = Some(last.key());
            found.extend(page.headings.iter().map(Heading::key));
            if !page.more {
                break;
            }
        }
        assert!(found.is_sorted(), "{found:?}");
        // Other runs may have left letters in partitions behind the first one.
        let own = |key: &Key| (1..=EACH).any(|n| *key == at(key.0.0, n));
        found.retain(own);
        let keys = |partition| (1..=EACH).map(move |n| (partition, n));
        let want: Vec<Key> = (0..partitions)
            .flat_map(keys)
            .map(|(partition, n)| at(partition, n))
            .collect();
        assert_eq!(found, want, "by {limit}");
    }
}
