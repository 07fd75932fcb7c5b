//! All that can happen to devices, connections and the log, and what must hold in between.

use tidings_core::rows::DAY;
use tidings_core::sequencer::Verdict;

use super::device::{Device, Fate};
use super::{Answered, Copies, NewEpoch, Rules};
use crate::history::{Conversation, Entry, FOUNDING, Rec, Taken, day};
use crate::search::Next;

/// Records that a device gave to a gateway.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Connection {
    device: usize,
    life: u8,
    epoch: u8,
    /// Each with its day.
    records: Vec<(Rec, u16)>,
    /// How many are appended or lost.
    done: usize,
}

/// An entry, its day, and the life whose connection it came by: only that one is answered.
type Logged = (Entry, u16, u8);

/// A state of the search.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World {
    devices: Vec<Device>,
    connections: Vec<Connection>,
    log: Vec<Logged>,
    backup: Option<Device>,
    copied: bool,
    /// Which of the days it is.
    today: usize,
    epoch: u8,
    /// Where the epoch begins in `log`: what stands before was in the store when the log was lost.
    epoch_at: usize,
    /// Messages accepted in the part that was lost.
    lost: Vec<u8>,
}

impl World {
    /// One device, one connection, an empty log.
    pub fn new() -> World {
        World {
            devices: vec![Device::new(FOUNDING)],
            connections: vec![connection(0, 1)],
            log: vec![],
            backup: None,
            copied: false,
            today: 0,
            epoch: 1,
            epoch_at: 0,
            lost: vec![],
        }
    }

    fn last_of(&mut self, device: usize) -> &mut Connection {
        let mut latest_first = self.connections.iter_mut().rev();
        latest_first
            .find(|c| c.device == device)
            .expect("every device has connected")
    }

    fn connect(&mut self, device: usize, day: u16) {
        let records = self.devices[device].sends_again(day);
        self.connections.push(Connection {
            records: records.into_iter().map(|rec| (rec, day)).collect(),
            life: self.devices[device].life,
            ..connection(device, self.epoch)
        });
    }
}

impl Default for World {
    fn default() -> World {
        World::new()
    }
}

fn connection(device: usize, epoch: u8) -> Connection {
    Connection {
        device,
        life: 0,
        epoch,
        records: vec![],
        done: 0,
    }
}

/// The log as the code reads it.
struct Reading {
    after: Conversation,
    taken: Vec<Taken>,
    /// Message and seq.
    accepted: Vec<(u8, u64)>,
    /// All seqs, in order.
    seqs: Vec<u64>,
}

fn read(log: &[Logged]) -> Reading {
    let mut after = Conversation::founded();
    let (mut taken, mut accepted, mut seqs) = (vec![], vec![], vec![]);
    for (entry, on, _) in log {
        let became = after.take(entry, day(*on));
        match (&became, entry) {
            (Taken::Sent(answer), Entry::Send(rec)) if answer.verdict == Verdict::Accepted => {
                accepted.push((rec.id, answer.seq));
                seqs.push(answer.seq);
            }
            (Taken::Members(Verdict::Accepted, seq), _) => seqs.push(*seq),
            _ => {}
        }
        taken.push(became);
    }
    Reading {
        after,
        taken,
        accepted,
        seqs,
    }
}

impl Reading {
    fn found(&self) -> Vec<u8> {
        self.accepted.iter().map(|a| a.0).collect()
    }

    /// The answer to the entry `at`, if it is a send.
    fn answer(&self, log: &[Logged], at: usize) -> Option<Answered> {
        let (Taken::Sent(answer), Entry::Send(rec)) = (&self.taken[at], log[at].0) else {
            return None;
        };
        let upto = self.accepted.iter().filter(|a| a.1 <= answer.head);
        Some(Answered {
            rec,
            answer: *answer,
            day_of_n: (answer.ts.saturating_sub(day(0)) / DAY) as u16,
            found_to_answer: upto.map(|a| a.0).collect(),
            found: self.found(),
        })
    }
}

