//! The direction of dependencies (ARCHITECTURE.md, "Code map"): any other edge is a mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Which of our crates each may depend on.
const ALLOWED: [(&str, &[&str]); 11] = [
    ("tidings-core", &[]),
    ("tidings-protocol", &[]),
    ("tidings-verify", &[]),
    ("tidings-model", &["tidings-core"]),
    ("tidings-backends", &["tidings-core"]),
    ("tidings-engines", &["tidings-core"]),
    ("tidings-gateway", &["tidings-core", "tidings-protocol"]),
    ("tidings-client", &["tidings-protocol"]),
    (
        "tidings-cli",
        &["tidings-client", "tidings-protocol", "tidings-verify"],
    ),
    (
        "tidings-sim",
        &[
            "tidings-core",
            "tidings-protocol",
            "tidings-gateway",
            "tidings-client",
            "tidings-verify",
            "tidings-backends",
        ],
    ),
    (
        "tidings",
        &[
            "tidings-core",
            "tidings-protocol",
            "tidings-gateway",
            "tidings-backends",
            "tidings-engines",
            "tidings-cli",
        ],
    ),
];

fn metadata() -> serde_json::Value {
    let out = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs this test, so it is there");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    serde_json::from_slice(&out.stdout).expect("cargo metadata is JSON")
}

/// A program with a mistake in it must not be built by accident.
#[test]
fn only_the_simulation_and_the_model_can_plant_mistakes() {
    let metadata = metadata();
    let mut planting = BTreeSet::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("a name");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let features = dependency["features"].as_array().expect("features");
            if features.iter().any(|feature| feature == "planted") {
                planting.insert(name);
            }
        }
        // Nor by a feature of another name.
        for (feature, enables) in package["features"].as_object().expect("features") {
            let enables = enables.to_string();
            assert!(
                !enables.contains("planted"),
                "{name}'s {feature} enables {enables}"
            );
        }
    }
    assert_eq!(planting, BTreeSet::from(["tidings-model", "tidings-sim"]));
}

#[test]
fn crates_depend_on_each_other_in_one_direction_only() {
    let metadata = metadata();
    let allowed: BTreeMap<&str, BTreeSet<&str>> = ALLOWED
        .iter()
        .map(|(of, on)| (*of, on.iter().copied().collect()))
        .collect();
    let mut seen = BTreeSet::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("a name");
        let allowed = allowed
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not in ALLOWED: decide its place"));
        seen.insert(name);
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let on = dependency["name"].as_str().expect("a name");
            // Tests may lean on more, as long as the program doesn't.
            if on.starts_with("tidings") && dependency["kind"].is_null() {
                assert!(allowed.contains(on), "{name} must not depend on {on}");
            }
        }
    }
    assert_eq!(seen.len(), ALLOWED.len(), "a crate of ALLOWED is gone");
}

#[test]
fn the_core_and_the_protocol_know_no_sockets_and_no_drivers() {
    for of in ["core", "protocol"] {
        let manifest =
            std::fs::read_to_string(format!("{}/../{of}/Cargo.toml", env!("CARGO_MANIFEST_DIR")))
                .expect("a manifest");
        let program = manifest
            .split("[dev-dependencies]")
            .next()
            .expect("split gives one part");
        for driver in [
            "tokio", "mio", "rusqlite", "rustls", "axum", "hyper", "socket2",
        ] {
            assert!(
                !program.contains(&format!("\n{driver}")),
                "{of} must not depend on {driver}"
            );
        }
    }
}
