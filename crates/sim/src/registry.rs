//! The registry as a model: each device's sessions, and what may become of a call whose answer is lost.

use std::collections::BTreeMap;

use tidings_core::ids::SessionId;

use crate::random::Random;

/// A session, and the gateway that has it.
pub(crate) type Entered = (usize, SessionId);

/// When a call whose answer is lost is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    AtOnce,
    Late,
    Never,
}

impl Fate {
    pub fn draw(random: &mut Random) -> Fate {
        let all = [Fate::AtOnce, Fate::Late, Fate::Never];
        random.pick(&all).unwrap_or(Fate::Never)
    }
}

/// Who is connected where.
#[derive(Default)]
pub(crate) struct SimRegistry {
    sessions: BTreeMap<u64, Vec<Entered>>,
    /// Sessions whose last entry may not have come, and when that was.
    missed: BTreeMap<SessionId, u64>,
    /// Planted: whoever removes one session of a device removes all.
    pub removes_all: bool,
}

impl SimRegistry {
    /// A device's sessions, in the order they came.
    pub fn of(&self, device: u64) -> &[Entered] {
        self.sessions.get(&device).map_or(&[], Vec::as_slice)
    }

    /// Enters one; those that came before it. A sign of life of one that is there changes nothing.
    pub fn put(&mut self, device: u64, entered: Entered) -> Vec<Entered> {
        let sessions = self.sessions.entry(device).or_default();
        if sessions.contains(&entered) {
            return Vec::new();
        }
        let older = sessions.clone();
        sessions.push(entered);
        older
    }

    /// This session's entry has an uncertain fate: the next sign of life enters it again.
    pub fn missed(&mut self, session: SessionId, now: u64) {
        self.missed.insert(session, now);
    }

    /// Whether a session may be missing still, since its next sign of life isn't due before `after`.
    pub fn may_miss(&self, session: SessionId, after: u64) -> bool {
        self.missed.get(&session).is_some_and(|&at| at > after)
    }

    /// Removes exactly this one.
    pub fn remove(&mut self, device: u64, session: SessionId) {
        let removes_all = self.removes_all;
        if let Some(sessions) = self.sessions.get_mut(&device) {
            sessions.retain(|entry| entry.1 != session && !removes_all);
        }
    }
}
