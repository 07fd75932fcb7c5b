//! No descriptors left: a test binary of its own, since the limit is the process's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;

#[path = "worker/support.rs"]
#[expect(dead_code, reason = "this binary needs a part of it")]
mod support;

use support::{DEADLINE, Seen, UPGRADE, config, start};

/// Sets the soft limit of open files and returns what it was.
fn limit_files(to: u64) -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit for the call to fill.
    assert_eq!(
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) },
        0
    );
    let before = std::mem::replace(&mut limit.rlim_cur, to);
    // SAFETY: `limit` is a valid rlimit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    before
}

#[test]
fn a_worker_without_descriptors_refuses_rests_and_recovers() {
    let server = start(config());
    let (mut old, token) = server.open();
    // While the worker is held up, clients queue at its listener and the last descriptors go.
    let (go_on, held_up) = channel();
    let (to_started, started) = channel();
    server.run_detached(move |_| {
        let _ = to_started.send(());
        let _ = held_up.recv_timeout(DEADLINE);
    });
    started
        .recv_timeout(DEADLINE)
        .expect("the worker is held up");
    let waiting: Vec<_> = (0..6).map(|_| server.connect()).collect();
    let lowest_free = File::open("/dev/null").expect("a descriptor").as_raw_fd() as u64;
    // Room for two of the six.
    let before = limit_files(lowest_free + 2);
    go_on.send(()).expect("the worker waits");
    // Each is served or cut off, soon: nobody is left to a timeout. Those that were read are
    // closed, which makes room for others.
    let mut served = 0;
    for mut client in waiting {
        if client.stream.write_all(UPGRADE.as_bytes()).is_ok() {
            served += usize::from(matches!(client.stream.read(&mut [0]), Ok(1)));
        }
    }
    limit_files(before);
    assert!(served >= 2, "{served} served");

    let errors = server.stats.accept_errors.load(Ordering::Relaxed);
    assert!(
        (1..50).contains(&errors),
        "{errors} errors: it neither ignores nor spins"
    );
    while server.seen.try_recv().is_ok() {}
    old.send("still there");
    assert_eq!(old.text(), "still there");
    let mut new = server.connect();
    new.write(UPGRADE.as_bytes());
    assert!(new.head().starts_with("HTTP/1.1 101 "));
    let told =
        std::iter::repeat_with(|| server.saw()).find(|seen| matches!(seen, Seen::Message(..)));
    assert_eq!(told, Some(Seen::Message(token, "still there".into())));
}
