//! Who may change which members: the rules of every directory, without its tables.
//!
//! A directory takes the conversation's row lock, gathers the [`Facts`] that a [`Request`] asks
//! for, lets [`Request::judge`] decide, and writes what it says in the same transaction. Creations
//! go the same way with [`Founding`] and [`direct`]. What is decided here is decided alike by all.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::ids::{ConversationId, Micros, UserId};
use crate::ports::directory::{
    Change, ConversationRecord, DirectId, DirectoryError, NewConversation, OutboxEntry, Refusal,
    TITLE_BYTES_MAX, What,
};
use crate::record::{
    self, Content, ConversationKind, MEMBERS_PER_EVENT_MAX, Record, Role, RoleChange,
};

/// The longest idempotency key of a creation, in bytes.
const KEY_BYTES_MAX: usize = 128;

/// The state of a user's account, as far as memberships depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Account {
    /// There is none.
    Unknown,
    /// It may be used.
    Open,
    /// It is disabled.
    Shut,
}

impl Account {
    /// Passes users who exist and aren't shut.
    pub fn must_be_open(self) -> Result<(), DirectoryError> {
        match self {
            Account::Unknown => Err(DirectoryError::NotFound(What::User)),
            Account::Open => Ok(()),
            Account::Shut => Err(DirectoryError::Refused(Refusal::Disabled)),
        }
    }
}

/// A user as a conversation sees them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Who.
    pub user: UserId,
    /// As what; [`Role::None`]: not a member.
    pub role: Role,
    /// Whether there is such a user.
    pub account: Account,
    /// Whether they are kept out.
    pub banned: bool,
}

/// What a decision rests on: read under the conversation's lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// The conversation.
    pub conversation: ConversationRecord,
    /// One place for each of [`Request::people`], in that order.
    pub places: Vec<Place>,
    /// Of the members other than [`Request::leaver`] the one with the highest role, and of these the
    /// longest-standing (then the smaller id); none: nobody else is left, or nobody leaves.
    pub next_in_line: Option<(UserId, Role)>,
}

impl Facts {
    fn place(&self, user: UserId) -> Place {
        let found = self.places.binary_search_by_key(&user, |place| place.user);
        found.map_or(
            Place {
                user,
                role: Role::None,
                account: Account::Unknown,
                banned: false,
            },
            |at| self.places[at],
        )
    }

    fn has_other_owner(&self) -> bool {
        matches!(self.next_in_line, Some((_, Role::Owner)))
    }

    /// What a user's leaving changes: the user's place, and a successor's if nobody would own the rest.
    fn departure(&self, user: UserId, role: Role) -> Vec<RoleChange> {
        if role == Role::None {
            return vec![];
        }
        let mut changes = vec![RoleChange {
            user,
            role: Role::None,
        }];
        if role == Role::Owner && !self.has_other_owner() {
            changes.extend(self.next_in_line.map(|(user, _)| RoleChange {
                user,
                role: Role::Owner,
            }));
        }
        changes
    }
}

/// What somebody asks to be changed about a conversation; the port's methods say what each does.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are the port's parameters")]
pub enum Request {
    Join {
        user: UserId,
    },
    Leave {
        user: UserId,
    },
    Add {
        by: UserId,
        users: Vec<UserId>,
        role: Role,
    },
    Remove {
        by: UserId,
        user: UserId,
    },
    SetRole {
        by: UserId,
        user: UserId,
        role: Role,
    },
    Ban {
        by: UserId,
        user: UserId,
    },
    Unban {
        by: UserId,
        user: UserId,
    },
    SetTitle {
        by: UserId,
        title: String,
    },
}

impl Request {
    /// Who acts; 0 is the operator.
    pub fn by(&self) -> UserId {
        match self {
            Request::Join { user } | Request::Leave { user } => *user,
            Request::Add { by, .. }
            | Request::Remove { by, .. }
            | Request::SetRole { by, .. }
            | Request::Ban { by, .. }
            | Request::Unban { by, .. }
            | Request::SetTitle { by, .. } => *by,
        }
    }

