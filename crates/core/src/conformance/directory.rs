//! What every [`Directory`](crate::ports::directory::Directory) does: each function panics where a promise is broken.
//!
//! The functions make their own users and conversations and may share one directory, but
//! for the outbox: a function that reads it first reports everything done.

mod accounts;
mod conversations;
mod credentials;
mod members;

use crate::ids::UserId;
use crate::ports::directory::{Directory, DirectoryError, LoginName, NewUser};

/// Runs the whole suite.
pub async fn all(directory: &dyn Directory) {
    accounts::a_login_name_is_taken_once(directory).await;
    accounts::a_subject_is_one_account(directory).await;
    accounts::a_new_password_ends_what_the_old_one_signed_in(directory).await;
    accounts::devices_come_and_go(directory).await;
    accounts::a_block_is_one_way(directory).await;
    accounts::blocks_of_a_user_are_bounded(directory).await;
    credentials::a_refresh_token_is_used_once(directory).await;
    credentials::expired_and_unknown_tokens_are_refused(directory).await;
    credentials::revocations_are_read_in_order(directory).await;
    credentials::a_shut_account_has_no_sign_in(directory).await;
    credentials::api_keys_live_until_removed(directory).await;
    conversations::a_pair_has_one_direct_conversation(directory).await;
    conversations::a_creation_under_a_key_happens_once(directory).await;
    conversations::versions_are_counted_without_a_hole(directory).await;
    members::roles_bound_what_a_member_may_do(directory).await;
    members::an_outsider_learns_nothing(directory).await;
    members::a_ban_holds_until_lifted(directory).await;
    members::an_owner_who_leaves_has_an_heir(directory).await;
    conversations::the_outbox_keeps_order_until_done(directory).await;
    conversations::one_event_names_a_thousand_at_most(directory).await;
    conversations::lists_come_in_pages(directory).await;
}

/// A user with a login name made of this word.
pub async fn user(directory: &dyn Directory, name: &str) -> UserId {
    let login = LoginName {
        name: name.to_uppercase(),
        key: name.to_owned(),
    };
    let new = NewUser {
        login: Some(login),
        display_name: name.to_owned(),
        password: None,
    };
    let mut made = directory
        .create_users(vec![new])
        .await
        .expect("a user can be created");
    made.remove(0).expect("the name is free")
}

fn refused<T: std::fmt::Debug>(answer: Result<T, DirectoryError>) -> DirectoryError {
    answer.expect_err("this must not be allowed")
}
