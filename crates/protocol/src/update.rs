//! What can be told of an update by itself, whichever format it came in.

use crate::error::DecodeError;
use crate::limits::NUMBER_MAX;
use crate::wire::{Event, Update, update};

/// Refuses an update with a number above [`NUMBER_MAX`], which no server writes: a client goes on
/// counting from seqs that it was told.
///
/// JSON refuses such a number wherever it stands; in protobuf it is looked for here.
pub(crate) fn check_update(update: &Update) -> Result<(), DecodeError> {
    use update::Update::{
        Ack, Delayed, Error, Event, Heads, Hello, HistoryPage, Lagging, Mode, Pong, Presence,
        Ready, ReauthRequired, Receipts, Reconnect, SyncDone, SyncPage, Typing,
    };
    let greatest = match update.update.as_ref() {
        None => 0,
        Some(Hello(u)) => u.server_time,
        Some(Ready(u)) => u.expires,
        Some(Ack(u)) => all([u.grant, u.counter, u.seq, u.ts, u.head]),
        Some(Event(event)) => of_event(event),
        Some(SyncPage(u)) => all([u.head, u.grant, u.visible_from, u.read, u.missing_from])
            .max(all(u.events.iter().map(of_event))),
        Some(HistoryPage(u)) => all([u.from, u.to, u.head]).max(all(u.events.iter().map(of_event))),
        Some(Heads(u)) => all(u.heads.iter().map(|head| head.seq)),
        Some(Receipts(u)) => all(u.receipts.iter().map(|r| r.delivered.max(r.read))),
        Some(Presence(u)) => all(u.users.iter().map(|user| user.last_seen)),
        Some(Error(u)) => u.counter,
        Some(ReauthRequired(u)) => u.expires,
        Some(Pong(u)) => u.server_time,
        Some(Delayed(u)) => u.seq,
        Some(Mode(u)) => u.since,
        Some(Typing(_) | Reconnect(_) | SyncDone(_) | Lagging(_)) => 0,
    };
    if greatest.max(update.r#ref) <= NUMBER_MAX {
        Ok(())
    } else {
        Err(DecodeError::bad("A number of an update is above 2^53 - 1."))
    }
}

fn of_event(event: &Event) -> u64 {
    let members = event.members.as_ref();
    let of_members = members.map_or(0, |members| {
        members
            .version
            .max(all(members.changes.iter().map(|c| c.ended)))
    });
    all([event.seq, event.ts, event.grant, event.counter, of_members])
}

/// The greatest of them; 0 of none.
fn all(numbers: impl IntoIterator<Item = u64>) -> u64 {
    numbers.into_iter().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::wire::{self, ServerFrame};
    use crate::{Format, decode_server_frame};

    #[test]
    fn a_number_that_no_server_writes_is_refused_in_protobuf_too() {
        use update::Update as U;
        type Make = fn(u64) -> U;
        let updates: [(&str, Make); 8] = [
            ("event", |seq| {
                U::Event(Event {
                    seq,
                    ..Event::default()
                })
            }),
            ("ended", |ended| {
                let change = wire::MemberChange {
                    ended,
                    ..Default::default()
                };
                U::Event(Event {
                    members: Some(wire::Members {
                        changes: vec![change],
                        ..Default::default()
                    }),
                    ..Event::default()
                })
            }),
            ("head", |head| {
                U::SyncPage(wire::SyncPage {
                    head,
                    ..Default::default()
                })
            }),
            ("in a page", |ts| {
                U::HistoryPage(wire::HistoryPage {
                    events: vec![Event {
                        ts,
                        ..Event::default()
                    }],
                    ..Default::default()
                })
            }),
            ("ack", |counter| {
                U::Ack(wire::Ack {
                    counter,
                    ..Default::default()
                })
            }),
            ("heads", |seq| {
                U::Heads(wire::Heads {
                    heads: vec![wire::Cursor {
                        conversation: 1,
                        seq,
                    }],
                })
            }),
            ("receipt", |read| {
                U::Receipts(wire::Receipts {
                    conversation: 1,
                    receipts: vec![wire::Receipt {
                        user: 1,
                        delivered: 0,
                        read,
                    }],
                })
            }),
            ("error", |counter| {
                U::Error(wire::Error {
                    counter,
                    ..Default::default()
                })
            }),
        ];
        for (name, make) in updates {
            let read = |number| {
                let update = Update {
                    r#ref: 0,
                    update: Some(make(number)),
                };
                let frame = ServerFrame {
                    updates: vec![update],
                };
                decode_server_frame(Format::Proto, &frame.encode_to_vec()).is_ok()
            };
            assert!(read(NUMBER_MAX), "{name}");
            assert!(!read(NUMBER_MAX + 1), "{name}");
            assert!(!read(u64::MAX), "{name}");
        }
    }
}
