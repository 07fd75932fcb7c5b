//! What version 1 says between servers, byte by byte.
//!
//! `tests/fixtures/peers-<version>.hex` has one message a line, written once by the release whose version it
//! is: `cargo test -p tidings-engines --lib peers -- --ignored` (docs/upgrades.md).

use std::path::Path;

use super::super::item::Workers;
use super::*;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/peers-1.hex");

const C: ConversationId = ConversationId(0x00f3_0102_0304_0506);
const P: Partition = Partition(300);
const U: UserId = UserId(0xa1);

fn to_router() -> Vec<ToRouter> {
    let cursor = cursor();
    vec![
        ToRouter::Open {
            request: 1 << 40,
            user: U,
            conversations: vec![C, ConversationId(1)],
        },
        ToRouter::Close(vec![C]),
        ToRouter::Cursors(vec![cursor, CursorRow::default()]),
        ToRouter::Typing {
            conversation: C,
            user: U,
            on: true,
        },
        ToRouter::Tail {
            request: 7,
            conversation: C,
            from: 129,
        },
        ToRouter::FannedOut(vec![Handed {
            conversation: C,
            seq: 5,
        }]),
        ToRouter::Interest {
            request: 8,
            conversations: vec![],
        },
    ]
}

fn cursor() -> CursorRow {
    CursorRow {
        conversation: C,
        user: U,
        delivered: 300,
        read: 299,
    }
}

fn grant() -> GrantState {
    GrantState {
        grant: 3,
        role: Role::Admin,
        visible_from: 2,
        visible_to: 400,
    }
}

fn rows() -> [Arc<EventRow>; 3] {
    let position = Position {
        epoch: 2,
        offset: 1 << 33,
    };
    let ts = 1_764_000_000_123_456;
    let empty = EventRow::empty(C, 1, position, ts, 0);
    let text = EventRow {
        user: U,
        sender: SenderId(0x1122_3344_5566_7788),
        grant: 1,
        counter: 128,
        id: MessageKey(0xa1b2_c3d4_e5f6_0718),
        before: Before::Seq(41),
        kind: Kind::Text,
        encoding: Encoding::Zstd,
        body: Bytes::from_static(b"a body"),
        ..EventRow::empty(C, 42, position, ts, ts - 9)
    };
    let members = EventRow {
        user: U,
        before: Before::Row(SenderState {
            grant: 1,
            counter: 2,
            id: MessageKey(3),
            seq: 4,
            ts: 5,
        }),
        kind: Kind::Members,
        members: Some(Box::new(MembersBody {
            version: 200,
            kind: ConversationKind::Channel,
            title: "Brötchen".to_owned(),
            changes: vec![MemberChange {
                user: U,
                role: Role::Reader,
                before: grant(),
            }],
        })),
        ..EventRow::empty(C, 43, position, ts, ts - 9)
    };
    [empty, text, members].map(Arc::new)
}

