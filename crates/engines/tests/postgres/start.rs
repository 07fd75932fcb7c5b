//! What a start says when something is wrong, and migrations.

use tidings_core::conformance::directory::user;
use tidings_core::ports::directory::Accounts;
use tidings_engines::postgres::{PostgresDirectory, Settings, Tls, migrate};
use tidings_engines::{Secret, StartError};

use crate::base::{clock, direct, open, with_database, with_empty_database};
use crate::proxy::Proxy;

async fn error(settings: &Settings) -> StartError {
    let opened = PostgresDirectory::open(settings, clock()).await;
    opened.err().expect("this must not open")
}

#[track_caller]
fn says(error: &StartError, setting: &str, words: &str, may_pass: bool) {
    assert_eq!(error.setting, setting, "{error}");
    assert!(error.reason.contains(words), "{error}");
    assert_eq!(error.may_pass, may_pass, "{error}");
    assert!(!error.to_string().contains('\n'), "one line: {error}");
}

#[tokio::test]
async fn a_wrong_address_or_login_is_named() {
    with_database("login", |good| async move {
        let closed = Settings {
            port: 1,
            ..good.clone()
        };
        says(&error(&closed).await, "postgres.host", "127.0.0.1:1", true);
        let nowhere = Settings {
            host: "no-such-host.invalid".into(),
            ..good.clone()
        };
        says(
            &error(&nowhere).await,
            "postgres.host",
            "no-such-host.invalid",
            true,
        );
        let silent = Proxy::start().await;
        silent.freeze();
        let silent = Settings {
            port: silent.address.port(),
            connect_timeout_ms: 200,
            ..good.clone()
        };
        says(&error(&silent).await, "postgres.host", "says nothing", true);

        let password = Settings {
            password: Secret("wrong".into()),
            ..good.clone()
        };
        let said = error(&password).await;
        says(&said, "postgres.password", "refuses user tidings", false);
        assert!(
            !said.to_string().contains("wrong"),
            "a password is never shown: {said}"
        );
        let user = Settings {
            user: "nobody".into(),
            ..good.clone()
        };
        says(
            &error(&user).await,
            "postgres.password",
            "postgres.user",
            false,
        );
        let database = Settings {
            database: "no_such_database".into(),
            ..good.clone()
        };
        says(
            &error(&database).await,
            "postgres.database",
            "no_such_database",
            false,
        );

        let none = Settings {
            pool_max: 0,
            ..good.clone()
        };
        says(
            &error(&none).await,
            "postgres.pool_max",
            "at least 1",
            false,
        );
        let direct = Settings {
            direct_port: 1,
            ..good.clone()
        };
        let said = migrate(&direct).await.expect_err("nobody there");
        says(&said, "postgres.host", "PostgreSQL at 127.0.0.1:1", true);
        let direct = Settings {
            password: Secret("wrong".into()),
            ..good
        };
        let said = migrate(&direct).await.expect_err("refused");
        says(&said, "postgres.password", "PostgreSQL at", false);
    })
    .await;
}

#[tokio::test]
async fn tables_of_another_version_are_named() {
    with_empty_database("schema", |settings| async move {
        says(&error(&settings).await, "postgres.database", "run `tidings migrate`", false);
        migrate(&settings).await.expect("migrated");
        drop(open(&settings).await);

        // What a newer program's migration would write down.
        let newer = direct(&settings).await;
        let applied = "insert into tidings_schema values (1000, 'newer', '2030-01-01T00:00:00Z', '0')";
        newer.batch_execute(applied).await.unwrap();
        drop(open(&settings).await);
        let said = migrate(&settings).await.expect_err("a newer one is there");
        says(&said, "postgres.database", "newer than this program's", false);
        let contracted = "update counters set value = 1000 where name = 'oldest_schema'";
        newer.batch_execute(contracted).await.unwrap();
        says(&error(&settings).await, "postgres.database", "too new", false);
        let older = "delete from tidings_schema; update counters set value = 0 where name = 'oldest_schema';
                     insert into tidings_schema values (0, 'older', '2020-01-01T00:00:00Z', '0')";
        newer.batch_execute(older).await.unwrap();
        says(&error(&settings).await, "postgres.database", "this program needs", false);
    })
    .await;
}

#[tokio::test]
async fn two_migrators_at_once_are_harmless() {
    with_empty_database("migrators", |settings| async move {
        let both = tokio::join!(migrate(&settings), migrate(&settings));
        let mut said = [both.0.expect("one"), both.1.expect("and the other")].concat();
        said.sort_unstable();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("applied V1"), "{said:?}");
        assert!(said[1].contains("up to date"), "{said:?}");
        user(&open(&settings).await, "ann").await;
    })
    .await;
}

#[tokio::test]
async fn a_database_that_forgets_commits_is_refused() {
    with_database("sync", |settings| async move {
        let name = &settings.database;
        let relaxed = format!("alter database {name} set synchronous_commit = off");
        direct(&settings)
            .await
            .batch_execute(&relaxed)
            .await
            .unwrap();
        says(
            &error(&settings).await,
            "postgres.host",
            "synchronous_commit = off",
            false,
        );
    })
    .await;
}

#[tokio::test]
async fn encryption_is_all_or_nothing() {
    with_database("tls", |plain| async move {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (proxy, own) = Proxy::encrypted().await;
        let (_, strange) = Proxy::encrypted().await;
        let good = Settings {
            tls: Tls::Require,
            tls_ca: file("own.pem", &own),
            port: proxy.address.port(),
            ..plain.clone()
        };
        let directory = open(&good).await;
        let ann = user(&directory, "ann").await;
        assert_eq!(directory.users(vec![ann]).await.unwrap().len(), 1);

        let strange = Settings {
            tls_ca: file("strange.pem", &strange),
            ..good.clone()
        };
        says(&error(&strange).await, "postgres.tls", "certificate", false);
        let refusing = Settings {
            port: plain.port,
            ..good.clone()
        };
        says(&error(&refusing).await, "postgres.tls", "TLS", false);
        let unnamed = Settings {
            tls_ca: String::new(),
            ..good.clone()
        };
        says(
            &error(&unnamed).await,
            "postgres.tls_ca",
            "needs the file",
            false,
        );
        let absent = Settings {
            tls_ca: "/no/such.pem".into(),
            ..good.clone()
        };
        says(
            &error(&absent).await,
            "postgres.tls_ca",
            "/no/such.pem",
            false,
        );
        let empty = Settings {
            tls_ca: file("empty.pem", ""),
            ..good
        };
        says(
            &error(&empty).await,
            "postgres.tls_ca",
            "no certificate",
            false,
        );
    })
    .await;
}
