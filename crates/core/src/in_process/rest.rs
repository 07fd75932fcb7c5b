//! What a thread does about its memory before it sleeps.
//!
//! Allocators keep freed memory for the thread that had it, and a thread that sleeps gives none
//! back, however long the quiet. So each thread of ours that is about to wait for work says so
//! here, and the binary, which knows the allocator, has said what that means.

use std::sync::OnceLock;
use std::time::Duration;

/// How long a thread has nothing to do before it calls [`rest`], and how often those call it
/// that wake by themselves: it costs some ten microseconds, and memory given back is zeroed by
/// the kernel when it is wanted again.
pub const REST_AFTER: Duration = Duration::from_secs(5);

static GIVE_BACK: OnceLock<fn()> = OnceLock::new();

/// Says what [`rest`] calls from now on; the first to say so is heard.
pub fn on_rest(give_back: fn()) {
    _ = GIVE_BACK.set(give_back);
}

/// Gives back what the calling thread doesn't use; nothing where nobody has said how.
pub fn rest() {
    if let Some(give_back) = GIVE_BACK.get() {
        give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_thread_at_rest_does_what_the_binary_said() {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        rest();
        on_rest(|| _ = CALLS.fetch_add(1, Ordering::Relaxed));
        on_rest(|| panic!("only the first counts"));
        rest();
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    }
}
