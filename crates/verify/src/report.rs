//! What a check found.

use crate::history::Record;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The ways in which a history can break a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Acknowledged, and no event has it.
    Lost,
    /// A message has another body than was sent.
    Corrupt,
    /// A message has two seqs.
    Duplicate,
    /// A device was shown a seq twice.
    ShownTwice,
    /// Two devices were shown different events at one seq.
    OrderDifference,
    /// A later event has no later time.
    TimeOrder,
    /// A device was shown n + 1 before n.
    ShownOutOfOrder,
    /// A sender's messages are not in its order, or one between them is missing.
    SenderOrder,
    /// A message numbered after another was acknowledged comes before it.
    AckOrder,
    /// An answer says something else than another answer, or than the events.
    AckMismatch,
    /// An event that nobody sent.
    Ghost,
    /// An event whose sender was told that it will never be.
    AbortedRead,
    /// A message in another conversation than it was sent to.
    WrongConversation,
    /// A device was never shown a seq between others.
    Gap,
    /// A device was never shown the last seqs.
    TailLost,
    /// The server called a device complete that wasn't.
    CompleteLie,
    /// A device was shown what its user may not see.
    NotVisible,
    /// A sender was never told what became of a message.
    Stuck,
    /// A cursor or a receipt went back.
    ReceiptRegress,
    /// A cursor or a receipt is beyond the head or beyond what was shown.
    ReceiptBeyond,
    /// The number of unread events is wrong.
    UnreadMismatch,
}

impl Kind {
    /// Every kind, in the order of the report.
    pub const ALL: [Kind; 21] = [
        Kind::Lost,
        Kind::Corrupt,
        Kind::Duplicate,
        Kind::ShownTwice,
        Kind::OrderDifference,
        Kind::TimeOrder,
        Kind::ShownOutOfOrder,
        Kind::SenderOrder,
        Kind::AckOrder,
        Kind::AckMismatch,
        Kind::Ghost,
        Kind::AbortedRead,
        Kind::WrongConversation,
        Kind::Gap,
        Kind::TailLost,
        Kind::CompleteLie,
        Kind::NotVisible,
        Kind::Stuck,
        Kind::ReceiptRegress,
        Kind::ReceiptBeyond,
        Kind::UnreadMismatch,
    ];

    /// The promise it breaks, 1 to 5.
    pub fn promise(self) -> u8 {
        match self {
            Kind::Lost | Kind::Corrupt => 1,
            Kind::OrderDifference
            | Kind::TimeOrder
            | Kind::ShownOutOfOrder
            | Kind::SenderOrder
            | Kind::AckOrder => 2,
            Kind::Duplicate
            | Kind::ShownTwice
            | Kind::AckMismatch
            | Kind::Ghost
            | Kind::AbortedRead
            | Kind::WrongConversation => 3,
            Kind::Gap
            | Kind::TailLost
            | Kind::CompleteLie
            | Kind::NotVisible
            | Kind::ReceiptRegress
            | Kind::ReceiptBeyond
            | Kind::UnreadMismatch => 4,
            Kind::Stuck => 5,
        }
    }

    /// Its name in reports, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Lost => "lost",
            Kind::Corrupt => "corrupt",
            Kind::Duplicate => "duplicate",
            Kind::ShownTwice => "shown_twice",
            Kind::OrderDifference => "order_difference",
            Kind::TimeOrder => "time_order",
            Kind::ShownOutOfOrder => "shown_out_of_order",
            Kind::SenderOrder => "sender_order",
            Kind::AckOrder => "ack_order",
            Kind::AckMismatch => "ack_mismatch",
            Kind::Ghost => "ghost",
            Kind::AbortedRead => "aborted_read",
            Kind::WrongConversation => "wrong_conversation",
            Kind::Gap => "gap",
            Kind::TailLost => "tail_lost",
            Kind::CompleteLie => "complete_lie",
            Kind::NotVisible => "not_visible",
            Kind::Stuck => "stuck",
            Kind::ReceiptRegress => "receipt_regress",
            Kind::ReceiptBeyond => "receipt_beyond",
            Kind::UnreadMismatch => "unread_mismatch",
        }
    }
}

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Anomaly {
    /// Which way.
    pub kind: Kind,
    /// Which promise, 1 to 5.
    pub promise: u8,
    /// The conversation as 16 hex digits.
    pub conversation: String,
    /// The seqs concerned; for missing ranges, first and last.
    pub seqs: Vec<u64>,
    /// The devices concerned, as 16 hex digits.
    pub devices: Vec<String>,
    /// The records that contradict each other, at most two. Where only what matters of a record
    /// was kept, the rest is filled in from its place.
    pub records: Vec<Record>,
    /// One plain sentence.
    pub sentence: String,
}

