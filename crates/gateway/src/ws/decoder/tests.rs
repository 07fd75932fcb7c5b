use proptest::prelude::*;

use super::*;

/// What a decoder said, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Message(Opcode, Vec<u8>),
    Fragment,
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
    Broken(u16),
}

/// Feeds `bytes` in the pieces that `cuts` make of them.
fn decode(bytes: &[u8], cuts: &[usize], limits: &Limits) -> (Vec<Said>, Decoder) {
    let mut decoder = Decoder::default();
    let mut said = Vec::new();
    let mut from = 0;
    for &to in cuts.iter().chain([&bytes.len()]) {
        let mut piece = bytes[from..to].to_vec();
        from = to;
        let mut at = 0;
        loop {
            match decoder.next(&mut piece[at..], limits) {
                Ok((used, event)) => {
                    at += used;
                    said.push(match event {
                        None => break,
                        Some(Event::Message { opcode, payload }) => {
                            Said::Message(opcode, payload.to_vec())
                        }
                        Some(Event::Fragment) => Said::Fragment,
                        Some(Event::Ping(payload)) => Said::Ping(payload.to_vec()),
                        Some(Event::Pong(payload)) => Said::Pong(payload.to_vec()),
                        Some(Event::Close { code, reason }) => Said::Close(code, reason.into()),
                    });
                }
                Err(violation) => {
                    said.push(Said::Broken(violation.code()));
                    return (said, decoder);
                }
            }
        }
        assert_eq!(at, piece.len(), "everything is consumed");
    }
    (said, decoder)
}

/// A client frame of any shape; `first` is FIN, RSV and opcode.
fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0xa1, 0x02, 0xff, 0x44];
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    let start = frame.len();
    frame.extend_from_slice(payload);
    unmask(&mut frame[start..], mask, 0);
    frame
}

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const FIRST_TEXT: u8 = 0x01;
const FIRST_BINARY: u8 = 0x02;
const MIDDLE: u8 = 0x00;
const LAST: u8 = 0x80;

fn broken(bytes: &[u8]) -> Option<u16> {
    let (said, _) = decode(bytes, &[], &Limits::default());
    match said.last() {
        Some(Said::Broken(code)) => Some(*code),
        _ => None,
    }
}

#[test]
fn forbidden_framing_is_1002_at_once() {
    let mut unmasked = client_frame(TEXT, b"hi");
    unmasked[1] &= 0x7f;
    let long_ping = [PING, 0x80 | 126, 0, 126];
    for (name, bytes) in [
        ("unmasked", unmasked),
        ("RSV1, by the first byte alone", vec![0xc1]),
        ("RSV2", vec![0xa1]),
        ("RSV3", vec![0x91]),
        ("reserved data opcode", vec![0x83]),
        ("reserved control opcode", vec![0x8b]),
        ("fragmented ping", vec![0x09]),
        ("ping above 125 bytes, by two bytes", long_ping.to_vec()),
        ("continuation without a start", client_frame(LAST, b"x")),
        (
            "text inside a fragmented text",
            [client_frame(FIRST_TEXT, b"a"), client_frame(TEXT, b"b")].concat(),
        ),
        (
            "length in a longer form",
            vec![BINARY, 0x80 | 126, 0, 5, 1, 2, 3, 4],
        ),
    ] {
        assert_eq!(broken(&bytes), Some(1002), "{name}");
    }
}

#[test]
fn too_big_is_1009_by_the_header_and_nothing_is_allocated() {
    let header = |len: u64| {
        let mut bytes = vec![BINARY, 0x80 | 127];
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes
    };
    for len in [1 << 63, u64::MAX, (256 << 10) + 1] {
        let (said, decoder) = decode(&header(len), &[], &Limits::default());
        assert_eq!(said, [Said::Broken(1009)], "{len}");
        assert!(decoder.partial.is_none());
    }
    let (said, decoder) = decode(&header(256 << 10), &[], &Limits::default());
    assert_eq!(said, []);
    let partial = decoder.partial.expect("an open frame");
    assert_eq!(
        partial.buffer.capacity(),
        0,
        "a claimed length allocates nothing"
    );

    let half = vec![0; 200 << 10];
    let message = [client_frame(FIRST_BINARY, &half), client_frame(LAST, &half)].concat();
    assert_eq!(broken(&message), Some(1009), "fragments add up");
}

#[test]
fn fragments_are_counted() {
    let message = |fragments: usize| {
        let mut bytes = client_frame(FIRST_TEXT, b"a");
        for _ in 0..fragments - 2 {
            bytes.extend(client_frame(MIDDLE, b""));
        }
        bytes.extend(client_frame(LAST, b"z"));
        bytes
    };
    let (said, _) = decode(&message(1024), &[], &Limits::default());
    assert_eq!(
        said.last(),
        Some(&Said::Message(Opcode::Text, b"az".to_vec()))
    );
    assert_eq!(broken(&message(1025)), Some(1009));
}

