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
    pub store_slow: Micros,
    /// The store fails every tenth call, done or not.
    pub store_failing: Micros,
    pub store_down: Micros,
    pub log_slow: Micros,
    pub log_failing: Micros,
    pub log_down: Micros,
    pub directory_down: Micros,
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    GatewayDies,
    GatewayDrains,
    RouterDies,
    RouterBecomesZombie,
    StoreDies,
    StoreSlow,
    StoreFailing,
    StoreDown,
    LogDies,
    LogSlow,
    LogFailing,
    ProcessDies,
    PeersLossy,
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
    const ALL: [(Fault, u64); 23] = [
        (Fault::GatewayDies, 3),
        (Fault::GatewayDrains, 1),
        (Fault::RouterDies, 3),
        (Fault::RouterBecomesZombie, 4),
        (Fault::StoreDies, 2),
        (Fault::StoreSlow, 2),
        (Fault::StoreFailing, 2),
        (Fault::StoreDown, 2),
        (Fault::LogDies, 3),
        (Fault::LogSlow, 2),
        (Fault::LogFailing, 2),
        (Fault::ProcessDies, 2),
        (Fault::PeersLossy, 4),
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
        let connection = self.devices[d].connection;
        match fault {
            Fault::GatewayDies => self.gateway_dies(gateway),
            Fault::GatewayDrains => self.gateway_drains(gateway),
            Fault::RouterDies => self.router_down(false),
            Fault::RouterBecomesZombie => self.router_down(true),
            Fault::StoreDies => self.store_dies(),
            Fault::StoreSlow => self.weather.store_slow = until,
            Fault::StoreFailing => self.weather.store_failing = until,
            Fault::StoreDown => self.weather.store_down = until,
            Fault::LogDies => self.log_crashes(),
            Fault::LogSlow => self.weather.log_slow = until,
            Fault::LogFailing => self.weather.log_failing = until,
            Fault::ProcessDies => {
                for gateway in 0..self.gateways.len() {
                    self.gateway_dies(gateway);
                }
                self.routers_die();
                self.log_crashes();
                self.store_dies();
            }
            Fault::PeersLossy => self.weather.peers_lossy = until,
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
            Fault::MembersChange => self.change_members(),
        }
    }

    /// The store loses power. One that gathers rows in memory is in the router's process.
    fn store_dies(&mut self) {
        self.restarted(Part::Store);
        self.store.crash(&mut self.random);
        self.store_life += 1;
        self.weather.store_down = self.now + self.random.between(50 * MS, 2 * SECOND);
        if self.store.gathers {
            self.routers_die();
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
