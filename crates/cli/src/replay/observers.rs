//! Those who receive everything; some of them go away and come back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use tidings_client::Store;
use tidings_protocol::Format;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::order::Order;
use super::senders::random;
use crate::api::Api;
use crate::witness::{History, OnEvent, Who, Witness, token_source};

/// Signing in and the first sync of a group of observers.
const START_WITHIN: Duration = Duration::from_secs(30);
/// Observers started at a time: a server takes 20 unauthenticated connections of an address.
const START_TOGETHER: usize = 8;
/// Without any event for so long at the end, an observer is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// An observer that drops stays for 2 to 12 s, and away for up to 5.
const STAYS: (u64, u64) = (2_000, 10_000);
const AWAY_MAX: u64 = 5_000;

pub(super) struct Observers {
    steady: Vec<Witness>,
    dropping: JoinSet<anyhow::Result<Witness>>,
    /// Told when it is time to stay.
    stay: watch::Sender<bool>,
}

/// What became of them.
#[derive(Debug, Default, Serialize)]
pub(super) struct Observed {
    pub observers: usize,
    /// How often one went away, or lost its connection.
    pub disconnections: u64,
    /// What none of them should meet.
    pub troubles: Vec<String>,
}

impl Observers {
    /// Starts one for each user; the last `dropping` of them go away and come back.
    pub async fn start(
        api: &Api,
        users: &[u64],
        conversation: u64,
        dropping: usize,
        seed: u64,
        history: &History,
        order: &Arc<Order>,
    ) -> anyhow::Result<Observers> {
        let mut observers = Observers {
            steady: Vec::new(),
            dropping: JoinSet::new(),
            stay: watch::Sender::new(false),
        };
        let (api_of_tokens, users_of_tokens) = (api.clone(), users.to_vec());
        let tokens =
            tokio::task::spawn_blocking(move || api_of_tokens.tokens(&users_of_tokens, "observer"));
        let mut tokens = tokens.await??.into_iter();
        let mut started = Vec::new();
        for (at, &user) in users.iter().enumerate() {
            let who = Who {
                url: format!("ws://{}/v1/ws?user={user:016x}", api.address()),
                token: token_source(api.clone(), user, "observer", tokens.next()),
                // Both, so that both are checked.
                format: Format::ALL[at % 2],
                user,
                device: user,
                conversation,
            };
            // One that stays tells the order, so that it doesn't rest on acks alone.
            let on_event = (at == 0).then(|| {
                let order = order.clone();
                let told: OnEvent =
                    Arc::new(move |event| order.told(event.sender, event.counter, event.seq));
                told
            });
            started.push(Witness::start(
                who,
                Store::volatile(),
                history.clone(),
                on_event,
            ));
            if started.len() % START_TOGETHER == 0 || at + 1 == users.len() {
                let from = at / START_TOGETHER * START_TOGETHER;
                for witness in &started[from..] {
                    tokio::time::timeout(START_WITHIN, witness.until_ready())
                        .await
                        .context("an observer can't sign in")?;
                }
            }
        }
        for (at, witness) in started.into_iter().enumerate() {
            if at < users.len() - dropping {
                observers.steady.push(witness);
            } else {
                let stay = observers.stay.subscribe();
                let seed = seed.wrapping_add(at as u64);
                observers.dropping.spawn(come_and_go(witness, seed, stay));
            }
        }
        Ok(observers)
    }

    /// Waits until all have been shown everything up to `head`, and ends them.
    pub async fn finish(self, head: u64) -> anyhow::Result<Observed> {
        let mut witnesses = self.steady;
        // Whoever is away now is told to come back, and to stay.
        self.stay.send_replace(true);
        let mut dropping = self.dropping;
        while let Some(witness) = dropping.join_next().await {
            witnesses.push(witness??);
        }
        for witness in &witnesses {
            let (mut have, mut since) = (witness.have(), Instant::now());
            while tokio::time::timeout(Duration::from_secs(1), witness.until(head))
                .await
                .is_err()
            {
                if witness.have() > have {
                    (have, since) = (witness.have(), Instant::now());
                }
                if since.elapsed() > PATIENCE {
                    bail!(
                        "an observer has {have} of {head} events and gets no more: {:?}",
                        witness.troubles()
                    );
                }
            }
        }
        let mut observed = Observed::default();
        for witness in witnesses {
            witness.record_final(head);
            observed.observers += 1;
            observed.disconnections += witness.disconnections();
            observed.troubles.extend(witness.troubles());
            witness.stop().await;
        }
        Ok(observed)
    }
}

async fn come_and_go(
    mut witness: Witness,
    mut seed: u64,
    mut stay: watch::Receiver<bool>,
) -> anyhow::Result<Witness> {
    loop {
        let stays = STAYS.0 + random(&mut seed) % STAYS.1;
        let away = random(&mut seed) % AWAY_MAX;
        let told = tokio::time::timeout(Duration::from_millis(stays), stay.wait_for(|&stay| stay));
        if told.await.is_ok() {
            return Ok(witness);
        }
        let mut stay = stay.clone();
        let back = async move {
            let away = Duration::from_millis(away);
            let _ = tokio::time::timeout(away, stay.wait_for(|&stay| stay)).await;
        };
        witness.drop_and_come_back(back).await?;
    }
}
