//! Records that can't be read: set aside, listed, shown, replayed; and nobody waits for them.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::{Value, json};
use tidings_backends::dead_letters::FolderDeadLetters;
use tidings_backends::disk::RealDisk;
use tidings_backends::file_log::{FileLog, Parts, Settings};
use tidings_core::conformance::log::append;
use tidings_core::ids::{ConversationId, MessageKey, Partition, Position, SenderId, UserId};
use tidings_core::path::accept;
use tidings_core::ports::dead_letters::{DeadLetter, DeadLetters};
use tidings_core::ports::log::Append;
use tidings_core::record::{Encoding, Kind, Origin, Send};

use crate::support::process::{number, tidings};
use crate::support::program::{Alone, is_alone};
use crate::support::{DEADLINE, Person, Server, Session};

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async { tokio::time::timeout(DEADLINE, future).await })
        .expect("in time")
}

/// Stops the server.
fn stop(server: &mut Server) {
    server.signal("TERM");
    assert!(server.ended().success());
}

/// Appends records to the log of a server that doesn't run.
fn append_to(folder: &Path, conversation: &str, payloads: &[Vec<u8>]) {
    let disk = RealDisk::open(folder.join("data/log")).expect("no server runs");
    let parts = Parts::of_system(Arc::new(disk)).expect("parts");
    let log = FileLog::open(parts, Settings::default()).expect("a log");
    let records = payloads.iter().map(|payload| Append {
        conversation: ConversationId(number(conversation)),
        payload: Bytes::copy_from_slice(payload),
    });
    run(append(&log, records.collect())).expect("appended");
    log.shutdown();
}

