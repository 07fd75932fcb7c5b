//! An HTTP caller with an idempotency key: single-use senders (`once`).
//!
//! The caller repeats its request as long as it likes to, within seven days of the first. Each request
//! asks how the conversation stands, appends a record under that grant, and when that is `over` asks
//! and appends once more (`server/src/routed.rs`). A request may be given up at any time, and its record
//! be appended all the same, in any order with those of others.
//!
//! Checked in every state: no second event of the key within seven days of the first; every answer
//! names the event that there is, and all name the same one; a refused request has no event, nor ever
//! will; and a further request, without faults, is answered.

use tidings_core::planted::{self, Mistake};
use tidings_core::rows::DAY;
use tidings_core::sequencer::{ONCE_MAX, Verdict};

use crate::history::{Conversation, Entry, Rec, Taken, day};
use crate::search::{Next, Outcome, search};

/// A case.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Requests under the one key.
    pub requests: usize,
    /// The user may be removed and come back, once.
    pub members: bool,
    /// The days on which anything happens, ascending, the first one 0.
    pub days: &'static [u16],
    /// Records are appended at most this many days late.
    pub late_days: u16,
    /// Requests are repeated on days up to this one.
    pub repeat_days: u16,
    /// Safeguard: records say that their sender is for one message only.
    pub says_once: bool,
    /// A mistake in the code itself.
    pub planted: Option<Mistake>,
}

