//! Reading: pages of events forwards and backwards, rows of state, cursors.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use scylla::errors::PrepareError;
use scylla::response::query_result::QueryRowsResult;
use scylla::statement::prepared::PreparedStatement;
use tidings_core::ids::{ConversationId, Position, Seq, UserId};
use tidings_core::ports::store::{StoreError, StoreResult};
use tidings_core::rows::{CursorRow, EventRow, MemberRows, StateKey, StateRow, StateValue};

use super::metrics::count;
use super::requests::{Client, Preparer};
use super::rows;
use super::schema::BUCKET;
use super::write::signed;

/// Rows of one answer.
const PAGE_ROWS: usize = 500;
/// Rows of the first answer where the last ones are looked for: mostly a few are wanted.
const LAST_ROWS: usize = 64;
/// Bytes of a body that pages are planned with: a page of short messages is one answer, and one
/// of long ones isn't many times what was asked for.
const BODY_PLANNED: usize = 128;
/// Keys of one request for state or cursors.
const KEYS: usize = 100;
/// Members whose rows are read at once. A node reads some hundred neighbouring rows as quickly as a few: what a request
/// costs it is the request.
pub(super) const MEMBERS: usize = 256;
/// Requests side by side for one call.
const SIDE_BY_SIDE: usize = 16;
/// The greatest seq there can be.
const SEQ_MAX: Seq = i64::MAX as Seq;

/// The statements that read.
pub(super) struct Reads {
    events: PreparedStatement,
    last_events: PreparedStatement,
    any_event: PreparedStatement,
    state: PreparedStatement,
    cursors: PreparedStatement,
    all_grants: PreparedStatement,
    all_cursors: PreparedStatement,
}

impl Reads {
    pub(super) async fn prepare(prepare: &Preparer<'_>) -> Result<Reads, PrepareError> {
        let events = "SELECT seq, writetime(meta), meta, body FROM {ks}.events \
                      WHERE conversation = ? AND bucket = ? AND seq >= ? AND seq <= ?";
        Ok(Reads {
            events: prepare.read(&format!("{events} LIMIT ?")).await?,
            last_events: prepare
                .read(&format!("{events} ORDER BY seq DESC LIMIT ?"))
                .await?,
            any_event: prepare
                .read("SELECT seq FROM {ks}.events WHERE conversation = ? AND bucket = ? LIMIT 1")
                .await?,
            state: prepare
                .read(
                    "SELECT key, writetime(value), value FROM {ks}.state \
                     WHERE conversation = ? AND key IN ?",
                )
                .await?,
            cursors: prepare
                .read(
                    "SELECT user, delivered, read FROM {ks}.cursors \
                     WHERE conversation = ? AND user IN ?",
                )
                .await?,
            all_grants: prepare
                .read(
                    "SELECT key, writetime(value), value FROM {ks}.state \
                     WHERE conversation = ? AND key < ? LIMIT ?",
                )
                .await?,
            all_cursors: prepare
                .read(
                    "SELECT user, delivered, read FROM {ks}.cursors \
                     WHERE conversation = ? LIMIT ?",
                )
                .await?,
        })
    }
}

/// Some rows of one bucket.
struct Rows {
    rows: Vec<EventRow>,
    /// Rows that Cassandra gave; some may have lost their event by expiring.
    given: usize,
    /// The last of them, in the order asked.
    last: Seq,
    /// Whether there may be more behind the last.
    full: bool,
}

/// What a range gave.
pub(super) struct Page {
    pub(super) rows: Vec<EventRow>,
    /// Whether no row is missing in it, so that it is what anybody would read at any later time.
    pub(super) whole: bool,
}

fn bucket_end(bucket: u64) -> Seq {
    (bucket * BUCKET + (BUCKET - 1)).min(SEQ_MAX)
}

