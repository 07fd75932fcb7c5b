//! What is appended to the log: a user's send, or a change of members from the directory.
//!
//! The first byte says which, and in which version: a changed layout gets another number. Every version
//! begins with that byte and the conversation, so that a router can make an empty event of a record it can't
//! read. That loses a message: so no release writes a version that the release before it doesn't read
//! (docs/decisions/0012-versions.md). `tests/fixtures/records-1.hex` has the bytes of version 1.

use bytes::Bytes;

use crate::ids::{
    ConversationId, GatewayId, MessageKey, Micros, Position, SenderId, Seq, SessionId, UserId,
};
use crate::varint::{self, Malformed, Reader};

/// What an event's body is. The numbers are stored and sent: never reuse one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Kind {
    /// UTF-8 text.
    #[default]
    Text = 0,
    /// A JSON value of the application's own.
    Json = 1,
    /// Nothing: a numbered message that was refused for good or can't be stored.
    Empty = 2,
    /// A change of who may do what.
    Members = 3,
}

impl Kind {
    /// The kind with this number.
    pub fn from_number(n: u8) -> Option<Kind> {
        [Kind::Text, Kind::Json, Kind::Empty, Kind::Members]
            .into_iter()
            .find(|k| *k as u8 == n)
    }
}

/// How a body's bytes are to be read. The numbers are stored and sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Encoding {
    /// As they are.
    #[default]
    Identity = 0,
    /// One zstd frame made by the sender.
    Zstd = 1,
}

impl Encoding {
    /// The encoding with this number.
    pub fn from_number(n: u8) -> Option<Encoding> {
        [Encoding::Identity, Encoding::Zstd]
            .into_iter()
            .find(|e| *e as u8 == n)
    }
}

/// A member's place in a conversation. The numbers are stored and sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum Role {
    /// Not a member.
    #[default]
    None = 0,
    /// Reads and reacts.
    Reader = 1,
    /// Reads and writes.
    Member = 2,
    /// Also changes members.
    Admin = 3,
    /// Also changes admins.
    Owner = 4,
}

impl Role {
    /// The role with this number.
    pub fn from_number(n: u8) -> Option<Role> {
        [
            Role::None,
            Role::Reader,
            Role::Member,
            Role::Admin,
            Role::Owner,
        ]
        .into_iter()
        .find(|r| *r as u8 == n)
    }

    /// Whether it is a place in the conversation at all.
    pub fn is_member(self) -> bool {
        self != Role::None
    }

    /// Whether the role's grant is one to write; a change of this ends a grant and starts another.
    pub fn may_write(self) -> bool {
        self >= Role::Member
    }
}

/// What kind of conversation. The numbers are stored and sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum ConversationKind {
    /// Of two users, one per pair.
    #[default]
    Direct = 0,
    /// Everybody writes.
    Group = 1,
    /// Some write, many read.
    Channel = 2,
}

impl ConversationKind {
    /// The kind with this number.
    pub fn from_number(n: u8) -> Option<ConversationKind> {
        [
            ConversationKind::Direct,
            ConversationKind::Group,
            ConversationKind::Channel,
        ]
        .into_iter()
        .find(|k| *k as u8 == n)
    }
}

/// Where the answer to a send goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Origin {
    /// The gateway worker that appended it.
    pub gateway: GatewayId,
    /// The session it came from; the accepted event isn't sent back to it.
    pub session: SessionId,
}

/// A user's numbered message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Send {
    /// Who sends.
    pub user: UserId,
    /// Through which outbox.
    pub sender: SenderId,
    /// Under which grant: the seq of the event that let the user write.
    pub grant: Seq,
    /// 1, 2, 3, … per (conversation, sender, grant).
    pub counter: u64,
    /// The message's own 8 bytes.
    pub id: MessageKey,
    /// The id under `counter - 1`; 0 for the first.
    pub previous: MessageKey,
    /// A single-use sender, as an HTTP `Idempotency-Key` makes one: counter 1 only.
    pub once: bool,
    /// What the body is.
    pub kind: Kind,
    /// How the body is written.
    pub encoding: Encoding,
    /// The body, at most the published limit.
    pub body: Bytes,
    /// Where the answer goes.
    pub origin: Origin,
    /// When the gateway took it (its clock), for latency only: nothing is decided by it.
    pub taken: Micros,
}

