//! Two friends who are both online: messages both ways, read as they come.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::meter::{Marks, Pause, ReadSamples, Reading, Reconnection, Samples, Wanted, text};
use super::pace::Pace;
use super::people::{Person, Place, World, finish};

/// What pairs of friends measure.
pub(super) struct Pairs {
    pub deliveries: Arc<Samples>,
    pub acks: Arc<Samples>,
    pub reads: ReadSamples,
    /// One for each pair.
    pub pauses: Vec<Arc<Pause>>,
    pub reconnections: Arc<Mutex<Vec<Reconnection>>>,
    pairs: Vec<[Arc<Person>; 2]>,
    /// They mark what their user reads.
    markers: JoinSet<()>,
}

impl Pairs {
    /// Makes so many pairs and starts their clients.
    pub async fn start(world: &World, count: usize) -> anyhow::Result<Pairs> {
        let users = world.users("friend", 2 * count).await?;
        let both: Vec<Vec<u64>> = users.chunks(2).map(<[u64]>::to_vec).collect();
        let conversations = world.conversations("direct", both).await?;
        let mut started = Pairs {
            deliveries: Samples::new(),
            acks: Samples::new(),
            reads: ReadSamples {
                from_act: Samples::new(),
                from_frame: Samples::new(),
            },
            pauses: Vec::new(),
            reconnections: Arc::default(),
            pairs: Vec::new(),
            markers: JoinSet::new(),
        };
        let (mut places, mut told) = (Vec::new(), Vec::new());
        for (pair, &conversation) in users.chunks(2).zip(&conversations) {
            let pause = Arc::new(Pause::default());
            started.pauses.push(pause.clone());
            let marks = [Arc::new(Marks::default()), Arc::new(Marks::default())];
            for (at, &user) in pair.iter().enumerate() {
                let (marker, mark) = watch::channel(0);
                told.push(mark);
                let wanted = Wanted {
                    deliveries: Some(started.deliveries.clone()),
                    acks: Some(started.acks.clone()),
                    reading: Some(Reading {
                        own: marks[at].clone(),
                        friend: marks[1 - at].clone(),
                        marker,
                        samples: started.reads.clone(),
                    }),
                    coming_back: None,
                    pause: Some(pause.clone()),
                    reconnections: Some(started.reconnections.clone()),
                    ledger: None,
                };
                places.push(Place {
                    user,
                    conversation,
                    wanted,
                });
            }
        }
        let people = world.start(places).await?;
        for (person, mark) in people.iter().zip(told) {
            started.markers.spawn(marks_read(person.clone(), mark));
        }
        for pair in people.chunks(2) {
            started.pairs.push([pair[0].clone(), pair[1].clone()]);
        }
        Ok(started)
    }

    /// Sends at this pace, each message in a random pair and direction. Ends with the last send.
    pub async fn send(&self, world: &World, pace: Pace) -> anyhow::Result<Vec<String>> {
        let writers: Vec<Arc<Person>> = self.pairs.iter().flatten().cloned().collect();
        send_among(world, writers, pace).await
    }

    /// Waits until all have everything and ends them.
    pub async fn finish(mut self) -> anyhow::Result<Vec<String>> {
        self.markers.shutdown().await;
        let mut troubles = Vec::new();
        for pair in self.pairs {
            troubles.extend(finish(pair.into()).await?);
        }
        Ok(troubles)
    }
}

/// Sends at this pace, each message by a random one of `writers`; what they were refused.
pub(super) async fn send_among(
    world: &World,
    writers: Vec<Arc<Person>>,
    pace: Pace,
) -> anyhow::Result<Vec<String>> {
    let (span, runtime) = (world.span.clone(), tokio::runtime::Handle::current());
    let troubles = Arc::new(Mutex::new(Vec::new()));
    let told = troubles.clone();
    let run = move || {
        pace.run(&span, |at, random| {
            let writer = writers[(random % writers.len() as u64) as usize].clone();
            let told = told.clone();
            runtime.spawn(async move {
                if let Err(error) = writer.send(text(at)).await {
                    super::meter::lock(&told).push(format!("{error:#}"));
                }
            });
            ControlFlow::Continue(())
        });
    };
    tokio::task::spawn_blocking(run).await?;
    Ok(std::mem::take(&mut *super::meter::lock(&troubles)))
}

pub(super) async fn marks_read(person: Arc<Person>, mut told: watch::Receiver<u64>) {
    while told.changed().await.is_ok() {
        let seq = *told.borrow_and_update();
        // A client that has ended shows itself at the end of the run.
        if person.mark_read(seq).await.is_err() {
            return;
        }
    }
}
