//! Writes what each target begins with into `corpus/`: real inputs, made by the code that makes them.
//!
//! Run by hand when a format changes: `cargo run --manifest-path fuzz/Cargo.toml --example seeds`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use bytes::Bytes;
use futures_util::FutureExt;
use tidings_backends::disk::SimDisk;
use tidings_backends::file_log::{FileLog, Parts, Settings};
use tidings_backends::lsm::{Codec, LsmStore, Options};
use tidings_client::{PersistOp, Queued, Refused};
use tidings_core::ids::{ConversationId, MessageKey, Partition, Position, SenderId, UserId};
use tidings_core::ports::disk::Disk;
use tidings_core::ports::log::{Append, Log};
use tidings_core::ports::store::Store;
use tidings_core::record::{
    Content, ConversationKind, Kind, Membership, Origin, Record, Role, RoleChange, Send,
};
use tidings_core::rows::{
    Before, CursorRow, EventRow, GrantState, HeadState, MemberChange, MembersBody, SenderState,
    StateKey, StateRow, StateValue,
};
use tidings_fuzz::{log_files, put_piece, store_files};
use tidings_protocol::wire;

#[allow(dead_code)]
#[path = "../../crates/engines/src/cassandra/rows.rs"]
mod rows;

type Done = Result<(), Box<dyn std::error::Error>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

fn keep(target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let folder = root().join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(format!("seed-{name}")), bytes)
}

fn piece(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_piece(&mut out, bytes);
    out
}

fn main() -> Done {
    protocol()?;
    frames()?;
    upgrade()?;
    tokens()?;
    records()?;
    peers()?;
    outbox()?;
    log()?;
    store()
}

/// The golden frames of both formats.
fn protocol() -> Done {
    let mut updates = [Vec::new(), Vec::new()];
    let mut names: Vec<PathBuf> = fs::read_dir(root().join("../crates/protocol/tests/golden"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    names.sort_unstable();
    for path in names {
        let text = fs::read_to_string(&path)?;
        let text = text.trim_end();
        let (stem, is_json) = (
            path.file_stem().unwrap_or_default().to_string_lossy(),
            path.extension().is_some_and(|e| e == "json"),
        );
        let bytes = match is_json {
            true => text.as_bytes().to_vec(),
            false => (0..text.len())
                .step_by(2)
                .map(|i| u8::from_str_radix(&text[i..i + 2], 16))
                .collect::<Result<_, _>>()?,
        };
        let format = if is_json { "json" } else { "proto" };
        if stem.starts_with("update-") {
            updates[usize::from(is_json)].extend(piece(&bytes));
        } else {
            let input = [&[u8::from(is_json)], &bytes[..]].concat();
            keep("commands", &format!("{stem}-{format}"), &input)?;
        }
    }
    // One client hears all of them; the fuzzer takes them apart.
    for (how, mode) in [(0, "complete"), (2, "newest"), (6, "cut")] {
        for (is_json, frames) in (0..).zip(&updates) {
            let name = format!("{mode}-{is_json}");
            keep("updates", &name, &[&[how | is_json], &frames[..]].concat())?;
        }
    }
    Ok(())
}

/// Frames as a client writes them, masked.
fn frames() -> Done {
    let frame = |first: u8, payload: &[u8]| {
        let mask = [1, 2, 3, 4];
        let mut out = vec![first];
        match payload.len() {
            len @ 0..126 => out.push(0x80 | len as u8),
            len => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(len as u16).to_be_bytes());
            }
        }
        out.extend_from_slice(&mask);
        let masked = payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m);
        out.extend(masked);
        out
    };
    let text = frame(0x81, "Grüße, 世界".as_bytes());
    let pieces = [
        frame(0x01, "Grü".as_bytes()),
        frame(0x89, b"ping"),
        frame(0x00, "ße".as_bytes()),
        frame(0x80, b"."),
    ];
    let close = frame(0x88, b"\x03\xe8bye");
    for (name, limit, cuts, stream) in [
        ("text", 0, &[3, 9][..], text.clone()),
        ("long", 0, &[2, 200], frame(0x82, &[7; 300])),
        ("fragments", 40, &[1, 1, 7], pieces.concat()),
        ("pong-close", 0, &[], [frame(0x8a, b""), close].concat()),
        ("too-big", 5, &[], text),
    ] {
        let input = [&[limit], &piece(cuts)[..], &stream].concat();
        keep("frames", name, &input)?;
    }
    Ok(())
}

