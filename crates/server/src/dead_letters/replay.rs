//! Replaying: a record that can be read now is appended to the log once more.
//!
//! What becomes of it is the router's decision, as for every record (`core::sequencer`); what was numbered stays
//! as it is. The sender's counter keeps it single: unless it is just the sender's next one, nothing happens. Here
//! the same is looked up in the stored rows first, so that an operator is told why, and a record that has no
//! chance isn't appended. Those rows may be a little behind the log; the decision is not.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use tidings_core::ids::{ConversationId, Micros, SenderId, Seq, UserId};
use tidings_core::path::accept;
use tidings_core::ports::dead_letters::{DeadLetter, Key};
use tidings_core::ports::log::{Append, Log};
use tidings_core::ports::store::{STORE_DEADLINE, Store};
use tidings_core::record::{Content, Membership, Origin, Record, Send};
use tidings_core::rows::{GrantState, HeadState, SenderState, StateKey, StateRow, StateValue};
use tidings_core::sequencer::{self, Before, SENDER_MAX, Verdict};
use tokio::time::Instant;

use super::find;
use crate::config::Config;
use crate::offline::runtime;
use crate::parts::{self, Replaying};
use crate::system;

/// How long the log may take to say that it has the record.
const APPEND_DEADLINE: Duration = Duration::from_secs(10);

/// How long the routers may take to decide; a partition without a router gets one in less.
const DECIDED_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Older letters aren't replayed. A sender's row is forgotten after [`SENDER_MAX`]; a record whose message was
/// accepted after all would then be accepted again. The month less is for clocks that differ.
const AGE_MAX: Micros = SENDER_MAX / 400 * 370;

/// What became of one letter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    key: Key,
    what: What,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum What {
    /// It is the event of this seq.
    Accepted(Seq),
    /// The log has it; the router decides at the next start.
    Later,
    /// The log has it, but nobody has told the decision in time.
    Undecided,
    /// It was accepted before: nothing was appended.
    Known(String),
    /// It can't be accepted: nothing was appended.
    Refused(String),
}

impl Outcome {
    /// Whether the record is neither in the log again nor known.
    pub fn is_refused(&self) -> bool {
        matches!(self.what, What::Refused(_))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (partition, position) = (self.key.0.0, self.key.1);
        write!(f, "{partition} {}:{}: ", position.epoch, position.offset)?;
        match &self.what {
            What::Accepted(seq) => write!(f, "replayed; it is seq {seq} of its conversation"),
            What::Later => write!(
                f,
                "appended to the log; it is decided when the server starts, and is the sender's next message unless the log holds that already"
            ),
            What::Undecided => write!(
                f,
                "appended to the log, but not decided within {} s; replay it again later to hear what became of it: it can't become two messages",
                DECIDED_WITHIN.as_secs()
            ),
            What::Known(why) => write!(f, "not replayed, nothing is missing: {why}"),
            What::Refused(why) => write!(f, "not replayed: {why}"),
        }
    }
}

/// Replays letters in the order of their positions, which is the order their senders wrote them in.
///
/// # Errors
/// When letters, log or store can't be used, or there is no such letter. What came before stays replayed, and
/// replaying it again changes nothing.
pub fn replay(config: &Config, mut keys: Vec<Key>) -> anyhow::Result<Vec<Outcome>> {
    keys.sort_unstable();
    keys.dedup();
    let runtime = runtime()?;
    let _entered = runtime.enter();
    runtime.block_on(async {
        let parts = parts::replaying(config).await?;
        let mut replay = Replay {
            parts: &parts,
            known: Known::default(),
        };
        let mut outcomes = Vec::with_capacity(keys.len());
        for key in keys {
            let letter = find(&*parts.dead_letters, key).await?;
            let what = replay.one(letter).await?;
            outcomes.push(Outcome { key, what });
        }
        Ok(outcomes)
    })
}

/// States that the records appended by this command will make, ahead of the stored rows.
#[derive(Default)]
struct Known {
    heads: BTreeMap<ConversationId, HeadState>,
    senders: BTreeMap<(ConversationId, UserId, SenderId), SenderState>,
}

