//! The port itself.

use std::future::Future;
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use tidings_core::ports::blobs::{
    Answer, BLOB_PAGE_MAX, BlobError, BlobKey, BlobPage, BlobSource, Blobs, Put,
};

use super::S3Blobs;
use super::metrics::add;

/// When to repeat a call that found S3 away.
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(super) fn unavailable(cause: String) -> BlobError {
    let mut cause = cause.replace(['\r', '\n'], " ");
    if cause.len() > 300 {
        let end = (0..=300)
            .rev()
            .find(|&i| cause.is_char_boundary(i))
            .unwrap_or(0);
        cause.truncate(end);
    }
    BlobError::Unavailable {
        retry_after: RETRY_AFTER,
        cause,
    }
}

pub(super) fn sort(error: &Error) -> BlobError {
    if matches!(error, Error::NotFound { .. }) {
        return BlobError::NotFound;
    }
    let said = error.to_string();
    let full = ["InsufficientStorage", "StorageFull", "QuotaExceeded"];
    if full.iter().any(|code| said.contains(code)) {
        return BlobError::Full;
    }
    unavailable(said)
}

impl S3Blobs {
    /// A call within its time; what it answered, good or bad.
    pub(super) async fn timed_raw<T>(
        &self,
        deadline: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<Result<T, Error>, BlobError> {
        add(&self.metrics.calls, 1);
        let pass = self
            .breaker
            .enter()
            .map_err(|open| unavailable(open.to_string()))?;
        let begun = Instant::now();
        match tokio::time::timeout(deadline, work).await {
            Ok(answer) => {
                let failed = answer.as_ref().err().map(sort);
                pass.end(!matches!(failed, Some(BlobError::Unavailable { .. })));
                add(&self.metrics.answered, 1);
                add(&self.metrics.latency_us, begun.elapsed().as_micros() as u64);
                Ok(answer)
            }
            Err(_) => {
                pass.end(false);
                add(&self.metrics.timeouts, 1);
                let cause = format!("no answer in {} ms", deadline.as_millis());
                Err(unavailable(cause))
            }
        }
    }

    /// The same for calls whose only answer is the good one.
    pub(super) async fn timed<T>(
        &self,
        deadline: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, BlobError> {
        let answer = self.timed_raw(deadline, work).await?;
        answer.map_err(|error| self.failed(error))
    }

    /// Counts and sorts.
    pub(super) fn failed(&self, error: Error) -> BlobError {
        let error = sort(&error);
        if error != BlobError::NotFound {
            add(&self.metrics.errors, 1);
        }
        error
    }

    async fn size(&self, key: &BlobKey) -> Result<Option<u64>, BlobError> {
        let path = Path::from(key.as_str());
        match self
            .timed(self.settings.timeout(), self.store.head(&path))
            .await
        {
            Ok(meta) => Ok(Some(meta.size)),
            Err(BlobError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn read(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes, BlobError> {
        if range.start >= range.end {
            // S3 has no empty range.
            let size = self.size(key).await?.ok_or(BlobError::NotFound)?;
            return if range.start == range.end && range.end <= size {
                Ok(Bytes::new())
            } else {
                Err(BlobError::Range { size })
            };
        }
        let path = Path::from(key.as_str());
        let wanted = range.end - range.start;
        let work = async {
            let options = GetOptions {
                range: Some(GetRange::Bounded(range.clone())),
                ..GetOptions::default()
            };
            let found = self.store.get_opts(&path, options).await?;
            let size = found.meta.size;
            // S3 cuts a range at the object's end; nothing of that is read.
            if found.range != range {
                return Ok((size, None));
            }
            Ok((size, Some(found.bytes().await?)))
        };
        let answer = self.timed_raw(self.settings.part_timeout(), work).await?;
        match answer {
            Ok((_, Some(bytes))) if bytes.len() as u64 == wanted => {
                add(&self.metrics.bytes_got, wanted);
                Ok(bytes)
            }
            Ok((size, None)) => Err(BlobError::Range { size }),
            Ok(_) => Err(unavailable("an answer of another size".to_owned())),
            // A range behind the end is an error there, and not to be told from others by its kind.
            Err(error) => match self.failed(error) {
                BlobError::NotFound => Err(BlobError::NotFound),
                error => match self.size(key).await? {
                    Some(size) if range.end > size => Err(BlobError::Range { size }),
                    Some(_) => Err(error),
                    None => Err(BlobError::NotFound),
                },
            },
        }
    }

    async fn page(
        &self,
        prefix: &str,
        after: Option<&BlobKey>,
        limit: usize,
    ) -> Result<BlobPage, BlobError> {
        let limit = limit.min(BLOB_PAGE_MAX);
        let mut page = BlobPage::default();
        let mut after = after.map(|key| key.as_str().to_owned());
        // One more than wanted tells whether there are more; what isn't a key of ours is passed over.
        loop {
            let options = PaginatedListOptions {
                offset: after.clone(),
                max_keys: Some((limit + 1 - page.keys.len()).min(BLOB_PAGE_MAX)),
                ..PaginatedListOptions::default()
            };
            let prefix = Some(prefix).filter(|prefix| !prefix.is_empty());
            let listed = self
                .timed(
                    self.settings.timeout(),
                    self.store.list_paginated(prefix, options),
                )
                .await?;
            let is_last = listed.page_token.is_none();
            let objects = listed.result.objects;
            after = objects.last().map(|o| o.location.to_string()).or(after);
            let is_empty = objects.is_empty();
            for object in objects {
                if let Some(key) = BlobKey::new(object.location.as_ref()) {
                    if page.keys.len() == limit {
                        page.more = true;
                        return Ok(page);
                    }
                    page.keys.push(key);
                }
            }
            if is_last || is_empty {
                return Ok(page);
            }
        }
    }
}

impl Blobs for S3Blobs {
    fn put_if_absent<'a>(
        &'a self,
        key: &'a BlobKey,
        source: &'a mut dyn BlobSource,
        bytes_max: u64,
    ) -> Answer<'a, Put> {
        Box::pin(self.put(key, source, bytes_max))
    }

    fn get<'a>(&'a self, key: &'a BlobKey, range: Range<u64>) -> Answer<'a, Bytes> {
        Box::pin(self.read(key, range))
    }

    fn head<'a>(&'a self, key: &'a BlobKey) -> Answer<'a, Option<u64>> {
        Box::pin(self.size(key))
    }

    fn delete<'a>(&'a self, key: &'a BlobKey) -> Answer<'a, bool> {
        Box::pin(async move {
            // S3 doesn't say whether there was one.
            let was_there = self.size(key).await?.is_some();
            if was_there {
                let path = Path::from(key.as_str());
                match self
                    .timed(self.settings.timeout(), self.store.delete(&path))
                    .await
                {
                    Ok(()) | Err(BlobError::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(was_there)
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a BlobKey>,
        limit: usize,
    ) -> Answer<'a, BlobPage> {
        Box::pin(self.page(prefix, after, limit))
    }
}
