//! The decision: a function of the state before a record, and of nothing else.
//!
//! No clock, no random, no I/O. What the state before record p is comes from the log
//! before p, whoever asks and whenever (design.md, "A decision is a function of the log
//! before the record"), so every router gives every record the same verdict.
//!
//! For a send, n is the sender's last accepted counter under the record's grant, or 0 if
//! the sender's row is of another grant. The first line that fits is the verdict:
//!
//! | record | verdict |
//! |---|---|
//! | `once`, and the sender has a row with counter 1 at most 7 days old | duplicate |
//! | grant older than the sender's | stale |
//! | counter ≤ n | duplicate |
//! | grant isn't the user's present one | over |
//! | counter > n + 1 | gap |
//! | previous id isn't the id under n | fork |
//! | else | accepted |

use crate::ids::{ConversationId, MessageKey, Micros, Position, SenderId, Seq, UserId};
use crate::planted::{self, Mistake};
use crate::record::{Membership, Send};
use crate::rows::{self, BEFORE_BY_SEQ_MAX, DAY, EventRow, GrantState, HeadState, SenderState};

/// How long a `once` sender's message is known as sent, by log time.
pub const ONCE_MAX: Micros = 7 * DAY;

/// How long a sender's row counts, by log time.
pub const SENDER_MAX: Micros = 400 * DAY;

/// What the log before a send says; absent rows are default values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Before {
    /// The conversation's head.
    pub head: HeadState,
    /// The user's grant.
    pub grant: GrantState,
    /// The sender's row; grant 0: none.
    pub sender: SenderState,
}

/// What is answered to a send.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// It is the event `head + 1`.
    Accepted,
    /// It was accepted before: all up to n are.
    Duplicate,
    /// The sender has used a later grant.
    Stale,
    /// The grant isn't the user's present one: accepted up to n, the rest never.
    Over,
    /// A counter is missing: send again from n + 1.
    Gap,
    /// The message before is not the one under n.
    Fork,
}

/// A verdict with everything the client needs to know what became of its messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Where.
    pub conversation: ConversationId,
    /// Whose outbox.
    pub sender: SenderId,
    /// The record's grant.
    pub grant: Seq,
    /// The verdict.
    pub verdict: Verdict,
    /// n: the last accepted counter under that grant, this record's if accepted; 0: none.
    pub counter: u64,
    /// The id under n.
    pub id: MessageKey,
    /// The seq of n; 0 when n is 0.
    pub seq: Seq,
    /// The time of n; 0 when n is 0.
    pub ts: Micros,
    /// The conversation's last seq, this record's if accepted.
    pub head: Seq,
}

/// The time a record gets, or would get: never back within a conversation.
pub fn log_time(appended: Micros, head: &HeadState) -> Micros {
    if planted::is(Mistake::TimeRunsBack) {
        return appended;
    }
    appended.max(head.ts + 1)
}

/// The sender's row as it counts at `ts`: one older than [`SENDER_MAX`] does not.
pub fn sender_at(row: SenderState, ts: Micros) -> SenderState {
    let most = match planted::is(Mistake::SenderForgottenEarly) {
        true => SENDER_MAX / 1_000_000,
        false => SENDER_MAX,
    };
    if ts.saturating_sub(row.ts) > most {
        SenderState::default()
    } else {
        row
    }
}

/// The verdict on a send appended at `appended`, and the answer.
pub fn decide(
    conversation: ConversationId,
    before: &Before,
    send: &Send,
    appended: Micros,
) -> Answer {
    let ts = log_time(appended, &before.head);
    let row = sender_at(before.sender, ts);
    let same = row.grant == send.grant && row.grant != 0;
    let n = if same { row.counter } else { 0 };
    let verdict = if send.once && row.counter == 1 && ts - row.ts <= ONCE_MAX {
        Verdict::Duplicate
    } else if send.grant < row.grant {
        Verdict::Stale
    } else if send.counter <= n {
        Verdict::Duplicate
    } else if send.grant != before.grant.grant || !before.grant.role.may_write() {
        Verdict::Over
    } else if send.counter > n + 1 && !planted::is(Mistake::GapAccepted) {
        Verdict::Gap
    } else if send.counter == n + 1
        && send.previous != if n == 0 { MessageKey(0) } else { row.id }
        && !planted::is(Mistake::ForkAccepted)
    {
        Verdict::Fork
    } else {
        Verdict::Accepted
    };
    let answer = Answer {
        conversation,
        sender: send.sender,
        grant: send.grant,
        verdict,
        counter: n,
        id: MessageKey(0),
        seq: 0,
        ts: 0,
        head: before.head.seq,
    };
    match verdict {
        Verdict::Accepted => {
            let seq = before.head.seq + 1;
            Answer {
                counter: send.counter,
                id: send.id,
                seq,
                ts,
                head: seq,
                ..answer
            }
        }
        // A single-use sender's message may stand under an older grant: the answer names it all the same.
        Verdict::Duplicate if send.once => Answer {
            counter: 1,
            id: row.id,
            seq: row.seq,
            ts: row.ts,
            ..answer
        },
        _ if n > 0 => Answer {
            id: row.id,
            seq: row.seq,
            ts: row.ts,
            ..answer
        },
        _ => answer,
    }
}

