//! Blocks of state rows and cursors, column by column.
//!
//! Sorted by (conversation, user, tag, sender): what a session or a decision needs of one user
//! lies together, and the user is written once. The head comes first in its conversation.
//!
//! | column | for | bytes |
//! |---|---|---|
//! | conversations, runs | each conversation | 8 raw; number of rows |
//! | tags, flags | each row | 1 each |
//! | users | not the last row's (flag) | 8 raw |
//! | senders, ids | sender rows | 8 raw each |
//! | seqs | each row | head, sender: the seq; grant: the grant; cursor: delivered |
//! | offsets, epochs | state rows; flag | offset − seq, as a difference to the last row's |
//! | times | state rows | difference to the block's first |
//! | values | each row | what is left, see `encode_value` |

use std::cmp::Ordering;

use bytes::Bytes;
use tidings_core::ids::{ConversationId, MessageKey, Position, SenderId, Seq, UserId};
use tidings_core::record::{ConversationKind, Role};
use tidings_core::rows::{
    CursorRow, GrantState, HeadState, SenderState, StateKey, StateRow, StateValue,
};
use tidings_core::varint::{self, Malformed, Reader};

use super::columns::{ROWS_MAX, Sealer, delta, undelta, unseal};

const WHAT: &str = "state block";

const TAG_HEAD: u8 = 0;
const TAG_GRANT: u8 = 1;
const TAG_SENDER: u8 = 2;
const TAG_CURSOR: u8 = 3;

const FLAG_USER: u8 = 1;
const FLAG_EPOCH: u8 = 2;
/// The row isn't stamped with the time that its value holds.
const FLAG_STAMP: u8 = 4;

/// A row of either kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Row {
    /// Of two the later position stays.
    State(StateRow),
    /// Of two the greater numbers stay.
    Cursor(CursorRow),
}

/// Where a row is sorted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RowKey {
    /// First.
    pub conversation: ConversationId,
    /// 0 for the head.
    pub user: UserId,
    tag: u8,
    sender: SenderId,
}

impl RowKey {
    /// The place of a row of state.
    pub fn of_state(conversation: ConversationId, key: StateKey) -> RowKey {
        let (user, tag, sender) = match key {
            StateKey::Head => (UserId(0), TAG_HEAD, SenderId(0)),
            StateKey::Grant(user) => (user, TAG_GRANT, SenderId(0)),
            StateKey::Sender(user, sender) => (user, TAG_SENDER, sender),
        };
        RowKey {
            conversation,
            user,
            tag,
            sender,
        }
    }

    /// The place of a user's cursor.
    pub fn of_cursor(conversation: ConversationId, user: UserId) -> RowKey {
        RowKey {
            conversation,
            user,
            tag: TAG_CURSOR,
            sender: SenderId(0),
        }
    }

    /// The stored bytes, in an index.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for fixed in [self.conversation.0, self.user.0, self.sender.0] {
            out.extend_from_slice(&fixed.to_le_bytes());
        }
        out.push(self.tag);
    }

    /// Undoes [`RowKey::encode`].
    pub fn decode(r: &mut Reader<'_>) -> Result<RowKey, Malformed> {
        let (conversation, user, sender) = (r.fixed64()?, r.fixed64()?, r.fixed64()?);
        Ok(RowKey {
            conversation: ConversationId(conversation),
            user: UserId(user),
            sender: SenderId(sender),
            tag: r.byte()?,
        })
    }
}

impl Row {
    /// Where it is sorted.
    pub fn key(&self) -> RowKey {
        match self {
            Row::State(row) => RowKey::of_state(row.conversation, row.key),
            Row::Cursor(row) => RowKey::of_cursor(row.conversation, row.user),
        }
    }

    /// Of two rows with one key, what the store says.
    pub fn merge(self, other: Row) -> Row {
        match (self, other) {
            (Row::State(a), Row::State(b)) => Row::State(later(a, b)),
            (Row::Cursor(a), Row::Cursor(b)) => Row::Cursor(greater(a, b)),
            // Their keys differ, so nobody asks; keep the first.
            (first, _) => first,
        }
    }
}

/// The row with the later position; the first where they are of the same.
pub fn later(a: StateRow, b: StateRow) -> StateRow {
    if b.position.cmp(&a.position) == Ordering::Greater {
        b
    } else {
        a
    }
}

/// A cursor with the greater of each number.
pub fn greater(a: CursorRow, b: CursorRow) -> CursorRow {
    CursorRow {
        delivered: a.delivered.max(b.delivered),
        read: a.read.max(b.read),
        ..a
    }
}

#[derive(Clone, Copy)]
enum Column {
    Conversations,
    Runs,
    Tags,
    Flags,
    Users,
    Senders,
    Ids,
    Seqs,
    Offsets,
    Epochs,
    Times,
    Values,
}

const COLUMNS: usize = Column::Values as usize + 1;

