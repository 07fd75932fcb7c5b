//! Fan-out allocates nothing per recipient, and an idle session holds little. A test binary of its
//! own, since it counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

#[path = "worker/support.rs"]
#[expect(dead_code, reason = "this binary needs a part of it")]
mod support;

use support::{Seen, config, start, text_frame};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Of the whole process: what one thread allocates another may free.
static LIVE_BYTES: AtomicI64 = AtomicI64::new(0);

/// One test at a time, since each counts what the process does.
static ALONE: Mutex<()> = Mutex::new(());

struct Counting;

fn count(allocations: u64, bytes: i64) {
    ALLOCATIONS.set(ALLOCATIONS.get() + allocations);
    LIVE_BYTES.fetch_add(bytes, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches an atomic and
// a const-initialised thread-local without a destructor, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as i64);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, -(layout.size() as i64));
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(1, bytes as i64 - layout.size() as i64);
        // SAFETY: the caller keeps `realloc`'s contract.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn fan_out_allocates_nothing_per_recipient() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = start(config());
    let mut clients: Vec<_> = (0..200).map(|_| server.open()).collect();
    for frames in [1, 8] {
        // Allocations of the worker's thread over one turn that sends to the first `recipients`.
        let mut turn = |recipients: usize| {
            let tokens: Vec<_> = clients[..recipients]
                .iter()
                .map(|(_, token)| *token)
                .collect();
            let before = server.run(|_| ALLOCATIONS.get());
            server.run(move |io| {
                let frame = text_frame("to all of you");
                for &token in &tokens {
                    for _ in 0..frames {
                        assert!(io.send(token, frame.clone()));
                    }
                }
            });
            // Runs in a later turn, when all is written.
            let after = server.run(|_| ALLOCATIONS.get());
            for (client, _) in &mut clients[..recipients] {
                for _ in 0..frames {
                    assert_eq!(client.text(), "to all of you");
                }
            }
            after - before
        };
        // The first time, lists grow to the size that they keep.
        turn(200);
        assert_eq!(turn(200), turn(1), "{frames} frames a turn");
    }
}

#[test]
fn an_idle_session_holds_its_slab_entry_and_nothing_else() {
    const SESSIONS: usize = 1000;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = start(config());
    // The first ones make everything grow that doesn't grow with sessions.
    let mut clients = Vec::with_capacity(24 + SESSIONS);
    clients.extend((0..24).map(|_| server.open()));
    let before = server.run(|_| LIVE_BYTES.load(Ordering::Relaxed));
    clients.extend((0..SESSIONS).map(|_| server.open()));
    // After traffic both ways: what was needed for it must be gone.
    for (client, _) in &mut clients {
        client.send("hello");
        assert_eq!(client.text(), "hello");
        assert!(matches!(server.saw(), Seen::Message(..)));
    }
    let after = server.run(|_| LIVE_BYTES.load(Ordering::Relaxed));
    // 1,024 slab entries of at most 112 bytes, and lists of the handler's and the test's channels.
    let each = (after - before) / SESSIONS as i64;
    assert!(each <= 128, "{each} bytes a session");
}
