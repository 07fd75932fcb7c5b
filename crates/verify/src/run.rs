//! The command `tidings verify FILE…`.

use crate::checker::{Checker, Options};
use crate::read::{HistoryError, Merge};
use crate::report::Report;
use std::io::{self, Write};
use std::path::Path;

/// How a report is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A table for people.
    #[default]
    Table,
    /// One JSON object.
    Json,
}

/// Checks the files as one history and prints a table to standard output.
///
/// Returns the exit code: 0 clean, 1 a promise is broken, 2 the files can't be read (said on
/// standard error).
pub fn run<P: AsRef<Path>>(files: &[P]) -> u8 {
    run_to(
        files,
        Options::default(),
        Format::Table,
        &mut io::stdout().lock(),
    )
}

/// As [`run`], with a choice of detail, format and place.
pub fn run_to<P: AsRef<Path>>(
    files: &[P],
    options: Options,
    format: Format,
    out: &mut impl Write,
) -> u8 {
    let report = match check_files(files, options) {
        Ok(report) => report,
        Err(error) => {
            // Nobody is left to tell if standard error is closed.
            let _ = writeln!(io::stderr(), "tidings verify: {error}");
            return 2;
        }
    };
    let printed = match format {
        Format::Table => write!(out, "{report}"),
        Format::Json => serde_json::to_writer_pretty(&mut *out, &report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out)),
    };
    match printed.and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => 2,
        _ if report.is_clean() => 0,
        _ => 1,
    }
}

fn check_files<P: AsRef<Path>>(files: &[P], options: Options) -> Result<Report, HistoryError> {
    let mut merge = Merge::open(files)?;
    let mut checker = Checker::new(options);
    for record in merge.by_ref() {
        checker.push(&record?);
    }
    let mut report = checker.finish();
    report.torn = merge.torn();
    Ok(report)
}
