//! Cases of devices and of HTTP callers.

use tidings_core::planted::Mistake;

use super::{Case, Model};
use crate::client::{Copies, NewEpoch, Rules};
use crate::once;

fn small() -> Rules {
    Rules::default()
}

/// Days around the two limits: 365 for devices, 400 for the server; things come 30 days late.
fn with_days() -> Rules {
    Rules {
        days: &[0, 360, 390, 401],
        late_days: 30,
        log: 4,
        ..small()
    }
}

fn with_lost_log() -> Rules {
    Rules {
        loses_log: true,
        log: 4,
        ..small()
    }
}

fn copied(copies: Copies) -> Rules {
    Rules { copies, ..small() }
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = devices();
    all.extend(removed());
    all.extend(callers());
    all
}

fn devices() -> Vec<Case> {
    let client = Model::Client;
    vec![
        Case::sound(
            "client",
            "2 messages, 2 connections, removal and return",
            client(Rules {
                members: true,
                ..small()
            }),
        ),
        Case::sound(
            "client-failed",
            "the same, and what an ended grant left has failed",
            client(Rules {
                members: true,
                again: false,
                ..small()
            }),
        ),
        Case::sound(
            "client-holes",
            "any record of a connection may be lost",
            client(Rules {
                messages: 3,
                prefix: false,
                ..small()
            }),
        ),
        Case::sound(
            "client-restored",
            "a backup of the outbox is put back",
            client(copied(Copies::Restored)),
        ),
        Case::sound(
            "client-live",
            "two live copies of one outbox",
            client(copied(Copies::Live)),
        ),
        Case::sound(
            "client-days",
            "sender rows expire by log time",
            client(with_days()),
        ),
        Case::sound("client-epoch", "the log is lost", client(with_lost_log())),
        Case::large(
            "client-large",
            "3 messages, 3 connections, records lost, removal and return",
            client(Rules {
                messages: 3,
                connections: 3,
                log: 7,
                prefix: false,
                members: true,
                ..small()
            }),
        ),
        Case::large(
            "client-restored-large",
            "3 messages, 3 connections, removal and return, a backup put back",
            client(Rules {
                messages: 3,
                connections: 3,
                log: 6,
                members: true,
                ..copied(Copies::Restored)
            }),
        ),
        Case::large(
            "client-live-large",
            "two live copies, 3 messages, 2 connections each",
            client(Rules {
                messages: 3,
                log: 6,
                ..copied(Copies::Live)
            }),
        ),
        Case::large(
            "client-live-members",
            "two live copies, removal and return",
            client(Rules {
                members: true,
                log: 6,
                ..copied(Copies::Live)
            }),
        ),
        Case::large(
            "client-days-large",
            "expiry with 3 messages, 3 connections",
            client(Rules {
                messages: 3,
                connections: 3,
                log: 5,
                ..with_days()
            }),
        ),
        Case::large(
            "client-days-members",
            "expiry with removal and return",
            client(Rules {
                members: true,
                log: 5,
                ..with_days()
            }),
        ),
        Case::large(
            "client-epoch-large",
            "a lost log with 3 messages, 3 connections, removal and return",
            client(Rules {
                messages: 3,
                connections: 3,
                log: 5,
                members: true,
                ..with_lost_log()
            }),
        ),
    ]
}

