use std::io::Write;

use super::{ConfigError, Flags, Origin, load};

fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("t.toml");
    std::fs::File::create(&path)
        .and_then(|mut f| f.write_all(text.as_bytes()))
        .expect("a file in it");
    (dir, path)
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

#[test]
fn flags_beat_environment_beats_file_beats_default() {
    let (_dir, path) =
        file("[server]\nheartbeat_s = 10\nworkers = 3\n[limits]\nsends_per_second = 7\n");
    let flags = Flags {
        file: Some(path.clone()),
        values: vec![(
            "server.listen".into(),
            "127.0.0.1:1".into(),
            "--listen".into(),
        )],
    };
    let loaded = load(
        &flags,
        env(&[
            ("TIDINGS_SERVER__WORKERS", "5"),
            ("TIDINGS_SERVER__LISTEN", "127.0.0.1:2"),
            ("PATH", "/"),
        ]),
    )
    .unwrap();
    assert_eq!(loaded.config.server.listen.port(), 1);
    assert_eq!(loaded.config.server.workers, 5);
    assert_eq!(loaded.config.server.heartbeat_s, 10);
    assert_eq!(loaded.config.limits.sends_per_second, 7);
    assert_eq!(
        loaded.origins["server.listen"],
        Origin::Flag("--listen".into())
    );
    assert_eq!(
        loaded.origins["server.workers"],
        Origin::Environment("TIDINGS_SERVER__WORKERS".into())
    );
    assert_eq!(loaded.origins["server.heartbeat_s"], Origin::File(path));
    assert_eq!(loaded.origins["auth.sign_up"], Origin::Default);
    assert!(
        loaded.to_string().contains("server.workers"),
        "the printed settings name each one"
    );
}

#[test]
fn an_unknown_setting_is_refused_with_the_nearest_name_from_every_source() {
    let (_dir, path) = file("[server]\nlisen = \"127.0.0.1:1\"\n");
    let from_file = load(
        &Flags {
            file: Some(path),
            values: vec![],
        },
        env(&[]),
    )
    .unwrap_err();
    assert!(
        matches!(&from_file, ConfigError::Unknown { nearest: Some(n), .. } if n == "server.listen"),
        "{from_file}"
    );
    let from_env = load(&Flags::default(), env(&[("TIDINGS_AUTH__SIGNUP", "open")])).unwrap_err();
    assert!(
        from_env
            .to_string()
            .contains("did you mean \"auth.sign_up\""),
        "{from_env}"
    );
    let flag = vec![("limit.sends_per_second".into(), "1".into(), "--set".into())];
    let from_flag = load(
        &Flags {
            file: None,
            values: flag,
        },
        env(&[]),
    )
    .unwrap_err();
    assert!(
        from_flag.to_string().contains("limits.sends_per_second"),
        "{from_flag}"
    );
}

#[test]
fn a_value_that_does_not_fit_is_refused_by_name() {
    for (name, value, why) in [
        ("TIDINGS_SERVER__WORKERS", "many", "not a whole number"),
        ("TIDINGS_SERVER__HEARTBEAT_S", "3600", "not in 5 to 60"),
        ("TIDINGS_AUTH__ACCESS_MINUTES", "1", "not in 2 to 60"),
        ("TIDINGS_AUTH__SIGN_UP", "maybe", "maybe"),
        ("TIDINGS_SERVER__LISTEN", "nowhere", "socket address"),
        (
            "TIDINGS_SERVER__LISTEN_TLS",
            "127.0.0.1:8443",
            "tls_certificate",
        ),
    ] {
        let error = load(&Flags::default(), env(&[(name, value)])).unwrap_err();
        assert!(error.to_string().contains(why), "{error} should say {why}");
    }
}

#[test]
fn token_keys_are_tables_of_the_file() {
    let key = "[[auth.keys]]\nkid = \"a\"\nalgorithm = \"EdDSA\"\npublic_key = \"k.pem\"\nissuer = \"i\"\naudience = \"u\"\n";
    let (_dir, path) = file(key);
    assert_eq!(
        load(
            &Flags {
                file: Some(path),
                values: vec![]
            },
            env(&[])
        )
        .unwrap()
        .config
        .auth
        .keys[0]
            .kid,
        "a"
    );
    let (_dir, path) = file(&key.replace("EdDSA", "none"));
    assert!(
        load(
            &Flags {
                file: Some(path),
                values: vec![]
            },
            env(&[])
        )
        .unwrap_err()
        .to_string()
        .contains("EdDSA or RS256")
    );
}
