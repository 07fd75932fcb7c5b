//! The upgrade from HTTP to WebSocket (RFC 6455 section 4.2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sha1::{Digest, Sha1};

use crate::http_head::{HeadError, RequestHead, list};

/// Who may upgrade, and to what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The only path that is upgraded.
    pub path: String,
    /// Subprotocols in the order of [`Upgrade::subprotocol`].
    pub subprotocols: Vec<String>,
    /// Origins that browsers may come from, compared byte by byte: `https://chat.example.com`.
    pub origins: Vec<String>,
    /// Whether a page of this very host (scheme and `Host` header) may connect too.
    pub same_origin: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            path: "/v1/ws".into(),
            subprotocols: Vec::new(),
            origins: Vec::new(),
            same_origin: true,
        }
    }
}

/// Why an upgrade is refused; each kind is a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a WebSocket request, or one that breaks a rule: 400.
    #[error("{0}")]
    Malformed(&'static str),
    /// From an origin that isn't allowed: 403.
    #[error("origin is not allowed")]
    Origin,
    /// Another version of the protocol, or no upgrade at all: 426.
    #[error("WebSocket version 13 is required")]
    Version,
    /// 431.
    #[error("request head is too large")]
    TooLarge,
}

impl Refusal {
    /// The status that tells the client.
    pub fn status(self) -> u16 {
        match self {
            Refusal::Malformed(_) => 400,
            Refusal::Origin => 403,
            Refusal::Version => 426,
            Refusal::TooLarge => 431,
        }
    }
}

impl From<HeadError> for Refusal {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Malformed(what) => Refusal::Malformed(what),
            HeadError::TooLarge => Refusal::TooLarge,
        }
    }
}

/// An upgrade that may go ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upgrade {
    /// The chosen subprotocol as an index into the policy's list: the first of the client's that
    /// the server knows; none if it offered none that is known.
    pub subprotocol: Option<u8>,
    accept: [u8; 28],
}

impl Upgrade {
    /// Checks a request for the policy's path. `is_tls` says by which scheme it came.
    pub fn check(
        head: &RequestHead<'_, '_>,
        policy: &Policy,
        is_tls: bool,
    ) -> Result<Self, Refusal> {
        if head.version != 1 || head.method != "GET" {
            return Err(Refusal::Malformed("an upgrade is a GET of HTTP/1.1"));
        }
        if head.has_body() {
            return Err(Refusal::Malformed("an upgrade has no body"));
        }
        let host = head.one("host")?.ok_or(Refusal::Malformed("no host"))?;
        check_query(head.query)?;
        if !head.has_token("upgrade", "websocket") {
            return Err(Refusal::Version);
        }
        if !head.has_token("connection", "upgrade") {
            return Err(Refusal::Malformed("connection is not to be upgraded"));
        }
        if head.one("sec-websocket-version")? != Some(b"13") {
            return Err(Refusal::Version);
        }
        let key = head
            .one("sec-websocket-key")?
            .ok_or(Refusal::Malformed("no key"))?;
        let accept = accept_key(key).ok_or(Refusal::Malformed("key is not 16 bytes"))?;
        // A browser always says where a page comes from; native clients say nothing. Cookies are
        // never looked at, so a request without an origin can't borrow anybody's session.
        let mut origins = head.all("origin");
        if let Some(origin) = origins.next()
            && (origins.next().is_some() || !origin_is_allowed(origin, host, policy, is_tls))
        {
            return Err(Refusal::Origin);
        }
        let subprotocol = head
            .all("sec-websocket-protocol")
            .flat_map(list)
            .find_map(|offered| {
                policy
                    .subprotocols
                    .iter()
                    .position(|p| p.as_bytes() == offered)
            })
            .and_then(|index| u8::try_from(index).ok());
        Ok(Upgrade {
            subprotocol,
            accept,
        })
    }

    /// The 101 that goes before the first frame.
    pub fn response(&self, policy: &Policy) -> Bytes {
        let mut response = Vec::with_capacity(192);
        response.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
              Connection: Upgrade\r\nSec-WebSocket-Accept: ",
        );
        response.extend_from_slice(&self.accept);
        if let Some(name) = self
            .subprotocol
            .and_then(|i| policy.subprotocols.get(usize::from(i)))
        {
            response.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
            response.extend_from_slice(name.as_bytes());
        }
        response.extend_from_slice(b"\r\n\r\n");
        Bytes::from(response)
    }
}

/// Only a single-use ticket may travel in a URL: URLs end up in logs and histories. A user's id is
/// no secret; balancers read it, and here it says nothing.
fn check_query(query: Option<&str>) -> Result<(), Refusal> {
    let Some(query) = query else { return Ok(()) };
    let is_known =
        |pair: &str| pair.is_empty() || pair.starts_with("ticket=") || pair.starts_with("user=");
    if query.split('&').all(is_known) {
        Ok(())
    } else {
        Err(Refusal::Malformed(
            "only a ticket and a user may be in the query",
        ))
    }
}

fn origin_is_allowed(origin: &[u8], host: &[u8], policy: &Policy, is_tls: bool) -> bool {
    if policy
        .origins
        .iter()
        .any(|allowed| allowed.as_bytes() == origin)
    {
        return true;
    }
    let scheme: &[u8] = if is_tls { b"https://" } else { b"http://" };
    policy.same_origin && !host.is_empty() && origin.strip_prefix(scheme) == Some(host)
}