fn upgrade() -> Done {
    let head = "GET /v1/ws?ticket=abc&user=0a HTTP/1.1\nHost: chat.local:8080\nUpgrade: websocket\n\
        Connection: keep-alive, Upgrade\nSec-WebSocket-Version: 13\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n";
    let json = "Sec-WebSocket-Protocol: other, tidings.v1.json\n";
    let bare = head.replace("?ticket=abc&user=0a", "");
    for (name, text) in [
        ("native", head.to_owned()),
        (
            "same-origin",
            format!("{head}{json}Origin: http://chat.local:8080\n"),
        ),
        (
            "listed",
            format!("{bare}{json}Origin: https://app.example.com\n"),
        ),
        (
            "post",
            "POST /v1/x HTTP/1.1\nHost: a\nContent-Length: 3\n".into(),
        ),
        (
            "chunked",
            "POST /v1/x HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n".into(),
        ),
    ] {
        let text = format!("{text}\n").replace('\n', "\r\n");
        keep(
            "upgrade",
            name,
            &[&[0], &piece(&[30, 200])[..], text.as_bytes()].concat(),
        )?;
    }
    Ok(())
}

fn tokens() -> Done {
    let claims = r#"{"iss":"shop","aud":["tidings"],"sub":"7","exp":1700000900,"iat":1699999999.5,"name":"Ann"}"#;
    let signed = |header: &str| [&[4], &piece(header.as_bytes())[..], claims.as_bytes()].concat();
    keep(
        "tokens",
        "jwt",
        &signed(r#"{"alg":"EdDSA","typ":"JWT","kid":"ed"}"#),
    )?;
    keep(
        "tokens",
        "jwt-other",
        &signed(r#"{"alg":"HS256","typ":"JWT","kid":"ed"}"#),
    )?;
    for (kind, name) in [(1, "access"), (2, "ticket"), (3, "api-key")] {
        keep("tokens", name, &[kind, 0, 0])?;
        keep("tokens", &format!("{name}-edited"), &[kind, 2, 0, 40, b'A'])?;
        keep("tokens", &format!("{name}-longer"), &[kind, 0, 0, b'='])?;
    }
    for (name, text) in [
        ("text-access", "tac_AAECAwQFBgcICQ"),
        ("text-key", "tak_00000000000000ff_AAECAwQFBgcICQ"),
        ("text-jwt", "eyJhbGciOiJFZERTQSJ9.e30.AAAA"),
    ] {
        keep("tokens", name, &[&[0], text.as_bytes()].concat())?;
    }
    for (name, text) in [
        ("hex16", "00000000000000f3"),
        ("hex32", "000102030405060708090a0b0c0d0e0f"),
        ("protocols", "tidings.v9, tidings.v1.json"),
        ("name", " Ａnn\u{200b}  Łukasz e\u{301}\u{301} "),
    ] {
        keep("tokens", name, &[&[5], text.as_bytes()].concat())?;
    }
    Ok(())
}

fn send(counter: u64) -> Record {
    Record {
        conversation: ConversationId(7),
        content: Content::Send(Send {
            user: UserId(1),
            sender: SenderId(2),
            grant: 300,
            counter,
            id: MessageKey(5),
            previous: MessageKey(counter - 1),
            once: counter == 1,
            kind: Kind::Text,
            encoding: Default::default(),
            body: Bytes::from_static(b"hello"),
            origin: Origin::default(),
            taken: 1_700_000_000_000_000,
        }),
    }
}

fn membership() -> Record {
    let change = |user, role| RoleChange {
        user: UserId(user),
        role,
    };
    Record {
        conversation: ConversationId(7),
        content: Content::Membership(Membership {
            version: 1,
            by: UserId(1),
            changes: vec![change(1, Role::Owner), change(2, Role::Member)],
            kind: ConversationKind::Group,
            title: "tea".into(),
        }),
    }
}

fn event(conversation: u64, seq: u64) -> EventRow {
    let position = Position {
        epoch: 1,
        offset: 3 * seq,
    };
    let (ts, before) = (1_700_000_000_000_000 + 700 * seq, 700 * (seq - 1));
    let empty = EventRow::empty(
        ConversationId(conversation),
        seq,
        position,
        ts,
        1_700_000_000_000_000 + before,
    );
    if seq == 1 {
        return EventRow {
            user: UserId(1),
            kind: Kind::Members,
            members: Some(Box::new(MembersBody {
                version: 1,
                kind: ConversationKind::Group,
                title: "tea".into(),
                changes: vec![MemberChange {
                    user: UserId(2),
                    role: Role::Member,
                    before: GrantState::default(),
                }],
            })),
            ..empty
        };
    }
    EventRow {
        user: UserId(seq % 3),
        sender: SenderId(seq % 3 + 10),
        grant: 1,
        counter: seq / 3 + 1,
        id: MessageKey(seq << 30),
        before: match seq {
            2..5 => Before::Nothing,
            7 => Before::Row(SenderState {
                grant: 1,
                counter: 2,
                id: MessageKey(9),
                seq: 4,
                ts: 5,
            }),
            _ => Before::Seq(seq - 3),
        },
        kind: Kind::Text,
        body: Bytes::from(format!("message {seq}")),
        ..empty
    }
}

fn states(conversation: u64) -> Vec<StateRow> {
    let row = |key, value| StateRow {
        conversation: ConversationId(conversation),
        key,
        position: Position {
            epoch: 1,
            offset: 24,
        },
        ts: 1_700_000_000_005_600,
        value,
    };
    let head = HeadState {
        seq: 8,
        ts: 1_700_000_000_005_600,
        version: 1,
        kind: ConversationKind::Group,
        members: 2,
    };
    let grant = GrantState {
        grant: 1,
        role: Role::Member,
        visible_from: 1,
        visible_to: 0,
    };
    let sender = SenderState {
        grant: 1,
        counter: 3,
        id: MessageKey(9),
        seq: 8,
        ts: 7,
    };
    vec![
        row(StateKey::Head, StateValue::Head(head)),
        row(StateKey::Grant(UserId(2)), StateValue::Grant(grant)),
        row(
            StateKey::Sender(UserId(2), SenderId(12)),
            StateValue::Sender(sender),
        ),
    ]
}

fn records() -> Done {
    for (name, record) in [
        ("send", send(1)),
        ("resend", send(2)),
        ("members", membership()),
    ] {
        let mut out = vec![0];
        record.encode(&mut out);
        keep("records", name, &out)?;
    }
    for seq in [1, 2, 6, 7] {
        let row = event(7, seq);
        let mut out = vec![1];
        for number in [row.conversation.0, row.seq, row.ts] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put_piece(&mut out, &rows::encode_event(&row));
        out.extend_from_slice(&row.body);
        keep("records", &format!("event-{seq}"), &out)?;
    }
    for row in states(7) {
        let mut out = vec![2];
        out.extend_from_slice(&row.conversation.0.to_le_bytes());
        out.extend_from_slice(&row.ts.to_le_bytes());
        let key = rows::encode_key(row.key);
        put_piece(&mut out, &key);
        out.extend_from_slice(&rows::encode_state(&row));
        keep("records", &format!("state-{}", key[0]), &out)?;
    }
    Ok(())
}

/// Written by hand from the layout in `peers/wire.rs`.
fn peers() -> Done {
    let hello = b"\x00\x00\x00\x0f\x01\xe9\xc8\x91\xcb\x07\x01\x01\x04fuzz\x08\x02\x10";
    keep("peers", "hello", &[&[0], &hello[..]].concat())?;
    keep("peers", "refused", b"\x00\x00\x00\x00\x05\x02\x03why")?;
    let id = 7u64.to_le_bytes();
    for (name, item) in [
        ("took-over", b"\x01\x03\x01\x09\x05".to_vec()),
        ("resigned", b"\x02\x03".to_vec()),
        (
            "typing",
            [b"\x03\x01\x03\x04", &id[..], &id, b"\x01"].concat(),
        ),
        (
            "open",
            [b"\x03\x01\x03\x01\x05", &id[..], b"\x01", &id].concat(),
        ),
        (
            "receipts",
            [
                b"\x04\x03\x01\x02\x01\x02\x05",
                &id[..],
                b"\x01",
                &id,
                &id,
                b"\x09\x08",
            ]
            .concat(),
        ),
        (
            "digest",
            [b"\x04\x03\x00\x07\x03\x09\x01", &id[..], b"\x04\x00"].concat(),
        ),
        ("revoked", [b"\x05\x0d\x01\x01", &id[..], b"\x09"].concat()),
    ] {
        keep("peers", name, &[&[1], &item[..]].concat())?;
    }
    Ok(())
}

fn outbox() -> Done {
    let folder = std::env::temp_dir().join(format!("tidings-seeds-{}", std::process::id()));
    let message = |local, refused| Queued {
        local,
        id: local << 40 | 1,
        kind: wire::Kind::Text,
        encoding: wire::Encoding::Identity,
        plain_bytes: 5,
        body: Bytes::from_static(b"hello"),
        chained: 0,
        refused,
    };
    let conversation = 7;
    let refused = Refused {
        id: 9,
        chained: 1,
        code: "too_long".into(),
    };
    let cursor = tidings_client::Cursor {
        have: 90,
        read: 80,
        looked: 90,
        holes: vec![(10, 20), (30, 40)],
    };
    let ops = [
        PersistOp::Sender { sender: 5 },
        PersistOp::Epoch { epoch: 1 },
        PersistOp::Queued {
            conversation,
            message: message(1, None),
        },
        PersistOp::Queued {
            conversation,
            message: message(2, Some(refused.clone())),
        },
        PersistOp::Queued {
            conversation,
            message: message(3, None),
        },
        PersistOp::Under {
            conversation,
            sender: 5,
            grant: 3,
            at: 1_700_000_000_000_000,
        },
        PersistOp::Numbered {
            conversation,
            count: 2,
        },
        PersistOp::Replaced {
            conversation,
            counter: 2,
            refused,
        },
        PersistOp::Acked {
            conversation,
            counter: 1,
            id: 1 << 40 | 1,
            seq: 91,
            at: 1_700_000_000_000_009,
        },
        PersistOp::Settled {
            conversation,
            local: 2,
        },
        PersistOp::Cursors {
            rows: vec![(conversation, cursor)],
        },
        PersistOp::Over { conversation },
        PersistOp::Fresh {
            conversation,
            sender: 6,
            decided: vec![2],
        },
    ];
    let mut store = tidings_client::Store::open(&folder)?;
    store.append(&ops)?;
    drop(store);
    let path = folder.join("outbox-0000000000000001");
    let whole = fs::read(&path)?;
    // The state at the beginning of a file with something in it comes of copying one.
    fs::remove_dir_all(&folder)?;
    let mut records = Vec::new();
    let (mut count, mut rest) = (0, &whole[8..]);
    while let Some((head, behind)) = rest.split_first_chunk::<8>() {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        put_piece(&mut records, &behind[..length]);
        rest = &behind[length..];
        count += 1;
    }
    keep("outbox", "raw", &[&[0], &whole[..]].concat())?;
    keep(
        "outbox",
        "torn",
        &[&[0], &whole[..whole.len() - 5]].concat(),
    )?;
    keep("outbox", "records", &[&[1, count], &records[..]].concat())?;
    Ok(())
}

fn files(disk: &dyn Disk) -> io::Result<Vec<(String, Vec<u8>)>> {
    let read = |name: String| {
        let file = disk.open(&name)?;
        let mut bytes = vec![0; file.len()? as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok((name, bytes))
    };
    disk.list()?.into_iter().map(read).collect()
}

fn log() -> Done {
    let disk = SimDisk::new();
    for (name, counters) in [("one", 1..2), ("more", 2..4), ("segments", 4..30)] {
        let parts = Parts {
            disk: Arc::new(disk.clone()),
            clock: Arc::new(|| 1_700_000_000_000_000),
            fatal: Arc::new(|why| panic!("{why}")),
            salt: 7,
        };
        let settings = Settings {
            segment_bytes: 600,
            ..Settings::default()
        };
        let log = FileLog::open(parts, settings)?;
        for counter in counters {
            let mut payload = Vec::new();
            send(counter).encode(&mut payload);
            let (tell, told) = std::sync::mpsc::channel();
            let record = Append {
                conversation: ConversationId(7),
                payload: payload.into(),
            };
            log.append(
                vec![record],
                Box::new(move |report| drop(tell.send(report))),
            );
            told.recv()??;
        }
        if name == "more" {
            let end = log.end(Partition(0));
            log.commit(Partition(0), end)
                .now_or_never()
                .ok_or("no wait")??;
        }
        drop(log);
        let mut files = files(&disk)?;
        keep("log_open", name, &log_files::describe(&files))?;
        // The last frame torn.
        if let Some((_, content)) = files.last_mut().filter(|(name, _)| name.ends_with(".seg")) {
            content.truncate(content.len() - 3);
        }
        keep(
            "log_open",
            &format!("{name}-torn"),
            &log_files::describe(&files),
        )?;
    }
    Ok(())
}

fn store() -> Done {
    let fixture = root().join("../crates/backends/tests/fixtures/store-1");
    let old = fs::read(fixture.join("0000000002.seg"))?;
    if old.len() < 8000 {
        keep(
            "store_open",
            "fixture",
            &store_files::describe_store(&[old], None)?,
        )?;
    }
    let disk = SimDisk::new();
    let options = Options {
        codec: Codec {
            block_bytes: 300,
            level: 1,
        },
        threads: false,
        ..Options::default()
    };
    let store = LsmStore::open(Arc::new(disk.clone()), options)?;
    let p = Partition(0);
    let wait = "nothing has to be waited for";
    for (name, seqs) in [("small", 1..3), ("more", 3..12)] {
        let events = seqs
            .flat_map(|seq| [event(7, seq), event(9, seq)])
            .collect();
        store.put_events(p, events).now_or_never().ok_or(wait)??;
        let state = [states(7), states(9)].concat();
        store.put_state(p, state).now_or_never().ok_or(wait)??;
        let cursor = CursorRow {
            conversation: ConversationId(7),
            user: UserId(2),
            delivered: 4,
            read: 3,
        };
        store
            .put_cursors(p, vec![cursor])
            .now_or_never()
            .ok_or(wait)??;
        let journal = files(&disk)?
            .into_iter()
            .find(|(name, _)| name.starts_with("cursors-"));
        store.flush()?;
        let segments: Vec<Vec<u8>> = files(&disk)?
            .into_iter()
            .filter(|(name, _)| name.ends_with(".seg"))
            .map(|(_, content)| content)
            .collect();
        let journal = journal.map(|(_, content)| content);
        keep(
            "store_open",
            name,
            &store_files::describe_store(&segments, journal.as_deref())?,
        )?;
    }
    // No manifest, an empty folder, a manifest of garbage.
    keep("store_open", "journal-alone", &[13, 0])?;
    keep("store_open", "empty", &[12, 0])?;
    keep("store_open", "garbage", &[8, 0, 1, 2, 3])?;
    Ok(())
}
