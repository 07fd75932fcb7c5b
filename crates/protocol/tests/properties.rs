//! What holds for any frame: both formats give back what went in, and the
//! hand-written protobuf is the same bytes as prost's.

mod support;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use tidings_protocol::body::compress_body;
use tidings_protocol::limits::NUMBER_MAX;
use tidings_protocol::wire::{
    ClientFrame, Command, Encoding, Event, HistoryPage, Kind, MemberChange, Members, Send,
    ServerFrame, SyncPage, Update, command, update,
};
use tidings_protocol::{
    EventRef, Format, Page, Request, commands_decode, decode_client_frame, decode_server_frame,
    encode_client_frame, encode_event, encode_history_page, encode_page_event, encode_server_frame,
    encode_sync_page, encode_update, frame,
};

/// Numbers near the borders of varints as well as any.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        1..300_u64,
        (0..53_u32).prop_map(|bit| 1 << bit),
        1..=NUMBER_MAX
    ]
}

fn id() -> impl Strategy<Value = u64> {
    prop_oneof![1..9_u64, 1..=u64::MAX]
}

/// A kind with a body that suits it.
fn content() -> impl Strategy<Value = (Kind, Bytes)> {
    prop_oneof![
        Just((Kind::Empty, Bytes::new())),
        any::<String>().prop_map(|text| (Kind::Text, Bytes::from(text))),
        (vec((any::<String>(), any::<i32>()), 0..4), any::<bool>()).prop_map(|(list, flag)| {
            let value = serde_json::json!({ "list": list, "flag": flag });
            (Kind::Json, Bytes::from(value.to_string()))
        }),
    ]
}

fn send() -> impl Strategy<Value = Send> {
    (id(), id(), number(), number(), id(), id(), content()).prop_map(
        |(conversation, sender, grant, counter, id, previous, (kind, body))| Send {
            conversation,
            sender,
            grant,
            counter,
            id,
            previous: if counter == 1 { 0 } else { previous },
            kind: kind.into(),
            body,
            encoding: 0,
        },
    )
}

fn members() -> impl Strategy<Value = Members> {
    let change = (id(), 0..5_i32, number());
    let changes = vec(
        change.prop_map(|(user, role, ended)| MemberChange { user, role, ended }),
        0..4,
    );
    (number(), changes, 0..3_i32, any::<String>()).prop_map(|(version, changes, kind, title)| {
        Members {
            version,
            changes,
            kind,
            title,
        }
    })
}

fn event() -> impl Strategy<Value = Event> {
    let written = content().prop_map(|(kind, body)| (kind, body, None));
    let members = members().prop_map(|members| (Kind::Members, Bytes::new(), Some(members)));
    let numbers = (id(), number(), number(), id());
    (
        numbers,
        (id(), number(), number(), id()),
        prop_oneof![3 => written, 1 => members],
    )
        .prop_map(
            |(
                (conversation, seq, ts, user),
                (sender, grant, counter, id),
                (kind, body, members),
            )| {
                Event {
                    conversation,
                    seq,
                    ts,
                    user,
                    sender,
                    grant,
                    counter,
                    id,
                    kind: kind.into(),
                    body,
                    encoding: 0,
                    members,
                }
            },
        )
}

fn sync_page() -> impl Strategy<Value = SyncPage> {
    let who = (id(), 0..3_i32, any::<String>(), 0..5_i32);
    (
        who,
        vec(event(), 0..4),
        prop_oneof![Just(0), number()],
        number(),
    )
        .prop_map(
            |((conversation, kind, title, role), events, missing_from, n)| SyncPage {
                conversation,
                kind,
                title,
                head: n,
                grant: n / 2,
                role,
                visible_from: 1,
                read: n / 3,
                events,
                missing_from,
            },
        )
}

fn some_update() -> impl Strategy<Value = Update> {
    let content = prop_oneof![
        event().prop_map(update::Update::Event),
        sync_page().prop_map(update::Update::SyncPage),
        proptest::sample::select(support::updates())
            .prop_map(|(_, sample)| sample.update.expect("samples have content")),
    ];
    (prop_oneof![Just(0), number()], content).prop_map(|(r#ref, update)| Update {
        r#ref,
        update: Some(update),
    })
}

fn some_command() -> impl Strategy<Value = Command> {
    let content = prop_oneof![
        send().prop_map(command::Command::Send),
        proptest::sample::select(support::commands())
            .prop_map(|(_, sample)| sample.command.expect("samples have content")),
    ];
    (prop_oneof![Just(0), number()], content).prop_map(|(r#ref, command)| Command {
        r#ref,
        command: Some(command),
    })
}

