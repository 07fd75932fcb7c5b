//! Dead letters in a topic: the common suite, what isn't one, a Kafka that is away.

use std::time::Duration;

use bytes::Bytes;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use tidings_core::conformance::dead_letters as suite;
use tidings_core::ids::{Partition, Position};
use tidings_core::ports::dead_letters::{DeadLetter, DeadLetterError, DeadLetters, Key};
use tidings_engines::kafka::{KafkaDeadLetters, KafkaLog, Settings};

use super::parts::{BROKER, Own, Proxy, run};
use super::stack;

fn letter(partition: u32, offset: u64, bytes: usize) -> DeadLetter {
    let key: Key = (Partition(partition), Position { epoch: 1, offset });
    let payload = Bytes::from(vec![b'x'; bytes]);
    DeadLetter::new(key, 1, None, "a reason".to_owned(), payload)
}

#[test]
fn dead_letters_keep_the_promises_of_the_port_and_over_a_reopening() {
    if !stack::runs("Kafka", BROKER) {
        return;
    }
    run(async {
        let own = Own::migrated("dead", 3).await;
        let log = own.open().await;
        let letters = KafkaDeadLetters::of(&log);
        let nothing = letters.list(None, 10).await.expect("a list");
        assert_eq!(nothing.headings, []);
        suite::all(&letters, 3, 1, 1).await;
        let before = letters.list(None, 100).await.expect("a list");
        drop(letters);
        drop(log);
        let log = own.open().await;
        let letters = KafkaDeadLetters::of(&log);
        assert_eq!(letters.list(None, 100).await, Ok(before.clone()));
        suite::all(&letters, 3, 2, 2).await;

        // What somebody else wrote there is left out, and hides nothing.
        let producer: ThreadedProducer<DefaultProducerContext> = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", BROKER)
            .create()
            .expect("a producer");
        let strange = BaseRecord::<(), _>::to(&own.settings.dead_letter_topic)
            .partition(0)
            .payload("no letter");
        producer.send(strange).map_err(|(e, _)| e).expect("sent");
        producer.flush(Duration::from_secs(10)).expect("taken");
        let last = letter(0, 9 << 20, 10);
        letters.put(last.clone()).await.expect("set aside");
        assert_eq!(letters.get(last.heading.key()).await, Ok(Some(last)));
    });
}

#[test]
fn a_dead_letter_that_can_not_be_taken_is_refused_in_time() {
    if !stack::runs("Kafka", BROKER) {
        return;
    }
    run(async {
        let own = Own::migrated("dead-away", 2).await;
        let proxy = Proxy::new();
        let settings = Settings {
            brokers: proxy.brokers.clone(),
            ..own.settings.clone()
        };
        let log = KafkaLog::open(settings).await.expect("the log opens");
        let letters = KafkaDeadLetters::of(&log);
        for never in [letter(2, 1, 10), letter(0, 1, 1_000_000)] {
            let refused = letters.put(never).await;
            assert!(
                matches!(refused, Err(DeadLetterError::Full(_))),
                "{refused:?}"
            );
        }
        letters.put(letter(0, 2, 10)).await.expect("set aside");
        proxy.cut();
        let refused = tokio::time::timeout(Duration::from_secs(5), letters.put(letter(0, 3, 10)));
        let refused = refused.await.expect("an answer in time");
        assert!(
            matches!(refused, Err(DeadLetterError::Unavailable(_))),
            "{refused:?}"
        );
        proxy.mend();
    });
}
