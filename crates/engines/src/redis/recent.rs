//! Events of late by conversation, for when the store is slow. It decides nothing.

use std::sync::Arc;

use bytes::Bytes;
use tidings_core::ids::{ConversationId, Seq};
use tidings_core::ports::registry::RegistryError;

use super::Shared;

/// The last events of conversations: a few each, for a short time, any of them possibly missing.
#[derive(Clone)]
pub struct RecentCache {
    shared: Arc<Shared>,
}

impl RecentCache {
    pub(super) fn new(shared: Arc<Shared>) -> RecentCache {
        RecentCache { shared }
    }

    /// Keeps an event's bytes; a later put of the same seq replaces them. What is too large isn't kept.
    pub async fn put_recent(
        &self,
        conversation: ConversationId,
        seq: Seq,
        bytes: &[u8],
    ) -> Result<(), RegistryError> {
        let shared = &self.shared;
        let settings = &shared.settings;
        if settings.recent_events_max == 0 || bytes.len() > settings.recent_bytes_max {
            return Ok(());
        }
        // Behind its seq, since equal bytes of two events would be one entry.
        let entry = [&seq.to_be_bytes()[..], bytes].concat();
        let mut call = shared.scripts.put_recent.prepare_invoke();
        call.key(shared.key("recent", conversation))
            .arg(seq)
            .arg(entry)
            .arg(settings.recent_events_max)
            .arg(settings.recent_ttl_s * 1_000);
        shared
            .link
            .call(|mut conn| async move { call.invoke_async::<()>(&mut conn).await })
            .await
    }

    /// The kept events from this seq on, in order; holes are possible.
    pub async fn recent(
        &self,
        conversation: ConversationId,
        from: Seq,
    ) -> Result<Vec<(Seq, Bytes)>, RegistryError> {
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command
            .arg(self.shared.key("recent", conversation))
            .arg(from)
            .arg("+inf")
            .arg("LIMIT")
            .arg(0)
            .arg(self.shared.settings.recent_events_max);
        let entries: Vec<Vec<u8>> = self
            .shared
            .link
            .call(|mut conn| async move { command.query_async(&mut conn).await })
            .await?;
        let split = |entry: Vec<u8>| {
            let entry = Bytes::from(entry);
            let seq = Seq::from_be_bytes(entry.first_chunk().copied()?);
            Some((seq, entry.slice(size_of::<Seq>()..)))
        };
        Ok(entries.into_iter().filter_map(split).collect())
    }
}
