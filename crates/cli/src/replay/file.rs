//! A chat log as it is replayed: who says what, and when.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, bail};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;

/// A pause longer than this counts as this: logs have holes of months.
const PAUSE_MAX_MINUTES: i64 = 60;

/// A chat log in memory: 20 MB for 200,000 messages.
pub(super) struct Chat {
    /// In the order of their first message.
    pub nicks: Vec<Nick>,
    /// In file order.
    pub messages: Vec<Message>,
    /// Lines that aren't messages.
    pub system: u64,
}

/// Somebody who writes.
pub(super) struct Nick {
    pub name: String,
    /// Their messages, as places in [`Chat::messages`].
    pub messages: Vec<u32>,
}

pub(super) struct Message {
    /// A place in [`Chat::nicks`].
    pub nick: u32,
    pub text: String,
    /// Seconds since the first message.
    pub at: f64,
}

#[derive(Deserialize)]
struct Line {
    /// `YYYY-MM-DDTHH:MM`, UTC.
    at: String,
    nick: Option<String>,
    #[serde(default)]
    text: String,
    system: Option<serde::de::IgnoredAny>,
}

impl Chat {
    /// Reads a log of one JSON object a line, compressed by gzip or not.
    pub fn read(path: &Path) -> anyhow::Result<Chat> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut file = BufReader::new(file);
        let is_gzip = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        let text: Box<dyn Read> = if is_gzip {
            Box::new(MultiGzDecoder::new(file))
        } else {
            Box::new(file)
        };
        Chat::of_lines(BufReader::new(text)).with_context(|| format!("in {}", path.display()))
    }

    /// Forgets all but the first messages, and the nicks that have none then.
    pub fn cut(&mut self, messages: usize) {
        self.messages.truncate(messages);
        for nick in &mut self.nicks {
            nick.messages.retain(|&place| (place as usize) < messages);
        }
        // Nicks stand in the order of their first message.
        let used = self.nicks.iter().take_while(|n| !n.messages.is_empty());
        let used = used.count();
        self.nicks.truncate(used);
    }

    fn of_lines(lines: impl BufRead) -> anyhow::Result<Chat> {
        let mut chat = Chat {
            nicks: Vec::new(),
            messages: Vec::new(),
            system: 0,
        };
        let mut known: HashMap<String, u32> = HashMap::new();
        let mut minutes = Vec::new();
        for (number, line) in lines.lines().enumerate() {
            let line = line?;
            if line.is_empty() {
                continue;
            }
            let line: Line =
                serde_json::from_str(&line).with_context(|| format!("line {}", number + 1))?;
            let Some(name) = line.nick else {
                if line.system.is_none() {
                    bail!("line {} is neither a message nor a system line", number + 1);
                }
                chat.system += 1;
                continue;
            };
            let at =
                minute(&line.at).with_context(|| format!("the time of line {}", number + 1))?;
            let place = u32::try_from(chat.messages.len()).context("too many messages")?;
            let nick = *known.entry(name).or_insert_with_key(|name| {
                chat.nicks.push(Nick {
                    name: name.clone(),
                    messages: Vec::new(),
                });
                (chat.nicks.len() - 1) as u32
            });
            chat.nicks[nick as usize].messages.push(place);
            minutes.push(at);
            chat.messages.push(Message {
                nick,
                text: line.text,
                at: 0.0,
            });
        }
        set_times(&mut chat.messages, &minutes);
        Ok(chat)
    }
}

/// The log has minutes only: messages of one minute are spread over it evenly. Steps back in
/// time (logs of days put together) count as no time.
fn set_times(messages: &mut [Message], minutes: &[i64]) {
    let mut begin = 0;
    let mut from = 0;
    while from < messages.len() {
        let same = minutes[from..]
            .iter()
            .take_while(|&&m| m == minutes[from])
            .count();
        for (place, message) in messages[from..from + same].iter_mut().enumerate() {
            message.at = begin as f64 * 60.0 + 60.0 * place as f64 / same as f64;
        }
        from += same;
        if let (Some(&next), Some(&last)) = (minutes.get(from), minutes.get(from - 1)) {
            begin += (next - last).clamp(0, PAUSE_MAX_MINUTES);
        }
    }
}

/// Minutes on a scale of its own: only differences of an hour and less matter, so every month
/// may have 31 days.
fn minute(at: &str) -> anyhow::Result<i64> {
    let mut parts = at.split(['-', 'T', ':']).map(str::parse::<i64>);
    let mut part = || {
        parts
            .next()
            .context("not YYYY-MM-DDTHH:MM")?
            .context("not a number")
    };
    let (year, month, day) = (part()?, part()?, part()?);
    let (hour, minute) = (part()?, part()?);
    Ok((((year * 12 + month) * 31 + day) * 24 + hour) * 60 + minute)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"{"at":"2004-12-25T09:14","nick":"ann","text":"one"}
{"at":"2004-12-25T09:14","system":"bob joined"}
{"at":"2004-12-25T09:14","nick":"bob","text":"two"}
{"at":"2004-12-25T09:16","nick":"ann","text":"three"}
{"at":"2004-12-24T23:59","nick":"bob","text":"four"}
{"at":"2004-12-26T23:59","nick":"ann","text":"five"}
"#;

    #[test]
    fn messages_keep_file_order_and_system_lines_are_counted() {
        let chat = Chat::of_lines(LOG.as_bytes()).expect("a good log");
        let texts: Vec<&str> = chat.messages.iter().map(|m| m.text.as_str()).collect();
        assert_eq!(texts, ["one", "two", "three", "four", "five"]);
        assert_eq!(chat.system, 1);
        assert_eq!(chat.nicks[0].messages, [0, 2, 4], "ann's");
        assert_eq!(chat.nicks[1].messages, [1, 3], "bob's");
    }

    #[test]
    fn a_minute_is_spread_a_step_back_is_nothing_and_a_long_pause_an_hour() {
        let chat = Chat::of_lines(LOG.as_bytes()).expect("a good log");
        let at: Vec<f64> = chat.messages.iter().map(|m| m.at).collect();
        assert_eq!(at, [0.0, 30.0, 120.0, 120.0, 3720.0]);
    }

    #[test]
    fn a_line_that_is_no_log_line_is_named() {
        for bad in [
            "{\"at\":\"2004-12-25T09:14\"}",
            "{\"at\":\"noon\",\"nick\":\"a\"}",
            "text",
        ] {
            let text = format!("{LOG}{bad}\n");
            let error = Chat::of_lines(text.as_bytes()).err().expect("refused");
            assert!(format!("{error:#}").contains("line 7"), "{error:#}");
        }
    }
}
