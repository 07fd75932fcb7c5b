//! All that routers and replicas can do.

use super::truth::{HEAD, ROWS, Truth};
use super::{After, Forgets, NO, Returns, Rules};
use crate::search::Next;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
struct Replica {
    /// One bit an entry.
    events: u16,
    /// The version of each row.
    rows: [u8; ROWS],
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Router {
    is_up: bool,
    /// It has the partition for the second time.
    is_again: bool,
    start: u8,
    /// The next entry.
    at: u8,
    /// Numbers of the values it knows.
    known: [u8; ROWS],
    /// What the first half of a read said: versions and events.
    read: Option<([u8; ROWS], u16)>,
    /// Entries whose event rows are confirmed.
    stored: u16,
    /// The versions of rows that are confirmed.
    confirmed: [u8; ROWS],
}

/// A state of the search.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World {
    commit: u8,
    store: [Replica; 3],
    routers: Vec<Router>,
}

const DOWN: Router = Router {
    is_up: false,
    is_again: false,
    start: 0,
    at: 0,
    known: [NO; ROWS],
    read: None,
    stored: 0,
    confirmed: [0; ROWS],
};

impl World {
    /// Nothing is read, nothing is stored but the founding.
    pub fn new(rules: &Rules) -> World {
        World {
            commit: 0,
            store: Default::default(),
            routers: vec![DOWN; rules.routers],
        }
    }
}

/// Which replicas a write may reach, answered or not; more than one of them confirms it.
const REACH: [&[usize]; 6] = [&[0], &[1], &[2], &[0, 1], &[0, 2], &[1, 2]];

/// Everything that can happen next.
pub(super) fn next(world: &World, truth: &Truth, rules: &Rules) -> Vec<Next<World>> {
    let mut out: Vec<Next<World>> = vec![];
    for r in 0..world.routers.len() {
        let me = &world.routers[r];
        let who = r as u8;
        if !me.is_up {
            if r == 0 || world.routers[r - 1].is_up {
                let mut n = world.clone();
                let it = &mut n.routers[r];
                (it.is_up, it.start, it.at) = (true, world.commit, world.commit);
                out.push((("takes over (router, at)", [who, world.commit, 0]), n, None));
            }
            continue;
        }
        let others = world.routers.last().is_some_and(|last| last.is_up);
        let may_return = rules.returns != Returns::Never && !me.is_again && r == 0;
        if may_return && others && world.commit > me.at {
            let mut n = world.clone();
            let known = match rules.returns {
                Returns::Full => me.known,
                _ => [NO; ROWS],
            };
            n.routers[r] = Router {
                is_up: true,
                is_again: true,
                start: world.commit,
                at: world.commit,
                known,
                ..DOWN
            };
            let name = "gets the partition back (router, at)";
            out.push(((name, [who, world.commit, 0]), n, None));
        }
        if me.at < truth.length() {
            reads_and_decides(world, r, truth, rules, &mut out);
        }
        writes(world, r, truth, rules, &mut out);
        commits(world, r, truth, rules, &mut out);
    }
    for (_, n, wrong) in &mut out {
        n.store.sort_unstable(); // Replicas are interchangeable.
        // Deciding is local and only makes more possible: at once, unless memory may be dropped before.
        for r in 0..n.routers.len() {
            while rules.forgets == Forgets::Never && wrong.is_none() && knows(n, r, truth) {
                *wrong = decide(n, r, truth);
            }
        }
    }
    out
}

/// Whether a router is up and knows what the next verdict needs.
fn knows(world: &World, r: usize, truth: &Truth) -> bool {
    let me = &world.routers[r];
    let is_known = |&row: &usize| me.known[row] != NO;
    me.is_up && me.at < truth.length() && truth.needs(me.at).iter().all(is_known)
}

fn decide(n: &mut World, r: usize, truth: &Truth) -> Option<String> {
    let me = &mut n.routers[r];
    let decided = truth.decide(me.at, me.known);
    me.at += 1;
    me.known = decided.after;
    decided.wrong.map(|wrong| format!("router {r} {wrong}"))
}

fn reads_and_decides(
    world: &World,
    r: usize,
    truth: &Truth,
    rules: &Rules,
    out: &mut Vec<Next<World>>,
) {
    let me = &world.routers[r];
    let (who, at) = (r as u8, me.at);
    let needs = truth.needs(at);
    let is_missing = |row: &usize| me.known[*row] == NO;
    let missing: Vec<usize> = needs.iter().copied().filter(is_missing).collect();
    if missing.is_empty() {
        let mut n = world.clone();
        let wrong = decide(&mut n, r, truth);
        out.push((("decides (router, entry)", [who, at, 0]), n, wrong));
    } else {
        let asks: &[&[usize]] = match rules.quorum {
            true => &REACH[3..],
            false => &REACH[..3],
        };
        for ask in asks {
            read(world, r, &missing, ask, truth, rules, out);
        }
    }
    for &row in needs {
        // Just before it is needed again.
        let changed = truth.version(row, me.start, at);
        let may = match rules.forgets {
            Forgets::Never => false,
            Forgets::Any => true,
            Forgets::Stored => me.confirmed[row] >= changed,
        };
        // The code forgets nothing of a conversation that it is reading.
        if me.known[row] != NO && me.read.is_none() && at > me.start && may {
            let mut n = world.clone();
            n.routers[r].known[row] = NO;
            out.push((("forgets (router, row)", [who, row as u8, 0]), n, None));
        }
    }
}

