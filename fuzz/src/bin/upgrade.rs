//! The head of an HTTP request, and the upgrade to WebSocket that it may ask for.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tidings_fuzz::{Input, within};
use tidings_gateway::http_head::{HEAD_BYTES_MAX, HeadError, RequestHead, find_end, header_room};
use tidings_gateway::ws::handshake::{Policy, Upgrade};
use tidings_protocol::Format;

const ORIGIN: &str = "https://app.example.com";

static POLICY: LazyLock<Policy> = LazyLock::new(|| Policy {
    subprotocols: Format::ALL.map(|f| f.subprotocol().to_owned()).into(),
    origins: vec![ORIGIN.into()],
    ..Policy::default()
});

/// The end of the head as it is found when the bytes come in these lengths, then one by one.
fn found_in_pieces(bytes: &[u8], lengths: &[u8]) -> Result<Option<usize>, HeadError> {
    let (mut seen, mut lengths) = (0, lengths.iter());
    while seen < bytes.len() {
        let length = lengths.next().map_or(1, |n| usize::from(*n).max(1));
        let there = (seen + length).min(bytes.len());
        match find_end(&bytes[..there], seen) {
            Ok(None) => seen = there,
            found => return found,
        }
    }
    Ok(None)
}

fn judge_upgrade(head: &RequestHead<'_, '_>, is_tls: bool) {
    let Ok(upgrade) = Upgrade::check(head, &POLICY, is_tls) else {
        return;
    };
    assert_eq!((head.method, head.version), ("GET", 1));
    assert!(!head.has_body());
    let host = head.one("host").expect("checked").expect("there");
    for origin in head.all("origin") {
        let scheme: &[u8] = if is_tls { b"https://" } else { b"http://" };
        assert!(origin == ORIGIN.as_bytes() || origin == [scheme, host].concat());
    }
    for pair in head.query.unwrap_or_default().split('&') {
        let known = pair.is_empty() || pair.starts_with("ticket=") || pair.starts_with("user=");
        assert!(known, "{pair:?} in a URL");
    }
    // Nothing of the client's gets into the answer but the choice among our own names.
    let response = upgrade.response(&POLICY);
    let text = std::str::from_utf8(&response).expect("ASCII");
    let lines = text
        .strip_suffix("\r\n\r\n")
        .expect("an empty line ends it");
    assert_eq!(
        lines.split("\r\n").count(),
        4 + usize::from(upgrade.subprotocol.is_some())
    );
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let is_tls = input.byte() & 1 == 1;
    let lengths = input.piece();
    let stream = input.rest();
    within(32 << 10, || {
        let end = find_end(stream, 0);
        match (end, found_in_pieces(stream, lengths)) {
            // Where it came whole, what is behind may be looked at too.
            (Err(_), Err(_)) => {}
            (whole, pieces) => assert_eq!(whole, pieces, "cut and whole differ"),
        }
        let Ok(Some(end)) = end else { return };
        assert!(end <= HEAD_BYTES_MAX && stream[..end].ends_with(b"\r\n\r\n"));
        // The parser's idea of where a head ends is ours: what is shorter is none.
        let mut room = header_room();
        assert!(RequestHead::parse(&stream[..end - 1], &mut room).is_err());
        let mut room = header_room();
        let Ok(head) = RequestHead::parse(&stream[..end], &mut room) else {
            return;
        };
        assert!(head.all("host").count() <= 1 && head.all("content-length").count() <= 1);
        judge_upgrade(&head, is_tls);
    });
});