/// Everything that can happen next.
pub(super) fn next(world: &World, rules: &Rules) -> Vec<Next<World>> {
    let mut out: Vec<Next<World>> = vec![];
    let today = rules.days[world.today];
    let reading = read(&world.log);
    for index in 0..world.devices.len() {
        steps_of_device(world, index, &reading, rules, &mut out);
    }
    if rules.copies != Copies::None && world.backup.is_none() && !world.copied {
        let mut n = world.clone();
        n.backup = Some(world.devices[0].clone());
        out.push((("device is backed up", [0; 3]), n, None));
    }
    if let Some(backup) = &world.backup {
        let mut n = world.clone();
        let mut copy = backup.clone();
        copy.wakes_up(&reading.found());
        (n.backup, n.copied) = (None, true);
        let index = if rules.copies == Copies::Live { 1 } else { 0 };
        n.devices.truncate(index);
        n.devices.push(copy);
        meet_epoch(&mut n, index, &reading, rules);
        n.connect(index, today);
        out.push((("backup is put back and connects", [0; 3]), n, None));
    }
    if world.log.len() < rules.log {
        for x in 0..world.connections.len() {
            append(world, x, today, rules, &mut out);
        }
        if rules.members {
            let added = world.log.iter().any(|e| e.0 == Entry::Add);
            let removed = world.log.iter().any(|e| e.0 == Entry::Remove);
            let (entry, name) = match removed {
                false => (Entry::Remove, "user is removed"),
                true => (Entry::Add, "user is added"),
            };
            if !added {
                let mut n = world.clone();
                n.log.push((entry, today, 0));
                out.push(((name, [0; 3]), n, None));
            }
        }
    }
    if world.today + 1 < rules.days.len() {
        let mut n = world.clone();
        n.today += 1;
        let on = rules.days[n.today];
        out.push((("days pass", [(on >> 8) as u8, on as u8, 0]), n, None));
    }
    if rules.loses_log && world.epoch == 1 {
        for kept in 0..=world.log.len() {
            let mut n = world.clone();
            let before = read(&world.log[..kept]).found();
            let gone = reading.found();
            n.lost = gone.into_iter().filter(|id| !before.contains(id)).collect();
            n.log.truncate(kept);
            (n.epoch, n.epoch_at) = (2, kept);
            out.push((("log is lost from entry", [kept as u8, 0, 0]), n, None));
        }
    }
    out
}

fn append(world: &World, x: usize, today: u16, rules: &Rules, out: &mut Vec<Next<World>>) {
    let connection = &world.connections[x];
    if connection.epoch != world.epoch && rules.epoch_ends_connections {
        return;
    }
    let left = connection.records.len() - connection.done;
    let lost_before = if rules.prefix { left.min(1) } else { left };
    for skip in 0..lost_before {
        let (rec, given) = connection.records[connection.done + skip];
        if today - given > rules.late_days {
            continue;
        }
        let mut n = world.clone();
        n.connections[x].done += skip + 1;
        n.log.push((Entry::Send(rec), today, connection.life));
        let name = "gateway appends (connection, message, counter)";
        out.push(((name, [x as u8, rec.id, rec.counter]), n, None));
    }
}

fn steps_of_device(
    world: &World,
    index: usize,
    reading: &Reading,
    rules: &Rules,
    out: &mut Vec<Next<World>>,
) {
    let who = index as u8;
    let today = rules.days[world.today];
    let device = &world.devices[index];
    let mine = world.connections.iter().filter(|c| c.device == index);
    let has_room = mine.clone().count() < rules.connections;
    let is_current = device.epoch == world.epoch || rules.new_epoch == NewEpoch::Ignored;
    let epoch_of = mine.clone().next_back().map_or(0, |c| c.epoch);
    let is_connected = is_current && epoch_of == world.epoch;
    let is_expired = device.is_expired(today, rules);
    if is_connected && is_expired && !device.may_be_under_way(today, rules) {
        let mut n = world.clone();
        n.devices[index].take_fresh_sender(&reading.found(), today);
        let name = "device finds its sender id too old (device)";
        out.push(((name, [who, 0, 0]), n, None));
    }
    let unnumbered = device.next_unnumbered(rules.messages);
    if let Some(i) = unnumbered.filter(|_| is_connected && !is_expired && device.may_number()) {
        let mut n = world.clone();
        let rec = n.devices[index].number(i, today);
        n.last_of(index).records.push((rec, today));
        let name = "device sends (device, message, counter)";
        out.push(((name, [who, rec.id, rec.counter]), n, None));
    }
    let present = reading.after.grant();
    if is_current && present > device.grant && !device.is_in_doubt() {
        let mut n = world.clone();
        n.devices[index].learn_grant(present, today);
        let name = "device learns of its grant (device, grant)";
        out.push(((name, [who, present, 0]), n, None));
    }
    let is_used = mine
        .clone()
        .next_back()
        .is_some_and(|c| !c.records.is_empty());
    if (has_room && is_used && !is_expired) || epoch_of != world.epoch {
        let mut n = world.clone();
        meet_epoch(&mut n, index, reading, rules);
        n.connect(index, today);
        let name = "device reconnects and resends (device)";
        out.push(((name, [who, 0, 0]), n, None));
    }
    for at in world.epoch_at..world.log.len() {
        let (_, on, life) = world.log[at];
        if !is_connected || today - on > rules.late_days || life != device.life {
            continue;
        }
        let Some(answer) = reading.answer(&world.log, at) else {
            continue;
        };
        let mut n = world.clone();
        let mut again = n.devices[index].hear(&answer, today, rules);
        if n.devices[index].is_expired(today, rules) {
            again.clear();
        }
        let last = n.last_of(index);
        let again: Vec<(Rec, u16)> = again.into_iter().map(|rec| (rec, today)).collect();
        if !again.is_empty() && last.records.len() < 7 && !last.records.ends_with(&again) {
            last.records.extend(again);
        }
        if n != *world {
            let verdict = answer.answer.verdict;
            let numbers = [at as u8, answer.rec.id, answer.answer.counter as u8];
            out.push(((name_of(verdict), numbers), n, None));
        }
    }
}

