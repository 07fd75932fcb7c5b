//! Promises of [`Conversations`](crate::ports::directory::Conversations) about who may change whom.

use super::conversations::{changed, create, group, role};
use super::{refused, user};
use crate::ids::{ConversationId, UserId};
use crate::ports::directory::{Change, Directory, DirectoryError, NewConversation, Refusal, What};
use crate::record::{ConversationKind, Role};

pub(super) async fn roles_bound_what_a_member_may_do(directory: &dyn Directory) {
    let mut users = Vec::new();
    for name in [
        "role-own",
        "role-adm",
        "role-adm2",
        "role-mem",
        "role-read",
        "role-new",
    ] {
        users.push(user(directory, name).await);
    }
    let [own, adm, adm2, mem, read, new] = users[..] else {
        panic!("six users")
    };
    let id = create(directory, group(own, vec![mem])).await;
    directory
        .add_members(id, own, vec![adm, adm2], Role::Admin)
        .await
        .expect("an owner makes admins");
    directory
        .add_members(id, adm, vec![read], Role::Reader)
        .await
        .expect("an admin adds readers");

    let denied = DirectoryError::Refused(Refusal::Role);
    for by in [mem, read] {
        assert_eq!(
            refused(directory.add_members(id, by, vec![new], Role::Member).await),
            denied
        );
        assert_eq!(refused(directory.remove_member(id, by, read).await), denied);
        assert_eq!(
            refused(directory.set_role(id, by, by, Role::Admin).await),
            denied,
            "nobody raises themselves"
        );
        assert_eq!(refused(directory.ban(id, by, new).await), denied);
        assert_eq!(refused(directory.unban(id, by, new).await), denied);
        assert_eq!(
            refused(directory.set_title(id, by, "mine".into()).await),
            denied
        );
    }
    assert_eq!(
        refused(directory.add_members(id, adm, vec![new], Role::Admin).await),
        denied
    );
    assert_eq!(
        refused(directory.set_role(id, adm, mem, Role::Admin).await),
        denied
    );
    assert_eq!(
        refused(directory.set_role(id, adm, adm, Role::Owner).await),
        denied
    );
    for above in [adm2, own] {
        assert_eq!(
            refused(directory.set_role(id, adm, above, Role::Reader).await),
            denied
        );
        assert_eq!(
            refused(directory.remove_member(id, adm, above).await),
            denied
        );
        assert_eq!(refused(directory.ban(id, adm, above).await), denied);
    }
    let last = directory.set_role(id, own, own, Role::Member).await;
    assert_eq!(refused(last), DirectoryError::Refused(Refusal::LastOwner));
    directory
        .set_role(id, own, adm2, Role::Owner)
        .await
        .expect("an owner makes owners");
    directory
        .set_role(id, own, own, Role::Member)
        .await
        .expect("and may then step down");
    let none = directory.set_role(id, adm2, mem, Role::None).await;
    assert_eq!(refused(none), DirectoryError::Refused(Refusal::Invalid));
    // The unknown one sorts last, so the other had been added before the call was refused.
    let unknown = directory
        .add_members(id, adm2, vec![new, UserId(i64::MAX as u64)], Role::Member)
        .await;
    assert_eq!(refused(unknown), DirectoryError::NotFound(What::User));
    assert_eq!(
        role(directory, id, new).await,
        Role::None,
        "a refused call changes nothing"
    );

    directory
        .remove_member(id, UserId(0), adm2)
        .await
        .expect("the operator may do everything");
    assert_eq!(
        role(directory, id, adm).await,
        Role::Owner,
        "and leaves an heir behind"
    );
}

pub(super) async fn an_outsider_learns_nothing(directory: &dyn Directory) {
    let (ann, out) = (
        user(directory, "out-ann").await,
        user(directory, "out-out").await,
    );
    let id = create(directory, group(ann, vec![])).await;
    let nowhere = ConversationId(1);
    for id in [id, nowhere] {
        let answers = [
            directory.join(id, out).await,
            directory.leave(id, out).await,
            directory
                .add_members(id, out, vec![out], Role::Member)
                .await,
            directory.remove_member(id, out, ann).await,
            directory.set_role(id, out, ann, Role::Reader).await,
            directory.ban(id, out, ann).await,
        ];
        for answer in answers {
            assert_eq!(
                refused(answer),
                DirectoryError::NotFound(What::Conversation)
            );
        }
        assert_eq!(directory.member(id, out).await, Ok(None));
    }
}

pub(super) async fn a_ban_holds_until_lifted(directory: &dyn Directory) {
    let (ann, bob) = (
        user(directory, "ban-ann").await,
        user(directory, "ban-bob").await,
    );
    let open = NewConversation {
        kind: ConversationKind::Channel,
        join_role: Role::Reader,
        ..group(ann, vec![bob])
    };
    let id = create(directory, open).await;
    let banned = directory.ban(id, ann, bob).await.expect("banned");
    assert_eq!(
        banned,
        Change {
            version: 2,
            changes: vec![changed(bob, Role::None)]
        }
    );
    assert_eq!(
        directory.ban(id, ann, bob).await,
        Ok(Change {
            version: 2,
            changes: vec![]
        })
    );
    assert_eq!(
        refused(directory.join(id, bob).await),
        DirectoryError::Refused(Refusal::Banned)
    );
    let added = directory
        .add_members(id, ann, vec![bob], Role::Member)
        .await;
    assert_eq!(refused(added), DirectoryError::Refused(Refusal::Banned));
    directory.unban(id, ann, bob).await.expect("lifted");
    let joined = directory.join(id, bob).await.expect("welcome again");
    assert_eq!(
        joined,
        Change {
            version: 3,
            changes: vec![changed(bob, Role::Reader)]
        }
    );
    assert_eq!(
        directory
            .member(id, bob)
            .await
            .expect("reads work")
            .expect("there")
            .since,
        3
    );
}

pub(super) async fn an_owner_who_leaves_has_an_heir(directory: &dyn Directory) {
    let mut users = Vec::new();
    for name in ["heir-own", "heir-old", "heir-adm"] {
        users.push(user(directory, name).await);
    }
    let [own, old, adm] = users[..] else {
        panic!("three users")
    };
    let id = create(directory, group(own, vec![old])).await;
    directory
        .add_members(id, own, vec![adm], Role::Admin)
        .await
        .expect("added");
    let left = directory.leave(id, own).await.expect("left");
    assert_eq!(
        left.changes,
        [changed(own, Role::None), changed(adm, Role::Owner)],
        "admins before members"
    );
    let left = directory.leave(id, adm).await.expect("left");
    assert_eq!(
        left.changes,
        [changed(adm, Role::None), changed(old, Role::Owner)],
        "then the longest-standing"
    );
    let left = directory.leave(id, old).await.expect("left");
    assert_eq!(
        left.changes,
        [changed(old, Role::None)],
        "the last one leaves nobody behind"
    );
}