/// The state after an accepted send.
pub fn accept(before: &Before, send: &Send, answer: &Answer) -> (HeadState, SenderState) {
    let head = HeadState {
        seq: answer.seq,
        ts: answer.ts,
        ..before.head
    };
    let sender = SenderState {
        grant: send.grant,
        counter: send.counter,
        id: send.id,
        seq: answer.seq,
        ts: answer.ts,
    };
    (head, sender)
}

/// The event that an accepted send becomes.
pub fn event(
    conversation: ConversationId,
    position: Position,
    before: &Before,
    send: &Send,
    answer: &Answer,
) -> EventRow {
    EventRow {
        conversation,
        seq: answer.seq,
        position,
        ts: answer.ts,
        ts_before: before.head.ts,
        user: send.user,
        sender: send.sender,
        grant: send.grant,
        counter: send.counter,
        id: send.id,
        // Also a row too old to count for this record: undoing serves records before this one,
        // and for those it may count.
        before: match before.sender {
            SenderState { seq: 0, .. } => rows::Before::Nothing,
            row if answer.ts.saturating_sub(row.ts) > BEFORE_BY_SEQ_MAX => rows::Before::Row(row),
            row => rows::Before::Seq(row.seq),
        },
        kind: send.kind,
        encoding: send.encoding,
        body: send.body.clone(),
        members: None,
    }
}

/// The verdict on a directory's change: `Accepted`, `Duplicate` or `Gap` (the relay sends again from `head.version + 1`).
pub fn decide_membership(head: &HeadState, change: &Membership) -> Verdict {
    if change.version <= head.version {
        Verdict::Duplicate
    } else if change.version > head.version + 1 && !planted::is(Mistake::VersionGapAccepted) {
        Verdict::Gap
    } else {
        Verdict::Accepted
    }
}

/// The head after an accepted change that made `joined` users members and `left` users none.
pub fn accept_membership(
    head: &HeadState,
    change: &Membership,
    appended: Micros,
    joined: u32,
    left: u32,
) -> HeadState {
    HeadState {
        seq: head.seq + 1,
        ts: log_time(appended, head),
        version: change.version,
        kind: change.kind,
        members: (head.members + joined).saturating_sub(left),
    }
}

/// A user's grant after an accepted change became event `seq`.
///
/// A change of what the user may do (write, only read, nothing) ends a grant and starts
/// another; a change of role alone keeps it. Members of a channel see it from its start,
/// others from their join.
pub fn grant_after(
    before: &GrantState,
    change: &Membership,
    role: crate::record::Role,
    seq: Seq,
) -> GrantState {
    use crate::record::{ConversationKind, Role};
    if role == Role::None {
        return GrantState {
            grant: 0,
            role,
            visible_to: if before.role == Role::None {
                before.visible_to
            } else {
                seq
            },
            ..*before
        };
    }
    let joins = before.role == Role::None;
    let keeps = !joins && before.role.may_write() == role.may_write();
    GrantState {
        grant: if keeps { before.grant } else { seq },
        role,
        visible_from: match (joins, change.kind) {
            (false, _) => before.visible_from,
            (true, ConversationKind::Channel) => 1,
            (true, _) => seq,
        },
        visible_to: 0,
    }
}