impl Default for Rules {
    /// Three requests within six days, with a removal and a return.
    fn default() -> Rules {
        Rules {
            requests: 3,
            members: true,
            days: &[0, 3, 6],
            late_days: 0,
            repeat_days: 6,
            says_once: true,
            planted: None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Stage {
    /// It will ask for the grant.
    Asks,
    /// Its record is on the way since that day.
    Sent { grant: u8, on: u16 },
    /// Its record is this entry of the log.
    Appended(usize),
    /// Told sent, as the event of this seq.
    Told(u64),
    /// Told refused.
    Refused,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Request {
    stage: Stage,
    tries: u8,
    /// The caller has given up waiting: it isn't told anything.
    is_given_up: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    requests: Vec<Request>,
    log: Vec<(Entry, u16)>,
    today: usize,
}

const FIRST: Request = Request {
    stage: Stage::Asks,
    tries: 0,
    is_given_up: false,
};

/// Each try of each request is a message of its own.
fn id(request: usize, tries: u8) -> u8 {
    request as u8 * 2 + tries
}

fn read(log: &[(Entry, u16)]) -> (Conversation, Vec<Taken>) {
    let mut after = Conversation::founded();
    let taken = log.iter().map(|(e, on)| after.take(e, day(*on)));
    let taken = taken.collect();
    (after, taken)
}

fn record(request: usize, tries: u8, grant: u8, rules: &Rules) -> Rec {
    Rec {
        user: 0,
        sender: 0,
        grant,
        counter: 1,
        id: id(request, tries),
        previous: 0,
        once: rules.says_once,
    }
}

/// What the request does when it is answered.
fn answered(request: &mut Request, verdict: Verdict, seq: u64) {
    request.stage = match verdict {
        Verdict::Accepted | Verdict::Duplicate => Stage::Told(seq),
        Verdict::Over if request.tries == 1 => Stage::Asks,
        _ => Stage::Refused,
    };
}

fn next(world: &World, rules: &Rules) -> Vec<Next<World>> {
    let mut out: Vec<Next<World>> = vec![];
    let today = rules.days[world.today];
    let (after, taken) = read(&world.log);
    for (x, request) in world.requests.iter().enumerate() {
        let who = x as u8;
        let mut n = world.clone();
        let it = &mut n.requests[x];
        match request.stage {
            Stage::Asks if request.is_given_up => {}
            Stage::Asks if after.grant() == 0 => {
                it.stage = Stage::Refused;
                out.push((("request is refused", [who, 0, 0]), n, None));
            }
            Stage::Asks => {
                it.stage = Stage::Sent {
                    grant: after.grant(),
                    on: today,
                };
                it.tries += 1;
                let name = "request is sent under grant";
                out.push(((name, [who, after.grant(), 0]), n, None));
            }
            Stage::Sent { grant, on } if today - on <= rules.late_days => {
                it.stage = Stage::Appended(world.log.len());
                let rec = record(x, request.tries, grant, rules);
                n.log.push((Entry::Send(rec), today));
                out.push((("record is appended", [who, request.tries, grant]), n, None));
            }
            Stage::Appended(at) if !request.is_given_up => {
                if let Taken::Sent(answer) = &taken[at] {
                    answered(it, answer.verdict, answer.seq);
                    let name = "request is answered as seq";
                    out.push(((name, [who, answer.seq as u8, 0]), n, None));
                }
            }
            _ => {}
        }
        let is_waiting = matches!(request.stage, Stage::Sent { .. } | Stage::Appended(_));
        if is_waiting && !request.is_given_up {
            let mut n = world.clone();
            n.requests[x].is_given_up = true;
            out.push((("caller gives up waiting for", [who, 0, 0]), n, None));
        }
    }
    if world.requests.len() < rules.requests && today <= rules.repeat_days {
        let mut n = world.clone();
        n.requests.push(FIRST);
        let name = "caller makes request";
        out.push(((name, [world.requests.len() as u8, 0, 0]), n, None));
    }
    if rules.members && !world.log.iter().any(|e| e.0 == Entry::Add) {
        let mut n = world.clone();
        let removed = world.log.iter().any(|e| e.0 == Entry::Remove);
        let (entry, name) = match removed {
            false => (Entry::Remove, "user is removed"),
            true => (Entry::Add, "user is added"),
        };
        n.log.push((entry, today));
        out.push(((name, [0; 3]), n, None));
    }
    if world.today + 1 < rules.days.len() {
        let mut n = world.clone();
        n.today += 1;
        let on = rules.days[n.today];
        out.push((("days pass", [(on >> 8) as u8, on as u8, 0]), n, None));
    }
    out
}

fn check(world: &World, rules: &Rules) -> Option<String> {
    let (_, taken) = read(&world.log);
    // Which messages are events: their seqs and times.
    let mut events: Vec<(u8, u64, u64)> = vec![];
    for ((entry, _), taken) in world.log.iter().zip(&taken) {
        let (Entry::Send(rec), Taken::Sent(answer)) = (entry, taken) else {
            continue;
        };
        if answer.verdict != Verdict::Accepted {
            continue;
        }
        if let Some(first) = events.iter().find(|e| answer.ts - e.2 <= ONCE_MAX) {
            let days = (answer.ts - first.2) / DAY;
            return Some(format!("the key has two seqs, {days} days apart"));
        }
        events.push((rec.id, answer.seq, answer.ts));
    }
    let mut told = None;
    for (x, request) in world.requests.iter().enumerate() {
        match request.stage {
            Stage::Told(seq) => {
                if !events.iter().any(|e| e.1 == seq) {
                    return Some(format!(
                        "request {x} is told seq {seq}, which isn't its event"
                    ));
                }
                if events.len() == 1 && told.is_some_and(|t| t != seq) {
                    return Some(format!("request {x} is told another seq, {seq}"));
                }
                told = Some(seq);
            }
            Stage::Refused if events.iter().any(|e| e.0 == id(x, 1) || e.0 == id(x, 2)) => {
                return Some(format!("request {x} is refused and its message is there"));
            }
            _ => {}
        }
    }
    (!settles(world, rules)).then(|| "stuck: one more request isn't answered".to_owned())
}

/// One more request, without faults.
fn settles(world: &World, rules: &Rules) -> bool {
    let (mut after, _) = read(&world.log);
    let grant = after.grant();
    if grant == 0 {
        return true;
    }
    let rec = record(world.requests.len(), 1, grant, rules);
    let taken = after.take(&Entry::Send(rec), day(rules.days[world.today]));
    matches!(taken, Taken::Sent(a) if matches!(a.verdict, Verdict::Accepted | Verdict::Duplicate))
}

/// Searches a case.
pub fn run(rules: &Rules, limit: usize) -> Outcome {
    let _made = planted::plant(rules.planted);
    let first = World {
        requests: vec![],
        log: vec![],
        today: 0,
    };
    search(
        &first,
        &|world| next(world, rules),
        &|world| check(world, rules),
        limit,
    )
}
