//! Whether the server's order is the file's.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::file::Nick;

/// Where each message of the file was put, as acks and events tell it.
pub(super) struct Order {
    /// The writer's messages by their counters: places in the file.
    places: HashMap<u64, Vec<u32>>,
    /// By place in the file; 0: not told.
    seqs: Mutex<Vec<u64>>,
}

/// How the server's order compares to the file's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Compared {
    /// Messages whose seq isn't known.
    pub untold: u64,
    /// Neighbours in the file of which the later came first.
    pub swapped: u64,
    /// The farthest that a message is from its place in the file, in messages.
    pub farthest: u64,
}

impl Order {
    /// `senders` are the sender ids of `nicks`.
    pub fn new(nicks: &[Nick], senders: impl Iterator<Item = u64>, messages: usize) -> Order {
        let messages_of = nicks.iter().map(|nick| nick.messages.clone());
        Order {
            places: senders.zip(messages_of).collect(),
            seqs: Mutex::new(vec![0; messages]),
        }
    }

    /// The message of this number has this seq.
    pub fn told(&self, sender: u64, counter: u64, seq: u64) {
        let place = self
            .places
            .get(&sender)
            .zip(counter.checked_sub(1))
            .and_then(|(places, at)| places.get(usize::try_from(at).ok()?));
        if let Some(&place) = place {
            self.lock()[place as usize] = seq;
        }
    }

    /// Compares what is known.
    pub fn compare(&self) -> Compared {
        let seqs = self.lock();
        let known: Vec<u64> = seqs.iter().copied().filter(|&seq| seq != 0).collect();
        let swapped = known.windows(2).filter(|two| two[0] > two[1]).count();
        let mut sorted: Vec<(u64, usize)> = known.iter().copied().zip(0..).collect();
        sorted.sort_unstable();
        let farthest = sorted
            .iter()
            .enumerate()
            .map(|(at, &(_, place))| at.abs_diff(place))
            .max();
        Compared {
            untold: (seqs.len() - known.len()) as u64,
            swapped: swapped as u64,
            farthest: farthest.unwrap_or(0) as u64,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        // A number is written whole or not.
        self.seqs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swapped_neighbours_and_the_farthest_are_counted() {
        let nick = |messages: &[u32]| Nick {
            name: String::new(),
            messages: messages.to_vec(),
        };
        // The file: A B A B B; the server: B A A B, and the last isn't told.
        let nicks = [nick(&[0, 2]), nick(&[1, 3, 4])];
        let order = Order::new(&nicks, [70, 80].into_iter(), 5);
        for (sender, counter, seq) in [(80, 1, 10), (70, 1, 11), (70, 2, 12), (80, 2, 13)] {
            order.told(sender, counter, seq);
        }
        order.told(80, 0, 99);
        order.told(90, 1, 99);
        let expected = Compared {
            untold: 1,
            swapped: 1,
            farthest: 1,
        };
        assert_eq!(order.compare(), expected);
        order.told(70, 1, 14);
        assert_eq!(order.compare().farthest, 3, "A's first came last");
    }
}
