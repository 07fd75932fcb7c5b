//! What became of each message of a drill, and what a fault did to them.

use std::collections::HashMap;
use std::sync::Mutex;

use serde::Serialize;

use super::meter::{Reconnection, lock};

/// So many times the usual p99 is still on time.
const ON_TIME: u64 = 2;
/// What was meant to be sent so many microseconds before a fault may be on its way when it comes, and
/// says nothing about the time before it.
const UNDER_WAY: u64 = 2_000_000;
/// A fault is over when all messages of so many microseconds are on time.
const CALM: u64 = 5_000_000;

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
    /// Until its sender knew that it is taken, or that nothing is taken for now.
    told: u64,
}

impl Fate {
    /// `u64::MAX`: never.
    fn ack_took(&self) -> u64 {
        match self.acked {
            0 => u64::MAX,
            at => at.saturating_sub(self.meant),
        }
    }

    /// To the last reader; `u64::MAX`: never.
    fn delivery_took(&self) -> u64 {
        match self.shown_to < self.readers {
            true => u64::MAX,
            false => self.shown.saturating_sub(self.meant),
        }
    }

    fn took(&self) -> u64 {
        self.ack_took().max(self.delivery_took())
    }
}

#[derive(Default)]
struct Book {
    /// By author and the time it was meant for.
    fates: HashMap<(u64, u64), Fate>,
    /// When anybody was shown anything.
    shown: Vec<u64>,
    /// By author, when it was told that something is taken, or isn't for now.
    answers: HashMap<u64, Vec<(u64, Answer)>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Taken,
    Refused,
}

