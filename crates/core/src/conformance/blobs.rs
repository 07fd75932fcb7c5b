//! What every [`Blobs`] does: each function panics where a promise is broken.

use bytes::Bytes;

use crate::ports::BoxFuture;
use crate::ports::blobs::{BlobError, BlobKey, BlobSource, Blobs, Put};

/// Runs the whole suite on a store without objects.
pub async fn all(blobs: &dyn Blobs) {
    an_object_never_changes(blobs).await;
    a_range_is_given_whole_or_refused(blobs).await;
    what_is_too_large_or_breaks_off_is_not_kept(blobs).await;
    a_deleted_object_is_gone(blobs).await;
    keys_are_listed_in_order_and_in_pages(blobs).await;
    only_server_made_keys_exist();
}

fn key(name: &str) -> BlobKey {
    BlobKey::new(name).expect("a good key")
}

async fn put(blobs: &dyn Blobs, name: &str, bytes: &'static [u8]) -> Result<Put, BlobError> {
    blobs
        .put_if_absent(&key(name), &mut Some(Bytes::from_static(bytes)), 1_000)
        .await
}

/// Gives its pieces, then fails if so told.
struct Pieces {
    left: Vec<Bytes>,
    fails: bool,
}

impl BlobSource for Pieces {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, String>> {
        let piece = match self.left.pop() {
            None if self.fails => Err("broken off".to_owned()),
            piece => Ok(piece),
        };
        Box::pin(std::future::ready(piece))
    }
}

async fn an_object_never_changes(blobs: &dyn Blobs) {
    assert_eq!(put(blobs, "once/a", b"first").await, Ok(Put::Stored(5)));
    assert_eq!(put(blobs, "once/a", b"another").await, Ok(Put::Existed(5)));
    assert_eq!(
        blobs.get(&key("once/a"), 0..5).await,
        Ok(Bytes::from_static(b"first"))
    );
    assert_eq!(put(blobs, "once/empty", b"").await, Ok(Put::Stored(0)));
    assert_eq!(blobs.head(&key("once/empty")).await, Ok(Some(0)));
    let mut pieces = Pieces {
        left: vec![Bytes::from_static(b"cd"), Bytes::from_static(b"ab")],
        fails: false,
    };
    assert_eq!(
        blobs
            .put_if_absent(&key("once/pieces"), &mut pieces, 4)
            .await,
        Ok(Put::Stored(4))
    );
    assert_eq!(
        blobs.get(&key("once/pieces"), 0..4).await,
        Ok(Bytes::from_static(b"abcd"))
    );
}

async fn a_range_is_given_whole_or_refused(blobs: &dyn Blobs) {
    put(blobs, "range/a", b"0123456789").await.expect("stored");
    let a = key("range/a");
    assert_eq!(blobs.get(&a, 3..7).await, Ok(Bytes::from_static(b"3456")));
    assert_eq!(blobs.get(&a, 10..10).await, Ok(Bytes::new()));
    for bad in [
        5..11,
        11..12,
        u64::MAX - 1..u64::MAX,
        std::ops::Range { start: 7, end: 3 },
    ] {
        assert_eq!(blobs.get(&a, bad).await, Err(BlobError::Range { size: 10 }));
    }
    assert_eq!(
        blobs.get(&key("range/none"), 0..1).await,
        Err(BlobError::NotFound)
    );
}

async fn what_is_too_large_or_breaks_off_is_not_kept(blobs: &dyn Blobs) {
    let name = key("part/a");
    let large = blobs
        .put_if_absent(&name, &mut Some(Bytes::from_static(b"12345")), 4)
        .await;
    assert_eq!(large, Err(BlobError::TooLarge { max: 4 }));
    let mut broken = Pieces {
        left: vec![Bytes::from_static(b"12")],
        fails: true,
    };
    let broken = blobs.put_if_absent(&name, &mut broken, 4).await;
    assert_eq!(broken, Err(BlobError::Source("broken off".into())));
    assert_eq!(blobs.head(&name).await, Ok(None));
    assert_eq!(
        blobs.list("part/", None, 10).await.expect("listed").keys,
        []
    );
    assert_eq!(
        put(blobs, "part/a", b"1234").await,
        Ok(Put::Stored(4)),
        "the key is still free"
    );
}

async fn a_deleted_object_is_gone(blobs: &dyn Blobs) {
    put(blobs, "gone/a", b"x").await.expect("stored");
    assert_eq!(blobs.delete(&key("gone/a")).await, Ok(true));
    assert_eq!(blobs.delete(&key("gone/a")).await, Ok(false));
    assert_eq!(blobs.head(&key("gone/a")).await, Ok(None));
    assert_eq!(
        blobs.get(&key("gone/a"), 0..1).await,
        Err(BlobError::NotFound)
    );
}

async fn keys_are_listed_in_order_and_in_pages(blobs: &dyn Blobs) {
    // "-" sorts before "/", "0" after it: the order is that of whole keys, not of folders.
    let names = ["list/a-b", "list/a/x", "list/a/y", "list/a0", "list/b"];
    for name in names.iter().rev() {
        put(blobs, name, b"x").await.expect("stored");
    }
    let mut seen = Vec::new();
    let mut after: Option<BlobKey> = None;
    loop {
        let page = blobs
            .list("list/", after.as_ref(), 2)
            .await
            .expect("listed");
        seen.extend(page.keys.iter().map(|key| key.as_str().to_owned()));
        after = page.keys.last().cloned();
        if !page.more {
            break;
        }
    }
    assert_eq!(seen, names);
    let inside = blobs.list("list/a/", None, 10).await.expect("listed");
    assert_eq!(inside.keys, [key("list/a/x"), key("list/a/y")]);
    assert_eq!(
        blobs
            .list("list/a", None, 10)
            .await
            .expect("listed")
            .keys
            .len(),
        4,
        "a prefix may end inside a part"
    );
    assert_eq!(
        blobs.list("nothing", None, 10).await.expect("listed").keys,
        []
    );
    assert_eq!(blobs.list("../", None, 10).await.expect("listed").keys, []);
}

fn only_server_made_keys_exist() {
    let long = "a".repeat(65);
    let bad = [
        "", "/", "a/", "/a", "a//b", "../a", "a/../b", ".", "a/.b", "A", "a b", "a\\b", "a\0", "ä",
        &long,
    ];
    for name in bad {
        assert_eq!(BlobKey::new(name), None, "{name:?} is no key");
    }
    assert!(BlobKey::new("media/0a/0a1b2c.v1").is_some());
}
