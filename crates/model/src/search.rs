//! Breadth-first search: the first violation found is one with the fewest steps.
//!
//! It keeps a 64-bit hash of every state seen, the states of one layer, and 8 bytes a state for the
//! way back. Two states of one hash would be taken for one: with 10 million states the chance of any
//! such pair is 3 in a million.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};

/// What happened, and to whom or what.
pub type Step = (&'static str, [u8; 3]);

/// A step, the state after it, and what was wrong with the step.
pub type Next<S> = (Step, S, Option<String>);

/// A state that must not be, and how it was reached.
#[derive(Clone, Debug)]
pub struct Violation {
    /// What is wrong.
    pub what: String,
    /// All steps from the first state.
    pub trace: Vec<Step>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        for (what, numbers) in &self.trace {
            writeln!(f, "    {what} {numbers:?}")?;
        }
        Ok(())
    }
}

/// How a search ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Different states seen.
    pub states: usize,
    /// It stopped at the limit: what lies beyond is unknown.
    pub is_cut: bool,
    /// The first violation, with which it stops.
    pub violation: Option<Violation>,
}

/// Searches all states that `next` leads to from `first`, at most `limit` of them. What is wrong with a
/// state `check` says, once for each.
pub fn search<S: Hash + Clone>(
    first: &S,
    next: &dyn Fn(&S) -> Vec<Next<S>>,
    check: &dyn Fn(&S) -> Option<String>,
    limit: usize,
) -> Outcome {
    let hasher = BuildHasherDefault::<DefaultHasher>::new();
    let mut seen: HashSet<u64> = HashSet::from([hasher.hash_one(first)]);
    let mut names: Vec<&'static str> = vec![];
    let mut from: Vec<(u32, [u8; 4])> = vec![(u32::MAX, [0; 4])];
    let mut layer = vec![(0u32, first.clone())];
    let mut outcome = Outcome {
        states: 1,
        is_cut: false,
        violation: None,
    };
    while !layer.is_empty() {
        let mut following = vec![];
        for (at, state) in &layer {
            for ((name, [a, b, c]), after, wrong) in next(state) {
                let known = names.iter().position(|&n| n == name);
                let label = known.unwrap_or_else(|| {
                    names.push(name);
                    names.len() - 1
                });
                let label = u8::try_from(label).expect("a model has a few kinds of steps");
                let is_new = seen.insert(hasher.hash_one(&after));
                outcome.states = seen.len();
                let wrong = wrong.or_else(|| is_new.then(|| check(&after)).flatten());
                if let Some(what) = wrong {
                    let mut trace = vec![(name, [a, b, c])];
                    let mut back = *at as usize;
                    while from[back].0 != u32::MAX {
                        let (before, [label, a, b, c]) = from[back];
                        trace.push((names[usize::from(label)], [a, b, c]));
                        back = before as usize;
                    }
                    trace.reverse();
                    outcome.violation = Some(Violation { what, trace });
                    return outcome;
                }
                if !is_new {
                    continue;
                }
                if seen.len() > limit {
                    outcome.is_cut = true;
                    return outcome;
                }
                from.push((*at, [label, a, b, c]));
                following.push((from.len() as u32 - 1, after));
            }
        }
        layer = following;
    }
    outcome
}
