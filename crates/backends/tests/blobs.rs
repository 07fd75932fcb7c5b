//! The folder of blobs keeps the promises of its port.

use bytes::Bytes;
use tidings_backends::folder::FolderBlobs;
use tidings_core::conformance;
use tidings_core::ports::blobs::{BlobKey, Blobs, Put};

#[tokio::test]
async fn the_folder_keeps_the_promises_of_blobs() {
    let folder = tempfile::tempdir().unwrap();
    conformance::blobs::all(&FolderBlobs::open(folder.path()).unwrap()).await;
}

#[tokio::test]
async fn a_second_start_goes_on_and_clears_what_broke_off() {
    let folder = tempfile::tempdir().unwrap();
    let key = BlobKey::new("media/a").unwrap();
    let blobs = FolderBlobs::open(folder.path()).unwrap();
    blobs
        .put_if_absent(&key, &mut Some(Bytes::from_static(b"abc")), 10)
        .await
        .unwrap();
    let leftover = folder.path().join(".part/0123");
    std::fs::write(&leftover, b"half").unwrap();
    drop(blobs);

    let blobs = FolderBlobs::open(folder.path()).unwrap();
    assert!(!leftover.exists());
    assert_eq!(blobs.head(&key).await, Ok(Some(3)));
    assert_eq!(blobs.list("", None, 10).await.unwrap().keys, [key]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_writers_one_stores() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = std::sync::Arc::new(FolderBlobs::open(folder.path()).unwrap());
    let key = BlobKey::new("race/a").unwrap();
    let puts: Vec<_> = (0..8u8)
        .map(|i| {
            let (blobs, key) = (blobs.clone(), key.clone());
            tokio::spawn(async move {
                let body = Bytes::from(vec![i; 1000]);
                (
                    body.clone(),
                    blobs
                        .put_if_absent(&key, &mut Some(body), 1000)
                        .await
                        .unwrap(),
                )
            })
        })
        .collect();
    let mut stored = Vec::new();
    for put in puts {
        let (body, answer) = put.await.unwrap();
        if answer == Put::Stored(1000) {
            stored.push(body);
        }
    }
    assert_eq!(stored.len(), 1);
    assert_eq!(blobs.get(&key, 0..1000).await, Ok(stored.remove(0)));
    assert_eq!(
        std::fs::read_dir(folder.path().join(".part"))
            .unwrap()
            .count(),
        0
    );
}
