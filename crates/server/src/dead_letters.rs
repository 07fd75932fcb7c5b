//! `tidings dead-letters`: looks at records that could not be read, and replays those that can be read now.

mod replay;

use std::fmt::Write;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use tidings_core::ids::{Micros, Partition, Position};
use tidings_core::ports::dead_letters::{
    DeadLetter, DeadLetterError, DeadLetters, Heading, Key, PAGE_MAX, READ_DEADLINE,
};
use tidings_core::record::Record;

use crate::config::Config;
use crate::offline::runtime;
use crate::parts;

pub use replay::{Outcome, replay};

/// What `show` prints of a record's bytes unless all are wanted.
const SHOWN_BYTES_MAX: usize = 4096;

/// A position as lists print it: `EPOCH:OFFSET`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct At(pub Position);

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<At, String> {
        let parsed = text.split_once(':').and_then(|(epoch, offset)| {
            let (epoch, offset) = (epoch.parse().ok()?, offset.parse().ok()?);
            Some(At(Position { epoch, offset }))
        });
        parsed.ok_or_else(|| "write it as EPOCH:OFFSET, as the list has it".to_owned())
    }
}

/// A letter's key as lists print it behind `--after`: `PARTITION/EPOCH:OFFSET`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyArg(pub Key);

impl FromStr for KeyArg {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyArg, String> {
        let parsed = text.split_once('/').and_then(|(partition, position)| {
            let partition = Partition(partition.parse().ok()?);
            Some(KeyArg((partition, At::from_str(position).ok()?.0)))
        });
        parsed.ok_or_else(|| "write it as PARTITION/EPOCH:OFFSET".to_owned())
    }
}

/// A table of the letters behind `after`, `limit` at most, and how to get at those behind them.
///
/// # Errors
/// When they can't be opened or read.
pub fn list(config: &Config, after: Option<Key>, limit: usize) -> anyhow::Result<Vec<String>> {
    let limit = limit.clamp(1, PAGE_MAX);
    let page = runtime()?.block_on(async {
        let letters = parts::dead_letters(config).await?;
        in_time(letters.list(after, limit)).await
    })?;
    if page.headings.is_empty() {
        return Ok(vec!["no dead letters".to_owned()]);
    }
    let mut lines = vec![format!(
        "{:>9}  {:>16}  {:<20}  {:<16}  {:>9}  reason",
        "partition", "position", "appended", "conversation", "bytes"
    )];
    lines.extend(page.headings.iter().map(line));
    if let Some(last) = page.headings.last().filter(|_| page.more) {
        let (partition, position) = (last.partition.0, position(last));
        lines.push(format!("there are more: --after {partition}/{position}"));
    }
    Ok(lines)
}

fn line(heading: &Heading) -> String {
    format!(
        "{:>9}  {:>16}  {:<20}  {:<16}  {:>9}  {}",
        heading.partition.0,
        position(heading),
        time(heading.appended),
        conversation(heading),
        heading.bytes,
        // It may hold what somebody else wrote: no line of a terminal is trusted to it.
        heading.reason.escape_debug()
    )
}

fn position(heading: &Heading) -> String {
    let Position { epoch, offset } = heading.position;
    format!("{epoch}:{offset}")
}

fn conversation(heading: &Heading) -> String {
    let id = heading.conversation;
    id.map_or_else(|| "-".to_owned(), |id| format!("{:016x}", id.0))
}