/// `Sec-WebSocket-Accept` for a key (RFC 6455 section 4.2.2); none if the key isn't 16 bytes.
fn accept_key(key: &[u8]) -> Option<[u8; 28]> {
    let mut nonce = [0; 18];
    if key.len() != 24 || STANDARD.decode_slice(key, &mut nonce) != Ok(16) {
        return None;
    }
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let mut accept = [0; 28];
    let written = STANDARD.encode_slice(hash.finalize(), &mut accept);
    (written == Ok(28)).then_some(accept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http_head::{find_end, header_room};

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn policy() -> Policy {
        Policy {
            subprotocols: vec!["tidings.v1.bin".into(), "tidings.v1.json".into()],
            origins: vec!["https://app.example.com".into()],
            ..Policy::default()
        }
    }

    fn upgrade(request: &str) -> Result<Upgrade, u16> {
        let bytes = request.replace('\n', "\r\n").into_bytes();
        let end = find_end(&bytes, 0)
            .map_err(HeadError::status)?
            .expect("a whole head");
        let mut room = header_room();
        let head = RequestHead::parse(&bytes[..end], &mut room).map_err(HeadError::status)?;
        Upgrade::check(&head, &policy(), false).map_err(Refusal::status)
    }

    fn with(extra: &str) -> String {
        format!(
            "GET /v1/ws HTTP/1.1\nHost: chat.local:8080\nUpgrade: websocket\n\
             Connection: keep-alive, Upgrade\nSec-WebSocket-Version: 13\n\
             Sec-WebSocket-Key: {KEY}\n{extra}\n"
        )
    }

    #[test]
    fn the_accept_key_is_the_one_of_the_rfc() {
        assert_eq!(
            &accept_key(KEY.as_bytes()).expect("a key"),
            b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn bad_upgrades_get_the_status_that_says_why() {
        let plain = with("");
        for (name, request, expected) in [
            ("plain", plain.clone(), None),
            (
                "upper-case tokens",
                plain.replace("websocket", "WebSocket"),
                None,
            ),
            ("version 8", plain.replace(": 13", ": 8"), Some(426)),
            (
                "no version",
                plain.replace("Sec-WebSocket-Version: 13\n", ""),
                Some(426),
            ),
            (
                "no upgrade",
                plain.replace("Upgrade: websocket\n", ""),
                Some(426),
            ),
            (
                "not connection: upgrade",
                plain.replace("keep-alive, Upgrade", "close"),
                Some(400),
            ),
            ("no key", plain.replace("Sec-WebSocket-Key", "X"), Some(400)),
            ("short key", plain.replace(KEY, "c2hvcnQ="), Some(400)),
            (
                "key not base64",
                plain.replace(KEY, "!!!!!!!!!!!!!!!!!!!!!!=="),
                Some(400),
            ),
            (
                "two keys",
                with(&format!("Sec-WebSocket-Key: {KEY}\n")),
                Some(400),
            ),
            ("body", with("Content-Length: 5\n"), Some(400)),
            (
                "chunked body",
                with("Transfer-Encoding: chunked\n"),
                Some(400),
            ),
            ("HTTP/1.0", plain.replace("HTTP/1.1", "HTTP/1.0"), Some(400)),
            ("POST", plain.replace("GET", "POST"), Some(400)),
            ("no host", plain.replace("Host", "X-Host"), Some(400)),
            (
                "token in the URL",
                plain.replace("/v1/ws", "/v1/ws?token=abc"),
                Some(400),
            ),
            (
                "token beside a ticket",
                plain.replace("/v1/ws", "/v1/ws?ticket=a&t=b"),
                Some(400),
            ),
            ("ticket", plain.replace("/v1/ws", "/v1/ws?ticket=abc"), None),
            ("user", plain.replace("/v1/ws", "/v1/ws?user=0a"), None),
        ] {
            assert_eq!(upgrade(&request).err(), expected, "{name}");
        }
    }

    #[test]
    fn browsers_come_from_listed_origins_only() {
        for (origin, allowed) in [
            ("https://app.example.com", true),
            ("http://chat.local:8080", true),
            ("https://chat.local:8080", false),
            ("http://chat.local", false),
            ("null", false),
            ("", false),
            ("https://app.example.com.evil.io", false),
            ("https://evil.io/https://app.example.com", false),
            ("https://app.example.com:444", false),
            ("http://app.example.com", false),
            ("HTTPS://APP.EXAMPLE.COM", false),
        ] {
            let got = upgrade(&with(&format!("Cookie: session=1\nOrigin: {origin}\n")));
            assert_eq!(got.err(), (!allowed).then_some(403), "{origin:?}");
        }
        let twice = "Origin: https://app.example.com\nOrigin: https://app.example.com\n";
        assert_eq!(upgrade(&with(twice)).err(), Some(403));
        let native = "Cookie: session=1\nAuthorization: Bearer x\n";
        assert!(upgrade(&with(native)).is_ok(), "no origin, no browser");
    }

    #[test]
    fn the_first_known_subprotocol_of_the_client_is_chosen() {
        for (offer, expected) in [
            ("", None),
            ("Sec-WebSocket-Protocol: other\n", None),
            (
                "Sec-WebSocket-Protocol: tidings.v1.json, tidings.v1.bin\n",
                Some(1),
            ),
            (
                "Sec-WebSocket-Protocol: x\nSec-WebSocket-Protocol: tidings.v1.bin\n",
                Some(0),
            ),
        ] {
            let upgrade = upgrade(&with(offer)).expect("an upgrade");
            assert_eq!(upgrade.subprotocol, expected, "{offer:?}");
            let response = upgrade.response(&policy());
            let response = std::str::from_utf8(&response).expect("ASCII");
            assert_eq!(
                response.contains("Sec-WebSocket-Protocol"),
                expected.is_some()
            );
            assert!(response.ends_with("\r\n\r\n"));
        }
    }
}
