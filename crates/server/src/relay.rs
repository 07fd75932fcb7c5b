//! The relay: carries the directory's membership changes into the log.
//!
//! The directory is a sender too (design.md, section 3): each change has its version, given
//! out with an outbox row in one transaction. The relay appends what waits; the router
//! answers a version it knows as a duplicate and one too high as a gap, so sending twice,
//! or two relays, are harmless. An outbox row goes when its version has become an event.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidings_core::ids::ConversationId;
use tidings_core::ports::directory::Directory;
use tidings_core::ports::log::{Append, Log};
use tidings_core::record::{Content, Record};
use tokio::sync::watch;
use tokio::time::Instant;

/// A change not known as an event after this is appended again.
const AGAIN_AFTER: Duration = Duration::from_secs(3);

/// How many changes are asked for at once.
const BATCH: usize = 256;

/// How long to wait after the directory or the log refused.
const PAUSE: Duration = Duration::from_millis(500);

/// Carries changes until `stop` says so.
pub async fn run(
    directory: Arc<dyn Directory>,
    log: Arc<dyn Log>,
    mut stop: watch::Receiver<bool>,
) {
    let mut sent: HashMap<(ConversationId, u64), Instant> = HashMap::new();
    loop {
        let pending = match directory.outbox_pending(BATCH).await {
            Ok(pending) => pending,
            Err(error) => {
                tracing::warn!(%error, "the directory's outbox can't be read");
                if pause(PAUSE, &mut stop).await {
                    return;
                }
                continue;
            }
        };
        let now = Instant::now();
        sent.retain(|_, at| now.duration_since(*at) < AGAIN_AFTER);
        let due: Vec<_> = pending
            .iter()
            .filter(|e| !sent.contains_key(&(e.conversation, e.change.version)))
            .collect();
        if due.is_empty() {
            // Everything that waits is on its way, or nothing waits.
            let wait = async {
                if pending.is_empty() {
                    directory.outbox_wait().await
                } else {
                    tokio::time::sleep(Duration::from_millis(20)).await
                }
            };
            tokio::select! {
                () = wait => continue,
                _ = tokio::time::sleep(AGAIN_AFTER) => continue,
                _ = stop.changed() => return,
            }
        }
        let mut appends = Vec::with_capacity(due.len());
        for entry in due {
            sent.insert((entry.conversation, entry.change.version), now);
            let mut payload = Vec::new();
            Record {
                conversation: entry.conversation,
                content: Content::Membership(entry.change.clone()),
            }
            .encode(&mut payload);
            appends.push(Append {
                conversation: entry.conversation,
                payload: Bytes::from(payload),
            });
        }
        let (report, appended) = tokio::sync::oneshot::channel();
        log.append(appends, Box::new(move |result| _ = report.send(result)));
        if let Ok(Err(error)) = appended.await {
            tracing::warn!(%error, "membership changes wait for the log");
            sent.clear();
            if pause(PAUSE, &mut stop).await {
                return;
            }
        }
    }
}

/// Waits; true: it is time to stop.
async fn pause(time: Duration, stop: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => false,
        _ = stop.changed() => true,
    }
}
