//! The store on Cassandra 5.
//!
//! ```text
//! events  ((conversation, bucket), seq)   meta, body     bucket = seq / 5000
//! state   ((conversation), key)           value          head, grants and senders: one read
//! cursors ((conversation), user)          delivered, read
//! ```
//!
//! - **Repeats are harmless** because of the write timestamps. An event row is stamped with the
//!   event's ts, so that retries, zombies and late hints write the same row again. A row of state
//!   is stamped with the ts of its record, so that the later record's stays whoever writes late.
//!   Each number of a cursor is stamped with itself, so it never goes back. The timestamps are data:
//!   nothing else may write these tables, and no row of `cursors` may ever be deleted (every number
//!   is below a deletion's time).
//! - **Readable by everyone**: writes and reads wait for a quorum.
//! - **Durable on return**, so [`Store::settle`] gives the position back: the nodes must have
//!   `commitlog_sync: group` or `batch`, which [`CassandraStore::open`] checks.
//! - Batches hold rows of one partition, which Cassandra applies as one write.
//! - All grants of a conversation share its partition, huge groups' too: a million members are
//!   about 40 MB in one partition, which Cassandra bears. Spreading them over slots would be
//!   another schema version.
//! - Events expire after a year (`events_ttl_days`), state and cursors never.

mod connect;
mod flight;
mod hedge;
mod metrics;
mod open;
mod read;
mod requests;
mod rows;
mod schema;
mod settings;
mod write;

use std::sync::Arc;

use tidings_core::ids::{ConversationId, Partition, Position, Seq, UserId};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::store::{Store, StoreResult};
use tidings_core::rows::{CursorRow, EventRow, MemberRows, StateKey, StateRow};

pub use metrics::{Metrics, Requests};
pub use schema::{BUCKET, SCHEMA, migrate};
pub use settings::{Consistency, Settings};

use crate::breaker::BreakerMetrics;
use requests::Client;

/// The store. Cheap to clone; all clones share connections.
#[derive(Clone)]
pub struct CassandraStore {
    client: Arc<Client>,
}

impl CassandraStore {
    /// The figures of the breakers: of reads, of writes.
    pub fn breakers(&self) -> [Arc<BreakerMetrics>; 2] {
        let breakers = &self.client.breakers;
        [&breakers.reads, &breakers.writes].map(|breaker| Arc::clone(breaker.metrics()))
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.client.metrics
    }

    /// The statements' bytes for a row, as the store writes them: for measurements.
    #[doc(hidden)]
    pub fn encoded_event(row: &EventRow) -> Vec<u8> {
        rows::encode_event(row)
    }
}

impl Store for CassandraStore {
    fn put_events(&self, _: Partition, rows: Vec<EventRow>) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.client.bounded_write(self.client.put_events(rows)))
    }

    fn put_state(&self, _: Partition, rows: Vec<StateRow>) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.client.bounded_write(self.client.put_state(rows)))
    }

    fn put_cursors(&self, _: Partition, rows: Vec<CursorRow>) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.client.bounded_write(self.client.put_cursors(rows)))
    }

    /// Everything put is durable already.
    fn settle(&self, _: Partition, position: Position) -> BoxFuture<'_, StoreResult<Position>> {
        Box::pin(std::future::ready(Ok(position)))
    }

    fn read_events(
        &self,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        bytes_max: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<EventRow>>> {
        let page = flight::PageKey {
            conversation,
            from,
            to,
            bytes_max,
        };
        Box::pin(
            self.client
                .bounded_read(flight::read_page(&self.client, page)),
        )
    }

    fn read_events_since(
        &self,
        conversation: ConversationId,
        from: Position,
    ) -> BoxFuture<'_, StoreResult<Vec<EventRow>>> {
        let client = &self.client;
        Box::pin(client.bounded_read(client.events_since(conversation, from)))
    }

    fn read_state(
        &self,
        conversation: ConversationId,
        keys: Vec<StateKey>,
    ) -> BoxFuture<'_, StoreResult<Vec<Option<StateRow>>>> {
        let client = &self.client;
        Box::pin(client.bounded_read(client.state(conversation, keys)))
    }

    fn read_cursors(
        &self,
        conversation: ConversationId,
        users: Vec<UserId>,
    ) -> BoxFuture<'_, StoreResult<Vec<CursorRow>>> {
        let client = &self.client;
        Box::pin(client.bounded_read(client.cursors(conversation, users)))
    }

    fn members_together(&self) -> usize {
        read::MEMBERS
    }

    fn read_members(
        &self,
        conversation: ConversationId,
    ) -> BoxFuture<'_, StoreResult<Option<MemberRows>>> {
        let client = &self.client;
        Box::pin(client.bounded_read(client.members(conversation)))
    }
}
