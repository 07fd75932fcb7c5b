//! `cargo run --release -p tidings-model -- CASE …`: searches the named cases, or `small`, `large`, `all`.
//!
//! `LIMIT`: states of one search, 6 million unless it says otherwise. Without arguments it lists the cases.

use std::process::ExitCode;
use std::time::Instant;

use tidings_model::cases;

/// Up to 2 GB of memory, by the largest states.
const LIMIT: usize = 6_000_000;

fn main() -> ExitCode {
    let limit = std::env::var("LIMIT").ok().and_then(|l| l.parse().ok());
    let limit = limit.unwrap_or(LIMIT);
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let all = cases::all();
    for word in &asked {
        let is_group = ["small", "large", "all"].contains(&word.as_str());
        if !is_group && !all.iter().any(|c| c.name == word) {
            eprintln!("there is no case {word}");
            return ExitCode::FAILURE;
        }
    }
    let mut is_good = true;
    for case in &all {
        let is_asked = asked.iter().any(|word| match word.as_str() {
            "all" => true,
            "small" => !case.is_large,
            "large" => case.is_large,
            name => name == case.name,
        });
        if !is_asked {
            if asked.is_empty() {
                println!("{:28} {}", case.name, case.about);
            }
            continue;
        }
        let began = Instant::now();
        let outcome = case.run(limit);
        let seconds = began.elapsed().as_secs_f32();
        let result = match (&outcome.violation, outcome.is_cut) {
            (Some(v), _) => format!("found: {v}"),
            (None, true) => {
                format!("CUT at LIMIT={limit} states: what lies beyond is not searched")
            }
            (None, false) => "sound, exhausted".to_owned(),
        };
        println!(
            "{}: {} states, {seconds:.1} s: {result}",
            case.name, outcome.states
        );
        if let Err(wrong) = case.judge(&outcome) {
            eprintln!(
                "not as it must be: {}",
                wrong.lines().next().unwrap_or_default()
            );
            is_good = false;
        }
    }
    if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
