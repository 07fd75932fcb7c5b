//! Promises of [`Conversations`](crate::ports::directory::Conversations).

use super::{refused, user};
use crate::ids::{ConversationId, UserId};
use crate::ports::directory::{
    Change, Directory, DirectoryError, NewConversation, OutboxEntry, PAGE_MAX, Refusal, What,
    direct_conversation,
};
use crate::record::{ConversationKind, Role, RoleChange};

pub(super) fn group(creator: UserId, members: Vec<UserId>) -> NewConversation {
    NewConversation {
        kind: ConversationKind::Group,
        title: "a group".into(),
        creator,
        members,
        join_role: Role::None,
        idempotency_key: None,
    }
}

pub(super) async fn create(directory: &dyn Directory, new: NewConversation) -> ConversationId {
    let opened = directory.create_conversation(new).await.expect("created");
    assert!(opened.created && opened.conversation.version == 1);
    opened.conversation.id
}

pub(super) async fn role(directory: &dyn Directory, id: ConversationId, user: UserId) -> Role {
    directory
        .member(id, user)
        .await
        .expect("reads work")
        .map_or(Role::None, |m| m.role)
}

/// The pending changes of one conversation.
async fn pending(directory: &dyn Directory, id: ConversationId) -> Vec<OutboxEntry> {
    let all = directory
        .outbox_pending(PAGE_MAX)
        .await
        .expect("reads work");
    all.into_iter()
        .filter(|entry| entry.conversation == id)
        .collect()
}

async fn drain(directory: &dyn Directory) {
    loop {
        let entries = directory
            .outbox_pending(PAGE_MAX)
            .await
            .expect("reads work");
        if entries.is_empty() {
            return;
        }
        for entry in entries {
            directory
                .outbox_done(entry.conversation, entry.change.version)
                .await
                .expect("done");
        }
    }
}

pub(super) fn changed(user: UserId, role: Role) -> RoleChange {
    RoleChange { user, role }
}

pub(super) async fn a_pair_has_one_direct_conversation(directory: &dyn Directory) {
    let (ann, bob) = (
        user(directory, "dir-ann").await,
        user(directory, "dir-bob").await,
    );
    let opened = directory.create_direct(ann, bob).await.expect("created");
    let again = directory.create_direct(bob, ann).await.expect("found");
    assert!(opened.created && !again.created);
    assert_eq!(opened.conversation, again.conversation);
    assert_eq!(
        opened.conversation.id,
        direct_conversation(bob, ann).conversation
    );
    let id = opened.conversation.id;
    let entries = pending(directory, id).await;
    assert_eq!(entries.len(), 1, "the second creation changes nothing");
    let (low, high) = (ann.min(bob), ann.max(bob));
    assert_eq!(
        entries[0].change.changes,
        [changed(low, Role::Member), changed(high, Role::Member)]
    );
    assert_eq!(
        (entries[0].change.version, entries[0].change.kind),
        (1, ConversationKind::Direct)
    );

    let cat = user(directory, "dir-cat").await;
    assert_eq!(
        refused(directory.leave(id, ann).await),
        DirectoryError::Refused(Refusal::Direct)
    );
    let added = directory
        .add_members(id, ann, vec![cat], Role::Member)
        .await;
    assert_eq!(refused(added), DirectoryError::Refused(Refusal::Direct));
    assert_eq!(
        refused(directory.create_direct(ann, ann).await),
        DirectoryError::Refused(Refusal::Invalid)
    );
    assert_eq!(
        refused(directory.create_direct(ann, UserId(1)).await),
        DirectoryError::NotFound(What::User)
    );
}

