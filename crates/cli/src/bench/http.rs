//! Just enough HTTP/1.1 to make users and conversations: JSON over kept connections to a server on this machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// Longer than any answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection that speaks with an API key.
pub struct Api {
    stream: BufReader<TcpStream>,
    address: SocketAddr,
    key: String,
}

impl Api {
    pub fn connect(address: SocketAddr, key: &str) -> anyhow::Result<Api> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Api {
            stream: BufReader::new(stream),
            address,
            key: key.to_owned(),
        })
    }

    fn post(&mut self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.address,
            self.key,
            body.len()
        );
        self.stream
            .get_mut()
            .write_all(format!("{head}{body}").as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut len = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                len = value.trim().parse().context("a bad content-length")?;
            }
        }
        let mut answer = vec![0; len];
        self.stream.read_exact(&mut answer)?;
        if !status.starts_with('2') {
            bail!("POST {path}: {status} {}", String::from_utf8_lossy(&answer));
        }
        Ok(serde_json::from_slice(&answer).unwrap_or(Value::Null))
    }

    /// Users of the signed tokens with these numbers, as many at a time as a request may have; their ids.
    pub fn users(&mut self, numbers: std::ops::Range<usize>) -> anyhow::Result<Vec<String>> {
        const AT_ONCE: usize = 1_000;
        let mut ids = Vec::with_capacity(numbers.len());
        for first in numbers.clone().step_by(AT_ONCE) {
            let users: Vec<Value> = (first..(first + AT_ONCE).min(numbers.end))
                .map(|n| json!({ "issuer": super::tokens::ISSUER, "subject": super::tokens::subject(n), "display_name": format!("User {n}") }))
                .collect();
            let made = self.post("/v1/users", &json!({ "users": users }))?;
            let made = made["users"].as_array().context("no users in the answer")?;
            ids.extend(made.iter().filter_map(|id| id.as_str().map(str::to_owned)));
        }
        Ok(ids)
    }

    /// A conversation of these users, the first of whom makes it; its id.
    pub fn conversation(&mut self, kind: &str, members: &[String]) -> anyhow::Result<u64> {
        let (creator, others) = members.split_first().context("nobody to talk")?;
        let first = &others[..others.len().min(900)];
        let body = json!({ "kind": kind, "title": if kind == "direct" { "" } else { "Bench" }, "creator": creator, "members": first });
        let made = self.post("/v1/conversations", &body)?;
        let id = made["conversation"]
            .as_str()
            .context("no conversation in the answer")?;
        for more in others[first.len()..].chunks(1000) {
            self.post(
                &format!("/v1/conversations/{id}/members"),
                &json!({ "users": more, "role": "member" }),
            )?;
        }
        tidings_protocol::parse_hex16(id).context("the conversation has a malformed id")
    }
}

/// Makes conversations over several connections at once, so that the directory commits them together.
pub fn conversations(
    address: SocketAddr,
    key: &str,
    wanted: &[(&str, Vec<String>)],
) -> anyhow::Result<Vec<u64>> {
    const CONNECTIONS: usize = 32;
    let share = wanted.len().div_ceil(CONNECTIONS).max(1);
    let parts = std::thread::scope(|scope| {
        let threads: Vec<_> = wanted
            .chunks(share)
            .map(|part| {
                scope.spawn(move || -> anyhow::Result<Vec<u64>> {
                    let mut api = Api::connect(address, key)?;
                    part.iter()
                        .map(|(kind, members)| api.conversation(kind, members))
                        .collect()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
            .collect::<anyhow::Result<Vec<_>>>()
    })?;
    Ok(parts.concat())
}

/// One request without a key, and all that is answered until the server closes.
pub fn ask(address: SocketAddr, head: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(head.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The partitions that a server routes, each with its records that are read and not yet settled, by its metrics.
pub fn backlog(admin: SocketAddr) -> anyhow::Result<Vec<(u64, u64)>> {
    let head = "GET /metrics HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n";
    let page = ask(admin, head)?;
    let lines = page
        .lines()
        .filter_map(|line| line.strip_prefix("chat_backlog_records{partition=\""));
    let pair = |line: &str| {
        let (partition, records) = line.split_once("\"} ")?;
        Some((partition.parse().ok()?, records.parse().ok()?))
    };
    Ok(lines.filter_map(pair).collect())
}
