//! The newest events of the conversations in which something happened here lately. After a server or a network
//! was away thousands come back who all miss the same few events: they are read from the store once, not once each.
//!
//! Invariants:
//! 1. Rows of one conversation have no hole and end with the newest one seen here.
//! 2. It holds at most about its bound, in two halves: what isn't asked for while the younger one fills is forgotten.
//! 3. It decides nothing: an event is what the log made of its record, wherever it is read.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tidings_core::ids::{ConversationId, Seq};
use tidings_core::rows::EventRow;

/// Events of one conversation, the newest: a page.
const EVENTS_MAX: usize = 100;

/// Bytes of both halves together, of each worker.
const BYTES_MAX: usize = 4 << 20;

/// What an event takes besides its body, roughly.
const EVENT_BYTES: usize = 400;

type Rows = VecDeque<Arc<EventRow>>;

#[derive(Default)]
pub(super) struct Recent {
    young: HashMap<ConversationId, Rows>,
    old: HashMap<ConversationId, Rows>,
    /// Of the younger half.
    bytes: usize,
}

impl Recent {
    /// The next event of a conversation; one that isn't next to the last begins anew, an older one is let be.
    pub(super) fn push(&mut self, row: &Arc<EventRow>) {
        self.renew(row.conversation);
        let rows = self.young.entry(row.conversation).or_default();
        let last = rows.back().map(|last| last.seq);
        if last.is_some_and(|last| row.seq <= last) {
            return;
        }
        if last.is_some_and(|last| row.seq != last + 1) {
            self.bytes -= bytes(rows);
            rows.clear();
        }
        if rows.len() == EVENTS_MAX
            && let Some(first) = rows.pop_front()
        {
            self.bytes -= cost(&first);
        }
        self.bytes += cost(row);
        rows.push_back(Arc::clone(row));
        if self.bytes > BYTES_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
    }

    /// All of `from..=to`, or so many from `from` on as have about `bytes_max` bytes of bodies; empty: not here.
    pub(super) fn get(
        &mut self,
        conversation: ConversationId,
        (from, to): (Seq, Seq),
        bytes_max: usize,
    ) -> Vec<Arc<EventRow>> {
        self.renew(conversation);
        let rows = self.young.get(&conversation);
        let Some((rows, first)) = rows.and_then(|rows| Some((rows, rows.front()?.seq))) else {
            return Vec::new();
        };
        let last = first + rows.len() as Seq - 1;
        if from < first || to > last {
            return Vec::new();
        }
        let mut left = bytes_max;
        let wanted = rows.range((from - first) as usize..=(to - first) as usize);
        let fits = wanted.take_while(|row| {
            let fits = left > 0;
            left = left.saturating_sub(row.body.len());
            fits
        });
        fits.cloned().collect()
    }

    /// What is touched belongs to the younger half.
    fn renew(&mut self, conversation: ConversationId) {
        if let Some(rows) = self.old.remove(&conversation) {
            self.bytes += bytes(&rows);
            self.young.insert(conversation, rows);
        }
    }
}

fn cost(row: &EventRow) -> usize {
    EVENT_BYTES + row.body.len()
}

fn bytes(rows: &Rows) -> usize {
    rows.iter().map(|row| cost(row)).sum()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tidings_core::ids::Position;

    use super::*;

    fn row(conversation: u64, seq: Seq, body: usize) -> Arc<EventRow> {
        let at = Position {
            epoch: 1,
            offset: seq,
        };
        let empty = EventRow::empty(ConversationId(conversation), seq, at, seq, seq - 1);
        Arc::new(EventRow {
            body: Bytes::from(vec![b'x'; body]),
            ..empty
        })
    }

    fn seqs(recent: &mut Recent, from: Seq, to: Seq, bytes_max: usize) -> Vec<Seq> {
        let rows = recent.get(ConversationId(1), (from, to), bytes_max);
        rows.iter().map(|row| row.seq).collect()
    }

    #[test]
    fn it_gives_whole_ranges_of_the_newest_events_or_nothing() {
        let mut recent = Recent::default();
        assert_eq!(seqs(&mut recent, 1, 1, 1000), [0; 0]);
        for seq in 5..=110 {
            recent.push(&row(1, seq, 10));
        }
        recent.push(&row(1, 109, 10));
        assert_eq!(seqs(&mut recent, 109, 110, 1000), [109, 110]);
        assert_eq!(seqs(&mut recent, 109, 111, 1000), [0; 0], "not all there");
        assert_eq!(seqs(&mut recent, 10, 12, 1000), [0; 0], "too old");
        assert_eq!(
            seqs(&mut recent, 11, 110, 25),
            [11, 12, 13],
            "as much as fits"
        );
        recent.push(&row(1, 113, 10));
        assert_eq!(seqs(&mut recent, 110, 110, 1000), [0; 0], "behind a hole");
        assert_eq!(seqs(&mut recent, 113, 113, 1000), [113]);
    }

    #[test]
    fn what_nobody_asks_for_is_forgotten_within_its_bound() {
        let mut recent = Recent::default();
        for conversation in 1..=10_000 {
            recent.push(&row(conversation, 1, 1000));
            assert_eq!(seqs(&mut recent, 1, 1, 1000), [1], "asked for all the time");
        }
        let held: usize = [&recent.young, &recent.old]
            .into_iter()
            .flat_map(|half| half.values().map(bytes))
            .sum();
        assert!(held <= BYTES_MAX + 2000, "{held}");
        let forgotten = recent.get(ConversationId(2), (1, 1), 1000);
        assert!(forgotten.is_empty());
    }
}
