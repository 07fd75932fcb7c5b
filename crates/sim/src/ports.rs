//! The models behind the ports' traits, for the scenarios that also run on real engines
//! (`tidings_core::conformance::faults`).
//!
//! What a call does over a failing way is decided by the models, as in a history; there is no time
//! here: what comes late comes with a [`Subject::pause`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tidings_core::conformance::faults::{Subject, Way, log::Owned};
use tidings_core::ids::{ConversationId, GatewayId, Micros, Partition, Position};
use tidings_core::ids::{Seq, SessionId, UserId};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::log::{Append, AppendReport, Log, LogError};
use tidings_core::ports::registry::{
    Mark, Presence, PresenceChanges, Registry, RegistryError, SessionEntry, UserPresence,
};
use tidings_core::ports::store::{Store, StoreError, StoreResult};
use tidings_core::record::Committed;
use tidings_core::rows::{CursorRow, EventRow, MemberRows, StateKey, StateRow};

use crate::log::{Lost, Report, SimLog};
use crate::random::Random;
use crate::registry::{Fate, SimRegistry};
use crate::store::{Call, Loss, MEMBERS_TOGETHER, Reply, SimStore};

/// How many records a read gives.
const READ_MOST: usize = 20;

/// What is on its way when its caller has given up.
enum Late {
    Append(Vec<Append>, Report),
    Store(Call),
    Put(SessionEntry),
    Remove(UserId, SessionId),
}

struct State {
    log: SimLog,
    store: SimStore,
    registry: SimRegistry,
    /// Every entry there ever was, since the model knows of a session only whose device it is.
    entries: Vec<SessionEntry>,
    random: Random,
    way: Way,
    late: Vec<Late>,
    batches: u64,
    is_replaced: bool,
}

impl State {
    fn append(&mut self, records: &[Append], report: Report) {
        self.log.append(records, None, 0, &mut self.random);
        self.log.takes(report);
        self.log.begin_sync();
        self.log.synced();
    }

    fn put(&mut self, entry: SessionEntry) {
        let entered = (entry.gateway.0 as usize, entry.session);
        self.registry.put(entry.device.0, entered);
        self.entries.retain(|known| *known != entry);
        self.entries.push(entry);
    }

    fn remove(&mut self, user: UserId, session: SessionId) {
        let is_it = |e: &&SessionEntry| (e.user, e.session) == (user, session);
        if let Some(entry) = self.entries.iter().find(is_it) {
            self.registry.remove(entry.device.0, session);
        }
    }

    fn sessions_of(&self, user: UserId) -> Vec<SessionEntry> {
        let is_in = |e: &&SessionEntry| {
            let all = self.registry.of(e.device.0);
            e.user == user && all.iter().any(|entered| entered.1 == e.session)
        };
        self.entries.iter().filter(is_in).copied().collect()
    }

    /// Some of what is late arrives.
    fn arrive(&mut self) {
        for late in std::mem::take(&mut self.late) {
            if self.random.permille(300) {
                self.late.push(late);
                continue;
            }
            match late {
                Late::Append(records, of) if self.log.still_takes(of) => self.append(&records, of),
                Late::Append(..) => {}
                Late::Store(call) => _ = self.store.execute(&call, &mut self.random),
                Late::Put(entry) => self.put(entry),
                Late::Remove(user, session) => self.remove(user, session),
            }
        }
    }
}

/// A server's handle of the models.
struct Handle {
    state: Arc<Mutex<State>>,
    /// The number of the caller; 0 is behind the failing way.
    caller: usize,
}

impl Handle {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fails(&self, state: &State) -> bool {
        self.caller == 0 && matches!(state.way, Way::AnswersLost | Way::Held)
    }

    /// A call of the store.
    fn call(&self, call: Call) -> StoreResult<Reply> {
        let mut state = self.state();
        let fails = self.fails(&state);
        let State {
            store,
            random,
            late,
            ..
        } = &mut *state;
        if !fails {
            return Ok(store.execute(&call, random));
        }
        let loss = random.pick(&Loss::ALL).unwrap_or(Loss::Never);
        late.extend(store.lose(&call, loss, random).map(Late::Store));
        Err(StoreError::Unavailable("no answer".to_owned()))
    }

    /// A call that writes to the registry.
    fn enter(
        &self,
        call: impl FnOnce(&mut State),
        late: Late,
    ) -> BoxFuture<'_, Result<(), RegistryError>> {
        let mut state = self.state();
        if !self.fails(&state) {
            call(&mut state);
            return Box::pin(std::future::ready(Ok(())));
        }
        match Fate::draw(&mut state.random) {
            Fate::AtOnce => call(&mut state),
            Fate::Late => state.late.push(late),
            Fate::Never => {}
        }
        unanswered()
    }
}

