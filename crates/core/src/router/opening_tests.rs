//! Who comes to a conversation that the router doesn't know: which rows are read, and how often.

use super::Config;
use super::tests::read_nothing;
use crate::ids::*;
use crate::path::{Effect, Router};
use crate::ports::peers::{ToGateway, ToRouter};
use crate::record::Role;
use crate::rows::*;

#[test]
fn all_who_open_a_conversation_meanwhile_are_read_together() {
    let (gateway, room, start) = (GatewayId(1), ConversationId(7), 1_700_000_000_000_000);
    let mut router = Router::new(
        Partition(0),
        Position::default(),
        Position::default(),
        Config::default(),
    );
    for user in 1..=50 {
        let open = ToRouter::Open {
            request: user,
            user: UserId(user),
            conversations: vec![room],
        };
        router.peer(gateway, open, start);
    }
    let (mut reads, mut opened) = (Vec::new(), 0);
    loop {
        let effects: Vec<Effect> = router.effects().collect();
        if effects.is_empty() {
            break;
        }
        for effect in effects {
            match effect {
                Effect::ReadState { load, keys, .. } => {
                    reads.push(keys.len());
                    router.state_read(load, Some(vec![None; keys.len()]), start);
                }
                Effect::ReadCursors { load, users, .. } => {
                    reads.push(users.len());
                    router.cursors_read(load, Some(Vec::new()), start);
                }
                Effect::Send {
                    message: ToGateway::Opened { .. },
                    ..
                } => opened += 1,
                _ => {}
            }
        }
    }
    // The head and the first user, then all who came while that was read.
    assert_eq!(reads, [2, 1, 49, 49]);
    assert_eq!(opened, 50);
}

/// A store that reads many rows at once is asked for all members when the first of them comes, and no more.
#[test]
fn where_rows_come_together_all_members_are_read_once() {
    let (gateway, room, start) = (GatewayId(1), ConversationId(7), 1_700_000_000_000_000);
    let at = |offset| Position { epoch: 1, offset };
    let config = Config {
        members_together: true,
        ..Config::default()
    };
    let grant = |user| StateRow {
        conversation: room,
        key: StateKey::Grant(UserId(user)),
        position: at(5),
        ts: start,
        value: StateValue::Grant(GrantState {
            role: Role::Member,
            ..GrantState::default()
        }),
    };
    let open = |router: &mut Router, user| {
        let open = ToRouter::Open {
            request: user,
            user: UserId(user),
            conversations: vec![room],
        };
        router.peer(gateway, open, start);
        router.effects().collect::<Vec<_>>()
    };
    let told = |effects: &[Effect]| {
        let told = effects.iter().find_map(|effect| match effect {
            Effect::Send {
                message: ToGateway::Opened { states, .. },
                ..
            } => Some((states[0].grant.role, states[0].cursor.delivered)),
            _ => None,
        });
        told.unwrap_or_else(|| panic!("no answer: {effects:?}"))
    };
    let asks = |effects: Vec<Effect>| match &effects[..] {
        [Effect::ReadMembers { load, .. }] => *load,
        other => panic!("{other:?}"),
    };

    let mut router = Router::new(Partition(0), at(9), at(9), config.clone());
    let load = asks(open(&mut router, 1));
    let found = MemberRows {
        state: vec![grant(1), grant(2), grant(3)],
        cursors: vec![CursorRow {
            conversation: room,
            user: UserId(3),
            delivered: 4,
            read: 2,
        }],
    };
    router.members_read(load, Some(Some(found.clone())), start);
    assert_eq!(
        told(&router.effects().collect::<Vec<_>>()),
        (Role::Member, 0)
    );
    assert_eq!(told(&open(&mut router, 2)), (Role::Member, 0));
    assert_eq!(told(&open(&mut router, 3)), (Role::Member, 4));
    // Who has no row is asked for: a member may have come since.
    let [Effect::ReadState { load, keys, .. }] = &open(&mut router, 4)[..] else {
        panic!("not asked for")
    };
    assert_eq!(*keys, [StateKey::Grant(UserId(4))]);
    router.state_read(*load, Some(vec![Some(grant(4))]), start);
    let left = read_nothing(&mut router, start);
    assert_eq!(told(&left), (Role::Member, 0));

    // Too many, and a store that doesn't answer.
    let mut router = Router::new(Partition(0), at(9), at(9), config.clone());
    let load = asks(open(&mut router, 1));
    router.members_read(load, None, start);
    assert_eq!(router.effects().count(), 0);
    let later = start + config.store_retry_after;
    router.tick(later);
    let is_read = |effect: &Effect| matches!(effect, Effect::ReadMembers { .. });
    let load = asks(router.effects().filter(is_read).collect());
    router.members_read(load, Some(None), later);
    assert_eq!(told(&read_nothing(&mut router, later)), (Role::None, 0));
    assert!(!open(&mut router, 2).iter().any(is_read), "asked once");

    // Rows that another router has written since are taken back, whoever they are of.
    let mut router = Router::new(Partition(0), at(3), at(3), config);
    let load = asks(open(&mut router, 1));
    router.members_read(load, Some(Some(found)), start);
    let asked: Vec<Effect> = router.effects().collect();
    assert!(
        matches!(&asked[..], [Effect::ReadSince { from, .. }] if *from == at(3)),
        "{asked:?}"
    );
}
