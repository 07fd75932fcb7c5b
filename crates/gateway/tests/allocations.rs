//! Fan-out allocates nothing per recipient. A test binary of its own, since it counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[path = "worker/support.rs"]
#[expect(dead_code, reason = "this binary needs a part of it")]
mod support;

use support::{config, start, text_frame};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting touches a const-initialised
// thread-local without a destructor, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps `realloc`'s contract.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn fan_out_allocates_nothing_per_recipient() {
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
