use std::sync::atomic::Ordering;

use tidings_gateway::worker::{CloseReason, Token, WorkerConfig};

use crate::support::*;

/// Frames that no kernel buffer of a loopback connection holds all of.
const FRAMES: usize = 2000;
const FRAME_BYTES: usize = 16 << 10;

/// Sends numbered frames, each in a turn of its own, and returns how many were taken.
fn flood(server: &Server, token: Token) -> usize {
    (0..FRAMES)
        .filter(|i| {
            let text = format!("{i:0FRAME_BYTES$}");
            server.run(move |io| io.send(token, text_frame(&text)))
        })
        .count()
}

#[test]
fn a_slow_reader_loses_frames_but_never_half_of_one_and_is_told() {
    let server = start(config());
    let (mut client, token) = server.open();
    let (mut bystander, other) = server.open();
    assert!(flood(&server, token) < FRAMES, "the queue is bounded");
    assert_eq!(server.saw(), Seen::Overflow(token));
    let (queued, open) = server.run(move |io| (io.queued_bytes(token), io.is_open(token)));
    assert!(open && queued <= 256 << 10, "{queued} bytes queued");

    bystander.send("unharmed");
    assert_eq!(bystander.text(), "unharmed");

    // What comes is whole frames in order, and word of what is missing.
    let mut last = None;
    let mut lagging = 0;
    loop {
        let text = client.text();
        if text == "lagging" {
            lagging += 1;
        } else {
            let number: usize = text.parse().expect("a whole frame");
            assert!(last.is_none_or(|last| number > last));
            last = Some(number);
        }
        if lagging > 0 && server.run(move |io| io.queued_bytes(token)) == 0 {
            break;
        }
    }
    let told = std::iter::repeat_with(|| server.saw())
        .find(|seen| !matches!(seen, Seen::Overflow(_) | Seen::Message(..)));
    assert_eq!(told, Some(Seen::Drained(token)));
    server.run(move |io| io.send(token, text_frame("caught up")));
    while client.text() != "caught up" {}
    assert!(server.run(move |io| io.is_open(other)));
    assert!(server.stats.overflows.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_reader_that_stays_blocked_is_closed_as_too_slow() {
    for config in [
        WorkerConfig {
            overflow_ms: 50,
            ..config()
        },
        // Also without an overflow: a socket that takes nothing isn't waited for.
        WorkerConfig {
            write_stall_ms: 50,
            queue_bytes_max: 1 << 30,
            queue_frames_max: 1 << 20,
            ..config()
        },
    ] {
        let server = start(config);
        let (mut client, token) = server.open();
        flood(&server, token);
        let closed =
            std::iter::repeat_with(|| server.saw()).find(|seen| !matches!(seen, Seen::Overflow(_)));
        assert_eq!(closed, Some(Seen::Close(token, CloseReason::Policy(4004))));
        // Should it read after all, it learns why.
        let last = std::iter::repeat_with(|| client.frame()).find(|(first, _)| *first == 0x88);
        assert_eq!(
            last.map(|(_, payload)| payload[..2].to_vec()),
            Some(vec![0x0f, 0xa4])
        );
        client.assert_ended();
    }
}
