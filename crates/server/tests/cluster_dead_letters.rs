//! Dead letters of a cluster, by the commands beside a running server. Needs the engines of `cluster/stack`.
#![cfg(feature = "cluster")]

mod on_engines;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use on_engines::{
    DATABASE, KAFKA, Running, make_database, migrate, program, stack_runs, to_its_end,
};
use tidings_core::conformance::log::{append, conversation_in};
use tidings_core::ids::{ConversationId, Partition, Position, UserId};
use tidings_core::ports::dead_letters::{DeadLetter, DeadLetters};
use tidings_core::ports::log::{Append, Log};
use tidings_core::record::{Content, ConversationKind, Membership, Record, Role, RoleChange};
use tidings_engines::kafka::{KafkaDeadLetters, KafkaLog, Settings};

const WITHIN: Duration = Duration::from_secs(60);

/// As the settings of [`program`] have it.
fn settings() -> Settings {
    Settings {
        brokers: vec![KAFKA.to_owned()],
        topic: "test-start".to_owned(),
        partitions: 2,
        group: "test-start".to_owned(),
        pending_topic: "test-start-pending".to_owned(),
        pending_group: "test-start-pending".to_owned(),
        dead_letter_topic: "test-start-dead".to_owned(),
        ..Settings::default()
    }
}

/// A conversation of the first partition that nobody has.
fn fresh(log: &KafkaLog) -> ConversationId {
    conversation_in(log, Partition(0), tidings::system::random() >> 21)
}

/// A later version's record is met by a server; then one that this version can read, as it is after an upgrade,
/// is replayed beside it, twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_s_letters_are_listed_shown_and_replayed_beside_a_running_server() {
    if !stack_runs() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let keys = folder.path().join("keys");
    make_database(DATABASE);
    migrate(&keys);
    let log = KafkaLog::open(settings()).await.expect("the log opens");
    let conversation = fresh(&log);
    let mut later = vec![77];
    later.extend_from_slice(&conversation.0.to_le_bytes());
    let record = Append {
        conversation,
        payload: later.into(),
    };
    append(&log, vec![record]).await.expect("appended");

    let mut command = program("serve", &keys);
    let mut server = Running(command.stdout(Stdio::piped()).spawn().expect("it runs"));
    let out = BufReader::new(server.0.stdout.take().expect("a pipe"));
    let mut lines = out.lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("tidings is ready")));

    let run = |command: &str| {
        let output = to_its_end(program(command, &keys));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.success(), "{command}: {text}{said}");
        text
    };
    let id = format!("{:016x}", conversation.0);
    let began = Instant::now();
    let line = loop {
        let listed = run("dead-letters list --limit 1000");
        if let Some(line) = listed.lines().find(|line| line.contains(&id)) {
            break line.to_owned();
        }
        assert!(began.elapsed() < WITHIN, "{id} isn't listed: {listed}");
    };
    assert!(line.ends_with("a record of type 77, which this version does not know"));
    let position = line.split_whitespace().nth(1).expect("a position");
    let shown = run(&format!("dead-letters show 0 {position}"));
    assert!(
        shown.contains(&id) && shown.contains("00000000  4d"),
        "{shown}"
    );
    let replay = |position: &str| program(&format!("dead-letters replay 0 {position}"), &keys);
    let refused = to_its_end(replay(position));
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stdout).contains("can't read it either"));

    let conversation = fresh(&log);
    let change = RoleChange {
        user: UserId(1),
        role: Role::Owner,
    };
    let mut payload = Vec::new();
    Record {
        conversation,
        content: Content::Membership(Membership {
            version: 1,
            by: UserId(1),
            changes: vec![change],
            kind: ConversationKind::Group,
            title: String::new(),
        }),
    }
    .encode(&mut payload);
    let offset = tidings::system::random() >> 2;
    let key = (Partition(0), Position { epoch: 1, offset });
    let reason = "of a later version then".to_owned();
    let now = tidings::system::now();
    let letter = DeadLetter::new(key, now, Some(conversation), reason, Bytes::from(payload));
    let letters = KafkaDeadLetters::of(&log);
    letters.put(letter).await.expect("set aside");
    let position = format!("1:{offset}");
    let said = run(&format!("dead-letters replay 0 {position}"));
    assert!(said.contains("replayed; it is seq 1"), "{said}");
    let said = run(&format!("dead-letters replay 0 {position}"));
    assert!(said.contains("nothing is missing"), "{said}");
    assert_eq!(log.partitions(), 2);
}