fn command(server: &Server, arguments: &[&str]) -> Output {
    tidings(server.folder())
        .arg("dead-letters")
        .args(arguments)
        .args(["--data", "data"])
        .output()
        .expect("the binary runs")
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// What `list` prints, once it has so many letters.
fn list_of(server: &Server, count: usize) -> Vec<String> {
    let began = Instant::now();
    loop {
        let text = printed(&command(server, &["list"]));
        let lines: Vec<String> = text.lines().skip(1).map(str::to_owned).collect();
        if lines.len() == count {
            return lines;
        }
        assert!(began.elapsed() < DEADLINE, "not {count} letters: {text}");
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
}

/// Seqs and bodies of a conversation, as one of its members gets them who has nothing.
fn history(server: &Server, person: &Person, conversation: &str) -> Vec<(u64, Value)> {
    let mut session = Session::sign_in(server.address(), &person.token);
    let cursors = json!([{ "conversation": conversation, "seq": 1 }]);
    let (pages, _) = session.sync(&cursors, 100);
    let of_this = pages.iter().filter(|p| p["conversation"] == conversation);
    let events = of_this.flat_map(|p| p["events"].as_array().expect("events").clone());
    events
        .map(|e| (e["seq"].as_u64().expect("a seq"), e["body"].clone()))
        .collect()
}

#[test]
fn a_record_that_can_not_be_read_is_listed_and_shown_and_blocks_nobody() {
    if !is_alone(Alone::Folder) {
        return;
    }
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let direct = server.direct(&anna, &ben);
    assert_eq!(server.session(&anna).send(&direct, "before")["seq"], 2);
    assert_eq!(printed(&command(&server, &["list"])), "no dead letters\n");
    stop(&mut server);
    // One of a later version, and one that isn't even long enough to name a conversation.
    let mut later = vec![77];
    later.extend_from_slice(&number(&direct).to_le_bytes());
    later.extend_from_slice(b"what only later versions know");
    append_to(server.folder(), &direct, &[later, b"?!".to_vec()]);

    server.start_again();
    assert_eq!(server.session(&anna).send(&direct, "after")["seq"], 4);
    let seen = history(&server, &ben, &direct);
    let bodies: Vec<&Value> = seen
        .iter()
        .map(|(_, body)| body)
        .filter(|b| b.is_string())
        .collect();
    assert_eq!(bodies, [&json!("before"), &json!("after")]);
    let seqs: Vec<u64> = seen.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(seqs, [2, 3, 4], "the order is whole");
    let listed = list_of(&server, 2);
    server.metric_becomes("chat_dead_letters_total", 2.0);
    assert_eq!(server.metric("chat_dead_letters_not_set_aside_total"), 0.0);
    assert!(listed[0].contains(&direct), "{listed:?}");
    assert!(listed[0].ends_with("a record of type 77, which this version does not know"));
    assert!(listed[1].contains("2 bytes are too few for a record"));
    let position = listed[0].split_whitespace().nth(1).expect("a position");
    let page = printed(&command(&server, &["list", "--limit", "1"]));
    let more = format!("there are more: --after 0/{position}\n");
    assert!(page.ends_with(&more), "{page}");
    let after = format!("0/{position}");
    let page = printed(&command(&server, &["list", "--after", &after]));
    assert_eq!(page.lines().nth(1), Some(&*listed[1]));

    let shown = printed(&command(&server, &["show", "0", position]));
    for part in [
        "reason        a record of type 77",
        &format!("conversation  {direct}"),
        "type          77, not known",
        // The prefix takes nine bytes.
        "77 68 61 74 20 6f 6e",
        "what on|",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    // The server has the folder: replaying is for when it has none.
    let refused = command(&server, &["replay", "0", position]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success());
    assert!(
        said.contains("while no server runs") && said.contains("in use"),
        "{said}"
    );
    let none = command(&server, &["show", "0", "1:999999"]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("there is no dead letter"));
    let wrong = command(&server, &["show", "0", "5"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("EPOCH:OFFSET"));

    // After a crash the same records may be met again: they are the same letters.
    server.kill_and_start();
    assert_eq!(server.session(&anna).send(&direct, "at last")["seq"], 5);
    assert_eq!(list_of(&server, 2), listed);
    stop(&mut server);
    let refused = command(&server, &["replay", "0", position]);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stdout);
    assert!(said.contains("this program can't read it either"), "{said}");
}

#[test]
fn a_letter_that_can_be_read_now_is_replayed_and_never_becomes_two_messages() {
    if !is_alone(Alone::Folder) {
        return;
    }
    let mut server = Server::start();
    let [anna, ben] = server.people();
    let direct = server.direct(&anna, &ben);
    let mut session = server.session(&anna);
    let first = session.number(&direct, "text", json!("one"));
    assert_eq!(session.ask(first.clone())["seq"], 2);
    let id = |n: u64| match n {
        1 => MessageKey(number(first["id"].as_str().expect("an id"))),
        _ => MessageKey(7000 + n),
    };
    // What a version before this one couldn't read: the sender's messages two to four, and a strange one.
    let letter = |offset: u64, counter: u64, previous: MessageKey| {
        let send = Send {
            user: UserId(anna.number()),
            sender: SenderId(number(&session.sender)),
            grant: session.grant(&direct),
            counter,
            id: id(counter),
            previous,
            once: false,
            kind: Kind::Text,
            encoding: Encoding::Identity,
            body: Bytes::from(format!("number {counter}")),
            origin: Origin::default(),
            taken: 0,
        };
        let conversation = ConversationId(number(&direct));
        let payload = accept(conversation, send).payload;
        let position = Position { epoch: 1, offset };
        let appended = tidings::system::now();
        let key = (Partition(0), position);
        DeadLetter::new(key, appended, Some(conversation), "new".to_owned(), payload)
    };
    let letters = FolderDeadLetters::new(&server.folder().join("data/dead-letters"));
    run(async {
        for counter in 2..=4 {
            let letter = letter(1_000_000 + counter, counter, id(counter - 1));
            letters.put(letter).await.expect("set aside");
        }
        let strange = letter(1_000_009, 5, MessageKey(9));
        letters.put(strange).await.expect("set aside");
    });
    stop(&mut server);
    let replay = |server: &Server, positions: &[&str]| {
        let mut arguments = vec!["replay", "0"];
        arguments.extend(positions);
        let output = command(server, &arguments);
        let text = String::from_utf8(output.stdout.clone()).expect("text");
        (output.status.success(), text)
    };
    let (two, three, four) = ("1:1000002", "1:1000003", "1:1000004");
    // Alone it is a gap.
    let (replayed, said) = replay(&server, &[three]);
    assert!(!replayed && said.contains("number 2 comes first"), "{said}");
    let (replayed, said) = replay(&server, &[two]);
    assert!(replayed && said.contains("appended to the log"), "{said}");
    // Not decided yet, so it is appended again: the router sees that it is the same.
    let (replayed, said) = replay(&server, &[two]);
    assert!(replayed && said.contains("appended to the log"), "{said}");
    server.start_again();
    let text = |n: u64| json!(format!("number {n}"));
    server.until_head(&direct, &ben.token, 3);
    let seen = history(&server, &ben, &direct);
    assert_eq!(seen, [(2, json!("one")), (3, text(2))]);

    stop(&mut server);
    // Together, in any order.
    let (replayed, said) = replay(&server, &[four, two, three]);
    assert!(replayed, "{said}");
    assert!(said.contains("not replayed, nothing is missing"), "{said}");
    assert!(said.contains("as seq 3"), "{said}");
    server.start_again();
    server.until_head(&direct, &ben.token, 5);
    let seen = history(&server, &ben, &direct);
    assert_eq!(seen[2..], [(4, text(3)), (5, text(4))]);
    // The sender's own outbox was told nothing wrong: its repeat is known.
    let mut again = Session::sign_in(server.address(), &anna.token);
    again.sync(&json!([]), 100);
    let repeat = again.ask(first.clone());
    assert_eq!(repeat["duplicate"], true, "{repeat}");

    stop(&mut server);
    let (replayed, said) = replay(&server, &["1:1000009", two]);
    assert!(!replayed);
    assert!(said.contains("it follows another message"), "{said}");
    assert!(said.contains("accepted up to number 4"), "{said}");
    server.start_again();
    assert_eq!(history(&server, &ben, &direct).len(), 4);
}
