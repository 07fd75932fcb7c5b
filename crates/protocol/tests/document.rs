//! docs/protocol.md and the code cannot drift apart.

mod support;

use tidings_protocol::codes::{Advice, Remedy};
use tidings_protocol::wire::{
    ClientFrame, ConversationKind, Encoding, Feature, FeatureState, Kind, Presence, Role,
    ServerFrame, Status,
};
use tidings_protocol::{
    CloseCode, ErrorCode, Format, Named, decode_client_frame, decode_server_frame,
    encode_client_frame, encode_server_frame, limits,
};

const DOCUMENT: &str = include_str!("../../../docs/protocol.md");

/// The code blocks marked with `mark`, without their fences.
fn blocks(mark: &str) -> Vec<String> {
    let begin = format!("```{mark}");
    let (mut blocks, mut open) = (Vec::new(), None::<String>);
    for line in DOCUMENT.lines() {
        match &mut open {
            Some(block) if line == "```" => {
                blocks.push(std::mem::take(block));
                open = None;
            }
            Some(block) => block.push_str(line),
            None if line == begin => open = Some(String::new()),
            None => {}
        }
    }
    assert!(!blocks.is_empty(), "the document has {mark} blocks");
    blocks
}

fn is_named(name: &str) {
    assert!(
        DOCUMENT.contains(&format!("`{name}`")),
        "`{name}` is missing in docs/protocol.md"
    );
}

#[test]
fn every_json_example_is_what_this_version_reads_and_writes() {
    for example in blocks("json client") {
        let frame = decode_client_frame(Format::Json, example.as_bytes());
        let frame = frame.unwrap_or_else(|e| panic!("{e}\n{example}"));
        let mut written = Vec::new();
        encode_client_frame(Format::Json, &frame, &mut written);
        assert_eq!(String::from_utf8_lossy(&written), example);
    }
    for example in blocks("json server") {
        let frame = decode_server_frame(Format::Json, example.as_bytes());
        let frame = frame.unwrap_or_else(|e| panic!("{e}\n{example}"));
        let mut written = Vec::new();
        encode_server_frame(Format::Json, &frame, &mut written);
        assert_eq!(String::from_utf8_lossy(&written), example);
    }
}

#[test]
fn the_protobuf_example_is_the_first_send() {
    let hex = blocks("hex client").concat();
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex digits"))
        .collect();
    let send = blocks("json client")
        .into_iter()
        .find(|b| b.contains("\"send\""))
        .expect("a send");
    let frame: ClientFrame = decode_client_frame(Format::Json, send.as_bytes()).expect("valid");
    let mut written = Vec::new();
    encode_client_frame(Format::Proto, &frame, &mut written);
    let written_hex: String = written.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(written_hex, hex);
    assert_eq!(decode_client_frame(Format::Proto, &bytes), Ok(frame));
}

#[test]
fn every_command_and_update_has_an_example() {
    let examples: Vec<_> = blocks("json client");
    for name in support::oneof_names("command") {
        let example = format!("{{\"type\":\"{name}\"");
        assert!(
            examples.iter().any(|e| e.contains(&example)),
            "no example of the command {name}"
        );
    }
    let examples = blocks("json server").concat();
    for name in support::oneof_names("update") {
        let types = if name == "event" {
            vec!["message", "members"]
        } else {
            vec![name.as_str()]
        };
        for name in types {
            let example = format!("{{\"type\":\"{name}\"");
            assert!(
                examples.contains(&example),
                "no example of the update {name}"
            );
        }
    }
}

#[test]
fn every_error_code_has_its_row() {
    for code in ErrorCode::ALL {
        let retry = match code.remedy() {
            Remedy::Never => "never",
            Remedy::Later => "later",
            Remedy::FreshToken => "fresh token",
        };
        let row = format!("| `{code}` | {retry} |");
        assert!(
            DOCUMENT.contains(&row),
            "docs/protocol.md has no row beginning {row}"
        );
    }
}

#[test]
fn every_close_code_has_its_row() {
    for code in CloseCode::ALL {
        let then = match code.advice() {
            Advice::Reconnect => "reconnect",
            Advice::ReconnectLater => "later",
            Advice::GiveUp => "give up",
        };
        let row = format!("| {} | {} | {then} |", code.code(), code.reason());
        assert!(DOCUMENT.contains(&row), "docs/protocol.md has no row {row}");
    }
}

#[test]
fn every_name_of_an_enum_is_explained() {
    fn all<E: Named + TryFrom<i32>>() {
        let names: Vec<_> = (0..)
            .map_while(|n| E::try_from(n).ok())
            .map(E::name)
            .collect();
        assert!(names.len() > 1);
        names.into_iter().for_each(is_named);
    }
    all::<Kind>();
    all::<Encoding>();
    all::<Presence>();
    all::<Feature>();
    all::<FeatureState>();
    all::<Status>();
    all::<Role>();
    all::<ConversationKind>();
}

#[test]
fn subprotocols_and_limits_are_named() {
    for format in Format::ALL {
        is_named(format.subprotocol());
    }
    let hello = blocks("json server")
        .into_iter()
        .find(|b| b.contains("hello"))
        .expect("a hello");
    let ServerFrame { updates } =
        decode_server_frame(Format::Json, hello.as_bytes()).expect("the example is valid");
    let Some(tidings_protocol::wire::update::Update::Hello(hello)) = &updates[0].update else {
        panic!("the example is a hello");
    };
    assert_eq!(hello.version, tidings_protocol::VERSION);
    assert_eq!(hello.heartbeat_ms, limits::HEARTBEAT_MS);
    let published = hello.limits.expect("hello carries the limits");
    assert_eq!(published.frame_bytes_max as usize, limits::FRAME_BYTES_MAX);
    assert_eq!(published.text_bytes_max as usize, limits::TEXT_BYTES_MAX);
    assert_eq!(published.sends_per_second, limits::SENDS_PER_SECOND);
    assert_eq!(
        published.commands_per_frame_max as usize,
        limits::COMMANDS_PER_FRAME_MAX
    );
    assert_eq!(published.page_max, limits::PAGE_MAX);
    for name in [
        "frame_bytes_max",
        "text_bytes_max",
        "commands_per_frame_max",
        "page_max",
    ] {
        is_named(name);
    }
    is_named("sends_per_second");
}
