//! One read for all who ask for the same page at the same time.
//!
//! A page that is there in full is the same whenever it is read, so anybody may have it. Where rows
//! are missing a reader must see what was put before it asked: it takes only what a read found that
//! began after that.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};
use tidings_core::ids::{ConversationId, Seq};
use tidings_core::ports::store::StoreResult;
use tidings_core::rows::EventRow;

use super::metrics::count;
use super::read::Page;
use super::requests::Client;

/// Names a page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageKey {
    /// Of which conversation.
    pub conversation: ConversationId,
    /// The first seq.
    pub from: Seq,
    /// The last seq.
    pub to: Seq,
    /// Where it may end before.
    pub bytes_max: usize,
}

type Reading = Pin<Box<dyn Future<Output = StoreResult<Arc<Page>>> + Send>>;

/// A read under way.
struct Flight {
    /// Counts up: later ones began later.
    begun: u64,
    reading: WeakShared<Reading>,
}

#[derive(Default)]
struct Table {
    flights: HashMap<PageKey, Flight>,
    last: u64,
}

/// The reads under way: as many as there are callers at most.
#[derive(Default)]
pub struct Flights(Mutex<Table>);

impl Flights {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the read out of the table when it ends, or when nobody waits for it any more.
struct Landing {
    client: Arc<Client>,
    key: PageKey,
    begun: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut table = self.client.flights.lock();
        if let Some(flight) = table.flights.get(&self.key)
            && flight.begun == self.begun
        {
            table.flights.remove(&self.key);
        }
    }
}

/// Reads a page, or waits for who is reading it.
pub async fn read_page(client: &Arc<Client>, key: PageKey) -> StoreResult<Vec<EventRow>> {
    let (reading, joined) = join(client, key);
    let mut page = reading.await?;
    if joined {
        count(&client.metrics.coalesced);
        if !page.whole {
            // It may have begun before something was put that must be seen. One that is found now
            // began after it, since only one is under way at a time: after this call.
            page = join(client, key).0.await?;
        }
    }
    // The last reader takes the rows as they are.
    Ok(match Arc::try_unwrap(page) {
        Ok(page) => page.rows,
        Err(page) => page.rows.clone(),
    })
}

/// The read of this page under way, or a new one; and whether it was under way.
fn join(client: &Arc<Client>, key: PageKey) -> (Shared<Reading>, bool) {
    let mut table = client.flights.lock();
    if let Some(reading) = table.flights.get(&key).and_then(|f| f.reading.upgrade()) {
        return (reading, true);
    }
    table.last += 1;
    let begun = table.last;
    let landing = Landing {
        client: Arc::clone(client),
        key,
        begun,
    };
    let read = async move {
        let landing = landing;
        let range = key.from..=key.to;
        let page = landing
            .client
            .page(key.conversation, range, key.bytes_max)
            .await?;
        Ok(Arc::new(page))
    };
    let reading: Shared<Reading> = (Box::pin(read) as Reading).shared();
    if let Some(reading) = reading.downgrade() {
        table.flights.insert(key, Flight { begun, reading });
    }
    (reading, false)
}
