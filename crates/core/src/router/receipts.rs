//! Cursors: how far members have come, coalesced, and never back.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ids::{ConversationId, Micros, UserId};
use crate::path::{Effect, Router};
use crate::ports::peers::ToGateway;
use crate::rows::CursorRow;

/// Cursors that moved since the last flush: one row a member, however often it moved.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    rows: BTreeMap<(ConversationId, UserId), CursorRow>,
    flushed: Micros,
    /// One of them says that something was read.
    has_read: bool,
    /// Since when another router may have moved cursors that are known here. Absent: since the start.
    doubted: Option<Micros>,
    /// None can have.
    trusted: bool,
    /// The next rows are read back all the same.
    check: bool,
    /// Rows on their way to the store, in order; one write at a time, so that none is told after a
    /// later one.
    flying: Vec<CursorRow>,
    /// They are read back.
    flying_checked: bool,
}

impl Dirty {
    pub fn holds(&self, id: ConversationId) -> bool {
        self.rows
            .range((id, UserId(0))..=(id, UserId(u64::MAX)))
            .next()
            .is_some()
            || self.flying.iter().any(|row| row.conversation == id)
    }

    /// Rows that the store may not have are written again with the next flush.
    fn again(&mut self, rows: Vec<CursorRow>) {
        (self.check, self.has_read) = (true, true);
        for row in rows {
            let kept = self.rows.entry((row.conversation, row.user)).or_insert(row);
            kept.delivered = kept.delivered.max(row.delivered);
            kept.read = kept.read.max(row.read);
        }
    }
}

impl Router {
    /// A member says how far it has come; the row's rows of state are known.
    pub(crate) fn cursor_moved(&mut self, row: CursorRow) {
        let conversation = self.conversation(row.conversation);
        let (head, grant) = (conversation.head(), conversation.grant(row.user));
        let upto = if grant.role.is_member() {
            head.seq
        } else {
            grant.visible_to
        };
        if row.delivered > upto || row.read > upto || grant.visible_from == 0 {
            self.counters.cursors_refused += 1;
            return;
        }
        let known = conversation.cursor(row.conversation, row.user);
        // Who has read a message has got it.
        let delivered = known.delivered.max(row.delivered).max(row.read);
        let read = known.read.max(row.read);
        if (delivered, read) == (known.delivered, known.read) {
            return;
        }
        conversation.put_cursor(row.user, delivered, read);
        self.receipts.has_read |= read > known.read;
        self.receipts.rows.insert(
            (row.conversation, row.user),
            CursorRow {
                delivered,
                read,
                ..row
            },
        );
        self.flush_cursors();
    }

    /// Stores what moved, at most so often. It is told once it is stored: what was told and then
    /// lost with a router would go back for everybody.
    pub(crate) fn flush_cursors(&mut self) {
        let since = self.now.saturating_sub(self.receipts.flushed);
        if !self.receipts.flying.is_empty() {
            if since < self.config.store_retry_after {
                return;
            }
            let unanswered = std::mem::take(&mut self.receipts.flying);
            self.receipts.again(unanswered);
        }
        let every = match self.receipts.has_read {
            true => self.config.cursor_flush_every,
            false => self.config.delivered_flush_every,
        };
        if self.receipts.rows.is_empty() || since < every {
            return;
        }
        (self.receipts.flushed, self.receipts.has_read) = (self.now, false);
        let rows: Vec<CursorRow> = std::mem::take(&mut self.receipts.rows)
            .into_values()
            .collect();
        self.receipts.flying.clone_from(&rows);
        let check = std::mem::take(&mut self.receipts.check) || !self.receipts.trusted;
        self.receipts.flying_checked = check;
        self.out.push(Effect::PutCursors { rows, check });
    }

    /// A gateway tells what it wants, so it has only now heard that this router took over: what the
    /// router before it wrote and told there may be news here.
    pub(crate) fn doubt_cursors(&mut self) {
        self.receipts.doubted = Some(self.now);
        self.receipts.trusted = false;
    }

