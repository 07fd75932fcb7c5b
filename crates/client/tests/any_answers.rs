//! The outbox and the sync against an exact server, with answers heard at any time, in any
//! order, again, or never, and with everything around them failing.

mod common;

use common::{Faults, World};
use proptest::prelude::*;
use tidings_client::Mode;
use tidings_protocol::Format;

fn run(seed: u64, faults: Faults, format: Format, mode: Mode) -> World {
    let mut world = World::new(seed, faults, format, mode);
    for _ in 0..700 {
        world.step();
    }
    world.settle();
    world.judge();
    world
}

fn faults() -> impl Strategy<Value = Faults> {
    any::<[bool; 6]>().prop_map(|[cut, answers, crash, members, restore, refuse]| Faults {
        cut,
        answers,
        crash,
        members,
        restore,
        refuse,
        clone: false,
    })
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_is_told_is_true_and_everything_settles(seed: u64, faults in faults()) {
        run(seed, faults, Format::Proto, Mode::Complete);
    }

    #[test]
    fn a_screen_sees_no_seq_twice_and_is_told_the_truth(seed: u64, faults in faults()) {
        run(seed, faults, Format::Json, Mode::NewestFirst);
    }

    #[test]
    fn two_live_copies_part_and_lose_nothing(seed: u64, mut faults in faults()) {
        faults.clone = true;
        run(seed, faults, Format::Proto, Mode::Complete);
    }
}

#[test]
fn restored_backups_are_noticed_as_copies() {
    let faults = Faults {
        cut: true,
        crash: true,
        restore: true,
        ..Faults::default()
    };
    let noticed: usize = (0..40)
        .map(|seed| run(seed, faults, Format::Proto, Mode::Complete).copies_noticed)
        .sum();
    assert!(
        noticed > 5,
        "only {noticed} of 40 runs noticed a copy: the runs test too little"
    );
}

#[test]
fn the_same_seed_gives_the_same_log() {
    let faults = Faults {
        cut: true,
        answers: true,
        crash: true,
        members: true,
        restore: true,
        refuse: true,
        clone: true,
    };
    for seed in 0..10 {
        let logs: Vec<_> = (0..2)
            .map(|_| {
                run(seed, faults, Format::Proto, Mode::Complete)
                    .server
                    .conversations
            })
            .map(|c| c.into_values().map(|c| c.events).collect::<Vec<_>>())
            .collect();
        assert_eq!(logs[0], logs[1], "seed {seed}");
    }
}
