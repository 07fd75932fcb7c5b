//! The workers of a process, for whoever has something to tell all of them.

use std::sync::{Arc, PoisonError, RwLock};

use tidings_core::ids::{ConversationId, GatewayId, Seq, SessionId, UserId};
use tidings_core::ports::directory::Revocation;
use tidings_core::ports::registry::UserPresence;
use tidings_protocol::CloseCode;

use super::inbox::{Inbox, Input};

/// The workers of this process.
#[derive(Default)]
pub struct Gateways {
    inboxes: RwLock<Vec<(GatewayId, Arc<Inbox>)>>,
}

impl Gateways {
    /// Closes the sessions that a revocation names, on all workers (4002).
    pub fn revoke(&self, revocation: &Revocation) {
        self.all(|inbox| inbox.push(Input::Revoked(*revocation)));
    }

    /// Drains all workers: clients are told to come back, taken sends are answered, sessions close,
    /// and within 10 s each worker's `run` returns.
    pub fn drain(&self) {
        self.all(|inbox| inbox.push(Input::Drain));
    }

    /// Ends one session of a worker here; nothing happens if there is no such worker.
    pub fn end_session(&self, gateway: GatewayId, session: SessionId, code: CloseCode) {
        self.one(gateway, |inbox| inbox.push(Input::End(session, code)));
    }

    /// Tells a worker of changes in the presence of users it watches.
    pub fn presence_changed(&self, gateway: GatewayId, users: Vec<UserPresence>) {
        self.one(gateway, |inbox| inbox.push(Input::Presence(None, users)));
    }

    /// Tells all workers but one that a message waits.
    pub(super) fn delayed(
        &self,
        but: GatewayId,
        user: UserId,
        conversation: ConversationId,
        seq: Seq,
    ) {
        let inboxes = self.inboxes.read().unwrap_or_else(PoisonError::into_inner);
        for (_, inbox) in inboxes.iter().filter(|(id, _)| *id != but) {
            inbox.push(Input::Delayed(user, conversation, seq));
        }
    }

    pub(super) fn add(&self, gateway: GatewayId, inbox: Arc<Inbox>) {
        let mut inboxes = self.inboxes.write().unwrap_or_else(PoisonError::into_inner);
        inboxes.retain(|(id, _)| *id != gateway);
        inboxes.push((gateway, inbox));
    }

    /// Whether a worker is the one that does what one worker of a process must do.
    pub(super) fn is_first(&self, gateway: GatewayId) -> bool {
        let inboxes = self.inboxes.read().unwrap_or_else(PoisonError::into_inner);
        inboxes.iter().map(|(id, _)| *id).min() == Some(gateway)
    }

    fn all(&self, tell: impl Fn(&Inbox)) {
        for (_, inbox) in self
            .inboxes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            tell(inbox);
        }
    }

    fn one(&self, gateway: GatewayId, tell: impl FnOnce(&Inbox)) {
        let inboxes = self.inboxes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, inbox)) = inboxes.iter().find(|(id, _)| *id == gateway) {
            tell(inbox);
        }
    }
}