    /// Whether the router before this one may not know yet that it is replaced: it may still answer, store and
    /// tell what the log says.
    pub fn is_in_doubt(&self) -> bool {
        !self.receipts.trusted
    }

    /// Some time after the last doubt all cursors that were read during it are forgotten, to be read
    /// once more when they are needed; from then on nobody else writes them.
    pub(crate) fn trust_cursors(&mut self) {
        let doubted = *self.receipts.doubted.get_or_insert(self.now);
        let doubt = self.now.saturating_sub(doubted) < self.config.cursor_check_for;
        if doubt || self.receipts.trusted {
            return;
        }
        self.receipts.trusted = true;
        self.receipts.check = true; // What is on its way stays known.
        let Dirty { rows, flying, .. } = &self.receipts;
        for (&id, conversation) in &mut self.conversations {
            conversation.forget_cursors(|user| {
                rows.contains_key(&(id, user))
                    || flying
                        .binary_search_by_key(&(id, user), |r| (r.conversation, r.user))
                        .is_ok()
            });
        }
    }

    /// The store has these cursors. While there is doubt `stored` is what it has of them since: a
    /// router that didn't know yet that this one has taken over may have moved them further after
    /// they were read.
    pub fn cursors_stored(&mut self, rows: Vec<CursorRow>, stored: &[CursorRow], now: Micros) {
        self.now = now;
        if rows != self.receipts.flying {
            return; // A late answer to a write that was made again since.
        }
        self.receipts.flying = Vec::new();
        if self.is_in_doubt() && !self.receipts.flying_checked {
            // Written before the doubt began, maybe by a router that was replaced for a while: told
            // as they are they could be less than what the other one told.
            self.receipts.again(rows);
            return self.flush_cursors();
        }
        for of_one in stored.chunk_by(|a, b| a.conversation == b.conversation) {
            let id = of_one[0].conversation;
            let Some(conversation) = self.conversations.get_mut(&id) else {
                continue;
            };
            for row in of_one {
                conversation.raise_cursor(row);
            }
            if conversation.head().members > self.config.receipt_members_max {
                continue;
            }
            let cursors: Arc<[CursorRow]> = Arc::from(of_one);
            for &to in &conversation.interested {
                self.out.push(Effect::Send {
                    to,
                    message: ToGateway::Receipts {
                        conversation: id,
                        cursors: cursors.clone(),
                    },
                });
            }
        }
        self.flush_cursors();
    }

