//! Runs histories by their seeds and prints their traces: `history SEED [BUG]` for all about one,
//! `history FROM..TO` for one line each.

use tidings_sim::{Bug, Options, run};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(which) = arguments.first() else {
        eprintln!("usage: history SEED|FROM..TO [BUG]");
        return;
    };
    let bug = arguments.get(1).and_then(|name| Bug::named(name));
    let options = Options {
        bug,
        ..Options::default()
    };
    if let Some((from, to)) = which.split_once("..") {
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        for seed in number(from)..number(to) {
            let outcome = run(seed, &options);
            println!(
                "{seed} {:016x} {} messages, {} faults, {} s{}",
                outcome.trace,
                outcome.report.messages,
                outcome.faults,
                outcome.time / 1_000_000,
                if outcome.is_clean() {
                    String::new()
                } else {
                    format!(
                        ", BROKEN {:?} {:?}",
                        outcome.report.anomalies, outcome.broken
                    )
                }
            );
        }
        return;
    }
    let options = Options {
        keeps_records: true,
        ..options
    };
    let outcome = run(which.parse().unwrap_or(0), &options);
    // Everything recorded, for reading a failing history with grep.
    if std::env::var_os("TIDINGS_SIM_RECORDS").is_some() {
        for record in &outcome.records {
            println!("{record:x?}");
        }
    }
    println!("{outcome}\ntrace {:016x}", outcome.trace);
}
