//! What may become of entries whose calls fail.

use super::{Scenario, Seen, Subject, Way, calm, when};
use crate::ids::{DeviceId, GatewayId, SessionId, UserId};
use crate::ports::registry::{Registry, SessionEntry};

/// [`a_removal_held_up_never_removes_a_newer_session`].
pub const REMOVAL: Scenario = Scenario {
    name: "a removal that is held up",
    allowed: &["at once", "late", "never"],
};

/// [`an_entry_held_up_comes_late_or_never`].
pub const ENTRY: Scenario = Scenario {
    name: "an entry that is held up",
    allowed: &["at once", "late", "never"],
};

const OK: &str = "the registry answers";

fn entry(run: u64, check: u64, session: u64) -> SessionEntry {
    let user = UserId(run.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(check));
    SessionEntry {
        user,
        device: DeviceId(user.0 ^ 1),
        session: SessionId(user.0.wrapping_add(session)),
        gateway: GatewayId(3),
    }
}

async fn sessions(registry: &dyn Registry, of: SessionEntry) -> Vec<SessionEntry> {
    registry.sessions_of(of.user).await.expect(OK)
}

/// A gateway's word that a session ended comes when the device has long another one.
pub async fn a_removal_held_up_never_removes_a_newer_session(
    subject: &dyn Subject<dyn Registry>,
    run: u64,
) -> Seen {
    let (here, there) = (subject.here(), subject.there());
    let (old, new) = (entry(run, 1, 1), entry(run, 1, 2));
    here.put_session(old).await.expect(OK);
    subject.set(Way::Held);
    let removed = here.remove_session(old.user, old.session, 7).await;
    removed.expect_err("no answer comes");
    there.put_session(new).await.expect(OK);
    let at_once = !sessions(there, new).await.contains(&old);
    subject.set(Way::Open);
    for _ in 0..12 {
        assert!(sessions(there, new).await.contains(&new));
        subject.pause().await;
    }
    let found = sessions(there, new).await;
    there
        .remove_session(old.user, old.session, 8)
        .await
        .expect(OK);
    assert_eq!(sessions(there, new).await, [new], "it is exactly its own");
    when(at_once, !found.contains(&old))
}

/// A session's entry comes when the session is gone: a ghost, until its gateway removes it or it
/// runs out.
pub async fn an_entry_held_up_comes_late_or_never(
    subject: &dyn Subject<dyn Registry>,
    run: u64,
) -> Seen {
    let (here, there) = (subject.here(), subject.there());
    let ghost = entry(run, 2, 1);
    subject.set(Way::Held);
    here.put_session(ghost).await.expect_err("no answer comes");
    let at_once = !sessions(there, ghost).await.is_empty();
    subject.set(Way::Open);
    calm(subject).await;
    let found = sessions(there, ghost).await;
    assert!(found.is_empty() || found == [ghost], "{found:?}");
    while here
        .remove_session(ghost.user, ghost.session, 9)
        .await
        .is_err()
    {
        subject.pause().await;
    }
    assert_eq!(sessions(there, ghost).await, []);
    when(at_once, !found.is_empty())
}
