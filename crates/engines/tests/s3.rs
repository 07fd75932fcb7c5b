//! S3 keeps the promises of blobs, against the stack's S3 server.

mod stack;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::signer::Signer;
use tidings_core::conformance;
use tidings_core::ports::BoxFuture;
use tidings_core::ports::blobs::{BlobError, BlobKey, BlobSource, Blobs, Put};
use tidings_engines::Secret;
use tidings_engines::s3::{S3Blobs, Settings, SignedRequest, migrate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const S3: &str = "127.0.0.1:7070";
const MIB: usize = 1 << 20;

fn settings() -> Option<Settings> {
    let run = getrandom::u64().expect("random");
    stack::runs("S3", S3).then(|| Settings {
        endpoint: format!("http://{S3}"),
        bucket: format!("t-{run:016x}"),
        access_key: "tidings".to_owned(),
        secret_key: Secret("tidings-secret".to_owned()),
        part_bytes: 5 << 20,
        ..Settings::default()
    })
}

async fn open(settings: &Settings) -> S3Blobs {
    migrate(settings).await.expect("migrated");
    S3Blobs::open(settings.clone()).await.expect("opens")
}

/// Removes the bucket and all in it.
async fn clean(settings: &Settings) {
    let blobs = S3Blobs::open(settings.clone()).await.expect("opens");
    for key in blobs.list("", None, 1_000).await.expect("listed").keys {
        blobs.delete(&key).await.expect("deleted");
    }
    let signer = AmazonS3Builder::new()
        .with_endpoint(&settings.endpoint)
        .with_region(&settings.region)
        .with_bucket_name(&settings.bucket)
        .with_access_key_id(&settings.access_key)
        .with_secret_access_key(&settings.secret_key.0)
        .with_allow_http(true)
        .build()
        .expect("a signer");
    let delete = "DELETE".parse().expect("a method");
    let url = signer
        .signed_url(delete, &Path::from(""), Duration::from_secs(60))
        .await
        .expect("signed");
    let gone = http("DELETE", url.as_str(), &[], b"").await;
    assert_eq!(gone.status, 204, "{}", gone.head);
}

struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

/// A client that knows nothing of S3.
async fn http(method: &str, url: &str, headers: &[(&str, String)], body: &[u8]) -> Reply {
    let rest = url.strip_prefix("http://").expect("plain HTTP");
    let (host, path) = rest.split_once('/').expect("a path");
    let mut stream = TcpStream::connect(host).await.expect("connects");
    let mut request = format!("{method} /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if !headers.iter().any(|(name, _)| *name == "content-length") {
        request.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream.write_all(body).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    let end = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .expect("a head");
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    Reply {
        status: head[9..12].parse().expect("a status"),
        head,
        body: answer[end + 4..].to_vec(),
    }
}

async fn send(request: &SignedRequest, body: &[u8]) -> Reply {
    let mut headers: Vec<(&str, String)> = request.headers.clone();
    headers.retain(|(name, _)| *name != "content-length");
    http(request.method, &request.url, &headers, body).await
}

/// So many pieces of half a part and a byte, each of its own number; then an end or a failure.
struct Pieces {
    next: u8,
    count: u8,
    fails: bool,
}

const PIECE: usize = 5 * MIB / 2 + 1;

impl BlobSource for Pieces {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, String>> {
        let answer = if self.next < self.count {
            self.next += 1;
            Ok(Some(Bytes::from(vec![self.next; PIECE])))
        } else if self.fails {
            Err("broken off".to_owned())
        } else {
            Ok(None)
        };
        Box::pin(std::future::ready(answer))
    }
}

fn pieces(count: u8) -> Pieces {
    Pieces {
        next: 0,
        count,
        fails: false,
    }
}

fn key(name: &str) -> BlobKey {
    BlobKey::new(name).expect("a good key")
}

#[tokio::test]
async fn it_keeps_the_promises_of_blobs() {
    let Some(settings) = settings() else { return };
    let blobs = open(&settings).await;
    conformance::blobs::all(&blobs).await;
    blobs.check().await.expect("healthy");
    clean(&settings).await;
}

#[tokio::test]
async fn a_large_object_goes_in_parts_and_is_there_whole_or_not_at_all() {
    let Some(settings) = settings() else { return };
    let blobs = open(&settings).await;
    let (large, none) = (key("large/a"), key("large/none"));
    let size = 5 * PIECE as u64;
    let put = blobs.put_if_absent(&large, &mut pieces(5), size).await;
    assert_eq!(put, Ok(Put::Stored(size)));
    assert_eq!(blobs.head(&large).await, Ok(Some(size)));
    for i in 0..5 {
        // On both sides of each border of pieces.
        let border = i * PIECE as u64;
        let at = border.saturating_sub(3)..border + 3;
        let bytes = blobs.get(&large, at.clone()).await.expect("read");
        let expected: Vec<u8> = at.map(|at| (at / PIECE as u64) as u8 + 1).collect();
        assert_eq!(bytes, expected);
    }
    let again = blobs.put_if_absent(&large, &mut pieces(6), u64::MAX).await;
    assert_eq!(again, Ok(Put::Existed(size)));
    let over = blobs.put_if_absent(&none, &mut pieces(5), size - 1).await;
    assert_eq!(over, Err(BlobError::TooLarge { max: size - 1 }));
    let mut breaks = Pieces {
        fails: true,
        ..pieces(5)
    };
    let broken = blobs.put_if_absent(&none, &mut breaks, size).await;
    assert_eq!(broken, Err(BlobError::Source("broken off".to_owned())));
    assert_eq!(blobs.head(&none).await, Ok(None));
    clean(&settings).await;
}

#[tokio::test]
async fn of_several_writers_one_stores() {
    let Some(settings) = settings() else { return };
    let blobs = Arc::new(open(&settings).await);
    for (name, count, writers) in [("race/small", 1, 8_u8), ("race/large", 3, 3)] {
        let puts: Vec<_> = (0..writers)
            .map(|i| {
                let blobs = Arc::clone(&blobs);
                tokio::spawn(async move {
                    // A size of its own, to tell whose it is.
                    let mut source = Sized(pieces(count), i);
                    blobs.put_if_absent(&key(name), &mut source, u64::MAX).await
                })
            })
            .collect();
        let mut stored = Vec::new();
        for put in puts {
            match put.await.expect("ends").expect("answers") {
                Put::Stored(size) => stored.push(size),
                Put::Existed(_) => {}
            }
        }
        assert_eq!(stored.len(), 1, "{name}");
        assert_eq!(blobs.head(&key(name)).await, Ok(Some(stored[0])));
    }
    clean(&settings).await;
}

/// Pieces, and so many bytes more.
struct Sized(Pieces, u8);

impl BlobSource for Sized {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, String>> {
        Box::pin(async move {
            match self.0.next().await? {
                Some(piece) => Ok(Some(piece)),
                None if self.1 > 0 => {
                    let more = std::mem::take(&mut self.1);
                    Ok(Some(Bytes::from(vec![0; more.into()])))
                }
                None => Ok(None),
            }
        })
    }
}

#[tokio::test]
async fn a_client_uploads_and_downloads_by_signed_urls() {
    let Some(settings) = settings() else { return };
    let blobs = open(&settings).await;
    let (name, life) = (key("media/a"), Duration::from_secs(60));
    let upload = blobs.presign_upload(&name, 5, life).await.expect("signed");
    assert_eq!(blobs.complete(&name, 5).await, Err(BlobError::NotFound));
    let bare = http(upload.method, &upload.url, &[], b"hello").await;
    assert_eq!(bare.status, 403, "the header is signed: {}", bare.head);
    assert_eq!(send(&upload, b"hello").await.status, 200);
    assert_eq!(
        send(&upload, b"other").await.status,
        412,
        "an object never changes"
    );
    assert_eq!(blobs.complete(&name, 5).await, Ok(5));

    let page = blobs
        .presign_download(&name, life, "a \"b\".html", "text/html")
        .await;
    let page = send(&page.expect("signed"), b"").await;
    assert_eq!((page.status, &page.body[..]), (200, &b"hello"[..]));
    assert!(
        page.head.contains("content-type: application/octet-stream"),
        "{}",
        page.head
    );
    assert!(
        page.head
            .contains("content-disposition: attachment; filename=\"a _b_.html\""),
        "{}",
        page.head
    );
    let image = blobs
        .presign_download(&name, life, "a.png", "image/png")
        .await
        .expect("signed");
    let shown = send(&image, b"").await;
    assert!(
        shown.head.contains("content-disposition: inline"),
        "{}",
        shown.head
    );
    assert!(
        shown.head.contains("content-type: image/png"),
        "{}",
        shown.head
    );
    let altered = image.url.replace("inline", "attachment");
    assert_ne!(altered, image.url);
    assert_eq!(http("GET", &altered, &[], b"").await.status, 403);
    let svg = blobs
        .presign_download(&name, life, "a.svg", "image/svg+xml")
        .await;
    let svg = send(&svg.expect("signed"), b"").await;
    assert!(
        svg.head.contains("content-disposition: attachment"),
        "{}",
        svg.head
    );

    let max = settings.upload_bytes_max;
    let refused = blobs.presign_upload(&key("media/b"), max + 1, life).await;
    assert_eq!(refused, Err(BlobError::TooLarge { max }));
    let small = blobs
        .presign_upload(&key("media/c"), 3, life)
        .await
        .expect("signed");
    assert_eq!(send(&small, b"more than three").await.status, 200);
    let over = blobs.complete(&key("media/c"), 3).await;
    assert_eq!(over, Err(BlobError::TooLarge { max: 3 }));
    assert_eq!(blobs.head(&key("media/c")).await, Ok(None), "removed");
    clean(&settings).await;
}

#[tokio::test]
async fn each_wrong_setting_is_named_at_the_start() {
    let Some(good) = settings() else { return };
    let secret = Secret("wrong-and-secret".to_owned());
    let cases = [
        ("s3.bucket", false, good.clone()),
        (
            "s3.endpoint",
            true,
            Settings {
                endpoint: "http://127.0.0.1:1".to_owned(),
                ..good.clone()
            },
        ),
        (
            "s3.endpoint",
            false,
            Settings {
                endpoint: "127.0.0.1:7070".to_owned(),
                ..good.clone()
            },
        ),
        (
            "s3.access_key",
            false,
            Settings {
                access_key: "other".to_owned(),
                ..good.clone()
            },
        ),
        (
            "s3.secret_key",
            false,
            Settings {
                secret_key: secret,
                ..good.clone()
            },
        ),
        (
            "s3.region",
            false,
            Settings {
                region: "eu-north-9".to_owned(),
                ..good.clone()
            },
        ),
        (
            "s3.bucket",
            false,
            Settings {
                bucket: "No".to_owned(),
                ..good.clone()
            },
        ),
    ];
    for (setting, may_pass, settings) in cases {
        let error = S3Blobs::open(settings).await.err().expect("refused");
        eprintln!("{error}");
        assert_eq!(
            (error.setting, error.may_pass),
            (setting, may_pass),
            "{error}"
        );
        assert!(!error.reason.contains("wrong-and-secret"), "{error}");
    }
    let first = migrate(&good).await.expect("migrated");
    let second = migrate(&good).await.expect("migrated again");
    assert_eq!((first.len(), second.len()), (2, 1), "{first:?} {second:?}");
    clean(&good).await;
}

#[tokio::test]
async fn a_service_that_hangs_costs_no_more_than_the_deadline() {
    let Some(settings) = settings() else { return };
    let direct = open(&settings).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    // Passes the first connection on, and the start's question; whatever comes after hangs.
    let proxy = tokio::spawn(async move {
        let mut held = Vec::new();
        let (mut first, _) = listener.accept().await.expect("the start");
        let mut to = TcpStream::connect(S3).await.expect("S3");
        let mut question = [0; 4096];
        let n = first.read(&mut question).await.expect("a question");
        to.write_all(&question[..n]).await.expect("passed on");
        let n = to.read(&mut question).await.expect("an answer");
        first.write_all(&question[..n]).await.expect("passed back");
        held.push(first);
        loop {
            held.push(listener.accept().await.expect("a connection").0);
        }
    });
    let blobs = S3Blobs::open(Settings {
        endpoint: format!("http://{address}"),
        timeout_ms: 300,
        part_timeout_ms: 400,
        ..settings.clone()
    })
    .await
    .expect("opens");
    let name = key("a");
    let mut body = Some(Bytes::from_static(b"abc"));
    let begun = Instant::now();
    let answers = [
        blobs.head(&name).await.err(),
        blobs.get(&name, 0..1).await.err(),
        blobs.delete(&name).await.err(),
        blobs.list("", None, 1).await.err(),
        blobs.put_if_absent(&name, &mut body, 9).await.err(),
    ];
    let took = begun.elapsed();
    for answer in &answers {
        assert!(
            matches!(answer, Some(BlobError::Unavailable { .. })),
            "{answers:?}"
        );
    }
    assert!(took < Duration::from_millis(4_000), "{took:?}");
    let begun = Instant::now();
    blobs.check().await.expect_err("it says so");
    assert!(begun.elapsed() < Duration::from_millis(1_500));
    proxy.abort();
    drop(direct);
    clean(&settings).await;
}
