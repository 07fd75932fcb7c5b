//! Frames pinned byte by byte: what is released once is read and written so for ever.
//!
//! `tests/golden/` holds each sample of `support` as hex of its protobuf frame
//! and as JSON text. A new sample's files are written by a run with
//! `GOLDEN=write`, which never touches a file that exists.

mod support;

use std::path::PathBuf;

use tidings_protocol::wire::{ClientFrame, ServerFrame};
use tidings_protocol::{
    Format, decode_client_frame, decode_server_frame, encode_client_frame, encode_server_frame,
};

fn golden(name: &str, format: Format, encoded: &[u8]) -> Vec<u8> {
    let extension = if format == Format::Proto {
        "hex"
    } else {
        "json"
    };
    let file =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.{extension}"));
    if std::env::var_os("GOLDEN").is_some() && !file.exists() {
        let text = match format {
            Format::Proto => encoded.iter().map(|b| format!("{b:02x}")).collect(),
            Format::Json => String::from_utf8(encoded.to_vec()).expect("JSON is text"),
        };
        std::fs::write(&file, text + "\n").expect("the golden folder is writable");
    }
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let text = text.trim_end();
    match format {
        Format::Json => text.as_bytes().to_vec(),
        Format::Proto => (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex"))
            .collect(),
    }
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn commands_are_written_and_read_as_pinned() {
    for (name, command) in support::commands() {
        let frame = ClientFrame {
            commands: vec![command],
        };
        for format in Format::ALL {
            let mut encoded = Vec::new();
            encode_client_frame(format, &frame, &mut encoded);
            let pinned = golden(&format!("command-{name}"), format, &encoded);
            assert_eq!(show(&encoded), show(&pinned), "{name}, {format:?}");
            assert_eq!(
                decode_client_frame(format, &pinned),
                Ok(frame.clone()),
                "{name}"
            );
        }
    }
}

#[test]
fn updates_are_written_and_read_as_pinned() {
    for (name, update) in support::updates() {
        let frame = ServerFrame {
            updates: vec![update],
        };
        for format in Format::ALL {
            let mut encoded = Vec::new();
            encode_server_frame(format, &frame, &mut encoded);
            let pinned = golden(&format!("update-{name}"), format, &encoded);
            assert_eq!(show(&encoded), show(&pinned), "{name}, {format:?}");
            assert_eq!(
                decode_server_frame(format, &pinned),
                Ok(frame.clone()),
                "{name}"
            );
        }
    }
}

#[test]
fn several_commands_make_one_frame() {
    let commands: Vec<_> = support::commands()
        .into_iter()
        .map(|(_, command)| command)
        .collect();
    let frame = ClientFrame {
        commands: commands[..3].to_vec(),
    };
    for format in Format::ALL {
        let mut encoded = Vec::new();
        encode_client_frame(format, &frame, &mut encoded);
        let pinned = golden("frame-of-three", format, &encoded);
        assert_eq!(show(&encoded), show(&pinned), "{format:?}");
        assert_eq!(decode_client_frame(format, &pinned), Ok(frame.clone()));
    }
}

#[test]
fn every_command_and_update_of_the_schema_is_pinned() {
    let of = |names: Vec<&str>| -> Vec<String> {
        names
            .into_iter()
            .map(|n| n.split('-').next().unwrap_or(n).to_owned())
            .collect()
    };
    let commands = of(support::commands()
        .into_iter()
        .map(|(name, _)| name)
        .collect());
    for name in support::oneof_names("command") {
        assert!(commands.contains(&name), "no golden command {name}");
    }
    let updates = of(support::updates()
        .into_iter()
        .map(|(name, _)| name)
        .collect());
    for name in support::oneof_names("update") {
        assert!(updates.contains(&name), "no golden update {name}");
    }
}
