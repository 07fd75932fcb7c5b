//! A disk that can't sync any more, under load: what the kernel then has of a file is anybody's guess (a later sync
//! that succeeds proves nothing), so the server ends, and what it opens afterwards has all that was acknowledged.

mod drill;

use std::path::{Path, PathBuf};
use std::process::Command;

use drill::{Dice, Load, Server, assert_kept, setting};
use tidings_verify::history::{Part, Restart};

/// Loaded before the C library: syncing fails with EIO while the file exists that `BROKEN_WHILE` names.
const BROKEN: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static int sync_by(long call, int fd) {
    const char *flag = getenv("BROKEN_WHILE");
    if (flag && access(flag, F_OK) == 0) {
        errno = EIO;
        return -1;
    }
    return syscall(call, fd);
}

int fsync(int fd) { return sync_by(SYS_fsync, fd); }
int fdatasync(int fd) { return sync_by(SYS_fdatasync, fd); }
"#;

/// Built by the compiler that links every Rust program.
fn library(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("broken.c"), folder.join("broken.so"));
    std::fs::write(&source, BROKEN).expect("a temporary file");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status();
    assert!(
        built.as_ref().is_ok_and(|status| status.success()),
        "cc builds it ({built:?})"
    );
    library
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_disk_fails_to_sync_ends_and_keeps_every_promise() {
    let (rounds, seed) = (setting("TIDINGS_FAILURES", 10), setting("TIDINGS_SEED", 1));
    let mut dice = Dice(seed);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (library, flag) = (library(folder.path()), folder.path().join("broken"));
    let small = ["log.segment_bytes=1048576", "store.memtable_bytes=1048576"];
    let (mut server, api) = Server::start_with(
        folder.path(),
        &folder.path().join("data"),
        &small,
        &[("LD_PRELOAD", &library), ("BROKEN_WHILE", &flag)],
    );
    let load = Load::start(&api, 8, folder.path()).await;
    for _ in 0..rounds {
        let (before, progress) = (load.sent(), 100 + dice.below(200));
        load.until("progress with a good disk", |l| {
            l.sent() >= before + progress
        })
        .await;
        // On this thread: a runtime's other one keeps the clients going meanwhile.
        tokio::task::block_in_place(|| {
            std::fs::write(&flag, "").expect("a temporary file");
            let said = server.ended();
            assert!(
                said.contains("syncing") && said.contains("os error 5"),
                "it says why: {said}"
            );
            std::fs::remove_file(&flag).expect("it was made");
            load.history.record(Restart {
                at: load.history.now_us(),
                part: Part::Server,
            });
            server.start_again();
        });
    }
    let report = load.finish().await;
    println!("{rounds} failures, seed {seed}");
    assert_kept(&report);
}
