//! The head of an HTTP/1.1 request: found, bounded, and refused where two readers could differ.
//!
//! Stricter than RFC 9112 demands of a recipient: a bare LF, a folded header, and a length
//! together with a transfer coding are what request smuggling is made of.

use std::mem::MaybeUninit;

use bytes::Bytes;

/// The longest head, in bytes (security checklist, row 7).
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// The most headers of a request (security checklist, row 7).
pub const HEADERS_MAX: usize = 64;

/// Why a head is refused; each kind is a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Not HTTP/1.x, or ambiguous: 400.
    #[error("{0}")]
    Malformed(&'static str),
    /// Above 8 KiB or 64 headers: 431.
    #[error("request head is too large")]
    TooLarge,
}

/// Room for the headers of [`RequestHead::parse`], so that parsing allocates nothing.
pub type HeaderRoom<'b> = [MaybeUninit<httparse::Header<'b>>; HEADERS_MAX];

/// Empty room for headers.
pub fn header_room<'b>() -> HeaderRoom<'b> {
    [MaybeUninit::uninit(); HEADERS_MAX]
}

/// Looks for the end of the head in `bytes`, of which the first `seen` were looked at before.
///
/// Returns the length of the head including its empty line, or `None` while it is incomplete.
/// Looking costs the new bytes only, so a head that comes byte by byte costs no more than one
/// that comes whole.
pub fn find_end(bytes: &[u8], seen: usize) -> Result<Option<usize>, HeadError> {
    if seen == 0
        && bytes
            .first()
            .is_some_and(|&byte| !byte.is_ascii_uppercase())
    {
        return Err(HeadError::Malformed("not an HTTP request"));
    }
    let mut at = seen;
    while let Some(found) = bytes[at..].iter().position(|&byte| byte == b'\n') {
        let lf = at + found;
        if lf >= HEAD_BYTES_MAX {
            return Err(HeadError::TooLarge);
        }
        if lf == 0 || bytes[lf - 1] != b'\r' {
            return Err(HeadError::Malformed("line ends without CR"));
        }
        if lf >= 3 && bytes[lf - 2] == b'\n' {
            return Ok(Some(lf + 1));
        }
        at = lf + 1;
    }
    if bytes.len() >= HEAD_BYTES_MAX {
        return Err(HeadError::TooLarge);
    }
    Ok(None)
}

/// A request head that two readers can't read differently.
#[derive(Debug)]
pub struct RequestHead<'h, 'b> {
    /// The method, as sent.
    pub method: &'b str,
    /// The path of the request target, before any `?`.
    pub path: &'b str,
    /// What follows the `?`, if there is one.
    pub query: Option<&'b str>,
    /// The minor version: 0 or 1.
    pub version: u8,
    headers: &'h [httparse::Header<'b>],
}

impl<'h, 'b> RequestHead<'h, 'b> {
    /// Parses a head that [`find_end`] found the end of.
    pub fn parse(bytes: &'b [u8], room: &'h mut HeaderRoom<'b>) -> Result<Self, HeadError> {
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(bytes, room) {
            Ok(httparse::Status::Complete(_)) => {}
            Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
            Ok(httparse::Status::Partial) | Err(_) => {
                return Err(HeadError::Malformed("malformed request head"));
            }
        }
        let malformed = HeadError::Malformed("malformed request head");
        let target = request.path.ok_or(malformed)?;
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let head = RequestHead {
            method: request.method.ok_or(malformed)?,
            path,
            query,
            version: request.version.ok_or(malformed)?,
            headers: request.headers,
        };
        head.refuse_ambiguity()?;
        Ok(head)
    }

    fn refuse_ambiguity(&self) -> Result<(), HeadError> {
        let lengths = self.all("content-length").count();
        let codings = self.all("transfer-encoding").count();
        if lengths > 1 || codings > 1 || (lengths == 1 && codings == 1) {
            return Err(HeadError::Malformed("body length is ambiguous"));
        }
        if codings == 1 && self.version == 0 {
            return Err(HeadError::Malformed("transfer coding in HTTP/1.0"));
        }
        if self.all("host").count() > 1 {
            return Err(HeadError::Malformed("more than one host"));
        }
        Ok(())
    }

    /// Every value of a header, in order; `name` in lower case.
    pub fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'b [u8]> + 's {
        self.headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    }

    /// The value of a header that comes once; an error when it comes again.
    pub fn one(&self, name: &str) -> Result<Option<&'b [u8]>, HeadError> {
        let mut values = self.all(name);
        let first = values.next();
        match values.next() {
            None => Ok(first),
            Some(_) => Err(HeadError::Malformed("header given twice")),
        }
    }

    /// Whether a comma-separated header holds `token`, compared without case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name)
            .flat_map(list)
            .any(|item| item.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Whether the request announces a body.
    pub fn has_body(&self) -> bool {
        self.all("transfer-encoding").next().is_some()
            || self.all("content-length").any(|value| value != b"0")
    }
}

