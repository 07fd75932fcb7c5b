//! Cases of routers and replicas.

use tidings_core::planted::Mistake;

use super::{Case, Model};
use crate::store::Letter::{Add, Remove, Send};
use crate::store::{After, Forgets, Letter, Returns, Rules};

/// The first and second send of device 0, the first of device 1, and device 0's first under its second grant.
const A1: Letter = Send(0, 1, 1);
const A2: Letter = Send(0, 1, 2);
const B1: Letter = Send(1, 1, 1);
const A1_AGAIN: Letter = Send(0, 2, 1);

fn one_log(log: &[(Letter, u16)]) -> Rules {
    Rules {
        logs: vec![log.to_vec()],
        ..Rules::default()
    }
}

fn one(log: &[Letter]) -> Rules {
    let log: Vec<(Letter, u16)> = log.iter().map(|&letter| (letter, 0)).collect();
    one_log(&log)
}

/// A copy that still counts, and the same once more when the row is too old to.
fn with_days() -> Rules {
    one_log(&[(A1, 0), (A1, 399), (A1, 401)])
}

/// The log's clock runs back, as at a failover.
fn clock_back() -> Rules {
    one_log(&[(A1, 5), (A2, 3)])
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = sound();
    all.extend(large());
    all.extend(removed());
    all
}

fn sound() -> Vec<Case> {
    let case = |name, about, rules| Case::sound(name, about, Model::Store(rules));
    vec![
        case("store", "one device, all logs of 2", Rules::default()),
        case("store-refused", "removal, send", one(&[Remove, A1])),
        case(
            "store-clock-back",
            "the log's clock runs back",
            clock_back(),
        ),
        case(
            "store-stored",
            "memory dropped when stored",
            Rules {
                forgets: Forgets::Stored,
                ..one(&[A1, A2])
            },
        ),
        case(
            "store-returns",
            "the partition returns, all is forgotten",
            Rules {
                returns: Returns::Empty,
                ..one(&[A1, A2])
            },
        ),
        case(
            "store-days",
            "a sender's row expires within the log",
            with_days(),
        ),
    ]
}

fn large() -> Vec<Case> {
    let case = |name, about, rules| Case::large(name, about, Model::Store(rules));
    let logs_of_3 = || Rules {
        length: 3,
        ..Rules::default()
    };
    vec![
        case("store-devices", "two devices", one(&[A1, B1])),
        case("store-removed", "send, removal", one(&[A1, Remove])),
        case("store-large", "one device, all logs of 3", logs_of_3()),
        case(
            "store-devices-large",
            "two devices, copy",
            one(&[A1, B1, A1]),
        ),
        case(
            "store-removed-large",
            "send, removal, send",
            one(&[A1, Remove, A2]),
        ),
        case(
            "store-copy-large",
            "send, removal, copy",
            one(&[A1, Remove, A1]),
        ),
        case(
            "store-return-large",
            "removal, return, new grant",
            one(&[Remove, Add, A1_AGAIN]),
        ),
        case(
            "store-stored-large",
            "memory dropped when stored, logs of 3",
            Rules {
                forgets: Forgets::Stored,
                ..logs_of_3()
            },
        ),
        case(
            "store-returns-large",
            "the partition returns, all is forgotten, logs of 3",
            Rules {
                returns: Returns::Empty,
                ..logs_of_3()
            },
        ),
        case(
            "store-routers-large",
            "three routers, logs of 2",
            Rules {
                routers: 3,
                ..Rules::default()
            },
        ),
        case(
            "store-days-large",
            "expiry, two devices and a clock that runs back",
            one_log(&[(A1, 0), (B1, 402), (A1, 401)]),
        ),
    ]
}

fn removed() -> Vec<Case> {
    let case = |name, about, finds, rules| Case::broken(name, about, finds, Model::Store(rules));
    let on_two = "not on two replicas";
    vec![
        case(
            "store-rows-before-events",
            "rows of state don't wait for events",
            "router",
            Rules {
                rows: After::Nothing,
                ..Rules::default()
            },
        ),
        case(
            "store-rows-after-own-event",
            "rows of state wait for their own event only",
            "router",
            Rules {
                rows: After::Own,
                ..one(&[A1, A2, A1])
            },
        ),
        case(
            "store-skips",
            "what the store says is done is skipped",
            "router",
            Rules {
                never_skips: false,
                ..Rules::default()
            },
        ),
        case(
            "store-not-taken-back",
            "rows that are ahead are taken as they are",
            "router",
            Rules {
                takes_back: false,
                ..Rules::default()
            },
        ),
        case(
            "store-forgets-early",
            "memory dropped before it is stored",
            "router",
            Rules {
                forgets: Forgets::Any,
                ..Rules::default()
            },
        ),
        case(
            "store-read-at-one",
            "reads ask one replica",
            "router",
            Rules {
                quorum: false,
                ..Rules::default()
            },
        ),
        case(
            "store-events-first",
            "events are read before the rows",
            "router",
            Rules {
                rows_first: false,
                ..Rules::default()
            },
        ),
        case(
            "store-commits-early",
            "the commit waits for nothing",
            on_two,
            Rules {
                commit_waits_for_events: false,
                commit_waits_for_rows: false,
                ..Rules::default()
            },
        ),
        case(
            "store-commits-without-rows",
            "the commit doesn't wait for rows of state",
            on_two,
            Rules {
                commit_waits_for_rows: false,
                ..Rules::default()
            },
        ),
        case(
            "store-last-write-wins",
            "rows have no stamps",
            on_two,
            Rules {
                stamps: false,
                ..Rules::default()
            },
        ),
        Case {
            is_large: true,
            ..case(
                "store-memory-kept",
                "the partition returns to what a router remembers",
                "router",
                Rules {
                    returns: Returns::Full,
                    ..one(&[A1, B1, A2])
                },
            )
        },
        case(
            "store-days-counted-back",
            "a sender's row is guessed from the counter of the event after it",
            "router",
            Rules {
                exactly: false,
                ..with_days()
            },
        ),
        case(
            "store-time-runs-back",
            "the code stamps with the log's clock",
            on_two,
            Rules {
                planted: Some(Mistake::TimeRunsBack),
                ..clock_back()
            },
        ),
    ]
}
