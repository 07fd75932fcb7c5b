//! Event rows into columns.

use std::collections::HashMap;

use tidings_core::ids::{Position, SenderId, Seq, UserId};
use tidings_core::rows::{Before, EventRow, GrantState, MembersBody};
use tidings_core::varint;

use super::super::columns::{Sealer, delta};
use super::*;

struct Columns([Vec<u8>; COLUMNS]);

impl Columns {
    fn number(&mut self, column: Column, value: u64) {
        varint::put(&mut self.0[column as usize], value);
    }

    fn bytes(&mut self, column: Column, bytes: &[u8]) {
        self.0[column as usize].extend_from_slice(bytes);
    }

    fn byte(&mut self, column: Column, byte: u8) {
        self.0[column as usize].push(byte);
    }
}

/// What a sender's next row in the same run is expected to follow from.
#[derive(Clone, Copy, Default)]
struct Last {
    /// The number of the run it is of, from 1; 0: none yet.
    run: usize,
    grant: Seq,
    counter: u64,
    seq: Seq,
}

/// Appends a block of these rows, sorted by (conversation, seq), and returns its length.
pub fn encode(rows: &[EventRow], sealer: &mut Sealer, out: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut columns = Columns(Default::default());
    let who = number_senders(rows, &mut columns);
    let mut last_of = vec![Last::default(); who.len()];
    let mut run = 0;
    let mut run_len = 0;
    let mut last_version = 0;
    let mut previous: Option<&EventRow> = None;
    for row in rows {
        let in_run = previous.filter(|p| p.conversation == row.conversation);
        if in_run.is_none() {
            if run > 0 {
                columns.number(Column::Runs, run_len);
            }
            columns.bytes(Column::Conversations, &row.conversation.0.to_le_bytes());
            run += 1;
            run_len = 0;
            last_version = 0;
        }
        run_len += 1;

        let mut flags = encode_place(row, previous, in_run.is_some(), &mut columns);
        let index = who[&(row.user, row.sender)];
        columns.number(Column::Who, index as u64);
        encode_turn(row, run, &mut last_of[index], &mut columns);
        if row.id.0 != 0 {
            flags |= FLAG_ID;
            columns.bytes(Column::Ids, &row.id.0.to_le_bytes());
        }
        columns.byte(Column::Kinds, row.kind as u8);
        columns.byte(Column::Encodings, row.encoding as u8);
        columns.number(Column::Lengths, row.body.len() as u64);
        columns.bytes(Column::Bodies, &row.body);
        if let Some(members) = &row.members {
            flags |= FLAG_MEMBERS;
            encode_members(row.user, members, last_version, &mut columns);
            last_version = members.version;
        }
        columns.byte(Column::Flags, flags);
        previous = Some(row);
    }
    if run > 0 {
        columns.number(Column::Runs, run_len);
    }
    let slices: [&[u8]; COLUMNS] = std::array::from_fn(|i| columns.0[i].as_slice());
    sealer.seal(&slices, out)
}

/// Writes the users and senders of the block, the most frequent first so that their index takes
/// one byte, and returns the indexes.
fn number_senders(rows: &[EventRow], columns: &mut Columns) -> HashMap<(UserId, SenderId), usize> {
    let mut counts: HashMap<(UserId, SenderId), usize> = HashMap::new();
    for row in rows {
        *counts.entry((row.user, row.sender)).or_default() += 1;
    }
    let mut order: Vec<_> = counts.into_iter().collect();
    order.sort_unstable_by_key(|(pair, count)| (std::cmp::Reverse(*count), *pair));
    for ((user, sender), _) in &order {
        columns.bytes(Column::Users, &user.0.to_le_bytes());
        columns.byte(Column::SenderFlags, u8::from(sender.0 != 0));
        if sender.0 != 0 {
            columns.bytes(Column::Senders, &sender.0.to_le_bytes());
        }
    }
    order
        .into_iter()
        .enumerate()
        .map(|(i, (pair, _))| (pair, i))
        .collect()
}

