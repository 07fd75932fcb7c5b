//! Columns back into event rows: once into compact rows that are cached, then one by one into
//! the rows asked for, whose bodies share the block's memory.

use bytes::Bytes;
use tidings_core::ids::{ConversationId, MessageKey, Position, SenderId, Seq, UserId};
use tidings_core::record::{ConversationKind, Encoding, Kind, Role};
use tidings_core::rows::{Before, EventRow, GrantState, MemberChange, MembersBody, SenderState};
use tidings_core::varint::{Malformed, Reader};

use super::super::columns::{ROWS_MAX, undelta, unseal};
use super::*;

const WHAT: &str = "event block";

/// No block of ours has more changes of members: 1,365 events of 1,000 at the default size.
const CHANGES_MAX: usize = 1 << 22;

/// A row without its conversation and body bytes.
struct Compact {
    seq: Seq,
    position: Position,
    ts: u64,
    ts_before: u64,
    grant: Seq,
    counter: u64,
    id: u64,
    before: CompactBefore,
    who: u32,
    body_start: u32,
    body_len: u32,
    /// Index into the members bodies.
    members: Option<u32>,
    kind: Kind,
    encoding: Encoding,
}

/// [`Before`] with the rare large case out of line.
enum CompactBefore {
    Nothing,
    Seq(Seq),
    Row(u32),
}

struct Run {
    conversation: ConversationId,
    /// Index of the first row.
    start: usize,
    end: usize,
}

/// An inflated block.
pub struct EventBlock {
    runs: Vec<Run>,
    rows: Vec<Compact>,
    who: Vec<(UserId, SenderId)>,
    before_rows: Vec<SenderState>,
    members: Vec<MembersBody>,
    bodies: Bytes,
}

impl EventBlock {
    /// Takes stored bytes apart.
    pub fn decode(stored: &Bytes) -> Result<EventBlock, Malformed> {
        Decoder::new(&unseal(stored)?)?.run()
    }

    /// About how much memory the block takes.
    pub fn weight(&self) -> usize {
        self.rows.len() * size_of::<Compact>()
            + self.who.len() * 16
            + self.bodies.len()
            + self.before_rows.len() * size_of::<SenderState>()
            + self.members.iter().map(members_weight).sum::<usize>()
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The indexes of a conversation's rows.
    pub fn run(&self, conversation: ConversationId) -> std::ops::Range<usize> {
        match self
            .runs
            .binary_search_by_key(&conversation, |r| r.conversation)
        {
            Ok(i) => self.runs[i].start..self.runs[i].end,
            Err(_) => 0..0,
        }
    }

    /// The index of the first row at or after `seq` within a run; the run's end when there is none.
    pub fn find(&self, run: std::ops::Range<usize>, seq: Seq) -> usize {
        run.start + self.rows[run].partition_point(|r| r.seq < seq)
    }

    /// The seq of a row.
    pub fn seq(&self, index: usize) -> Seq {
        self.rows[index].seq
    }

    /// The position of a row.
    pub fn position(&self, index: usize) -> Position {
        self.rows[index].position
    }

    /// The conversation of a row, by search.
    pub fn conversation(&self, index: usize) -> ConversationId {
        let run = self.runs.partition_point(|r| r.end <= index);
        self.runs[run].conversation
    }

    /// Makes one row; the body is a slice of the block.
    pub fn row(&self, conversation: ConversationId, index: usize) -> EventRow {
        let row = &self.rows[index];
        let (user, sender) = self.who[row.who as usize];
        let body = row.body_start as usize..(row.body_start + row.body_len) as usize;
        EventRow {
            conversation,
            seq: row.seq,
            position: row.position,
            ts: row.ts,
            ts_before: row.ts_before,
            user,
            sender,
            grant: row.grant,
            counter: row.counter,
            id: MessageKey(row.id),
            before: match row.before {
                CompactBefore::Nothing => Before::Nothing,
                CompactBefore::Seq(seq) => Before::Seq(seq),
                CompactBefore::Row(i) => Before::Row(self.before_rows[i as usize]),
            },
            kind: row.kind,
            encoding: row.encoding,
            body: self.bodies.slice(body),
            members: row
                .members
                .map(|i| Box::new(self.members[i as usize].clone())),
        }
    }
}

fn members_weight(members: &MembersBody) -> usize {
    size_of::<MembersBody>()
        + members.title.len()
        + members.changes.len() * size_of::<MemberChange>()
}

/// What a sender's next row in the same run follows from; see the encoder.
#[derive(Clone, Copy, Default)]
struct Last {
    run: usize,
    grant: Seq,
    counter: u64,
    seq: Seq,
}

struct Decoder<'a> {
    columns: [Reader<'a>; COLUMNS],
    block: EventBlock,
    last_of: Vec<Last>,
    body_end: usize,
    changes_left: usize,
}

impl<'a> Decoder<'a> {
    fn new(columns: &'a [Bytes]) -> Result<Self, Malformed> {
        let columns: &[Bytes; COLUMNS] = columns.try_into().map_err(|_| Malformed::of(WHAT))?;
        let bodies = columns[Column::Bodies as usize].clone();
        let mut decoder = Decoder {
            columns: std::array::from_fn(|i| Reader::new(&columns[i], WHAT)),
            block: EventBlock {
                runs: Vec::new(),
                rows: Vec::new(),
                who: Vec::new(),
                before_rows: Vec::new(),
                members: Vec::new(),
                bodies,
            },
            last_of: Vec::new(),
            body_end: 0,
            changes_left: CHANGES_MAX,
        };
        let mut flags = *decoder.column(Column::SenderFlags);
        while !flags.is_empty() {
            let user = UserId(decoder.column(Column::Users).fixed64()?);
            let sender = if flags.byte()? == 0 {
                0
            } else {
                decoder.column(Column::Senders).fixed64()?
            };
            decoder.block.who.push((user, SenderId(sender)));
        }
        decoder.last_of = vec![Last::default(); decoder.block.who.len()];
        Ok(decoder)
    }

