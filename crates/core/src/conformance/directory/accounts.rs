//! Promises of [`Accounts`](crate::ports::directory::Accounts).

use std::task::Poll;

use super::{refused, user};
use crate::ids::UserId;
use crate::ports::directory::{
    BLOCKS_PER_USER_MAX, DEVICES_PER_USER_MAX, Directory, DirectoryError, ExternalSubject,
    LoginName, NewSignIn, NewUser, PasswordHash, Refusal, RevocationSubject, Rotation, SecretHash,
    What,
};

fn named(name: &str, key: &str) -> NewUser {
    let login = LoginName {
        name: name.to_owned(),
        key: key.to_owned(),
    };
    NewUser {
        login: Some(login),
        display_name: name.to_owned(),
        password: Some(PasswordHash(format!("hash of {name}"))),
    }
}

pub(super) async fn a_login_name_is_taken_once(directory: &dyn Directory) {
    let batch = vec![
        named("Ann", "acc-ann"),
        named("ann", "acc-ann"),
        named("Bob", "acc-bob"),
    ];
    let made = directory
        .create_users(batch)
        .await
        .expect("the batch is carried out");
    let ann = made[0].clone().expect("the first one takes the name");
    assert_eq!(
        made[1],
        Err(DirectoryError::Conflict(What::LoginName)),
        "a look-alike is refused"
    );
    assert!(
        made[2].is_ok(),
        "one refusal leaves the rest of the batch alone"
    );

    let found = directory
        .user_by_login("acc-ann".into())
        .await
        .expect("reads work")
        .expect("the user is there");
    assert_eq!(
        (found.id, found.login.as_deref()),
        (ann, Some("Ann")),
        "the name comes back as it was chosen"
    );
    assert!(ann.0 > 0 && ann.0 < 1 << 63, "ids fit a signed column");
    let stored = directory
        .password_of("acc-ann".into())
        .await
        .expect("reads work")
        .expect("the user is there");
    assert_eq!(stored.hash, Some(PasswordHash("hash of Ann".into())));
    assert_eq!(directory.user_by_login("acc-nobody".into()).await, Ok(None));

    let listed = directory
        .users(vec![UserId(u64::MAX), ann, ann])
        .await
        .expect("reads work");
    assert_eq!(listed.len(), 1, "unknown and repeated ids are left out");
    let crowd = (0..1001)
        .map(|i| named("x", &format!("crowd-{i}")))
        .collect();
    assert_eq!(
        refused(directory.create_users(crowd).await),
        DirectoryError::Refused(Refusal::TooMany(1000))
    );
}

pub(super) async fn a_subject_is_one_account(directory: &dyn Directory) {
    let subject = |name: &str| ExternalSubject {
        issuer: "shop".into(),
        subject: name.into(),
    };
    let first = directory
        .user_of_subject(subject("7"), "Seven".into())
        .await
        .expect("made at first sight");
    let again = directory
        .user_of_subject(subject("7"), "Other".into())
        .await
        .expect("found again");
    assert_eq!((again.id, again.display_name.as_str()), (first.id, "Seven"));
    let other = directory
        .user_of_subject(subject("8"), "Eight".into())
        .await
        .expect("made at first sight");
    assert_ne!(other.id, first.id);
    assert_eq!(first.external, Some(subject("7")));

    let comes =
        |device: &str| directory.subject_on_device(subject("7"), "Other".into(), device.into());
    let made = comes("phone").await.expect("made at first sight");
    assert_eq!((&made.0, made.1.user), (&first, first.id));
    assert_eq!(comes("phone").await, Ok(made.clone()));
    assert_ne!(comes("tablet").await.expect("made").1.id, made.1.id);
    let shut = directory.set_disabled(first.id, true).await;
    shut.expect("can be shut");
    let (user, device) = comes("phone").await.expect("found");
    assert!(user.disabled && device == made.1);
    assert_eq!(
        refused(comes("watch").await),
        DirectoryError::Refused(Refusal::Disabled)
    );
}

pub(super) async fn a_new_password_ends_what_the_old_one_signed_in(directory: &dyn Directory) {
    let ann = user(directory, "pw-ann").await;
    let device = directory
        .add_device(ann, "phone".into())
        .await
        .expect("a device can be added")
        .id;
    let token = SecretHash([1; 32]);
    let new = NewSignIn {
        user: ann,
        device,
        refresh: token,
        expires: i64::MAX as u64,
    };
    directory
        .sign_in(new)
        .await
        .expect("a sign-in can be recorded");
    let revocation = directory
        .set_password(ann, PasswordHash("new".into()))
        .await
        .expect("set");
    assert_eq!(revocation.subject, RevocationSubject::User(ann));
    assert_eq!(
        directory
            .rotate(token, SecretHash([2; 32]), i64::MAX as u64)
            .await,
        Ok(Rotation::Refused)
    );
    let stored = directory
        .password_of("pw-ann".into())
        .await
        .expect("reads work")
        .expect("there");
    assert_eq!(stored.hash, Some(PasswordHash("new".into())));
    let unknown = directory
        .set_password(UserId(1), PasswordHash("x".into()))
        .await;
    assert_eq!(refused(unknown), DirectoryError::NotFound(What::User));
}