/// Half a read, or all of it when the rows are not ahead.
fn read(
    world: &World,
    r: usize,
    missing: &[usize],
    ask: &[usize],
    truth: &Truth,
    rules: &Rules,
    out: &mut Vec<Next<World>>,
) {
    let (who, at) = (r as u8, world.routers[r].at);
    let mut n = world.clone();
    let it = &mut n.routers[r];
    let events = ask.iter().fold(0, |all, &x| all | world.store[x].events);
    let mut versions = [0; ROWS];
    for &row in missing {
        let read = ask.iter().map(|&x| world.store[x].rows[row]);
        let latest = read.max_by_key(|&v| (truth.stamp(v), v));
        versions[row] = latest.expect("somebody is asked");
    }
    let is_ahead = |versions: [u8; ROWS]| missing.iter().any(|&row| versions[row] > at);
    let (versions, events) = match (it.read.take(), rules.rows_first) {
        (None, false) => {
            it.read = Some(([0; ROWS], events));
            out.push((("reads events (router)", [who, 0, 0]), n, None));
            return;
        }
        (None, true) if is_ahead(versions) && rules.takes_back => {
            it.read = Some((versions, 0));
            let head = versions[HEAD];
            out.push((("reads rows ahead (router, head)", [who, head, 0]), n, None));
            return;
        }
        (None, true) => (versions, 0),
        (Some((versions, _)), true) => (versions, events),
        (Some((_, events)), false) => (versions, events),
    };
    if !rules.never_skips && versions[HEAD] > at {
        let to = versions[HEAD];
        (it.start, it.at, it.known) = (to, to, [NO; ROWS]);
        it.known[HEAD] = truth.number_of(HEAD, to);
        out.push((("skips (router, to)", [who, to, 0]), n, None));
        return;
    }
    let values = if rules.takes_back && is_ahead(versions) {
        truth.before(at, missing, versions, events, rules.exactly)
    } else {
        let number = |&row: &usize| (row, truth.number_of(row, versions[row]));
        Some(missing.iter().map(number).collect())
    };
    let name = match &values {
        Some(_) => "knows rows (router, entry)",
        None => "asks again (router, entry)",
    };
    for (row, number) in values.into_iter().flatten() {
        it.known[row] = number;
    }
    out.push(((name, [who, at, 0]), n, None));
}

fn all_stored(me: &Router, upto: u8, truth: &Truth) -> bool {
    (me.start..upto).all(|at| !truth.is_accepted(at) || me.stored & (1 << at) != 0)
}

fn writes(world: &World, r: usize, truth: &Truth, rules: &Rules, out: &mut Vec<Next<World>>) {
    let me = &world.routers[r];
    let who = r as u8;
    let is_stored = |at: u8| me.stored & (1 << at) != 0;
    let may_write = |at: u8, row: usize| match rules.rows {
        After::AllEarlier => all_stored(me, at + 1, truth),
        After::Same => (me.start..=at).all(|x| !truth.changes(x, row) || is_stored(x)),
        After::Own => is_stored(at),
        After::Nothing => true,
    };
    for at in (me.start..me.at).filter(|&at| truth.is_accepted(at)) {
        for to in REACH {
            if is_stored(at) {
                break;
            }
            let mut n = world.clone();
            for &x in to {
                n.store[x].events |= 1 << at;
            }
            if to.len() > 1 {
                n.routers[r].stored |= 1 << at;
            }
            let name = "writes event (router, entry, replicas)";
            out.push(((name, [who, at, to.len() as u8]), n, None));
        }
        for row in truth.rows_of(at) {
            if me.confirmed[row] > at || !may_write(at, row) {
                continue;
            }
            let wins = |x: u8| truth.stamp(x + 1) > truth.stamp(at + 1);
            let mut later = at + 1..me.at;
            if rules.stamps && later.any(|x| truth.changes(x, row) && may_write(x, row) && wins(x))
            {
                continue; // An older version changes nothing.
            }
            for to in REACH {
                let mut n = world.clone();
                for &x in to {
                    let there = &mut n.store[x].rows[row];
                    if !rules.stamps || truth.stamp(at + 1) >= truth.stamp(*there) {
                        *there = at + 1;
                    }
                }
                if to.len() > 1 {
                    n.routers[r].confirmed[row] = at + 1;
                }
                let name = "writes row (router, row, entry)";
                out.push(((name, [who, row as u8, at]), n, None));
            }
        }
    }
}

fn commits(world: &World, r: usize, truth: &Truth, rules: &Rules, out: &mut Vec<Next<World>>) {
    let me = &world.routers[r];
    let rows_are_there =
        |upto: u8| (0..ROWS).all(|row| me.confirmed[row] >= truth.version(row, me.start, upto));
    let may = |upto: &u8| {
        (!rules.commit_waits_for_events || all_stored(me, *upto, truth))
            && (!rules.commit_waits_for_rows || rows_are_there(*upto))
    };
    let upto = (me.start + 1..=me.at).rev().find(may);
    if let Some(upto) = upto.filter(|&upto| upto != world.commit) {
        let mut n = world.clone();
        n.commit = upto; // A zombie's may also set it back.
        out.push((("commits (router, up to)", [r as u8, upto, 0]), n, None));
    }
}

/// What is wrong with a state.
pub(super) fn check(world: &World, truth: &Truth) -> Option<String> {
    let on_two = |is_there: &dyn Fn(&Replica) -> bool| {
        world.store.iter().filter(|&x| is_there(x)).count() >= 2
    };
    for at in (0..world.commit).filter(|&at| truth.is_accepted(at)) {
        if !on_two(&|x| x.events & (1 << at) != 0) {
            return Some(format!(
                "event {at} is behind the commit and not on two replicas"
            ));
        }
    }
    for row in 0..ROWS {
        let version = truth.version(row, 0, world.commit);
        if !on_two(&|x| x.rows[row] >= version) {
            return Some(format!(
                "row {row} is behind the commit and not on two replicas"
            ));
        }
    }
    None
}