fn to_gateway() -> Vec<ToGateway> {
    let heads = |seq| -> Arc<[_]> { vec![(C, seq), (ConversationId(1), 1)].into() };
    let verdicts = [
        Verdict::Accepted,
        Verdict::Duplicate,
        Verdict::Stale,
        Verdict::Over,
        Verdict::Gap,
        Verdict::Fork,
    ];
    let subjects = [
        RevocationSubject::User(U),
        RevocationSubject::Device(DeviceId(0xd1)),
        RevocationSubject::SignIn(SignInId(9)),
    ];
    let answers = verdicts.map(|verdict| ToGateway::Answer {
        session: SessionId(1 << 50),
        answer: Answer {
            conversation: C,
            sender: SenderId(4),
            grant: 3,
            verdict,
            counter: 2,
            id: MessageKey(1),
            seq: 9,
            ts: 8,
            head: 10,
        },
        taken: 77,
    });
    let events = rows().map(|row| ToGateway::Event {
        row,
        except: SessionId(6),
        taken: 12,
    });
    let revoked = subjects.map(|subject| {
        ToGateway::Revoked(Revocation {
            revision: 4,
            subject,
            not_before: 1_764_000_000_000_000,
        })
    });
    let others = [
        ToGateway::Opened {
            request: 5,
            states: vec![Opened {
                conversation: C,
                head: 3,
                kind: ConversationKind::Group,
                grant: grant(),
                cursor: cursor(),
            }],
            later: vec![C],
        },
        ToGateway::Tail {
            request: 7,
            rows: rows()[..2].to_vec(),
        },
        ToGateway::Receipts {
            conversation: C,
            cursors: vec![cursor()].into(),
        },
        ToGateway::Typing {
            conversation: C,
            user: U,
            on: false,
        },
        ToGateway::Digest {
            partition: P,
            number: 11,
            heads: heads(2),
            changes: heads(3),
        },
        ToGateway::TookOver { partition: P },
        ToGateway::Interested {
            request: 6,
            digest: 1 << 40,
            heads: heads(4),
        },
        ToGateway::BlockChanged {
            user: U,
            other: UserId(2),
            is_blocked: true,
        },
        ToGateway::Delayed {
            user: U,
            conversation: C,
            seq: 42,
        },
        ToGateway::Replaced {
            session: SessionId(300),
        },
    ];
    [&answers[..], &events, &revoked, &others].concat()
}

/// Everything that can be said, in every form.
fn items() -> Vec<Item> {
    let term = Term {
        epoch: 2,
        offset: 1 << 33,
        since: 1_764_000_000_123_456,
    };
    let mut all = vec![
        Item::TookOver { partition: P, term },
        Item::Resigned { partition: P },
    ];
    all.extend(to_router().into_iter().map(|message| Item::ToRouter {
        worker: 200,
        partition: P,
        message,
    }));
    for (n, message) in to_gateway().into_iter().enumerate() {
        let to = match n % 2 {
            0 => To::Some(Workers::one(7)),
            _ => To::All,
        };
        all.push(Item::ToGateway {
            partition: P,
            to,
            message: message.clone(),
        });
        if n % 9 == 0 {
            all.push(Item::Notice { message });
        }
    }
    all
}

fn hex(value: &impl Wire) -> String {
    let mut out = Vec::new();
    value.put(&mut out);
    out.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(line: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&line[at..at + 2], 16).expect("two hex digits");
    (0..line.len()).step_by(2).map(byte).collect()
}

/// The hello, which stays readable for every version to come: a refusal must be understood.
fn hello() -> Hello {
    Hello {
        oldest: 1,
        newest: 1,
        ..Hello::new("tidings", 0xff_fffe, u64::MAX, 64)
    }
}

#[test]
#[ignore = "writes the fixture, once for each version"]
fn write_the_fixture() {
    assert!(
        !Path::new(FIXTURE).exists(),
        "remove it first, if no release has written it"
    );
    let items = items();
    let lines = std::iter::once(hex(&hello())).chain(items.iter().map(hex));
    let text: String = lines.map(|line| line + "\n").collect();
    std::fs::write(FIXTURE, text).expect("written");
}

#[test]
fn what_version_1_says_is_understood_and_said_byte_by_byte() {
    let text = std::fs::read_to_string(FIXTURE).expect("the fixture");
    let (first, lines) = text.split_once('\n').expect("lines");
    let read = Hello::get(&mut Reader::new(&from_hex(first), "hello"));
    assert_eq!(read.as_ref(), Ok(&hello()));
    assert_eq!(hex(&hello()), first);
    let items = items();
    assert_eq!(lines.lines().count(), items.len());
    for (line, item) in lines.lines().zip(&items) {
        let bytes = from_hex(line);
        let mut r = Reader::new(&bytes, "item");
        assert_eq!(Item::get(&mut r).as_ref(), Ok(item));
        assert!(r.is_empty());
        assert_eq!(
            hex(item),
            line,
            "what servers of the release before understand"
        );
    }
}
