//! Recording into files, reading and merging them, and the command.

mod common;

use common::*;
use proptest::prelude::*;
use std::fs;
use std::path::PathBuf;
use tidings_verify::history::{self, EventKind, Status};
use tidings_verify::{
    Format, HistoryError, Merge, Options, Reader, Record, RecordError, Recorder, Report, run_to,
};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn read(path: &PathBuf) -> Result<Vec<Record>, HistoryError> {
    Reader::open(path)?.collect()
}

fn write_all(path: &PathBuf, records: &[Record]) {
    let recorder = Recorder::to_file(path).expect("a file");
    records.iter().for_each(|record| recorder.record(*record));
    recorder.flush().expect("space");
}

#[test]
fn every_record_reads_back_as_it_was_written() {
    let (at, user, device, conversation) = (5, u64::MAX, 0xab, 1 << 63);
    let (sender, grant, counter, id, seq, ts, body_hash) = (1, 2, 3, 4, 5, 6, 7);
    let records: Vec<Record> = vec![
        history::Send {
            at,
            user,
            device,
            conversation,
            sender,
            grant,
            counter,
            id,
            body_hash,
        }
        .into(),
        history::Ack {
            at,
            user,
            device,
            conversation,
            sender,
            grant,
            counter,
            id,
            seq,
            ts,
            duplicate: true,
            status: Status::Over,
        }
        .into(),
        history::Failed {
            at,
            user,
            device,
            conversation,
            sender,
            grant,
            counter,
            id,
        }
        .into(),
        history::Unknown {
            at,
            user,
            device,
            conversation,
            sender,
            grant,
            counter,
            id,
        }
        .into(),
        history::Deliver {
            at,
            user,
            device,
            conversation,
            seq,
            ts,
            author: 9,
            sender,
            grant,
            counter,
            id,
            kind: EventKind::Json,
            body_hash,
        }
        .into(),
        history::Hidden {
            at,
            user,
            device,
            conversation,
            from: 1,
            to: 2,
        }
        .into(),
        history::Later {
            at,
            user,
            device,
            conversation,
            from: 1,
            to: 2,
        }
        .into(),
        history::Synced {
            at,
            asked: 1,
            user,
            device,
            conversation,
            head: 3,
            complete: false,
        }
        .into(),
        history::Cursor {
            at,
            user,
            device,
            conversation,
            seq,
        }
        .into(),
        history::Receipt {
            at,
            device,
            conversation,
            user,
            delivered: 2,
            read: 1,
        }
        .into(),
        history::Unread {
            at,
            user,
            device,
            conversation,
            read: 1,
            head: 2,
            count: 1,
        }
        .into(),
        history::Member {
            at,
            conversation,
            user,
            from_seq: 1,
            to_seq: 0,
        }
        .into(),
        history::Epoch { at, epoch: 2 }.into(),
        history::Restart {
            at,
            part: history::Part::Router,
        }
        .into(),
        history::DeviceReset { at, device }.into(),
        history::Resumed {
            at,
            user,
            device,
            conversation,
            kept: 4,
        }
        .into(),
        history::Final {
            at,
            user,
            device,
            conversation,
            head: 4,
        }
        .into(),
    ];
    let folder = folder();
    let path = folder.path().join("history.jsonl");
    write_all(&path, &records);
    assert_eq!(read(&path).expect("readable"), records);
    let text = fs::read_to_string(&path).expect("readable");
    let first = text.lines().next().expect("a line");
    assert_eq!(
        first,
        r#"{"send":{"at":5,"user":"ffffffffffffffff","device":"00000000000000ab","conversation":"8000000000000000","sender":"0000000000000001","grant":2,"counter":3,"id":"0000000000000004","body_hash":"0000000000000007"}}"#
    );
}

#[test]
fn a_torn_last_line_is_dropped_and_any_other_bad_line_is_named() {
    let folder = folder();
    let path = folder.path().join("history.jsonl");
    write_all(&path, &base());
    let whole = fs::read_to_string(&path).expect("readable");
    fs::write(&path, &whole[..whole.len() - 7]).expect("writable");
    let mut reader = Reader::open(&path).expect("there");
    let records: Result<Vec<Record>, _> = reader.by_ref().collect();
    assert_eq!(records.expect("readable"), base()[..base().len() - 1]);
    assert_eq!(reader.torn(), 1);

    let broken = [
        "{\"send\":{}}\n".to_owned(),
        "{\"member\":{\"at\":1,\"conversation\":\"7\"}}\n".to_owned(),
        "x".repeat(1 << 16),
        "\u{0}\n".to_owned(),
    ];
    for line in broken {
        fs::write(&path, whole.clone() + &line + &whole).expect("writable");
        let Err(HistoryError::Malformed { line, .. }) = read(&path) else {
            panic!("{line:.40} was taken for a record");
        };
        assert_eq!(line, base().len() as u64 + 1);
    }
    assert!(matches!(
        read(&folder.path().join("absent")),
        Err(HistoryError::Io { .. })
    ));
}

#[test]
fn a_recording_thread_is_told_when_the_disk_is_full() {
    let recorder = Recorder::to_file("/dev/full").expect("it opens");
    base()
        .into_iter()
        .for_each(|record| recorder.record(record));
    for _ in 0..2 {
        assert!(
            matches!(recorder.flush(), Err(RecordError::Io(_))),
            "what was lost stays lost"
        );
    }
}

