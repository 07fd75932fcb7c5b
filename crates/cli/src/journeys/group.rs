//! A group of whom most are online; the others come back at the end.

use std::sync::Arc;

use super::meter::{Return, Samples, Wanted};
use super::online::send_among;
use super::pace::Pace;
use super::people::{Away, Person, Place, World, finish, settled};

/// One group.
pub(super) struct Group {
    online: Vec<Arc<Person>>,
    away: Vec<(Away, Arc<Return>)>,
}

/// What all groups measure.
pub(super) struct Groups {
    pub deliveries: Arc<Samples>,
    pub acks: Arc<Samples>,
    pub complete: Arc<Samples>,
    groups: Vec<Group>,
}

/// How groups are made.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub groups: usize,
    pub members: usize,
    pub offline: usize,
}

impl Groups {
    /// Makes groups and starts their clients; those who are to be away go.
    pub async fn start(world: &World, size: Size) -> anyhow::Result<Groups> {
        let mut made = Groups {
            deliveries: Samples::new(),
            acks: Samples::new(),
            complete: Samples::new(),
            groups: Vec::new(),
        };
        let first_page = Samples::new();
        for _ in 0..size.groups {
            let users = world.users("member", size.members).await?;
            let conversation = world.conversations("group", vec![users.clone()]).await?[0];
            let online = size.members - size.offline;
            let (mut places, mut coming) = (Vec::new(), Vec::new());
            for (at, &user) in users.iter().enumerate() {
                let mut wanted = Wanted::default();
                if at < online {
                    wanted.deliveries = Some(made.deliveries.clone());
                    wanted.acks = Some(made.acks.clone());
                } else {
                    let back = Return::new(&first_page, &made.complete);
                    coming.push(back.clone());
                    wanted.coming_back = Some(back);
                }
                places.push(Place {
                    user,
                    conversation,
                    wanted,
                });
            }
            let mut online_people = world.start(places).await?;
            let going = online_people.split_off(online);
            let mut away = Vec::new();
            for (person, coming) in going.into_iter().zip(coming) {
                away.push((Away::go(person)?, coming));
            }
            made.groups.push(Group {
                online: online_people,
                away,
            });
        }
        Ok(made)
    }

    /// Sends at this pace in each group, each message by a random member who is online.
    pub async fn send(&self, world: &World, pace: Pace) -> anyhow::Result<Vec<String>> {
        let each = self.groups.iter().enumerate().map(|(at, group)| {
            let seed = pace.seed.wrapping_add(at as u64);
            send_among(world, group.online.clone(), Pace { seed, ..pace })
        });
        let troubles = futures_util::future::try_join_all(each).await?;
        Ok(troubles.into_iter().flatten().collect())
    }

    /// Those who are away come back, all at once; then all have everything and end.
    pub async fn finish(self, world: &World) -> anyhow::Result<Vec<String>> {
        let mut troubles = Vec::new();
        for group in self.groups {
            let head = settled(&group.online).await?;
            let mut all = group.online;
            let mut coming = Vec::new();
            for (away, back) in group.away {
                back.begin(world.span.now(), head);
                coming.push(away.back());
            }
            all.extend(futures_util::future::try_join_all(coming).await?);
            troubles.extend(finish(all).await?);
        }
        Ok(troubles)
    }
}
