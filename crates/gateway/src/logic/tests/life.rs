//! From hello to close: checklist rows 4, 5, 17, 18, 23, 25, 26, and the end of silent sessions.

use tidings_core::ids::{ConversationId, DeviceId, UserId};
use tidings_core::ports::directory::{Revocation, RevocationSubject, SignInId};
use tidings_core::ports::log::LogError;
use tidings_core::ports::peers::ToRouter;
use tidings_protocol::wire::{self, command::Command, update::Update};
use tidings_protocol::{CloseCode, ErrorCode, Format};

use super::super::GatewayMetrics;
use super::outside::SECOND;
use super::world::{World, errors};
use crate::ws::Opcode;

#[test]
fn a_session_is_greeted_and_made_ready() {
    for format in Format::ALL {
        let mut world = World::new();
        let slot = world.connect(format);
        assert!(matches!(&world.take(slot)[..], [Update::Hello(hello)] if hello.limits.is_some()));
        world.auth(slot, "1/10");
        world.settle();
        let updates = world.take_updates(slot);
        let Some(Update::Ready(ready)) = &updates[0].update else {
            panic!("{updates:?}")
        };
        assert_eq!(
            (updates[0].r#ref, ready.user, ready.device, ready.epoch),
            (1, 1, 10, 1)
        );
        assert_eq!(world.out.sessions.len(), 1);
        let session = world.socket(slot).session;
        world.hang_up(slot);
        assert_eq!(world.out.removed, [session]);
        assert_eq!(world.core.sessions(), 0);
    }
}

#[test]
fn few_sign_in_at_once_and_the_others_in_their_turn() {
    let mut world = World::with(|settings| settings.sign_ins_at_once = 2);
    let slots: Vec<_> = (1..=5).map(|user| world.connect_and_auth(user)).collect();
    assert_eq!(world.out.authentications, 2);
    // Who has given up, and who is refused, make room for others.
    world.hang_up(slots[2]);
    let refused = world.connect(Format::Proto);
    world.auth(refused, "bad");
    world.settle();
    assert_eq!(world.out.authentications, 5);
    for slot in [slots[0], slots[1], slots[3], slots[4]] {
        let is_ready = |u: &Update| matches!(u, Update::Ready(_));
        let updates = world.take(slot);
        assert!(updates.iter().any(is_ready), "{slot}: {updates:?}");
    }
    assert_eq!(world.closed(refused), Some(CloseCode::Policy));
    // It goes on, and nobody is left behind.
    let more: Vec<_> = (6..=9).map(|user| world.connect_and_auth(user)).collect();
    world.settle();
    assert_eq!(world.out.authentications, 9);
    assert!(more.iter().all(|&slot| world.closed(slot).is_none()));
}

#[test]
fn who_would_wait_too_long_is_told_when_to_come_back() {
    let mut world = World::with(|settings| settings.sign_ins_at_once = 1);
    // Five hundred a second is what it expects, and five seconds what clients wait.
    let waiting: Vec<_> = (0..2_502).map(|_| world.connect_and_auth(1)).collect();
    assert!(waiting.iter().all(|&slot| world.closed(slot).is_none()));
    // Each of those who are sent away has a turn of its own.
    let mut late = || {
        let late = world.connect_and_auth(1);
        assert_eq!(world.closed(late), Some(CloseCode::TryLater));
        let told = world.take(late);
        let [.., Update::Reconnect(reconnect)] = &told[..] else {
            panic!("{told:?}")
        };
        reconnect.after_ms
    };
    assert_eq!([late(), late(), late()], [5_004, 5_006, 5_008]);
    assert_eq!(world.metric(|m| &m.sent_away), 3);
}

#[test]
fn whose_turn_can_not_come_in_time_is_sent_away_before_that() {
    let mut world = World::with(|settings| settings.sign_ins_at_once = 1);
    // The directory answers nobody: each second a quarter less is expected of it, a hundred a second at least.
    let waiting: Vec<_> = (0..2_000).map(|_| world.connect_and_auth(1)).collect();
    for _ in 0..8 {
        world.out.now += 1_000_000;
        world.core.tick(&mut world.out);
    }
    let sent_away = |&&slot: &&_| world.closed(slot) == Some(CloseCode::TryLater);
    let away = waiting.iter().filter(sent_away).count();
    assert_eq!(away, 999, "one signs in, a thousand can still be in time");
    assert!(
        waiting[..1_001]
            .iter()
            .all(|&slot| world.closed(slot).is_none())
    );
    let [.., Update::Reconnect(reconnect)] = &world.take(waiting[1_999])[..] else {
        panic!("not told when to come back")
    };
    assert!(reconnect.after_ms >= 10_000, "{}", reconnect.after_ms);
}

#[test]
fn who_says_nothing_for_five_seconds_is_closed() {
    let mut world = World::new();
    let slot = world.connect(Format::Proto);
    world.pass(4);
    assert_eq!(world.closed(slot), None);
    world.pass(1);
    assert_eq!(world.closed(slot), Some(CloseCode::Policy));
    assert_eq!(world.metric(|m| &m.failures), 1);
    let slot = world.connect(Format::Proto);
    world.hang_up(slot);
    assert_eq!(world.metric(|m| &m.failures), 1, "left without a word");
}

#[test]
fn anything_but_auth_before_auth_is_a_policy_violation_and_does_nothing() {
    let mut world = World::new();
    let room = world.room(5, &[1]);
    let send = Command::Send(world.next_send(0, room));
    for command in [
        send,
        Command::Ping(wire::Ping {}),
        Command::Sync(wire::Sync::default()),
    ] {
        let slot = world.connect(Format::Json);
        world.command(slot, 0, command);
        assert_eq!(world.closed(slot), Some(CloseCode::Policy));
    }
    // Not even in one frame with `auth`: whether it is the user's isn't known yet.
    let slot = world.connect(Format::Proto);
    let auth = wire::Auth {
        token: "1/10".to_owned(),
        device: String::new(),
        version: 1,
        oldest: 0,
    };
    let of = |command| wire::Command {
        r#ref: 0,
        command: Some(command),
    };
    let send = world.next_send(slot, room);
    world.commands(slot, vec![of(Command::Auth(auth)), of(Command::Send(send))]);
    assert_eq!(world.closed(slot), Some(CloseCode::Policy));
    assert!(world.out.appends.is_empty());
    let slot = world.connect(Format::Proto);
    world
        .core
        .message(&mut world.out, slot, Opcode::Binary, b"\xff\xff\xff");
    assert_eq!(world.closed(slot), Some(CloseCode::Policy));
}

#[test]
fn tokens_that_are_not_good_close_with_what_to_do() {
    for (token, code) in [
        ("nonsense", CloseCode::Policy),
        ("expired", CloseCode::TokenExpired),
        ("revoked", CloseCode::Revoked),
    ] {
        let mut world = World::new();
        let slot = world.connect(Format::Proto);
        world.auth(slot, token);
        world.settle();
        assert_eq!(errors(&world.take(slot)), ["unauthorized"]);
        assert_eq!(world.closed(slot), Some(code), "{token}");
        assert_eq!(world.core.metrics().refusals(ErrorCode::Unauthorized), 1);
    }
    let mut world = World::new();
    let slot = world.connect(Format::Proto);
    let auth = wire::Auth {
        token: "1/1".to_owned(),
        device: String::new(),
        version: 99,
        oldest: 0,
    };
    world.command(slot, 0, Command::Auth(auth));
    assert_eq!(world.closed(slot), Some(CloseCode::Version));
    let slot = world.connect(Format::Proto);
    world.auth(slot, &"x".repeat(9000));
    assert_eq!(world.closed(slot), Some(CloseCode::Policy));
    assert_eq!(world.out.authentications, 0);
}

#[test]
fn a_token_that_ends_closes_the_session_unless_a_fresh_one_of_the_same_user_comes() {
    let mut world = World::new();
    world.out.expires_in = 100 * SECOND;
    let (kept, lost, thief) = (world.login(1, 10), world.login(2, 20), world.login(3, 30));
    world.pass(39);
    assert!(
        !world
            .take(kept)
            .iter()
            .any(|u| matches!(u, Update::ReauthRequired(_)))
    );
    world.pass(2);
    assert!(
        world
            .take(kept)
            .iter()
            .any(|u| matches!(u, Update::ReauthRequired(_)))
    );
    world.auth(kept, "1/10");
    world.auth(thief, "1/10");
    world.settle();
    assert!(
        world
            .take(kept)
            .iter()
            .any(|u| matches!(u, Update::Ready(_)))
    );
    assert_eq!(
        world.closed(thief),
        Some(CloseCode::Forbidden),
        "a token of another user"
    );
    world.pass(58);
    assert_eq!(world.closed(lost), None);
    world.pass(2);
    assert_eq!(world.closed(lost), Some(CloseCode::TokenExpired));
    assert_eq!(world.closed(kept), None);
    world.auth(kept, "nonsense");
    world.settle();
    assert_eq!(errors(&world.take(kept)), ["unauthorized"]);
    assert_eq!(world.closed(kept), None, "the old token is still good");
}

#[test]
fn revocation_closes_what_was_signed_in_before_it() {
    let mut world = World::new();
    let (a, b, other) = (world.login(1, 10), world.login(1, 11), world.login(2, 20));
    let revoke = |subject, not_before| Revocation {
        revision: 1,
        subject,
        not_before,
    };
    let now = world.out.now;
    world.core.revoked(
        &mut world.out,
        &revoke(RevocationSubject::User(UserId(1)), now),
    );
    assert_eq!(world.closed(a), None, "the tokens are not older");
    world.core.revoked(
        &mut world.out,
        &revoke(RevocationSubject::Device(DeviceId(11)), now + SECOND),
    );
    assert_eq!(
        (world.closed(a), world.closed(b)),
        (None, Some(CloseCode::Revoked))
    );
    world.core.revoked(
        &mut world.out,
        &revoke(RevocationSubject::User(UserId(1)), now + SECOND),
    );
    world.core.revoked(
        &mut world.out,
        &revoke(RevocationSubject::SignIn(SignInId(77)), now + SECOND),
    );
    assert_eq!(
        (world.closed(a), world.closed(other)),
        (Some(CloseCode::Revoked), None)
    );
}

#[test]
fn a_device_that_connects_again_takes_its_place() {
    let mut world = World::new();
    let (old, other) = (world.login(1, 10), world.login(1, 11));
    let new = world.login(1, 10);
    world.settle();
    assert_eq!(world.closed(old), Some(CloseCode::Replaced));
    assert_eq!((world.closed(new), world.closed(other)), (None, None));
    assert_eq!(world.core.sessions(), 2);
}

#[test]
fn five_minutes_of_silence_are_stale_and_any_sign_of_life_counts() {
    let mut world = World::new();
    let (silent, pong) = (world.login(1, 10), world.login(2, 20));
    for _ in 0..11 {
        world.pass(28);
        world.socket(pong).heard = world.out.now;
    }
    world.pass(24);
    assert_eq!(world.closed(pong), None);
    assert_eq!(world.closed(silent), Some(CloseCode::Heartbeat));
    assert_eq!(world.metric(|m| &m.stale), 1);
    world.take(silent);
    assert!(
        (8..=12).contains(&world.socket(silent).pings),
        "{}",
        world.socket(silent).pings
    );
}

#[test]
fn a_client_that_is_heard_of_costs_no_heartbeat() {
    let mut world = World::new();
    let slot = world.login(1, 10);
    world.take(slot);
    for _ in 0..12 {
        world.pass(10);
        world.socket(slot).heard = world.out.now;
        assert_eq!(world.take(slot), []);
    }
    world.pass(65);
    assert!(!world.take(slot).is_empty(), "silent");
    assert!(world.socket(slot).pings > 0);
}

#[test]
fn silent_clients_get_heartbeats_every_25_to_30_seconds_and_not_all_at_once() {
    let mut world = World::new();
    let slots: Vec<_> = (0..40).map(|i| world.login(100 + i, 1000 + i)).collect();
    let mut beats = vec![Vec::new(); slots.len()];
    for second in 0..90u64 {
        world.pass(1);
        for (i, &slot) in slots.iter().enumerate() {
            let is_beat = |u: &Update| matches!(u, Update::Heads(h) if h.heads.is_empty());
            if world.take(slot).iter().any(is_beat) {
                beats[i].push(second);
            }
        }
    }
    for beats in &beats {
        assert!(beats.len() >= 2, "{beats:?}");
        assert!(
            beats.windows(2).all(|w| (25..=31).contains(&(w[1] - w[0]))),
            "{beats:?}"
        );
    }
    let mut firsts: Vec<u64> = beats.iter().map(|b| b[0]).collect();
    firsts.dedup();
    assert!(firsts.len() > 10, "{firsts:?}");
}

#[test]
fn malformed_sends_are_refused_and_the_connection_stays() {
    let mut world = World::new();
    let room = world.room(5, &[1]);
    let slot = world.online(1);
    let good = world.next_send(slot, room);
    let bad = [
        wire::Send {
            counter: 0,
            ..good.clone()
        },
        wire::Send {
            id: 0,
            ..good.clone()
        },
        wire::Send {
            grant: 0,
            ..good.clone()
        },
        wire::Send {
            kind: wire::Kind::Members.into(),
            ..good.clone()
        },
        wire::Send {
            body: b"\xff\xfe"[..].into(),
            ..good.clone()
        },
        wire::Send {
            encoding: 1,
            body: b"no zstd"[..].into(),
            ..good.clone()
        },
    ];
    for send in bad {
        world.command(slot, 3, Command::Send(send));
        assert_eq!(errors(&world.take(slot)), ["bad_request"]);
    }
    world.command(
        slot,
        3,
        Command::Send(wire::Send {
            body: vec![b'x'; 16 * 1024 + 1].into(),
            ..good.clone()
        }),
    );
    let updates = world.take(slot);
    assert!(
        matches!(&updates[..], [Update::Error(e)] if e.code == "too_long" && e.sender == good.sender && e.counter == 1)
    );
    assert!(world.out.appends.is_empty());
    world.command(slot, 3, Command::Send(good));
    world.settle();
    let updates = world.take_updates(slot);
    assert!(
        matches!(&updates[..], [wire::Update { r#ref: 3, update: Some(Update::Ack(ack)) }] if ack.seq == 2)
    );
}

#[test]
fn too_many_sends_are_put_off_and_three_times_too_many_close() {
    let mut world = World::new();
    let room = world.room(5, &[1]);
    let slot = world.online(1);
    for _ in 0..25 {
        world.send(slot, room);
    }
    world.settle();
    let updates = world.take(slot);
    let late: Vec<&wire::Error> = updates
        .iter()
        .filter_map(|u| {
            if let Update::Error(e) = u {
                Some(e)
            } else {
                None
            }
        })
        .collect();
    assert_eq!(late.len(), 5);
    assert!(
        late.iter()
            .all(|e| e.code == "rate_limited" && e.retry_after_ms > 0 && e.counter > 20)
    );
    assert_eq!(
        updates
            .iter()
            .filter(|u| matches!(u, Update::Ack(_)))
            .count(),
        20
    );
    for _ in 0..40 {
        world.send(slot, room);
    }
    assert_eq!(world.closed(slot), Some(CloseCode::Rate));
}

#[test]
fn a_log_that_takes_nothing_is_told_for_each_send_and_order_survives() {
    for (error, code) in [
        (LogError::Full, "storage_full"),
        (LogError::Unavailable("queue".to_owned()), "unavailable"),
    ] {
        let mut world = World::new();
        let room = world.room(5, &[1]);
        let slot = world.online(1);
        world.out.log_fails = Some(error);
        let (first, second) = (world.next_send(slot, room), world.next_send(slot, room));
        let of = |send: &wire::Send| wire::Command {
            r#ref: 0,
            command: Some(Command::Send(send.clone())),
        };
        world.commands(slot, vec![of(&first), of(&second)]);
        assert_eq!(
            world.out.appends.len(),
            1,
            "one append for all sends of a turn"
        );
        world.settle();
        let updates = world.take(slot);
        assert_eq!(errors(&updates), [code, code]);
        assert!(
            matches!(&updates[1], Update::Error(e) if e.counter == 2 && e.retry_after_ms > 0 && e.sender == first.sender)
        );
        // While the log is known to be closed nothing is appended; later the second is out of order.
        world.commands(slot, vec![of(&second)]);
        assert_eq!(errors(&world.take(slot)), [code]);
        assert_eq!(world.out.appends.len(), 1);
        world.pass(1);
        world.commands(slot, vec![of(&second)]);
        world.settle();
        let status = |updates: Vec<Update>| match &updates[..] {
            [Update::Ack(ack)] => (ack.status(), ack.counter),
            other => panic!("{other:?}"),
        };
        assert_eq!(status(world.take(slot)), (wire::Status::Gap, 0));
        world.commands(slot, vec![of(&first), of(&second)]);
        world.settle();
        let acks: Vec<u64> = world
            .take(slot)
            .iter()
            .filter_map(|u| {
                if let Update::Ack(a) = u {
                    Some(a.counter)
                } else {
                    None
                }
            })
            .collect();
        assert_eq!(acks, [1, 2]);
    }
}

#[test]
fn what_is_not_the_users_looks_like_what_does_not_exist() {
    let mut world = World::new();
    let (others, mine) = (world.room(5, &[2]), world.room(6, &[1]));
    let slot = world.online(1);
    for conversation in [others, ConversationId(404)] {
        let c = conversation.0;
        for command in [
            Command::Delivered(wire::Delivered {
                conversation: c,
                seq: 1,
            }),
            Command::Read(wire::Read {
                conversation: c,
                seq: 1,
                message_id: Default::default(),
            }),
            Command::Read(wire::Read {
                conversation: c,
                seq: 0,
                message_id: vec![1; 16].into(),
            }),
            Command::Typing(wire::Typing {
                conversation: c,
                on: true,
            }),
            Command::History(wire::History {
                conversation: c,
                before: 9,
                after: 0,
                limit: 9,
            }),
        ] {
            world.command(slot, 4, command.clone());
            world.settle();
            let updates = world.take(slot);
            assert_eq!(errors(&updates), ["forbidden"], "{command:?}: {updates:?}");
        }
        world.send(slot, conversation);
        world.settle();
        let updates = world.take(slot);
        assert!(
            matches!(&updates[..], [Update::Ack(ack)] if ack.status() == wire::Status::Over && ack.seq == 0)
        );
    }
    assert_eq!(world.core.metrics().refusals(ErrorCode::Forbidden), 10);
    world.delivered(slot, mine, 9);
    assert_eq!(
        errors(&world.take(slot)),
        [""; 0],
        "what it names may be on its way"
    );
    world.pass(6);
    assert_eq!(errors(&world.take(slot)), ["bad_cursor"]);
    assert!(
        !world
            .out
            .to_router
            .iter()
            .any(|m| matches!(m, ToRouter::Cursors(_)))
    );
    for _ in 0..60 {
        world.delivered(slot, others, 1);
    }
    assert_eq!(world.closed(slot), Some(CloseCode::Forbidden));
}

#[test]
fn where_others_are_there_sessions_are_served_until_they_were_told_to_leave() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let slot = world.online(1);
    let silent = world.connect(Format::Proto);
    world.core.drain_begin(&mut world.out, true);
    let updates = world.take(slot);
    let told = updates.iter().find_map(|u| match u {
        Update::Reconnect(r) => Some(u64::from(r.after_ms)),
        _ => None,
    });
    let seconds = told.expect("told when to come back") / 1000;
    world.pass(1);
    assert_eq!(world.closed(silent), Some(CloseCode::Restart));
    for _ in 1..seconds {
        world.pass(1);
        assert_eq!(world.closed(slot), None);
    }
    world.send(slot, room);
    world.settle();
    let updates = world.take(slot);
    assert!(updates.iter().any(|u| matches!(u, Update::Ack(_))));
    world.pass(2);
    assert_eq!(world.closed(slot), Some(CloseCode::Restart));
    assert!(world.core.is_drained());
}

#[test]
fn a_draining_worker_answers_what_it_took_and_sends_clients_away() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2, 3, 4]);
    let slots: Vec<_> = (1..=4).map(|user| world.online(user)).collect();
    world.send(slots[0], room);
    world.core.drain_begin(&mut world.out, false);
    let mut afters: Vec<u32> = Vec::new();
    for &slot in &slots {
        let updates = world.take(slot);
        let after = updates.iter().find_map(|u| {
            if let Update::Reconnect(r) = u {
                Some(r.after_ms)
            } else {
                None
            }
        });
        afters.push(after.expect("told when to come back"));
    }
    assert!(afters.iter().all(|&a| a < 30_000));
    afters.sort_unstable();
    afters.dedup();
    assert!(afters.len() > 2, "{afters:?}");
    world.out.now += SECOND;
    world.core.tick(&mut world.out);
    assert_eq!(world.closed(slots[0]), None, "a send isn't answered");
    world.settle();
    assert!(
        world
            .take(slots[0])
            .iter()
            .any(|u| matches!(u, Update::Ack(_)))
    );
    world.pass(1);
    for &slot in &slots {
        assert_eq!(world.closed(slot), Some(CloseCode::Restart));
    }
    assert!(world.core.is_drained());
    let late = world.connect(Format::Proto);
    assert_eq!(world.closed(late), Some(CloseCode::Restart));
}

#[test]
fn a_message_of_the_other_type_closes() {
    let mut world = World::new();
    let slot = world.login(1, 10);
    world
        .core
        .message(&mut world.out, slot, Opcode::Text, b"{}");
    assert_eq!(world.closed(slot), Some(CloseCode::WrongType));
    assert_eq!(
        GatewayMetrics::closes(world.core.metrics(), CloseCode::WrongType),
        1
    );
}
