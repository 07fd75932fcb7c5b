//! The people of a run and their conversations.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tidings_client::Store;
use tidings_protocol::Format;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::meter::{Meter, Span, Wanted};
use crate::api::Api;
use crate::witness::{History, Who, Witness, token_source};

/// Signing in and the first sync.
const START_WITHIN: Duration = Duration::from_secs(30);
/// Started at a time: a server takes 20 unauthenticated connections of an address.
const START_TOGETHER: usize = 8;
/// Without anything new for so long at the end, a client is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who makes people.
#[derive(Clone)]
pub(super) struct World {
    pub api: Api,
    pub history: History,
    pub span: Arc<Span>,
}

/// Somebody with a client that is on.
pub(super) struct Person {
    witness: Witness,
    /// Messages put into its outbox.
    given: AtomicU64,
}

impl Person {
    pub async fn send(&self, text: String) -> anyhow::Result<()> {
        self.given.fetch_add(1, Ordering::Relaxed);
        self.witness
            .send(text)
            .await
            .context("a message isn't taken")
    }

    pub async fn mark_read(&self, seq: u64) -> anyhow::Result<()> {
        Ok(self.witness.mark_read(seq).await?)
    }

    /// Waits until all its messages are answered; the highest head that an answer named.
    async fn all_sent(&self) -> anyhow::Result<u64> {
        let given = self.given.load(Ordering::Relaxed);
        let (mut sent, mut since) = (self.witness.sent(), Instant::now());
        while sent < given {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if self.witness.sent() > sent {
                (sent, since) = (self.witness.sent(), Instant::now());
            }
            if since.elapsed() > PATIENCE {
                let troubles = self.witness.troubles();
                bail!("{sent} of a client's {given} messages are answered: {troubles:?}");
            }
        }
        Ok(self.witness.head())
    }
}

/// A person with its place in a conversation that is to be made.
pub(super) struct Place {
    pub user: u64,
    pub conversation: u64,
    pub wanted: Wanted,
}

impl World {
    /// Makes so many users.
    pub async fn users(&self, name: &'static str, count: usize) -> anyhow::Result<Vec<u64>> {
        let api = self.api.clone();
        let names: Vec<String> = (1..=count).map(|n| format!("{name} {n}")).collect();
        tokio::task::spawn_blocking(move || api.create_users(&names)).await?
    }

    /// Makes a conversation for each list of members, the first of whom creates it.
    pub async fn conversations(
        &self,
        kind: &'static str,
        members: Vec<Vec<u64>>,
    ) -> anyhow::Result<Vec<u64>> {
        let api = self.api.clone();
        let title = if kind == "direct" { "" } else { "journeys" };
        let make = move || {
            let make = |all: &Vec<u64>| api.create_conversation(kind, title, all[0], &all[1..]);
            members.iter().map(make).collect()
        };
        tokio::task::spawn_blocking(make).await?
    }

    /// Starts a client for each, and waits until all have signed in.
    pub async fn start(&self, places: Vec<Place>) -> anyhow::Result<Vec<Arc<Person>>> {
        let users: Vec<u64> = places.iter().map(|place| place.user).collect();
        let api = self.api.clone();
        let tokens = tokio::task::spawn_blocking(move || api.tokens(&users, "journeys"));
        let mut tokens = tokens.await??.into_iter();
        let mut people: Vec<Arc<Person>> = Vec::with_capacity(places.len());
        let mut waiting = 0;
        for place in places {
            let format = Format::ALL[people.len() % 2];
            let who = Who {
                url: format!("ws://{}/v1/ws?user={:016x}", self.api.address(), place.user),
                token: token_source(self.api.clone(), place.user, "journeys", tokens.next()),
                // Both, so that both are measured and checked.
                format,
                user: place.user,
                device: place.user,
                conversation: place.conversation,
            };
            let meter = Arc::new(Meter::new(place.user, self.span.clone(), place.wanted));
            people.push(Arc::new(Person {
                witness: Witness::watched(who, Store::volatile(), self.history.clone(), meter),
                given: AtomicU64::new(0),
            }));
            if people.len() - waiting == START_TOGETHER {
                ready(&people[waiting..]).await?;
                waiting = people.len();
            }
        }
        ready(&people[waiting..]).await?;
        Ok(people)
    }
}

async fn ready(people: &[Arc<Person>]) -> anyhow::Result<()> {
    for person in people {
        let start = async {
            person.witness.until_ready().await;
            // Its first event is the conversation's beginning.
            person.witness.until(1).await;
        };
        tokio::time::timeout(START_WITHIN, start)
            .await
            .context("a client can't sign in and sync")?;
    }
    Ok(())
}

/// Somebody who went away.
pub(super) struct Away {
    call: oneshot::Sender<()>,
    person: JoinHandle<anyhow::Result<Person>>,
}

impl Away {
    /// Lets somebody go away.
    pub fn go(person: Arc<Person>) -> anyhow::Result<Away> {
        let person = Arc::into_inner(person).context("somebody else holds who goes away")?;
        let (call, called) = oneshot::channel();
        let person = tokio::spawn(async move {
            let mut person = person;
            let back = async {
                // Whoever isn't called any more comes back as well.
                let _ = called.await;
            };
            person.witness.drop_and_come_back(back).await?;
            Ok(person)
        });
        Ok(Away { call, person })
    }

    /// Calls it back. It connects at once.
    pub async fn back(self) -> anyhow::Result<Arc<Person>> {
        ensure!(self.call.send(()).is_ok(), "a client could not go away");
        Ok(Arc::new(self.person.await??))
    }
}

/// Waits until a person has all up to `head`.
pub(super) async fn until(person: &Person, head: u64) -> anyhow::Result<()> {
    let (mut have, mut since) = (person.witness.have(), Instant::now());
    while tokio::time::timeout(Duration::from_secs(1), person.witness.until(head))
        .await
        .is_err()
    {
        if person.witness.have() > have {
            (have, since) = (person.witness.have(), Instant::now());
        }
        if since.elapsed() > PATIENCE {
            let troubles = person.witness.troubles();
            bail!("a client has {have} of {head} events and gets no more: {troubles:?}");
        }
    }
    Ok(())
}

/// Waits until everything sent in a conversation is answered; its head.
pub(super) async fn settled(people: &[Arc<Person>]) -> anyhow::Result<u64> {
    let mut head = 1;
    for person in people {
        head = head.max(person.all_sent().await?);
    }
    Ok(head)
}

/// Waits until all of a conversation have everything, says so to the checker and ends them; what
/// troubles they met.
pub(super) async fn finish(people: Vec<Arc<Person>>) -> anyhow::Result<Vec<String>> {
    let head = settled(&people).await?;
    let mut troubles = Vec::new();
    for person in people {
        until(&person, head).await?;
        person.witness.record_final(head);
        troubles.extend(person.witness.troubles());
        if let Some(person) = Arc::into_inner(person) {
            person.witness.stop().await;
        }
    }
    Ok(troubles)
}
