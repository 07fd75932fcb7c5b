//! Records as earlier releases appended them are still read, and later ones are known for what they are.
//!
//! `fixtures/records-<version>.hex` has one record a line, written once by the release whose version it is:
//! `cargo test -p tidings-core --test formats -- --ignored` (docs/upgrades.md).

use std::fs;
use std::path::Path;

use bytes::Bytes;
use tidings_core::ids::{ConversationId, GatewayId, MessageKey, SenderId, SessionId, UserId};
use tidings_core::record::{
    Content, ConversationKind, Encoding, Kind, Membership, Origin, Record, Role, RoleChange, Send,
};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/records-1.hex");

/// Every form of a record.
fn records() -> Vec<Record> {
    let send = Send {
        user: UserId(0xa1),
        sender: SenderId(0x1122_3344_5566_7788),
        grant: 300,
        counter: 1 << 40,
        id: MessageKey(0xa1b2_c3d4_e5f6_0718),
        previous: MessageKey(u64::MAX),
        once: false,
        kind: Kind::Text,
        encoding: Encoding::Identity,
        body: Bytes::from_static("Grüße".as_bytes()),
        origin: Origin {
            gateway: GatewayId::new(0xff_fffe, 3),
            session: SessionId(1 << 50),
        },
        taken: 1_764_000_000_123_456,
    };
    let once = Send {
        once: true,
        counter: 1,
        previous: MessageKey(0),
        kind: Kind::Json,
        encoding: Encoding::Zstd,
        body: Bytes::from_static(&[0x28, 0xb5, 0x2f, 0xfd]),
        ..send.clone()
    };
    let empty = Send {
        kind: Kind::Empty,
        body: Bytes::new(),
        origin: Origin::default(),
        taken: 0,
        ..send.clone()
    };
    let members = |kind, title: &str, roles: &[Role]| Membership {
        version: 129,
        by: UserId(0xa1),
        changes: (1..)
            .zip(roles)
            .map(|(user, &role)| RoleChange {
                user: UserId(user),
                role,
            })
            .collect(),
        kind,
        title: title.to_owned(),
    };
    let all = [
        Role::None,
        Role::Reader,
        Role::Member,
        Role::Admin,
        Role::Owner,
    ];
    [
        Content::Send(send),
        Content::Send(once),
        Content::Send(empty),
        Content::Membership(members(ConversationKind::Group, "Mittagessen", &all)),
        Content::Membership(members(ConversationKind::Direct, "", &[Role::Member; 2])),
        Content::Membership(members(ConversationKind::Channel, "News", &[])),
    ]
    .map(|content| Record {
        conversation: ConversationId(0x00f3_0102_0304_0506),
        content,
    })
    .to_vec()
}

fn encoded(record: &Record) -> Vec<u8> {
    let mut out = Vec::new();
    record.encode(&mut out);
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(line: &str) -> Bytes {
    let byte = |at| u8::from_str_radix(&line[at..at + 2], 16).expect("two hex digits");
    (0..line.len()).step_by(2).map(byte).collect()
}

#[test]
#[ignore = "writes the fixture, once for each version"]
fn write_the_fixture() {
    assert!(
        !Path::new(FIXTURE).exists(),
        "remove it first, if no release has written it"
    );
    let lines: String = records().iter().map(|r| hex(&encoded(r)) + "\n").collect();
    fs::write(FIXTURE, lines).expect("written");
}

#[test]
fn records_of_version_1_are_read_and_written_byte_by_byte() {
    let text = fs::read_to_string(FIXTURE).expect("the fixture");
    let stored: Vec<Bytes> = text.lines().map(from_hex).collect();
    let records = records();
    assert_eq!(stored.len(), records.len());
    for (payload, record) in stored.iter().zip(&records) {
        assert_eq!(Record::decode(payload).as_ref(), Ok(record));
        assert_eq!(
            hex(&encoded(record)),
            hex(payload),
            "what servers of the release before read"
        );
    }
}

/// The router makes an empty event and a dead letter of it, for which it needs the conversation.
#[test]
fn of_a_record_of_a_later_version_the_conversation_is_known_and_nothing_is_guessed() {
    for record in records() {
        let mut later = encoded(&record);
        later[0] = 77;
        let later = Bytes::from(later);
        assert_eq!(Record::conversation_of(&later), Some(record.conversation));
        assert!(Record::decode(&later).is_err());
    }
}
