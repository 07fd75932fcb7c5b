//! Routers and store: does every router, at any time, give each entry the verdict of the log before it?
//!
//! Routers take over at the committed position, crash never and hang as long as they like: a zombie
//! goes on deciding, writing and committing. Every write may reach any one or two of three replicas;
//! two confirm it. Rows that are ahead of the entry are taken back with the code's own `undo`.
//!
//! Checked in every state: a router's answer and its event row are those of the log, to the last
//! field; what is behind the committed position is on two replicas. A wrong verdict is caught when it
//! is given, so event rows always hold the truth, and a row is just "there" (event) or a version.
//!
//! Every log of the given letters is searched on its own.

mod truth;
mod world;

use tidings_core::planted::{self, Mistake};

pub use truth::{Decided, GRANT, HEAD, ROWS, Truth, Values};
pub use world::World;

use crate::search::{Outcome, search};

/// Stands for a row that isn't known.
pub(crate) const NO: u8 = 255;

/// What a log is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Letter {
    /// A device's send: device, its first or second grant, counter.
    Send(u8, u8, u8),
    /// User 0, of device 0, is removed.
    Remove,
    /// And comes back.
    Add,
}

/// For which event rows a row of state waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// All earlier ones and its own.
    AllEarlier,
    /// Those that changed it.
    Same,
    /// Its own.
    Own,
    /// None.
    Nothing,
}

/// When a router may forget a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forgets {
    /// While it has the partition: never.
    Never,
    /// Once it is stored.
    Stored,
    /// At any time.
    Any,
}

/// Whether router 0 gets the partition back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Returns {
    /// No.
    Never,
    /// And has forgotten all.
    Empty,
    /// And remembers what it knew.
    Full,
}

/// A case: how large the world is, and which safeguards there are.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Logs are made of these ...
    pub letters: Vec<Letter>,
    /// ... have this length ...
    pub length: usize,
    /// ... and hold each send at most so often.
    pub most: usize,
    /// If any: these logs instead, each entry with its day.
    pub logs: Vec<Vec<(Letter, u16)>>,
    /// How many routers there may be at once.
    pub routers: usize,
    /// Safeguard: rows of state follow their events.
    pub rows: After,
    /// Safeguard: what changed stays in memory until it is stored.
    pub forgets: Forgets,
    /// Safeguard: a router whose partition returns has forgotten all.
    pub returns: Returns,
    /// Safeguard: rows first, then events (else the other way round).
    pub rows_first: bool,
    /// Safeguard: rows that are ahead are taken back.
    pub takes_back: bool,
    /// Safeguard: events say what the row before was (else it is guessed from the counter).
    pub exactly: bool,
    /// Safeguard: reads ask two replicas.
    pub quorum: bool,
    /// Safeguard: nothing is skipped, though the store says it is done.
    pub never_skips: bool,
    /// Safeguard: the commit waits for event rows.
    pub commit_waits_for_events: bool,
    /// Safeguard: the commit waits for rows of state.
    pub commit_waits_for_rows: bool,
    /// Safeguard: of two versions the one with the later stamp stays (else the one written last).
    pub stamps: bool,
    /// A mistake in the code itself.
    pub planted: Option<Mistake>,
}

impl Default for Rules {
    /// All safeguards; two routers, one device, logs of two entries.
    fn default() -> Rules {
        Rules {
            letters: vec![Letter::Send(0, 1, 1), Letter::Send(0, 1, 2)],
            length: 2,
            most: 2,
            logs: vec![],
            routers: 2,
            rows: After::AllEarlier,
            forgets: Forgets::Never,
            returns: Returns::Never,
            rows_first: true,
            takes_back: true,
            exactly: true,
            quorum: true,
            never_skips: true,
            commit_waits_for_events: true,
            commit_waits_for_rows: true,
            stamps: true,
            planted: None,
        }
    }
}

fn logs(rules: &Rules) -> Vec<Vec<(Letter, u16)>> {
    if !rules.logs.is_empty() {
        return rules.logs.clone();
    }
    let mut out: Vec<Vec<(Letter, u16)>> = vec![vec![]];
    for _ in 0..rules.length {
        let longer = |log: &Vec<(Letter, u16)>| {
            let has = |letter: Letter| log.iter().filter(|l| l.0 == letter).count();
            let may_follow = |&&letter: &&Letter| match letter {
                Letter::Remove => has(letter) == 0,
                Letter::Add => has(letter) == 0 && has(Letter::Remove) == 1,
                Letter::Send(_, 2, _) => has(letter) < rules.most && has(Letter::Add) == 1,
                Letter::Send(..) => has(letter) < rules.most,
            };
            let with = |&letter| [log.as_slice(), &[(letter, 0)]].concat();
            let letters = rules.letters.iter().filter(may_follow);
            letters.map(with).collect::<Vec<_>>()
        };
        out = out.iter().flat_map(longer).collect();
    }
    out
}

/// Searches a case: each log up to `limit` states. Stops at the first violation.
pub fn run(rules: &Rules, limit: usize) -> Outcome {
    let _made = planted::plant(rules.planted);
    let mut all = Outcome {
        states: 0,
        is_cut: false,
        violation: None,
    };
    for log in logs(rules) {
        let truth = Truth::new(&log);
        let first = World::new(rules);
        let one = search(
            &first,
            &|world| world::next(world, &truth, rules),
            &|world| world::check(world, &truth),
            limit,
        );
        all.states += one.states;
        all.is_cut |= one.is_cut;
        if let Some(mut violation) = one.violation {
            let verdicts = truth.verdicts();
            violation.what = format!("{}\n    log {log:?}, {verdicts:?}", violation.what);
            all.violation = Some(violation);
            break;
        }
    }
    all
}
