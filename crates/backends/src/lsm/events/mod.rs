//! Blocks of event rows, column by column, because what repeats down a column compresses to
//! nothing and what is random isn't touched.
//!
//! Rows are sorted by (conversation, seq). A *run* is the rows of one conversation. What follows
//! from the row before, in its run or of the same sender in its run, is not written:
//!
//! | column | for | bytes |
//! |---|---|---|
//! | conversations, lengths of runs | each run | 8 raw; a number |
//! | kinds, encodings, flags | each row | 1 each, constant in most blocks |
//! | seqs | first of a run, or not the last + 1 (flag) | difference to the last |
//! | epochs | flag: not the last row's | number |
//! | offsets | each row | difference to the last + 1 |
//! | times before | first of a run, or not the time of the last (flag) | difference to it |
//! | times low, times high | each row | ts − ts before: lowest byte, rest |
//! | who | each row | index into the block's users and senders, the most frequent first |
//! | users, senders, sender flags | each of these | 8 raw, 8 raw if not 0, 1 |
//! | follows | each row that isn't its sender's first in the run | 0: same grant, counter + 1, `before` names that row |
//! | grants, counters, befores | where that doesn't hold | seq − grant; number; see [`BeforeCode`] |
//! | extra | rows that `before` carries whole, parts of membership events | |
//! | ids | flag: not 0 | 8 raw |
//! | lengths, bodies | each row | number; bytes |

mod decode;
mod encode;

pub use decode::EventBlock;
pub use encode::encode;

const FLAG_ID: u8 = 1;
const FLAG_MEMBERS: u8 = 2;
const FLAG_TIME_BEFORE: u8 = 4;
const FLAG_SEQ: u8 = 8;
const FLAG_EPOCH: u8 = 16;

/// Always set in the first row of a run and so written inverted there: the column stays constant.
const FLAGS_FIRST: u8 = FLAG_SEQ | FLAG_TIME_BEFORE;

const FOLLOWS_NOT_COUNTER: u8 = 1;
const FOLLOWS_NOT_BEFORE: u8 = 2;

/// Beside the role of a member's change: the user is the event's own.
const MEMBER_OWN: u8 = 0x80;
/// The user had no grant before.
const MEMBER_NEW: u8 = 0x40;

/// How `before` is written where it isn't the sender's last row in the run.
struct BeforeCode;

impl BeforeCode {
    const NOTHING: u64 = 0;
    /// The whole row is in the extra column.
    const ROW: u64 = 1;
    /// A seq that isn't below the event's own or is absurdly far, in the extra column: no router
    /// writes that, but what is put is given back.
    const SEQ: u64 = 2;
    /// Plus the distance back to the seq, at least 1.
    const DISTANCE: u64 = 2;
}

/// Distances from here on are written as seqs, so that the code can't overflow.
const DISTANCE_MAX: u64 = 1 << 62;

/// The columns, in stored order.
#[derive(Clone, Copy)]
enum Column {
    Conversations,
    Runs,
    Kinds,
    Encodings,
    Flags,
    Seqs,
    Epochs,
    Offsets,
    TimesBefore,
    TimesLow,
    TimesHigh,
    Who,
    Users,
    Senders,
    SenderFlags,
    Follows,
    Grants,
    Counters,
    Befores,
    Extra,
    Ids,
    Lengths,
    Bodies,
}

/// The names of the columns, for measurements.
pub const COLUMN_NAMES: [&str; COLUMNS] = [
    "conversations",
    "runs",
    "kinds",
    "encodings",
    "flags",
    "seqs",
    "epochs",
    "offsets",
    "times before",
    "times low",
    "times high",
    "who",
    "users",
    "senders",
    "sender flags",
    "follows",
    "grants",
    "counters",
    "befores",
    "extra",
    "ids",
    "lengths",
    "bodies",
];
const COLUMNS: usize = Column::Bodies as usize + 1;
