//! One sample or more of every command and update, and the names the schema has.
#![allow(dead_code, reason = "each test binary uses its part")]

use bytes::Bytes;
use tidings_protocol::wire::{
    Ack, Auth, Command, ConversationKind, Cursor, Delayed, Delivered, Encoding, Error, Event,
    Feature, FeatureState, Heads, Hello, History, HistoryPage, Kind, Lagging, Limits, MemberChange,
    Members, Mode, Ping, Pong, Presence, PresenceUpdate, Read, Ready, ReauthRequired, Receipt,
    Receipts, Reconnect, Role, Send, SetPresence, Status, Sync, SyncDone, SyncPage, Typing,
    TypingUpdate, Update, UserPresence, Watch, command, update,
};

pub const CONVERSATION: u64 = 0x00f3_0102_0304_0506;
pub const SENDER: u64 = 0x1122_3344_5566_7788;
pub const ANNA: u64 = 0xa1;
pub const BEN: u64 = 0xb2;

/// The names in a `oneof` of the schema, from its text.
pub fn oneof_names(oneof: &str) -> Vec<String> {
    let schema = include_str!("../../proto/tidings.proto");
    let begin = format!("oneof {oneof} {{");
    let lines = schema
        .lines()
        .skip_while(|line| line.trim() != begin)
        .skip(1);
    let fields = lines.take_while(|line| line.trim() != "}");
    let names: Vec<_> = fields
        .filter_map(|line| line.split_whitespace().nth(1))
        .map(str::to_owned)
        .collect();
    assert!(names.len() > 5, "the schema has a oneof {oneof}");
    names
}

pub fn send() -> Send {
    Send {
        conversation: CONVERSATION,
        sender: SENDER,
        grant: 1,
        counter: 1,
        id: 0xa1b2_c3d4_e5f6_0718,
        previous: 0,
        kind: Kind::Text.into(),
        body: Bytes::from_static(b"hello"),
        encoding: Encoding::Identity.into(),
    }
}

pub fn event(kind: Kind, body: &'static [u8]) -> Event {
    Event {
        conversation: CONVERSATION,
        seq: 42,
        ts: 1_764_000_000_123_456,
        user: ANNA,
        sender: SENDER,
        grant: 1,
        counter: 1,
        id: 0xa1b2_c3d4_e5f6_0718,
        kind: kind.into(),
        body: Bytes::from_static(body),
        encoding: Encoding::Identity.into(),
        members: None,
    }
}

pub fn founding() -> Event {
    Event {
        conversation: CONVERSATION,
        seq: 1,
        ts: 1_763_000_000_000_000,
        user: ANNA,
        kind: Kind::Members.into(),
        members: Some(Members {
            version: 1,
            changes: vec![
                MemberChange {
                    user: ANNA,
                    role: Role::Owner.into(),
                    ended: 0,
                },
                MemberChange {
                    user: BEN,
                    role: Role::Member.into(),
                    ended: 0,
                },
            ],
            kind: ConversationKind::Group.into(),
            title: "Lunch".into(),
        }),
        ..Event::default()
    }
}

