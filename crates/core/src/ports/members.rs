//! Lists of members near at hand, for what is done for members and decides nothing.

use std::sync::Arc;

use super::BoxFuture;
use super::directory::{Directory, DirectoryError};
use crate::ids::{ConversationId, UserId};
use crate::router::INBOX_MEMBERS_MAX;

/// A conversation's members as of a version of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// The conversation's directory version. The list may be newer, never older.
    pub version: u64,
    /// The first of its members by id, at most one more than [`INBOX_MEMBERS_MAX`]: then it isn't small.
    pub users: Vec<UserId>,
}

impl Members {
    /// Whether these are all.
    pub fn are_all(&self) -> bool {
        self.users.len() <= INBOX_MEMBERS_MAX as usize
    }
}

/// Lists of members by conversation. A list may be out of date by ten minutes, unless the change
/// was told by [`MemberLists::changed`] or the caller names the version that it needs.
pub trait MemberLists: Send + Sync {
    /// The members as of version `at_least` or later. Idempotent.
    ///
    /// # Errors
    /// When the directory had to be asked and didn't answer.
    fn members(
        &self,
        conversation: ConversationId,
        at_least: u64,
    ) -> BoxFuture<'_, Result<Arc<Members>, DirectoryError>>;

    /// The members have changed with this version: earlier lists are out of date, on other servers too
    /// as soon as they hear of it. A repeat is harmless.
    fn changed(&self, conversation: ConversationId, version: u64) -> BoxFuture<'_, ()>;
}

/// What the directory says now; an unknown conversation has no members.
///
/// # Errors
/// As the directory's.
pub async fn listed(
    directory: &dyn Directory,
    conversation: ConversationId,
) -> Result<Members, DirectoryError> {
    // The version first: a change between the two reads makes the list newer than it says.
    let record = directory.conversation(conversation).await?;
    let limit = INBOX_MEMBERS_MAX as usize + 1;
    let members = directory.members(conversation, UserId(0), limit).await?;
    Ok(Members {
        version: record.map_or(0, |record| record.version),
        users: members.iter().map(|member| member.user).collect(),
    })
}
