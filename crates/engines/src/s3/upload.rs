//! Putting an object: small ones in one request, large ones in parts, neither over one that is there.

use std::sync::Arc;

use bytes::Bytes;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{Error, ObjectStore, PutMode, PutOptions, PutPayload};
use tidings_core::ports::blobs::{BlobError, BlobKey, BlobSource, Blobs, Put};

use super::S3Blobs;
use super::metrics::add;
use super::objects::unavailable;

/// S3 takes no more parts.
const PARTS_MAX: u64 = 10_000;

/// A source read in parts of one size, all but the last.
struct Parts<'a> {
    source: &'a mut dyn BlobSource,
    pieces: Vec<Bytes>,
    held: u64,
    read: u64,
    part_bytes: u64,
    bytes_max: u64,
    ended: bool,
}

impl Parts<'_> {
    /// The next part, full unless the source has ended.
    async fn next(&mut self) -> Result<PutPayload, BlobError> {
        // One byte more tells whether this is the last.
        while !self.ended && self.held <= self.part_bytes {
            match self.source.next().await.map_err(BlobError::Source)? {
                Some(piece) => {
                    self.read += piece.len() as u64;
                    if self.read > self.bytes_max {
                        return Err(BlobError::TooLarge {
                            max: self.bytes_max,
                        });
                    }
                    self.held += piece.len() as u64;
                    self.pieces.push(piece);
                }
                None => self.ended = true,
            }
        }
        let mut part = Vec::new();
        let mut room = self.part_bytes;
        let mut left = Vec::new();
        for mut piece in std::mem::take(&mut self.pieces) {
            let now = (piece.len() as u64).min(room);
            room -= now;
            let rest = piece.split_off(now as usize);
            part.push(piece);
            if !rest.is_empty() {
                left.push(rest);
            }
        }
        self.pieces = left;
        self.held -= self.part_bytes - room;
        Ok(part.into_iter().filter(|piece| !piece.is_empty()).collect())
    }

    fn is_last(&self) -> bool {
        self.ended && self.held == 0
    }
}

/// An upload in parts; aborted unless completed.
struct Upload {
    store: Arc<object_store::aws::AmazonS3>,
    path: Path,
    id: Option<String>,
}

impl Drop for Upload {
    fn drop(&mut self) {
        let (Some(id), Ok(runtime)) = (self.id.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (store, path) = (Arc::clone(&self.store), self.path.clone());
        // Bounded by the client's own time limits; a failure leaves what the bucket's lifecycle rule removes.
        runtime.spawn(async move {
            if let Err(error) = store.abort_multipart(&path, &id).await {
                tracing::warn!(%error, "s3: an upload that broke off wasn't aborted");
            }
        });
    }
}

impl S3Blobs {
    pub(super) async fn put(
        &self,
        key: &BlobKey,
        source: &mut dyn BlobSource,
        bytes_max: u64,
    ) -> Result<Put, BlobError> {
        if let Some(size) = self.head(key).await? {
            return Ok(Put::Existed(size));
        }
        let mut parts = Parts {
            source,
            pieces: Vec::new(),
            held: 0,
            read: 0,
            part_bytes: self.settings.part_bytes.max(bytes_max.div_ceil(PARTS_MAX)),
            bytes_max,
            ended: false,
        };
        let put = self.put_parts(key, &mut parts).await;
        match put {
            Ok(true) => {
                add(&self.metrics.bytes_put, parts.read);
                Ok(Put::Stored(parts.read))
            }
            // Gone again in between: the caller may repeat.
            Ok(false) => match self.head(key).await? {
                Some(size) => Ok(Put::Existed(size)),
                None => Err(unavailable("an object came and went".to_owned())),
            },
            Err(error) => {
                if matches!(error, BlobError::TooLarge { .. }) {
                    add(&self.metrics.too_large, 1);
                }
                Err(error)
            }
        }
    }

    /// Whether it was stored; not when there is one already.
    async fn put_parts(&self, key: &BlobKey, parts: &mut Parts<'_>) -> Result<bool, BlobError> {
        let path = Path::from(key.as_str());
        let first = parts.next().await?;
        let deadline = self.settings.part_timeout();
        if parts.is_last() {
            let options = PutOptions::from(PutMode::Create);
            let put = self.store.put_opts(&path, first, options);
            return match self.timed_raw(deadline, put).await? {
                Ok(_) => Ok(true),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
                // Some services refuse without reading the body, and the refusal is lost with the connection.
                Err(error) => match (self.failed(error), self.head(key).await) {
                    (_, Ok(Some(_))) => Ok(false),
                    (error, _) => Err(error),
                },
            };
        }
        let id = self
            .timed(deadline, self.store.create_multipart(&path))
            .await?;
        let mut upload = Upload {
            store: Arc::clone(&self.store),
            path,
            id: Some(id.clone()),
        };
        let mut done: Vec<PartId> = Vec::new();
        let mut part = first;
        loop {
            let put = self.store.put_part(&upload.path, &id, done.len(), part);
            done.push(self.timed(deadline, put).await?);
            if parts.is_last() {
                break;
            }
            part = parts.next().await?;
        }
        let is_made = self.complete_parts(key, &id, &done).await?;
        if is_made {
            upload.id = None;
        }
        Ok(is_made)
    }

    /// Makes the object of its parts, unless there is one: the driver's own call would replace it.
    async fn complete_parts(
        &self,
        key: &BlobKey,
        id: &str,
        parts: &[PartId],
    ) -> Result<bool, BlobError> {
        let mut body = String::from("<CompleteMultipartUpload>");
        for (i, part) in parts.iter().enumerate() {
            let number = i + 1;
            let tag = escaped(&part.content_id);
            body.push_str(&format!(
                "<Part><ETag>{tag}</ETag><PartNumber>{number}</PartNumber></Part>"
            ));
        }
        body.push_str("</CompleteMultipartUpload>");
        let rest = format!("/{}?uploadId={}", key.as_str(), in_query(id));
        let only_new = [("if-none-match", "*"), ("content-type", "application/xml")];
        let deadline = self.settings.part_timeout();
        add(&self.metrics.calls, 1);
        let reply = self
            .requests
            .send("POST", &rest, &only_new, body, deadline)
            .await
            .map_err(|no| {
                add(&self.metrics.errors, 1);
                unavailable(no.why())
            })?;
        // A failure found late comes with status 200 and an error as the body.
        match (reply.status, reply.code()) {
            (200, "") => Ok(true),
            (409 | 412, _) | (_, "PreconditionFailed") => Ok(false),
            (status, code) => {
                add(&self.metrics.errors, 1);
                Err(unavailable(format!(
                    "completing an upload: HTTP {status}, {code}"
                )))
            }
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}

fn in_query(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' => {
                encoded.push(byte.into());
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
