//! The stream between servers: its frames, the hello, and all that a batch may hold.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tidings_core::varint::Reader;
use tidings_fuzz::{Input, within};
use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, Runtime};

/// The files alone: the whole crate would bring the engines' drivers, which are built in C for minutes.
#[allow(dead_code)]
#[path = "."]
mod peers {
    #[path = "../../../crates/engines/src/peers/frame.rs"]
    pub mod frame;
    #[path = "../../../crates/engines/src/peers/hello.rs"]
    pub mod hello;
    #[path = "../../../crates/engines/src/peers/item.rs"]
    pub mod item;
    #[path = "../../../crates/engines/src/peers/metrics.rs"]
    pub mod metrics;
    #[path = "../../../crates/engines/src/peers/owners.rs"]
    pub mod owners;
    // Its tests would be looked for beside it.
    #[rustfmt::skip]
    #[path = "../../../crates/engines/src/peers/wire.rs"]
    pub mod wire;

    /// In place of TLS, whose library reads what is a stranger's.
    pub mod tls {
        pub type Stream = tokio::io::DuplexStream;
    }

    use super::*;
    use frame::Connection;
    use hello::Hello;
    use item::Item;
    use wire::Wire;

    /// A batch as `incoming` takes it: items until it ends.
    pub fn batch(bytes: &[u8]) {
        let mut r = Reader::new(bytes, "batch");
        while !r.is_empty() {
            let Ok(item) = Item::get(&mut r) else { return };
            let mut again = Vec::new();
            item.put(&mut again);
            let mut r = Reader::new(&again, "item");
            assert_eq!(Item::get(&mut r), Ok(item.clone()));
            assert!(r.is_empty(), "nothing is left of an item");
            // A queue's bound counts by it.
            assert!(item.weight() >= 32);
            let (mut one, other) = (item.clone(), item);
            one.merge(&other);
        }
    }

    /// A server that is greeted by these bytes.
    pub fn greeting(runtime: &Runtime, bytes: &[u8]) {
        let mine = Hello::new("fuzz", 7, 1, 16);
        runtime.block_on(async {
            let (here, mut there) = tokio::io::duplex(bytes.len().max(1) + 1024);
            there.write_all(bytes).await.expect("there is room");
            there.shutdown().await.expect("it is in memory");
            let mut connection = Connection::new(here);
            let within = Duration::from_secs(5);
            if let Ok(theirs) = hello::receive(&mut connection, &mine, within).await {
                assert_eq!((theirs.cluster.as_str(), theirs.partitions), ("fuzz", 16));
                assert!(theirs.server != 7 || theirs.start == 1);
                assert!(theirs.oldest <= hello::VERSION && theirs.newest >= 1);
            }
        });
    }
}

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let which = input.byte();
    let rest = input.rest();
    match which {
        // The length that a frame claims is made room for, 4 MiB at most: who comes so far has shown a certificate.
        0 => RUNTIME.with(|runtime| {
            within(4 * bytes.len() + (5 << 20), || {
                peers::greeting(runtime, rest)
            });
        }),
        // A row of two bytes takes some 300 in memory, and a list gives room for 1,024 elements at once.
        _ => within(512 * bytes.len() + (1 << 20), || peers::batch(rest)),
    }
});
