//! Inbox marks: what waits for members of small conversations who have no session.
//!
//! Routers say which events are out; once a second, for each conversation that moved, its members
//! without a session get a mark in the registry. Nothing waits for it and nothing is decided by it:
//! what a member has missed is its cursor against the head, and a mark says where to look first and
//! whom to push to. While the registry doesn't answer all members but the author get one, which the
//! cluster's registry keeps in `pending-messages`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tidings_core::ids::{ConversationId, Seq, UserId};
use tidings_core::ports::directory::{Directory, DirectoryError, direct_conversation};
use tidings_core::ports::members::MemberLists;
use tidings_core::ports::registry::{Mark, REGISTRY_DEADLINE, Registry};
use tidings_core::rows::EventRow;
use tokio::sync::watch;

/// How long events are gathered: a busy conversation costs one look at its members a turn.
const TURN: Duration = Duration::from_secs(1);

/// The pause after a turn in which the registry or the directory didn't answer.
const TURN_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Conversations gathered for a turn; the events of others leave no marks, and are counted.
const CONVERSATIONS_MAX: usize = 64 << 10;

/// Conversations, and members of each, that are looked at at once.
const CONVERSATIONS_AT_ONCE: usize = 16;
const MEMBERS_AT_ONCE: usize = 32;

/// Marks put in one call.
const MARKS_PER_CALL: usize = 1_000;

/// How long the directory may take for one conversation.
const DIRECTORY_DEADLINE: Duration = Duration::from_secs(5);

/// What moved in a conversation in this turn.
#[derive(Clone, Copy, Default)]
struct Moved {
    /// The last event and who wrote it.
    last: (Seq, UserId),
    /// The last event that somebody else wrote; 0: none.
    of_others: Seq,
    /// The last version of the directory among the events; 0: none.
    version: u64,
    /// Whether it was small with the last event.
    is_small: bool,
}

impl Moved {
    fn by(&mut self, row: &EventRow, is_small: bool) {
        if row.seq <= self.last.0 {
            return;
        }
        if row.user != self.last.1 {
            self.of_others = self.last.0;
        }
        self.last = (row.seq, row.user);
        self.is_small = is_small;
        if let Some(members) = &row.members {
            self.version = members.version;
        }
    }

    /// Adds what moved before.
    fn after(&mut self, earlier: Moved) {
        if self.last.1 == earlier.last.1 {
            self.of_others = self.of_others.max(earlier.of_others);
        } else {
            self.of_others = self.of_others.max(earlier.last.0);
        }
        self.version = self.version.max(earlier.version);
    }

    /// Up to which event something waits for a member; 0: nothing.
    fn for_member(&self, user: UserId) -> Seq {
        match user == self.last.1 {
            true => self.of_others,
            false => self.last.0,
        }
    }
}

/// Where marks are put, and what has to be known for them.
#[derive(Clone)]
pub struct Ports {
    /// Who is where, and where marks go.
    pub registry: Arc<dyn Registry>,
    /// Who is in a conversation.
    pub members: Arc<dyn MemberLists>,
    /// Who has blocked whom.
    pub directory: Arc<dyn Directory>,
}

/// What waits to be marked, and what was done.
#[derive(Default)]
pub struct Waiting {
    moved: Mutex<HashMap<ConversationId, Moved>>,
    /// Marks put.
    pub marks: AtomicU64,
    /// Events for which there was no room.
    pub dropped: AtomicU64,
}

impl Waiting {
    /// An event is out. Costs a look into a map; the rest is [`Waiting::run`]'s.
    pub fn told(&self, row: &EventRow, is_small: bool) {
        let mut moved = self.moved();
        if moved.len() >= CONVERSATIONS_MAX && !moved.contains_key(&row.conversation) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        moved.entry(row.conversation).or_default().by(row, is_small);
    }

    /// Marks what waits, turn by turn, until `stop` says so; then once more.
    pub async fn run(&self, ports: Ports, mut stop: watch::Receiver<bool>) {
        let mut pause = TURN;
        loop {
            let stopping = tokio::select! {
                () = tokio::time::sleep(pause) => false,
                _ = stop.changed() => true,
            };
            pause = match self.turn(&ports).await {
                true => TURN,
                false => TURN_AFTER_FAILURE,
            };
            if stopping {
                return;
            }
        }
    }

    /// Marks what was gathered; false: something didn't answer.
    async fn turn(&self, ports: &Ports) -> bool {
        let moved = std::mem::take(&mut *self.moved());
        let looked = futures_util::stream::iter(moved)
            .map(|(conversation, moved)| async move {
                (conversation, moved, look(ports, conversation, moved).await)
            })
            .buffer_unordered(CONVERSATIONS_AT_ONCE);
        let mut looked = std::pin::pin!(looked);
        let (mut marks, mut all_well) = (Vec::new(), true);
        while let Some((conversation, moved, look)) = looked.next().await {
            match look {
                Ok(look) => {
                    all_well &= look.registry_answered;
                    marks.extend(look.marks);
                }
                Err(error) => {
                    tracing::debug!(%error, %conversation, "who is to be marked isn't known now");
                    all_well = false;
                    self.once_more(conversation, moved);
                }
            }
            while marks.len() >= MARKS_PER_CALL {
                let rest = marks.split_off(MARKS_PER_CALL);
                all_well &= self.put(ports, std::mem::replace(&mut marks, rest)).await;
            }
        }
        all_well & self.put(ports, marks).await
    }

