//! Many histories, each judged; and the same seed twice.
//!
//! `TIDINGS_SIM_HISTORIES` says how many (500), `TIDINGS_SIM_SEED` with which seed to begin (1).

use std::ops::Not;
use std::panic::catch_unwind;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use tidings_sim::{Bug, Options, Outcome, run};

fn number(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number"))
    })
}

/// Runs seeds on two threads until one isn't clean; gives that with the least seed found.
fn first_broken(from: u64, count: u64, options: &Options) -> Option<Outcome> {
    let (next, least) = (AtomicU64::new(from), Mutex::new(None::<Outcome>));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !least.lock().is_ok_and(|found| found.is_some()) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    let outcome = run(seed, options);
                    if options.bug.is_none() {
                        assert!(outcome.report.messages >= 1_000, "{outcome}");
                        assert!(
                            outcome.conversations >= 3 && outcome.faults >= 30,
                            "{outcome}"
                        );
                    }
                    if !outcome.is_clean() {
                        let mut least = least.lock().expect("no thread panics with it");
                        if least.as_ref().is_none_or(|known| seed < known.seed) {
                            *least = Some(outcome);
                        }
                    }
                }
            });
        }
    });
    least.into_inner().expect("no thread panics with it")
}

#[test]
fn histories_keep_every_promise() {
    let (from, count) = (
        number("TIDINGS_SIM_SEED", 1),
        number("TIDINGS_SIM_HISTORIES", 500),
    );
    let begun = Instant::now();
    if let Some(broken) = first_broken(from, count, &Options::default()) {
        let seed = broken.seed;
        let options = Options {
            keeps_records: true,
            ..Options::default()
        };
        panic!(
            "{}\nagain, this one alone: cargo run -p tidings-sim --example history {seed}",
            run(seed, &options)
        );
    }
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    println!(
        "{count} histories from seed {from} on: {:.0} a minute",
        count as f64 / minutes
    );
}

/// Seeds in which each planted mistake must be found.
const SEEDS: u64 = 300;

/// The first seed that finds a mistake, and how. Not by what is the simulation's own: without the
/// mistake the seed is clean.
fn finds(bug: Bug) -> Result<String, String> {
    let options = Options {
        bug: Some(bug),
        ..Options::default()
    };
    // A mistake that makes the code's own arithmetic fail is found, too.
    let attempt = |seed| (seed, catch_unwind(|| run(seed, &options)));
    let found = (1..=SEEDS)
        .map(attempt)
        .find(|(_, outcome)| outcome.as_ref().is_ok_and(Outcome::is_clean).not());
    let Some((seed, found)) = found else {
        return Err(format!("{bug} wasn't found in {SEEDS} seeds"));
    };
    let plain = run(seed, &Options::default());
    if !plain.is_clean() {
        return Err(format!("{bug} isn't needed: {plain}"));
    }
    let Ok(found) = found else {
        return Ok(format!("{bug}: seed {seed}: a panic"));
    };
    let mut how: Vec<String> = found
        .report
        .anomalies
        .iter()
        .map(|(kind, count)| format!("{} × {count}", kind.name()))
        .collect();
    how.extend(found.broken.iter().map(|line| line.replace('\n', " ")));
    how.extend((found.report.unproven > 0).then(|| "unproven".to_owned()));
    let how: String = how.join(", ").chars().take(200).collect();
    Ok(format!("{bug}: seed {}: {how}", found.seed))
}

#[test]
fn every_planted_mistake_is_found() {
    let bugs: Vec<Bug> = Bug::all().collect();
    assert!(bugs.len() >= 30);
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(&bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match finds(bug) {
                        Ok(found) => println!("{found}"),
                        Err(why) => missed.lock().expect("no thread panics with it").push(why),
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().expect("no thread panics with it");
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn the_same_seed_has_the_same_trace() {
    for seed in 1..=5 {
        let (a, b) = (
            run(seed, &Options::default()),
            run(seed, &Options::default()),
        );
        assert_eq!(a.trace, b.trace, "seed {seed}");
        assert_eq!(a.report, b.report, "seed {seed}");
    }
    assert_ne!(
        run(1, &Options::default()).trace,
        run(2, &Options::default()).trace
    );
}

/// Hash maps of the cores iterate in another order in each process: that must not show.
#[test]
fn the_same_seed_has_the_same_trace_in_another_process() {
    const CHILD: &str = "TIDINGS_SIM_PRINT_TRACES";
    let traces = || -> Vec<String> {
        let trace = |seed| format!("trace {seed} {:016x}", run(seed, &Options::default()).trace);
        (1..=5).map(trace).collect()
    };
    if std::env::var_os(CHILD).is_some() {
        for line in traces() {
            println!("{line}");
        }
        return;
    }
    let own = std::env::current_exe().expect("a test has a path");
    let output = Command::new(own)
        .args([
            "--exact",
            "--nocapture",
            "the_same_seed_has_the_same_trace_in_another_process",
        ])
        .env(CHILD, "1")
        .output()
        .expect("a test can be started again");
    let text = String::from_utf8_lossy(&output.stdout);
    for line in traces() {
        assert!(text.contains(&line), "{line} is not among\n{text}");
    }
}
