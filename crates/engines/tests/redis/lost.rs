//! Calls of the registry that fail: the scenarios that the simulation's model shows as well.

use tidings_core::conformance::faults::{Subject, Way, registry as scenarios};
use tidings_core::ports::BoxFuture;

use super::way::Proxy;
use super::*;

struct Behind {
    proxy: Proxy,
    here: RedisRegistry,
    there: RedisRegistry,
}

impl Subject<dyn Registry> for Behind {
    fn here(&self) -> &(dyn Registry + 'static) {
        &self.here
    }

    fn there(&self) -> &(dyn Registry + 'static) {
        &self.there
    }

    fn set(&self, way: Way) {
        self.proxy.set(way);
    }

    fn pause(&self) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(Duration::from_millis(100)))
    }
}

async fn behind(redis: &Redis) -> Behind {
    let proxy = Proxy::to(primary().await).await;
    let here = redis
        .open_with(|s| {
            s.mode = Mode::Standalone;
            s.nodes = vec![proxy.address.to_string()];
            s.timeout_ms = 300;
        })
        .await;
    let there = redis.open().await;
    Behind { proxy, here, there }
}

#[tokio::test]
async fn calls_that_fail_do_what_the_simulation_says() {
    let Some(redis) = redis().await else { return };
    if redis.is_cluster() {
        eprintln!(
            "SKIPPED: members of a cluster name their own addresses, so no proxy stands before them"
        );
        return;
    }
    let scenarios = async {
        for run in 1..=3 {
            let one = behind(&redis).await;
            let seen = scenarios::a_removal_held_up_never_removes_a_newer_session(&one, run).await;
            scenarios::REMOVAL.check(seen);
            let one = behind(&redis).await;
            let seen = scenarios::an_entry_held_up_comes_late_or_never(&one, run).await;
            scenarios::ENTRY.check(seen);
        }
    };
    tokio::time::timeout(Duration::from_secs(120), scenarios)
        .await
        .expect("the test ends in time");
    redis.clean().await;
}