#[test]
fn a_recorder_in_memory_says_when_it_dropped_records() {
    let recorder = Recorder::in_memory(2);
    recorder.record(send(1));
    recorder.record(send(2));
    assert_eq!(recorder.take().expect("within the limit").len(), 2);
    (1..4).for_each(|counter| recorder.record(send(counter)));
    assert!(matches!(recorder.take(), Err(RecordError::Full(2))));
}

#[test]
fn a_checking_recorder_judges_what_many_threads_record() {
    let recorder = Recorder::checking(Options::default());
    let history = base();
    std::thread::scope(|scope| {
        for device in [0, ALICE_PHONE, BOB_PHONE] {
            let own = history
                .iter()
                .filter(move |record| record.device() == device);
            let recorder = recorder.clone();
            scope.spawn(move || own.for_each(|record| recorder.record(*record)));
        }
    });
    let report = recorder.finish().expect("once");
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.records, history.len() as u64);
    assert!(matches!(recorder.finish(), Err(RecordError::OtherKind)));
    assert!(recorder.now_us() <= recorder.now_us());
}

#[test]
fn the_command_tells_clean_broken_and_unreadable_apart() {
    let folder = folder();
    let [alice, bob] = ["alice.jsonl", "bob.jsonl"].map(|name| folder.path().join(name));
    let history = base();
    let (of_bob, of_alice): (Vec<_>, Vec<_>) = history
        .iter()
        .partition(|record| record.device() == BOB_PHONE);
    write_all(&alice, &of_alice);
    write_all(&bob, &of_bob);
    let files = [&alice, &bob];
    let verify = |format| {
        let mut out = Vec::new();
        let code = run_to(&files, Options::default(), format, &mut out);
        (code, String::from_utf8(out).expect("text"))
    };
    let (code, table) = verify(Format::Table);
    assert_eq!(code, 0, "{table}");

    write_all(&bob, &of_bob[1..]);
    let (code, table) = verify(Format::Table);
    assert_eq!(code, 1);
    assert!(table.contains("never shown seqs 1 to 1"), "{table}");
    let (code, json) = verify(Format::Json);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (
            code,
            &json["anomalies"]["gap"],
            &json["detail"][0]["promise"]
        ),
        (1, &1.into(), &4.into())
    );

    fs::remove_file(&bob).expect("there");
    assert_eq!(verify(Format::Table), (2, String::new()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    /// Merging goes by time and never changes the order within a file.
    #[test]
    fn merging_keeps_the_order_of_each_file(
        times in prop::collection::vec(prop::collection::vec(0u64..30, 0..12), 1..4),
    ) {
        let folder = folder();
        let mut files = Vec::new();
        for (device, times) in times.iter().enumerate() {
            let path = folder.path().join(device.to_string());
            let reset = |at: &u64| history::DeviceReset { at: *at, device: device as u64 }.into();
            write_all(&path, &times.iter().map(reset).collect::<Vec<_>>());
            files.push(path);
        }
        let merged: Vec<Record> =
            Merge::open(&files).expect("readable").map(|r| r.expect("readable")).collect();
        for (device, times) in times.iter().enumerate() {
            let own = merged.iter().filter(|r| r.device() == device as u64);
            prop_assert_eq!(&own.map(Record::at).collect::<Vec<_>>(), times);
        }
        if times.iter().all(|times| times.is_sorted()) {
            prop_assert!(merged.iter().map(Record::at).is_sorted());
        }
    }

    /// Whatever comes, a report is printed and nothing panics.
    #[test]
    fn wild_numbers_do_no_harm(
        numbers in prop::collection::vec(prop_oneof![0u64..4, Just(u64::MAX), any::<u64>()], 6 * 12),
    ) {
        let mut history = Vec::new();
        for n in numbers.chunks(12) {
            let (at, user, device, conversation) = (n[0], n[1], n[2], n[3]);
            let (sender, grant, counter, id) = (n[4], n[5], n[6], n[7]);
            let (seq, ts, head, to) = (n[8], n[9], n[10], n[11]);
            let body_hash = to;
            history.extend([
                Record::from(history::Send { at, user, device, conversation, sender, grant, counter, id, body_hash }),
                history::Ack {
                    at, user, device, conversation, sender, grant, counter, id, seq, ts,
                    duplicate: false, status: if head % 2 == 0 { Status::Over } else { Status::Sent },
                }.into(),
                history::Deliver {
                    at, user, device, conversation, seq, ts, author: user, sender, grant, counter, id,
                    kind: EventKind::Text, body_hash,
                }.into(),
                history::Hidden { at, user, device, conversation, from: head, to }.into(),
                history::Later { at, user, device, conversation, from: seq, to }.into(),
                history::Synced { at, asked: to, user, device, conversation, head, complete: true }.into(),
                history::Cursor { at, user, device, conversation, seq: to }.into(),
                history::Receipt { at, device, conversation, user, delivered: to, read: seq }.into(),
                history::Unread { at, user, device, conversation, read: seq, head, count: to }.into(),
                history::Member { at, conversation, user, from_seq: seq, to_seq: to }.into(),
                history::DeviceReset { at, device }.into(),
                history::Resumed { at, user, device, conversation, kept: head }.into(),
                history::Final { at, user, device, conversation, head }.into(),
            ]);
        }
        let report: Report = tidings_verify::check(&history);
        prop_assert!(!report.to_string().is_empty());
    }
}