fn removed() -> Vec<Case> {
    let client = Model::Client;
    vec![
        Case::broken(
            "client-gap-accepted",
            "the code accepts a counter behind a missing one",
            "",
            client(Rules {
                messages: 3,
                prefix: false,
                planted: Some(Mistake::GapAccepted),
                ..small()
            }),
        ),
        Case::broken(
            "client-fork-accepted",
            "the code doesn't compare the id before",
            "told sent and isn't",
            client(Rules {
                planted: Some(Mistake::ForkAccepted),
                log: 6,
                ..copied(Copies::Live)
            }),
        ),
        Case::broken(
            "client-no-lineage",
            "a restored device doesn't compare the id under n",
            "told sent and isn't",
            client(Rules {
                only: "told sent and isn't",
                lineage: false,
                ..copied(Copies::Restored)
            }),
        ),
        Case::broken(
            "client-live-no-lineage",
            "two live copies don't compare the id under n",
            "told sent and isn't",
            client(Rules {
                only: "told sent and isn't",
                lineage: false,
                ..copied(Copies::Live)
            }),
        ),
        // Not a safeguard removed but one that there is none of: docs/model.md.
        Case::broken(
            "client-restored-members",
            "a backup with messages that an ended grant left, while what was sent since is under way",
            "has two seqs",
            client(Rules {
                members: true,
                log: 7,
                only: "has two seqs",
                ..copied(Copies::Restored)
            }),
        ),
        Case::broken(
            "client-days-forgotten-early",
            "the code forgets senders after 35 s",
            "has two seqs",
            client(Rules {
                only: "has two seqs",
                planted: Some(Mistake::SenderForgottenEarly),
                ..with_days()
            }),
        ),
        Case::broken(
            "client-days-never-old",
            "a device uses a sender id however old it is",
            "has two seqs",
            client(Rules {
                only: "has two seqs",
                sender_days: 1000,
                ..with_days()
            }),
        ),
        Case::broken(
            "client-days-news-by-arrival",
            "a duplicate's answer makes the sender id new again",
            "stuck",
            client(Rules {
                known_by_ts: false,
                ..with_days()
            }),
        ),
        Case::broken(
            "client-days-not-waited",
            "a device with too old a sender id looks for what may still be under way",
            "has two seqs",
            client(Rules {
                waits: false,
                ..with_days()
            }),
        ),
        Case::broken(
            "client-days-too-late",
            "records are appended later than the 35 days between the two limits",
            "has two seqs",
            client(Rules {
                days: &[0, 364, 405],
                late_days: 41,
                ..with_days()
            }),
        ),
        Case::broken(
            "client-epoch-ignored",
            "a device goes on counting after the log was lost",
            "stuck",
            client(Rules {
                new_epoch: NewEpoch::Ignored,
                ..with_lost_log()
            }),
        ),
        Case::broken(
            "client-epoch-not-looked-up",
            "a device numbers all anew without looking what the store has",
            "has two seqs",
            client(Rules {
                new_epoch: NewEpoch::Numbered,
                ..with_lost_log()
            }),
        ),
        Case::broken(
            "client-epoch-old-gateways",
            "gateways of the old log append to the new one",
            "has two seqs",
            client(Rules {
                epoch_ends_connections: false,
                ..with_lost_log()
            }),
        ),
    ]
}

fn callers() -> Vec<Case> {
    vec![
        Case::sound(
            "once",
            "2 requests under one key within 6 days, removal and return",
            Model::Once(once::Rules {
                requests: 2,
                ..once::Rules::default()
            }),
        ),
        Case::large(
            "once-3",
            "3 requests under one key within 6 days, removal and return",
            Model::Once(once::Rules::default()),
        ),
        Case::large(
            "once-large",
            "3 requests, records 2 days late, days up to the end of the 7",
            Model::Once(once::Rules {
                days: &[0, 2, 4, 8],
                late_days: 2,
                repeat_days: 4,
                ..once::Rules::default()
            }),
        ),
        Case::broken(
            "once-not-said",
            "records don't say that the sender is for one message",
            "the key has two seqs",
            Model::Once(once::Rules {
                says_once: false,
                ..once::Rules::default()
            }),
        ),
        Case::broken(
            "once-forgotten-early",
            "the code forgets senders after 35 s",
            "the key has two seqs",
            Model::Once(once::Rules {
                planted: Some(Mistake::SenderForgottenEarly),
                ..once::Rules::default()
            }),
        ),
    ]
}