    /// Whose places the decision rests on: sorted, each once, without the operator.
    pub fn people(&self) -> Vec<UserId> {
        let mut people = match self {
            Request::Add { users, .. } => users.clone(),
            Request::Join { user }
            | Request::Leave { user }
            | Request::Remove { user, .. }
            | Request::SetRole { user, .. }
            | Request::Ban { user, .. } => vec![*user],
            Request::Unban { .. } | Request::SetTitle { .. } => vec![],
        };
        people.push(self.by());
        people.retain(|user| *user != UserId(0));
        sorted(people)
    }

    /// Who may stop being an owner by this, so that [`Facts::next_in_line`] is asked for.
    pub fn leaver(&self) -> Option<UserId> {
        match self {
            Request::Leave { user }
            | Request::Remove { user, .. }
            | Request::SetRole { user, .. }
            | Request::Ban { user, .. } => Some(*user),
            _ => None,
        }
    }

    /// What can be refused without looking at the conversation.
    pub fn check(&self) -> Result<(), DirectoryError> {
        match self {
            Request::Add { users, .. } if users.len() > MEMBERS_PER_EVENT_MAX => {
                Err(too_many_members())
            }
            Request::SetTitle { title, .. } => check_title(title),
            _ => Ok(()),
        }
    }

    /// Whether the request is granted, and which places it changes; none: everything is so already.
    pub fn judge(&self, facts: &Facts) -> Result<Vec<RoleChange>, DirectoryError> {
        match self {
            Request::Join { user } => {
                let place = facts.place(*user);
                if place.role != Role::None {
                    return Ok(vec![]);
                }
                let role = facts.conversation.join_role;
                if role == Role::None {
                    return Err(DirectoryError::NotFound(What::Conversation));
                }
                must_be_welcome(place)?;
                Ok(vec![RoleChange { user: *user, role }])
            }
            Request::Leave { user } => {
                let own = facts.place(*user).role;
                if own == Role::None {
                    return Err(DirectoryError::NotFound(What::Conversation));
                }
                must_have_changing_members(&facts.conversation)?;
                Ok(facts.departure(*user, own))
            }
            Request::Add { by, users, role } => {
                may_give(actor(facts, *by)?, *role)?;
                let mut changes = Vec::new();
                for user in sorted(users.clone()) {
                    let place = facts.place(user);
                    if place.role == Role::None {
                        must_be_welcome(place)?;
                        changes.push(RoleChange { user, role: *role });
                    }
                }
                Ok(changes)
            }
            Request::Remove { by, user } => {
                let actor = actor(facts, *by)?;
                let theirs = facts.place(*user).role;
                may_touch(actor, theirs)?;
                Ok(facts.departure(*user, theirs))
            }
            Request::SetRole { by, user, role } => judge_role(facts, *by, *user, *role),
            Request::Ban { by, user } => {
                let actor = actor(facts, *by)?;
                let place = facts.place(*user);
                may_touch(actor, place.role)?;
                if place.account == Account::Unknown {
                    return Err(DirectoryError::NotFound(What::User));
                }
                Ok(facts.departure(*user, place.role))
            }
            Request::Unban { by, .. } | Request::SetTitle { by, .. } => {
                may_touch(actor(facts, *by)?, Role::None)?;
                Ok(vec![])
            }
        }
    }
}

