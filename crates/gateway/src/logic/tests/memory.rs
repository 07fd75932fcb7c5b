//! What an idle session costs in the logic's own structures: the goal is 0.4 KB with five
//! conversations, of 1.0 KB for everything.

use super::super::index::{Conversation, Member};
use super::super::session::{Joined, Session};
use super::world::World;

#[test]
fn sizes_are_what_the_budget_was_made_with() {
    assert!(
        size_of::<Option<Session>>() <= 96,
        "{}",
        size_of::<Option<Session>>()
    );
    assert_eq!(size_of::<Joined>(), 8);
    assert_eq!(size_of::<Member>(), 16);
    assert!(size_of::<slab::Slab<Conversation>>() <= 48);
    assert!(
        size_of::<Conversation>() <= 56,
        "{}",
        size_of::<Conversation>()
    );
}

#[test]
fn an_idle_session_with_five_conversations_stays_within_its_budget() {
    const SESSIONS: u64 = 2_000;
    let mut world = World::new();
    // Four conversations of two, and a group of fifty: each user is in five.
    for user in 0..SESSIONS {
        for k in 0..4 {
            let other = (user ^ (1 << k)) % SESSIONS;
            if user < other {
                world.room(1_000_000 + user * 4 + k, &[user + 1, other + 1]);
            }
        }
    }
    for group in 0..SESSIONS / 50 {
        let members: Vec<u64> = (group * 50..(group + 1) * 50)
            .map(|user| user + 1)
            .collect();
        world.room(2_000_000 + group, &members);
    }
    let slots: Vec<_> = (0..SESSIONS).map(|user| world.online(user + 1)).collect();
    // After traffic, and a quiet while.
    world.send_elsewhere(1, tidings_core::ids::ConversationId(2_000_000));
    world.settle();
    for &slot in &slots[..50] {
        world.delivered(slot, tidings_core::ids::ConversationId(2_000_000), 2);
    }
    world.pass(45);
    let core = &world.core;
    let bytes = core.sessions.heap_bytes() + core.index.heap_bytes();
    let each = bytes / slots.len();
    assert!(each <= 400, "{each} bytes a session");
    assert!(core.requests.is_empty() && core.loads.is_empty() && core.cursors.is_empty());
}
