//! What the hot paths of the codec cost, in nanoseconds an operation.
//!
//! `cargo run --release -p tidings-protocol --example codec_cost`. Bodies are
//! 104 bytes, the mean of real chat. Each figure is the best of five rounds:
//! on a shared machine the others show the neighbours.

use std::hint::black_box;
use std::time::Instant;

use tidings_protocol::wire::{
    ClientFrame, Command, Encoding, Event, Kind, Send, Update, command, update,
};
use tidings_protocol::{
    EventRef, Format, Page, commands_decode, decode_server_frame, encode_client_frame,
    encode_event, encode_page_event, encode_update,
};

const ROUNDS: usize = 5;
const OPERATIONS: u32 = 200_000;

fn measure(what: &str, mut operation: impl FnMut()) {
    let best = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            (0..OPERATIONS).for_each(|_| operation());
            begin.elapsed()
        })
        .min()
        .unwrap_or_default();
    println!(
        "{what:<44} {:>7} ns",
        best.as_nanos() / u128::from(OPERATIONS)
    );
}

fn main() {
    let body: Vec<u8> = b"the quick brown fox jumps over it "
        .iter()
        .copied()
        .cycle()
        .take(104)
        .collect();
    let send = Send {
        conversation: 0x00f3_0102_0304_0506,
        sender: 0x1122_3344_5566_7788,
        grant: 17,
        counter: 301,
        id: 0xa1b2_c3d4_e5f6_0718,
        previous: 0x0102_0304_0506_0708,
        kind: Kind::Text.into(),
        body: body.clone().into(),
        encoding: Encoding::Identity.into(),
    };
    let event = EventRef {
        conversation: send.conversation,
        seq: 70_000,
        ts: 1_764_000_000_123_456,
        user: 0xb2c3_d4e5_f607_1829,
        sender: send.sender,
        grant: send.grant,
        counter: send.counter,
        id: send.id,
        kind: Kind::Text,
        encoding: Encoding::Identity,
        body: &body,
        members: None,
    };
    let update = Update {
        r#ref: 0,
        update: Some(update::Update::Event(Event {
            conversation: event.conversation,
            seq: event.seq,
            ts: event.ts,
            user: event.user,
            sender: event.sender,
            grant: event.grant,
            counter: event.counter,
            id: event.id,
            kind: event.kind.into(),
            body: body.clone().into(),
            encoding: event.encoding.into(),
            members: None,
        })),
    };
    let command = Command {
        r#ref: 7,
        command: Some(command::Command::Send(send)),
    };
    let frame = ClientFrame {
        commands: vec![command],
    };

    for format in Format::ALL {
        let (mut out, mut sent, mut item) = (Vec::with_capacity(1024), Vec::new(), Vec::new());
        encode_client_frame(format, &frame, &mut sent);
        encode_event(format, 0, &event, &mut item);
        println!(
            "{format:?}: send {} bytes, event {} bytes",
            sent.len(),
            item.len()
        );
        measure("  decode a send (commands_decode)", || {
            for command in commands_decode(format, black_box(&sent)).expect("valid") {
                black_box(command.expect("valid"));
            }
        });
        measure("  encode_event", || {
            out.clear();
            encode_event(format, 0, black_box(&event), &mut out);
            black_box(&out);
        });
        measure("  encode_page_event", || {
            out.clear();
            encode_page_event(format, Page::Sync, black_box(&event), &mut out);
            black_box(&out);
        });
        measure("  encode_update of the same event", || {
            out.clear();
            encode_update(format, black_box(&update), &mut out);
            black_box(&out);
        });
        measure("  decode_server_frame of the same event", || {
            black_box(decode_server_frame(format, black_box(&item)).expect("valid"));
        });
    }
}
