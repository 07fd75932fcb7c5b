//! What the models do with calls that fail is what engines may do, and all of it: the same scenarios
//! as in `crates/engines/tests/faults`, over many seeds.

use std::collections::BTreeSet;

use tidings_core::conformance::faults::{Scenario, Seen, log, registry, store};
use tidings_core::conformance::store as promises;
use tidings_sim::ports::{Models, block_on};

/// Runs a scenario on the models of many seeds: what they do is allowed, and each allowed thing is
/// done by one of them.
fn shows_all(scenario: Scenario, run: impl Fn(&Models, u64) -> Seen) {
    let mut seen = BTreeSet::new();
    for seed in 1..=400 {
        let sight = run(&Models::new(seed, seed.is_multiple_of(3)), seed);
        assert!(
            scenario.allowed.contains(&sight),
            "{}: {sight}, which no engine does",
            scenario.name
        );
        seen.insert(sight);
    }
    let allowed: BTreeSet<Seen> = scenario.allowed.iter().copied().collect();
    assert_eq!(
        seen, allowed,
        "{}: what the models never do isn't tested",
        scenario.name
    );
}

#[test]
fn appends_and_commits_that_fail() {
    shows_all(log::ANSWER_LOST, |models, run| {
        block_on(log::an_append_whose_answer_is_lost_is_there_or_not_and_once(models, run))
    });
    shows_all(log::HELD_UP, |models, run| {
        block_on(log::an_append_held_up_comes_late_or_never_and_not_behind_a_later_one(models, run))
    });
    shows_all(log::REPLACED, |models, run| {
        block_on(log::a_replaced_owner_never_moves_the_position_back(
            models, run,
        ))
    });
}

#[test]
fn writes_and_reads_that_fail() {
    shows_all(store::ANSWER_LOST, |models, run| {
        block_on(store::a_write_whose_answer_is_lost_is_there_or_not_and_stays(models, run))
    });
    shows_all(store::HELD_UP, |models, run| {
        block_on(store::a_write_held_up_comes_late_or_never(models, run))
    });
    shows_all(store::OLDER, |models, run| {
        block_on(store::an_older_row_never_overwrites_a_newer_one(
            models, run,
        ))
    });
    shows_all(store::ONE_AWAY, |models, run| {
        block_on(store::what_was_written_is_seen_with_one_node_away(
            models, run,
        ))
    });
}

#[test]
fn entries_that_fail() {
    shows_all(registry::REMOVAL, |models, run| {
        block_on(registry::a_removal_held_up_never_removes_a_newer_session(
            models, run,
        ))
    });
    shows_all(registry::ENTRY, |models, run| {
        block_on(registry::an_entry_held_up_comes_late_or_never(models, run))
    });
}

/// Without faults the model of the store is a store like the others.
#[test]
fn the_store_keeps_what_every_store_promises() {
    for gathers in [false, true] {
        block_on(promises::all(Models::new(1, gathers).store(), 1));
    }
}