fn unanswered<T: Send + 'static>() -> BoxFuture<'static, Result<T, RegistryError>> {
    let error = RegistryError("no answer".to_owned());
    Box::pin(std::future::ready(Err(error)))
}

fn not_modelled<T: Send + 'static>() -> BoxFuture<'static, Result<T, RegistryError>> {
    let error = RegistryError("not modelled".to_owned());
    Box::pin(std::future::ready(Err(error)))
}

impl Log for Handle {
    fn partitions(&self) -> u32 {
        1
    }

    fn append(&self, records: Vec<Append>, report: AppendReport) {
        let mut state = self.state();
        state.batches += 1;
        let of = (self.caller, 0, state.batches);
        if !self.fails(&state) {
            state.append(&records, of);
            drop(state);
            return report(Ok(()));
        }
        let lost = Lost::draw(records.len(), &mut state.random);
        let part = records[..lost.part].to_vec();
        if lost.is_late {
            state.late.push(Late::Append(part, of));
        } else if !part.is_empty() {
            state.append(&part, of);
        }
        drop(state);
        report(Err(LogError::Unknown("no answer".to_owned())));
    }

    fn read(
        &self,
        _: Partition,
        from: Position,
        _: usize,
    ) -> BoxFuture<'_, Result<Vec<Committed>, LogError>> {
        // Asked again and again by `block_on`, so nobody needs to be woken.
        Box::pin(std::future::poll_fn(move |_| {
            match self.state().log.read(from, READ_MOST) {
                records if records.is_empty() => Poll::Pending,
                records => Poll::Ready(Ok(records)),
            }
        }))
    }

    fn committed(&self, _: Partition) -> BoxFuture<'_, Result<Position, LogError>> {
        let committed = self.state().log.committed();
        Box::pin(std::future::ready(Ok(committed)))
    }

    fn commit(&self, _: Partition, position: Position) -> BoxFuture<'_, Result<(), LogError>> {
        let mut state = self.state();
        let State {
            log,
            random,
            is_replaced,
            ..
        } = &mut *state;
        if self.caller == 0 && *is_replaced {
            log.commit_of_former(position, random);
        } else {
            log.commit(position, true);
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn end(&self, _: Partition) -> Position {
        self.state().log.end()
    }
}

impl Store for Handle {
    fn put_events(&self, _: Partition, rows: Vec<EventRow>) -> BoxFuture<'_, StoreResult<()>> {
        let done = self.call(Call::PutEvents(rows)).map(|_| ());
        Box::pin(std::future::ready(done))
    }

    fn put_state(&self, _: Partition, rows: Vec<StateRow>) -> BoxFuture<'_, StoreResult<()>> {
        let done = self.call(Call::PutState(rows)).map(|_| ());
        Box::pin(std::future::ready(done))
    }

    fn put_cursors(&self, _: Partition, rows: Vec<CursorRow>) -> BoxFuture<'_, StoreResult<()>> {
        let call = Call::PutCursors { rows, check: false };
        let done = self.call(call).map(|_| ());
        Box::pin(std::future::ready(done))
    }

    fn settle(&self, _: Partition, position: Position) -> BoxFuture<'_, StoreResult<Position>> {
        let settled = self.call(Call::Settle(position)).map(|reply| match reply {
            Reply::Settled(position) => position,
            other => unreachable!("{other:?}"),
        });
        Box::pin(std::future::ready(settled))
    }

    fn read_events(
        &self,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        bytes_max: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<EventRow>>> {
        let call = Call::ReadRange(conversation, from, to, bytes_max);
        Box::pin(std::future::ready(self.call(call).map(events)))
    }

    fn read_events_since(
        &self,
        conversation: ConversationId,
        from: Position,
    ) -> BoxFuture<'_, StoreResult<Vec<EventRow>>> {
        let call = Call::ReadSince(conversation, from);
        Box::pin(std::future::ready(self.call(call).map(events)))
    }

    fn read_state(
        &self,
        conversation: ConversationId,
        keys: Vec<StateKey>,
    ) -> BoxFuture<'_, StoreResult<Vec<Option<StateRow>>>> {
        let call = Call::ReadState(conversation, keys);
        let rows = self.call(call).map(|reply| match reply {
            Reply::State(rows) => rows,
            other => unreachable!("{other:?}"),
        });
        Box::pin(std::future::ready(rows))
    }

    fn members_together(&self) -> usize {
        MEMBERS_TOGETHER
    }

    fn read_members(
        &self,
        conversation: ConversationId,
    ) -> BoxFuture<'_, StoreResult<Option<MemberRows>>> {
        let found = self
            .call(Call::ReadMembers(conversation))
            .map(|reply| match reply {
                Reply::Members(found) => found,
                other => unreachable!("{other:?}"),
            });
        Box::pin(std::future::ready(found))
    }

    fn read_cursors(
        &self,
        conversation: ConversationId,
        users: Vec<UserId>,
    ) -> BoxFuture<'_, StoreResult<Vec<CursorRow>>> {
        let call = Call::ReadCursors(conversation, users);
        let rows = self.call(call).map(|reply| match reply {
            Reply::Cursors(rows) => rows,
            other => unreachable!("{other:?}"),
        });
        Box::pin(std::future::ready(rows))
    }
}

