//! What goes wrong, and for how long.

use tidings_core::ids::Micros;
use tidings_verify::history::{Part, Restart};

use crate::devices::Device;
use crate::random::Random;
use crate::world::{Event, MS, SECOND, World};

/// Until when a part behaves badly.
#[derive(Default)]
pub(crate) struct Weather {
    /// Messages between gateways and routers get lost and overtake each other.
    pub peers_lossy: Micros,
    /// How many of a thousand get lost then.
    pub peers_loss: u64,
    pub store_slow: Micros,
    /// The store fails every tenth call, done or not.
    pub store_failing: Micros,
    pub store_down: Micros,
    pub log_slow: Micros,
    pub log_failing: Micros,
    pub log_down: Micros,
    pub directory_down: Micros,
    /// Ways between servers on which nothing arrives.
    pub cuts: Vec<Cut>,
}

/// A way on which nothing arrives, and nobody is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// From gateways to routers, or the other way round.
    pub to_router: bool,
    /// The gateway's server.
    pub gateway: usize,
    /// The routers' server.
    pub server: usize,
    pub until: Micros,
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    GatewayDies,
    GatewayDrains,
    RouterDies,
    RouterBecomesZombie,
    PartitionMoves,
    ServerDies,
    StoreDies,
    StoreSlow,
    StoreFailing,
    StoreDown,
    LogDies,
    LogSlow,
    LogFailing,
    ProcessDies,
    PeersLossy,
    OneWayCut,
    FullCut,
    DirectoryDown,
    DeviceDies,
    DeviceDiesWhileActing,
    Backup,
    DeviceRestored,
    DeviceCloned,
    Cut,
    HalfOpen,
    Blocked,
    MembersChange,
}

impl Fault {
    const ALL: [(Fault, u64); 27] = [
        (Fault::GatewayDies, 3),
        (Fault::GatewayDrains, 1),
        (Fault::RouterDies, 3),
        (Fault::RouterBecomesZombie, 4),
        (Fault::PartitionMoves, 3),
        (Fault::ServerDies, 2),
        (Fault::StoreDies, 2),
        (Fault::StoreSlow, 2),
        (Fault::StoreFailing, 2),
        (Fault::StoreDown, 2),
        (Fault::LogDies, 3),
        (Fault::LogSlow, 2),
        (Fault::LogFailing, 2),
        (Fault::ProcessDies, 2),
        (Fault::PeersLossy, 4),
        (Fault::OneWayCut, 4),
        (Fault::FullCut, 2),
        (Fault::DirectoryDown, 1),
        (Fault::DeviceDies, 4),
        (Fault::DeviceDiesWhileActing, 4),
        (Fault::Backup, 1),
        (Fault::DeviceRestored, 2),
        (Fault::DeviceCloned, 1),
        (Fault::Cut, 6),
        (Fault::HalfOpen, 3),
        (Fault::Blocked, 4),
        (Fault::MembersChange, 8),
    ];

    /// One of them, by weight.
    pub fn draw(random: &mut Random) -> Fault {
        let all: u64 = Fault::ALL.iter().map(|one| one.1).sum();
        let mut at = random.below(all);
        for (fault, weight) in Fault::ALL {
            if at < weight {
                return fault;
            }
            at -= weight;
        }
        Fault::Cut
    }
}

impl World {
    /// Records that a part was killed or restarted.
    pub fn restarted(&mut self, part: Part) {
        self.record(Restart { at: self.now, part });
    }

