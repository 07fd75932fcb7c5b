//! `tidings verify`: judges recorded histories.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use tidings_verify::{Format, Options, run_to};

/// Check recorded histories for every promise
///
/// The files are judged as one history: record each process into its own. Exit code: 0 clean,
/// 1 a promise is broken, 2 the files can't be read.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Histories: one JSON record a line
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Anomalies of each kind that are shown in full
    #[arg(long, value_name = "N", default_value_t = Options::default().detail)]
    detail: u64,
}

/// Prints what is found.
///
/// # Errors
/// None: what can't be read is said on standard error, and by the exit code.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let format = if args.json {
        Format::Json
    } else {
        Format::Table
    };
    let options = Options {
        detail: args.detail,
    };
    let code = run_to(&args.files, options, format, &mut io::stdout().lock());
    Ok(ExitCode::from(code))
}
