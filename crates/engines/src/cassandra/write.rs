//! Writing: rows by partition, a request for some rows of one, many requests side by side.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use scylla::errors::PrepareError;
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::{Batch, BatchStatement, BatchType};
use scylla::statement::prepared::PreparedStatement;
use tidings_core::ports::store::{StoreError, StoreResult};
use tidings_core::rows::{CursorRow, EventRow, StateRow};

use super::requests::{BatchOptions, Client, Preparer};
use super::rows;
use super::schema::BUCKET;

/// Roughly what a row is on the wire besides its bytes.
const ROW_OVERHEAD: usize = 64;

/// A statement that writes a row, alone and in batches.
struct Writer {
    single: PreparedStatement,
    /// Of 2 rows, 3 rows and so on: made when first needed.
    batches: Vec<OnceLock<Batch>>,
    options: BatchOptions,
}

impl Writer {
    async fn prepare(prepare: &Preparer<'_>, text: &str) -> Result<Writer, PrepareError> {
        let sizes = prepare.settings().batch_rows_max.saturating_sub(1);
        Ok(Writer {
            single: prepare.write(text).await?,
            batches: (0..sizes).map(|_| OnceLock::new()).collect(),
            options: prepare.batch_options(),
        })
    }

    /// Writes rows of one partition, at most `batch_rows_max`.
    async fn write<R: SerializeRow>(&self, client: &Client, rows: &[R]) -> StoreResult<()> {
        match rows {
            [] => Ok(()),
            [row] => client.execute(&self.single, row).await,
            rows => {
                let batch = self.batches[rows.len() - 2].get_or_init(|| self.batch(rows.len()));
                client.batch(batch, rows).await
            }
        }
    }

    fn batch(&self, len: usize) -> Batch {
        let statement = || BatchStatement::PreparedStatement(self.single.clone());
        let statements = (0..len).map(|_| statement()).collect();
        let mut batch = Batch::new_with_statements(BatchType::Unlogged, statements);
        self.options.apply(&mut batch);
        batch
    }
}

/// The statements that write.
pub(super) struct Writes {
    events: Writer,
    state: Writer,
    delivered: PreparedStatement,
    read: PreparedStatement,
    cursors: BatchOptions,
}

impl Writes {
    pub(super) async fn prepare(prepare: &Preparer<'_>) -> Result<Writes, PrepareError> {
        let events = "INSERT INTO {ks}.events (conversation, bucket, seq, meta, body) \
                      VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?";
        let state = "INSERT INTO {ks}.state (conversation, key, value) \
                     VALUES (?, ?, ?) USING TIMESTAMP ?";
        let cursor = |column| {
            format!(
                "UPDATE {{ks}}.cursors USING TIMESTAMP ? SET {column} = ? \
                 WHERE conversation = ? AND user = ?"
            )
        };
        Ok(Writes {
            events: Writer::prepare(prepare, events).await?,
            state: Writer::prepare(prepare, state).await?,
            delivered: prepare.write(&cursor("delivered")).await?,
            read: prepare.write(&cursor("read")).await?,
            cursors: prepare.batch_options(),
        })
    }
}

/// Conversation, bucket, seq, meta, body, timestamp.
type EventValues = (i64, i64, i64, Vec<u8>, Bytes, i64);
/// Conversation, key, value, timestamp.
type StateValues = (i64, Vec<u8>, Vec<u8>, i64);

impl Client {
    pub(super) async fn put_events(&self, rows: Vec<EventRow>) -> StoreResult<()> {
        let mut values = rows
            .into_iter()
            .map(|row| {
                let bucket = signed(row.seq / BUCKET, "seq")?;
                let meta = rows::encode_event(&row);
                let (seq, ts) = (signed(row.seq, "seq")?, signed(row.ts, "ts")?);
                Ok((row.conversation.0 as i64, bucket, seq, meta, row.body, ts))
            })
            .collect::<StoreResult<Vec<EventValues>>>()?;
        values.sort_by_key(|row| (row.0, row.1, row.2));
        self.put(
            &self.writes.events,
            &values,
            |row| (row.0, row.1),
            |row| row.3.len() + row.4.len(),
        )
        .await
    }