pub(super) async fn a_creation_under_a_key_happens_once(directory: &dyn Directory) {
    let (ann, bob) = (
        user(directory, "idem-ann").await,
        user(directory, "idem-bob").await,
    );
    let keyed = NewConversation {
        idempotency_key: Some("k".into()),
        ..group(ann, vec![bob])
    };
    let first = directory
        .create_conversation(keyed.clone())
        .await
        .expect("created");
    let again = directory
        .create_conversation(keyed.clone())
        .await
        .expect("found");
    assert_eq!((first.created, again.created), (true, false));
    assert_eq!(first.conversation, again.conversation);
    let other = NewConversation {
        title: "another".into(),
        ..keyed
    };
    let conflict = directory.create_conversation(other).await;
    assert_eq!(
        refused(conflict),
        DirectoryError::Conflict(What::IdempotencyKey)
    );
}

pub(super) async fn versions_are_counted_without_a_hole(directory: &dyn Directory) {
    let mut users = Vec::new();
    for name in ["ver-ann", "ver-bob", "ver-cat", "ver-dan"] {
        users.push(user(directory, name).await);
    }
    let [ann, bob, cat, dan] = users[..] else {
        panic!("four users")
    };
    let open = NewConversation {
        kind: ConversationKind::Channel,
        join_role: Role::Member,
        ..group(ann, vec![bob])
    };
    let id = create(directory, open).await;
    let joined = directory.join(id, cat).await.expect("open to all");
    assert_eq!(
        joined,
        Change {
            version: 2,
            changes: vec![changed(cat, Role::Member)]
        }
    );
    assert_eq!(
        directory.join(id, cat).await,
        Ok(Change {
            version: 2,
            changes: vec![]
        }),
        "a repeat changes nothing"
    );
    let added = directory
        .add_members(id, ann, vec![bob, dan, dan], Role::Reader)
        .await
        .expect("added");
    assert_eq!(
        added,
        Change {
            version: 3,
            changes: vec![changed(dan, Role::Reader)]
        },
        "bob stays a member"
    );
    let raised = directory
        .set_role(id, ann, dan, Role::Admin)
        .await
        .expect("raised");
    assert_eq!(raised.version, 4);
    let dans = directory
        .member(id, dan)
        .await
        .expect("reads work")
        .expect("a member");
    assert_eq!(
        (dans.role, dans.since),
        (Role::Admin, 3),
        "a new role doesn't begin a new membership"
    );
    assert_eq!(
        directory
            .remove_member(id, dan, bob)
            .await
            .expect("removed")
            .version,
        5
    );
    assert_eq!(directory.leave(id, cat).await.expect("left").version, 6);
    assert_eq!(
        refused(directory.leave(id, cat).await),
        DirectoryError::NotFound(What::Conversation)
    );
    assert_eq!(
        directory
            .conversation(id)
            .await
            .expect("reads work")
            .expect("there")
            .version,
        6
    );

    let entries = pending(directory, id).await;
    let versions: Vec<u64> = entries.iter().map(|entry| entry.change.version).collect();
    assert_eq!(versions, [1, 2, 3, 4, 5, 6], "one outbox row a version");
    assert_eq!(
        entries[0].change.changes,
        [changed(ann, Role::Owner), changed(bob, Role::Member)]
    );
    assert_eq!(entries[4].change.changes, [changed(bob, Role::None)]);
    assert_eq!((entries[4].change.by, entries[5].change.by), (dan, cat));
}

pub(super) async fn the_outbox_keeps_order_until_done(directory: &dyn Directory) {
    let (ann, bob) = (
        user(directory, "outb-ann").await,
        user(directory, "outb-bob").await,
    );
    drain(directory).await;
    directory.outbox_wait().await;
    let one = create(directory, group(ann, vec![])).await;
    let two = create(directory, group(ann, vec![])).await;
    directory.outbox_wait().await;
    for id in [one, two] {
        directory
            .add_members(id, ann, vec![bob], Role::Member)
            .await
            .expect("added");
        directory
            .remove_member(id, ann, bob)
            .await
            .expect("removed");
    }
    let refused_change = directory.remove_member(one, bob, ann).await;
    assert_eq!(
        refused(refused_change),
        DirectoryError::NotFound(What::Conversation)
    );
    for id in [one, two] {
        let versions: Vec<u64> = pending(directory, id)
            .await
            .iter()
            .map(|entry| entry.change.version)
            .collect();
        assert_eq!(versions, [1, 2, 3]);
    }
    assert_eq!(
        directory.outbox_pending(2).await.expect("reads work").len(),
        2
    );
    directory.outbox_done(one, 2).await.expect("done");
    directory
        .outbox_done(one, 1)
        .await
        .expect("an older report is harmless");
    let left: Vec<u64> = pending(directory, one)
        .await
        .iter()
        .map(|entry| entry.change.version)
        .collect();
    assert_eq!(left, [3]);
    assert_eq!(
        pending(directory, two).await.len(),
        3,
        "another conversation isn't touched"
    );
    drain(directory).await;
}