pub(super) async fn devices_come_and_go(directory: &dyn Directory) {
    let (ann, bob) = (
        user(directory, "dev-ann").await,
        user(directory, "dev-bob").await,
    );
    let phone = directory
        .device_named(ann, "phone".into())
        .await
        .expect("made at first sight");
    let again = directory
        .device_named(ann, "phone".into())
        .await
        .expect("found again");
    assert_eq!(phone, again);
    let seen = phone.last_seen + 10;
    directory
        .devices_seen(vec![(phone.id, seen), (phone.id, seen - 5)])
        .await
        .expect("reported");
    let listed = directory.devices(ann).await.expect("reads work");
    assert_eq!(
        listed.iter().map(|d| d.last_seen).collect::<Vec<_>>(),
        [seen],
        "the later time wins"
    );

    let theirs = directory.remove_device(bob, phone.id).await;
    assert_eq!(
        refused(theirs),
        DirectoryError::NotFound(What::Device),
        "only one's own devices can be removed"
    );
    let revocation = directory
        .remove_device(ann, phone.id)
        .await
        .expect("removed");
    assert_eq!(revocation.subject, RevocationSubject::Device(phone.id));
    assert_eq!(
        refused(directory.remove_device(ann, phone.id).await),
        DirectoryError::NotFound(What::Device)
    );

    for i in 0..DEVICES_PER_USER_MAX + 3 {
        directory
            .add_device(bob, format!("device {i}"))
            .await
            .expect("a new device always gets in");
    }
    assert_eq!(
        directory.devices(bob).await.expect("reads work").len(),
        DEVICES_PER_USER_MAX
    );
}

pub(super) async fn blocks_of_a_user_are_bounded(directory: &dyn Directory) {
    let ann = user(directory, "blk-max-ann").await;
    let nobody = |_| NewUser {
        login: None,
        display_name: String::new(),
        password: None,
    };
    let others: Vec<NewUser> = (0..BLOCKS_PER_USER_MAX).map(nobody).collect();
    let others = directory.create_users(others).await.expect("made");
    // Some at a time, which may share a commit.
    for some in others.chunks(100) {
        let mut calls: Vec<_> = some
            .iter()
            .map(|other| {
                let other = *other.as_ref().expect("nothing to collide");
                directory.set_block(ann, other, true)
            })
            .collect();
        std::future::poll_fn(|context| {
            calls.retain_mut(|call| match call.as_mut().poll(context) {
                Poll::Ready(done) => {
                    done.expect("room");
                    false
                }
                Poll::Pending => true,
            });
            if calls.is_empty() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
    let one_more = user(directory, "blk-max-bob").await;
    assert_eq!(
        refused(directory.set_block(ann, one_more, true).await),
        DirectoryError::Refused(Refusal::TooMany(BLOCKS_PER_USER_MAX))
    );
    assert_eq!(directory.has_blocked(ann, one_more).await, Ok(false));
    let all = directory.lists_of(ann).await.expect("reads work").blocked;
    assert_eq!(all.len(), BLOCKS_PER_USER_MAX);
    let repeat = directory.set_block(ann, all[0], true).await;
    repeat.expect("a repeat is harmless at the limit too");
    directory
        .set_block(ann, all[0], false)
        .await
        .expect("lifted");
    let room = directory.set_block(ann, one_more, true).await;
    room.expect("there is room again");
}

pub(super) async fn a_block_is_one_way(directory: &dyn Directory) {
    let (ann, bob) = (
        user(directory, "blk-ann").await,
        user(directory, "blk-bob").await,
    );
    for _ in 0..2 {
        directory
            .set_block(ann, bob, true)
            .await
            .expect("a repeat is harmless");
    }
    assert_eq!(directory.has_blocked(ann, bob).await, Ok(true));
    assert_eq!(directory.has_blocked(bob, ann).await, Ok(false));
    let lists = directory.lists_of(ann).await.expect("reads work");
    assert_eq!(lists.blocked, [bob]);
    let eve = user(directory, "blk-eve").await;
    directory.set_block(eve, bob, true).await.expect("set");
    let among = directory.blockers_among(bob, vec![eve, bob, ann]).await;
    assert_eq!(among, Ok(vec![eve, ann]));
    assert_eq!(directory.blockers_among(ann, vec![bob]).await, Ok(vec![]));
    directory.set_block(ann, bob, false).await.expect("lifted");
    assert_eq!(directory.blockers_among(bob, vec![ann]).await, Ok(vec![]));
    assert_eq!(directory.has_blocked(ann, bob).await, Ok(false));
    assert_eq!(
        refused(directory.set_block(ann, ann, true).await),
        DirectoryError::Refused(Refusal::Invalid)
    );
    assert_eq!(
        refused(directory.set_block(ann, UserId(1), true).await),
        DirectoryError::NotFound(What::User)
    );
}
