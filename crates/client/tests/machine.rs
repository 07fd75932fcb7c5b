//! Sync, gaps, cursors, receipts and reconnecting, one behaviour at a time.

mod common;

use common::bench::{Bench, SECOND, join, message};
use common::{CONVERSATION, ME, OTHER};
use tidings_client::{AppEvent, ClientCore, Config, Mode, Output, PersistOp, Saved};
use tidings_protocol::Versions;
use tidings_protocol::wire::{
    Cursor, Event, Heads, History, HistoryPage, Lagging, Limits, Pong, Receipt, Receipts,
    Reconnect, Send, SyncDone, command::Command, update::Update,
};

fn complete() -> Bench {
    let config = Config {
        mode: Mode::Complete,
        ..Config::default()
    };
    let mut bench = Bench::new(config, Saved::default());
    bench.sign_in(Limits::default());
    bench
}

fn page(from: u64, to: u64, head: u64) -> Update {
    let events = (from..=to).map(message).collect();
    Update::HistoryPage(HistoryPage {
        conversation: CONVERSATION,
        from,
        to,
        events,
        head,
    })
}

#[test]
fn a_hole_is_fetched_exactly_when_it_lasts_300_ms() {
    let mut bench = complete();
    bench.synced(1, 1, 0, vec![join(1)]);
    bench.hear(Update::Event(message(4)));
    bench.pass(299_000);
    assert!(
        bench.histories().is_empty(),
        "frames on their way usually fill it"
    );
    bench.pass(2_000);
    let (r#ref, asked) = bench.histories()[0];
    assert_eq!((asked.after, asked.limit), (1, 2));
    bench.answer(r#ref, page(2, 3, 4));
    assert_eq!(bench.seen(), [1, 2, 3, 4]);
    bench.hear(Update::Event(message(4)));
    assert_eq!(
        bench.seen().len(),
        4,
        "what isn't above the highest seq is dropped"
    );
}

#[test]
fn a_lost_last_message_is_found_by_the_digest_of_heads() {
    let mut bench = complete();
    bench.synced(1, 1, 0, vec![join(1)]);
    let heads = vec![Cursor {
        conversation: CONVERSATION,
        seq: 2,
    }];
    bench.hear(Update::Heads(Heads { heads }));
    bench.pass(301_000);
    let (r#ref, asked) = bench.histories()[0];
    assert_eq!(asked.after, 1);
    bench.answer(r#ref, page(2, 2, 2));
    assert_eq!(bench.seen(), [1, 2]);
    bench.pass(20 * SECOND);
    assert_eq!(bench.histories().len(), 1);
}

#[test]
fn an_unanswered_page_is_asked_for_again_with_growing_pauses() {
    let mut bench = complete();
    bench.synced(1, 1, 0, vec![join(1)]);
    bench.hear(Update::Event(message(3)));
    for _ in 0..15 {
        bench.pass(4 * SECOND);
        bench.hear(Update::Pong(Pong::default()));
    }
    let asked = bench.histories().len();
    assert!((3..8).contains(&asked), "{asked} times in a minute");
}

#[test]
fn a_complete_client_far_behind_gets_every_page_in_order() {
    let mut bench = complete();
    bench.synced(9, 1, 1, vec![message(8), message(9)]);
    assert_eq!(bench.seen(), [] as [u64; 0]);
    for (from, to) in [(1, 4), (5, 7)] {
        let (r#ref, asked) = *bench.histories().last().expect("asked");
        assert_eq!(asked.after, from - 1);
        bench.answer(r#ref, page(from, to, 9));
    }
    assert_eq!(bench.seen(), (1..=9).collect::<Vec<_>>());
    assert!(bench.app.contains(&AppEvent::Synced {
        conversation: CONVERSATION,
        head: 9
    }));
}

#[test]
fn a_screen_gets_the_newest_page_at_once_and_older_ones_on_demand() {
    let mut bench = Bench::new(Config::default(), Saved::default());
    bench.sign_in(Limits::default());
    bench.synced(9, 1, 1, vec![message(8), message(9)]);
    assert_eq!(bench.seen(), [8, 9]);
    assert!(bench.app.contains(&AppEvent::Hole {
        conversation: CONVERSATION,
        from: 1,
        to: 7
    }));
    bench.pass(5 * SECOND);
    assert!(
        bench.histories().is_empty(),
        "the hole is known, not an accident"
    );
    assert!(bench.core.fetch_older(bench.now, CONVERSATION, 8));
    bench.collect();
    let (r#ref, asked) = bench.histories()[0];
    assert_eq!(
        asked,
        History {
            conversation: CONVERSATION,
            before: 8,
            after: 0,
            limit: 500
        }
    );
    bench.answer(r#ref, page(4, 7, 9));
    bench.pass(SECOND);
    let cursor = &bench.core.snapshot().cursors[&CONVERSATION];
    assert_eq!((cursor.have, &cursor.holes[..]), (9, &[(1, 3)][..]));
}

#[test]
fn hidden_seqs_are_passed_over() {
    let mut bench = complete();
    bench.synced(1, 1, 0, vec![join(1)]);
    bench.hear(Update::Event(message(9)));
    bench.pass(SECOND);
    let (r#ref, _) = bench.histories()[0];
    let events = vec![message(4)];
    let conversation = CONVERSATION;
    bench.answer(
        r#ref,
        Update::HistoryPage(HistoryPage {
            conversation,
            from: 2,
            to: 8,
            events,
            head: 9,
        }),
    );
    assert_eq!(bench.seen(), [1, 4, 9]);
}

#[test]
fn delivered_cursors_go_out_once_a_second_saved_before_they_are_told() {
    let mut bench = complete();
    bench.synced(1, 1, 0, vec![join(1)]);
    bench.pass(2 * SECOND);
    bench.commands.clear();
    bench.persisted.clear();
    for seq in 2..=40 {
        bench.hear(Update::Event(message(seq)));
        bench.pass(50_000);
    }
    bench.pass(2 * SECOND);
    let told: Vec<u64> = (bench.commands.iter())
        .filter_map(|c| match c.command {
            Some(Command::Delivered(d)) => Some(d.seq),
            _ => None,
        })
        .collect();
    assert!(told.len() <= 4 && told.last() == Some(&40), "{told:?}");
    let saved: Vec<u64> = (bench.persisted.iter())
        .filter_map(|op| match op {
            PersistOp::Cursors { rows } => Some(rows[0].1.have),
            _ => None,
        })
        .collect();
    assert_eq!(saved, told);
}

#[test]
fn receipts_never_go_back() {
    let mut bench = complete();
    let mut told = Vec::new();
    for (delivered, read) in [(5, 3), (4, 4), (4, 2), (5, 4), (9, 0)] {
        let receipts = vec![Receipt {
            user: OTHER,
            delivered,
            read,
        }];
        bench.hear(Update::Receipts(Receipts {
            conversation: CONVERSATION,
            receipts,
        }));
    }
    for event in &bench.app {
        if let AppEvent::Receipt {
            delivered, read, ..
        } = event
        {
            told.push((*delivered, *read));
        }
    }
    assert_eq!(told, [(5, 3), (5, 4), (9, 4)]);
}

#[test]
fn lagging_leads_to_a_sync_from_the_cursors() {
    let mut bench = complete();
    bench.synced(1, 1, 0, vec![join(1)]);
    bench.commands.clear();
    bench.hear(Update::Lagging(Lagging {}));
    let Some(Command::Sync(sync)) = &bench.commands[0].command else {
        panic!("no sync")
    };
    assert_eq!((sync.epoch, sync.cursors[0].seq), (1, 1));
}

/// A client that has sent a message, and hears of another log before an answer; and what it sent.
fn in_another_epoch() -> (Bench, Send) {
    let mut bench = complete();
    bench.synced(1, 1, 0, vec![join(1)]);
    bench.write();
    let sent = bench.sends[0].clone();
    bench.hear(Update::SyncDone(SyncDone {
        epoch: 2,
        conversations: 0,
        complete: true,
        reset: true,
    }));
    (bench, sent)
}

#[test]
fn another_epoch_starts_from_nothing_under_a_fresh_sender() {
    let (mut bench, old) = in_another_epoch();
    assert!(bench.app.contains(&AppEvent::Reset));
    let Some(Command::Sync(sync)) = &bench.commands.last().expect("a sync").command else {
        panic!("no sync")
    };
    assert!(sync.cursors.is_empty());
    bench.synced(3, 2, 0, vec![message(1), join(2), message(3)]);
    let new = bench.sends.last().expect("sent under the new log");
    assert_eq!((new.grant, new.counter), (2, 1));
    assert_ne!(new.sender, old.sender);
    assert_eq!(bench.seen(), [1, 1, 2, 3]);
}

/// Of a log's lost end only some is gone.
#[test]
fn what_another_epoch_still_has_is_not_sent_again() {
    let (mut bench, old) = in_another_epoch();
    let stored = Event {
        user: ME,
        sender: old.sender,
        grant: old.grant,
        counter: old.counter,
        id: old.id,
        ..message(2)
    };
    bench.synced(3, 1, 3, vec![message(3)]);
    assert_eq!(bench.sends.len(), 1, "it is looked for first");
    let (r#ref, asked) = bench.histories()[0];
    assert_eq!(asked.after, 0);
    bench.answer(
        r#ref,
        Update::HistoryPage(HistoryPage {
            conversation: CONVERSATION,
            from: 1,
            to: 3,
            events: vec![join(1), stored, message(3)],
            head: 3,
        }),
    );
    assert_eq!(bench.sends.len(), 1);
    let is_sent = |event: &AppEvent| matches!(event, AppEvent::Sent { seq: 2, .. });
    assert!(bench.app.iter().any(is_sent), "{:?}", bench.app);
}

fn delays(bench: &mut Bench, code: Option<u16>, times: usize) -> Vec<u64> {
    let mut found = Vec::new();
    for _ in 0..times {
        bench.core.disconnected(bench.now, code);
        bench.collect();
        if let Some(Output::Connect { after }) = bench.rest.last() {
            found.push(*after);
        }
        bench.core.connected(bench.now);
    }
    found
}

#[test]
fn the_backoff_doubles_up_to_half_a_minute_with_full_jitter() {
    let mut bench = complete();
    let found = delays(&mut bench, None, 400);
    assert!(
        found
            .iter()
            .take(4)
            .zip([2, 4, 8, 16])
            .all(|(d, most)| *d <= most * SECOND)
    );
    let late = &found[10..];
    assert!(late.iter().all(|d| *d <= 30 * SECOND));
    let low = late.iter().filter(|d| **d < 15 * SECOND).count();
    assert!(
        (130..260).contains(&low),
        "{low} of {} in the lower half",
        late.len()
    );
}

#[test]
fn a_server_that_says_when_to_come_back_is_obeyed() {
    let mut bench = complete();
    bench.hear(Update::Reconnect(Reconnect { after_ms: 7_000 }));
    assert_eq!(delays(&mut bench, Some(1012), 1), [7 * SECOND]);

    // So is one that has no room for the connection, within a second.
    bench.core.disconnected(bench.now, None);
    bench.core.not_connected(bench.now, Some(20));
    bench.collect();
    let after = match bench.rest.last() {
        Some(Output::Connect { after }) => *after,
        other => panic!("{other:?}"),
    };
    assert!((20 * SECOND..21 * SECOND).contains(&after), "{after}");
}

#[test]
fn a_server_that_says_not_to_come_back_is_obeyed() {
    for (code, gives_up) in [
        (4002, true),
        (4005, true),
        (4599, true),
        (4009, false),
        (1006, false),
    ] {
        let mut bench = complete();
        bench.rest.clear();
        bench.core.disconnected(bench.now, Some(code));
        bench.collect();
        assert_eq!(bench.rest == [Output::GiveUp { code }], gives_up, "{code}");
    }
}

#[test]
fn a_silent_server_is_left() {
    let mut bench = complete();
    bench.synced(1, 1, 0, vec![join(1)]);
    bench.rest.clear();
    bench.pass(46 * SECOND);
    assert!(bench.rest.is_empty());
    let pings = bench
        .commands
        .iter()
        .filter(|c| matches!(c.command, Some(Command::Ping(_))));
    assert_eq!(pings.count(), 1, "it was asked before");
    bench.pass(2 * SECOND);
    assert!(matches!(
        bench.rest[..],
        [Output::Disconnect, Output::Connect { .. }]
    ));
}

#[test]
fn who_waits_for_an_answer_leaves_a_silent_server_sooner() {
    let mut bench = complete();
    bench.synced(1, 1, 0, vec![join(1)]);
    bench.pass(20 * SECOND);
    bench.rest.clear();
    bench.write();
    bench.pass(14 * SECOND);
    assert!(
        !bench.rest.contains(&Output::Disconnect),
        "{:?}",
        bench.rest
    );
    bench.pass(2 * SECOND);
    assert!(bench.rest.contains(&Output::Disconnect));
}

#[test]
fn an_ended_token_is_asked_for_before_the_next_try() {
    let mut bench = complete();
    bench.rest.clear();
    bench.core.disconnected(bench.now, Some(4001));
    bench.collect();
    assert_eq!(bench.rest, [Output::NeedToken]);
    bench.core.set_token(bench.now, "fresh".into());
    bench.collect();
    assert!(matches!(bench.rest[1], Output::Connect { after } if after <= SECOND));
}

#[test]
fn sends_keep_to_the_published_rate_and_the_bounds_in_flight() {
    let mut bench = complete_with(Limits {
        sends_per_second: 20,
        ..Limits::default()
    });
    bench.synced(1, 1, 0, vec![join(1)]);
    for _ in 0..100 {
        bench.write();
    }
    assert_eq!(bench.sends.len(), 20, "a second's worth at once");
    bench.pass(SECOND);
    assert_eq!(bench.sends.len(), 40);
    bench.pass(5 * SECOND);
    assert_eq!(bench.sends.len(), 64, "unacknowledged in one conversation");
    let first_64 = bench.sends[63].id;
    bench.ack(tidings_protocol::wire::Status::Sent, 64, first_64, 65, 65);
    bench.pass(2 * SECOND);
    assert_eq!(bench.sends.len(), 100);
}

fn complete_with(limits: Limits) -> Bench {
    let config = Config {
        mode: Mode::Complete,
        ..Config::default()
    };
    let mut bench = Bench::new(config, Saved::default());
    bench.sign_in(limits);
    bench
}

#[test]
fn the_versions_that_a_client_speaks_are_said_before_the_server_says_its_own() {
    for (oldest, newest, said) in [(1, 1, (1, 0)), (1, 3, (3, 1))] {
        let config = Config {
            versions: Versions { oldest, newest },
            ..Config::default()
        };
        let mut core = ClientCore::new(config, Saved::default(), Box::new(|| 7));
        core.set_token(1, "token".into());
        core.start(1);
        core.connected(1);
        let auth = core.outputs().into_iter().find_map(|output| match output {
            Output::Frame(frame) => frame.commands.into_iter().find_map(|c| match c.command {
                Some(Command::Auth(auth)) => Some((auth.version, auth.oldest)),
                _ => None,
            }),
            _ => None,
        });
        assert_eq!(auth, Some(said));
    }
}
