//! The part of the HTTP API that a customer's own server uses, for tools and tests.
//!
//! A client of its own, as three calls need no more: one request a connection, blocking.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tidings_protocol::{parse_hex16, to_hex16};

/// The server gives up after 15 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// A thousand tokens are some 700 KB.
const ANSWER_BYTES_MAX: u64 = 8 << 20;
/// Users of one request.
pub const BULK_MAX: usize = 1000;

/// A server's HTTP API, spoken with an API key.
#[derive(Clone)]
pub struct Api {
    address: SocketAddr,
    key: String,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A user's access token.
#[derive(Clone)]
pub struct AccessToken {
    /// What `auth` is told.
    pub token: String,
    /// When it ends.
    pub expires: Instant,
}

#[derive(Deserialize)]
struct Tokens {
    tokens: Vec<Token>,
}

#[derive(Deserialize)]
struct Token {
    access_token: String,
    expires_in: u64,
}

impl Api {
    /// The API at this address; the key as `tidings api-key create` printed it.
    pub fn new(address: SocketAddr, key: &str) -> Api {
        let key = key.trim().to_owned();
        Api { address, key }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes a user for each name; their ids in the same order.
    ///
    /// # Errors
    /// If the server doesn't answer, or refuses.
    pub fn create_users(&self, names: &[String]) -> anyhow::Result<Vec<u64>> {
        let mut made = Vec::with_capacity(names.len());
        for names in names.chunks(BULK_MAX) {
            let users: Vec<Value> = names
                .iter()
                .map(|name| json!({ "display_name": name }))
                .collect();
            let answer = self.post("/v1/users", &json!({ "users": users }))?;
            let ids = answer["users"].as_array().map_or(&[][..], Vec::as_slice);
            ensure!(ids.len() == names.len(), "users are missing in the answer");
            for id in ids {
                made.push(hex(id)?);
            }
        }
        Ok(made)
    }

    /// Signs users in on a device of this name; their tokens in the same order.
    ///
    /// # Errors
    /// If the server doesn't answer, or refuses.
    pub fn tokens(&self, users: &[u64], device: &str) -> anyhow::Result<Vec<AccessToken>> {
        let mut all = Vec::with_capacity(users.len());
        for users in users.chunks(BULK_MAX) {
            let asked = Instant::now();
            let body = json!({ "users": ids(users), "device": device });
            let answer: Tokens = serde_json::from_value(self.post("/v1/tokens", &body)?)
                .context("tokens are missing in the answer")?;
            ensure!(
                answer.tokens.len() == users.len(),
                "tokens are missing in the answer"
            );
            all.extend(answer.tokens.into_iter().map(|token| AccessToken {
                token: token.access_token,
                expires: asked + Duration::from_secs(token.expires_in),
            }));
        }
        Ok(all)
    }

    /// Makes a conversation of `creator` and up to 999 `members`.
    ///
    /// # Errors
    /// If the server doesn't answer, or refuses.
    pub fn create_conversation(
        &self,
        kind: &str,
        title: &str,
        creator: u64,
        members: &[u64],
    ) -> anyhow::Result<u64> {
        let body = json!({
            "kind": kind,
            "title": title,
            "creator": to_hex16(creator),
            "members": ids(members),
        });
        hex(&self.post("/v1/conversations", &body)?["conversation"])
    }

    /// Adds members who may write.
    ///
    /// # Errors
    /// If the server doesn't answer, or refuses.
    pub fn add_members(&self, conversation: u64, users: &[u64]) -> anyhow::Result<()> {
        let path = format!("/v1/conversations/{}/members", to_hex16(conversation));
        for users in users.chunks(BULK_MAX) {
            self.post(&path, &json!({ "users": ids(users), "role": "member" }))?;
        }
        Ok(())
    }

    fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.try_post(path, body)
            .with_context(|| format!("POST {path} at {}", self.address))
    }

    fn try_post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let body = body.to_string();
        let mut stream = TcpStream::connect_timeout(&self.address, ANSWER_WITHIN)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.address,
            self.key,
            body.len(),
        )?;
        stream.write_all(body.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        let end = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .context("no HTTP answer")?;
        let (head, body) = (String::from_utf8_lossy(&answer[..end]), &answer[end + 4..]);
        let status: u16 = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .context("no HTTP status")?;
        ensure!(
            !head.to_ascii_lowercase().contains("\r\ntransfer-encoding:"),
            "an answer in chunks"
        );
        if !(200..300).contains(&status) {
            // A problem's body says what is wrong and holds no secret.
            let text: String = String::from_utf8_lossy(body).chars().take(300).collect();
            bail!("status {status}: {text}");
        }
        if body.is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_slice(body)?)
    }
}

fn ids(users: &[u64]) -> Vec<String> {
    users.iter().map(|&user| to_hex16(user)).collect()
}

fn hex(value: &Value) -> anyhow::Result<u64> {
    value
        .as_str()
        .and_then(parse_hex16)
        .context("an id is missing in the answer")
}