impl Client {
    /// The events of a range, read a second time where some are missing.
    pub(super) async fn page(
        &self,
        c: ConversationId,
        range: RangeInclusive<Seq>,
        bytes_max: usize,
    ) -> StoreResult<Page> {
        let first = self.range(c, &range, bytes_max).await?;
        if first.whole {
            return Ok(first);
        }
        // Ranges are contiguous, so a hole is a copy that is behind, or the end.
        let open = *range.end() >= SEQ_MAX && is_contiguous(&first.rows);
        if open || range.is_empty() {
            return Ok(first);
        }
        count(&self.metrics.reread);
        let second = self.range(c, &range, bytes_max).await?;
        Ok(if second.rows.len() > first.rows.len() || second.whole {
            second
        } else {
            first
        })
    }

    async fn range(
        &self,
        c: ConversationId,
        range: &RangeInclusive<Seq>,
        bytes_max: usize,
    ) -> StoreResult<Page> {
        let (from, to) = ((*range.start()).max(1), (*range.end()).min(SEQ_MAX));
        let mut page: Vec<EventRow> = Vec::new();
        let mut bytes = 0usize;
        let mut filled = false;
        let mut next = from;
        let mut top = None;
        while next <= to && !filled {
            let bucket = next / BUCKET;
            let end = bucket_end(bucket).min(to);
            let limit = (bytes_max.saturating_sub(bytes) / BODY_PLANNED).clamp(16, PAGE_ROWS);
            let found = self
                .rows(&self.reads.events, c, bucket, next, end, limit)
                .await?;
            for row in found.rows {
                if !filled {
                    bytes = bytes.saturating_add(row.body.len());
                    page.push(row);
                    filled = bytes >= bytes_max;
                }
            }
            next = if found.full {
                found.last + 1
            } else if found.given == 0 && end < to {
                // Behind the end, or before the first that hasn't expired.
                let top = match top {
                    Some(top) => top,
                    None => *top.insert(self.top_bucket(c).await?),
                };
                match self.first_bucket(c, bucket + 1, top).await? {
                    Some(bucket) => bucket * BUCKET,
                    None => break,
                }
            } else {
                end + 1
            };
        }
        let begins = page.first().is_some_and(|row| row.seq == from);
        let ends = filled || page.last().is_some_and(|row| row.seq == to);
        let whole = from > to || (begins && ends && is_contiguous(&page));
        Ok(Page { rows: page, whole })
    }

    /// Rows of a bucket from one end of a range.
    async fn rows(
        &self,
        statement: &PreparedStatement,
        c: ConversationId,
        bucket: u64,
        from: Seq,
        to: Seq,
        limit: usize,
    ) -> StoreResult<Rows> {
        let limit_sent = i32::try_from(limit).unwrap_or(i32::MAX);
        let key = (c.0 as i64, signed(bucket, "bucket")?);
        let values = (
            key.0,
            key.1,
            signed(from, "seq")?,
            signed(to, "seq")?,
            limit_sent,
        );
        let result = self.select(statement, values).await?;
        let given = result.rows_num();
        let mut rows = Vec::with_capacity(given);
        let mut last = 0;
        type Columns<'a> = (i64, Option<i64>, Option<&'a [u8]>, Option<&'a [u8]>);
        for columns in result
            .rows::<Columns<'_>>()
            .map_err(|e| corrupt("events", c, &e))?
        {
            let (seq, ts, meta, body) = columns.map_err(|e| corrupt("events", c, &e))?;
            let name = || format!("event {seq} of conversation {c}");
            let seq = unsigned(seq, name)?;
            last = seq;
            // A body that a redaction wrote outlives the event that it belonged to.
            let (Some(ts), Some(meta), Some(body)) = (ts, meta, body) else {
                continue;
            };
            let row = rows::decode_event(c, seq, unsigned(ts, name)?, meta, body)
                .map_err(|error| StoreError::Corrupt(format!("{}: {error}", name())))?;
            rows.push(row);
        }
        Ok(Rows {
            rows,
            given,
            last,
            full: given >= limit,
        })
    }

    /// The bucket of the highest event: the head row's, or one of the next.
    async fn top_bucket(&self, c: ConversationId) -> StoreResult<u64> {
        let mut top = self.head_bucket(c).await?;
        while self.has_events(c, top + 1).await? {
            top += 1;
        }
        Ok(top)
    }

    async fn head_bucket(&self, c: ConversationId) -> StoreResult<u64> {
        let head = self.state(c, vec![StateKey::Head]).await?;
        Ok(match head.first() {
            Some(Some(StateRow {
                value: StateValue::Head(head),
                ..
            })) => head.seq / BUCKET,
            _ => 0,
        })
    }