    pub(super) async fn put_state(&self, rows: Vec<StateRow>) -> StoreResult<()> {
        let mut values = rows
            .iter()
            .map(|row| {
                let (key, value) = (rows::encode_key(row.key), rows::encode_state(row));
                let ts = signed(row.ts, "ts")?;
                Ok((row.conversation.0 as i64, key, value, ts))
            })
            .collect::<StoreResult<Vec<StateValues>>>()?;
        values.sort_by_key(|row| row.0);
        self.put(
            &self.writes.state,
            &values,
            |row| row.0,
            |row| row.1.len() + row.2.len(),
        )
        .await
    }

    /// Rows sorted by partition, in bounded batches, so many of them at the same time.
    async fn put<R: SerializeRow, P: PartialEq>(
        &self,
        writer: &Writer,
        rows: &[R],
        partition: impl Fn(&R) -> P,
        bytes: impl Fn(&R) -> usize,
    ) -> StoreResult<()> {
        let mut batches = Vec::new();
        for run in rows.chunk_by(|a, b| partition(a) == partition(b)) {
            self.cut(run, &bytes, &mut batches);
        }
        if let [batch] = batches.as_slice() {
            writer.write(self, &rows[batch.clone()]).await?;
        } else {
            stream::iter(batches)
                .map(|batch| writer.write(self, &rows[batch]))
                .buffer_unordered(self.settings.concurrent_batches)
                .try_for_each(|()| std::future::ready(Ok(())))
                .await?;
        }
        self.wrote(rows.len());
        Ok(())
    }

    /// Cuts the next rows, which are of one partition, into batches of so many rows and bytes.
    fn cut<R>(
        &self,
        mut rows: &[R],
        bytes: &impl Fn(&R) -> usize,
        batches: &mut Vec<Range<usize>>,
    ) {
        while !rows.is_empty() {
            let mut total = 0;
            let fitting = rows.iter().take_while(|row| {
                total += bytes(row) + ROW_OVERHEAD;
                total <= self.settings.batch_bytes_max
            });
            let len = fitting
                .count()
                .clamp(1, self.settings.batch_rows_max.min(rows.len()));
            let begin = batches.last().map_or(0, |batch| batch.end);
            batches.push(begin..begin + len);
            rows = &rows[len..];
        }
    }

    /// Each number is stamped with itself. Who has read a message has got it: a number of delivered
    /// that isn't greater says nothing and isn't written, nor is 0.
    pub(super) async fn put_cursors(&self, mut rows: Vec<CursorRow>) -> StoreResult<()> {
        rows.sort_by_key(|row| row.conversation);
        let mut batches = Vec::new();
        for run in rows.chunk_by(|a, b| a.conversation == b.conversation) {
            self.cut(run, &|_| 0, &mut batches);
        }
        stream::iter(batches)
            .map(|batch| self.put_cursor_batch(&rows[batch]))
            .buffer_unordered(self.settings.concurrent_batches)
            .try_for_each(|()| std::future::ready(Ok(())))
            .await?;
        self.wrote(rows.len());
        Ok(())
    }

    async fn put_cursor_batch(&self, rows: &[CursorRow]) -> StoreResult<()> {
        let mut moves = Vec::with_capacity(rows.len() * 2);
        for row in rows {
            let delivered = if row.delivered > row.read {
                row.delivered
            } else {
                0
            };
            for (number, statement) in [
                (delivered, &self.writes.delivered),
                (row.read, &self.writes.read),
            ] {
                if number > 0 {
                    let number = signed(number, "cursor")?;
                    let of = (row.conversation.0 as i64, row.user.0 as i64);
                    moves.push((statement, (number, number, of.0, of.1)));
                }
            }
        }
        match moves.as_slice() {
            [] => Ok(()),
            [(statement, values)] => self.execute(statement, values).await,
            moves => {
                let mut batch = Batch::new(BatchType::Unlogged);
                for (statement, _) in moves {
                    batch.append_statement((*statement).clone());
                }
                self.writes.cursors.apply(&mut batch);
                let values: Vec<_> = moves.iter().map(|(_, values)| values).collect();
                self.batch(&batch, values.as_slice()).await
            }
        }
    }

    fn wrote(&self, rows: usize) {
        self.metrics
            .rows_written
            .fetch_add(rows as u64, Ordering::Relaxed);
    }
}

/// Seqs and times fit Cassandra's signed numbers for longer than anything lasts.
pub(super) fn signed(number: u64, what: &str) -> StoreResult<i64> {
    i64::try_from(number)
        .map_err(|_| StoreError::Corrupt(format!("{what} {number} is beyond what can be stored")))
}
