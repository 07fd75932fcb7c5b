//! Servers and clients of two versions of the protocol, side by side as in a rolling upgrade.

use tidings_core::ids::ConversationId;
use tidings_protocol::wire::{self, command::Command, update::Update};
use tidings_protocol::{CloseCode, Format, Versions};

use super::super::Slot;
use super::world::{World, seqs};

const OLD: Versions = Versions {
    oldest: 1,
    newest: 1,
};
const BOTH: Versions = Versions {
    oldest: 1,
    newest: 2,
};
const NEW_ONLY: Versions = Versions {
    oldest: 2,
    newest: 2,
};

/// A gateway that speaks these; the newer one differs by nothing else.
fn gateway(versions: Versions, session_base: u64) -> World {
    World::with(|settings| {
        settings.versions = versions;
        settings.session_base = session_base;
        // All that is sent here is sent at one instant.
        settings.sends_per_second = 0;
    })
}

/// Signs in; the version that `hello` tells and the one that `ready` does.
fn sign_in(world: &mut World, format: Format, user: u64, client: Versions) -> (Slot, u32, u32) {
    let slot = world.connect(format);
    let auth = wire::Auth {
        token: format!("{user}/{user}0"),
        device: "test".to_owned(),
        version: client.newest,
        oldest: client.oldest_said(),
    };
    world.command(slot, 1, Command::Auth(auth));
    world.settle();
    let (mut hello, mut ready) = (0, 0);
    for update in world.take(slot) {
        match update {
            Update::Hello(said) => hello = said.version,
            Update::Ready(said) => ready = said.version.max(1),
            _ => {}
        }
    }
    (slot, hello, ready)
}

#[test]
fn client_and_server_speak_the_highest_version_that_both_know() {
    for format in [Format::Proto, Format::Json] {
        for (server, client, spoken) in [
            (OLD, OLD, 1),
            (OLD, BOTH, 1),
            (BOTH, OLD, 1),
            (BOTH, BOTH, 2),
            (BOTH, NEW_ONLY, 2),
        ] {
            let mut world = gateway(server, 1_000);
            let (slot, hello, ready) = sign_in(&mut world, format, 1, client);
            assert_eq!(
                (hello, ready),
                (server.newest, spoken),
                "{server:?} {client:?}"
            );
            assert_eq!(world.closed(slot), None);

            // A fresh token changes nothing of it, whatever it says.
            let auth = wire::Auth {
                token: "1/10".to_owned(),
                ..wire::Auth::default()
            };
            world.command(slot, 2, Command::Auth(auth));
            world.settle();
            let again = world.take(slot);
            let [Update::Ready(ready)] = &again[..] else {
                panic!("{again:?}");
            };
            assert_eq!((ready.version, world.closed(slot)), (0, None));
        }
    }
}

#[test]
fn without_a_common_version_the_connection_closes_with_4010() {
    let far = Versions {
        oldest: 7,
        newest: u32::MAX,
    };
    let nonsense = Versions {
        oldest: 5,
        newest: 1,
    };
    for (server, client) in [
        (OLD, NEW_ONLY),
        (NEW_ONLY, OLD),
        (BOTH, far),
        (BOTH, nonsense),
    ] {
        let mut world = gateway(server, 1_000);
        let (slot, hello, _) = sign_in(&mut world, Format::Json, 1, client);
        assert_eq!(hello, server.newest, "the client learns what would do");
        assert_eq!(
            world.closed(slot),
            Some(CloseCode::Version),
            "{server:?} {client:?}"
        );
        assert_eq!(
            world.out.authentications, 0,
            "the token isn't even looked at"
        );
    }
}

/// What one gateway has appended since the last call is routed for the other one, too.
fn carry(from: &mut World, to: &mut World) {
    for (_, records) in std::mem::take(&mut from.out.appends) {
        for record in records {
            to.out.route(&record.payload);
        }
    }
    to.settle();
}

#[test]
fn clients_of_two_versions_at_gateways_of_two_versions_share_a_conversation_without_loss() {
    let room = ConversationId(5);
    let (mut old, mut new) = (gateway(OLD, 1_000), gateway(BOTH, 1 << 40));
    for world in [&mut old, &mut new] {
        world.room(5, &[1, 2, 3, 4]);
    }
    // At the old gateway both speak version 1, at the new one each its own.
    let at_old = [
        sign_in(&mut old, Format::Json, 1, OLD),
        sign_in(&mut old, Format::Proto, 2, BOTH),
    ];
    let at_new = [
        sign_in(&mut new, Format::Json, 3, OLD),
        sign_in(&mut new, Format::Proto, 4, BOTH),
    ];
    assert_eq!(at_old.map(|(_, _, spoken)| spoken), [1, 1]);
    assert_eq!(at_new.map(|(_, _, spoken)| spoken), [1, 2]);
    let slots = |clients: [(Slot, u32, u32); 2]| clients.map(|(slot, ..)| slot);
    let (at_old, at_new) = (slots(at_old), slots(at_new));
    for (world, clients) in [(&mut old, at_old), (&mut new, at_new)] {
        for slot in clients {
            world.sync(slot, &[]);
            world.settle();
            world.take(slot);
        }
    }

    const ROUNDS: u64 = 25;
    let mut acks = 0;
    let mut heard: Vec<Vec<u64>> = vec![Vec::new(); 4];
    for round in 0..ROUNDS {
        for at in [0, 1] {
            old.send(at_old[at], room);
            old.settle();
            carry(&mut old, &mut new);
            new.send(at_new[at], room);
            new.settle();
            carry(&mut new, &mut old);
        }
        for (at, heard) in heard.iter_mut().enumerate() {
            let updates = match at {
                0 | 1 => old.take(at_old[at]),
                _ => new.take(at_new[at - 2]),
            };
            let acked = updates.iter().filter_map(|u| match u {
                Update::Ack(ack) => Some(ack.seq),
                _ => None,
            });
            let acked: Vec<u64> = acked.collect();
            acks += acked.len() as u64;
            heard.extend(acked);
            heard.extend(seqs(&updates, room));
            assert_eq!(super::world::errors(&updates), [""; 0], "round {round}");
        }
    }
    assert_eq!(acks, 4 * ROUNDS, "every send is acknowledged once");
    // The change of members was the first event.
    let all: Vec<u64> = (2..=4 * ROUNDS + 1).collect();
    for heard in &mut heard {
        heard.sort_unstable();
        assert_eq!(*heard, all, "everybody has everything, and nothing twice");
    }
}
