//! The directory: SQLite's own format isn't ours to keep, so the fixture is the tables as text.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;
use tidings_backends::sqlite::{SqliteDirectory, SqliteSettings};
use tidings_core::ids::{ConversationId, UserId};
use tidings_core::ports::directory::{
    Accounts, Conversations, Credentials, LoginName, NewConversation, NewUser, PasswordHash,
    RevocationSubject,
};
use tidings_core::record::{ConversationKind, Role};

use super::{fixture, new_fixture, run};

const DIRECTORY: &str = "directory-1";
const DATABASE: &str = "directory.sqlite";

fn directory(folder: &Path) -> Result<SqliteDirectory, tidings_backends::sqlite::OpenError> {
    static NOW: AtomicU64 = AtomicU64::new(1_764_000_000_000_000);
    let clock = Arc::new(|| NOW.fetch_add(1, Ordering::Relaxed));
    let random = Arc::new(|| {
        NOW.fetch_add(1, Ordering::Relaxed)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    SqliteDirectory::open(folder, &SqliteSettings::default(), clock, random)
}

/// All that a database holds, as statements that make it again.
fn dump(folder: &Path) -> String {
    let database = rusqlite::Connection::open(folder.join(DATABASE)).expect("a database");
    let texts = |sql: &str| -> Vec<String> {
        let mut statement = database.prepare(sql).expect("a query");
        let rows = statement.query_map([], |row| row.get(0)).expect("rows");
        rows.map(|row| row.expect("a text")).collect()
    };
    let mut out = String::new();
    let tables = "select name from sqlite_master where type = 'table' and name not like 'sqlite%' order by rowid";
    for sql in texts("select sql from sqlite_master where sql is not null order by rowid") {
        out += &format!("{sql};\n");
    }
    for table in texts(tables) {
        let columns = texts(&format!(
            "select 'quote(' || name || ')' from pragma_table_info('{table}')"
        ));
        let values = columns.join(" || ', ' || ");
        for row in texts(&format!("select {values} from {table} order by 1")) {
            out += &format!("insert into {table} values ({row});\n");
        }
    }
    out
}

/// The fixture as a folder to open.
fn restored() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let sql = fs::read_to_string(fixture(DIRECTORY).join("directory.sql")).expect("the fixture");
    let database = rusqlite::Connection::open(folder.path().join(DATABASE)).expect("a database");
    database.execute_batch(&sql).expect("its statements");
    folder
}

fn login(name: &str) -> NewUser {
    NewUser {
        login: Some(LoginName {
            name: name.to_uppercase(),
            key: name.to_owned(),
        }),
        display_name: format!("{name} of old"),
        password: Some(PasswordHash(
            "$argon2id$v=19$m=8,t=1,p=1$c2FsdA$aGFzaA".to_owned(),
        )),
    }
}

#[test]
#[ignore = "writes the fixture, once for each format"]
fn write_the_directory() {
    let out = new_fixture(DIRECTORY);
    let folder = tempfile::tempdir().expect("a folder");
    let directory = directory(folder.path()).expect("a new directory");
    run(async {
        let made = directory
            .create_users(vec![login("ann"), login("bob")])
            .await;
        let made: Vec<UserId> = made
            .expect("users")
            .into_iter()
            .map(|id| id.expect("free"))
            .collect();
        let (ann, bob) = (made[0], made[1]);
        directory
            .add_device(ann, "phone".to_owned())
            .await
            .expect("a device");
        directory.set_block(bob, ann, true).await.expect("blocked");
        directory.create_direct(ann, bob).await.expect("created");
        let group = NewConversation {
            kind: ConversationKind::Group,
            title: "Lunch".to_owned(),
            creator: ann,
            members: vec![bob],
            join_role: Role::None,
            idempotency_key: Some("once".to_owned()),
        };
        let group = directory.create_conversation(group).await.expect("created");
        let id = group.conversation.id;
        directory.outbox_done(id, 1).await.expect("done");
        directory
            .set_role(id, ann, bob, Role::Admin)
            .await
            .expect("changed");
        directory
            .revoke(RevocationSubject::User(bob))
            .await
            .expect("revoked");
    });
    drop(directory);
    fs::write(out.join("directory.sql"), dump(folder.path())).expect("written");
}

#[test]
fn a_directory_of_format_1_is_read_and_written_on() {
    let folder = restored();
    let directory = directory(folder.path()).expect("it opens");
    run(async {
        let ann = directory
            .user_by_login("ann".to_owned())
            .await
            .expect("read")
            .expect("ann");
        let bob = directory
            .user_by_login("bob".to_owned())
            .await
            .expect("read")
            .expect("bob");
        assert_eq!(
            (ann.login.as_deref(), &*ann.display_name),
            (Some("ANN"), "ann of old")
        );
        let password = directory.password_of("ann".to_owned()).await.expect("read");
        assert!(password.is_some_and(|p| p.user == ann.id && p.hash.is_some()));
        let devices = directory.devices(ann.id).await.expect("read");
        assert_eq!(devices.len(), 1);
        assert_eq!(devices[0].name, "phone");
        assert_eq!(directory.has_blocked(bob.id, ann.id).await, Ok(true));
        let revoked = directory.revocations_after(0, 9).await.expect("read");
        assert_eq!(revoked.len(), 1);
        assert_eq!(revoked[0].subject, RevocationSubject::User(bob.id));

        let list = directory
            .conversations_of(bob.id, ConversationId(0), 9)
            .await
            .expect("read");
        let group = list
            .iter()
            .find(|m| m.conversation.kind == ConversationKind::Group);
        let group = group.expect("the group");
        assert_eq!(
            (list.len(), group.role, &*group.conversation.title),
            (2, Role::Admin, "Lunch")
        );
        let id = group.conversation.id;
        let pending = directory.outbox_pending(9).await.expect("read");
        let mut waiting: Vec<_> = pending
            .iter()
            .map(|e| (e.conversation == id, e.change.version))
            .collect();
        waiting.sort_unstable();
        assert_eq!(
            waiting,
            [(false, 1), (true, 2)],
            "what the log wasn't told yet"
        );

        let next = directory
            .remove_member(id, ann.id, bob.id)
            .await
            .expect("changed");
        assert_eq!(next.version, 3, "versions go on");
    });
}

#[test]
fn a_directory_of_a_later_version_is_refused_and_left_as_it_is() {
    let folder = restored();
    let later = "insert into refinery_schema_history (version, name, applied_on, checksum)
                 values (2, 'later', '2030-01-01T00:00:00Z', '1')";
    let database = rusqlite::Connection::open(folder.path().join(DATABASE)).expect("a database");
    database.execute(later, []).expect("written");
    drop(database);
    let before = dump(folder.path());
    let error = directory(folder.path())
        .err()
        .expect("it is refused")
        .to_string();
    assert!(
        error.contains(DATABASE) && error.contains("version 2") && error.contains("start that one"),
        "{error}"
    );
    assert!(dump(folder.path()) == before, "something was written");
}