/// The items of a comma-separated header value.
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&byte| byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|item| !item.is_empty())
}

/// The address that a proxy names in the last `X-Forwarded-For` there is: what stands before it came
/// from the client, who may write anything.
pub fn forwarded_for(value: &[u8]) -> Option<std::net::IpAddr> {
    let last = list(value).last()?;
    std::str::from_utf8(last).ok()?.parse().ok()
}

/// The status line, headers and body of a refusal that ends the connection.
pub fn refusal(status: u16) -> &'static [u8] {
    macro_rules! response {
        ($line:literal $(, $header:literal)*) => {
            concat!(
                "HTTP/1.1 ", $line, "\r\n", $($header, "\r\n",)*
                "Content-Length: 0\r\nConnection: close\r\n\r\n"
            ).as_bytes()
        };
    }
    match status {
        403 => response!("403 Forbidden"),
        426 => response!(
            "426 Upgrade Required",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13"
        ),
        429 => response!("429 Too Many Requests", "Retry-After: 5"),
        431 => response!("431 Request Header Fields Too Large"),
        503 => response!("503 Service Unavailable", "Retry-After: 5"),
        _ => response!("400 Bad Request"),
    }
}

/// The refusal of somebody for whom there is room in so many seconds.
pub fn unavailable(retry_after_s: u64) -> Bytes {
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: {retry_after_s}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .into()
}

impl HeadError {
    /// The status that tells the client.
    pub fn status(self) -> u16 {
        match self {
            HeadError::Malformed(_) => 400,
            HeadError::TooLarge => 431,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8]) -> Result<bool, HeadError> {
        let Some(end) = find_end(bytes, 0)? else {
            return Ok(false);
        };
        RequestHead::parse(&bytes[..end], &mut header_room()).map(|_| true)
    }

    #[test]
    fn heads_that_two_readers_could_read_differently_are_refused() {
        let many = |n: usize| {
            let mut head = b"GET / HTTP/1.1\r\n".to_vec();
            for i in 0..n {
                head.extend_from_slice(format!("x-{i}: 1\r\n").as_bytes());
            }
            head.extend_from_slice(b"\r\n");
            head
        };
        let long = |n: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(n)).into_bytes();
        let fits = HEAD_BYTES_MAX - long(0).len();
        for (name, head, expected) in [
            (
                "plain",
                b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
                Ok(()),
            ),
            ("64 headers", many(64), Ok(())),
            ("65 headers", many(65), Err(431)),
            ("8 KiB", long(fits), Ok(())),
            ("8 KiB + 1", long(fits + 1), Err(431)),
            ("endless", vec![b'A'; HEAD_BYTES_MAX], Err(431)),
            ("bare LF", b"GET / HTTP/1.1\nHost: a\n\n".to_vec(), Err(400)),
            (
                "one bare LF",
                b"GET / HTTP/1.1\r\nHost: a\n\r\n".to_vec(),
                Err(400),
            ),
            (
                "obs-fold",
                b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n".to_vec(),
                Err(400),
            ),
            (
                "space before colon",
                b"GET / HTTP/1.1\r\nA : b\r\n\r\n".to_vec(),
                Err(400),
            ),
            (
                "CL + TE",
                b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
                    .to_vec(),
                Err(400),
            ),
            (
                "two lengths",
                b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n".to_vec(),
                Err(400),
            ),
            (
                "two hosts",
                b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_vec(),
                Err(400),
            ),
            (
                "HTTP/2 preface",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
                Err(400),
            ),
            ("TLS hello", b"\x16\x03\x01".to_vec(), Err(400)),
            ("empty line only", b"\r\n\r\n".to_vec(), Err(400)),
        ] {
            let got = match check(&head) {
                Ok(true) => Ok(()),
                Ok(false) => panic!("{name}: taken as incomplete"),
                Err(error) => Err(error.status()),
            };
            assert_eq!(got, expected, "{name}");
        }
    }

    #[test]
    fn a_head_is_found_wherever_it_was_cut() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        let end = bytes.len() - 4;
        for cut in 1..bytes.len() {
            let early = find_end(&bytes[..cut], 0).expect("a valid prefix");
            assert_eq!(early, (cut >= end).then_some(end), "cut at {cut}");
            if early.is_none() {
                assert_eq!(find_end(bytes, cut), Ok(Some(end)), "resumed at {cut}");
            }
        }
    }
}