fn events(reply: Reply) -> Vec<EventRow> {
    match reply {
        Reply::Events(rows) => rows,
        other => unreachable!("{other:?}"),
    }
}

/// Sessions alone: no promise of a history rests on presence and marks.
impl Registry for Handle {
    fn put_session(&self, entry: SessionEntry) -> BoxFuture<'_, Result<(), RegistryError>> {
        self.enter(|state| state.put(entry), Late::Put(entry))
    }

    fn remove_session(
        &self,
        user: UserId,
        session: SessionId,
        _: Micros,
    ) -> BoxFuture<'_, Result<(), RegistryError>> {
        let late = Late::Remove(user, session);
        self.enter(|state| state.remove(user, session), late)
    }

    fn sessions_of(&self, user: UserId) -> BoxFuture<'_, Result<Vec<SessionEntry>, RegistryError>> {
        let state = self.state();
        match self.fails(&state) {
            true => unanswered(),
            false => Box::pin(std::future::ready(Ok(state.sessions_of(user)))),
        }
    }

    fn set_presence(
        &self,
        _: UserId,
        _: SessionId,
        _: Presence,
    ) -> BoxFuture<'_, Result<(), RegistryError>> {
        not_modelled()
    }

    fn presence(&self, _: Vec<UserId>) -> BoxFuture<'_, Result<Vec<UserPresence>, RegistryError>> {
        not_modelled()
    }

    fn watch(&self, _: GatewayId, _: Vec<UserId>) -> BoxFuture<'_, Result<(), RegistryError>> {
        not_modelled()
    }

    fn changes(&self) -> BoxFuture<'_, Result<PresenceChanges, RegistryError>> {
        not_modelled()
    }

    fn put_marks(&self, _: Vec<Mark>) -> BoxFuture<'_, Result<(), RegistryError>> {
        not_modelled()
    }

    fn clear_mark(&self, _: Mark) -> BoxFuture<'_, Result<(), RegistryError>> {
        not_modelled()
    }

    fn claim(&self, _: u128, _: Duration) -> BoxFuture<'_, Result<bool, RegistryError>> {
        not_modelled()
    }

    fn marks_of(&self, _: UserId, _: usize) -> BoxFuture<'_, Result<Vec<Mark>, RegistryError>> {
        not_modelled()
    }
}

/// The models of one seed, as two servers have them.
pub struct Models {
    here: Handle,
    there: Handle,
}

impl Models {
    /// Log, store and registry, empty; `gathers`: the store is the kind that leans on the log.
    pub fn new(seed: u64, gathers: bool) -> Models {
        let state = State {
            log: SimLog::default(),
            store: SimStore::new(gathers),
            registry: SimRegistry::default(),
            entries: Vec::new(),
            random: Random::new(seed),
            way: Way::Open,
            late: Vec::new(),
            batches: 0,
            is_replaced: false,
        };
        let state = Arc::new(Mutex::new(state));
        let handle = |caller| Handle {
            state: Arc::clone(&state),
            caller,
        };
        Models {
            here: handle(0),
            there: handle(1),
        }
    }

    /// The store as a server has it to which nothing happens.
    pub fn store(&self) -> &dyn Store {
        &self.there
    }

    fn arrive(&self) -> BoxFuture<'_, ()> {
        let mut state = self.here.state();
        if state.way != Way::Held {
            state.arrive();
        }
        Box::pin(std::future::ready(()))
    }
}

macro_rules! subject {
    ($port:ident) => {
        impl Subject<dyn $port> for Models {
            fn here(&self) -> &(dyn $port + 'static) {
                &self.here
            }

            fn there(&self) -> &(dyn $port + 'static) {
                &self.there
            }

            fn set(&self, way: Way) {
                self.here.state().way = way;
            }

            fn pause(&self) -> BoxFuture<'_, ()> {
                self.arrive()
            }
        }
    };
}

subject!(Log);
subject!(Store);
subject!(Registry);

impl Owned for Models {
    fn own(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn replace(&self) -> BoxFuture<'_, ()> {
        self.here.state().is_replaced = true;
        Box::pin(std::future::ready(()))
    }
}

/// Runs a future that waits for nothing outside of itself.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    // The scenarios wait for what they themselves do, or for ever: then this is a bug.
    for _ in 0..1_000_000 {
        if let Poll::Ready(done) = future.as_mut().poll(&mut context) {
            return done;
        }
    }
    panic!("it waits for what never comes")
}
