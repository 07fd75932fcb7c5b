//! What became of each message of a drill, and what a fault did to them.

use std::collections::HashMap;
use std::sync::Mutex;

use serde::Serialize;

use super::meter::{Reconnection, lock};

/// So many times the usual p99 is still on time.
const ON_TIME: u64 = 2;
/// This share of the messages may be late once a fault is over, or as many as were late before it.
const LATE_SHARE: f64 = 0.001;

/// One message; times in microseconds of the run's clock, 0: not yet.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    meant: u64,
    /// Members who are to be shown it, and how many were.
    readers: u32,
    shown_to: u32,
    /// To the last of them so far.
    shown: u64,
    acked: u64,
    /// Its first refusal.
    refused: u64,
}

impl Fate {
    /// Until it was acknowledged and shown to all; `u64::MAX`: never.
    fn took(&self) -> u64 {
        match self.acked > 0 && self.shown_to >= self.readers {
            true => self.acked.max(self.shown).saturating_sub(self.meant),
            false => u64::MAX,
        }
    }

    /// Until its sender knew more than that it was sent.
    fn told(&self) -> u64 {
        let times = [self.acked, self.refused];
        let first = times.into_iter().filter(|&at| at > 0).min();
        first.map_or(u64::MAX, |at| at.saturating_sub(self.meant))
    }
}

#[derive(Default)]
struct Book {
    /// By author and the time it was meant for.
    fates: HashMap<(u64, u64), Fate>,
    /// When anybody was shown anything.
    shown: Vec<u64>,
}

/// Who tells what became of messages shares it.
#[derive(Default)]
pub(super) struct Ledger(Mutex<Book>);

impl Ledger {
    pub fn meant(&self, author: u64, at: u64, readers: u32) {
        let fate = Fate {
            meant: at,
            readers,
            ..Fate::default()
        };
        lock(&self.0).fates.insert((author, at), fate);
    }

    pub fn acked(&self, author: u64, at: u64, now: u64) {
        if let Some(fate) = lock(&self.0).fates.get_mut(&(author, at)) {
            fate.acked = now;
        }
    }

    pub fn refused(&self, author: u64, at: u64, now: u64) {
        if let Some(fate) = lock(&self.0).fates.get_mut(&(author, at))
            && fate.refused == 0
        {
            fate.refused = now;
        }
    }

    pub fn shown(&self, author: u64, at: u64, now: u64) {
        let mut book = lock(&self.0);
        book.shown.push(now);
        if let Some(fate) = book.fates.get_mut(&(author, at)) {
            fate.shown = now.max(fate.shown);
            fate.shown_to += 1;
        }
    }

    /// What all faults did; `from`: when the load was warm, `end`: when it ended.
    pub fn figures(&self, marks: &[Mark], from: u64, end: u64, back: &[Reconnection]) -> Figures {
        let book = lock(&self.0);
        let mut fates: Vec<Fate> = book.fates.values().copied().collect();
        fates.sort_unstable_by_key(|fate| fate.meant);
        let mut shown = book.shown.clone();
        drop(book);
        shown.sort_unstable();
        figures(&fates, &shown, marks, from, end, back)
    }
}

/// Something was done to the servers, or undone.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub at: u64,
    pub is_fault: bool,
    pub name: String,
}

/// What users met of one fault, from it to the next one; times in seconds.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Met {
    fault: String,
    messages: usize,
    late: usize,
    /// From the fault until messages are on time again, as often as before it.
    recovery: f64,
    /// The same from when the fault was undone; absent if it wasn't.
    after_healed: Option<f64>,
    /// Of the messages meant to be sent between both, the share on time.
    on_time_meanwhile: Option<f64>,
    longest_to_ack: f64,
    longest_to_delivery: f64,
    /// Until a sender was told that its message is taken, or isn't for now.
    longest_untold: f64,
    /// Nobody was shown anything.
    longest_silence: f64,
    reconnections: usize,
}

/// What a drill measured; times in seconds.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Figures {
    messages: usize,
    before_p50: f64,
    before_p99: f64,
    /// A message that took longer is late.
    limit: f64,
    late_share_before: f64,
    faults: Vec<Met>,
    /// By second since the load was warm: messages meant to be sent, and how many of them were late.
    by_second: Vec<(u32, u32)>,
}

/// Never is infinite, which is null in JSON.
fn seconds(micros: u64) -> f64 {
    match micros {
        u64::MAX => f64::INFINITY,
        micros => micros as f64 / 1e6,
    }
}

fn at_quantile(sorted: &[u64], quantile: f64) -> u64 {
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * quantile).round() as usize;
    sorted.get(at).copied().unwrap_or(0)
}