/// File name and command; the part of the name before a `-` is the schema's.
pub fn commands() -> Vec<(&'static str, Command)> {
    use command::Command as C;
    let json_send = Send {
        counter: 2,
        id: 0x0102_0304_0506_0708,
        previous: send().id,
        kind: Kind::Json.into(),
        body: Bytes::from_static(br#"{"poll":["yes","no"],"n":1.5e3}"#),
        ..send()
    };
    let empty_send = Send {
        kind: Kind::Empty.into(),
        body: Bytes::new(),
        ..json_send.clone()
    };
    let odd_send = Send {
        body: Bytes::from_static("\"quoted\" \\ tab\t nul\0 line\n \u{e9} \u{1f600}".as_bytes()),
        ..send()
    };
    let cursor = |seq| Cursor {
        conversation: CONVERSATION,
        seq,
    };
    [
        (
            "auth",
            C::Auth(Auth {
                token: "a.b.c".into(),
                device: "Anna's phone".into(),
                version: 1,
                oldest: 0,
            }),
        ),
        ("send", C::Send(send())),
        ("send-json", C::Send(json_send)),
        ("send-empty", C::Send(empty_send)),
        ("send-odd-characters", C::Send(odd_send)),
        (
            "delivered",
            C::Delivered(Delivered {
                conversation: CONVERSATION,
                seq: 42,
            }),
        ),
        (
            "read",
            C::Read(Read {
                conversation: CONVERSATION,
                seq: 42,
                message_id: Bytes::new(),
            }),
        ),
        (
            "read-message",
            C::Read(Read {
                conversation: CONVERSATION,
                seq: 0,
                message_id: Bytes::from_static(&[0xb8; 16]),
            }),
        ),
        (
            "typing",
            C::Typing(Typing {
                conversation: CONVERSATION,
                on: true,
            }),
        ),
        (
            "presence",
            C::Presence(SetPresence {
                state: Presence::Away.into(),
            }),
        ),
        (
            "watch",
            C::Watch(Watch {
                users: vec![ANNA, BEN],
            }),
        ),
        (
            "sync",
            C::Sync(Sync {
                epoch: 1,
                cursors: vec![cursor(40)],
                page: 100,
            }),
        ),
        (
            "sync-first",
            C::Sync(Sync {
                epoch: 0,
                cursors: vec![],
                page: 0,
            }),
        ),
        (
            "history",
            C::History(History {
                conversation: CONVERSATION,
                before: 41,
                after: 0,
                limit: 50,
            }),
        ),
        (
            "history-after",
            C::History(History {
                conversation: CONVERSATION,
                before: 0,
                after: 39,
                limit: 0,
            }),
        ),
        ("ping", C::Ping(Ping {})),
        (
            "auth-versions",
            C::Auth(Auth {
                token: "a.b.c".into(),
                device: "Anna's phone".into(),
                version: 3,
                oldest: 1,
            }),
        ),
    ]
    .into_iter()
    .zip(0..)
    .map(|((name, command), r#ref)| {
        (
            name,
            Command {
                r#ref,
                command: Some(command),
            },
        )
    })
    .collect()
}

/// File name and update; the part of the name before a `-` is the schema's.
pub fn updates() -> Vec<(&'static str, Update)> {
    use update::Update as U;
    let ack = Ack {
        conversation: CONVERSATION,
        sender: SENDER,
        grant: 1,
        counter: 1,
        id: 0xa1b2_c3d4_e5f6_0718,
        status: Status::Sent.into(),
        seq: 42,
        ts: 1_764_000_000_123_456,
        head: 42,
        duplicate: false,
    };
    let status = |status: Status| Ack {
        status: status.into(),
        duplicate: true,
        ..ack
    };
    let nothing_yet = Ack {
        counter: 0,
        id: 0,
        seq: 0,
        ts: 0,
        status: Status::Gap.into(),
        ..ack
    };
    let page = SyncPage {
        conversation: CONVERSATION,
        kind: ConversationKind::Group.into(),
        title: "Lunch".into(),
        head: 42,
        grant: 1,
        role: Role::Owner.into(),
        visible_from: 1,
        read: 40,
        events: vec![founding(), event(Kind::Text, b"hello")],
        missing_from: 2,
    };
    let limits = Limits {
        frame_bytes_max: 262_144,
        text_bytes_max: 16_384,
        sends_per_second: 20,
        commands_per_frame_max: 256,
        page_max: 500,
    };
    [
        (
            "hello",
            U::Hello(Hello {
                version: 1,
                heartbeat_ms: 25_000,
                server_time: 1_764_000_000_000_000,
                limits: Some(limits),
                oldest: 0,
            }),
        ),
        (
            "ready",
            U::Ready(Ready {
                user: ANNA,
                device: 0xd1,
                session: 0x9f3c_2b1a_0000_0007,
                epoch: 1,
                expires: 1_764_000_900_000_000,
                version: 0,
            }),
        ),
        ("ack", U::Ack(ack)),
        ("ack-gap", U::Ack(nothing_yet)),
        ("ack-over", U::Ack(status(Status::Over))),
        ("ack-fork", U::Ack(status(Status::Fork))),
        ("ack-stale", U::Ack(status(Status::Stale))),
        ("event-text", U::Event(event(Kind::Text, b"hello"))),
        (
            "event-json",
            U::Event(event(Kind::Json, br#"{"poll":["yes","no"]}"#)),
        ),
        ("event-empty", U::Event(event(Kind::Empty, b""))),
        ("event-members", U::Event(founding())),
        ("sync_page", U::SyncPage(page)),
        (
            "sync_done",
            U::SyncDone(SyncDone {
                epoch: 1,
                conversations: 3,
                complete: true,
                reset: false,
            }),
        ),
        (
            "history_page",
            U::HistoryPage(HistoryPage {
                conversation: CONVERSATION,
                from: 1,
                to: 42,
                events: vec![founding(), event(Kind::Text, b"hello")],
                head: 42,
            }),
        ),
        (
            "heads",
            U::Heads(Heads {
                heads: vec![Cursor {
                    conversation: CONVERSATION,
                    seq: 42,
                }],
            }),
        ),
        (
            "receipts",
            U::Receipts(Receipts {
                conversation: CONVERSATION,
                receipts: vec![Receipt {
                    user: BEN,
                    delivered: 42,
                    read: 41,
                }],
            }),
        ),
        (
            "typing",
            U::Typing(TypingUpdate {
                conversation: CONVERSATION,
                user: BEN,
                on: true,
            }),
        ),
        (
            "presence",
            U::Presence(PresenceUpdate {
                users: vec![
                    UserPresence {
                        user: ANNA,
                        state: Presence::Online.into(),
                        last_seen: 0,
                    },
                    UserPresence {
                        user: BEN,
                        state: Presence::Offline.into(),
                        last_seen: 7,
                    },
                ],
            }),
        ),
        (
            "error",
            U::Error(Error {
                code: "rate_limited".into(),
                message: "More than 20 sends a second.".into(),
                retry_after_ms: 1500,
                conversation: CONVERSATION,
                sender: SENDER,
                counter: 31,
            }),
        ),
        ("reconnect", U::Reconnect(Reconnect { after_ms: 8250 })),
        (
            "reauth_required",
            U::ReauthRequired(ReauthRequired {
                expires: 1_764_000_900_000_000,
            }),
        ),
        (
            "pong",
            U::Pong(Pong {
                server_time: 1_764_000_000_000_000,
            }),
        ),
        (
            "delayed",
            U::Delayed(Delayed {
                conversation: CONVERSATION,
                seq: 42,
            }),
        ),
        ("lagging", U::Lagging(Lagging {})),
        (
            "mode",
            U::Mode(Mode {
                feature: Feature::Presence.into(),
                state: FeatureState::Reduced.into(),
                since: 1_764_000_000_000_000,
            }),
        ),
        (
            "hello-versions",
            U::Hello(Hello {
                version: 3,
                heartbeat_ms: 25_000,
                server_time: 1_764_000_000_000_000,
                limits: Some(limits),
                oldest: 1,
            }),
        ),
        (
            "ready-version",
            U::Ready(Ready {
                user: ANNA,
                device: 0xd1,
                session: 0x9f3c_2b1a_0000_0007,
                epoch: 1,
                expires: 1_764_000_900_000_000,
                version: 2,
            }),
        ),
    ]
    .into_iter()
    .zip(0..)
    .map(|((name, update), r#ref)| {
        (
            name,
            Update {
                r#ref,
                update: Some(update),
            },
        )
    })
    .collect()
}
