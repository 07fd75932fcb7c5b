//! The SQLite directory keeps the promises of its port, through restarts and a full disk.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidings_backends::sqlite::{SqliteDirectory, SqliteSettings};
use tidings_core::conformance::directory::{all, user};
use tidings_core::ids::UserId;
use tidings_core::ports::directory::{
    Accounts, Conversations, Credentials, DirectoryError, NewConversation, NewUser,
    RevocationSubject, What, direct_conversation,
};
use tidings_core::record::{ConversationKind, Role};

/// A directory with a clock that ticks once a look and ids spread from a counter that each start moves on.
fn open(folder: &Path, settings: &SqliteSettings) -> SqliteDirectory {
    static TICKS: AtomicU64 = AtomicU64::new(1_000_000);
    let clock = Arc::new(|| TICKS.fetch_add(1, Ordering::Relaxed));
    let random = Arc::new(|| {
        TICKS
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    SqliteDirectory::open(folder, settings, clock, random).expect("the directory opens")
}

fn channel(creator: UserId) -> NewConversation {
    NewConversation {
        kind: ConversationKind::Channel,
        title: "news".into(),
        creator,
        members: vec![],
        join_role: Role::Member,
        idempotency_key: None,
    }
}

#[tokio::test]
async fn sqlite_keeps_the_promises_of_a_directory() {
    let folder = tempfile::tempdir().unwrap();
    all(&open(folder.path(), &SqliteSettings::default())).await;
}

#[tokio::test]
async fn a_second_start_on_the_same_data_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let directory = open(folder.path(), &SqliteSettings::default());
    let ann = user(&directory, "ann").await;
    let opened = directory.create_conversation(channel(ann)).await.unwrap();
    let revoked = directory
        .revoke(RevocationSubject::User(ann))
        .await
        .unwrap();
    drop(directory);

    let directory = open(folder.path(), &SqliteSettings::default());
    assert_eq!(
        directory
            .user_by_login("ann".into())
            .await
            .unwrap()
            .unwrap()
            .id,
        ann
    );
    assert_eq!(directory.revocations_after(0, 10).await, Ok(vec![revoked]));
    assert_eq!(
        directory.outbox_pending(10).await.unwrap().len(),
        1,
        "what was not relayed still waits"
    );
    let bob = user(&directory, "bob").await;
    assert_eq!(
        directory
            .join(opened.conversation.id, bob)
            .await
            .unwrap()
            .version,
        2,
        "versions go on"
    );
    let next = directory
        .revoke(RevocationSubject::User(bob))
        .await
        .unwrap();
    assert_eq!(next.revision, revoked.revision + 1, "revisions go on");
    let mode = std::fs::metadata(folder.path().join("directory.sqlite"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(
        mode & 0o777,
        0o600,
        "password hashes are nobody else's to read"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_share_a_commit_keep_apart() {
    let folder = tempfile::tempdir().unwrap();
    let directory = Arc::new(open(folder.path(), &SqliteSettings::default()));
    let ann = user(&*directory, "ann").await;
    let id = directory
        .create_conversation(channel(ann))
        .await
        .unwrap()
        .conversation
        .id;
    let crowd = vec![
        NewUser {
            login: None,
            display_name: "x".into(),
            password: None
        };
        200
    ];
    let crowd: Vec<UserId> = directory
        .create_users(crowd)
        .await
        .unwrap()
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let calls: Vec<_> = crowd
        .iter()
        .map(|&member| {
            let directory = directory.clone();
            tokio::spawn(async move {
                // Every other call is refused in the middle of the batch.
                let unknown = directory.join(id, UserId(member.0 ^ 1)).await;
                assert_eq!(unknown, Err(DirectoryError::NotFound(What::User)));
                directory.join(id, member).await.unwrap().version
            })
        })
        .collect();
    let mut versions = Vec::new();
    for call in calls {
        versions.push(call.await.unwrap());
    }
    versions.sort_unstable();
    assert_eq!(
        versions,
        (2..=201).collect::<Vec<_>>(),
        "each join has its own version, without a hole"
    );
    assert_eq!(
        directory.members(id, UserId(0), 1000).await.unwrap().len(),
        201
    );
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_keeps_what_was_answered() {
    let folder = tempfile::tempdir().unwrap();
    let small = SqliteSettings {
        bytes_max: Some(400 << 10),
        ..SqliteSettings::default()
    };
    let directory = open(folder.path(), &small);
    let user = |i: usize| NewUser {
        login: None,
        display_name: format!("{i} {}", "x".repeat(1000)),
        password: None,
    };
    let mut made = Vec::new();
    let refused = loop {
        match directory.create_users(vec![user(made.len())]).await {
            Ok(mut ids) => made.push(ids.remove(0).unwrap()),
            Err(error) => break error,
        }
        assert!(made.len() < 10_000, "the bound is never reached");
    };
    assert_eq!(refused, DirectoryError::Full);
    assert!(made.len() > 50);
    let mut found = 0;
    for page in made.chunks(1000) {
        found += directory.users(page.to_vec()).await.unwrap().len();
    }
    assert_eq!(
        found,
        made.len(),
        "reads go on, and nothing answered is lost"
    );
    assert_eq!(
        directory.create_users(vec![user(0); 100]).await,
        Err(DirectoryError::Full)
    );
    drop(directory);

    let directory = open(folder.path(), &SqliteSettings::default());
    directory
        .create_users(vec![user(0)])
        .await
        .expect("with room there are writes again");
}

#[tokio::test]
async fn a_stuck_disk_is_reported_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let settings = SqliteSettings {
        deadline: Duration::from_millis(100),
        ..SqliteSettings::default()
    };
    let directory = open(folder.path(), &settings);
    let ann = user(&directory, "ann").await;
    let other = rusqlite::Connection::open(folder.path().join("directory.sqlite")).unwrap();
    other.execute_batch("begin immediate").unwrap();
    let stuck = directory.set_display_name(ann, "Ann".into()).await;
    assert!(
        matches!(stuck, Err(DirectoryError::Unavailable { .. })),
        "{stuck:?}"
    );
    assert!(
        directory
            .user_by_login("ann".into())
            .await
            .unwrap()
            .is_some(),
        "reads don't wait for it"
    );
    other.execute_batch("rollback").unwrap();
    drop(directory);
    let directory = open(folder.path(), &SqliteSettings::default());
    directory
        .set_display_name(ann, "Ann".into())
        .await
        .expect("and it goes on");
}

#[tokio::test]
async fn another_pair_under_the_derived_id_is_a_conflict() {
    let folder = tempfile::tempdir().unwrap();
    let directory = open(folder.path(), &SqliteSettings::default());
    let (ann, bob) = (user(&directory, "ann").await, user(&directory, "bob").await);
    let id = direct_conversation(ann, bob).conversation.0 as i64;
    let other = rusqlite::Connection::open(folder.path().join("directory.sqlite")).unwrap();
    other
        .execute(
            "insert into conversations (id, kind, title, version, join_role, low, high, created)
             values (?1, 0, '', 1, 0, 5, 6, 0)",
            [id],
        )
        .unwrap();
    assert_eq!(
        directory.create_direct(ann, bob).await,
        Err(DirectoryError::Conflict(What::DirectId))
    );
}