/// What is known of a letter, what can be read of its record, and its bytes.
///
/// # Errors
/// When there is none, or it can't be read.
pub fn show(config: &Config, key: Key, whole: bool) -> anyhow::Result<Vec<String>> {
    let letter = runtime()?.block_on(async {
        let letters = parts::dead_letters(config).await?;
        find(&*letters, key).await
    })?;
    let (heading, payload) = (&letter.heading, &letter.payload);
    let mut lines = vec![
        format!("partition     {}", heading.partition.0),
        format!("position      {}", position(heading)),
        format!("appended      {}", time(heading.appended)),
        format!("conversation  {}", conversation(heading)),
        format!("bytes         {}", heading.bytes),
        format!("reason        {}", heading.reason.escape_debug()),
        match Record::decode(payload) {
            Ok(_) => "now           this program can read it: it can be replayed".to_owned(),
            Err(error) => format!("now           {}", Record::why_unreadable(payload, error)),
        },
        String::new(),
        "as far as it can be read:".to_owned(),
    ];
    let fields = Record::outline(payload);
    lines.extend(
        fields
            .iter()
            .map(|(name, value)| format!("  {name:<12}  {value}")),
    );
    lines.push(String::new());
    let shown = if whole {
        payload.len()
    } else {
        SHOWN_BYTES_MAX
    };
    lines.extend(dump(&payload[..shown.min(payload.len())]));
    if payload.len() > shown {
        lines.push(format!("… and {} more: --whole", payload.len() - shown));
    }
    Ok(lines)
}

/// Sixteen bytes a line: offset, hex, and text where it is ASCII.
fn dump(bytes: &[u8]) -> impl Iterator<Item = String> {
    bytes.chunks(16).zip((0..).step_by(16)).map(|(row, at)| {
        let mut hex = String::with_capacity(50);
        for (i, byte) in row.iter().enumerate() {
            let gap = if i == 8 { "  " } else { " " };
            _ = write!(hex, "{gap}{byte:02x}");
        }
        let text: String = row
            .iter()
            .map(|&byte| match byte {
                b' '..=b'~' => char::from(byte),
                _ => '.',
            })
            .collect();
        format!("{at:08x} {hex:<49}  |{text}|")
    })
}

/// UTC, to the second: `2025-11-30T06:25:28Z`.
fn time(micros: Micros) -> String {
    let seconds = micros / 1_000_000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days to a date of the Gregorian calendar, by eras of 400 years from 0000-03-01:
    // https://howardhinnant.github.io/date_algorithms.html#civil_from_days
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// One letter, which must be there.
async fn find(letters: &dyn DeadLetters, key: Key) -> anyhow::Result<DeadLetter> {
    let found = in_time(letters.get(key)).await?;
    let Position { epoch, offset } = key.1;
    found.with_context(|| {
        format!(
            "there is no dead letter of partition {} at {epoch}:{offset}; `tidings dead-letters list` has them all",
            key.0.0
        )
    })
}

async fn in_time<T>(
    question: impl Future<Output = Result<T, DeadLetterError>>,
) -> anyhow::Result<T> {
    // Implementations watch the time themselves and know what was slow: so this one is a little later.
    match tokio::time::timeout(READ_DEADLINE + Duration::from_secs(5), question).await {
        Ok(answer) => Ok(answer?),
        Err(_) => bail!("the dead letters were not read in time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(time(seconds * 1_000_000), text);
        }
        assert!(!time(Micros::MAX).is_empty());
    }

    #[test]
    fn positions_and_keys_are_read_as_they_are_printed() {
        let position = Position {
            epoch: 1,
            offset: 42,
        };
        assert_eq!("1:42".parse(), Ok(At(position)));
        assert_eq!("3/1:42".parse(), Ok(KeyArg((Partition(3), position))));
        for wrong in ["42", "1:", ":2", "1:2:3", "-1:2"] {
            assert!(At::from_str(wrong).is_err());
            assert!(KeyArg::from_str(wrong).is_err());
        }
    }

    #[test]
    fn bytes_are_shown_in_hex_and_as_text() {
        let rows: Vec<String> = dump(b"\x01hello, world \xff\n0").collect();
        let first =
            "00000000  01 68 65 6c 6c 6f 2c 20  77 6f 72 6c 64 20 ff 0a  |.hello, world ..|";
        assert_eq!(rows[0], first);
        assert_eq!(rows[1].len(), first.len() - 15);
    }
}
