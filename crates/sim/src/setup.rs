//! What a seed's cluster looks like, and what is planned to happen in it.

use tidings_client::Mode;
use tidings_core::ids::{ConversationId, Micros, UserId};
use tidings_core::record::{ConversationKind, Role};
use tidings_core::router::Config;
use tidings_protocol::Format;

use crate::Bug;
use crate::devices::Device;
use crate::faults::Fault;
use crate::gateways::GatewayNode;
use crate::random::Random;
use crate::world::{Event, MS, SECOND, START, World};

/// For how long things go wrong.
pub(crate) const FAULTS_FOR: Micros = 60 * SECOND;

/// Messages that are written at least.
const MESSAGES: u64 = 1_060;

/// A conversation as it is founded.
#[derive(Clone, Debug)]
pub(crate) struct Founding {
    pub id: ConversationId,
    pub kind: ConversationKind,
    pub members: Vec<(UserId, Role)>,
    /// From when on nobody writes here, so that nothing later shows that its last event was lost.
    pub quiet_from: Micros,
}

/// The shape of a seed's cluster.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub gateways: usize,
    /// Of the log; each has its own router.
    pub partitions: u32,
    /// How many of a thousand clocks are off.
    pub skewed_permille: u64,
    pub users: Vec<UserId>,
    pub conversations: Vec<Founding>,
    /// Whether log, store, router and gateways are one process, whose store leans on the log.
    pub store_gathers: bool,
    pub client_delay: Micros,
    pub peer_delay: Micros,
    pub store_delay: Micros,
    pub sync_delay: Micros,
    pub queue_max: usize,
    pub read_most: usize,
    pub router: Config,
}

impl Plan {
    pub fn draw(random: &mut Random) -> Plan {
        let users: Vec<UserId> = (1..=random.between(4, 8)).map(UserId).collect();
        let everybody = |random: &mut Random| -> Vec<(UserId, Role)> {
            let mut members: Vec<(UserId, Role)> =
                users.iter().map(|&user| (user, Role::Member)).collect();
            random.shuffle(&mut members);
            members.truncate(random.between(3, users.len() as u64) as usize);
            members[0].1 = Role::Owner;
            members
        };
        let quiet_from = |random: &mut Random| START + random.between(20 * SECOND, FAULTS_FOR);
        let mut conversations = vec![
            Founding {
                id: ConversationId(random.bits()),
                kind: ConversationKind::Direct,
                members: vec![(users[0], Role::Member), (users[1], Role::Member)],
                quiet_from: quiet_from(random),
            },
            Founding {
                id: ConversationId(random.bits()),
                kind: ConversationKind::Group,
                members: everybody(random),
                quiet_from: quiet_from(random),
            },
        ];
        let mut channel = everybody(random);
        for member in channel.iter_mut().skip(2) {
            if random.permille(500) {
                member.1 = Role::Reader;
            }
        }
        conversations.push(Founding {
            id: ConversationId(random.bits()),
            kind: ConversationKind::Channel,
            members: channel,
            quiet_from: quiet_from(random),
        });
        for _ in 0..random.below(3) {
            conversations.push(Founding {
                id: ConversationId(random.bits()),
                kind: ConversationKind::Group,
                members: everybody(random),
                quiet_from: quiet_from(random),
            });
        }
        let mut router = Config::default();
        if random.permille(300) {
            // Hardly any room: quiet conversations are forgotten all the time.
            router.conversations_max = 1;
        }
        if random.permille(200) {
            router.flight_bytes_max = 4 << 10;
            router.waiting_max = 8;
        }
        router.commit_every = random.pick(&[0, 20 * MS, 1_000 * MS]).unwrap_or(0);
        // Longer than a router lives that doesn't know of its successor, and its last write takes.
        router.cursor_check_for = random.pick(&[12 * SECOND, 60 * SECOND]).unwrap_or(0);
        let store_gathers = random.permille(400);
        // As the one on one disk and the one on many nodes.
        router.members_together = !store_gathers;
        Plan {
            gateways: random.between(1, 3) as usize,
            // One disk's log has one.
            partitions: if store_gathers {
                1
            } else {
                random.between(1, 3) as u32
            },
            skewed_permille: random.pick(&[0, 0, 300]).unwrap_or(0),
            conversations,
            store_gathers,
            client_delay: random.between(MS, 40 * MS),
            peer_delay: random.between(50, 4 * MS),
            store_delay: random.between(50, 8 * MS),
            sync_delay: random.between(200, 6 * MS),
            queue_max: 4 << random.between(10, 13),
            read_most: random.pick(&[1, 3, 20, 1000]).unwrap_or(20),
            router,
            users,
        }
    }
}

impl World {
    /// Founds everything and plans what happens.
    pub fn set_up(&mut self) {
        let reads_unsynced = self.has(Bug::AckBeforeDurable);
        for log in &mut self.logs {
            log.reads_unsynced = reads_unsynced;
        }
        self.store.bug = self.options.bug;
        self.registry.removes_all = self.has(Bug::LateOffline);
        for founding in self.plan.conversations.clone() {
            self.directory.found(&founding);
        }
        for gateway in 0..self.plan.gateways {
            self.gateways.push(GatewayNode::default());
            self.gateway_back(gateway);
        }
        for partition in 0..self.plan.partitions {
            if !self.plan.store_gathers {
                self.logs[partition as usize].skew = self.draw_skew();
            }
            self.router_up(partition);
        }
        self.after(5 * MS, Event::Relay);
        let users = self.plan.users.clone();
        for &user in &users {
            for number in 0..self.random.between(1, 2) {
                let device = Device::new(
                    user.0,
                    user.0 * 16 + number,
                    self.random.pick(&Format::ALL).unwrap_or(Format::Proto),
                    if self.random.permille(250) {
                        Mode::NewestFirst
                    } else {
                        Mode::Complete
                    },
                    self.random.fork(),
                );
                self.devices.push(device);
                let boot = self.random.below(2 * SECOND);
                self.after(boot, Event::DeviceBoot(self.devices.len() - 1));
            }
        }
        self.plan_load();
        self.plan_faults();
    }

    /// Writing comes in bursts.
    fn plan_load(&mut self) {
        let mut left = MESSAGES + self.random.below(120);
        while left > 0 {
            let burst = self.random.between(1, 12).min(left);
            let at = START + SECOND + self.random.below(FAULTS_FOR - 2 * SECOND);
            for _ in 0..burst {
                let spread = self.random.below(400 * MS);
                self.at(at + spread, Event::Write);
            }
            left -= burst;
        }
        for _ in 0..250 {
            let at = START + SECOND + self.random.below(FAULTS_FOR);
            self.at(at, Event::Act);
        }
    }

    fn plan_faults(&mut self) {
        for _ in 0..self.random.between(32, 56) {
            let fault = Fault::draw(&mut self.random);
            let at = START + 2 * SECOND + self.random.below(FAULTS_FOR - 4 * SECOND);
            self.at(at, Event::Fault(fault));
        }
    }
}