pub(super) async fn one_event_names_a_thousand_at_most(directory: &dyn Directory) {
    let ann = user(directory, "many-ann").await;
    let new = crate::ports::directory::NewUser {
        login: None,
        display_name: "x".into(),
        password: None,
    };
    let made = directory
        .create_users(vec![new; 1000])
        .await
        .expect("created");
    let crowd: Vec<UserId> = made
        .into_iter()
        .map(|made| made.expect("created"))
        .collect();
    let too_many = directory
        .create_conversation(group(ann, crowd.clone()))
        .await;
    assert_eq!(
        refused(too_many),
        DirectoryError::Refused(Refusal::TooMany(1000)),
        "the creator counts too"
    );
    let id = create(directory, group(ann, crowd[..999].to_vec())).await;
    let mut more = crowd.clone();
    more.push(ann);
    let too_many = directory.add_members(id, ann, more, Role::Member).await;
    assert_eq!(
        refused(too_many),
        DirectoryError::Refused(Refusal::TooMany(1000))
    );
    let added = directory
        .add_members(id, ann, crowd.clone(), Role::Member)
        .await
        .expect("the new one is added");
    assert_eq!(added.changes, [changed(crowd[999], Role::Member)]);
    let entries = pending(directory, id).await;
    assert_eq!(entries[0].change.changes.len(), 1000);
}

pub(super) async fn lists_come_in_pages(directory: &dyn Directory) {
    let ann = user(directory, "page-ann").await;
    let mut made = Vec::new();
    for _ in 0..5 {
        let open = NewConversation {
            kind: ConversationKind::Channel,
            join_role: Role::Member,
            ..group(ann, vec![])
        };
        made.push(create(directory, open).await);
    }
    made.sort_unstable();
    let mut seen = Vec::new();
    let mut after = ConversationId(0);
    loop {
        let page = directory
            .conversations_of(ann, after, 2)
            .await
            .expect("reads work");
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 2 && page.iter().all(|m| m.role == Role::Owner && m.since == 1));
        after = last.conversation.id;
        seen.extend(page.iter().map(|m| m.conversation.id));
    }
    assert_eq!(seen, made);
    let lists = directory.lists_of(ann).await.expect("reads work");
    assert_eq!((lists.conversations, lists.blocked), (made.clone(), vec![]));
    assert_eq!(
        directory
            .conversations_of(ann, ConversationId(u64::MAX), 2)
            .await,
        Ok(vec![])
    );
    let open = directory
        .open_conversations(ConversationId(made[0].0 - 1), 1)
        .await
        .expect("reads work");
    assert_eq!(open.first().map(|c| c.id), Some(made[0]));

    let bob = user(directory, "page-bob").await;
    directory.join(made[0], bob).await.expect("joined");
    let first = directory
        .members(made[0], UserId(0), 1)
        .await
        .expect("reads work");
    assert_eq!(first[0].user, ann.min(bob));
    let second = directory
        .members(made[0], first[0].user, 9)
        .await
        .expect("reads work");
    assert_eq!(
        second.iter().map(|m| m.user).collect::<Vec<_>>(),
        [ann.max(bob)]
    );
}
