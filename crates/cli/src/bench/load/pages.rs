//! Catching up: pages of a sync, and older ones by `history`, no faster than the server's limit of asks.

use tidings_protocol::wire::command::Command;
use tidings_protocol::wire::{Error, Event, History, HistoryPage, SyncDone, SyncPage};

use super::clients::Clients;
use super::ledger::{Membership, Way};
use super::session::State;

/// Between two asks of one session: the server takes 20 a second.
const ASK_EVERY_NS: u64 = 51_000_000;

impl Clients {
    pub(super) fn sync_page(&mut self, at: usize, page: SyncPage, now: u64) {
        let session = &mut self.sessions[at];
        if session.whole {
            let first_page_us = now.saturating_sub(session.asked_ns) / 1000;
            if self.done.first_page_us == 0 {
                self.done.first_page_us = first_page_us.max(1);
            }
        }
        let first = page.events.first().map_or(page.head + 1, |e| e.seq);
        let place = session.find(page.conversation).unwrap_or_else(|| {
            let before = if session.whole {
                page.visible_from
            } else {
                first
            };
            session
                .memberships
                .push(Membership::new(page.conversation, before.saturating_sub(1)));
            session.memberships.len() - 1
        });
        let m = &mut session.memberships[place];
        m.grant = page.grant;
        let wanted = session.whole || !session.fresh;
        if page.missing_from != 0 && wanted && m.fetch.is_none() && first > page.missing_from {
            m.fetch = Some((page.missing_from - 1, first - 1));
            self.asks.push((
                now.max(session.asked_ns + ASK_EVERY_NS),
                at,
                page.conversation,
            ));
        }
        self.ledger.head(page.conversation, page.head);
        self.paged(at, place, &page.events);
    }

    fn paged(&mut self, at: usize, place: usize, events: &[Event]) {
        let m = &mut self.sessions[at].memberships[place];
        for event in events {
            self.done.paged += u64::from(self.ledger.take(at as u32, m, event.seq, Way::Paged));
        }
    }

    pub(super) fn sync_done(&mut self, at: usize, done: &SyncDone) {
        if done.reset {
            self.problem("the server's log has another epoch".into());
        }
        if !done.complete {
            self.problem("a sync was not complete".into());
            // Conversation 0: the whole sync.
            self.asks.push((self.now() + 250_000_000, at, 0));
            return;
        }
        self.sessions[at].synced = true;
        self.perhaps_live(at);
    }

    fn perhaps_live(&mut self, at: usize) {
        let session = &mut self.sessions[at];
        if session.state == State::Syncing
            && session.synced
            && session.memberships.iter().all(|m| m.fetch.is_none())
        {
            session.state = State::Live;
            session.fresh = false;
            self.is_live(at);
        }
    }

    pub(super) fn history_page(&mut self, at: usize, page: HistoryPage) {
        let now = self.now();
        let Some(place) = self.sessions[at].find(page.conversation) else {
            return;
        };
        self.ledger.head(page.conversation, page.head);
        self.paged(at, place, &page.events);
        let session = &mut self.sessions[at];
        let m = &mut session.memberships[place];
        let Some((after, upto)) = m.fetch else { return };
        if page.to >= upto {
            m.fetch = None;
            return self.perhaps_live(at);
        }
        m.fetch = Some((page.to.max(after), upto));
        self.asks.push((
            now.max(session.asked_ns + ASK_EVERY_NS),
            at,
            page.conversation,
        ));
    }

    /// Sends the asks whose time has come.
    pub(super) fn ask(&mut self) {
        let now = self.now();
        let mut i = 0;
        while i < self.asks.len() {
            let (due, at, conversation) = self.asks[i];
            if due > now {
                i += 1;
                continue;
            }
            self.asks.swap_remove(i);
            if self.sessions[at].stream.is_none() {
                continue;
            }
            if conversation == 0 {
                self.sync(at);
                continue;
            }
            let m = self.sessions[at]
                .find(conversation)
                .map(|place| &self.sessions[at].memberships[place]);
            if let Some((after, upto)) = m.and_then(|m| m.fetch) {
                self.sessions[at].asked_ns = now;
                let limit = (upto - after).min(500) as u32;
                self.command(
                    at,
                    vec![Command::History(History {
                        conversation,
                        before: 0,
                        after,
                        limit,
                    })],
                );
            }
        }
    }

    /// An error: asks that came too fast are repeated, all else is a problem.
    pub(super) fn refused(&mut self, at: usize, error: &Error) {
        if error.counter != 0 && self.refused_send(at, error) {
            return;
        }
        self.problem(format!("{}: {}", error.code, error.message));
        if error.counter != 0 {
            return;
        }
        let session = &self.sessions[at];
        let again = self.now() + u64::from(error.retry_after_ms.max(100)) * 1_000_000;
        if error.retry_after_ms != 0 && session.state == State::Syncing {
            let fetching: Vec<u64> = session
                .memberships
                .iter()
                .filter(|m| m.fetch.is_some())
                .map(|m| m.conversation)
                .collect();
            match fetching.is_empty() {
                true => self.asks.push((again, at, 0)),
                false => self
                    .asks
                    .extend(fetching.into_iter().map(|c| (again, at, c))),
            }
        }
    }
}