    /// Injects a fault.
    pub fn fault(&mut self, fault: Fault) {
        if self.healing {
            return;
        }
        self.faults += 1;
        self.note(|| format!("{fault:?}"));
        let until = self.now + self.random.between(200 * MS, 4 * SECOND);
        let gateway = self.random.below(self.gateways.len() as u64) as usize;
        let d = self.random.below(self.devices.len() as u64) as usize;
        let partition = self.random.below(u64::from(self.plan.partitions)) as u32;
        let connection = self.devices[d].connection;
        match fault {
            Fault::GatewayDies => self.gateway_dies(gateway),
            Fault::GatewayDrains => self.gateway_drains(gateway),
            Fault::RouterDies => self.router_down(partition, false),
            Fault::RouterBecomesZombie => self.router_down(partition, true),
            Fault::PartitionMoves => self.router_leaves(partition),
            Fault::ServerDies => {
                self.gateway_dies(gateway);
                self.routers_die(Some(gateway));
            }
            Fault::StoreDies => self.store_dies(),
            Fault::StoreSlow => self.weather.store_slow = until,
            Fault::StoreFailing => self.weather.store_failing = until,
            Fault::StoreDown => self.weather.store_down = until,
            Fault::LogDies => {
                let one = self.random.permille(500).then_some(partition);
                self.logs_crash(one);
            }
            Fault::LogSlow => self.weather.log_slow = until,
            Fault::LogFailing => self.weather.log_failing = until,
            Fault::ProcessDies => {
                for gateway in 0..self.gateways.len() {
                    self.gateway_dies(gateway);
                }
                self.routers_die(None);
                self.logs_crash(None);
                self.store_dies();
            }
            Fault::PeersLossy => {
                self.weather.peers_lossy = until;
                self.weather.peers_loss = self.random.pick(&[250, 900]).unwrap_or(250);
            }
            Fault::OneWayCut => {
                let to_router = self.random.permille(500);
                self.cut_peers(gateway, &[to_router]);
            }
            Fault::FullCut => self.cut_peers(gateway, &[false, true]),
            Fault::DirectoryDown => self.weather.directory_down = until,
            Fault::DeviceDies => self.device_dies(d),
            Fault::DeviceDiesWhileActing => {
                self.devices[d].dies_after = Some(self.random.below(12) as usize);
            }
            Fault::Backup => self.devices[d].backup = Some(self.devices[d].disk.clone()),
            Fault::DeviceRestored => self.restore(d),
            Fault::DeviceCloned => self.clone_device(d),
            Fault::Cut => {
                if let Some(connection) = connection {
                    self.cut(connection, true);
                }
            }
            Fault::HalfOpen => {
                if let Some(connection) = connection {
                    self.connections[connection].is_half_open = true;
                }
            }
            Fault::Blocked => {
                if let Some(connection) = connection {
                    self.connections[connection].is_blocked = true;
                    self.at(until, Event::Unblock(connection));
                }
            }
            Fault::MembersChange => {
                for _ in 0..self.random.between(1, 3) {
                    self.change_members();
                }
            }
        }
    }

    /// The gateway of a server and the routers of another don't hear each other, in these directions.
    /// A server's own are in one process.
    fn cut_peers(&mut self, gateway: usize, directions: &[bool]) {
        let others = self.gateways.len() as u64 - 1;
        if others == 0 || self.store.gathers {
            // In one process what doesn't fit into a queue is dropped.
            self.weather.peers_lossy = self.now + 3 * SECOND;
            self.weather.peers_loss = 1_000;
            return;
        }
        let by = 1 + self.random.below(others) as usize;
        let server = (gateway + by) % self.gateways.len();
        let until = self.now + self.random.between(500 * MS, 25 * SECOND);
        self.weather.cuts.retain(|cut| self.now < cut.until);
        for &to_router in directions {
            self.weather.cuts.push(Cut {
                to_router,
                gateway,
                server,
                until,
            });
        }
    }

    /// The store loses power. One that gathers rows in memory is in the router's process.
    fn store_dies(&mut self) {
        self.restarted(Part::Store);
        self.store.crash(&mut self.random);
        self.store_life += 1;
        self.weather.store_down = self.now + self.random.between(50 * MS, 2 * SECOND);
        if self.store.gathers {
            self.routers_die(None);
        }
    }

    /// A device gets back the state it had at its backup, or half of a history ago.
    fn restore(&mut self, d: usize) {
        if self.devices[d].backup.is_none() {
            // Nobody had made one: the present state is one for later.
            self.devices[d].backup = Some(self.devices[d].disk.clone());
            return;
        }
        self.device_dies(d);
        if let Some(backup) = self.devices[d].backup.clone() {
            self.devices[d].disk = backup;
            self.devices[d].was_restored = true;
        }
    }

    /// A copy of a device's profile begins a life of its own.
    fn clone_device(&mut self, d: usize) {
        const DEVICES_MAX: usize = 16;
        let of = &self.devices[d];
        // Messages that wait in both would be sent by both; that isn't anybody's mistake.
        if !of.is_idle() || self.devices.len() >= DEVICES_MAX {
            return;
        }
        let id = 0x1000 + self.devices.len() as u64;
        let (user, format, mode, disk) = (of.user, of.format, of.mode, of.disk.clone());
        let random = self.random.fork();
        let mut device = Device::new(user, id, format, mode, random);
        device.disk = disk;
        self.devices.push(device);
        let clone = self.devices.len() - 1;
        self.show_history(clone);
        self.boot(clone);
    }
}