    async fn put(&self, ports: &Ports, marks: Vec<Mark>) -> bool {
        if marks.is_empty() {
            return true;
        }
        let count = marks.len() as u64;
        match ports.registry.put_marks(marks).await {
            Ok(()) => {
                self.marks.fetch_add(count, Ordering::Relaxed);
                true
            }
            Err(error) => {
                tracing::warn!(%error, count, "marks of what waits were not put");
                self.dropped.fetch_add(count, Ordering::Relaxed);
                false
            }
        }
    }

    /// With the next turn, unless there is no room.
    fn once_more(&self, conversation: ConversationId, earlier: Moved) {
        let mut moved = self.moved();
        if let Some(later) = moved.get_mut(&conversation) {
            later.after(earlier);
        } else if moved.len() < CONVERSATIONS_MAX {
            moved.insert(conversation, earlier);
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn moved(&self) -> MutexGuard<'_, HashMap<ConversationId, Moved>> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Look {
    marks: Vec<Mark>,
    registry_answered: bool,
}

/// Who is to be marked for what moved in a conversation.
async fn look(
    ports: &Ports,
    conversation: ConversationId,
    moved: Moved,
) -> Result<Look, DirectoryError> {
    if moved.version > 0 {
        ports.members.changed(conversation, moved.version).await;
    }
    let mut look = Look {
        marks: Vec::new(),
        registry_answered: true,
    };
    if !moved.is_small {
        return Ok(look);
    }
    let list = within(ports.members.members(conversation, moved.version)).await?;
    if !list.are_all() {
        return Ok(look);
    }
    let concerned: Vec<UserId> = list
        .users
        .iter()
        .copied()
        .filter(|&user| moved.for_member(user) > 0)
        .collect();
    let mut sessions = futures_util::stream::iter(concerned)
        .map(|user| async move {
            let sessions = ports.registry.sessions_of(user);
            (
                user,
                tokio::time::timeout(REGISTRY_DEADLINE, sessions).await,
            )
        })
        .buffered(MEMBERS_AT_ONCE);
    while let Some((user, sessions)) = sessions.next().await {
        let is_away = match sessions {
            Ok(Ok(sessions)) => sessions.is_empty(),
            // Not known: rather a mark too many.
            _ => {
                look.registry_answered = false;
                true
            }
        };
        if is_away {
            look.marks.push(Mark {
                user,
                conversation,
                seq: moved.for_member(user),
            });
        }
    }
    // What somebody blocked writes in a direct conversation waits for nobody.
    if let &[a, b] = &list.users[..]
        && direct_conversation(a, b).conversation == conversation
    {
        for mark in std::mem::take(&mut look.marks) {
            let author = if mark.user == a { b } else { a };
            let blockers = ports.directory.blockers_among(author, vec![mark.user]);
            if within(blockers).await?.is_empty() {
                look.marks.push(mark);
            }
        }
    }
    Ok(look)
}

async fn within<T>(
    call: impl Future<Output = Result<T, DirectoryError>>,
) -> Result<T, DirectoryError> {
    let late = |_| DirectoryError::Unavailable {
        retry_after: TURN_AFTER_FAILURE,
    };
    tokio::time::timeout(DIRECTORY_DEADLINE, call)
        .await
        .unwrap_or_else(|elapsed| Err(late(elapsed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidings_core::ids::Position;

    const C: ConversationId = ConversationId(1);

    fn row(seq: Seq, user: u64) -> EventRow {
        let row = EventRow::empty(C, seq, Position::default(), seq, seq - 1);
        EventRow {
            user: UserId(user),
            ..row
        }
    }

    fn moved(rows: &[(Seq, u64)]) -> Moved {
        let mut moved = Moved::default();
        for &(seq, user) in rows {
            moved.by(&row(seq, user), true);
        }
        moved
    }

    #[test]
    fn nobody_waits_for_what_they_wrote_themselves() {
        let of = |rows: &[(Seq, u64)], user| moved(rows).for_member(UserId(user));
        assert_eq!((of(&[(5, 1)], 1), of(&[(5, 1)], 2)), (0, 5));
        let both = [(5, 1), (6, 2), (7, 2)];
        assert_eq!((of(&both, 1), of(&both, 2), of(&both, 3)), (7, 5, 7));
        // A router that took over tells an earlier one again.
        assert_eq!(of(&[(6, 2), (5, 1)], 2), 0);
    }

    #[test]
    fn what_could_not_be_looked_at_comes_with_the_next_turn() {
        let mut later = moved(&[(7, 2)]);
        later.after(moved(&[(5, 1), (6, 2)]));
        let seqs = [1, 2, 3].map(|user| later.for_member(UserId(user)));
        assert_eq!(seqs, [7, 5, 7]);
        let mut later = moved(&[(7, 2)]);
        later.after(moved(&[(6, 1)]));
        assert_eq!(later.for_member(UserId(2)), 6);
    }

    #[test]
    fn conversations_beyond_the_bound_are_dropped_and_counted() {
        let waiting = Waiting::default();
        for id in 0..=CONVERSATIONS_MAX as u64 {
            let row = EventRow {
                conversation: ConversationId(id),
                ..row(1, 1)
            };
            waiting.told(&row, true);
        }
        assert_eq!(waiting.moved().len(), CONVERSATIONS_MAX);
        assert_eq!(waiting.dropped.load(Ordering::Relaxed), 1);
    }
}