    /// Cursors the store didn't take are written again with the next flush.
    pub fn cursors_refused(&mut self, rows: Vec<CursorRow>, now: Micros) {
        self.now = now;
        if rows == self.receipts.flying {
            self.receipts.flying = Vec::new();
            self.receipts.again(rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{GatewayId, Partition, Position};
    use crate::ports::peers::ToRouter;
    use crate::record::{
        Committed, Content, ConversationKind, Membership, Record, Role, RoleChange,
    };
    use crate::router::Config;

    const C: ConversationId = ConversationId(9);
    const GATEWAY: GatewayId = GatewayId(1);
    const USER: UserId = UserId(1);
    const SECOND: Micros = 1_000_000;

    /// A router whose store has nothing and takes all; cursors wait to be answered.
    struct Driven {
        router: Router,
        now: Micros,
        puts: Vec<(Vec<CursorRow>, bool)>,
        told: Vec<CursorRow>,
    }

    impl Driven {
        /// With a conversation of so many events, each a change of its only member's role.
        fn new(events: u64) -> Driven {
            let start = Position::default();
            let mut driven = Driven {
                router: Router::new(Partition(0), start, start, Config::default()),
                now: SECOND,
                puts: Vec::new(),
                told: Vec::new(),
            };
            let records = (1..=events).map(|version| {
                let role = [Role::Member, Role::Admin][(version % 2) as usize];
                let content = Content::Membership(Membership {
                    version,
                    by: UserId(0),
                    changes: vec![RoleChange { user: USER, role }],
                    kind: ConversationKind::Group,
                    title: String::new(),
                });
                let conversation = C;
                let record = Record {
                    conversation,
                    content,
                };
                let mut payload = Vec::new();
                record.encode(&mut payload);
                Committed {
                    position: Position {
                        epoch: 0,
                        offset: version,
                    },
                    appended: version,
                    payload: payload.into(),
                }
            });
            let now = driven.now;
            driven.router.records(records.collect(), now);
            driven.answer();
            driven
        }

        /// Answers what the router asks of the store, until it asks nothing.
        fn answer(&mut self) {
            loop {
                let (now, mut asked) = (self.now, false);
                for effect in self.router.effects().collect::<Vec<_>>() {
                    asked = true;
                    let router = &mut self.router;
                    match effect {
                        Effect::PutEvents { flight, .. } => router.events_stored(flight, true, now),
                        Effect::PutState { flight, .. } => router.state_stored(flight, true, now),
                        Effect::ReadState { load, keys, .. } => {
                            router.state_read(load, Some(vec![None; keys.len()]), now);
                        }
                        Effect::ReadSince { load, .. } => {
                            router.since_read(load, Some(Vec::new()), now);
                        }
                        Effect::ReadEvents { load, .. } => {
                            router.events_read(load, Some(Vec::new()), now);
                        }
                        Effect::ReadCursors { load, .. } => {
                            router.cursors_read(load, Some(Vec::new()), now);
                        }
                        Effect::PutCursors { rows, check } => self.puts.push((rows, check)),
                        Effect::Send {
                            message: ToGateway::Receipts { cursors, .. },
                            ..
                        } => self.told.extend(cursors.iter()),
                        _ => {}
                    }
                }
                if !asked {
                    return;
                }
            }
        }

        fn hear(&mut self, message: ToRouter) {
            self.router.peer(GATEWAY, message, self.now);
            self.answer();
        }

        fn pass(&mut self, time: Micros) {
            self.now += time;
            self.router.tick(self.now);
            self.answer();
        }

        fn interest() -> ToRouter {
            ToRouter::Interest {
                request: 1,
                conversations: vec![C],
            }
        }
    }

    fn cursor(delivered: u64, read: u64) -> CursorRow {
        CursorRow {
            conversation: C,
            user: USER,
            delivered,
            read,
        }
    }

    /// A router that was replaced for a while has a write on its way that isn't read back. The other
    /// one has told more meanwhile.
    #[test]
    fn what_was_written_before_a_doubt_is_read_back_before_it_is_told() {
        let mut driven = Driven::new(9);
        driven.hear(Driven::interest());
        driven.pass(61 * SECOND);
        driven.pass(SECOND);
        driven.hear(ToRouter::Cursors(vec![cursor(3, 3)]));
        driven.pass(SECOND);
        let (rows, _) = driven.puts.pop().expect("it is written");
        let now = driven.now;
        driven.router.cursors_stored(rows.clone(), &rows, now);
        driven.answer();
        assert_eq!(std::mem::take(&mut driven.told), [cursor(3, 3)]);

        driven.hear(ToRouter::Cursors(vec![cursor(5, 4)]));
        driven.pass(SECOND);
        let (rows, check) = driven.puts.pop().expect("it is written");
        assert!(!check, "nobody else writes cursors");
        driven.hear(Driven::interest());
        let now = driven.now;
        driven.router.cursors_stored(rows.clone(), &rows, now);
        driven.answer();
        assert_eq!(driven.told, [], "another may have told more");

        driven.pass(SECOND);
        let (rows, check) = driven.puts.pop().expect("it is written once more");
        assert!(check);
        let now = driven.now;
        driven.router.cursors_stored(rows, &[cursor(8, 4)], now);
        driven.answer();
        assert_eq!(driven.told, [cursor(8, 4)]);
    }
}
