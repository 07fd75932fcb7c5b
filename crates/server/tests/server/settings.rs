//! The command line: settings, where they came from, and starts that can't be.

use std::process::Output;

use crate::support::process::tidings;
use crate::support::program::{Alone, is_alone};
use crate::support::{Server, Setup};

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// What was said on stderr is one line, and names this.
fn is_one_line_with(said: &str, parts: &[&str]) {
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in parts {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

#[test]
fn an_unknown_setting_is_refused_with_the_nearest_name_wherever_it_stands() {
    let setup = Setup::new();
    let file = setup.file("tidings.toml", "[limits]\nsend_per_second = 5\n", 0o600);
    let refused = |command: &mut std::process::Command, origin: &str, nearest: &str| {
        let output = command.output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        is_one_line_with(
            &text(&output).1,
            &[origin, &format!("did you mean \"{nearest}\"?")],
        );
    };
    // Serving and showing refuse alike; nothing is made on disk.
    for arguments in [&["config"][..], &["serve"], &[]] {
        let mut command = tidings(setup.folder());
        refused(
            command.args(arguments),
            "tidings.toml",
            "limits.sends_per_second",
        );
    }
    std::fs::remove_file(file).expect("a file");
    let mut command = tidings(setup.folder());
    command
        .env("TIDINGS_SERVER__LISTN", "127.0.0.1:1")
        .arg("config");
    refused(&mut command, "$TIDINGS_SERVER__LISTN", "server.listen");
    let mut command = tidings(setup.folder());
    command.args(["--set", "auth.signup=open"]);
    refused(&mut command, "--set", "auth.sign_up");
    assert!(!setup.folder().join("data").exists());
}

#[test]
fn a_value_that_does_not_fit_is_refused_by_its_name() {
    let setup = Setup::new();
    for (setting, name) in [
        ("server.heartbeat_s=1", "server.heartbeat_s"),
        ("limits.sends_per_second=many", "limits.sends_per_second"),
        ("server.listen_tls=127.0.0.1:0", "server.tls_certificate"),
    ] {
        let mut command = tidings(setup.folder());
        let output = command.args(["--set", setting]).output().expect("runs");
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        is_one_line_with(&text(&output).1, &[name]);
    }
}

#[test]
fn config_prints_every_setting_with_its_origin_and_the_later_source_wins() {
    let setup = Setup::new();
    let toml = "[limits]\nsends_per_second = 7\nframes_per_second = 70\njoins_per_hour = 9\n";
    setup.file("tidings.toml", toml, 0o600);
    let mut command = tidings(setup.folder());
    command
        .env("TIDINGS_LIMITS__SENDS_PER_SECOND", "8")
        .env("TIDINGS_LIMITS__FRAMES_PER_SECOND", "80")
        .args([
            "config",
            "--set",
            "limits.frames_per_second=90",
            "--data",
            "elsewhere",
        ]);
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
    let printed = text(&output).0;
    let line = |name: &str| {
        let found = printed.lines().find(|l| l.split(' ').next() == Some(name));
        let line = found.unwrap_or_else(|| panic!("no {name} in {printed}"));
        let (value, origin) = line.split_once('#').expect("an origin");
        let value = value.split_once('=').expect("a value").1;
        (value.trim().to_owned(), origin.trim().to_owned())
    };
    let is = |name: &str, value: &str, origin: &str| {
        assert_eq!(line(name), (value.to_owned(), origin.to_owned()), "{name}");
    };
    is("limits.joins_per_hour", "9", "tidings.toml");
    is(
        "limits.sends_per_second",
        "8",
        "$TIDINGS_LIMITS__SENDS_PER_SECOND",
    );
    is("limits.frames_per_second", "90", "--set");
    is("data.dir", "\"elsewhere\"", "--data");
    is("server.listen", "\"127.0.0.1:8080\"", "default");
}

#[test]
fn help_explains_itself() {
    let setup = Setup::new();
    let output = tidings(setup.folder())
        .arg("--help")
        .output()
        .expect("the binary runs");
    let printed = text(&output).0;
    for part in [
        "config", "api-key", "replay", "verify", "--data", "--set", "TIDINGS_",
    ] {
        assert!(printed.contains(part), "{part} is not in {printed}");
    }
}

#[test]
fn a_port_in_use_is_one_clear_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound");
    for setting in ["server.listen", "admin.listen"] {
        let setup = Setup::new();
        let mut command = tidings(setup.folder());
        command.env("RUST_LOG", "error");
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        command.args(["--set", &format!("{setting}={port}")]);
        let output = command.output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(69), "{output:?}");
        is_one_line_with(&text(&output).1, &[setting, &port.to_string(), "in use"]);
    }
}

#[test]
fn data_that_another_server_has_open_is_one_clear_line() {
    if !is_alone(Alone::Folder) {
        return;
    }
    let server = Server::start();
    let mut command = tidings(server.folder());
    command.env("RUST_LOG", "error");
    command.args(["--data", "data", "--listen", "127.0.0.1:0"]);
    command.args(["--admin-listen", "127.0.0.1:0"]);
    let output = command.output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    is_one_line_with(&text(&output).1, &["data", "another"]);
}
