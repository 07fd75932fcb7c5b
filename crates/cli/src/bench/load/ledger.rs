//! What each session has of each conversation, and whether it came once and in order.

use std::collections::{HashMap, HashSet};

/// One session's place in one conversation.
pub struct Membership {
    pub conversation: u64,
    /// 0: not told yet, or may only read.
    pub grant: u64,
    /// The highest seq this session has.
    pub cursor: u64,
    /// The highest seq that was pushed. Acks of own messages may come before events of lower seqs;
    /// events among themselves may not.
    pub pushed: u64,
    /// What was last confirmed to the server.
    pub confirmed: u64,
    /// The last message numbered here, its id, and how far they are acknowledged.
    pub counter: u64,
    pub id: u64,
    pub acked: u64,
    /// Own messages whose seq no ack named, since one ack covered several.
    pub unnamed: u64,
    /// The seq of the last own message an ack named. A server that reads what it missed may push that
    /// once more: the ack stood for it, the event is the same.
    pub own: u64,
    /// Older events being fetched: after this one, up to that one.
    pub fetch: Option<(u64, u64)>,
}

impl Membership {
    pub fn new(conversation: u64, cursor: u64) -> Membership {
        Membership {
            conversation,
            grant: 0,
            cursor,
            pushed: 0,
            confirmed: cursor,
            counter: 0,
            id: 0,
            acked: 0,
            unnamed: 0,
            own: 0,
            fetch: None,
        }
    }
}

/// How an event came.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By itself.
    Pushed,
    /// By itself, to a session that is just syncing: the same event may also stand in a page.
    PushedEarly,
    /// In a page that was asked for.
    Paged,
    /// As the ack of this session's own message, which isn't sent back to it.
    Own,
}

/// Counts over all sessions.
#[derive(Default)]
pub struct Ledger {
    /// Highest seq of each conversation that anybody has seen.
    heads: HashMap<u64, u64>,
    /// Seqs passed over, by session and conversation.
    missing: HashSet<(u32, u64, u64)>,
    pub duplicated: u64,
    pub reordered: u64,
}

impl Ledger {
    /// Takes note of an event; whether it is new to the session.
    pub fn take(&mut self, session: u32, m: &mut Membership, seq: u64, way: Way) -> bool {
        if way == Way::Own {
            m.own = seq;
        }
        let is_late = way == Way::Pushed && seq < m.pushed;
        if matches!(way, Way::Pushed | Way::PushedEarly) {
            m.pushed = seq.max(m.pushed);
        }
        if seq == m.cursor + 1 {
            m.cursor = seq;
        } else if seq > m.cursor {
            self.missing
                .extend((m.cursor + 1..seq).map(|s| (session, m.conversation, s)));
            m.cursor = seq;
        } else if !self.missing.is_empty() && self.missing.remove(&(session, m.conversation, seq)) {
            self.reordered += u64::from(is_late);
            return true;
        } else {
            self.duplicated += u64::from(way == Way::Pushed && seq != m.own);
            return false;
        }
        let head = self.heads.entry(m.conversation).or_default();
        *head = seq.max(*head);
        true
    }

    /// Somebody said how far a conversation goes.
    pub fn head(&mut self, conversation: u64, seq: u64) {
        let head = self.heads.entry(conversation).or_default();
        *head = seq.max(*head);
    }

    /// How many events this session doesn't have though somebody has seen as much of its conversations.
    pub fn behind(&self, session: u32, memberships: &[Membership]) -> u64 {
        let missing = self
            .missing
            .iter()
            .filter(|(of, ..)| *of == session)
            .count() as u64;
        missing + self.lost_of(memberships.iter()).0
    }

    /// Events behind the last of each, and those that are no event of theirs.
    fn lost_of<'a>(&self, memberships: impl Iterator<Item = &'a Membership>) -> (u64, u64) {
        memberships.fold((0, 0), |(behind, unnamed), m| {
            let head = self.heads.get(&m.conversation).copied().unwrap_or(0);
            (behind + head.saturating_sub(m.cursor), unnamed + m.unnamed)
        })
    }

    /// Events that these sessions don't have and should.
    pub fn lost<'a>(&self, memberships: impl Iterator<Item = &'a Membership>) -> u64 {
        let (behind, unnamed) = self.lost_of(memberships);
        (behind + self.missing.len() as u64).saturating_sub(unnamed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_anomaly_is_counted_as_what_it_is() {
        let (mut ledger, mut m) = (Ledger::default(), Membership::new(9, 0));
        for seq in [1, 2, 4] {
            assert!(ledger.take(0, &mut m, seq, Way::Pushed));
        }
        assert_eq!(ledger.lost([&m].into_iter()), 1, "3 was passed over");
        assert!(ledger.take(0, &mut m, 3, Way::Pushed));
        assert_eq!((ledger.lost([&m].into_iter()), ledger.reordered), (0, 1));
        assert!(!ledger.take(0, &mut m, 3, Way::Pushed));
        assert_eq!(ledger.duplicated, 1);
        assert!(!ledger.take(0, &mut m, 3, Way::Paged), "a page may repeat");
        assert_eq!(ledger.duplicated, 1);
        ledger.take(0, &mut m, 6, Way::Own);
        ledger.take(0, &mut m, 5, Way::Pushed);
        assert_eq!(ledger.reordered, 1, "an ack may overtake an event");
        ledger.head(9, 8);
        assert_eq!(ledger.lost([&m].into_iter()), 2, "a tail that never came");
    }
}
