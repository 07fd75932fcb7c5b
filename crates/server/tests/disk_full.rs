//! A disk that fills up under load and gets room again, 20 times: sends are refused with
//! `storage_full`, clients are told so, the server runs on, nothing acknowledged is lost. Needs to be able to mount a
//! small file system, which root can.

mod drill;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use drill::{Dice, Load, Server, assert_kept, setting};
use tidings_protocol::wire::Feature;

/// Room for the data of the whole drill.
const DISK: &str = "size=256m";

/// A small file system in memory.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Disk {
        std::fs::create_dir(at).expect("a fresh folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", DISK, "tidings-drill"])
            .arg(at)
            .status();
        assert!(
            mounted.as_ref().is_ok_and(|status| status.success()),
            "this test fills a disk of its own and must be allowed to mount one: run it as root \
             ({mounted:?})"
        );
        Disk(at.to_path_buf())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a server that is just being killed may have files open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Takes all room that is left.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("a file needs no room");
    let block = vec![0xa5; 64 * 1024];
    let mut bytes = &block[..];
    while !bytes.is_empty() {
        // Ever smaller writes, to the last page.
        if file.write_all(bytes).is_err() {
            bytes = &bytes[..bytes.len() / 2];
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_sends_and_loses_nothing() {
    let (rounds, seed) = (setting("TIDINGS_FILLS", 20), setting("TIDINGS_SEED", 1));
    let mut dice = Dice(seed);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let disk = Disk::mount(&folder.path().join("disk"));
    let filler = disk.0.join("filler");
    let small = ["log.segment_bytes=1048576", "store.memtable_bytes=1048576"];
    let (mut server, api) = Server::start(folder.path(), &disk.0.join("data"), &small);
    let load = Load::start(&api, 8, folder.path()).await;
    let mut told = false;
    for _ in 0..rounds {
        let before = load.sent();
        let progress = 100 + dice.below(200);
        load.until("progress with room", |l| l.sent() >= before + progress)
            .await;
        let refused = load.refused("storage_full");
        tokio::task::block_in_place(|| fill(&filler));
        load.until("refusal on a full disk", |l| {
            // What is freed by trimming the log meanwhile is taken, too.
            fill(&filler.with_extension("more"));
            l.refused("storage_full") > refused
        })
        .await;
        if !told {
            load.until("the mode is told", |l| l.is_less(Feature::Delivery))
                .await;
            told = true;
        }
        server.assert_runs();
        std::fs::remove_file(&filler).expect("it was made");
        std::fs::remove_file(filler.with_extension("more")).expect("it was made");
    }
    let report = load.finish().await;
    server.assert_runs();
    println!("{rounds} fills, seed {seed}");
    assert_kept(&report);
    drop(server);
}