struct Replay<'a> {
    parts: &'a Replaying,
    known: Known,
}

impl Replay<'_> {
    async fn one(&mut self, letter: DeadLetter) -> anyhow::Result<What> {
        let record = match Record::decode(&letter.payload) {
            Ok(record) => record,
            Err(error) => {
                let why = Record::why_unreadable(&letter.payload, error);
                return Ok(What::Refused(format!(
                    "this program can't read it either: {why}"
                )));
            }
        };
        let now = system::now();
        if now.saturating_sub(letter.heading.appended) > AGE_MAX {
            return Ok(What::Refused(
                "it is older than a sender's messages are remembered: nobody could tell whether it was accepted meanwhile".to_owned(),
            ));
        }
        match record.content {
            Content::Send(send) => self.send(record.conversation, send, now).await,
            Content::Membership(change) => self.change(record.conversation, change).await,
        }
    }

    async fn send(
        &mut self,
        conversation: ConversationId,
        send: Send,
        now: Micros,
    ) -> anyhow::Result<What> {
        let sender = (conversation, send.user, send.sender);
        let keys = [
            StateKey::Head,
            StateKey::Grant(send.user),
            StateKey::Sender(send.user, send.sender),
        ];
        let [head, grant, row] = read(&*self.parts.store, conversation, keys).await?;
        let before = Before {
            head: self.known.head(conversation, head_of(head)),
            grant: grant_of(grant),
            sender: self
                .known
                .senders
                .get(&sender)
                .copied()
                .unwrap_or(sender_of(row)),
        };
        let answer = sequencer::decide(conversation, &before, &send, now);
        match answer.verdict {
            Verdict::Accepted => {}
            Verdict::Duplicate => return Ok(What::Known(known(&send, &before.sender))),
            verdict => return Ok(What::Refused(refusal(verdict, &send, answer.counter))),
        }
        // Its session has long gone, and its number may be another's, who would then miss the event.
        let again = Send {
            origin: Origin::default(),
            taken: 0,
            ..send.clone()
        };
        append(&*self.parts.log, accept(conversation, again)).await?;
        let (head, row) = sequencer::accept(&before, &send, &answer);
        self.known.heads.insert(conversation, head);
        self.known.senders.insert(sender, row);
        self.decided(conversation, keys[2], |value| match value {
            StateValue::Sender(row) if row.grant == send.grant && row.counter == send.counter => {
                Some(row.seq)
            }
            // Others were accepted behind it meanwhile.
            StateValue::Sender(row) if row.grant > send.grant || row.counter > send.counter => {
                Some(0)
            }
            _ => None,
        })
        .await
    }

    async fn change(
        &mut self,
        conversation: ConversationId,
        change: Membership,
    ) -> anyhow::Result<What> {
        let [head] = read(&*self.parts.store, conversation, [StateKey::Head]).await?;
        let head = self.known.head(conversation, head_of(head));
        match sequencer::decide_membership(&head, &change) {
            Verdict::Accepted => {}
            Verdict::Duplicate => {
                return Ok(What::Known(format!(
                    "the conversation has come to version {} of its members, and this is version {}",
                    head.version, change.version
                )));
            }
            _ => {
                return Ok(What::Refused(format!(
                    "it is version {} of the members, and version {} comes first; the directory sends both by itself",
                    change.version,
                    head.version + 1
                )));
            }
        }
        let version = change.version;
        let mut payload = Vec::new();
        Record {
            conversation,
            content: Content::Membership(change),
        }
        .encode(&mut payload);
        let record = Append {
            conversation,
            payload: Bytes::from(payload),
        };
        append(&*self.parts.log, record).await?;
        let after = HeadState { version, ..head };
        self.known.heads.insert(conversation, after);
        self.decided(conversation, StateKey::Head, |value| match value {
            StateValue::Head(head) if head.version == version => Some(head.seq),
            StateValue::Head(head) if head.version > version => Some(0),
            _ => None,
        })
        .await
    }

    /// Waits until the stored row tells the decision: the seq, or 0 when it has gone past it.
    async fn decided(
        &self,
        conversation: ConversationId,
        key: StateKey,
        seq: impl Fn(StateValue) -> Option<Seq>,
    ) -> anyhow::Result<What> {
        if !self.parts.is_routed {
            return Ok(What::Later);
        }
        let until = Instant::now() + DECIDED_WITHIN;
        while Instant::now() < until {
            let [row] = read(&*self.parts.store, conversation, [key]).await?;
            match row.and_then(|row| seq(row.value)) {
                Some(0) => return Ok(What::Known("it and others behind it are accepted".into())),
                Some(seq) => return Ok(What::Accepted(seq)),
                None => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
        Ok(What::Undecided)
    }
}

impl Known {
    /// The stored head, or what it will be.
    fn head(&self, conversation: ConversationId, stored: HeadState) -> HeadState {
        match self.heads.get(&conversation) {
            Some(known) if known.seq > stored.seq || known.version > stored.version => *known,
            _ => stored,
        }
    }
}

/// Why a duplicate is one, in an operator's words.
fn known(send: &Send, row: &SenderState) -> String {
    if row.grant == send.grant && row.counter == send.counter && row.id == send.id {
        return format!("it was accepted since then, as seq {}", row.seq);
    }
    if row.grant == send.grant && row.counter == send.counter {
        return format!(
            "the sender has put another message in its place (number {}), which is seq {}",
            send.counter, row.seq
        );
    }
    format!(
        "the sender's messages are accepted up to number {} (seq {}), and this is number {}: it was sent again, or replaced, and numbers are never given twice",
        row.counter, row.seq, send.counter
    )
}

/// Why a send has no chance, in an operator's words.
fn refusal(verdict: Verdict, send: &Send, n: u64) -> String {
    match verdict {
        Verdict::Gap => format!(
            "it is the sender's number {}, and number {} comes first; if that is a dead letter too, replay it first or with this one, else its client sends both again when it is back",
            send.counter,
            n + 1
        ),
        Verdict::Stale | Verdict::Over => format!(
            "the user has left the conversation, or joined it anew, since it was sent (grant {}); messages of then are never accepted, and the client was or will be told so",
            send.grant
        ),
        _ => format!(
            "it follows another message than the sender's number {n}, which was accepted: the client has gone on from there differently"
        ),
    }
}

async fn append(log: &dyn Log, record: Append) -> anyhow::Result<()> {
    let (report, reported) = tokio::sync::oneshot::channel();
    // Whoever waited for it may have given up.
    log.append(
        vec![record],
        Box::new(move |result| _ = report.send(result)),
    );
    match tokio::time::timeout(APPEND_DEADLINE, reported).await {
        Ok(Ok(result)) => Ok(result?),
        _ => bail!(
            "whether the log has the record is not known; replay it again later: it can't become two messages"
        ),
    }
}

async fn read<const N: usize>(
    store: &dyn Store,
    conversation: ConversationId,
    keys: [StateKey; N],
) -> anyhow::Result<[Option<StateRow>; N]> {
    let read = store.read_state(conversation, keys.to_vec());
    let rows = tokio::time::timeout(STORE_DEADLINE, read)
        .await
        .context("the store did not answer in time")??;
    rows.try_into()
        .map_err(|_| anyhow::anyhow!("the store gave another number of rows"))
}

fn head_of(row: Option<StateRow>) -> HeadState {
    match row.map(|row| row.value) {
        Some(StateValue::Head(head)) => head,
        _ => HeadState::default(),
    }
}

fn grant_of(row: Option<StateRow>) -> GrantState {
    match row.map(|row| row.value) {
        Some(StateValue::Grant(grant)) => grant,
        _ => GrantState::default(),
    }
}

fn sender_of(row: Option<StateRow>) -> SenderState {
    match row.map(|row| row.value) {
        Some(StateValue::Sender(sender)) => sender,
        _ => SenderState::default(),
    }
}
