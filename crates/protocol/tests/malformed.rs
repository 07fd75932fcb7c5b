//! Bad input meets exactly the answer the security checklist asks for, within its bounds.

mod support;

use std::borrow::Cow;

use bytes::Bytes;
use prost::Message;
use tidings_protocol::body::{BodyError, check_body, compress_body};
use tidings_protocol::limits::{
    COMMANDS_PER_FRAME_MAX, INFLATED_BYTES_MAX, SYNC_CURSORS_MAX, TEXT_BYTES_MAX,
};
use tidings_protocol::wire::{
    ClientFrame, Command, Cursor, Encoding, Kind, Ping, Send, Sync, command, update,
};
use tidings_protocol::{
    DecodeError, ErrorCode, EventRef, Format, commands_decode, decode_client_frame,
    decode_server_frame, encode_client_frame, encode_event, message_id,
};

fn json(text: &str) -> Result<ClientFrame, DecodeError> {
    decode_client_frame(Format::Json, text.as_bytes())
}

fn json_code(text: &str) -> ErrorCode {
    json(text).expect_err(text).code
}

fn proto(command: command::Command) -> Result<ClientFrame, DecodeError> {
    let command = Command {
        r#ref: 9,
        command: Some(command),
    };
    decode_client_frame(
        Format::Proto,
        &ClientFrame {
            commands: vec![command],
        }
        .encode_to_vec(),
    )
}

/// A send in JSON with `field` set to `value`.
fn send_with(field: &str, value: serde_json::Value) -> String {
    let mut send = serde_json::json!({
        "type": "send", "conversation": "00f3010203040506", "sender": "1122334455667788",
        "grant": 1, "counter": 2, "id": "a1b2c3d4e5f60718", "previous": "0102030405060708",
        "kind": "text", "body": "hello", "ref": 7,
    });
    send[field] = value;
    send.to_string()
}

// Checklist row 27.

