//! Features that are less than usual: who is told, and what is left out.

use tidings_core::ids::UserId;
use tidings_core::ports::peers::ToGateway;
use tidings_core::ports::registry::{Presence, UserPresence};
use tidings_core::rows::CursorRow;
use tidings_protocol::Format;
use tidings_protocol::wire::{self, Feature, FeatureState, Mode, command::Command, update::Update};

use super::outside::Input;
use super::world::{World, seqs};

fn set(world: &mut World, feature: Feature, state: FeatureState) {
    let mode = Mode {
        feature: feature.into(),
        state: state.into(),
        since: 7,
    };
    world.core.mode_changed(&mut world.out, mode);
}

fn modes(updates: &[Update]) -> Vec<(Feature, FeatureState)> {
    let modes = updates.iter().filter_map(|u| match u {
        Update::Mode(m) => Some((m.feature(), m.state())),
        _ => None,
    });
    modes.collect()
}

#[test]
fn a_change_is_told_once_to_all_and_to_those_who_come_later() {
    let mut world = World::new();
    world.room(5, &[1, 2]);
    let (proto, json) = (world.online(1), world.login_as(Format::Json, 2, 20));
    world.take(proto);
    world.take(json);
    let reduced = (Feature::Presence, FeatureState::Reduced);
    for _ in 0..2 {
        set(&mut world, reduced.0, reduced.1);
    }
    assert_eq!(modes(&world.take(proto)), [reduced]);
    assert_eq!(modes(&world.take(json)), [reduced]);
    let late = world.login(3, 30);
    assert_eq!(modes(&world.take(late)), [reduced], "it came with ready");
    set(&mut world, Feature::Presence, FeatureState::Normal);
    let normal = (Feature::Presence, FeatureState::Normal);
    assert_eq!(modes(&world.take(late)), [normal]);
    let later = world.login(1, 11);
    assert_eq!(modes(&world.take(later)), []);
}

#[test]
fn typing_that_is_off_goes_nowhere_and_messages_go_on() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let (one, two) = (world.online(1), world.online(2));
    world.take(two);
    set(&mut world, Feature::Typing, FeatureState::Off);
    world.out.to_router.clear();
    let typing = wire::Typing {
        conversation: room.0,
        on: true,
    };
    world.command(one, 1, Command::Typing(typing));
    assert!(world.out.to_router.is_empty(), "{:?}", world.out.to_router);
    world.out.inbox.push_back(Input::Router(ToGateway::Typing {
        conversation: room,
        user: UserId(1),
        on: true,
    }));
    world.send(one, room);
    world.settle();
    let told = world.take(two);
    assert!(!told.iter().any(|u| matches!(u, Update::Typing(_))));
    assert_eq!(seqs(&told, room), [2]);
}

#[test]
fn receipts_that_are_reduced_come_together_later() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2, 3]);
    let one = world.online(1);
    set(&mut world, Feature::Receipts, FeatureState::Reduced);
    world.take(one);
    let receipts = |updates: &[Update]| -> Vec<(u64, u64, u64)> {
        let all = updates.iter().filter_map(|u| match u {
            Update::Receipts(r) => Some(&r.receipts),
            _ => None,
        });
        all.flatten()
            .map(|r| (r.user, r.delivered, r.read))
            .collect()
    };
    for (user, delivered, read) in [(2, 1, 0), (3, 1, 1), (2, 1, 1)] {
        let cursor = CursorRow {
            conversation: room,
            user: UserId(user),
            delivered,
            read,
        };
        world
            .out
            .inbox
            .push_back(Input::Router(ToGateway::Receipts {
                conversation: room,
                cursors: vec![cursor].into(),
            }));
        world.settle();
    }
    assert_eq!(receipts(&world.take(one)), []);
    set(&mut world, Feature::Receipts, FeatureState::Normal);
    assert_eq!(receipts(&world.take(one)), [(2, 1, 1), (3, 1, 1)]);
}

#[test]
fn presence_that_is_reduced_is_told_anew_afterwards() {
    let mut world = World::new();
    world.room(5, &[1, 2]);
    let one = world.online(1);
    world.command(one, 3, Command::Watch(wire::Watch { users: vec![2] }));
    world.settle();
    world.pass(2);
    for (request, _) in std::mem::take(&mut world.out.presences) {
        world
            .core
            .presence_answered(&mut world.out, request, &[], Some(&[]));
    }
    world.pass(2);
    assert!(world.out.presences.is_empty(), "nobody asks any more");
    set(&mut world, Feature::Presence, FeatureState::Reduced);
    world.take(one);
    let online = UserPresence {
        user: UserId(2),
        state: Presence::Online,
        last_seen: 0,
    };
    world.core.presence_changed(&mut world.out, &[online]);
    assert!(world.take(one).is_empty());
    set(&mut world, Feature::Presence, FeatureState::Normal);
    world.out.presences.clear();
    world.pass(2);
    let asked: Vec<&Vec<UserId>> = world.out.presences.iter().map(|(_, users)| users).collect();
    assert_eq!(asked, [&vec![UserId(2)]]);
}

#[test]
fn history_that_is_reduced_comes_in_small_pages() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let one = world.online(1);
    for n in 0..60 {
        world.send(one, room);
        world.settle();
        if n % 15 == 0 {
            world.pass(1);
        }
    }
    set(&mut world, Feature::History, FeatureState::Reduced);
    world.take(one);
    let ask = wire::History {
        conversation: room.0,
        before: 0,
        after: 0,
        limit: 50,
    };
    world.command(one, 9, Command::History(ask));
    world.settle();
    let told = world.take(one);
    let page = told.iter().find_map(|u| match u {
        Update::HistoryPage(page) => Some(page),
        _ => None,
    });
    let page = page.expect("history is answered");
    assert_eq!((page.from, page.to, page.events.len()), (1, 20, 20));
}
