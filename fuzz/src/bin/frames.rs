//! WebSocket frames of a client: however they are cut, the same events come out, within the limits.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidings_fuzz::{Input, within};
use tidings_gateway::ws::{Decoder, Event, Limits, Opcode, Violation, close_code_is_valid};

#[derive(Debug, PartialEq)]
enum Seen {
    Message(Opcode, Vec<u8>),
    Fragment,
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

impl Seen {
    fn of(event: Event<'_>) -> Seen {
        match event {
            Event::Message { opcode, payload } => Seen::Message(opcode, payload.to_vec()),
            Event::Fragment => Seen::Fragment,
            Event::Ping(payload) => Seen::Ping(payload.to_vec()),
            Event::Pong(payload) => Seen::Pong(payload.to_vec()),
            Event::Close { code, reason } => Seen::Close(code, reason.to_owned()),
        }
    }
}

/// All events of these pieces, one after the other, and what ended them.
fn decode<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    limits: &Limits,
) -> (Vec<Seen>, Option<Violation>) {
    let mut decoder = Decoder::default();
    let mut seen = Vec::new();
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut at = 0;
        loop {
            match decoder.next(&mut piece[at..], limits) {
                Ok((used, Some(event))) => {
                    at += used;
                    seen.push(Seen::of(event));
                }
                Ok((used, None)) => {
                    assert_eq!(at + used, piece.len(), "all of a piece is taken");
                    break;
                }
                Err(violation) => return (seen, Some(violation)),
            }
        }
    }
    (seen, None)
}

fn judge(seen: &[Seen], limits: &Limits) {
    let mut fragments = 0;
    for event in seen {
        match event {
            Seen::Message(opcode, payload) => {
                assert!(payload.len() <= limits.message_bytes_max);
                match opcode {
                    Opcode::Text => assert!(std::str::from_utf8(payload).is_ok()),
                    other => assert_eq!(*other, Opcode::Binary),
                }
                fragments = 0;
            }
            Seen::Fragment => {
                fragments += 1;
                assert!(fragments <= limits.fragments_max);
            }
            Seen::Ping(payload) | Seen::Pong(payload) => assert!(payload.len() <= 125),
            Seen::Close(code, reason) => {
                assert!(code.is_none_or(close_code_is_valid) && reason.len() <= 123);
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    // Small limits are reached by small inputs.
    let limits = match input.byte() {
        0 => Limits::default(),
        n => Limits {
            frame_bytes_max: n.into(),
            message_bytes_max: 2 * usize::from(n),
            fragments_max: 3,
        },
    };
    let cuts = input.piece();
    let stream = input.rest();
    within(64 * bytes.len() + 4096, || {
        let whole = decode(std::iter::once(stream), &limits);
        judge(&whole.0, &limits);
        // Lengths of pieces; after the last one single bytes.
        let (mut rest, mut lengths) = (stream, cuts.iter());
        let pieces = std::iter::from_fn(|| {
            let length = lengths.next().map_or(1, |n| usize::from(*n).max(1));
            let (piece, behind) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            rest = behind;
            (!piece.is_empty()).then_some(piece)
        });
        assert_eq!(decode(pieces, &limits), whole, "cut and whole differ");
    });
});
