//! What the directory on PostgreSQL carries: calls a second and their times, by kind of call.
//!
//!     cargo run --release -p tidings-engines --example postgres_load -- [seconds] [callers]
//!
//! Needs `cluster/stack up postgres`; works in the database that the stack made, and leaves its users there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidings_core::ids::{ConversationId, Micros, UserId};
use tidings_core::ports::directory::{
    Accounts, Conversations, Credentials, DirectoryError, NewConversation, NewSignIn, NewUser,
    SecretHash,
};
use tidings_core::record::{ConversationKind, Role};
use tidings_engines::Secret;
use tidings_engines::postgres::{PostgresDirectory, Settings, migrate};

/// What the callers work on.
struct World {
    directory: PostgresDirectory,
    users: Vec<UserId>,
    conversations: Vec<ConversationId>,
    next: AtomicU64,
}

impl World {
    fn draw(&self) -> usize {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as usize
    }

    fn user(&self) -> UserId {
        self.users[self.draw() % self.users.len()]
    }

    fn conversation(&self) -> ConversationId {
        self.conversations[self.draw() % self.conversations.len()]
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let seconds: u64 = arguments.next().map_or(Ok(5), |n| n.parse())?;
    let callers: usize = arguments.next().map_or(Ok(64), |n| n.parse())?;
    let settings = Settings {
        port: 6433,
        direct_port: 5433,
        password: Secret("tidings".into()),
        database: std::env::var("TIDINGS_LOAD_DATABASE").unwrap_or_else(|_| "tidings".into()),
        ..Settings::default()
    };
    migrate(&settings).await?;
    let world = Arc::new(prepare(&settings).await?);
    println!(
        "{:<34} {:>8} {:>9} {:>9} {:>9}",
        format!("{callers} callers, {seconds} s each"),
        "calls/s",
        "p50 ms",
        "p99 ms",
        "max ms"
    );
    let time = Duration::from_secs(seconds);
    measure(&world, "member (read)", callers, time, async |world| {
        world
            .directory
            .member(world.conversation(), world.user())
            .await
            .map(drop)
    })
    .await;
    measure(&world, "users of 20 (read)", callers, time, async |world| {
        let some = (0..20).map(|_| world.user()).collect();
        world.directory.users(some).await.map(drop)
    })
    .await;
    measure(
        &world,
        "conversations_of, page of 50",
        callers,
        time,
        async |world| {
            world
                .directory
                .conversations_of(world.user(), ConversationId(0), 50)
                .await
                .map(drop)
        },
    )
    .await;
    measure(
        &world,
        "set_display_name (one statement)",
        callers,
        time,
        async |world| {
            world
                .directory
                .set_display_name(world.user(), "another".into())
                .await
        },
    )
    .await;
    measure(&world, "create_direct", callers, time, async |world| {
        let (a, b) = (world.user(), world.user());
        if a == b {
            Ok(())
        } else {
            world.directory.create_direct(a, b).await.map(drop)
        }
    })
    .await;
    measure(
        &world,
        "join, leave by turns",
        callers,
        time,
        async |world| {
            let (id, user) = (world.conversation(), world.user());
            if world.directory.join(id, user).await?.changes.is_empty() {
                // Another caller may have been first.
                let _ = world.directory.leave(id, user).await;
            }
            Ok::<(), DirectoryError>(())
        },
    )
    .await;
    measure(
        &world,
        "sign-in with a device",
        callers,
        time,
        async |world| {
            let user = world.user();
            let device = world.directory.device_named(user, "load".into()).await?.id;
            let random = || getrandom::u64().unwrap_or_default().to_be_bytes();
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&random());
            hash[8..16].copy_from_slice(&random());
            let new = NewSignIn {
                user,
                device,
                refresh: SecretHash(hash),
                expires: i64::MAX as u64,
            };
            world.directory.sign_in(new).await.map(drop)
        },
    )
    .await;
    println!("{:?}", world.directory.metrics());
    Ok(())
}

/// 2,000 users in 200 channels.
async fn prepare(settings: &Settings) -> anyhow::Result<World> {
    let clock = Arc::new(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| now.as_micros() as Micros)
    });
    let directory = PostgresDirectory::open(settings, clock).await?;
    let mut users = Vec::new();
    for _ in 0..2 {
        let new = NewUser {
            login: None,
            display_name: "load".into(),
            password: None,
        };
        for made in directory.create_users(vec![new; 1000]).await? {
            users.push(made?);
        }
    }
    let mut conversations = Vec::new();
    for members in users.chunks(10) {
        let new = NewConversation {
            kind: ConversationKind::Channel,
            title: "load".into(),
            creator: members[0],
            members: members.to_vec(),
            join_role: Role::Member,
            idempotency_key: None,
        };
        conversations.push(directory.create_conversation(new).await?.conversation.id);
    }
    Ok(World {
        directory,
        users,
        conversations,
        next: AtomicU64::new(0),
    })
}

/// Callers one after another each, for a time.
async fn measure<C, E>(world: &Arc<World>, name: &str, callers: usize, time: Duration, call: C)
where
    C: AsyncFn(&World) -> Result<(), E> + Clone + 'static,
    E: std::fmt::Display,
{
    let began = Instant::now();
    let calls = (0..callers).map(|_| async {
        let mut times = Vec::new();
        let mut failed = 0u64;
        while began.elapsed() < time {
            let one = Instant::now();
            match call(world).await {
                Ok(()) => times.push(one.elapsed()),
                Err(error) => {
                    failed += 1;
                    if failed == 1 {
                        println!("{name}: {error}");
                    }
                }
            }
        }
        times
    });
    let mut times: Vec<Duration> = futures_util::future::join_all(calls).await.concat();
    let took = began.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{name:<34} {:>8.0} {:>9.2} {:>9.2} {:>9.2}",
        times.len() as f64 / took,
        at(0.5),
        at(0.99),
        at(1.0)
    );
}
