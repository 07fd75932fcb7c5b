//! Promises of [`Credentials`](crate::ports::directory::Credentials).

use super::{refused, user};
use crate::ids::UserId;
use crate::ports::directory::{
    ApiKeyId, Directory, DirectoryError, NewApiKey, NewSignIn, Refusal, RevocationSubject,
    Rotation, SecretHash, SignIn, What,
};

const NEVER: u64 = i64::MAX as u64;

async fn signed_in(
    directory: &dyn Directory,
    user: UserId,
    refresh: SecretHash,
    expires: u64,
) -> SignIn {
    let device = directory
        .device_named(user, "phone".into())
        .await
        .expect("a device can be added")
        .id;
    directory
        .sign_in(NewSignIn {
            user,
            device,
            refresh,
            expires,
        })
        .await
        .expect("a sign-in can be recorded")
}

pub(super) async fn a_refresh_token_is_used_once(directory: &dyn Directory) {
    let ann = user(directory, "ref-ann").await;
    let token = |n: u8| SecretHash([n; 32]);
    let made = signed_in(directory, ann, token(10), NEVER).await;
    assert_eq!(
        signed_in(directory, ann, token(10), NEVER).await,
        made,
        "a repeated sign-in is the same one"
    );
    let other = signed_in(directory, ann, token(20), NEVER).await;

    assert_eq!(
        directory.rotate(token(10), token(11), NEVER).await,
        Ok(Rotation::Rotated(made))
    );
    assert_eq!(
        directory.rotate(token(11), token(12), NEVER).await,
        Ok(Rotation::Rotated(made))
    );
    let Ok(Rotation::Reused(revocation)) = directory.rotate(token(10), token(13), NEVER).await
    else {
        panic!("a token used twice is noticed");
    };
    assert_eq!(revocation.subject, RevocationSubject::SignIn(made.id));
    for dead in [10, 11, 12, 13] {
        let answer = directory.rotate(token(dead), token(14), NEVER).await;
        assert_eq!(answer, Ok(Rotation::Refused), "the whole family is dead");
    }
    assert_eq!(
        directory.rotate(token(20), token(21), NEVER).await,
        Ok(Rotation::Rotated(other)),
        "others live on"
    );

    let theirs = directory.end_sign_in(UserId(1), other.id).await;
    assert_eq!(
        refused(theirs),
        DirectoryError::NotFound(What::SignIn),
        "only one's own sign-ins can be ended"
    );
    directory.end_sign_in(ann, other.id).await.expect("ended");
    assert_eq!(
        directory.rotate(token(21), token(22), NEVER).await,
        Ok(Rotation::Refused)
    );
}

pub(super) async fn expired_and_unknown_tokens_are_refused(directory: &dyn Directory) {
    let ann = user(directory, "exp-ann").await;
    signed_in(directory, ann, SecretHash([30; 32]), 1).await;
    let next = SecretHash([31; 32]);
    assert_eq!(
        directory.rotate(SecretHash([30; 32]), next, NEVER).await,
        Ok(Rotation::Refused)
    );
    assert_eq!(
        directory.rotate(SecretHash([32; 32]), next, NEVER).await,
        Ok(Rotation::Refused)
    );
    assert!(directory.forget_expired(2, 0).await.expect("forgotten") >= 1);
    let living = signed_in(directory, ann, SecretHash([33; 32]), NEVER).await;
    directory.forget_expired(2, 0).await.expect("forgotten");
    let rotated = directory
        .rotate(SecretHash([33; 32]), SecretHash([34; 32]), NEVER)
        .await;
    assert_eq!(
        rotated,
        Ok(Rotation::Rotated(living)),
        "what has not expired stays"
    );
}

pub(super) async fn revocations_are_read_in_order(directory: &dyn Directory) {
    let ann = user(directory, "rev-ann").await;
    let phone = directory
        .add_device(ann, "phone".into())
        .await
        .expect("added")
        .id;
    let first = directory
        .revoke(RevocationSubject::User(ann))
        .await
        .expect("revoked");
    let second = directory
        .revoke(RevocationSubject::Device(phone))
        .await
        .expect("revoked");
    let again = directory
        .revoke(RevocationSubject::User(ann))
        .await
        .expect("revoked again");
    assert!(first.revision < second.revision && second.revision < again.revision);
    assert!(again.not_before >= first.not_before);
    let after = directory
        .revocations_after(first.revision - 1, 10)
        .await
        .expect("reads work");
    assert_eq!(
        after,
        [second, again],
        "a subject has one row, at its last revision"
    );
    assert_eq!(
        directory.revocations_after(first.revision - 1, 1).await,
        Ok(vec![second])
    );
    assert_eq!(
        directory.revocations_after(again.revision, 10).await,
        Ok(vec![])
    );

    directory.forget_expired(0, NEVER).await.expect("forgotten");
    let after = directory
        .revocations_after(first.revision - 1, 10)
        .await
        .expect("reads work");
    assert_eq!(after, [again], "those of users stay");
}

pub(super) async fn a_shut_account_has_no_sign_in(directory: &dyn Directory) {
    let ann = user(directory, "shut-ann").await;
    let token = SecretHash([40; 32]);
    let made = signed_in(directory, ann, token, NEVER).await;
    let revocation = directory
        .set_disabled(ann, true)
        .await
        .expect("shut")
        .expect("shutting revokes");
    assert_eq!(revocation.subject, RevocationSubject::User(ann));
    assert_eq!(
        directory.rotate(token, SecretHash([41; 32]), NEVER).await,
        Ok(Rotation::Refused)
    );
    let new = NewSignIn {
        user: ann,
        device: made.device,
        refresh: SecretHash([42; 32]),
        expires: NEVER,
    };
    assert_eq!(
        refused(directory.sign_in(new.clone()).await),
        DirectoryError::Refused(Refusal::Disabled)
    );
    assert_eq!(directory.set_disabled(ann, false).await, Ok(None));
    directory
        .sign_in(new)
        .await
        .expect("an account opened again signs in");
}

pub(super) async fn api_keys_live_until_removed(directory: &dyn Directory) {
    let new = NewApiKey {
        secret: SecretHash([50; 32]),
        name: "shop".into(),
        scopes: vec!["conversations".into(), "users".into()],
    };
    let key = directory.create_api_key(new).await.expect("made");
    let found = directory
        .api_key(key.id)
        .await
        .expect("reads work")
        .expect("there");
    assert_eq!(
        (found.secret, found.name, found.scopes),
        (key.secret, key.name, key.scopes)
    );
    assert!(
        directory
            .api_keys()
            .await
            .expect("reads work")
            .iter()
            .any(|k| k.id == key.id)
    );
    directory.remove_api_key(key.id).await.expect("removed");
    assert!(
        directory
            .api_key(key.id)
            .await
            .expect("reads work")
            .is_none()
    );
    assert_eq!(
        refused(directory.remove_api_key(ApiKeyId(1)).await),
        DirectoryError::NotFound(What::ApiKey)
    );
}
