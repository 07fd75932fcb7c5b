//! A friend who was away while messages came, and comes back.

use std::sync::Arc;
use std::time::Duration;

use super::meter::{Return, Samples, Wanted, text};
use super::people::{Away, Person, Place, World, finish, settled, until};

/// Between two friends who come back.
const BETWEEN: Duration = Duration::from_millis(300);

struct Friend {
    writer: Arc<Person>,
    away: Away,
    coming: Arc<Return>,
}

/// Friends who are away, and what is measured when they come back.
pub(super) struct Friends {
    pub first_page: Arc<Samples>,
    pub complete: Arc<Samples>,
    friends: Vec<Friend>,
}

impl Friends {
    /// Makes so many pairs, lets one of each go away, and lets the other write so many messages.
    pub async fn start(world: &World, count: usize, missed: usize) -> anyhow::Result<Friends> {
        let users = world.users("away", 2 * count).await?;
        let both: Vec<Vec<u64>> = users.chunks(2).map(<[u64]>::to_vec).collect();
        let conversations = world.conversations("direct", both).await?;
        let (first_page, complete) = (Samples::new(), Samples::new());
        let (mut places, mut coming) = (Vec::new(), Vec::new());
        for (pair, &conversation) in users.chunks(2).zip(&conversations) {
            for (at, &user) in pair.iter().enumerate() {
                let mut wanted = Wanted::default();
                if at == 1 {
                    let back = Return::new(&first_page, &complete);
                    coming.push(back.clone());
                    wanted.coming_back = Some(back);
                }
                places.push(Place {
                    user,
                    conversation,
                    wanted,
                });
            }
        }
        let mut people = world.start(places).await?.into_iter();
        let mut friends = Vec::new();
        for coming in coming {
            if let (Some(writer), Some(friend)) = (people.next(), people.next()) {
                let away = Away::go(friend)?;
                for _ in 0..missed {
                    writer.send(text(0)).await?;
                }
                friends.push(Friend {
                    writer,
                    away,
                    coming,
                });
            }
        }
        for friend in &friends {
            settled(std::slice::from_ref(&friend.writer)).await?;
        }
        Ok(Friends {
            first_page,
            complete,
            friends,
        })
    }

    /// They come back, one after the other.
    pub async fn come_back(self, world: &World) -> anyhow::Result<Vec<String>> {
        let mut troubles = Vec::new();
        for friend in self.friends {
            tokio::time::sleep(BETWEEN).await;
            let head = settled(std::slice::from_ref(&friend.writer)).await?;
            friend.coming.begin(world.span.now(), head);
            let back = friend.away.back().await?;
            until(&back, head).await?;
            troubles.extend(finish(vec![friend.writer, back]).await?);
        }
        Ok(troubles)
    }
}