/// The bytes of one update as prost writes it.
fn by_prost(update: Update) -> Vec<u8> {
    ServerFrame {
        updates: vec![update],
    }
    .encode_to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_client_frame_comes_back_as_it_went(commands in vec(some_command(), 0..5)) {
        let frame = ClientFrame { commands };
        for format in Format::ALL {
            let mut bytes = Vec::new();
            encode_client_frame(format, &frame, &mut bytes);
            prop_assert_eq!(decode_client_frame(format, &bytes), Ok(frame.clone()));
        }
    }

    #[test]
    fn a_server_frame_comes_back_as_it_went(updates in vec(some_update(), 0..5)) {
        let frame = ServerFrame { updates };
        for format in Format::ALL {
            let mut bytes = Vec::new();
            encode_server_frame(format, &frame, &mut bytes);
            prop_assert_eq!(decode_server_frame(format, &bytes), Ok(frame.clone()));
        }
    }

    #[test]
    fn items_encoded_apart_make_the_same_frame(updates in vec(some_update(), 0..5)) {
        for format in Format::ALL {
            let items: Vec<Vec<u8>> = updates.iter().map(|update| {
                let mut item = Vec::new();
                encode_update(format, update, &mut item);
                item
            }).collect();
            let (mut composed, mut whole) = (Vec::new(), Vec::new());
            frame::compose(format, &items, &mut composed);
            encode_server_frame(format, &ServerFrame { updates: updates.clone() }, &mut whole);
            let items_bytes = items.iter().map(Vec::len).sum();
            prop_assert_eq!(frame::payload_len(format, items.len(), items_bytes), whole.len());
            prop_assert_eq!(composed, whole);
        }
    }

    #[test]
    fn an_event_in_parts_is_what_prost_writes(
        event in event(), r#ref in prop_oneof![Just(0), number()], encoding in 0..2_i32,
    ) {
        let update = |event: &Event| {
            Update { r#ref, update: Some(update::Update::Event(event.clone())) }
        };
        let (mut parts, mut whole) = (Vec::new(), Vec::new());
        encode_event(Format::Json, r#ref, &EventRef::of(&event), &mut parts);
        encode_update(Format::Json, &update(&event), &mut whole);
        prop_assert_eq!(&parts, &whole);
        // Protobuf passes compressed bodies on as they are, so any bytes do.
        let event = Event { encoding, ..event };
        parts.clear();
        encode_event(Format::Proto, r#ref, &EventRef::of(&event), &mut parts);
        prop_assert_eq!(parts, by_prost(update(&event)));
    }

    #[test]
    fn pages_around_encoded_events_are_what_prost_writes(
        page in sync_page(), r#ref in prop_oneof![Just(0), number()], head in prop_oneof![Just(0), number()],
    ) {
        let history = HistoryPage {
            conversation: page.conversation, from: 1, to: 9, events: page.events.clone(), head,
        };
        for format in Format::ALL {
            let (mut for_sync, mut for_history) = (Vec::new(), Vec::new());
            for event in &page.events {
                encode_page_event(format, Page::Sync, &EventRef::of(event), &mut for_sync);
                encode_page_event(format, Page::History, &EventRef::of(event), &mut for_history);
            }
            let (mut bytes, mut whole) = (Vec::new(), Vec::new());
            let bare = SyncPage { events: vec![], ..page.clone() };
            encode_sync_page(format, r#ref, bare, &for_sync, &mut bytes);
            let update = Update { r#ref, update: Some(update::Update::SyncPage(page.clone())) };
            encode_update(format, &update, &mut whole);
            prop_assert_eq!(&bytes, &whole);
            bytes.clear();
            whole.clear();
            let bare = HistoryPage { events: vec![], ..history.clone() };
            encode_history_page(format, r#ref, bare, &for_history, &mut bytes);
            let update = Update { r#ref, update: Some(update::Update::HistoryPage(history.clone())) };
            encode_update(format, &update, &mut whole);
            prop_assert_eq!(&bytes, &whole);
        }
    }

    #[test]
    fn a_send_read_in_place_is_what_prost_reads(
        send in send(), r#ref in number(), encoding in 0..2_i32,
    ) {
        let send = Send { encoding, ..send };
        let command = Command { r#ref, command: Some(command::Command::Send(send.clone())) };
        let bytes = ClientFrame { commands: vec![command] }.encode_to_vec();
        let read = commands_decode(Format::Proto, &bytes).unwrap().next().unwrap().unwrap();
        prop_assert_eq!(read.r#ref, r#ref);
        let Request::Send(read) = read.request else { panic!("a send") };
        let in_place = matches!(read.body, std::borrow::Cow::Borrowed(_));
        prop_assert!(in_place || send.body.is_empty(), "no copy of the body");
        prop_assert_eq!(read.to_wire(), send);
    }

    #[test]
    fn json_shows_a_compressed_text_plain(text in "[a-f \"\\\\é]{1,40}", times in 60..100_usize) {
        let text: String = (0..times).map(|i| format!("{text}{i}")).collect();
        if let Some(packed) = compress_body(text.as_bytes()) {
            let mut event = support::event(Kind::Text, b"");
            event.body = packed;
            event.encoding = Encoding::Zstd.into();
            let mut bytes = Vec::new();
            encode_event(Format::Json, 0, &EventRef::of(&event), &mut bytes);
            let read = decode_server_frame(Format::Json, &bytes).unwrap();
            let Some(update::Update::Event(read)) = &read.updates[0].update else {
                panic!("an event")
            };
            prop_assert_eq!(&read.body[..], text.as_bytes());
            prop_assert_eq!(read.encoding, i32::from(Encoding::Identity));
        }
    }

    /// Whatever arrives is an answer or an error within bounds, never a panic.
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in vec(any::<u8>(), 0..200)) {
        for format in Format::ALL {
            let _ = decode_client_frame(format, &bytes);
            let _ = decode_server_frame(format, &bytes);
        }
    }

    /// The same, from frames that were good until something was changed.
    #[test]
    fn no_damage_makes_the_reader_panic(
        commands in vec(some_command(), 1..4), at in any::<proptest::sample::Index>(), with in any::<u8>(), cut in any::<bool>(),
    ) {
        for format in Format::ALL {
            let mut bytes = Vec::new();
            encode_client_frame(format, &ClientFrame { commands: commands.clone() }, &mut bytes);
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = with }
            if let Ok(frame) = decode_client_frame(format, &bytes) {
                let mut again = Vec::new();
                encode_client_frame(format, &frame, &mut again);
                prop_assert_eq!(decode_client_frame(format, &again), Ok(frame));
            }
        }
    }
}