fn judge_role(
    facts: &Facts,
    by: UserId,
    user: UserId,
    given: Role,
) -> Result<Vec<RoleChange>, DirectoryError> {
    let actor = actor(facts, by)?;
    let theirs = facts.place(user).role;
    if theirs == Role::None {
        return Err(DirectoryError::NotFound(What::Member));
    }
    let stepping_down = by == user && given <= theirs && given != Role::None;
    if !stepping_down {
        may_touch(actor, theirs)?;
        may_give(actor, given)?;
    }
    if theirs == Role::Owner && given != Role::Owner && !facts.has_other_owner() {
        return Err(DirectoryError::Refused(Refusal::LastOwner));
    }
    if theirs == given {
        Ok(vec![])
    } else {
        Ok(vec![RoleChange { user, role: given }])
    }
}

/// Who wants to change something. An operator ranks above every owner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Actor {
    Member(Role),
    Operator,
}

/// Somebody who wants to change others: to an outsider the conversation doesn't exist.
fn actor(facts: &Facts, by: UserId) -> Result<Actor, DirectoryError> {
    let actor = if by == UserId(0) {
        Actor::Operator
    } else {
        Actor::Member(facts.place(by).role)
    };
    if actor == Actor::Member(Role::None) {
        return Err(DirectoryError::NotFound(What::Conversation));
    }
    must_have_changing_members(&facts.conversation)?;
    Ok(actor)
}

fn must_have_changing_members(there: &ConversationRecord) -> Result<(), DirectoryError> {
    if there.kind == ConversationKind::Direct {
        Err(DirectoryError::Refused(Refusal::Direct))
    } else {
        Ok(())
    }
}

/// An admin or above, and above whom it concerns.
fn may_touch(actor: Actor, theirs: Role) -> Result<(), DirectoryError> {
    let allowed = actor >= Actor::Member(Role::Admin) && actor > Actor::Member(theirs);
    if allowed {
        Ok(())
    } else {
        Err(DirectoryError::Refused(Refusal::Role))
    }
}

/// A role below the actor's own; owners make owners.
fn may_give(actor: Actor, given: Role) -> Result<(), DirectoryError> {
    if given == Role::None {
        return Err(DirectoryError::Refused(Refusal::Invalid));
    }
    let owner = actor >= Actor::Member(Role::Owner);
    let allowed = owner || (actor >= Actor::Member(Role::Admin) && actor > Actor::Member(given));
    if allowed {
        Ok(())
    } else {
        Err(DirectoryError::Refused(Refusal::Role))
    }
}

fn must_be_welcome(place: Place) -> Result<(), DirectoryError> {
    place.account.must_be_open()?;
    if place.banned {
        Err(DirectoryError::Refused(Refusal::Banned))
    } else {
        Ok(())
    }
}

/// A conversation's next version: the answer, and what the outbox holds for the log.
pub fn next_version(
    there: &ConversationRecord,
    by: UserId,
    changes: Vec<RoleChange>,
) -> (Change, Vec<u8>) {
    let version = there.version + 1;
    let content = Content::Membership(record::Membership {
        version,
        by,
        changes: changes.clone(),
        kind: there.kind,
        title: there.title.clone(),
    });
    let mut payload = Vec::new();
    Record {
        conversation: there.id,
        content,
    }
    .encode(&mut payload);
    (Change { version, changes }, payload)
}

/// The answer to a request that found everything so already.
pub fn unchanged(there: &ConversationRecord) -> Change {
    Change {
        version: there.version,
        changes: vec![],
    }
}

/// An outbox row's payload, as [`next_version`] made it.
pub fn outbox_entry(payload: Bytes) -> Result<OutboxEntry, DirectoryError> {
    match Record::decode(&payload) {
        Ok(Record {
            conversation,
            content: Content::Membership(change),
        }) => Ok(OutboxEntry {
            conversation,
            change,
        }),
        _ => Err(DirectoryError::Corrupt(
            "an outbox row holds no membership record".into(),
        )),
    }
}

/// A creation that has been checked as far as it can be without looking.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Founding {
    /// Who creates it.
    pub creator: UserId,
    /// The other founders: sorted, each once, without the creator.
    pub others: Vec<UserId>,
    /// Under which a repeat answers with what was made before.
    pub key: Option<String>,
    /// What makes two creations the same request.
    pub fingerprint: [u8; 32],
    kind: ConversationKind,
    title: String,
    join_role: Role,
}