/// The names of the columns, for measurements.
pub const COLUMN_NAMES: [&str; COLUMNS] = [
    "conversations",
    "runs",
    "tags",
    "flags",
    "users",
    "senders",
    "ids",
    "seqs",
    "offsets",
    "epochs",
    "times",
    "values",
];

/// What the next row is written against.
#[derive(Clone, Copy, Default)]
struct Context {
    user: UserId,
    /// The last grant of the same user.
    grant: Seq,
    epoch: u32,
    /// The last row's offset − seq.
    lead: u64,
    /// The first row's time.
    time: Option<u64>,
}

struct Columns([Vec<u8>; COLUMNS]);

impl Columns {
    fn number(&mut self, column: Column, value: u64) {
        varint::put(&mut self.0[column as usize], value);
    }

    fn fixed(&mut self, column: Column, value: u64) {
        self.0[column as usize].extend_from_slice(&value.to_le_bytes());
    }

    fn byte(&mut self, column: Column, byte: u8) {
        self.0[column as usize].push(byte);
    }
}

/// Appends a block of these rows, sorted by key, and returns its length.
pub fn encode(rows: &[Row], sealer: &mut Sealer, out: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut columns = Columns(Default::default());
    let mut context = Context::default();
    for run in rows.chunk_by(|a, b| a.key().conversation == b.key().conversation) {
        columns.fixed(Column::Conversations, run[0].key().conversation.0);
        columns.number(Column::Runs, run.len() as u64);
        context.user = UserId(0);
        context.grant = 0;
        for row in run {
            encode_row(row, &mut context, &mut columns);
        }
    }
    let slices: [&[u8]; COLUMNS] = std::array::from_fn(|i| columns.0[i].as_slice());
    sealer.seal(&slices, out)
}

fn encode_row(row: &Row, context: &mut Context, columns: &mut Columns) {
    let key = row.key();
    let mut flags = 0;
    columns.byte(Column::Tags, key.tag);
    if key.user != context.user {
        flags |= FLAG_USER;
        columns.fixed(Column::Users, key.user.0);
        context.user = key.user;
        context.grant = 0;
    }
    match row {
        Row::Cursor(cursor) => {
            columns.number(Column::Seqs, cursor.delivered);
            columns.number(Column::Values, delta(cursor.read, cursor.delivered));
        }
        Row::State(state) => {
            let (seq, own_time) = encode_value(state, context, columns);
            if state.position.epoch != context.epoch {
                flags |= FLAG_EPOCH;
                columns.number(Column::Epochs, u64::from(state.position.epoch));
                context.epoch = state.position.epoch;
            }
            let lead = state.position.offset.wrapping_sub(seq);
            columns.number(Column::Offsets, delta(lead, context.lead));
            context.lead = lead;
            let base = context.time.unwrap_or(0);
            columns.number(Column::Times, delta(state.ts, base));
            context.time.get_or_insert(state.ts);
            if own_time.is_some_and(|t| t != state.ts) {
                flags |= FLAG_STAMP;
                columns.number(Column::Times, delta(own_time.unwrap_or(0), base));
            }
        }
    }
    columns.byte(Column::Flags, flags);
}

/// Writes the value but for its time; returns the seq and that time.
fn encode_value(
    row: &StateRow,
    context: &mut Context,
    columns: &mut Columns,
) -> (Seq, Option<u64>) {
    match row.value {
        StateValue::Head(head) => {
            columns.number(Column::Seqs, head.seq);
            columns.number(Column::Values, head.version);
            columns.byte(Column::Values, head.kind as u8);
            columns.number(Column::Values, u64::from(head.members));
            (head.seq, Some(head.ts))
        }
        StateValue::Grant(grant) => {
            columns.number(Column::Seqs, grant.grant);
            columns.byte(Column::Values, grant.role as u8);
            columns.number(Column::Values, delta(grant.visible_from, grant.grant));
            columns.number(Column::Values, grant.visible_to);
            context.grant = grant.grant;
            (grant.grant, None)
        }
        StateValue::Sender(sender) => {
            if let StateKey::Sender(_, id) = row.key {
                columns.fixed(Column::Senders, id.0);
            }
            columns.fixed(Column::Ids, sender.id.0);
            columns.number(Column::Seqs, sender.seq);
            columns.number(Column::Values, delta(sender.grant, context.grant));
            columns.number(Column::Values, sender.counter);
            context.grant = sender.grant;
            (sender.seq, Some(sender.ts))
        }
    }
}

/// An inflated block.
pub struct RowBlock {
    rows: Vec<Row>,
}

