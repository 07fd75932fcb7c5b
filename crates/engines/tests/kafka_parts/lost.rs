//! Appends and commits that fail: the scenarios that the simulation's model shows as well.

use std::sync::Mutex;
use std::time::Duration;

use tidings_core::conformance::faults::log::{self as scenarios, Owned};
use tidings_core::conformance::faults::{Subject, Way};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::log::Log;
use tidings_engines::kafka::{KafkaLog, KafkaOwnership, Settings};

use super::parts::{BROKER, Own, Proxy, run};
use super::{settle, stack};

/// A log behind a proxy that can fail, and one beside it.
struct Behind {
    proxy: Proxy,
    here: KafkaLog,
    there: KafkaLog,
    members: Mutex<Vec<KafkaOwnership>>,
    /// What a scenario set last.
    way: Mutex<Way>,
    _own: Own,
}

impl Behind {
    async fn new(name: &str) -> Behind {
        let own = Own::migrated(name, 1).await;
        let proxy = Proxy::new();
        let failing = Settings {
            brokers: proxy.brokers.clone(),
            ..own.settings.clone()
        };
        Behind {
            here: KafkaLog::open(failing).await.expect("it opens"),
            there: own.open().await,
            proxy,
            members: Mutex::default(),
            way: Mutex::new(Way::Open),
            _own: own,
        }
    }

    async fn joins(&self, log: &KafkaLog) {
        let member = KafkaOwnership::join(log).expect("it joins");
        settle(&member, 1).await;
        self.members.lock().expect("no panic").push(member);
    }
}

impl Subject<dyn Log> for Behind {
    fn here(&self) -> &(dyn Log + 'static) {
        &self.here
    }

    fn there(&self) -> &(dyn Log + 'static) {
        &self.there
    }

    fn set(&self, way: Way) {
        let before = std::mem::replace(&mut *self.way.lock().expect("no panic"), way);
        match way {
            Way::AnswersLost => self.proxy.mute(),
            Way::Held => self.proxy.hang(),
            Way::Open | Way::OneNodeAway => {
                if before == Way::AnswersLost {
                    // A connection that has lost an answer can't go on.
                    self.proxy.cut();
                }
                self.proxy.mend();
            }
        }
    }

    fn pause(&self) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(Duration::from_millis(100)))
    }
}

impl Owned for Behind {
    fn own(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.joins(&self.here))
    }

    fn replace(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.set(Way::Held);
            self.joins(&self.there).await;
            self.set(Way::Open);
        })
    }
}

#[test]
fn appends_that_fail_do_what_the_simulation_says() {
    if !stack::runs("Kafka", BROKER) {
        return;
    }
    run(async {
        for attempt in 1..=2 {
            let behind = Behind::new("lost").await;
            scenarios::ANSWER_LOST.check(
                scenarios::an_append_whose_answer_is_lost_is_there_or_not_and_once(
                    &behind, attempt,
                )
                .await,
            );
            let behind = Behind::new("held").await;
            scenarios::HELD_UP.check(
                scenarios::an_append_held_up_comes_late_or_never_and_not_behind_a_later_one(
                    &behind, attempt,
                )
                .await,
            );
        }
    });
}

#[test]
fn commits_of_a_replaced_owner_do_what_the_simulation_says() {
    if !stack::runs("Kafka", BROKER) {
        return;
    }
    run(async {
        let behind = Behind::new("replaced").await;
        scenarios::REPLACED
            .check(scenarios::a_replaced_owner_never_moves_the_position_back(&behind, 1).await);
    });
}
