//! What was measured, beside limits and goals, and what the checker says.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;
use tidings_verify::Report as Verdict;

use super::meter::{Reconnection, Samples};

/// The limits of the journeys, in milliseconds: name, limit, goal if it is another.
pub(super) const LIMITS: [(&str, f64, Option<f64>); 8] = [
    ("delivery", 100.0, Some(30.0)),
    ("read", 200.0, None),
    ("first-page", 100.0, None),
    ("complete", 500.0, None),
    ("group", 100.0, None),
    ("group-complete", 5000.0, None),
    ("pause-ack", 5000.0, None),
    ("pause-delivery", 5000.0, None),
];

/// Which figure a limit is about.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Judged {
    P99,
    Max,
    Told,
}

/// One line of the table; times in milliseconds.
#[derive(Serialize)]
pub(super) struct Line {
    journey: &'static str,
    figure: &'static str,
    count: u64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
    judged: Judged,
    limit: Option<f64>,
    goal: Option<f64>,
    is_within: bool,
}

/// How clients came back.
#[derive(Serialize)]
pub(super) struct Waves {
    clients: usize,
    reconnections: usize,
    /// Ended by the server after it had said so.
    told: usize,
    most_in_one_second: usize,
    /// By second of the run.
    by_second: BTreeMap<u64, usize>,
    by_close_code: BTreeMap<u16, usize>,
}

/// The result of a run.
#[derive(Serialize, Default)]
pub(super) struct Report {
    load: String,
    lines: Vec<Line>,
    waves: Option<Waves>,
    troubles: Vec<String>,
    #[serde(skip)]
    limits: BTreeMap<String, f64>,
}

fn ms(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

impl Report {
    /// With these limits instead of the usual ones.
    pub fn new(load: String, limits: BTreeMap<String, f64>) -> Report {
        Report {
            load,
            limits,
            ..Report::default()
        }
    }

    /// Adds a line; `limit` names one of [`LIMITS`], judged by this figure.
    pub fn add(
        &mut self,
        journey: &'static str,
        figure: &'static str,
        samples: &Samples,
        judged: Judged,
        limit: &'static str,
    ) {
        self.histogram(journey, figure, &samples.histogram(), judged, limit);
    }

    pub fn histogram(
        &mut self,
        journey: &'static str,
        figure: &'static str,
        times: &Histogram<u64>,
        judged: Judged,
        limit: &'static str,
    ) {
        let usual = LIMITS.iter().find(|(name, ..)| *name == limit);
        let usual = usual.filter(|_| judged != Judged::Told);
        let at = |quantile| ms(times.value_at_quantile(quantile));
        let (p99, max) = (at(0.99), ms(times.max()));
        let limit = usual.map(|(name, limit, _)| self.limits.get(*name).copied().unwrap_or(*limit));
        let value = if judged == Judged::P99 { p99 } else { max };
        self.lines.push(Line {
            journey,
            figure,
            count: times.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99,
            max,
            judged,
            limit,
            goal: usual.and_then(|(_, _, goal)| *goal),
            // Nothing measured shows nothing.
            is_within: limit.is_none_or(|limit| !times.is_empty() && value < limit),
        });
    }

    /// Adds how clients came back; `start`: when the load began.
    pub fn waves(&mut self, clients: usize, all: &[Reconnection], start: u64) {
        let mut waves = Waves {
            clients,
            reconnections: all.len(),
            told: all.iter().filter(|r| r.told > 0).count(),
            most_in_one_second: 0,
            by_second: BTreeMap::new(),
            by_close_code: BTreeMap::new(),
        };
        let (told_to_back, gone_to_back) = (Samples::new(), Samples::new());
        for one in all {
            let second = one.back.saturating_sub(start) / 1_000_000;
            *waves.by_second.entry(second).or_default() += 1;
            *waves.by_close_code.entry(one.code).or_default() += 1;
            if one.told > 0 {
                told_to_back.add(one.back.saturating_sub(one.told));
            }
            gone_to_back.add(one.back.saturating_sub(one.gone));
        }
        waves.most_in_one_second = waves.by_second.values().copied().max().unwrap_or(0);
        self.waves = Some(waves);
        self.add(
            "coming back",
            "told to back",
            &told_to_back,
            Judged::Told,
            "",
        );
        self.add(
            "coming back",
            "gone to back",
            &gone_to_back,
            Judged::Told,
            "",
        );
    }

    pub fn troubles(&mut self, troubles: Vec<String>) {
        self.troubles.extend(troubles);
    }

    /// Whether every limit is kept.
    pub fn is_within(&self) -> bool {
        self.lines.iter().all(|line| line.is_within)
    }

    /// Whether nothing went wrong that should not.
    pub fn is_sound(&self) -> bool {
        self.troubles.is_empty()
    }
}

/// Whether the checker found every promise kept and proven.
pub(super) fn is_kept(verdict: &Verdict) -> bool {
    verdict.is_clean() && verdict.unproven == 0
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.load)?;
        writeln!(
            f,
            "{:<14} {:<34} {:>8} {:>9} {:>9} {:>9} {:>9}  {:<20} verdict",
            "journey", "ms", "count", "p50", "p90", "p99", "max", "limit (goal)"
        )?;
        for line in &self.lines {
            let limit = match (line.limit, line.judged) {
                (None, _) => String::new(),
                (Some(limit), Judged::P99) => format!("p99 < {limit}"),
                (Some(limit), _) => format!("max < {limit}"),
            };
            let goal = line.goal.map(|goal| format!(" ({goal})"));
            let verdict = match line.limit {
                None => "",
                Some(_) if line.is_within => "kept",
                Some(_) if line.count == 0 => "not measured",
                Some(_) => "BROKEN",
            };
            writeln!(
                f,
                "{:<14} {:<34} {:>8} {:>9.2} {:>9.2} {:>9.2} {:>9.2}  {:<20} {}",
                line.journey,
                line.figure,
                line.count,
                line.p50,
                line.p90,
                line.p99,
                line.max,
                limit + &goal.unwrap_or_default(),
                verdict
            )?;
        }
        if let Some(waves) = &self.waves {
            writeln!(
                f,
                "\n{} clients came back {} times, {} of them told to; at most {} in one second; close codes {:?}",
                waves.clients,
                waves.reconnections,
                waves.told,
                waves.most_in_one_second,
                waves.by_close_code
            )?;
            for (second, count) in &waves.by_second {
                writeln!(f, "  second {second:>4}: {count:>3} {}", "#".repeat(*count))?;
            }
        }
        for trouble in &self.troubles {
            writeln!(f, "trouble: {trouble}")?;
        }
        Ok(())
    }
}