/// What a directory version says of one user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoleChange {
    /// Whose place changes.
    pub user: UserId,
    /// The new role; [`Role::None`] ends the membership.
    pub role: Role,
}

/// A directory's numbered change of members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Membership {
    /// The conversation's directory version: 1 for its creation.
    pub version: u64,
    /// Who decided it; 0 for the directory itself.
    pub by: UserId,
    /// At most [`MEMBERS_PER_EVENT_MAX`] users.
    pub changes: Vec<RoleChange>,
    /// The conversation's kind.
    pub kind: ConversationKind,
    /// The conversation's title; may be empty.
    pub title: String,
}

/// How many users one membership event names at most (design.md, section 3).
pub const MEMBERS_PER_EVENT_MAX: usize = 1000;

/// The content of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// A user's message.
    Send(Send),
    /// A change of members.
    Membership(Membership),
}

/// What is appended under a conversation's key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The key: records of one conversation keep their order.
    pub conversation: ConversationId,
    /// What it says.
    pub content: Content,
}

/// A record read back from the log: it is committed, and so may be acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Committed {
    /// Where it stands.
    pub position: Position,
    /// When it was appended, by the log's clock: doesn't run back embedded, may in Kafka.
    pub appended: Micros,
    /// The record's bytes as [`Record::encode`] wrote them.
    pub payload: Bytes,
}

/// Version 1 of both. Never reuse a number.
const SEND: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// What every record begins with: its type, and its conversation.
const PREFIX_BYTES: usize = 9;

impl Record {
    /// The stored bytes: tag, conversation, then the fields in the order of their declaration.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match &self.content {
            Content::Send(send) => {
                out.push(SEND);
                out.extend_from_slice(&self.conversation.0.to_le_bytes());
                send.encode(out);
            }
            Content::Membership(change) => {
                out.push(MEMBERSHIP);
                out.extend_from_slice(&self.conversation.0.to_le_bytes());
                change.encode(out);
            }
        }
    }

    /// Takes a payload apart; the body shares its memory.
    pub fn decode(payload: &Bytes) -> Result<Record, Malformed> {
        let mut r = Reader::new(payload, "log record");
        let tag = r.byte()?;
        let conversation = ConversationId(r.fixed64()?);
        let content = match tag {
            SEND => Content::Send(Send::decode(&mut r, payload)?),
            MEMBERSHIP => Content::Membership(Membership::decode(&mut r)?),
            _ => return Err(r.malformed()),
        };
        Ok(Record {
            conversation,
            content,
        })
    }

    /// Why a payload can't be read, for whoever looks at a dead letter: the record's type if it's
    /// none of ours, else what the decoder met and where.
    pub fn why_unreadable(payload: &[u8], error: Malformed) -> String {
        if payload.len() < PREFIX_BYTES {
            let n = payload.len();
            return format!(
                "{n} bytes are too few for a record: its conversation takes {PREFIX_BYTES}"
            );
        }
        match payload[0] {
            SEND | MEMBERSHIP => error.to_string(),
            tag => format!("a record of type {tag}, which this version does not know"),
        }
    }

    /// The fields of a payload from the front as far as they can be read, for people.
    pub fn outline(payload: &[u8]) -> Vec<(&'static str, String)> {
        let mut fields = Vec::new();
        // Where it ends early, what was read stays.
        _ = outline(&mut Reader::new(payload, "log record"), &mut fields);
        fields
    }

    /// The conversation alone, for a record whose content can't be read.
    pub fn conversation_of(payload: &[u8]) -> Option<ConversationId> {
        let mut r = Reader::new(payload, "log record");
        r.byte().ok()?;
        r.fixed64().ok().map(ConversationId)
    }
}

