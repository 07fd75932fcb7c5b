//! The log of a few conversations, and its decisions.

use std::collections::BTreeMap;

use tidings_protocol::wire::{
    Ack, Command, Cursor, Event, History, HistoryPage, Kind, MemberChange, Members, Role, Send,
    Status, Sync, SyncDone, SyncPage, command, update::Update,
};

/// The user under test.
pub const ME: u64 = 1;
/// Somebody else, always a member.
pub const OTHER: u64 = 2;
/// The first conversation's id; others follow.
pub const CONVERSATION: u64 = 100;

/// One conversation as the log says.
#[derive(Default, Clone)]
pub struct Conversation {
    pub events: Vec<Event>,
    /// A user's grant; absent: not a member.
    pub grants: BTreeMap<u64, u64>,
    /// The last seq a removed user may see.
    pub ended: BTreeMap<u64, u64>,
    /// (user, sender) → (grant, counter, id, seq).
    pub senders: BTreeMap<(u64, u64), (u64, u64, u64, u64)>,
    version: u64,
}

/// The server.
#[derive(Clone)]
pub struct Server {
    pub conversations: BTreeMap<u64, Conversation>,
    pub now: u64,
    /// The most events of a page; small, so that paging is exercised.
    pub page_max: usize,
}

/// The send in a command, if it is one.
pub fn send_of(command: &Command) -> Option<&Send> {
    match &command.command {
        Some(command::Command::Send(send)) => Some(send),
        _ => None,
    }
}

impl Server {
    pub fn new(conversations: u64) -> Self {
        let mut server = Server {
            conversations: BTreeMap::new(),
            now: 0,
            page_max: 4,
        };
        for i in 0..conversations {
            server
                .conversations
                .insert(CONVERSATION + i, Conversation::default());
            server.members(
                CONVERSATION + i,
                &[(ME, Role::Member), (OTHER, Role::Member)],
            );
        }
        server
    }

    /// An event that changes members; `None`: it would change nothing.
    pub fn members(&mut self, id: u64, changes: &[(u64, Role)]) -> Option<Event> {
        let now = self.now;
        let c = self.conversations.get_mut(&id)?;
        let seq = c.events.len() as u64 + 1;
        let mut named = Vec::new();
        for &(user, role) in changes {
            let before = c.grants.get(&user).copied().unwrap_or(0);
            if (before != 0) == (role != Role::None) {
                continue;
            }
            if role == Role::None {
                c.grants.remove(&user);
                c.ended.insert(user, seq);
            } else {
                c.grants.insert(user, seq);
                c.ended.remove(&user);
            }
            named.push(MemberChange {
                user,
                role: role.into(),
                ended: before,
            });
        }
        if named.is_empty() {
            return None;
        }
        c.version += 1;
        let members = Members {
            version: c.version,
            changes: named,
            ..Members::default()
        };
        let event = Event {
            conversation: id,
            seq,
            ts: now + seq,
            kind: Kind::Members.into(),
            members: Some(members),
            ..Event::default()
        };
        c.events.push(event.clone());
        Some(event)
    }

    /// Appends a record, decides, and answers; the event, if it was accepted.
    pub fn append(&mut self, user: u64, send: &Send) -> (Ack, Option<Event>) {
        let now = self.now;
        let c = self
            .conversations
            .get_mut(&send.conversation)
            .expect("a known conversation");
        let row = c
            .senders
            .get(&(user, send.sender))
            .copied()
            .unwrap_or_default();
        let (n, id, at) = if row.0 == send.grant {
            (row.1, row.2, row.3)
        } else {
            (0, 0, 0)
        };
        let head = c.events.len() as u64;
        let mut ack = Ack {
            conversation: send.conversation,
            sender: send.sender,
            grant: send.grant,
            counter: n,
            id,
            seq: at,
            ts: if at > 0 {
                c.events[at as usize - 1].ts
            } else {
                0
            },
            head,
            ..Ack::default()
        };
        let status = if send.grant < row.0 {
            Status::Stale
        } else if send.counter <= n {
            ack.duplicate = true;
            Status::Sent
        } else if c.grants.get(&user) != Some(&send.grant) {
            Status::Over
        } else if send.counter > n + 1 {
            Status::Gap
        } else if send.previous != id {
            Status::Fork
        } else {
            let seq = head + 1;
            c.senders.insert(
                (user, send.sender),
                (send.grant, send.counter, send.id, seq),
            );
            let event = Event {
                conversation: send.conversation,
                seq,
                ts: now + seq,
                user,
                sender: send.sender,
                grant: send.grant,
                counter: send.counter,
                id: send.id,
                kind: send.kind,
                body: send.body.clone(),
                encoding: send.encoding,
                members: None,
            };
            c.events.push(event.clone());
            ack = Ack {
                counter: send.counter,
                id: send.id,
                seq,
                ts: event.ts,
                head: seq,
                ..ack
            };
            return (ack, Some(event));
        };
        ack.status = status.into();
        (ack, None)
    }

    /// The last seq the user may see.
    pub fn visible_to(&self, user: u64, id: u64) -> u64 {
        let c = &self.conversations[&id];
        c.ended.get(&user).copied().unwrap_or(c.events.len() as u64)
    }

    pub fn sync(&self, user: u64, sync: &Sync) -> Vec<Update> {
        let mut out = Vec::new();
        for (&id, c) in &self.conversations {
            let cursor = sync
                .cursors
                .iter()
                .find(|k| k.conversation == id)
                .map_or(0, |k| k.seq);
            let head = self.visible_to(user, id);
            let from = (cursor + 1).max((head + 1).saturating_sub(self.page_max as u64));
            let events = c.events[from.min(head + 1) as usize - 1..head as usize].to_vec();
            out.push(Update::SyncPage(SyncPage {
                conversation: id,
                head,
                grant: c.grants.get(&user).copied().unwrap_or(0),
                visible_from: 1,
                missing_from: if from > cursor + 1 { cursor + 1 } else { 0 },
                events,
                ..SyncPage::default()
            }));
        }
        let conversations = out.len() as u32;
        out.push(Update::SyncDone(SyncDone {
            epoch: 1,
            conversations,
            complete: true,
            reset: false,
        }));
        out
    }

    pub fn history(&self, user: u64, ask: &History) -> HistoryPage {
        let c = &self.conversations[&ask.conversation];
        let head = self.visible_to(user, ask.conversation);
        let limit = (ask.limit as usize).clamp(1, self.page_max) as u64;
        let (from, to) = if ask.before > 0 {
            let to = (ask.before - 1).min(head);
            ((to + 1).saturating_sub(limit).max(1), to)
        } else {
            (ask.after + 1, (ask.after + limit).min(head))
        };
        let events = if from > to {
            Vec::new()
        } else {
            c.events[from as usize - 1..to as usize].to_vec()
        };
        HistoryPage {
            conversation: ask.conversation,
            from,
            to,
            events,
            head,
        }
    }

    pub fn heads(&self, user: u64) -> Vec<Cursor> {
        let visible = |&id: &u64| Cursor {
            conversation: id,
            seq: self.visible_to(user, id),
        };
        self.conversations.keys().map(visible).collect()
    }
}
