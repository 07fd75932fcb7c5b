//! Access tokens of all nicks, fetched in bulk as they are needed.

use std::time::{Duration, Instant};

use crate::api::{AccessToken, Api, BULK_MAX};

/// A token that ends sooner is fetched anew.
const FRESH_FOR: Duration = Duration::from_secs(90);

/// The device of every nick.
const DEVICE: &str = "replay";

pub(super) struct Tokens {
    api: Api,
    users: Vec<u64>,
    tokens: Vec<Option<AccessToken>>,
}

impl Tokens {
    pub fn new(api: Api, users: Vec<u64>) -> Tokens {
        let tokens = vec![None; users.len()];
        Tokens { api, users, tokens }
    }

    /// The token of this nick. If it must be fetched, so are those that `soon` are needed.
    pub fn get(&mut self, nick: usize, soon: impl Iterator<Item = usize>) -> anyhow::Result<&str> {
        let fresh_until = Instant::now() + FRESH_FOR;
        let is_fresh =
            |token: &Option<AccessToken>| token.as_ref().is_some_and(|t| t.expires > fresh_until);
        if !is_fresh(&self.tokens[nick]) {
            let mut asked = vec![false; self.users.len()];
            let mut wanted = Vec::with_capacity(BULK_MAX);
            for nick in std::iter::once(nick).chain(soon) {
                if !asked[nick] && !is_fresh(&self.tokens[nick]) {
                    asked[nick] = true;
                    wanted.push(nick);
                    if wanted.len() == BULK_MAX {
                        break;
                    }
                }
            }
            let users: Vec<u64> = wanted.iter().map(|&nick| self.users[nick]).collect();
            let fetched = self.api.tokens(&users, DEVICE)?;
            for (nick, token) in wanted.into_iter().zip(fetched) {
                self.tokens[nick] = Some(token);
            }
        }
        Ok(self.tokens[nick].as_ref().map_or("", |t| t.token.as_str()))
    }

    /// The server doesn't take it: the next one is fetched.
    pub fn refused(&mut self, nick: usize) {
        self.tokens[nick] = None;
    }
}