/// [`Record::outline`]; numbers are shown whether or not they are known ones.
fn outline(r: &mut Reader<'_>, fields: &mut Vec<(&'static str, String)>) -> Result<(), Malformed> {
    let tag = r.byte()?;
    let name = match tag {
        SEND => "send".to_owned(),
        MEMBERSHIP => "change of members".to_owned(),
        other => format!("{other}, not known"),
    };
    fields.push(("type", name));
    fields.push(("conversation", format!("{:016x}", r.fixed64()?)));
    match tag {
        SEND => {
            for name in ["user", "sender", "id", "previous"] {
                fields.push((name, format!("{:016x}", r.fixed64()?)));
            }
            for name in ["grant", "counter"] {
                fields.push((name, r.varint()?.to_string()));
            }
            for name in ["once", "kind", "encoding"] {
                fields.push((name, r.byte()?.to_string()));
            }
            for name in ["gateway", "session", "taken", "body bytes"] {
                fields.push((name, r.varint()?.to_string()));
            }
        }
        MEMBERSHIP => {
            fields.push(("version", r.varint()?.to_string()));
            fields.push(("by", format!("{:016x}", r.fixed64()?)));
            fields.push(("kind", r.byte()?.to_string()));
            let title = String::from_utf8_lossy(r.bytes()?);
            fields.push(("title", title.escape_debug().to_string()));
            fields.push(("changes", r.varint()?.to_string()));
        }
        _ => {}
    }
    Ok(())
}

impl Send {
    fn encode(&self, out: &mut Vec<u8>) {
        for fixed in [self.user.0, self.sender.0, self.id.0, self.previous.0] {
            out.extend_from_slice(&fixed.to_le_bytes());
        }
        varint::put(out, self.grant);
        varint::put(out, self.counter);
        out.push(u8::from(self.once));
        out.push(self.kind as u8);
        out.push(self.encoding as u8);
        varint::put(out, u64::from(self.origin.gateway.0));
        varint::put(out, self.origin.session.0);
        varint::put(out, self.taken);
        varint::put_bytes(out, &self.body);
    }

    fn decode(r: &mut Reader<'_>, payload: &Bytes) -> Result<Send, Malformed> {
        Ok(Send {
            user: UserId(r.fixed64()?),
            sender: SenderId(r.fixed64()?),
            id: MessageKey(r.fixed64()?),
            previous: MessageKey(r.fixed64()?),
            grant: r.varint()?,
            counter: r.varint()?,
            once: r.byte()? != 0,
            kind: Kind::from_number(r.byte()?).ok_or(r.malformed())?,
            encoding: Encoding::from_number(r.byte()?).ok_or(r.malformed())?,
            origin: Origin {
                gateway: GatewayId(r.varint32()?),
                session: SessionId(r.varint()?),
            },
            taken: r.varint()?,
            body: payload.slice_ref(r.bytes()?),
        })
    }
}

