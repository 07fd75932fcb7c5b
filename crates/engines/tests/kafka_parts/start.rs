//! What is wrong at start, and what is said of it.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use tidings_core::conformance::log as suite;
use tidings_core::ids::Position;
use tidings_core::ports::log::{Log, LogError};
use tidings_engines::kafka::{KafkaLog, Settings, migrate};

use super::parts::{BROKER, Own, run};
use super::{P, stack};

async fn start_error(settings: Settings) -> (&'static str, String, bool) {
    let began = Instant::now();
    let error = KafkaLog::open(settings)
        .await
        .err()
        .expect("it must not open");
    assert!(began.elapsed() < Duration::from_secs(12));
    eprintln!("{error}");
    assert!(!error.reason.contains('\n'));
    (error.setting, error.reason, error.may_pass)
}

#[test]
fn each_thing_that_is_wrong_at_start_is_one_line_with_the_setting() {
    if !stack::runs("Kafka", BROKER) {
        return;
    }
    run(async {
        let own = Own::migrated("start", 2).await;
        let good = || own.settings.clone();
        assert_eq!(
            migrate(&good()).await.expect("it may be repeated").len(),
            3,
            "nothing is done twice"
        );

        let away = Settings {
            brokers: vec!["127.0.0.1:1".to_owned()],
            ..good()
        };
        let (setting, reason, may_pass) = start_error(away).await;
        assert!(setting == "kafka.brokers" && may_pass && reason.contains("127.0.0.1:1"));

        let missing = Settings {
            topic: "test-no-such-topic".to_owned(),
            ..good()
        };
        let (setting, reason, may_pass) = start_error(missing).await;
        assert!(setting == "kafka.topic" && !may_pass && reason.contains("tidings migrate"));

        let (setting, ..) = start_error(Settings {
            partitions: 3,
            ..good()
        })
        .await;
        assert_eq!(setting, "kafka.partitions");
        let (setting, ..) = start_error(Settings {
            replication: 5,
            ..good()
        })
        .await;
        assert_eq!(setting, "kafka.replication");
        let too_few = Own::new("toofew", 1);
        let error = migrate(&Settings {
            replication: 5,
            ..too_few.settings.clone()
        })
        .await
        .expect_err("three brokers hold no five replicas");
        assert_eq!(error.setting, "kafka.replication");
        let (setting, ..) = start_error(Settings {
            min_insync_replicas: 3,
            ..good()
        })
        .await;
        assert_eq!(setting, "kafka.min_insync_replicas");
        let (setting, ..) = start_error(Settings {
            message_bytes_max: 5_000_000,
            ..good()
        })
        .await;
        assert_eq!(setting, "kafka.message_bytes_max");
        let (setting, reason, _) = start_error(Settings {
            group: "test-nobody".to_owned(),
            ..good()
        })
        .await;
        assert!(setting == "kafka.group" && reason.contains("--to-earliest"));
        if !cfg!(feature = "kafka-tls") {
            let tls = Settings {
                security_protocol: "sasl_ssl".to_owned(),
                ..good()
            };
            assert_eq!(start_error(tls).await.0, "kafka.security_protocol");
        }
        let (setting, ..) = start_error(Settings {
            compression: "best".to_owned(),
            ..good()
        })
        .await;
        assert_eq!(setting, "kafka.compression");

        // A laptop's promise is allowed, by saying so.
        let laptop = Settings {
            replication: 1,
            min_insync_replicas: 1,
            ..good()
        };
        drop(KafkaLog::open(laptop).await.expect("a warning only"));

        // Settings that somebody changed at the topic; each alteration sets all others back to what is given here.
        let admin = own.admin();
        let options = AdminOptions::new();
        for (name, value) in [
            ("message.timestamp.type", "CreateTime"),
            ("unclean.leader.election.enable", "true"),
            ("retention.ms", "3600000"),
            ("cleanup.policy", "compact"),
            ("min.insync.replicas", "1"),
        ] {
            let mut change = AlterConfig::new(ResourceSpecifier::Topic(&own.settings.topic));
            for (other, right) in [
                ("message.timestamp.type", "LogAppendTime"),
                ("unclean.leader.election.enable", "false"),
                ("retention.ms", "-1"),
                ("cleanup.policy", "delete"),
                ("min.insync.replicas", "2"),
            ] {
                change = change.set(other, if other == name { value } else { right });
            }
            let changed = admin
                .alter_configs([&change], &options)
                .await
                .expect("an answer");
            assert!(changed[0].is_ok());
            let (mut setting, mut reason) = ("", String::new());
            // Brokers hear of it a moment later.
            for _ in 0..50 {
                if let Err(error) = KafkaLog::open(good()).await {
                    (setting, reason) = (error.setting, error.reason);
                    if reason.contains(name) {
                        break;
                    }
                }
            }
            eprintln!("{setting}: {reason}");
            assert!(
                setting.starts_with("kafka.") && reason.contains(name),
                "{name}: {reason}"
            );
        }
    });
}

#[test]
fn min_insync_above_the_replicas_is_seen_in_spite_of_kafka() {
    if !stack::runs("Kafka", BROKER) {
        return;
    }
    run(async {
        let own = Own::new("capped", 1);
        let topic = NewTopic::new(&own.settings.topic, 1, TopicReplication::Fixed(1))
            .set("min.insync.replicas", "2");
        own.admin()
            .create_topics([&topic], &AdminOptions::new())
            .await
            .expect("an answer");
        let (mut setting, mut tries) = ("", 0);
        while setting != "kafka.replication" && tries < 50 {
            (setting, ..) = start_error(own.settings.clone()).await;
            tries += 1;
        }
        assert_eq!(setting, "kafka.replication");
    });
}

#[test]
fn a_position_that_was_trimmed_is_gone_and_a_start_error() {
    if !stack::runs("Kafka", BROKER) {
        return;
    }
    run(async {
        let own = Own::migrated("trimmed", 1).await;
        let log = own.open().await;
        let conversation = suite::conversation_in(&log, P, 1);
        for i in 0..10 {
            suite::append(&log, vec![suite::record(conversation, &format!("{i}"), 0)])
                .await
                .expect("taken");
        }
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_offset(&own.settings.topic, 0, rdkafka::Offset::Offset(4))
            .expect("a position");
        own.admin()
            .delete_records(&list, &AdminOptions::new())
            .await
            .expect("an answer");
        let at = |offset| Position { epoch: 1, offset };
        let gone = log.read(P, at(0), 100).await;
        assert_eq!(
            gone,
            Err(LogError::Gone {
                asked: at(0),
                first: at(4),
                end: at(10)
            })
        );
        assert_eq!(suite::read_on(&log, P, at(4), 6).await.len(), 6);
        let (setting, reason, _) = start_error(own.settings.clone()).await;
        assert!(setting == "kafka.group" && reason.contains("trimmed"));
    });
}