/// What a check found. As JSON by serde, as a table by `Display`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Records read.
    pub records: u64,
    /// Torn last lines dropped while reading.
    pub torn: u64,
    /// Conversations seen.
    pub conversations: u64,
    /// Devices seen.
    pub devices: u64,
    /// Messages numbered.
    pub messages: u64,
    /// Of these, acknowledged.
    pub acked: u64,
    /// Of these, given up.
    pub failed: u64,
    /// Numbered messages of which a user was told that nothing can be known.
    pub unknown: u64,
    /// Distinct events shown to anybody.
    pub events: u64,
    /// Events shown, counted per device.
    pub delivered: u64,
    /// Devices × conversations that were judged complete at the end.
    pub finals: u64,
    /// Syncs that the server called complete.
    pub synced: u64,
    /// Restarts of parts.
    pub restarts: u64,
    /// Devices that lost what they had not stored.
    pub resets: u64,
    /// Times the log began anew.
    pub epochs: u64,
    /// Acknowledged messages that no event has, where no complete device could have seen them:
    /// neither found nor lost. A run that means to show that nothing is lost wants 0 here.
    pub unproven: u64,
    /// How many anomalies of each kind; kinds without any are absent.
    pub anomalies: BTreeMap<Kind, u64>,
    /// The first anomalies of each kind.
    pub detail: Vec<Anomaly>,
}

impl Report {
    /// Whether no promise was broken.
    pub fn is_clean(&self) -> bool {
        self.anomalies.is_empty()
    }

    /// How many anomalies of this kind.
    pub fn count(&self, kind: Kind) -> u64 {
        self.anomalies.get(&kind).copied().unwrap_or(0)
    }

    /// How many anomalies in all.
    pub fn total(&self) -> u64 {
        self.anomalies.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("records", self.records),
            ("conversations", self.conversations),
            ("devices", self.devices),
            ("messages numbered", self.messages),
            ("  acknowledged", self.acked),
            ("  given up", self.failed),
            ("  not to be known", self.unknown),
            ("  acknowledged, unproven", self.unproven),
            ("events", self.events),
            ("events shown", self.delivered),
            ("syncs called complete", self.synced),
            ("complete at the end", self.finals),
            ("restarts", self.restarts),
            ("devices reset", self.resets),
            ("epochs begun", self.epochs),
            ("torn lines dropped", self.torn),
        ];
        for (name, count) in rows {
            writeln!(f, "{name:<26} {count:>12}")?;
        }
        if self.is_clean() {
            return writeln!(f, "{:<26} {:>12}", "anomalies", 0);
        }
        writeln!(f, "\n{:<26} {:>12} {:>8}", "anomaly", "count", "promise")?;
        for (kind, count) in &self.anomalies {
            writeln!(f, "{:<26} {count:>12} {:>8}", kind.name(), kind.promise())?;
        }
        writeln!(f, "{:<26} {:>12}", "total", self.total())?;
        for anomaly in &self.detail {
            write!(f, "\n{}: {}", anomaly.kind.name(), anomaly.sentence)?;
            write!(f, "\n  conversation {}", anomaly.conversation)?;
            if !anomaly.seqs.is_empty() {
                write!(f, ", seqs {:?}", anomaly.seqs)?;
            }
            if !anomaly.devices.is_empty() {
                write!(f, ", devices {}", anomaly.devices.join(" "))?;
            }
            for record in &anomaly.records {
                let text = serde_json::to_string(record).map_err(|_| fmt::Error)?;
                write!(f, "\n  {text}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Collects anomalies: counts all, keeps the first of each kind.
pub(crate) struct Findings {
    keep: u64,
    pub anomalies: BTreeMap<Kind, u64>,
    pub detail: Vec<Anomaly>,
}

impl Findings {
    pub fn new(keep: u64) -> Findings {
        Findings {
            keep,
            anomalies: BTreeMap::new(),
            detail: Vec::new(),
        }
    }

    /// `evidence` is called only if the anomaly is kept, so that a flood costs little.
    pub fn add(
        &mut self,
        kind: Kind,
        conversation: u64,
        seqs: &[u64],
        evidence: impl FnOnce() -> (Vec<Record>, String),
    ) {
        self.add_for(0, kind, conversation, seqs, evidence);
    }

    /// As [`add`](Self::add), about a device that no record may name.
    pub fn add_for(
        &mut self,
        device: u64,
        kind: Kind,
        conversation: u64,
        seqs: &[u64],
        evidence: impl FnOnce() -> (Vec<Record>, String),
    ) {
        let count = self.anomalies.entry(kind).or_default();
        *count += 1;
        if *count > self.keep {
            return;
        }
        let (records, sentence) = evidence();
        let mut devices: Vec<u64> = records.iter().map(Record::device).chain([device]).collect();
        devices.sort_unstable();
        devices.dedup();
        devices.retain(|device| *device != 0);
        self.detail.push(Anomaly {
            kind,
            promise: kind.promise(),
            conversation: hex(conversation),
            seqs: seqs.to_vec(),
            devices: devices.into_iter().map(hex).collect(),
            records,
            sentence,
        });
    }
}

/// An id as people see it.
pub(crate) fn hex(id: u64) -> String {
    format!("{id:016x}")
}