/// Seq, position and times; returns their flags.
fn encode_place(
    row: &EventRow,
    previous: Option<&EventRow>,
    in_run: bool,
    columns: &mut Columns,
) -> u8 {
    let mut flags = 0;
    let seq = previous.filter(|_| in_run).map_or(0, |p| p.seq);
    if !in_run || row.seq != seq.wrapping_add(1) {
        flags |= FLAG_SEQ;
        columns.number(Column::Seqs, row.seq.wrapping_sub(seq));
    }
    let position = previous.map_or(Position::default(), |p| p.position);
    if row.position.epoch != position.epoch {
        flags |= FLAG_EPOCH;
        columns.number(Column::Epochs, u64::from(row.position.epoch));
    }
    columns.number(
        Column::Offsets,
        delta(row.position.offset, position.offset.wrapping_add(1)),
    );
    let ts = previous.map_or(0, |p| p.ts);
    if !in_run || row.ts_before != ts {
        flags |= FLAG_TIME_BEFORE;
        columns.number(Column::TimesBefore, delta(row.ts_before, ts));
    }
    if !in_run {
        flags ^= FLAGS_FIRST;
    }
    let elapsed = row.ts.wrapping_sub(row.ts_before);
    columns.byte(Column::TimesLow, elapsed as u8);
    columns.number(Column::TimesHigh, elapsed >> 8);
    flags
}

/// Grant, counter and `before`.
fn encode_turn(row: &EventRow, run: usize, last: &mut Last, columns: &mut Columns) {
    let known = last.run == run;
    let counter_follows =
        known && row.grant == last.grant && row.counter == last.counter.wrapping_add(1);
    if !counter_follows {
        columns.number(Column::Grants, row.seq.wrapping_sub(row.grant));
        columns.number(Column::Counters, row.counter);
    }
    let before_follows = known && row.before == Before::Seq(last.seq);
    if !before_follows {
        encode_before(row, columns);
    }
    if known {
        let counter = if counter_follows {
            0
        } else {
            FOLLOWS_NOT_COUNTER
        };
        let before = if before_follows {
            0
        } else {
            FOLLOWS_NOT_BEFORE
        };
        columns.byte(Column::Follows, counter | before);
    }
    *last = Last {
        run,
        grant: row.grant,
        counter: row.counter,
        seq: row.seq,
    };
}

fn encode_before(row: &EventRow, columns: &mut Columns) {
    match row.before {
        Before::Nothing => columns.number(Column::Befores, BeforeCode::NOTHING),
        Before::Seq(seq) if seq < row.seq && row.seq - seq < DISTANCE_MAX => {
            columns.number(Column::Befores, BeforeCode::DISTANCE + (row.seq - seq))
        }
        Before::Seq(seq) => {
            columns.number(Column::Befores, BeforeCode::SEQ);
            columns.number(Column::Extra, seq);
        }
        Before::Row(state) => {
            columns.number(Column::Befores, BeforeCode::ROW);
            for number in [state.grant, state.counter, state.seq, state.ts] {
                columns.number(Column::Extra, number);
            }
            columns.bytes(Column::Extra, &state.id.0.to_le_bytes());
        }
    }
}

fn encode_members(by: UserId, members: &MembersBody, last_version: u64, columns: &mut Columns) {
    columns.number(
        Column::Extra,
        delta(members.version, last_version.wrapping_add(1)),
    );
    columns.byte(Column::Extra, members.kind as u8);
    varint::put_bytes(
        &mut columns.0[Column::Extra as usize],
        members.title.as_bytes(),
    );
    columns.number(Column::Extra, members.changes.len() as u64);
    for change in &members.changes {
        let own = change.user == by;
        let new = change.before == GrantState::default();
        columns.byte(
            Column::Extra,
            change.role as u8 | if own { MEMBER_OWN } else { 0 } | if new { MEMBER_NEW } else { 0 },
        );
        if !own {
            // Random bytes belong among the ids, which aren't compressed.
            columns.bytes(Column::Ids, &change.user.0.to_le_bytes());
        }
        if !new {
            let before = change.before;
            columns.byte(Column::Extra, before.role as u8);
            for number in [before.grant, before.visible_from, before.visible_to] {
                columns.number(Column::Extra, number);
            }
        }
    }
}
