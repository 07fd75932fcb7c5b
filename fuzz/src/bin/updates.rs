//! Frames of updates, as a client reads them from a server in either format, and what it makes of them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidings_client::{ClientCore, Config, Cursor, Mode, Output, Saved};
use tidings_fuzz::{Input, within};
use tidings_protocol::limits::INFLATED_BYTES_MAX;
use tidings_protocol::wire::{
    Hello, Kind, Limits, Ready, ServerFrame, Update as Envelope, update::Update,
};
use tidings_protocol::{Format, decode_server_frame, encode_server_frame};

const NOW: u64 = 1_800_000_000_000_000;
const CONVERSATION: u64 = 0x0b;

/// A client that is signed in, and has a message under way.
fn client(mode: Mode) -> ClientCore {
    let config = Config {
        mode,
        ..Config::default()
    };
    let mut last = 0;
    let random = Box::new(move || {
        last += 1;
        last
    });
    let mut core = ClientCore::new(config, Saved::default(), random);
    core.set_token(NOW, "token".into());
    core.start(NOW);
    core.connected(NOW);
    let hello = Update::Hello(Hello {
        heartbeat_ms: 25_000,
        server_time: NOW,
        limits: Some(Limits::default()),
        ..Hello::default()
    });
    let ready = Update::Ready(Ready {
        user: 1,
        device: 1,
        session: 1,
        epoch: 1,
        ..Ready::default()
    });
    let updates = [hello, ready].map(|update| Envelope {
        r#ref: 0,
        update: Some(update),
    });
    core.frame(
        NOW,
        ServerFrame {
            updates: updates.into(),
        },
    );
    let _ = core.send(
        NOW,
        CONVERSATION,
        Kind::Text,
        bytes::Bytes::from_static(b"hello"),
    );
    core
}

/// What is kept is always the operations given out, and makes sense by itself.
fn judge(core: &mut ClientCore, kept: &mut Saved) {
    for output in core.outputs() {
        if let Output::Persist(op) = output {
            kept.apply(&op);
        }
    }
    let saved = core.snapshot();
    assert_eq!(&saved, kept, "the state is the operations applied");
    for lane in saved.lanes.values() {
        assert!(lane.numbered <= lane.queue.len());
    }
    for Cursor { have, holes, .. } in saved.cursors.values() {
        let mut last = 0;
        for (from, to) in holes {
            assert!(
                last < *from && from <= to && to <= have,
                "{holes:?} below {have}"
            );
            last = *to;
        }
    }
}

fn write_again(format: Format, frame: &ServerFrame) {
    let mut again = Vec::new();
    encode_server_frame(format, frame, &mut again);
    let read = decode_server_frame(format, &again).expect("what we write is read");
    let mut second = Vec::new();
    encode_server_frame(format, &read, &mut second);
    // Not `read == frame`: JSON shows a compressed body inflated.
    assert_eq!(again, second, "written, read and written again");
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let how = input.byte();
    let format = Format::ALL[usize::from(how & 1)];
    let mode = match how & 2 {
        0 => Mode::Complete,
        _ => Mode::NewestFirst,
    };
    // Zstd bodies are shown inflated, at most a hundred times as long.
    within(
        1024 * bytes.len() + (1 << 20) + 8 * INFLATED_BYTES_MAX,
        || {
            let mut core = client(mode);
            let mut kept = Saved::default();
            judge(&mut core, &mut kept);
            let mut now = NOW;
            while !input.is_empty() {
                let Ok(frame) = decode_server_frame(format, input.piece()) else {
                    break;
                };
                // What only a later server knows is read as nothing, and nothing isn't written.
                if frame.updates.iter().all(|update| update.update.is_some()) {
                    write_again(format, &frame);
                }
                core.frame(now, frame);
                judge(&mut core, &mut kept);
                now += 700_000;
                core.tick(now);
                judge(&mut core, &mut kept);
            }
            if how & 4 != 0 {
                core.disconnected(now, None);
                core.tick(now + 60_000_000);
                judge(&mut core, &mut kept);
            }
        },
    );
});
