//! One HTTP request a connection, over anything that reads and writes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::DEADLINE;

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Status line and headers, names as sent.
    pub head: String,
    /// The body as JSON; null if it isn't any.
    pub body: Value,
    /// The body as it came.
    pub text: String,
}

impl Reply {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (is, value) = line.split_once(':')?;
            is.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The code of a problem; empty if it has none.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

/// A connection that gives up in time.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server accepts");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
    stream
}

/// Asks and reads to the end.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: &str,
    body: Value,
    headers: &[(&str, &str)],
) -> Reply {
    request_over(connect(address), method, path, token, body, headers)
}

/// Asks over this connection and reads to the end.
pub fn request_over(
    stream: impl Read + Write,
    method: &str,
    path: &str,
    token: &str,
    body: Value,
    headers: &[(&str, &str)],
) -> Reply {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    if !token.is_empty() {
        head += &format!("Authorization: Bearer {token}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    if !body.is_empty() {
        head += &format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
    }
    raw(stream, format!("{head}\r\n{body}").as_bytes())
}

/// Writes these bytes and reads to the end.
pub fn raw(mut stream: impl Read + Write, bytes: &[u8]) -> Reply {
    stream.write_all(bytes).expect("the server reads");
    let mut answer = Vec::new();
    // A peer that closes before it has read all is one that has answered: what it said counts.
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert!(!answer.is_empty(), "no answer: {error}");
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Reply {
        status: status.unwrap_or_else(|| panic!("no HTTP: {answer:?}")),
        head: head.to_owned(),
        body: serde_json::from_str(text).unwrap_or(Value::Null),
        text: text.to_owned(),
    }
}
