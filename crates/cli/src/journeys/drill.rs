//! A steady load while somebody breaks and mends the servers, and what its clients met of it.
//!
//! Whoever breaks them says so on standard input, a line each: `fault NAME`, `healed NAME`, and at
//! last `end` (or nothing more). Standard output has `warm` when faults may begin.

use std::io::BufRead;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::ledger::{Figures, Ledger, Mark};
use super::meter::{Marks, ReadSamples, Reading, Reconnection, Samples, Span, Wanted, lock, text};
use super::online::marks_read;
use super::pace::Pace;
use super::people::{Person, Place, World, finish};

/// How the load is made.
#[derive(Clone, Copy)]
pub(super) struct Load {
    pub pairs: usize,
    pub groups: usize,
    pub members: usize,
    /// Messages a second over all pairs, and in each group.
    pub pairs_rate: f64,
    pub group_rate: f64,
    /// Seconds before anything counts.
    pub warm_up: u32,
    pub seed: u64,
}

/// What came of a drill.
pub(super) struct Outcome {
    pub figures: Figures,
    /// What clients met that they never should, and those that don't end.
    pub troubles: Vec<String>,
}

/// Makes the load, until standard input says `end`.
pub(super) async fn run(world: &World, load: Load) -> anyhow::Result<Outcome> {
    let mut rooms = Rooms::default();
    let pairs = rooms.start(world, "direct", load.pairs, 2).await?;
    let groups = rooms
        .start(world, "group", load.groups, load.members)
        .await?;

    let from = world.span.now();
    let warm = from + u64::from(load.warm_up) * 1_000_000;
    world.span.count(warm, u64::MAX);
    let is_over = Arc::new(AtomicBool::new(false));
    let (tell, told) = oneshot::channel();
    let (span, over) = (world.span.clone(), is_over.clone());
    // Not one of the runtime's threads: it would be waited for although nobody ends standard input.
    std::thread::spawn(move || {
        let marks = read_marks(&span, warm);
        over.store(true, Ordering::Relaxed);
        let _ = tell.send(marks);
    });
    let pace = |rate: f64, seed| Pace {
        rate,
        from,
        to: u64::MAX,
        seed,
    };
    let groups_rate = load.group_rate * load.groups as f64;
    let refused = tokio::join!(
        rooms.send(world, pairs, pace(load.pairs_rate, load.seed), &is_over),
        rooms.send(world, groups, pace(groups_rate, load.seed ^ 1), &is_over),
    );
    let end = world.span.now();
    let marks = told.await.unwrap_or_default();
    let (ledger, reconnections) = (rooms.ledger.clone(), rooms.reconnections.clone());
    let mut troubles = [refused.0?, refused.1?].concat();
    troubles.extend(rooms.finish().await);
    let back = lock(&reconnections).clone();
    Ok(Outcome {
        figures: ledger.figures(&marks, warm, end, &back),
        troubles,
    })
}

/// Reads marks until `end`; says `warm` at the moment from which on messages count.
fn read_marks(span: &Span, warm: u64) -> Vec<Mark> {
    std::thread::sleep(std::time::Duration::from_micros(
        warm.saturating_sub(span.now()),
    ));
    println!("warm");
    let mut marks = Vec::new();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let (what, name) = line.split_once(' ').unwrap_or((&line, ""));
        if what == "end" {
            break;
        }
        marks.push(Mark {
            at: span.now(),
            is_fault: what == "fault",
            name: name.to_owned(),
        });
    }
    marks
}

/// Somebody and how many read what it writes.
type Writer = (Arc<Person>, u64, u32);

#[derive(Default)]
struct Rooms {
    ledger: Arc<Ledger>,
    reconnections: Arc<Mutex<Vec<Reconnection>>>,
    rooms: Vec<Vec<Arc<Person>>>,
    markers: JoinSet<()>,
}

impl Rooms {
    /// Makes conversations of so many members each, and starts their clients.
    async fn start(
        &mut self,
        world: &World,
        kind: &'static str,
        count: usize,
        members: usize,
    ) -> anyhow::Result<Vec<Writer>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let users = world.users("drill", count * members).await?;
        let all: Vec<Vec<u64>> = users.chunks(members).map(<[u64]>::to_vec).collect();
        let conversations = world.conversations(kind, all).await?;
        let samples = ReadSamples {
            from_act: Samples::new(),
            from_frame: Samples::new(),
        };
        let (mut places, mut told) = (Vec::new(), Vec::new());
        for (room, &conversation) in users.chunks(members).zip(&conversations) {
            // Who is a friend of whom matters only for times of read marks, which aren't shown here.
            let marks = Arc::new(Marks::default());
            for &user in room {
                let (marker, mark) = watch::channel(0);
                told.push(mark);
                let wanted = Wanted {
                    reading: Some(Reading {
                        own: marks.clone(),
                        friend: marks.clone(),
                        marker,
                        samples: samples.clone(),
                    }),
                    reconnections: Some(self.reconnections.clone()),
                    ledger: Some(self.ledger.clone()),
                    ..Wanted::default()
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
            self.markers.spawn(marks_read(person.clone(), mark));
        }
        self.rooms
            .extend(people.chunks(members).map(<[Arc<Person>]>::to_vec));
        let readers = members as u32 - 1;
        Ok(people
            .into_iter()
            .zip(users)
            .map(|(person, user)| (person, user, readers))
            .collect())
    }

    /// Sends at this pace, each message by a random one, until it is over; what they were refused.
    async fn send(
        &self,
        world: &World,
        writers: Vec<Writer>,
        pace: Pace,
        is_over: &Arc<AtomicBool>,
    ) -> anyhow::Result<Vec<String>> {
        if writers.is_empty() {
            return Ok(Vec::new());
        }
        let (span, runtime) = (world.span.clone(), tokio::runtime::Handle::current());
        let (ledger, is_over) = (self.ledger.clone(), is_over.clone());
        let troubles = Arc::new(Mutex::new(Vec::new()));
        let told = troubles.clone();
        let run = move || {
            pace.run(&span, |at, random| {
                if is_over.load(Ordering::Relaxed) {
                    return ControlFlow::Break(());
                }
                let (writer, user, readers) = &writers[(random % writers.len() as u64) as usize];
                if span.counts(at) {
                    ledger.meant(*user, at, *readers);
                }
                let (writer, told) = (writer.clone(), told.clone());
                runtime.spawn(async move {
                    if let Err(error) = writer.send(text(at)).await {
                        lock(&told).push(format!("{error:#}"));
                    }
                });
                ControlFlow::Continue(())
            });
        };
        tokio::task::spawn_blocking(run).await?;
        Ok(std::mem::take(&mut *lock(&troubles)))
    }

    /// Waits until all have everything and ends them. Who doesn't get there is a trouble and no
    /// error: a drill is judged by what the others were shown, too.
    async fn finish(mut self) -> Vec<String> {
        self.markers.shutdown().await;
        let mut all = JoinSet::new();
        for room in self.rooms {
            all.spawn(finish(room));
        }
        let mut troubles = Vec::new();
        while let Some(ended) = all.join_next().await {
            match ended {
                Ok(Ok(met)) => troubles.extend(met),
                Ok(Err(error)) => troubles.push(format!("{error:#}")),
                Err(error) => troubles.push(error.to_string()),
            }
        }
        troubles
    }
}