/// What a device does when `ready` names an epoch that isn't its own.
fn meet_epoch(world: &mut World, index: usize, reading: &Reading, rules: &Rules) {
    let today = rules.days[world.today];
    let (epoch, grant) = (world.epoch, reading.after.grant());
    let device = &mut world.devices[index];
    if device.epoch == epoch || rules.new_epoch == NewEpoch::Ignored {
        return;
    }
    let found = match rules.new_epoch {
        NewEpoch::LookedUp => reading.found(),
        _ => vec![],
    };
    device.reset(epoch, grant, &found, today);
}

fn name_of(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Accepted => "device hears accepted (position, message, n)",
        Verdict::Duplicate => "device hears duplicate (position, message, n)",
        Verdict::Gap => "device hears gap (position, message, n)",
        Verdict::Over => "device hears over (position, message, n)",
        Verdict::Fork => "device hears fork (position, message, n)",
        Verdict::Stale => "device hears stale (position, message, n)",
    }
}

/// What is wrong with a state, of all that the rules ask for.
pub(super) fn check(world: &World, rules: &Rules) -> Option<String> {
    let is_asked = |wrong: &String| wrong.contains(rules.only);
    let mut wrong = wrong_with(world, rules).into_iter().filter(is_asked);
    wrong.next().or_else(|| {
        let stuck = "stuck: an end without faults doesn't decide every message".to_owned();
        (is_asked(&stuck) && !settles(world, rules)).then_some(stuck)
    })
}

fn wrong_with(world: &World, rules: &Rules) -> Vec<String> {
    let mut wrong = vec![];
    let reading = read(&world.log);
    let accepted = &reading.accepted;
    for (i, &(id, seq)) in accepted.iter().enumerate() {
        if let Some(first) = accepted[..i].iter().find(|a| a.0 == id) {
            wrong.push(format!("message {id} has two seqs, {} and {seq}", first.1));
        }
        let is_in_order = accepted[..i].iter().all(|a| a.0 < id);
        if rules.copies == Copies::None && !is_in_order {
            wrong.push(format!("message {id} is out of order"));
        }
    }
    // Seqs follow the founding's, one by one: so none is missing, and none is given twice.
    let expected = u64::from(FOUNDING) + 1..;
    if let Some((want, got)) = expected.zip(&reading.seqs).find(|(want, got)| want != *got) {
        wrong.push(format!("seq {got} follows {}", want - 1));
    }
    for device in &world.devices {
        for m in &device.messages {
            let is_there = accepted.iter().any(|a| a.0 == m.id) || world.lost.contains(&m.id);
            if m.fate == Fate::Sent && !is_there {
                wrong.push(format!("message {} is told sent and isn't", m.id));
            }
            if m.fate == Fate::Failed && is_there {
                wrong.push(format!("message {} is told failed and is sent", m.id));
            }
        }
    }
    wrong
}

/// From any state: everybody reconnects, all that is resent is appended and answered, a few times
/// over; then nothing may be left in doubt.
fn settles(world: &World, rules: &Rules) -> bool {
    if !world.devices.iter().any(Device::is_in_doubt) {
        return true;
    }
    let mut n = world.clone();
    let today = rules.days[n.today];
    for _ in 0..8 {
        for index in 0..n.devices.len() {
            let reading = read(&n.log);
            meet_epoch(&mut n, index, &reading, rules);
            let device = &mut n.devices[index];
            let present = reading.after.grant();
            if present > device.grant && !device.is_in_doubt() {
                device.learn_grant(present, today);
            }
            if device.is_expired(today, rules) {
                device.take_fresh_sender(&reading.found(), today);
            }
            let mut send = device.unacknowledged();
            while !send.is_empty() {
                let from = n.log.len();
                let life = n.devices[index].life;
                let entries = send.drain(..).map(|rec| (Entry::Send(rec), today, life));
                n.log.extend(entries);
                let reading = read(&n.log);
                for at in from..n.log.len() {
                    let answer = reading.answer(&n.log, at).expect("a send");
                    send.extend(n.devices[index].hear(&answer, today, rules));
                }
                if n.log.len() > 60 {
                    return false;
                }
            }
        }
        if !n.devices.iter().any(Device::is_in_doubt) {
            return true;
        }
    }
    false
}
