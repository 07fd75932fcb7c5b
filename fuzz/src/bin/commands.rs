//! Frames of commands, as a gateway reads them from a client in either format.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidings_fuzz::{Input, within};
use tidings_protocol::body::{check_body, compress_body};
use tidings_protocol::limits::{
    COMMANDS_PER_FRAME_MAX, DEVICE_BYTES_MAX, FRAME_BYTES_MAX, INFLATED_BYTES_MAX, NUMBER_MAX,
    SYNC_CURSORS_MAX, TOKEN_BYTES_MAX, WATCH_MAX,
};
use tidings_protocol::wire::{Encoding, Kind, command::Command};
use tidings_protocol::{
    Format, Request, SendRef, commands_decode, decode_client_frame, encode_client_frame,
};

fn judge_send(send: &SendRef<'_>) {
    assert!(send.conversation != 0 && send.sender != 0 && send.id != 0);
    assert!((1..=NUMBER_MAX).contains(&send.grant) && (1..=NUMBER_MAX).contains(&send.counter));
    assert_eq!(send.counter == 1, send.previous == 0);
    // The bound may be raised to any number by an operator; nothing is ever inflated beyond this.
    let Ok(plain) = send.check_body(usize::MAX) else {
        return;
    };
    assert!(plain.len() <= INFLATED_BYTES_MAX);
    match send.kind {
        Kind::Text => assert!(std::str::from_utf8(&plain).is_ok()),
        Kind::Empty => assert!(plain.is_empty()),
        _ => {}
    }
    if let Some(packed) = compress_body(&plain) {
        let again = check_body(send.kind, Encoding::Zstd, &packed, usize::MAX);
        assert_eq!(again.as_deref(), Ok(&*plain), "what we compress is taken");
    }
}

fn judge_other(command: &Command) {
    match command {
        Command::Auth(auth) => {
            assert!((1..=TOKEN_BYTES_MAX).contains(&auth.token.len()));
            assert!(auth.device.len() <= DEVICE_BYTES_MAX);
        }
        Command::Sync(sync) => {
            assert!(sync.cursors.len() <= SYNC_CURSORS_MAX);
            let good = |seq| seq <= NUMBER_MAX;
            assert!(
                sync.cursors
                    .iter()
                    .all(|c| c.conversation != 0 && good(c.seq))
            );
        }
        Command::Watch(watch) => assert!(watch.users.len() <= WATCH_MAX),
        Command::History(history) => {
            assert!(history.conversation != 0);
            assert!(history.before.max(history.after) <= NUMBER_MAX);
        }
        Command::Delivered(delivered) => assert!((1..=NUMBER_MAX).contains(&delivered.seq)),
        Command::Read(read) => assert!(read.seq <= NUMBER_MAX),
        Command::Send(_) => panic!("a send isn't among the others"),
        _ => {}
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let format = Format::ALL[usize::from(input.byte() & 1)];
    let payload = input.rest();
    // One text of an inflated body, its compressed form and the compressor's own memory come on top.
    let fair = 64 * payload.len() + (1 << 20) + 8 * INFLATED_BYTES_MAX;
    within(fair, || {
        let frame = decode_client_frame(format, payload);
        let commands = match commands_decode(format, payload) {
            Ok(commands) => commands.collect::<Vec<_>>(),
            Err(error) => return assert_eq!(frame, Err(error), "a broken envelope"),
        };
        assert!(commands.len() <= COMMANDS_PER_FRAME_MAX);
        for command in commands.iter().flatten() {
            match &command.request {
                Request::Send(send) => judge_send(send),
                Request::Other(other) => judge_other(other),
            }
        }
        let Ok(frame) = frame else {
            return assert!(
                commands.last().is_some_and(Result::is_err),
                "one reader refuses what the other takes"
            );
        };
        let read = commands.iter().flatten().map(|command| command.to_wire());
        assert!(
            read.eq(frame.commands.iter().cloned()),
            "both readers agree"
        );
        let mut again = Vec::new();
        encode_client_frame(format, &frame, &mut again);
        if again.len() <= FRAME_BYTES_MAX {
            assert_eq!(decode_client_frame(format, &again).as_ref(), Ok(&frame));
        }
    });
});
