//! Calls of the store that fail: the scenarios that the simulation's model shows as well.

use std::time::Duration;

use tidings_core::conformance::faults::{Subject, Way, store as scenarios};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::store::Store;
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