impl Book {
    /// How long a message's sender was in the dark. Who was refused the last time knows already that
    /// what it writes now will wait, too.
    fn told(&self, author: u64, fate: &Fate) -> u64 {
        let answers = self.answers.get(&author).map_or(&[][..], Vec::as_slice);
        let (before, after) = answers.split_at(answers.partition_point(|(at, _)| *at < fate.meant));
        if before
            .last()
            .is_some_and(|(_, last)| *last == Answer::Refused)
        {
            return 0;
        }
        let refused = after.iter().find(|(_, what)| *what == Answer::Refused);
        let taken = Some(fate.acked).filter(|&at| at > 0);
        let first = taken.into_iter().chain(refused.map(|(at, _)| *at)).min();
        first.map_or(u64::MAX, |at| at.saturating_sub(fate.meant))
    }
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
        let mut book = lock(&self.0);
        if let Some(fate) = book.fates.get_mut(&(author, at)) {
            fate.acked = now;
        }
        book.answers
            .entry(author)
            .or_default()
            .push((now, Answer::Taken));
    }

    /// A message of this author's is refused for now.
    pub fn refused(&self, author: u64, now: u64) {
        let mut book = lock(&self.0);
        book.answers
            .entry(author)
            .or_default()
            .push((now, Answer::Refused));
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
        let told = |(&(author, _), fate): (&(u64, u64), &Fate)| Fate {
            told: book.told(author, fate),
            ..*fate
        };
        let mut fates: Vec<Fate> = book.fates.iter().map(told).collect();
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
    /// From the fault until messages are on time again.
    recovery: f64,
    /// From when the fault was undone until they are, the second time if that broke something; absent
    /// if it wasn't undone.
    after_healed: Option<f64>,
    /// Late in spite of both.
    late_afterwards: usize,
    /// Of the messages meant to be sent between both, the share on time, and how long half and all
    /// but a tenth of them took to be acknowledged, and to be shown to all.
    on_time_meanwhile: Option<f64>,
    meanwhile_to_ack: Option<[f64; 2]>,
    meanwhile_to_delivery: Option<[f64; 2]>,
    longest_to_ack: f64,
    longest_to_delivery: f64,
    /// Until a sender was told that its message is taken, or that nothing is for now.
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
    let first = starts
        .first()
        .map_or(end, |mark| mark.at.saturating_sub(UNDER_WAY));
    let before = within(from, first);
    let mut times: Vec<u64> = before.iter().map(Fate::took).collect();
    times.sort_unstable();
    let limit = at_quantile(&times, 0.99).saturating_mul(ON_TIME);
    let is_late = |fate: &Fate| fate.took() > limit;
    let share = |fates: &[Fate], of_late: bool| {
        let count = fates.iter().filter(|&fate| is_late(fate) == of_late);
        count.count() as f64 / fates.len().max(1) as f64
    };
    let late_share_before = share(before, true);

    let mut faults = Vec::new();
    for (at, fault) in starts.iter().enumerate() {
        let until = starts.get(at + 1).map_or(end, |next| next.at);
        let during = within(fault.at, until);
        let healed = marks
            .iter()
            .find(|mark| !mark.is_fault && mark.at >= fault.at && mark.at <= until);
        let lates = |from: u64| {
            during
                .iter()
                .filter(move |&fate| fate.meant >= from && is_late(fate))
        };
        let over = recovered(lates(fault.at), fault.at, until);
        let over_again = healed.map(|mark| recovered(lates(mark.at), mark.at, until));
        // Of what goes on when the fault is undone, the end is told by both.
        let is_calm =
            |at: u64| at > over && healed.is_none_or(|mark| at < mark.at || Some(at) > over_again);
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
            after_healed: healed
                .zip(over_again)
                .map(|(mark, over)| seconds(over - mark.at)),
            late_afterwards: lates(fault.at).filter(|fate| is_calm(fate.meant)).count(),
            on_time_meanwhile: healed.map(|mark| share(within(fault.at, mark.at), false)),
            meanwhile_to_ack: healed.map(|mark| halves(within(fault.at, mark.at), Fate::ack_took)),
            meanwhile_to_delivery: healed
                .map(|mark| halves(within(fault.at, mark.at), Fate::delivery_took)),
            longest_to_ack: seconds(longest(Fate::ack_took)),
            longest_to_delivery: seconds(longest(Fate::delivery_took)),
            longest_untold: seconds(longest(|fate| fate.told)),
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

/// The p50 and the p90 of a time.
fn halves(fates: &[Fate], time: fn(&Fate) -> u64) -> [f64; 2] {
    let mut times: Vec<u64> = fates.iter().map(time).collect();
    times.sort_unstable();
    [0.5, 0.9].map(|quantile| seconds(at_quantile(&times, quantile)))
}

/// The last of these late messages that isn't followed by a calm time; `from` if there is none,
/// `until` if it never gets calm.
fn recovered<'a>(late: impl Iterator<Item = &'a Fate>, from: u64, until: u64) -> u64 {
    let mut over = from;
    for fate in late {
        if over > from && fate.meant - over > CALM {
            break;
        }
        over = fate.meant;
    }
    match over > from && until - over < CALM {
        true => until,
        false => over,
    }
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
        assert_eq!((met.recovery, met.after_healed), (11.9, Some(1.9)));
        assert_eq!(met.late_afterwards, 0);
        assert_eq!(met.on_time_meanwhile, Some(0.2));
        assert_eq!(met.meanwhile_to_delivery, Some([3.0, 3.0]));
        assert_eq!((met.longest_to_ack, met.longest_to_delivery), (1.5, 3.0));
        assert_eq!(met.longest_untold, 1.5);
        assert!((met.longest_silence - 2.95).abs() < 0.11);
    }

    #[test]
    fn who_was_refused_knows_it_until_something_is_taken() {
        let ledger = Ledger::default();
        for at in [1, 2, 3, 9] {
            ledger.meant(1, at * SECOND, 0);
        }
        ledger.refused(1, 2 * SECOND + SECOND / 2);
        for at in [1, 2, 3] {
            ledger.acked(1, at * SECOND, 8 * SECOND);
        }
        ledger.acked(1, 9 * SECOND, 9 * SECOND + 1000);
        let book = lock(&ledger.0);
        let told = |at: u64| book.told(1, &book.fates[&(1, at * SECOND)]);
        let told = [told(1), told(2), told(3), told(9)];
        assert_eq!(told, [3 * SECOND / 2, SECOND / 2, 0, 1000]);
    }

    #[test]
    fn what_healing_breaks_is_told_apart() {
        let late = |tenth| (200..220).contains(&tenth) || tenth == 401 || tenth == 500;
        let met = met(late, Some(40 * SECOND));
        assert_eq!((met.recovery, met.after_healed), (1.9, Some(0.1)));
        assert_eq!(met.late_afterwards, 1);
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
