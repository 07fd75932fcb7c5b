//! The cases, by name: which must be sound, and which safeguard's removal must be found.

use crate::search::Outcome;
use crate::{client, once, store};

mod clients;
mod stores;

/// Which half a case is of, and its rules.
#[derive(Clone, Debug)]
pub enum Model {
    /// Devices, connections, the log.
    Client(client::Rules),
    /// An HTTP caller.
    Once(once::Rules),
    /// Routers and replicas.
    Store(store::Rules),
}

/// A world to search.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it holds, or which safeguard it lacks.
    pub about: &'static str,
    /// Its rules.
    pub model: Model,
    /// What the first violation says; `None`: there must be none.
    pub finds: Option<&'static str>,
    /// Too large for the tests of a debug build.
    pub is_large: bool,
}

impl Case {
    fn sound(name: &'static str, about: &'static str, model: Model) -> Case {
        Case {
            name,
            about,
            model,
            finds: None,
            is_large: false,
        }
    }

    fn large(name: &'static str, about: &'static str, model: Model) -> Case {
        Case {
            is_large: true,
            ..Case::sound(name, about, model)
        }
    }

    fn broken(name: &'static str, about: &'static str, finds: &'static str, model: Model) -> Case {
        Case {
            finds: Some(finds),
            ..Case::sound(name, about, model)
        }
    }

    /// Searches up to `limit` states (of each log, in the store's half).
    pub fn run(&self, limit: usize) -> Outcome {
        match &self.model {
            Model::Client(rules) => client::run(rules, limit),
            Model::Once(rules) => once::run(rules, limit),
            Model::Store(rules) => store::run(rules, limit),
        }
    }

    /// Whether it ended as it must. What was cut is no failure here, but proves nothing.
    ///
    /// # Errors
    /// Says what is wrong: a violation and its steps, or that none was found.
    pub fn judge(&self, outcome: &Outcome) -> Result<(), String> {
        match (&outcome.violation, self.finds) {
            (None, None) => Ok(()),
            (Some(v), Some(finds)) if v.what.contains(finds) => Ok(()),
            (Some(v), None) => Err(format!("{}: {v}", self.name)),
            (Some(v), Some(finds)) => Err(format!("{}: not \"{finds}\" but {v}", self.name)),
            (None, Some(finds)) => Err(format!(
                "{}: \"{finds}\" isn't found in {} states",
                self.name, outcome.states
            )),
        }
    }
}

/// All cases, small ones first within their half.
pub fn all() -> Vec<Case> {
    let mut all = clients::cases();
    all.extend(stores::cases());
    all
}