    fn column(&mut self, column: Column) -> &mut Reader<'a> {
        &mut self.columns[column as usize]
    }

    fn run(mut self) -> Result<EventBlock, Malformed> {
        let total = self.column(Column::Kinds).rest().len();
        if total > ROWS_MAX {
            return Err(Malformed::of(WHAT));
        }
        self.block.rows.reserve_exact(total);
        while !self.column(Column::Runs).is_empty() {
            let conversation = ConversationId(self.column(Column::Conversations).fixed64()?);
            let start = self.block.rows.len();
            let len = self.column(Column::Runs).varint()?;
            let in_order = self
                .block
                .runs
                .last()
                .is_none_or(|r| r.conversation < conversation);
            if len == 0 || len > (total - start) as u64 || !in_order {
                return Err(Malformed::of(WHAT));
            }
            let end = start + len as usize;
            self.block.runs.push(Run {
                conversation,
                start,
                end,
            });
            let mut version = 0;
            for index in start..end {
                let row = self.row(index > start, &mut version)?;
                self.block.rows.push(row);
            }
        }
        if self.block.rows.len() == total {
            Ok(self.block)
        } else {
            Err(Malformed::of(WHAT))
        }
    }

    fn row(&mut self, in_run: bool, version: &mut u64) -> Result<Compact, Malformed> {
        let malformed = Malformed::of(WHAT);
        let kind = Kind::from_number(self.column(Column::Kinds).byte()?).ok_or(malformed)?;
        let encoding =
            Encoding::from_number(self.column(Column::Encodings).byte()?).ok_or(malformed)?;
        let flags = self.column(Column::Flags).byte()? ^ if in_run { 0 } else { FLAGS_FIRST };
        let (last_position, last_ts, last_seq) = self
            .block
            .rows
            .last()
            .map_or((Position::default(), 0, 0), |p| (p.position, p.ts, p.seq));

        let seq = match flags & FLAG_SEQ {
            0 => last_seq.wrapping_add(1),
            _ => {
                self.column(Column::Seqs)
                    .varint()?
                    .wrapping_add(if in_run { last_seq } else { 0 })
            }
        };
        if in_run && seq <= last_seq {
            return Err(malformed);
        }
        let epoch = match flags & FLAG_EPOCH {
            0 => last_position.epoch,
            _ => self.column(Column::Epochs).varint32()?,
        };
        let offset = undelta(
            self.column(Column::Offsets).varint()?,
            last_position.offset.wrapping_add(1),
        );
        let ts_before = match flags & FLAG_TIME_BEFORE {
            0 => last_ts,
            _ => undelta(self.column(Column::TimesBefore).varint()?, last_ts),
        };
        let low = self.column(Column::TimesLow).byte()?;
        let elapsed = (self.column(Column::TimesHigh).varint()? << 8) | u64::from(low);

        let who = self.column(Column::Who).varint32()?;
        let run = self.block.runs.len();
        let last = *self.last_of.get(who as usize).ok_or(malformed)?;
        let known = last.run == run;
        let follows = if known {
            self.column(Column::Follows).byte()?
        } else {
            FOLLOWS_NOT_COUNTER | FOLLOWS_NOT_BEFORE
        };
        let (grant, counter) = match follows & FOLLOWS_NOT_COUNTER {
            0 => (last.grant, last.counter.wrapping_add(1)),
            _ => (
                seq.wrapping_sub(self.column(Column::Grants).varint()?),
                self.column(Column::Counters).varint()?,
            ),
        };
        let before = match follows & FOLLOWS_NOT_BEFORE {
            0 => CompactBefore::Seq(last.seq),
            _ => self.before(seq)?,
        };
        self.last_of[who as usize] = Last {
            run,
            grant,
            counter,
            seq,
        };

        let id = match flags & FLAG_ID {
            0 => 0,
            _ => self.column(Column::Ids).fixed64()?,
        };
        let body_start = self.body_end;
        let body_len = self.column(Column::Lengths).varint32()?;
        self.body_end += body_len as usize;
        if self.body_end > self.block.bodies.len() {
            return Err(malformed);
        }
        let members = match flags & FLAG_MEMBERS {
            0 => None,
            _ => Some(self.members(who, version)?),
        };
        let position = Position { epoch, offset };
        let ts = ts_before.wrapping_add(elapsed);
        let body_start = u32::try_from(body_start).map_err(|_| malformed)?;
        Ok(Compact {
            seq,
            position,
            ts,
            ts_before,
            grant,
            counter,
            id,
            before,
            who,
            body_start,
            body_len,
            members,
            kind,
            encoding,
        })
    }

