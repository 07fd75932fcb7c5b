//! One core on a bench: inputs by hand, outputs sorted.

use bytes::Bytes;
use tidings_client::{AppEvent, ClientCore, Config, LocalId, Output, PersistOp, Saved};
use tidings_protocol::wire::{
    Ack, Command, Event, Hello, Kind, Limits, Ready, Send, ServerFrame, Status, SyncDone, SyncPage,
    Update as Envelope, command, update::Update,
};

use super::Random;
use super::server::{CONVERSATION, ME, send_of};

/// A second.
pub const SECOND: u64 = 1_000_000;

/// A core, and what it put out.
pub struct Bench {
    pub core: ClientCore,
    pub now: u64,
    pub app: Vec<AppEvent>,
    pub sends: Vec<Send>,
    pub commands: Vec<Command>,
    pub persisted: Vec<PersistOp>,
    /// Outputs that are neither of these.
    pub rest: Vec<Output>,
    sync_ref: u64,
}

impl Bench {
    pub fn new(config: Config, saved: Saved) -> Bench {
        // A second life draws other numbers than the first.
        let mut random = Random(saved.last_local);
        let core = ClientCore::new(config, saved, Box::new(move || random.next()));
        Bench {
            core,
            now: 1_800_000_000 * SECOND,
            app: Vec::new(),
            sends: Vec::new(),
            commands: Vec::new(),
            persisted: Vec::new(),
            rest: Vec::new(),
            sync_ref: 0,
        }
    }

    /// Connects and signs in; the sync is asked for and not answered.
    pub fn sign_in(&mut self, limits: Limits) {
        self.core.set_token(self.now, "token".into());
        self.core.start(self.now);
        self.core.connected(self.now);
        let hello = Hello {
            heartbeat_ms: 25_000,
            server_time: self.now,
            limits: Some(limits),
            ..Hello::default()
        };
        self.hear(Update::Hello(hello));
        self.hear(Update::Ready(Ready {
            user: ME,
            device: 1,
            session: 1,
            epoch: 1,
            ..Ready::default()
        }));
    }

    /// Answers the sync: the conversation at this head, with this grant.
    pub fn synced(&mut self, head: u64, grant: u64, missing_from: u64, events: Vec<Event>) {
        self.synced_to(SyncPage {
            conversation: CONVERSATION,
            head,
            grant,
            visible_from: 1,
            missing_from,
            events,
            ..SyncPage::default()
        });
    }

    /// Answers the sync with this page.
    pub fn synced_to(&mut self, page: SyncPage) {
        self.hear(Update::SyncPage(page));
        self.sync_ends(1);
    }

    /// Ends the sync as complete, after so many conversations.
    pub fn sync_ends(&mut self, conversations: u32) {
        let done = SyncDone {
            epoch: 1,
            conversations,
            complete: true,
            reset: false,
        };
        self.answer(self.sync_ref, Update::SyncDone(done));
    }

    /// A bench signed in, in a conversation of one event and grant 1, with `n` messages on their way.
    pub fn sending(n: usize) -> Bench {
        let mut bench = Bench::new(Config::default(), Saved::default());
        bench.sign_in(Limits::default());
        bench.synced(1, 1, 0, vec![join(1)]);
        for _ in 0..n {
            bench.write();
        }
        assert_eq!(bench.sends.len(), n);
        bench
    }

    pub fn write(&mut self) -> LocalId {
        let body = Bytes::from_static(b"text");
        let local = self
            .core
            .send(self.now, CONVERSATION, Kind::Text, body)
            .expect("taken");
        self.collect();
        local
    }

    pub fn hear(&mut self, update: Update) {
        self.answer(0, update);
    }

    pub fn answer(&mut self, r#ref: u64, update: Update) {
        let updates = vec![Envelope {
            r#ref,
            update: Some(update),
        }];
        self.core.frame(self.now, ServerFrame { updates });
        self.collect();
    }

    /// An answer for the lane of the first send; `id`: of which sent message.
    pub fn ack(&mut self, status: Status, counter: u64, id: u64, seq: u64, head: u64) {
        let first = self.sends.first().expect("something was sent").clone();
        self.hear(Update::Ack(Ack {
            conversation: CONVERSATION,
            sender: first.sender,
            grant: first.grant,
            counter,
            id,
            status: status.into(),
            seq,
            ts: self.now,
            head,
            duplicate: false,
        }));
    }

    pub fn pass(&mut self, micros: u64) {
        let end = self.now + micros;
        while let Some(at) = self.core.next_tick().filter(|&at| at <= end) {
            self.now = at.max(self.now);
            self.core.tick(self.now);
            self.collect();
        }
        self.now = end;
    }

    pub fn collect(&mut self) {
        for output in self.core.outputs() {
            match output {
                Output::App(event) => self.app.push(event),
                Output::Persist(op) => self.persisted.push(op),
                Output::Frame(frame) => {
                    for command in frame.commands {
                        if let Some(send) = send_of(&command) {
                            self.sends.push(send.clone());
                        } else {
                            if matches!(command.command, Some(command::Command::Sync(_))) {
                                self.sync_ref = command.r#ref;
                            }
                            self.commands.push(command);
                        }
                    }
                }
                other => self.rest.push(other),
            }
        }
    }

    /// The counters sent since the last time, and forgets all but the first send.
    pub fn counters_sent(&mut self, since: usize) -> Vec<u64> {
        self.sends[since..].iter().map(|s| s.counter).collect()
    }

    pub fn sent(&self) -> Vec<u64> {
        let sent = |e: &AppEvent| match e {
            AppEvent::Sent { local, .. } => Some(local.0),
            _ => None,
        };
        self.app.iter().filter_map(sent).collect()
    }

    /// Seqs of the events given to the app.
    pub fn seen(&self) -> Vec<u64> {
        let seen = |e: &AppEvent| match e {
            AppEvent::Message(e) | AppEvent::Members(e) => Some(e.seq),
            _ => None,
        };
        self.app.iter().filter_map(seen).collect()
    }

    /// The `history` commands put out so far: ref and what was asked.
    pub fn histories(&self) -> Vec<(u64, tidings_protocol::wire::History)> {
        let asked = |c: &Command| match &c.command {
            Some(command::Command::History(h)) => Some((c.r#ref, *h)),
            _ => None,
        };
        self.commands.iter().filter_map(asked).collect()
    }
}

/// The event that made the user a member.
pub fn join(seq: u64) -> Event {
    use tidings_protocol::wire::{MemberChange, Members, Role};
    let changes = vec![MemberChange {
        user: ME,
        role: Role::Member.into(),
        ended: 0,
    }];
    let members = Some(Members {
        version: 1,
        changes,
        ..Members::default()
    });
    let kind = Kind::Members.into();
    Event {
        conversation: CONVERSATION,
        seq,
        ts: seq,
        kind,
        members,
        ..Event::default()
    }
}

/// Somebody's message.
pub fn message(seq: u64) -> Event {
    let user = super::server::OTHER;
    let body = Bytes::from_static(b"hello");
    Event {
        conversation: CONVERSATION,
        seq,
        ts: seq,
        user,
        id: seq,
        body,
        ..Event::default()
    }
}
