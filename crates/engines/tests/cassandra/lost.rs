//! Calls of the store that fail: the scenarios that the simulation's model shows as well.

use std::time::{Duration, Instant};

use tidings_core::conformance::faults::{Subject, Way, store as scenarios};
use tidings_core::ids::{ConversationId, Partition, Position};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::store::Store;
use tidings_core::rows::EventRow;
use tidings_engines::breaker::State;
use tidings_engines::cassandra::{CassandraStore, Settings};

use super::open;
use super::support::{NODES, node, with_keyspace};
use super::way::Proxy;

/// A store behind proxies that can fail, and one beside it.
struct Behind {
    proxies: Vec<Proxy>,
    here: CassandraStore,
    there: CassandraStore,
}

impl Behind {
    async fn new(settings: &Settings) -> Behind {
        let mut proxies = Vec::new();
        for n in 0..NODES {
            proxies.push(Proxy::to(node(n)).await);
        }
        let mapped = |(n, proxy): (usize, &Proxy)| format!("127.0.0.{}={}", n + 1, proxy.address);
        let failing = Settings {
            hosts: proxies.iter().map(|p| p.address.to_string()).collect(),
            address_map: proxies.iter().enumerate().map(mapped).collect(),
            request_timeout_ms: 1_500,
            speculative_write_ms: 200,
            ..settings.clone()
        };
        Behind {
            here: open(&failing).await,
            there: open(settings).await,
            proxies,
        }
    }
}

impl Subject<dyn Store> for Behind {
    fn here(&self) -> &(dyn Store + 'static) {
        &self.here
    }

    fn there(&self) -> &(dyn Store + 'static) {
        &self.there
    }

    fn set(&self, way: Way) {
        for (n, proxy) in self.proxies.iter().enumerate() {
            proxy.set(match way {
                Way::OneNodeAway if n == 1 => Way::Held,
                Way::OneNodeAway => Way::Open,
                way => way,
            });
        }
    }

    fn pause(&self) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(Duration::from_millis(100)))
    }
}

#[test]
fn calls_that_fail_do_what_the_simulation_says() {
    with_keyspace(|settings| async move {
        for run in 1..=2 {
            let behind = Behind::new(&settings).await;
            scenarios::ANSWER_LOST.check(
                scenarios::a_write_whose_answer_is_lost_is_there_or_not_and_stays(&behind, run)
                    .await,
            );
            let behind = Behind::new(&settings).await;
            scenarios::HELD_UP
                .check(scenarios::a_write_held_up_comes_late_or_never(&behind, run).await);
            let behind = Behind::new(&settings).await;
            scenarios::OLDER
                .check(scenarios::an_older_row_never_overwrites_a_newer_one(&behind, run).await);
            let behind = Behind::new(&settings).await;
            scenarios::ONE_AWAY
                .check(scenarios::what_was_written_is_seen_with_one_node_away(&behind, run).await);
        }
    });
}

/// Once an outage has opened the breaker, one call a second looks whether the store is back. A router's calls have rows of
/// many conversations, so many requests: none of them may be refused for another of the same call being the probe.
#[test]
fn after_an_outage_a_call_of_many_requests_goes_through() {
    const CONVERSATIONS: u64 = 40;
    with_keyspace(|settings| async move {
        let behind = Behind::new(&settings).await;
        let position = Position {
            epoch: 1,
            offset: 1,
        };
        let rows: Vec<EventRow> = (1..=CONVERSATIONS)
            .map(|id| EventRow::empty(ConversationId(id), 1, position, 1, 0))
            .collect();
        let put = || behind.here.put_events(Partition(0), rows.clone());
        put().await.expect("all is well");
        let writes = behind.here.breakers()[1].clone();
        behind.set(Way::Held);
        while writes.state() == State::Closed {
            put().await.expect_err("nobody answers");
        }
        behind.set(Way::Open);
        let until = Instant::now() + Duration::from_secs(20);
        while put().await.is_err() {
            assert!(Instant::now() < until, "it never goes through again");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(writes.state(), State::Closed);
    });
}