#[test]
fn an_unknown_field_is_ignored() {
    assert!(json(r#"{"type":"ping","mood":"good","list":[{"a":1}],"null":null}"#).is_ok());
    // Protobuf: field 14 of the frame, field 20 of the command.
    let mut bytes = vec![0x72, 0x01, 0x00];
    bytes.extend([0x0a, 0x05, 0x52, 0x00, 0xa0, 0x01, 0x01]);
    let frame = decode_client_frame(Format::Proto, &bytes).expect("unknown fields are skipped");
    assert_eq!(
        frame.commands[0].command,
        Some(command::Command::Ping(Ping {}))
    );
}

#[test]
fn an_unknown_type_is_told_with_its_ref() {
    let error = json(r#"{"type":"levitate","ref":5,"seq":"not a number"}"#).expect_err("unknown");
    assert_eq!((error.code, error.r#ref), (ErrorCode::UnknownType, 5));
    // A command of field 20, ref 5.
    let error = decode_client_frame(Format::Proto, &[0x0a, 0x05, 0xa2, 0x01, 0x00, 0x78, 0x05]);
    let error = error.expect_err("unknown");
    assert_eq!((error.code, error.r#ref), (ErrorCode::UnknownType, 5));
}

#[test]
fn an_update_of_a_later_server_is_nothing_to_an_older_client() {
    let frame = decode_server_frame(
        Format::Json,
        br#"[{"type":"levitated","by":3},{"type":"pong","server_time":1},{"type":"message","kind":"smell","body":7}]"#,
    )
    .expect("a later server's frame is read");
    assert_eq!(frame.updates[0].update, None);
    assert!(matches!(
        frame.updates[1].update,
        Some(update::Update::Pong(_))
    ));
    let Some(update::Update::Event(event)) = &frame.updates[2].update else {
        panic!("an event")
    };
    assert!(Kind::try_from(event.kind).is_err());
}

#[test]
fn deep_json_is_refused_without_recursion() {
    let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    for field in ["body", "mood"] {
        let with = |levels: usize| {
            format!(
                r#"{{"type":"send","conversation":"00f3010203040506","sender":"1122334455667788","grant":1,"counter":1,"id":"a1b2c3d4e5f60718","kind":"json","{field}":{}{}}}"#,
                nested(levels),
                if field == "body" { "" } else { r#","body":1"# },
            )
        };
        assert!(json(&with(32)).is_ok(), "{field}");
        assert_eq!(json_code(&with(33)), ErrorCode::BadRequest, "{field}");
        assert_eq!(json_code(&with(100_000)), ErrorCode::BadRequest, "{field}");
    }
    for text in ["[", r#"{"a":"#] {
        assert_eq!(json_code(&text.repeat(100_000)), ErrorCode::BadRequest);
    }
    let body = nested(100_000);
    let refused = check_body(Kind::Json, Encoding::Identity, body.as_bytes(), 1 << 20);
    assert_eq!(refused, Err(BodyError::TooLong), "the length comes first");
    assert_eq!(
        check_body(
            Kind::Json,
            Encoding::Identity,
            &body.as_bytes()[..16_000],
            TEXT_BYTES_MAX
        ),
        Err(BodyError::NotJson)
    );
}

#[test]
fn deep_protobuf_is_refused_without_recursion() {
    // Groups of an unknown field inside one another.
    let bytes = [0xa3, 0x01].repeat(100_000);
    assert!(decode_client_frame(Format::Proto, &bytes).is_err());
    let mut inside = vec![0x0a, 0xc0, 0x9a, 0x0c];
    inside.extend([0xa3, 0x01].repeat(100_000));
    assert!(decode_client_frame(Format::Proto, &inside).is_err());
}

#[test]
fn what_json_does_not_allow_is_a_bad_request() {
    for text in [
        "",
        " ",
        "null",
        "7",
        r#""ping""#,
        "{}",
        r#"{"type":7}"#,
        r#"{"type":"ping"} x"#,
        r#"{"type":"ping",}"#,
        r#"{'type':'ping'}"#,
        r#"{"type":"ping","ref":NaN}"#,
        r#"{"type":"ping","ref":Infinity}"#,
        r#"{"type":"ping","x":NaN}"#,
        r#"{"type":"ping","x":[1,]}"#,
        r#"{"type":"ping","ref":18446744073709551616}"#,
        r#"{"type":"ping","ref":9007199254740992}"#,
        r#"{"type":"ping","ref":-1}"#,
        r#"{"type":"ping","ref":1.5}"#,
        r#"{"type":"ping","ref":"1"}"#,
        r#"{"type":"ping","ref":01}"#,
        r#"[{"type":"ping"},7]"#,
        r#"[[{"type":"ping"}]]"#,
        r#"{"type":"typing","conversation":"00f3010203040506","on":1}"#,
        r#"{"type":"typing","conversation":"00F3010203040506","on":true}"#,
        r#"{"type":"typing","conversation":"f3","on":true}"#,
        r#"{"type":"typing","conversation":243,"on":true}"#,
        r#"{"type":"presence","state":"flying"}"#,
        r#"{"type":"watch","users":"00f3010203040506"}"#,
        r#"{"type":"watch","users":[1]}"#,
        r#"{"type":"sync","cursors":[{"conversation":"00f3010203040506","seq":"1"}]}"#,
        r#"{"type":"auth","token":"\ud800"}"#,
    ] {
        assert_eq!(json_code(text), ErrorCode::BadRequest, "{text}");
    }
    let not_utf8 = decode_client_frame(Format::Json, b"{\"type\":\"ping\",\"x\":\"\xff\"}");
    assert_eq!(not_utf8.expect_err("not UTF-8").code, ErrorCode::BadRequest);
}

#[test]
fn a_key_given_twice_is_a_bad_request_at_any_level() {
    for text in [
        r#"{"type":"ping","type":"auth"}"#,
        r#"{"type":"ping","t\u0079pe":"auth"}"#,
        r#"{"type":"ping","x":1,"x":1}"#,
        r#"{"type":"ping","x":[{"y":1,"y":2}]}"#,
        r#"{"type":"sync","cursors":[{"conversation":"00f3010203040506","seq":1,"seq":2}]}"#,
        r#"{"type":"send","conversation":"00f3010203040506","sender":"1122334455667788","grant":1,"counter":1,"id":"a1b2c3d4e5f60718","kind":"json","body":{"a":1,"a":2}}"#,
    ] {
        assert_eq!(json_code(text), ErrorCode::BadRequest, "{text}");
    }
    let body = br#"{"a":{"b":1,"b":2}}"#;
    let refused = check_body(Kind::Json, Encoding::Identity, body, TEXT_BYTES_MAX);
    assert_eq!(refused, Err(BodyError::NotJson));
}

#[test]
fn an_error_says_what_and_where_and_repeats_nothing_it_was_given() {
    let error = json(&send_with("id", "secret".into())).expect_err("not an id");
    assert_eq!(
        error.message,
        "`id` of `send` must be 16 lower-case hex digits."
    );
    assert_eq!(error.r#ref, 7);
    for text in [
        r#"{"secret":1,"secret":1}"#,
        r#"{"type":"secret"}"#,
        r#"{"type":"ping","ref":"secret"}"#,
    ] {
        let error = json(text).expect_err("refused");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

// Checklist row 25.

#[test]
fn a_send_with_a_number_out_of_range_is_a_bad_request_that_names_it() {
    for (field, value) in [
        ("conversation", serde_json::Value::Null),
        ("sender", "0000000000000000".into()),
        ("grant", 0.into()),
        ("counter", 0.into()),
        ("id", serde_json::Value::Null),
        ("id", "0000000000000000".into()),
        ("id", "a1b2c3d4e5f607".into()),
        ("id", "a1b2c3d4e5f6071800".into()),
        ("previous", serde_json::Value::Null),
        ("kind", "members".into()),
        ("kind", "edit".into()),
        ("body", 7.into()),
    ] {
        assert_eq!(
            json_code(&send_with(field, value)),
            ErrorCode::BadRequest,
            "{field}"
        );
    }
    let first_with_previous = send_with("counter", 1.into());
    assert_eq!(json_code(&first_with_previous), ErrorCode::BadRequest);

    let good = Send {
        counter: 2,
        previous: 5,
        ..support::send()
    };
    assert!(proto(command::Command::Send(good.clone())).is_ok());
    for bad in [
        Send {
            conversation: 0,
            ..good.clone()
        },
        Send {
            sender: 0,
            ..good.clone()
        },
        Send {
            grant: 0,
            ..good.clone()
        },
        Send {
            grant: 1 << 53,
            ..good.clone()
        },
        Send {
            counter: 0,
            ..good.clone()
        },
        Send {
            counter: 1 << 53,
            ..good.clone()
        },
        Send {
            id: 0,
            ..good.clone()
        },
        Send {
            previous: 0,
            ..good.clone()
        },
        Send {
            kind: Kind::Members.into(),
            ..good.clone()
        },
        Send {
            kind: 77,
            ..good.clone()
        },
        Send {
            encoding: 77,
            ..good.clone()
        },
    ] {
        let error = proto(command::Command::Send(bad.clone())).expect_err("out of range");
        assert_eq!(error.code, ErrorCode::BadRequest, "{bad:?}");
        let told = (error.r#ref, error.conversation, error.sender, error.counter);
        assert_eq!(told, (9, bad.conversation, bad.sender, bad.counter));
    }
}

#[test]
fn a_bad_command_stops_its_frame_and_keeps_what_came_before() {
    let good = serde_json::json!({"type": "ping"}).to_string();
    let text = format!("[{good},{},{good}]", send_with("counter", 0.into()));
    let mut commands =
        commands_decode(Format::Json, text.as_bytes()).expect("the envelope is fine");
    assert!(matches!(commands.next(), Some(Ok(_))));
    assert!(matches!(commands.next(), Some(Err(_))));
    assert!(
        commands.next().is_none(),
        "nothing behind a bad command is carried out"
    );
}

#[test]
fn a_cut_frame_is_refused_before_its_first_command() {
    let (_, command) = support::commands().remove(1);
    for format in Format::ALL {
        let mut bytes = Vec::new();
        let commands = vec![command.clone(); 3];
        encode_client_frame(format, &ClientFrame { commands }, &mut bytes);
        bytes.pop();
        assert!(commands_decode(format, &bytes).is_err(), "{format:?}");
    }
}

#[test]
fn lists_beyond_their_limit_are_too_long() {
    let ping = Command {
        r#ref: 0,
        command: Some(command::Command::Ping(Ping {})),
    };
    for format in Format::ALL {
        for (count, fits) in [
            (COMMANDS_PER_FRAME_MAX, true),
            (COMMANDS_PER_FRAME_MAX + 1, false),
        ] {
            let mut bytes = Vec::new();
            let frame = ClientFrame {
                commands: vec![ping.clone(); count],
            };
            encode_client_frame(format, &frame, &mut bytes);
            match decode_client_frame(format, &bytes) {
                Ok(_) => assert!(fits),
                Err(e) => assert_eq!((e.code, fits), (ErrorCode::TooLong, false)),
            }
        }
        let cursors = vec![
            Cursor {
                conversation: 1,
                seq: 1
            };
            SYNC_CURSORS_MAX + 1
        ];
        let sync = command::Command::Sync(Sync {
            epoch: 1,
            cursors,
            page: 0,
        });
        let frame = ClientFrame {
            commands: vec![Command {
                r#ref: 0,
                command: Some(sync),
            }],
        };
        let mut bytes = Vec::new();
        encode_client_frame(format, &frame, &mut bytes);
        let error = decode_client_frame(format, &bytes).expect_err("too many cursors");
        assert_eq!(error.code, ErrorCode::TooLong);
    }
}

// Checklist row 24: the number alone names a message, so another id or body is the same message.

#[test]
fn a_message_is_named_by_its_number_not_by_its_content() {
    let ids: Vec<_> = support::commands()
        .into_iter()
        .filter_map(|(_, c)| match c.command {
            Some(command::Command::Send(s)) if s.counter == 2 => Some(s),
            _ => None,
        })
        .collect();
    assert_ne!(ids[0].body, ids[1].body);
    let of = |s: &Send| message_id(s.conversation, s.sender, s.grant, s.counter);
    assert_eq!(of(&ids[0]), of(&ids[1]));
}

// Checklist row 28.

#[test]
fn a_body_above_the_limit_is_too_long_plain_or_compressed() {
    let lines = |len: usize| -> Vec<u8> {
        (0..)
            .flat_map(|i: u32| format!("line {i}\n").into_bytes())
            .take(len)
            .collect()
    };
    let check = |encoding, body: &[u8]| {
        check_body(Kind::Text, encoding, body, TEXT_BYTES_MAX).map(|b| b.len())
    };
    let (fits, over) = (lines(TEXT_BYTES_MAX), lines(TEXT_BYTES_MAX + 1));
    assert_eq!(check(Encoding::Identity, &fits), Ok(TEXT_BYTES_MAX));
    assert_eq!(check(Encoding::Identity, &over), Err(BodyError::TooLong));
    let packed = |body: &[u8]| compress_body(body).expect("lines compress");
    assert_eq!(check(Encoding::Zstd, &packed(&fits)), Ok(TEXT_BYTES_MAX));
    assert_eq!(
        check(Encoding::Zstd, &packed(&over)),
        Err(BodyError::TooLong)
    );
    assert_eq!(BodyError::TooLong.code(), ErrorCode::TooLong);
}

#[test]
fn a_body_is_what_its_kind_says() {
    let check =
        |kind, body: &[u8]| check_body(kind, Encoding::Identity, body, TEXT_BYTES_MAX).map(|_| ());
    assert_eq!(check(Kind::Text, b""), Ok(()));
    assert_eq!(
        check(Kind::Text, b"\xc0\xaf"),
        Err(BodyError::NotUtf8),
        "overlong"
    );
    assert_eq!(
        check(Kind::Text, b"\xed\xa0\x80"),
        Err(BodyError::NotUtf8),
        "surrogate"
    );
    assert_eq!(check(Kind::Json, br#" {"a":[1,2.5e3,null]} "#), Ok(()));
    for bad in [
        &b""[..],
        b"{",
        b"1 2",
        b"NaN",
        b"\"\xff\"",
        b"\"\\ud800\"",
        b"{\"a\":1,}",
    ] {
        assert_eq!(check(Kind::Json, bad), Err(BodyError::NotJson), "{bad:?}");
    }
    assert_eq!(check(Kind::Empty, b""), Ok(()));
    assert_eq!(check(Kind::Empty, b"x"), Err(BodyError::NotEmpty));
    assert_eq!(check(Kind::Members, b""), Err(BodyError::NotSent));
}

// Checklist rows 10 and 11, in zstd where they speak of deflate.

/// A zstd frame that inflates to `blocks` × 128 KiB of zeroes from 4 bytes a
/// block: header, then run-length blocks. `stated` is the size it claims.
fn bomb(blocks: usize, stated: Option<u64>) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd];
    match stated {
        // Single segment, size in 8 bytes.
        Some(size) => {
            frame.push(0xe0);
            frame.extend(size.to_le_bytes());
        }
        // A window of 8 MiB, no size.
        None => frame.extend([0x00, 0x68]),
    }
    for i in 0..blocks {
        let header = (128 << 10) << 3 | 1 << 1 | u32::from(i + 1 == blocks);
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

fn packed_text(body: &[u8]) -> Result<Cow<'_, [u8]>, BodyError> {
    check_body(Kind::Text, Encoding::Zstd, body, TEXT_BYTES_MAX)
}

#[test]
fn a_zstd_bomb_is_refused_from_its_header() {
    let honest = bomb(8_000, Some(8_000 * (128 << 10)));
    assert_eq!(
        packed_text(&honest),
        Err(BodyError::TooLong),
        "says it is 1 GB"
    );
    assert_eq!(
        packed_text(&bomb(8_000, None)),
        Err(BodyError::NotZstd),
        "does not say its size"
    );
    assert_eq!(
        packed_text(&bomb(8_000, Some(16_000))),
        Err(BodyError::NotZstd),
        "lies about its size"
    );
    assert_eq!(
        packed_text(&bomb(1, Some(u64::MAX / 2))),
        Err(BodyError::TooLong)
    );
    let all_a = zstd::bulk::compress(&[b'a'; TEXT_BYTES_MAX], 3).expect("compresses");
    assert_eq!(
        packed_text(&all_a),
        Err(BodyError::TooLong),
        "within the limit, but over 100 times"
    );
    assert_eq!(
        compress_body(&[b'a'; TEXT_BYTES_MAX]),
        None,
        "so senders do not make such"
    );
}

#[test]
fn a_body_is_one_zstd_frame_and_nothing_else() {
    let text: String = (0..300).map(|i| format!("line {i}\n")).collect();
    let one = compress_body(text.as_bytes()).expect("long enough");
    assert_eq!(packed_text(&one).as_deref(), Ok(text.as_bytes()));
    let two = [&one[..], &one].concat();
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..], &one].concat();
    let followed = [&one[..], &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]].concat();
    let trailing = [&one[..], b"x"].concat();
    for bad in [
        &two[..],
        &skippable,
        &followed,
        &followed[one.len()..],
        &trailing,
        &one[..one.len() - 1],
        b"",
        b"plain text",
    ] {
        assert_eq!(packed_text(bad), Err(BodyError::NotZstd));
    }
}

#[test]
fn the_limit_of_a_deployment_counts_only_up_to_what_a_frame_can_hold() {
    let body = vec![b'a'; INFLATED_BYTES_MAX + 1];
    let check = |len: usize| check_body(Kind::Text, Encoding::Identity, &body[..len], usize::MAX);
    assert!(check(INFLATED_BYTES_MAX).is_ok());
    assert_eq!(check(INFLATED_BYTES_MAX + 1), Err(BodyError::TooLong));
}

#[test]
fn a_stored_body_that_is_not_what_it_says_cannot_break_the_frames_of_readers() {
    let cases: [(Kind, Encoding, &[u8]); 5] = [
        (Kind::Json, Encoding::Identity, br#"1},{"type":"lagging""#),
        (Kind::Json, Encoding::Identity, b""),
        (Kind::Text, Encoding::Identity, b"\xff"),
        (Kind::Text, Encoding::Zstd, b"not zstd"),
        (Kind::Text, Encoding::Zstd, &bomb(8_000, Some(1 << 30))),
    ];
    for (kind, encoding, body) in cases {
        let mut event = support::event(kind, b"");
        event.encoding = encoding.into();
        event.body = Bytes::copy_from_slice(body);
        let mut bytes = Vec::new();
        encode_event(Format::Json, 0, &EventRef::of(&event), &mut bytes);
        let frame = decode_server_frame(Format::Json, &bytes).expect("still one event");
        let Some(update::Update::Event(read)) = &frame.updates[0].update else {
            panic!("an event")
        };
        assert_eq!((frame.updates.len(), read.seq), (1, 42));
        assert_eq!(read.kind, i32::from(Kind::Empty));
    }
}