fn figures(
    fates: &[Fate],
    shown: &[u64],
    marks: &[Mark],
    from: u64,
    end: u64,
    back: &[Reconnection],
) -> Figures {
    let starts: Vec<&Mark> = marks.iter().filter(|mark| mark.is_fault).collect();
    let within = |from: u64, to: u64| {
        let (a, b) = (
            fates.partition_point(|fate| fate.meant < from),
            fates.partition_point(|fate| fate.meant < to),
        );
        &fates[a..b.max(a)]
    };
    let before = within(from, starts.first().map_or(end, |mark| mark.at));
    let mut times: Vec<u64> = before.iter().map(Fate::took).collect();
    times.sort_unstable();
    let limit = at_quantile(&times, 0.99).saturating_mul(ON_TIME);
    let is_late = |fate: &Fate| fate.took() > limit;
    let share = |fates: &[Fate]| {
        let late = fates.iter().filter(|&fate| is_late(fate)).count();
        late as f64 / fates.len().max(1) as f64
    };
    let late_share_before = share(before);
    let allowed = late_share_before.max(LATE_SHARE);

    let mut faults = Vec::new();
    for (at, fault) in starts.iter().enumerate() {
        let until = starts.get(at + 1).map_or(end, |next| next.at);
        let during = within(fault.at, until);
        let healed = marks
            .iter()
            .find(|mark| !mark.is_fault && mark.at >= fault.at && mark.at <= until);
        let over = recovered(during, is_late, allowed, fault.at, until);
        let longest = |time: fn(&Fate) -> u64| during.iter().map(time).max().unwrap_or(0);
        let ends = [fault.at, until];
        let mut seen: Vec<u64> = shown
            .iter()
            .copied()
            .filter(|at| (ends[0]..ends[1]).contains(at))
            .chain(ends)
            .collect();
        seen.sort_unstable();
        let silence = seen.windows(2).map(|two| two[1] - two[0]).max();
        faults.push(Met {
            fault: fault.name.clone(),
            messages: during.len(),
            late: during.iter().filter(|&fate| is_late(fate)).count(),
            recovery: seconds(over - fault.at),
            after_healed: healed.map(|mark| seconds(over.saturating_sub(mark.at))),
            on_time_meanwhile: healed.map(|mark| 1.0 - share(within(fault.at, mark.at))),
            longest_to_ack: seconds(longest(|fate| match fate.acked {
                0 => u64::MAX,
                at => at.saturating_sub(fate.meant),
            })),
            longest_to_delivery: seconds(longest(|fate| match fate.shown_to < fate.readers {
                true => u64::MAX,
                false => fate.shown.saturating_sub(fate.meant),
            })),
            longest_untold: seconds(longest(Fate::told)),
            longest_silence: seconds(silence.unwrap_or(0)),
            reconnections: back
                .iter()
                .filter(|one| (ends[0]..ends[1]).contains(&one.gone))
                .count(),
        });
    }
    let mut by_second = vec![(0, 0); (end.saturating_sub(from) / 1_000_000 + 1) as usize];
    for fate in within(from, end) {
        let (meant, late) = &mut by_second[((fate.meant - from) / 1_000_000) as usize];
        *meant += 1;
        *late += u32::from(is_late(fate));
    }
    Figures {
        messages: fates.len(),
        before_p50: seconds(at_quantile(&times, 0.5)),
        before_p99: seconds(at_quantile(&times, 0.99)),
        limit: seconds(limit),
        late_share_before,
        faults,
        by_second,
    }
}

/// The first moment from which on no more than the allowed share is late; `until` if there is none.
fn recovered(
    during: &[Fate],
    is_late: impl Fn(&Fate) -> bool,
    allowed: f64,
    fault: u64,
    until: u64,
) -> u64 {
    let (mut late, mut all, mut over) = (0_u32, 0_u32, until);
    for (at, fate) in during.iter().enumerate().rev() {
        all += 1;
        late += u32::from(is_late(fate));
        if f64::from(late) <= allowed * f64::from(all) {
            over = if at == 0 { fault } else { fate.meant };
        }
    }
    over
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// Ten messages a second for 60 s, each on its way for 50 ms; `late` says which took 3 s.
    fn met(late: impl Fn(u64) -> bool, healed: Option<u64>) -> Met {
        let ledger = Ledger::default();
        for tenth in 0..600 {
            let at = tenth * SECOND / 10;
            let took = if late(tenth) { 3 * SECOND } else { SECOND / 20 };
            ledger.meant(1, at, 1);
            ledger.refused(1, at, at + SECOND / 30);
            ledger.acked(1, at, at + took / 2);
            ledger.shown(1, at, at + took);
        }
        let mark = |at, is_fault| Mark {
            at,
            is_fault,
            name: "x".into(),
        };
        let mut marks = vec![mark(20 * SECOND, true)];
        marks.extend(healed.map(|at| mark(at, false)));
        let mut figures = ledger.figures(&marks, 0, 60 * SECOND, &[]);
        assert!((figures.limit - 0.1).abs() < 1e-9, "{}", figures.limit);
        figures.faults.remove(0)
    }

    #[test]
    fn nothing_late_is_no_recovery() {
        let met = met(|_| false, None);
        assert_eq!((met.late, met.recovery), (0, 0.0));
        assert!(met.longest_silence < 0.11);
    }

    #[test]
    fn recovery_ends_with_the_last_late_message() {
        // Late from 22 s to 31.9 s.
        let met = met(|tenth| (220..320).contains(&tenth), Some(30 * SECOND));
        assert_eq!(met.late, 100);
        assert_eq!(met.recovery, 12.0);
        assert_eq!(met.after_healed, Some(2.0));
        assert_eq!(met.on_time_meanwhile, Some(0.2));
        assert_eq!((met.longest_to_ack, met.longest_to_delivery), (1.5, 3.0));
        assert!(met.longest_untold < 0.04);
        assert!((met.longest_silence - 2.95).abs() < 0.11);
    }

    #[test]
    fn a_message_that_never_arrives_is_never_over() {
        let ledger = Ledger::default();
        for at in 0..20 {
            ledger.meant(1, at * SECOND, 2);
            ledger.acked(1, at * SECOND, at * SECOND + 1000);
            // Only to one of two after the fault.
            for _ in 0..if at < 10 { 2 } else { 1 } {
                ledger.shown(1, at * SECOND, at * SECOND + 1000);
            }
        }
        let mark = Mark {
            at: 10 * SECOND,
            is_fault: true,
            name: "x".into(),
        };
        let figures = ledger.figures(&[mark], 0, 20 * SECOND, &[]);
        assert_eq!(figures.faults[0].recovery, 10.0);
        assert_eq!(figures.faults[0].longest_to_delivery, f64::INFINITY);
    }
}