/// Who a send is from, as state is kept: a sender is scoped by its user.
pub type SenderKey = (UserId, SenderId);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionId;
    use crate::record::{ConversationKind, Encoding, Kind, Origin, Role};

    fn before() -> Before {
        Before {
            head: HeadState {
                seq: 10,
                ts: 100 * DAY,
                version: 3,
                kind: ConversationKind::Group,
                members: 4,
            },
            grant: GrantState {
                grant: 5,
                role: Role::Member,
                visible_from: 5,
                visible_to: 0,
            },
            sender: SenderState {
                grant: 5,
                counter: 2,
                id: MessageKey(22),
                seq: 9,
                ts: 99 * DAY,
            },
        }
    }

    fn send(grant: Seq, counter: u64, previous: u64) -> Send {
        Send {
            user: UserId(1),
            sender: SenderId(2),
            grant,
            counter,
            id: MessageKey(1000 + counter),
            previous: MessageKey(previous),
            once: false,
            kind: Kind::Text,
            encoding: Encoding::Identity,
            body: Default::default(),
            origin: Origin {
                session: SessionId(1),
                ..Origin::default()
            },
            taken: 0,
        }
    }

    fn check(before: &Before, send: &Send, at: Micros, verdict: Verdict, n: u64, seq: Seq) {
        let answer = decide(ConversationId(1), before, send, at);
        assert_eq!(
            (answer.verdict, answer.counter, answer.seq),
            (verdict, n, seq),
            "{send:?}"
        );
    }

    #[test]
    fn the_first_line_that_fits_is_the_verdict() {
        let (b, now) = (before(), 101 * DAY);
        check(&b, &send(5, 3, 22), now, Verdict::Accepted, 3, 11);
        check(&b, &send(5, 2, 0), now, Verdict::Duplicate, 2, 9);
        check(&b, &send(5, 1, 0), now, Verdict::Duplicate, 2, 9);
        check(&b, &send(5, 4, 0), now, Verdict::Gap, 2, 9);
        check(&b, &send(5, 3, 21), now, Verdict::Fork, 2, 9);
        check(&b, &send(4, 3, 22), now, Verdict::Stale, 0, 0);
        check(&b, &send(6, 1, 0), now, Verdict::Over, 0, 0);
    }

    #[test]
    fn an_ended_grant_still_knows_what_it_accepted() {
        let mut b = before();
        b.grant = GrantState {
            grant: 0,
            role: Role::None,
            visible_from: 5,
            visible_to: 10,
        };
        check(&b, &send(5, 2, 0), 101 * DAY, Verdict::Duplicate, 2, 9);
        check(&b, &send(5, 3, 22), 101 * DAY, Verdict::Over, 2, 9);
        // Back under a new grant, counters begin again.
        b.grant = GrantState {
            grant: 10,
            role: Role::Member,
            visible_from: 10,
            visible_to: 0,
        };
        check(&b, &send(10, 1, 0), 101 * DAY, Verdict::Accepted, 1, 11);
        check(&b, &send(5, 3, 22), 101 * DAY, Verdict::Over, 2, 9);
    }

    #[test]
    fn readers_have_no_grant_to_write() {
        let mut b = before();
        b.grant.role = Role::Reader;
        check(&b, &send(5, 3, 22), 101 * DAY, Verdict::Over, 2, 9);
    }

    #[test]
    fn sender_rows_count_for_400_days_of_log_time_and_once_for_seven() {
        let b = before();
        check(
            &b,
            &send(5, 3, 22),
            99 * DAY + SENDER_MAX,
            Verdict::Accepted,
            3,
            11,
        );
        check(
            &b,
            &send(5, 1, 0),
            99 * DAY + SENDER_MAX + 1,
            Verdict::Accepted,
            1,
            11,
        );
        let mut b = before();
        (b.sender.grant, b.sender.counter) = (4, 1);
        let once = Send {
            once: true,
            ..send(5, 1, 0)
        };
        check(&b, &once, 99 * DAY + ONCE_MAX, Verdict::Duplicate, 1, 9);
        check(&b, &once, 99 * DAY + ONCE_MAX + 1, Verdict::Accepted, 1, 11);
    }

    #[test]
    fn time_never_runs_back_within_a_conversation() {
        let answer = decide(ConversationId(1), &before(), &send(5, 3, 22), 1);
        assert_eq!(answer.ts, 100 * DAY + 1);
    }

    #[test]
    fn directory_versions_are_taken_in_order_and_once() {
        let head = before().head;
        let change = |version| Membership {
            version,
            by: UserId(1),
            changes: vec![],
            kind: ConversationKind::Group,
            title: String::new(),
        };
        assert_eq!(decide_membership(&head, &change(3)), Verdict::Duplicate);
        assert_eq!(decide_membership(&head, &change(4)), Verdict::Accepted);
        assert_eq!(decide_membership(&head, &change(5)), Verdict::Gap);
    }

    #[test]
    fn a_change_of_what_one_may_do_ends_a_grant_and_starts_another() {
        let change = |kind| Membership {
            version: 4,
            by: UserId(1),
            changes: vec![],
            kind,
            title: String::new(),
        };
        let group = change(ConversationKind::Group);
        let member = before().grant;
        assert_eq!(
            grant_after(&member, &group, Role::Admin, 11).grant,
            5,
            "a role alone keeps it"
        );
        assert_eq!(grant_after(&member, &group, Role::Reader, 11).grant, 11);
        let gone = grant_after(&member, &group, Role::None, 11);
        assert_eq!(
            (gone.grant, gone.visible_from, gone.visible_to),
            (0, 5, 11),
            "reads up to the event that ended it"
        );
        let nobody = GrantState::default();
        assert_eq!(
            grant_after(&nobody, &group, Role::Member, 11).visible_from,
            11
        );
        assert_eq!(
            grant_after(
                &nobody,
                &change(ConversationKind::Channel),
                Role::Reader,
                11
            )
            .visible_from,
            1
        );
    }
}