#[test]
fn bad_utf8_is_1007_before_the_frame_or_message_ends() {
    let overlong = client_frame(TEXT, b"ok \xc0\xaf and much more");
    let surrogate = client_frame(TEXT, b"\xed\xa0\x80.....");
    for (name, bytes, bad) in [
        ("overlong", overlong, 6 + 3),
        ("surrogate", surrogate, 6 + 1),
    ] {
        let (said, _) = decode(&bytes[..bad], &[], &Limits::default());
        assert_eq!(said, [], "{name}: not yet wrong");
        assert_eq!(broken(&bytes[..=bad]), Some(1007), "{name}: wrong now");
    }
    let crab = "🦀".as_bytes();
    let split = [
        client_frame(FIRST_TEXT, &crab[..2]),
        client_frame(LAST, &crab[2..]),
    ]
    .concat();
    let (said, _) = decode(&split, &[], &Limits::default());
    assert_eq!(
        said.last(),
        Some(&Said::Message(Opcode::Text, crab.to_vec()))
    );
    assert_eq!(
        broken(&client_frame(TEXT, &crab[..3])),
        Some(1007),
        "ends inside"
    );
    let ended = [
        client_frame(FIRST_TEXT, &crab[..3]),
        client_frame(LAST, b""),
    ]
    .concat();
    assert_eq!(broken(&ended), Some(1007), "message ends inside");
    let across = [
        client_frame(FIRST_TEXT, &crab[..2]),
        client_frame(MIDDLE, b"x"),
    ]
    .concat();
    assert_eq!(broken(&across), Some(1007), "wrong across fragments");
    assert_eq!(broken(&client_frame(BINARY, b"\xff")), None);
}

#[test]
fn close_codes_that_may_not_be_sent_are_1002() {
    let close = |code: u16| client_frame(CLOSE, &code.to_be_bytes());
    for code in [
        0,
        999,
        1004,
        1005,
        1006,
        1015,
        1016,
        2000,
        2999,
        5000,
        u16::MAX,
    ] {
        assert_eq!(broken(&close(code)), Some(1002), "{code}");
    }
    for code in [1000, 1001, 1003, 1007, 1012, 1014, 3000, 4000, 4999] {
        let (said, _) = decode(&close(code), &[], &Limits::default());
        assert_eq!(said, [Said::Close(Some(code), String::new())]);
    }
    assert_eq!(broken(&client_frame(CLOSE, &[3])), Some(1002));
    assert_eq!(broken(&client_frame(CLOSE, b"\x03\xe8\xff")), Some(1007));
    let (said, _) = decode(&client_frame(CLOSE, b""), &[], &Limits::default());
    assert_eq!(said, [Said::Close(None, String::new())]);
}

#[test]
fn nothing_is_held_between_frames() {
    assert_eq!(size_of::<Decoder>(), size_of::<usize>());
    let bytes = [client_frame(FIRST_TEXT, b"a"), client_frame(LAST, b"b")].concat();
    for cut in 0..=bytes.len() {
        let (_, decoder) = decode(&bytes, &[cut], &Limits::default());
        assert!(decoder.partial.is_none(), "cut at {cut}");
    }
}

/// One frame or a fragmented message with pings in between, as bytes.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let text = "[a-zé€🦀]{0,200}".prop_map(|text: String| client_frame(TEXT, text.as_bytes()));
    let binary = prop::collection::vec(any::<u8>(), 0..300).prop_map(|p| client_frame(BINARY, &p));
    let ping = prop::collection::vec(any::<u8>(), 0..=125).prop_map(|p| client_frame(PING, &p));
    let fragmented = ("[a-z€🦀]{0,60}", 0..4usize, any::<bool>()).prop_map(
        |(text, fragments, pings): (String, usize, bool)| {
            let payload = text.as_bytes();
            let step = payload.len() / (fragments + 1) + 1;
            let mut pieces = payload.chunks(step).collect::<Vec<_>>();
            pieces.push(b"");
            let mut bytes = Vec::new();
            for (i, piece) in pieces.iter().enumerate() {
                let opcode = if i == 0 { FIRST_TEXT } else { MIDDLE };
                let last = if i == pieces.len() - 1 { 0x80 } else { 0 };
                bytes.extend(client_frame(opcode | last, piece));
                if pings && last == 0 {
                    bytes.extend(client_frame(PING, b"between"));
                }
            }
            bytes
        },
    );
    // Whatever a hostile client makes up, too.
    let noise = prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![4 => text, 3 => binary, 2 => ping, 4 => fragmented, 1 => noise]
}

proptest! {
    #[test]
    fn any_split_of_the_stream_says_the_same(
        pieces in prop::collection::vec(piece(), 0..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let bytes = pieces.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let limits = Limits { frame_bytes_max: 250, message_bytes_max: 250, fragments_max: 4 };
        let (whole, _) = decode(&bytes, &[], &limits);
        let (split, _) = decode(&bytes, &cuts, &limits);
        prop_assert_eq!(whole, split);
    }
}