impl RowBlock {
    /// Takes stored bytes apart.
    pub fn decode(stored: &Bytes) -> Result<RowBlock, Malformed> {
        let columns = unseal(stored)?;
        let columns: &[Bytes; COLUMNS] = columns
            .as_slice()
            .try_into()
            .map_err(|_| Malformed::of(WHAT))?;
        let mut decoder = Decoder {
            columns: std::array::from_fn(|i| Reader::new(&columns[i], WHAT)),
            context: Context::default(),
        };
        let total = columns[Column::Tags as usize].len();
        if total > ROWS_MAX {
            return Err(Malformed::of(WHAT));
        }
        let mut rows: Vec<Row> = Vec::with_capacity(total);
        while !decoder.column(Column::Runs).is_empty() {
            let conversation = ConversationId(decoder.column(Column::Conversations).fixed64()?);
            let len = decoder.column(Column::Runs).varint()?;
            decoder.context.user = UserId(0);
            decoder.context.grant = 0;
            for _ in 0..len {
                let row = decoder.row(conversation)?;
                if rows.last().is_some_and(|last| last.key() >= row.key()) {
                    return Err(Malformed::of(WHAT));
                }
                rows.push(row);
            }
        }
        Ok(RowBlock { rows })
    }

    /// The row with this key.
    pub fn get(&self, key: &RowKey) -> Option<Row> {
        self.rows
            .binary_search_by_key(key, Row::key)
            .ok()
            .map(|i| self.rows[i])
    }

    /// All rows, sorted.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// About how much memory the block takes.
    pub fn weight(&self) -> usize {
        self.rows.len() * size_of::<Row>()
    }
}

struct Decoder<'a> {
    columns: [Reader<'a>; COLUMNS],
    context: Context,
}

impl<'a> Decoder<'a> {
    fn column(&mut self, column: Column) -> &mut Reader<'a> {
        &mut self.columns[column as usize]
    }

    fn row(&mut self, conversation: ConversationId) -> Result<Row, Malformed> {
        let tag = self.column(Column::Tags).byte()?;
        let flags = self.column(Column::Flags).byte()?;
        if flags & FLAG_USER != 0 {
            self.context.user = UserId(self.column(Column::Users).fixed64()?);
            self.context.grant = 0;
        }
        let user = self.context.user;
        let seq = self.column(Column::Seqs).varint()?;
        if tag == TAG_CURSOR {
            let read = undelta(self.column(Column::Values).varint()?, seq);
            return Ok(Row::Cursor(CursorRow {
                conversation,
                user,
                delivered: seq,
                read,
            }));
        }
        let (key, mut value) = self.value(tag, user, seq)?;
        if flags & FLAG_EPOCH != 0 {
            self.context.epoch = self.column(Column::Epochs).varint32()?;
        }
        self.context.lead = undelta(self.column(Column::Offsets).varint()?, self.context.lead);
        let position = Position {
            epoch: self.context.epoch,
            offset: self.context.lead.wrapping_add(seq),
        };
        let base = self.context.time.unwrap_or(0);
        let ts = undelta(self.column(Column::Times).varint()?, base);
        self.context.time.get_or_insert(ts);
        let own_time = if flags & FLAG_STAMP != 0 {
            undelta(self.column(Column::Times).varint()?, base)
        } else {
            ts
        };
        match &mut value {
            StateValue::Head(head) => head.ts = own_time,
            StateValue::Sender(sender) => sender.ts = own_time,
            StateValue::Grant(_) => {}
        }
        Ok(Row::State(StateRow {
            conversation,
            key,
            position,
            ts,
            value,
        }))
    }

    /// Key and value, the value's own time left out.
    fn value(
        &mut self,
        tag: u8,
        user: UserId,
        seq: Seq,
    ) -> Result<(StateKey, StateValue), Malformed> {
        let malformed = Malformed::of(WHAT);
        let last_grant = self.context.grant;
        let sender_id = if tag == TAG_SENDER {
            self.column(Column::Senders).fixed64()?
        } else {
            0
        };
        let id = if tag == TAG_SENDER {
            self.column(Column::Ids).fixed64()?
        } else {
            0
        };
        let values = self.column(Column::Values);
        match tag {
            TAG_HEAD => {
                let version = values.varint()?;
                let kind = ConversationKind::from_number(values.byte()?).ok_or(malformed)?;
                let members = values.varint32()?;
                Ok((
                    StateKey::Head,
                    StateValue::Head(HeadState {
                        seq,
                        ts: 0,
                        version,
                        kind,
                        members,
                    }),
                ))
            }
            TAG_GRANT => {
                let role = Role::from_number(values.byte()?).ok_or(malformed)?;
                let visible_from = undelta(values.varint()?, seq);
                let visible_to = values.varint()?;
                self.context.grant = seq;
                Ok((
                    StateKey::Grant(user),
                    StateValue::Grant(GrantState {
                        grant: seq,
                        role,
                        visible_from,
                        visible_to,
                    }),
                ))
            }
            TAG_SENDER => {
                let grant = undelta(values.varint()?, last_grant);
                let counter = values.varint()?;
                self.context.grant = grant;
                let state = SenderState {
                    grant,
                    counter,
                    id: MessageKey(id),
                    seq,
                    ts: 0,
                };
                Ok((
                    StateKey::Sender(user, SenderId(sender_id)),
                    StateValue::Sender(state),
                ))
            }
            _ => Err(malformed),
        }
    }
}
