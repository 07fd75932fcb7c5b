//! Lists of members of the one server there is: it hears of every change by itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ids::ConversationId;
use crate::ports::BoxFuture;
use crate::ports::directory::{Directory, DirectoryError};
use crate::ports::members::{MemberLists, Members, listed};

/// Lists kept; about 8 MiB when all are of a hundred. When there are more, all are read anew as needed.
const LISTS_MAX: usize = 10_000;

/// A list, and the version that it must not be older than: a change may be told while it is being read.
#[derive(Default)]
struct Known {
    at_least: u64,
    members: Option<Arc<Members>>,
}

/// Lists read from the directory and kept until they change.
pub struct InProcessMembers {
    directory: Arc<dyn Directory>,
    lists: Mutex<HashMap<ConversationId, Known>>,
}

impl InProcessMembers {
    /// No lists yet.
    pub fn new(directory: Arc<dyn Directory>) -> InProcessMembers {
        InProcessMembers {
            directory,
            lists: Mutex::default(),
        }
    }

    fn lists(&self) -> MutexGuard<'_, HashMap<ConversationId, Known>> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemberLists for InProcessMembers {
    fn members(
        &self,
        conversation: ConversationId,
        at_least: u64,
    ) -> BoxFuture<'_, Result<Arc<Members>, DirectoryError>> {
        Box::pin(async move {
            let known = self.lists().get(&conversation).and_then(|known| {
                let members = known.members.clone();
                members.filter(|members| members.version >= known.at_least.max(at_least))
            });
            if let Some(members) = known {
                return Ok(members);
            }
            let members = Arc::new(listed(&*self.directory, conversation).await?);
            let mut lists = self.lists();
            if lists.len() >= LISTS_MAX {
                lists.clear();
            }
            lists.entry(conversation).or_default().members = Some(members.clone());
            Ok(members)
        })
    }

    fn changed(&self, conversation: ConversationId, version: u64) -> BoxFuture<'_, ()> {
        if let Some(known) = self.lists().get_mut(&conversation) {
            known.at_least = version.max(known.at_least);
        }
        Box::pin(std::future::ready(()))
    }
}