impl Founding {
    /// Checks a creation.
    pub fn of(new: NewConversation) -> Result<Founding, DirectoryError> {
        check_title(&new.title)?;
        let key = new.idempotency_key;
        let key_is_long = key.as_ref().is_some_and(|key| key.len() > KEY_BYTES_MAX);
        if new.kind == ConversationKind::Direct || new.join_role >= Role::Admin || key_is_long {
            return Err(DirectoryError::Refused(Refusal::Invalid));
        }
        let mut others = sorted(new.members);
        others.retain(|user| *user != new.creator);
        if others.len() >= MEMBERS_PER_EVENT_MAX {
            return Err(too_many_members());
        }
        Ok(Founding {
            fingerprint: fingerprint(new.kind, &new.title, new.join_role, &others),
            creator: new.creator,
            others,
            key,
            kind: new.kind,
            title: new.title,
            join_role: new.join_role,
        })
    }

    /// Passes a key's repeat: what the earlier creation under it must have been.
    pub fn must_be_repeat(&self, earlier_fingerprint: &[u8]) -> Result<(), DirectoryError> {
        if earlier_fingerprint == self.fingerprint {
            Ok(())
        } else {
            Err(DirectoryError::Conflict(What::IdempotencyKey))
        }
    }

    /// The conversation before its version 1, and the founders that this version names.
    pub fn begin(&self, id: ConversationId, now: Micros) -> (ConversationRecord, Vec<RoleChange>) {
        let mut founders = vec![RoleChange {
            user: self.creator,
            role: Role::Owner,
        }];
        founders.extend(self.others.iter().map(|&user| RoleChange {
            user,
            role: Role::Member,
        }));
        let record = ConversationRecord {
            id,
            kind: self.kind,
            title: self.title.clone(),
            version: 0,
            join_role: self.join_role,
            created: now,
        };
        (record, founders)
    }
}

/// A pair's direct conversation before its version 1, and its founders.
pub fn direct(pair: DirectId, now: Micros) -> (ConversationRecord, Vec<RoleChange>) {
    let record = ConversationRecord {
        id: pair.conversation,
        kind: ConversationKind::Direct,
        title: String::new(),
        version: 0,
        join_role: Role::None,
        created: now,
    };
    let founders = [pair.low, pair.high].map(|user| RoleChange {
        user,
        role: Role::Member,
    });
    (record, founders.to_vec())
}

/// Passes a conversation that is this pair's own; 2^-63 of all pairs find another one under their id.
pub fn must_be_pairs(
    pair: DirectId,
    low: Option<UserId>,
    high: Option<UserId>,
) -> Result<(), DirectoryError> {
    if (low, high) == (Some(pair.low), Some(pair.high)) {
        Ok(())
    } else {
        Err(DirectoryError::Conflict(What::DirectId))
    }
}

fn check_title(title: &str) -> Result<(), DirectoryError> {
    if title.len() > TITLE_BYTES_MAX {
        Err(DirectoryError::Refused(Refusal::Invalid))
    } else {
        Ok(())
    }
}

fn too_many_members() -> DirectoryError {
    DirectoryError::Refused(Refusal::TooMany(MEMBERS_PER_EVENT_MAX))
}

fn sorted(mut users: Vec<UserId>) -> Vec<UserId> {
    users.sort_unstable();
    users.dedup();
    users
}

fn fingerprint(
    kind: ConversationKind,
    title: &str,
    join_role: Role,
    others: &[UserId],
) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update([kind as u8, join_role as u8]);
    hash.update((title.len() as u64).to_be_bytes());
    hash.update(title.as_bytes());
    for user in others {
        hash.update(user.0.to_be_bytes());
    }
    hash.finalize().into()
}