impl Membership {
    fn encode(&self, out: &mut Vec<u8>) {
        varint::put(out, self.version);
        out.extend_from_slice(&self.by.0.to_le_bytes());
        out.push(self.kind as u8);
        varint::put_bytes(out, self.title.as_bytes());
        varint::put(out, self.changes.len() as u64);
        for change in &self.changes {
            out.extend_from_slice(&change.user.0.to_le_bytes());
            out.push(change.role as u8);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Membership, Malformed> {
        let version = r.varint()?;
        let by = UserId(r.fixed64()?);
        let kind = ConversationKind::from_number(r.byte()?).ok_or(r.malformed())?;
        let title = std::str::from_utf8(r.bytes()?)
            .map_err(|_| r.malformed())?
            .to_owned();
        let count = r.varint()? as usize;
        if count > MEMBERS_PER_EVENT_MAX {
            return Err(r.malformed());
        }
        let mut changes = Vec::with_capacity(count);
        for _ in 0..count {
            let user = UserId(r.fixed64()?);
            changes.push(RoleChange {
                user,
                role: Role::from_number(r.byte()?).ok_or(r.malformed())?,
            });
        }
        Ok(Membership {
            version,
            by,
            changes,
            kind,
            title,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content() -> impl Strategy<Value = Content> {
        let send = (
            any::<[u64; 6]>(),
            any::<(bool, u32, u64)>(),
            0..3u8,
            0..2u8,
            prop::collection::vec(any::<u8>(), 0..300),
        )
            .prop_map(
                |(
                    [user, sender, grant, counter, id, previous],
                    (once, gateway, taken),
                    kind,
                    encoding,
                    body,
                )| {
                    Content::Send(Send {
                        user: UserId(user),
                        sender: SenderId(sender),
                        grant,
                        counter,
                        id: MessageKey(id),
                        previous: MessageKey(previous),
                        once,
                        kind: Kind::from_number(kind).expect("0 to 2 are kinds"),
                        encoding: Encoding::from_number(encoding).expect("0 and 1 are encodings"),
                        body: body.into(),
                        origin: Origin {
                            gateway: GatewayId(gateway),
                            session: SessionId(taken ^ 1),
                        },
                        taken,
                    })
                },
            );
        let change = (any::<u64>(), 0..5u8).prop_map(|(user, role)| RoleChange {
            user: UserId(user),
            role: Role::from_number(role).expect("0 to 4 are roles"),
        });
        let membership = (
            any::<(u64, u64)>(),
            0..3u8,
            ".{0,40}",
            prop::collection::vec(change, 0..20),
        )
            .prop_map(|((version, by), kind, title, changes)| {
                let kind = ConversationKind::from_number(kind).expect("0 to 2 are kinds");
                Content::Membership(Membership {
                    version,
                    by: UserId(by),
                    changes,
                    kind,
                    title,
                })
            });
        prop_oneof![send, membership]
    }

    #[test]
    fn the_reason_says_what_and_where() {
        let check = |payload: &[u8], says: &str| {
            let payload = Bytes::copy_from_slice(payload);
            let error = Record::decode(&payload).expect_err("it can't be read");
            assert_eq!(Record::why_unreadable(&payload, error), says);
        };
        check(
            b"",
            "0 bytes are too few for a record: its conversation takes 9",
        );
        check(
            &[SEND, 1, 2, 3],
            "4 bytes are too few for a record: its conversation takes 9",
        );
        check(
            &[9; 20],
            "a record of type 9, which this version does not know",
        );
        check(
            &[SEND; 20],
            "log record: bytes end early or hold an unknown value, seen after 17 of them",
        );
    }

    proptest! {
        #[test]
        fn what_is_appended_is_what_is_read(conversation: u64, content in content()) {
            let record = Record { conversation: ConversationId(conversation), content };
            let mut payload = Vec::new();
            record.encode(&mut payload);
            let payload = Bytes::from(payload);
            prop_assert_eq!(Record::conversation_of(&payload), Some(record.conversation));
            prop_assert_eq!(Record::decode(&payload), Ok(record));
        }

        #[test]
        fn cut_or_damaged_records_are_errors_and_nothing_worse(content in content(), cut: prop::sample::Index, flip: prop::sample::Index, bits in 1..255u8) {
            let mut payload = Vec::new();
            Record { conversation: ConversationId(7), content }.encode(&mut payload);
            let whole = Record::outline(&payload);
            let short = Bytes::copy_from_slice(&payload[..cut.index(payload.len())]);
            let error = Record::decode(&short).expect_err("it is cut");
            prop_assert!(error.at.is_some_and(|at| at <= short.len()));
            prop_assert!(!Record::why_unreadable(&short, error).is_empty());
            let readable = Record::outline(&short);
            prop_assert!(whole.starts_with(&readable), "{readable:?}");
            let at = flip.index(payload.len());
            payload[at] ^= bits;
            _ = Record::decode(&Bytes::from(payload));
        }
    }
}
