//! What was measured: medians with their spread, beside the probe, against must and goal.

use serde::Serialize;

/// A round whose probe is further than this off the run's median says more about the machine.
const PROBE_OFF_MAX: f64 = 0.25;

/// The rounds of one figure.
#[derive(Default)]
pub struct Rounds {
    ours: Vec<f64>,
    probes: Vec<f64>,
}

impl Rounds {
    pub fn add(&mut self, ours: f64, probe: f64) {
        self.ours.push(ours);
        self.probes.push(probe);
    }
}

/// Which figure must and goal are about: first the must, then the goal.
#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judged {
    /// The value: at most.
    AtMost(f64, f64),
    /// The value: at least.
    AtLeast(f64, f64),
    /// Its ratio to the probe: at most.
    Ratio(f64, f64),
    /// Nothing: it is told for its own sake.
    Told,
}

/// One line of the table.
#[derive(Serialize)]
pub struct Line {
    pub scenario: &'static str,
    pub figure: String,
    pub unit: &'static str,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// Median of the probe; none where nothing bare has that figure.
    pub probe: Option<f64>,
    /// Median of the rounds' ratios.
    pub ratio: Option<f64>,
    pub judged: Judged,
    pub rounds: usize,
    /// Rounds left out, since their probe was off.
    pub void: usize,
    pub verdict: &'static str,
}

/// Lost, duplicated and reordered events of one scenario, and what else went wrong.
#[derive(Serialize, Default, Clone)]
pub struct Checked {
    pub scenario: &'static str,
    pub received: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub problems: Vec<String>,
}

/// The whole result.
#[derive(Serialize, Default)]
pub struct Report {
    pub version: &'static str,
    pub machine: String,
    pub raised: Vec<String>,
    pub lines: Vec<Line>,
    pub checked: Vec<Checked>,
}

/// The middle one, or the mean of the two in the middle; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

impl Report {
    /// Adds a figure that has no probe.
    pub fn plain(
        &mut self,
        scenario: &'static str,
        figure: &str,
        unit: &'static str,
        values: &[f64],
        judged: Judged,
    ) {
        let rounds = Rounds {
            ours: values.to_vec(),
            probes: Vec::new(),
        };
        self.beside(scenario, figure, unit, &rounds, judged);
    }

    /// Adds a figure measured beside its probe.
    pub fn beside(
        &mut self,
        scenario: &'static str,
        figure: &str,
        unit: &'static str,
        rounds: &Rounds,
        judged: Judged,
    ) {
        let middle = median(&rounds.probes);
        let good = |i: &usize| {
            rounds
                .probes
                .get(*i)
                .is_none_or(|p| (p - middle).abs() <= middle * PROBE_OFF_MAX)
        };
        let kept: Vec<usize> = (0..rounds.ours.len()).filter(good).collect();
        let ours: Vec<f64> = kept.iter().map(|&i| rounds.ours[i]).collect();
        let has_probe = !rounds.probes.is_empty() && middle > 0.0;
        let ratios: Vec<f64> = if has_probe {
            kept.iter()
                .map(|&i| rounds.ours[i] / rounds.probes[i])
                .collect()
        } else {
            Vec::new()
        };
        let ratio = has_probe.then(|| median(&ratios));
        let value = median(&ours);
        let rank = |is_kept: bool, is_best: bool| match (is_best, is_kept) {
            _ if ours.is_empty() => "VOID",
            (true, _) => "goal",
            (_, true) => "must",
            _ => "MISSED",
        };
        let verdict = match judged {
            Judged::Told => "",
            Judged::AtMost(must, goal) => rank(value <= must, value <= goal),
            Judged::AtLeast(must, goal) => rank(value >= must, value >= goal),
            Judged::Ratio(must, goal) => {
                let ratio = ratio.unwrap_or(f64::INFINITY);
                rank(ratio <= must, ratio <= goal)
            }
        };
        let line = Line {
            scenario,
            figure: figure.to_owned(),
            unit,
            median: value,
            min: ours.iter().copied().fold(f64::INFINITY, f64::min),
            max: ours.iter().copied().fold(0.0, f64::max),
            probe: has_probe.then_some(middle),
            ratio,
            judged,
            rounds: ours.len(),
            void: rounds.ours.len() - ours.len(),
            verdict,
        };
        println!("{}", shown(&line));
        self.lines.push(line);
    }

    /// Whether anything was lost, came twice or in another order.
    pub fn is_faulty(&self) -> bool {
        self.checked
            .iter()
            .any(|c| c.lost + c.duplicated + c.reordered > 0)
    }

    /// The whole table.
    pub fn print(&self) {
        println!("\n{HEAD}");
        for line in &self.lines {
            println!("{}", shown(line));
        }
        println!(
            "\n{:<10}{:>14}{:>8}{:>12}{:>11}",
            "checked", "received", "lost", "duplicated", "reordered"
        );
        for c in &self.checked {
            println!(
                "{:<10}{:>14}{:>8}{:>12}{:>11}",
                c.scenario, c.received, c.lost, c.duplicated, c.reordered
            );
        }
    }
}

/// The table's first line.
pub const HEAD: &str = "scenario  figure                              median           min - max  unit     probe   ratio   must / goal      rounds  verdict";

fn short(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "-".into(),
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn shown(line: &Line) -> String {
    let optional = |value: Option<f64>| value.map_or("-".into(), short);
    let limits = match line.judged {
        Judged::Told => String::new(),
        Judged::Ratio(must, goal) => format!("×{} / ×{}", short(must), short(goal)),
        Judged::AtMost(must, goal) | Judged::AtLeast(must, goal) => {
            format!("{} / {}", short(must), short(goal))
        }
    };
    let void = if line.void > 0 {
        format!(" (+{} void)", line.void)
    } else {
        String::new()
    };
    let spread = format!("{} - {}", short(line.min), short(line.max));
    format!(
        "{:<10}{:<34}{:>8}{:>20}  {:<7}{:>7}{:>8}   {:<16}{:>4}{void}  {}",
        line.scenario,
        line.figure,
        short(line.median),
        spread,
        line.unit,
        optional(line.probe),
        optional(line.ratio),
        limits,
        line.rounds,
        line.verdict
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_whose_probe_is_off_do_not_count() {
        let (mut report, mut rounds) = (Report::default(), Rounds::default());
        for (ours, probe) in [(3.0, 2.0), (3.2, 2.0), (9.0, 4.0)] {
            rounds.add(ours, probe);
        }
        report.beside("fan", "CPU", "µs", &rounds, Judged::Ratio(1.6, 1.1));
        let line = &report.lines[0];
        assert_eq!((line.rounds, line.void, line.verdict), (2, 1, "must"));
        assert!((line.ratio.unwrap_or(0.0) - 1.55).abs() < 1e-9 && line.max < 9.0);
    }

    #[test]
    fn limits_hold_in_their_direction() {
        let mut report = Report::default();
        report.plain(
            "durable",
            "rate",
            "K/s",
            &[29.0],
            Judged::AtLeast(30.0, 50.0),
        );
        report.plain(
            "durable",
            "rate",
            "K/s",
            &[51.0],
            Judged::AtLeast(30.0, 50.0),
        );
        report.plain("idle", "memory", "KB", &[1.7], Judged::AtMost(1.6, 1.0));
        let verdicts: Vec<_> = report.lines.iter().map(|l| l.verdict).collect();
        assert_eq!(verdicts, ["MISSED", "goal", "MISSED"]);
    }
}
