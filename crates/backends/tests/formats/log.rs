//! The log.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidings_backends::disk::RealDisk;
use tidings_backends::file_log::{self, FileLog};
use tidings_core::ids::{GatewayId, MessageKey, Position, SenderId, SessionId, UserId};
use tidings_core::ports::log::{Append, Log};
use tidings_core::record::{
    Content, ConversationKind, Encoding, Kind, Membership, Origin, Record, Role, RoleChange, Send,
};

use super::{C, P, copy, files, new_fixture, raise, run, written};

const LOG: &str = "log-1";
const LAST_SEGMENT: &str = "log-0000000000000003.seg";

fn log(folder: &Path) -> Result<FileLog, file_log::OpenError> {
    static NOW: AtomicU64 = AtomicU64::new(1_764_000_000_000_000);
    let parts = file_log::Parts {
        disk: Arc::new(RealDisk::open(folder).expect("a folder")),
        clock: Arc::new(|| NOW.fetch_add(1_000, Ordering::Relaxed)),
        fatal: Arc::new(|why| panic!("{why}")),
        salt: 0x0102_0304_0506_0708,
    };
    let settings = file_log::Settings {
        segment_bytes: 300,
        ..file_log::Settings::default()
    };
    FileLog::open(parts, settings)
}

/// The log's records, one a frame.
fn records() -> Vec<Record> {
    let membership = Membership {
        version: 1,
        by: UserId(1),
        changes: [(1, Role::Owner), (2, Role::Member)]
            .map(|(user, role)| RoleChange {
                user: UserId(user),
                role,
            })
            .to_vec(),
        kind: ConversationKind::Group,
        title: "Lunch".to_owned(),
    };
    let send = |counter: u64| Send {
        user: UserId(1),
        sender: SenderId(0x1122_3344_5566_7788),
        grant: 1,
        counter,
        id: MessageKey(counter << 32 | 5),
        previous: MessageKey(if counter > 1 {
            (counter - 1) << 32 | 5
        } else {
            0
        }),
        once: false,
        kind: Kind::Text,
        encoding: Encoding::Identity,
        body: format!("message {counter}").into(),
        origin: Origin {
            gateway: GatewayId(7),
            session: SessionId(300),
        },
        taken: 1_764_000_000_000_000,
    };
    std::iter::once(Content::Membership(membership))
        .chain((1..=4).map(|counter| Content::Send(send(counter))))
        .map(|content| Record {
            conversation: C,
            content,
        })
        .collect()
}

fn append(log: &FileLog, record: &Record) {
    let mut payload = Vec::new();
    record.encode(&mut payload);
    let one = Append {
        conversation: record.conversation,
        payload: payload.into(),
    };
    let (report, reported) = std::sync::mpsc::channel();
    log.append(
        vec![one],
        Box::new(move |result| report.send(result).expect("somebody waits")),
    );
    reported.recv().expect("a report").expect("appended");
}

#[test]
#[ignore = "writes the fixture, once for each format"]
fn write_the_log() {
    let folder = new_fixture(LOG);
    let log = log(&folder).expect("a new log");
    for record in records() {
        append(&log, &record);
    }
    let behind_two = Position {
        epoch: 1,
        offset: 2,
    };
    run(log.commit(P, behind_two)).expect("committed");
    drop(log);
    written(&folder);
}

#[test]
fn a_log_of_format_1_is_read_and_written_on() {
    let folder = copy(LOG);
    let mut all = records();
    for round in 0..2 {
        let log = log(folder.path()).expect("it opens");
        let committed = run(log.committed(P)).expect("a position");
        assert_eq!(
            committed,
            Position {
                epoch: 1,
                offset: 2
            }
        );
        let mut at = Position {
            epoch: 1,
            offset: 0,
        };
        let mut found = Vec::new();
        while at < log.end(P) {
            let read = run(log.read(P, at, 1 << 20)).expect("records");
            at = read.last().expect("at least one").position.next();
            found.extend(
                read.iter()
                    .map(|r| Record::decode(&r.payload).expect("whole")),
            );
        }
        assert_eq!(found, all, "round {round}");
        let more = all[4].clone();
        append(&log, &more);
        all.push(more);
    }
}

#[test]
fn a_log_of_a_later_format_is_refused_and_left_as_it_is() {
    let of_header = |bytes: &[u8]| (32, crc32fast::hash(&bytes[..32]));
    let of_frame = |bytes: &[u8]| {
        let mut sum = crc32fast::Hasher::new();
        sum.update(&bytes[16..24]);
        sum.update(&bytes[36..84]);
        (84, sum.finalize())
    };
    let of_slot = |bytes: &[u8]| (4096 + 32, crc32fast::hash(&bytes[4096..4096 + 32]));
    type Checksum<'a> = &'a dyn Fn(&[u8]) -> (usize, u32);
    let cases: [(&str, usize, Checksum); 3] = [
        (LAST_SEGMENT, 4, &of_header),
        (LAST_SEGMENT, 36 + 4, &of_frame),
        ("log-position", 4096 + 4, &of_slot),
    ];
    for (name, at, checksum) in cases {
        let folder = copy(LOG);
        raise(&folder.path().join(name), at, checksum);
        let before = files(folder.path());
        let error = log(folder.path()).err().expect("it is refused").to_string();
        assert!(
            error.contains(name) && error.contains("format 2") && error.contains("start that one"),
            "{error}"
        );
        assert!(
            files(folder.path()) == before,
            "{name}: something was written"
        );
    }
}
