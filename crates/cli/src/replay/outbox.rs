//! A writer's outbox: numbers that never change, and what an answer means.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::bail;
use tidings_protocol::wire::{Ack, Kind, Send, Status};

/// Unanswered messages of one writer.
pub(super) const IN_FLIGHT_MAX: usize = 64;

/// One writer's messages in the replayed conversation.
pub(super) struct Outbox {
    pub sender: u64,
    /// 0: not known yet.
    pub grant: u64,
    counter: u64,
    last_id: u64,
    waiting: VecDeque<Numbered>,
}

/// A message without an answer.
pub(super) struct Numbered {
    /// Its place in the file.
    pub message: u32,
    pub counter: u64,
    pub id: u64,
    previous: u64,
    /// First sent.
    pub since: Instant,
}

/// What an answer asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Then {
    GoOn,
    /// All that waits must be sent again.
    Again,
}

impl Outbox {
    pub fn new(sender: u64) -> Outbox {
        Outbox {
            sender,
            grant: 0,
            counter: 0,
            last_id: 0,
            waiting: VecDeque::new(),
        }
    }

    /// Numbers the writer's next message; answers its counter.
    pub fn number(&mut self, message: u32, id: u64, since: Instant) -> u64 {
        self.counter += 1;
        self.waiting.push_back(Numbered {
            message,
            counter: self.counter,
            id,
            previous: std::mem::replace(&mut self.last_id, id),
            since,
        });
        self.counter
    }

    /// The messages without an answer, in order.
    pub fn waiting(&self) -> &VecDeque<Numbered> {
        &self.waiting
    }

    /// The message as it is sent, each time alike.
    pub fn send(&self, numbered: &Numbered, conversation: u64, text: &str) -> Send {
        Send {
            conversation,
            sender: self.sender,
            grant: self.grant,
            counter: numbered.counter,
            id: numbered.id,
            previous: numbered.previous,
            kind: Kind::Text.into(),
            body: text.as_bytes().to_vec().into(),
            encoding: 0,
        }
    }

    /// Takes what an answer says; those that it decides are given to `sent`.
    pub fn answer(&mut self, ack: &Ack, mut sent: impl FnMut(Numbered)) -> anyhow::Result<Then> {
        if ack.counter > self.counter {
            bail!("an answer for a message that was never sent: {ack:?}");
        }
        while let Some(first) = self.waiting.front() {
            if first.counter > ack.counter {
                break;
            }
            if first.counter == ack.counter && first.id != ack.id {
                bail!("an answer names another message than was sent: {ack:?}");
            }
            if let Some(first) = self.waiting.pop_front() {
                sent(first);
            }
        }
        match Status::try_from(ack.status) {
            Ok(Status::Sent) => Ok(Then::GoOn),
            Ok(Status::Gap) if self.waiting.is_empty() => Ok(Then::GoOn),
            Ok(Status::Gap) => Ok(Then::Again),
            // Nobody leaves, and nobody else has this outbox.
            _ => bail!("an answer that can't be, as nobody left and no outbox is a copy: {ack:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(counter: u64, id: u64, status: Status) -> Ack {
        Ack {
            counter,
            id,
            status: status.into(),
            ..Ack::default()
        }
    }

    #[test]
    fn answers_are_cumulative_and_a_gap_asks_for_the_rest_again() {
        let mut outbox = Outbox::new(5);
        for (message, id) in [(0, 100), (7, 101), (9, 102)] {
            outbox.number(message, id, Instant::now());
        }
        let sends: Vec<Send> = outbox
            .waiting()
            .iter()
            .map(|n| outbox.send(n, 1, "x"))
            .collect();
        let previous: Vec<u64> = sends.iter().map(|s| s.previous).collect();
        assert_eq!(previous, [0, 100, 101]);

        let mut sent = Vec::new();
        let then = outbox.answer(&ack(2, 101, Status::Sent), |n| sent.push(n.message));
        assert_eq!((then.expect("fine"), &sent[..]), (Then::GoOn, &[0, 7][..]));
        let then = outbox.answer(&ack(2, 101, Status::Gap), |_| panic!("nothing new"));
        assert_eq!(then.expect("fine"), Then::Again);
        outbox
            .answer(&ack(3, 666, Status::Sent), |_| ())
            .expect_err("another message's id");
        outbox
            .answer(&ack(4, 103, Status::Sent), |_| ())
            .expect_err("never sent");
        outbox
            .answer(&ack(2, 101, Status::Over), |_| ())
            .expect_err("nobody left");
    }
}