    fn before(&mut self, seq: Seq) -> Result<CompactBefore, Malformed> {
        let code = self.column(Column::Befores).varint()?;
        let extra = self.column(Column::Extra);
        Ok(match code {
            BeforeCode::NOTHING => CompactBefore::Nothing,
            BeforeCode::SEQ => CompactBefore::Seq(extra.varint()?),
            BeforeCode::ROW => {
                let (grant, counter, seq, ts) = (
                    extra.varint()?,
                    extra.varint()?,
                    extra.varint()?,
                    extra.varint()?,
                );
                let id = MessageKey(extra.fixed64()?);
                self.block.before_rows.push(SenderState {
                    grant,
                    counter,
                    id,
                    seq,
                    ts,
                });
                CompactBefore::Row(self.block.before_rows.len() as u32 - 1)
            }
            distance => CompactBefore::Seq(
                seq.checked_sub(distance - BeforeCode::DISTANCE)
                    .ok_or(extra.malformed())?,
            ),
        })
    }

    fn members(&mut self, who: u32, last_version: &mut u64) -> Result<u32, Malformed> {
        let malformed = Malformed::of(WHAT);
        let own = self.block.who[who as usize].0;
        let extra = self.column(Column::Extra);
        let version = undelta(extra.varint()?, last_version.wrapping_add(1));
        *last_version = version;
        let kind = ConversationKind::from_number(extra.byte()?).ok_or(malformed)?;
        let title = std::str::from_utf8(extra.bytes()?)
            .map_err(|_| malformed)?
            .to_owned();
        let count = extra.varint()?;
        if count > extra.rest().len().min(self.changes_left) as u64 {
            return Err(malformed);
        }
        self.changes_left -= count as usize;
        let mut changes = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let code = self.column(Column::Extra).byte()?;
            let user = if code & MEMBER_OWN != 0 {
                own
            } else {
                UserId(self.column(Column::Ids).fixed64()?)
            };
            let role = Role::from_number(code & !(MEMBER_OWN | MEMBER_NEW)).ok_or(malformed)?;
            let extra = self.column(Column::Extra);
            let before = if code & MEMBER_NEW != 0 {
                GrantState::default()
            } else {
                let role = Role::from_number(extra.byte()?).ok_or(malformed)?;
                GrantState {
                    role,
                    grant: extra.varint()?,
                    visible_from: extra.varint()?,
                    visible_to: extra.varint()?,
                }
            };
            changes.push(MemberChange { user, role, before });
        }
        self.block.members.push(MembersBody {
            version,
            kind,
            title,
            changes,
        });
        Ok(self.block.members.len() as u32 - 1)
    }
}
