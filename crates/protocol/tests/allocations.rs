//! The hot paths of the codec allocate nothing, which timings on a shared machine could not tell.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use tidings_protocol::wire::{ClientFrame, Command, Kind, command};
use tidings_protocol::{
    EventRef, Format, Page, commands_decode, encode_client_frame, encode_event, encode_page_event,
};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    // Fails only while a thread ends, when nothing is measured.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches
// a thread-local without a destructor and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(block, layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(run: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    run();
    ALLOCATIONS.get() - before
}

#[test]
fn reading_a_protobuf_send_allocates_nothing() {
    assert_eq!(
        allocations(|| drop(std::hint::black_box(vec![1_u8]))),
        1,
        "the count counts"
    );
    let send = Command {
        r#ref: 7,
        command: Some(command::Command::Send(support::send())),
    };
    let mut frame = Vec::new();
    encode_client_frame(
        Format::Proto,
        &ClientFrame {
            commands: vec![send; 3],
        },
        &mut frame,
    );
    let mut read = 0;
    let made = allocations(|| {
        let commands = commands_decode(Format::Proto, &frame).expect("a good frame");
        read = commands.filter(|command| command.is_ok()).count();
    });
    assert_eq!((made, read), (0, 3));
}

#[test]
fn writing_an_event_into_a_used_buffer_allocates_nothing() {
    let event = support::event(Kind::Text, b"hello");
    let event = EventRef::of(&event);
    for format in Format::ALL {
        let mut out = Vec::with_capacity(4096);
        let made = allocations(|| {
            encode_event(format, 0, &event, &mut out);
            encode_page_event(format, Page::Sync, &event, &mut out);
        });
        assert_eq!(made, 0, "{format:?}");
    }
}
