//! Hears of changes that other servers made.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::{Client, Msg, RedisResult};
use tidings_core::ids::{ConversationId, UserId};

use super::Shared;
use super::connect::said;
use super::link::lock;
use super::metrics::{add, set};

/// How often a silent subscription is asked whether it still lives, and how long it may take to say so.
const PING: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// The wait before the next try.
const AGAIN: Duration = Duration::from_millis(200);

/// Subscribes for ever, anew with every connection and whenever the subscription is lost.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut up = shared.link.up();
    let mut tries = 0_usize;
    loop {
        let now = up.borrow_and_update().clone();
        if now.subscribe_at.is_empty() {
            if up.changed().await.is_err() {
                return;
            }
            continue;
        }
        // Another member of the cluster each time.
        let client = now.subscribe_at[tries % now.subscribe_at.len()].clone();
        tries += 1;
        tokio::select! {
            ended = listen(&shared, &client) => {
                let why = ended.err().map(|error| said(&error));
                tracing::warn!(why, "redis: subscription lost");
            }
            _ = up.changed() => {}
        }
        set(&shared.metrics.subscribed, 0);
        tokio::time::sleep(AGAIN).await;
    }
}

async fn listen(shared: &Shared, client: &Client) -> RedisResult<()> {
    let deadline = shared.settings.connect_timeout();
    let begin = async {
        let (mut sink, stream) = client.get_async_pubsub().await?.split();
        sink.subscribe(shared.channels()).await?;
        RedisResult::Ok((sink, stream))
    };
    let Ok(begun) = tokio::time::timeout(deadline, begin).await else {
        return Ok(());
    };
    let (mut sink, mut stream) = begun?;
    add(&shared.metrics.subscriptions, 1);
    set(&shared.metrics.subscribed, 1);
    // Whatever changed before is unknown: everything is read again.
    shared.sessions.forget_all();
    shared.members.invalidate_all();
    lock(&shared.watching).note_all();
    let mut ping = tokio::time::interval(PING);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = stream.next() => match message {
                Some(message) => heard(shared, &message).await,
                None => return Ok(()),
            },
            _ = ping.tick() => {
                // The answer comes on the same stream's task, so messages don't hold it up.
                match tokio::time::timeout(PING_TIMEOUT, sink.ping::<redis::Value>()).await {
                    Ok(answer) => { answer?; }
                    Err(_) => return Ok(()),
                }
            }
        }
    }
}

async fn heard(shared: &Shared, message: &Msg) {
    let Ok(payload) = std::str::from_utf8(message.get_payload_bytes()) else {
        return;
    };
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    if let Some((conversation, version)) = payload.split_once(' ') {
        if let (Some(conversation), Ok(version)) = (hex(conversation), version.parse()) {
            shared
                .members_changed(ConversationId(conversation), version)
                .await;
        }
    } else if let Some(user) = hex(payload) {
        shared.changed(UserId(user));
    }
}