    async fn has_events(&self, c: ConversationId, bucket: u64) -> StoreResult<bool> {
        let values = (c.0 as i64, signed(bucket, "bucket")?);
        let found = self.select(&self.reads.any_event, values).await?;
        Ok(found.rows_num() > 0)
    }

    /// The lowest bucket of `from..=top` with events. Events expire oldest first, so the empty ones
    /// come first, and halving finds it.
    async fn first_bucket(
        &self,
        c: ConversationId,
        from: u64,
        top: u64,
    ) -> StoreResult<Option<u64>> {
        let (mut low, mut high) = (from, top);
        if low > high || !self.has_events(c, high).await? {
            return Ok(None);
        }
        while low < high {
            let middle = low + (high - low) / 2;
            if self.has_events(c, middle).await? {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(Some(high))
    }

    /// The events at or after a position, read a second time where some are missing.
    pub(super) async fn events_since(
        &self,
        c: ConversationId,
        from: Position,
    ) -> StoreResult<Vec<EventRow>> {
        let first = Box::pin(self.downwards(c, from)).await?;
        if is_contiguous(&first) {
            return Ok(first);
        }
        count(&self.metrics.reread);
        let second = Box::pin(self.downwards(c, from)).await?;
        Ok(if second.len() >= first.len() {
            second
        } else {
            first
        })
    }

    async fn downwards(&self, c: ConversationId, from: Position) -> StoreResult<Vec<EventRow>> {
        let mut bucket = self.head_bucket(c).await?;
        // The head row is written after the events, so a few may be in the next bucket.
        let (mut page, mut above) =
            futures_util::try_join!(self.last_rows(c, bucket), self.last_rows(c, bucket + 1))?;
        while above.given > 0 {
            bucket += 1;
            page = above;
            above = self.last_rows(c, bucket + 1).await?;
        }
        let mut found = Vec::new();
        let mut whole_bucket = true;
        loop {
            for row in page.rows {
                if row.position < from {
                    found.reverse();
                    return Ok(found);
                }
                found.push(row);
            }
            let begin = bucket * BUCKET;
            if page.full && page.last > begin {
                let statement = &self.reads.last_events;
                page = self
                    .rows(statement, c, bucket, begin, page.last - 1, PAGE_ROWS)
                    .await?;
                whole_bucket = false;
            } else if bucket == 0 || (whole_bucket && page.given == 0) {
                // The first bucket, or one whose events have expired, and so have older ones.
                found.reverse();
                return Ok(found);
            } else {
                bucket -= 1;
                page = self.last_rows(c, bucket).await?;
                whole_bucket = true;
            }
        }
    }

    /// The last rows of a bucket, backwards.
    async fn last_rows(&self, c: ConversationId, bucket: u64) -> StoreResult<Rows> {
        let (begin, end) = (bucket * BUCKET, bucket_end(bucket));
        let statement = &self.reads.last_events;
        self.rows(statement, c, bucket, begin, end, LAST_ROWS).await
    }

    /// Rows of state in the order asked.
    pub(super) async fn state(
        &self,
        c: ConversationId,
        keys: Vec<StateKey>,
    ) -> StoreResult<Vec<Option<StateRow>>> {
        let asked: Vec<Vec<u8>> = keys.iter().map(|key| rows::encode_key(*key)).collect();
        let chunks: Vec<Vec<Vec<u8>>> = asked.chunks(KEYS).map(<[_]>::to_vec).collect();
        let answers: Vec<QueryRowsResult> = stream::iter(chunks)
            .map(|keys| self.select(&self.reads.state, (c.0 as i64, keys)))
            .buffer_unordered(SIDE_BY_SIDE)
            .try_collect()
            .await?;
        let mut found: HashMap<StateKey, StateRow> = HashMap::new();
        for answer in &answers {
            let rows = state_rows(c, answer)?;
            found.extend(rows.into_iter().map(|row| (row.key, row)));
        }
        Ok(keys.iter().map(|key| found.get(key).copied()).collect())
    }

    /// The cursors of those users who have one, in the order asked.
    pub(super) async fn cursors(
        &self,
        c: ConversationId,
        users: Vec<UserId>,
    ) -> StoreResult<Vec<CursorRow>> {
        let asked: Vec<i64> = users.iter().map(|user| user.0 as i64).collect();
        let chunks: Vec<Vec<i64>> = asked.chunks(KEYS).map(<[_]>::to_vec).collect();
        let answers: Vec<QueryRowsResult> = stream::iter(chunks)
            .map(|users| self.select(&self.reads.cursors, (c.0 as i64, users)))
            .buffer_unordered(SIDE_BY_SIDE)
            .try_collect()
            .await?;
        let mut found: HashMap<UserId, CursorRow> = HashMap::new();
        for answer in &answers {
            let rows = cursor_rows(c, answer)?;
            found.extend(rows.into_iter().map(|row| (row.user, row)));
        }
        Ok(users.iter().filter_map(|user| found.remove(user)).collect())
    }

    /// The rows of the head and of all members, unless these are too many.
    pub(super) async fn members(&self, c: ConversationId) -> StoreResult<Option<MemberRows>> {
        // One more than there may be; and the head has a row among the grants.
        let most = MEMBERS as i32 + 1;
        let grants = (c.0 as i64, rows::first_sender_key(), most + 1);
        let (state, cursors) = futures_util::try_join!(
            self.select(&self.reads.all_grants, grants),
            self.select(&self.reads.all_cursors, (c.0 as i64, most)),
        )?;
        if state.rows_num() > MEMBERS + 1 || cursors.rows_num() > MEMBERS {
            return Ok(None);
        }
        Ok(Some(MemberRows {
            state: state_rows(c, &state)?,
            cursors: cursor_rows(c, &cursors)?,
        }))
    }
}

fn state_rows(c: ConversationId, answer: &QueryRowsResult) -> StoreResult<Vec<StateRow>> {
    type Columns<'a> = (&'a [u8], Option<i64>, Option<&'a [u8]>);
    let mut found = Vec::with_capacity(answer.rows_num());
    for columns in answer
        .rows::<Columns<'_>>()
        .map_err(|e| corrupt("state", c, &e))?
    {
        let (key, ts, value) = columns.map_err(|e| corrupt("state", c, &e))?;
        let (Some(ts), Some(value)) = (ts, value) else {
            continue;
        };
        let key = rows::decode_key(key)
            .map_err(|error| StoreError::Corrupt(format!("conversation {c}: {error}")))?;
        let name = || format!("{key:?} of conversation {c}");
        let row = rows::decode_state(c, key, unsigned(ts, name)?, value)
            .map_err(|error| StoreError::Corrupt(format!("{}: {error}", name())))?;
        found.push(row);
    }
    Ok(found)
}

fn cursor_rows(c: ConversationId, answer: &QueryRowsResult) -> StoreResult<Vec<CursorRow>> {
    type Columns = (i64, Option<i64>, Option<i64>);
    let mut found = Vec::with_capacity(answer.rows_num());
    for columns in answer
        .rows::<Columns>()
        .map_err(|e| corrupt("cursors", c, &e))?
    {
        let (user, delivered, read) = columns.map_err(|e| corrupt("cursors", c, &e))?;
        let user = UserId(user as u64);
        let name = || format!("cursor of user {user} in conversation {c}");
        if delivered.is_none() && read.is_none() {
            continue;
        }
        let read = unsigned(read.unwrap_or(0), name)?;
        found.push(CursorRow {
            conversation: c,
            user,
            // Not written when it is no more than what was read.
            delivered: unsigned(delivered.unwrap_or(0), name)?.max(read),
            read,
        });
    }
    Ok(found)
}

fn is_contiguous(rows: &[EventRow]) -> bool {
    rows.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1)
}

fn unsigned(number: i64, name: impl Fn() -> String) -> StoreResult<u64> {
    u64::try_from(number)
        .map_err(|_| StoreError::Corrupt(format!("{}: {number} is negative", name())))
}

/// Columns of other types than ours.
fn corrupt(table: &str, c: ConversationId, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("{table} of conversation {c}: {error}"))
}
