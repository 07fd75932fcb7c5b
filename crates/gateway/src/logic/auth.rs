//! From hello to the end: who a session is, and for how long.

use tidings_core::ids::{Micros, SessionId};
use tidings_core::ports::directory::{Revocation, RevocationSubject};
use tidings_core::ports::registry::SessionEntry;
use tidings_protocol::wire::{self, update};
use tidings_protocol::{CloseCode, ErrorCode, Versions, limits};

use super::metrics::shift;
use super::outbound::{AuthFailure, Outbound, Principal, Slot};
use super::session::{AUTHENTICATING, CLOSING, READY, REAUTH_TOLD, seconds};
use super::{GatewayCore, Refusal};

/// What a client speaks that has a ticket in the place of `auth`: there it can't say.
const VERSION_OF_TICKETS: u32 = 1;

impl GatewayCore {
    pub(super) fn hello<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        let hello = wire::Hello {
            version: self.settings.versions.newest,
            oldest: self.settings.versions.oldest_said(),
            heartbeat_ms: (self.settings.heartbeat / 1000) as u32,
            server_time: self.now,
            limits: Some(wire::Limits {
                frame_bytes_max: self.settings.frame_bytes_max as u32,
                text_bytes_max: self.settings.text_bytes_max as u32,
                sends_per_second: self.settings.sends_per_second,
                commands_per_frame_max: limits::COMMANDS_PER_FRAME_MAX as u32,
                page_max: limits::PAGE_MAX,
            }),
        };
        self.update(out, slot, 0, update::Update::Hello(hello));
    }

    /// `auth`: the first command, and again before the token ends.
    pub(super) fn auth<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        auth: wire::Auth,
    ) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let first = !session.is(READY);
        let theirs = Versions::said(auth.version, auth.oldest);
        let common = self.settings.versions.common(theirs);
        // What a session speaks is said once: a later `auth` is only a token.
        if first && common.is_none() {
            return self.close(out, slot, CloseCode::Version);
        }
        if session.is(AUTHENTICATING) {
            let refusal = Refusal::new(
                ErrorCode::RateLimited,
                "Another `auth` is being checked.",
                r#ref,
            );
            return self.refuse(
                out,
                slot,
                Refusal {
                    retry_after_ms: 1000,
                    ..refusal
                },
            );
        }
        if auth.token.len() > limits::TOKEN_BYTES_MAX
            || auth.device.len() > limits::DEVICE_BYTES_MAX
        {
            self.refuse(
                out,
                slot,
                Refusal::new(
                    ErrorCode::TooLong,
                    "`token` or `device` of `auth` is too long.",
                    r#ref,
                ),
            );
            if first {
                self.close(out, slot, CloseCode::Policy);
            }
            return;
        }
        session.set(AUTHENTICATING, true);
        let rare = session.rare();
        rare.auth_ref = r#ref;
        rare.version = common.filter(|_| first).unwrap_or_default();
        let id = session.id;
        match first {
            true => self.sign_in(out, slot, auth.token, auth.device),
            false => out.authenticate(id, auth.token, auth.device),
        }
    }

    /// A ticket came with the upgrade: it stands for the first `auth`.
    pub fn ticket<O: Outbound>(&mut self, out: &mut O, slot: Slot, ticket: &str) {
        let auth = wire::Auth {
            token: ticket.to_owned(),
            device: String::new(),
            version: VERSION_OF_TICKETS,
            oldest: 0,
        };
        self.auth(out, slot, 0, auth);
    }

    /// A token was checked.
    pub fn authenticated<O: Outbound>(
        &mut self,
        out: &mut O,
        session: SessionId,
        result: Result<Principal, AuthFailure>,
    ) {
        self.now = out.now();
        let Some(slot) = self.sessions.slot_of(session) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        if !session.is(AUTHENTICATING) || session.is(CLOSING) {
            return;
        }
        session.set(AUTHENTICATING, false);
        let rare = session.rare();
        let r#ref = std::mem::take(&mut rare.auth_ref);
        let version = std::mem::take(&mut rare.version);
        let result = result.and_then(|p| {
            if p.expires <= self.now {
                Err(AuthFailure::Expired)
            } else {
                Ok(p)
            }
        });
        match (result, session.is(READY)) {
            (Ok(principal), false) => self.admit(out, slot, (r#ref, version), &principal),
            (Ok(principal), true) if principal.user == session.user => {
                session.sign_in = principal.sign_in;
                session.issued = seconds(principal.issued);
                session.expires = seconds(principal.expires);
                session.set(REAUTH_TOLD, false);
                session.due = 0;
                self.ready(out, slot, r#ref, 0);
            }
            (Ok(_), true) => self.close(out, slot, CloseCode::Forbidden),
            (Err(failure), true) => self.refuse(out, slot, failure_refusal(failure, r#ref)),
            (Err(failure), false) => {
                self.refuse(out, slot, failure_refusal(failure, r#ref));
                self.signed_in(out, slot);
                self.close(
                    out,
                    slot,
                    match failure {
                        AuthFailure::Invalid => CloseCode::Policy,
                        AuthFailure::Expired => CloseCode::TokenExpired,
                        AuthFailure::Revoked => CloseCode::Revoked,
                        AuthFailure::Unavailable => CloseCode::TryLater,
                    },
                );
            }
        }
    }

    fn admit<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        (r#ref, version): (u64, u32),
        principal: &Principal,
    ) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        session.user = principal.user;
        session.device = principal.device;
        session.sign_in = principal.sign_in;
        session.issued = seconds(principal.issued);
        session.expires = seconds(principal.expires);
        session.beat = seconds(self.now);
        session.due = 0;
        session.set(READY, true);
        let id = session.id;
        let replaced: Vec<Slot> = self
            .sessions
            .of_user(principal.user)
            .filter(|&s| {
                self.sessions
                    .get(s)
                    .is_some_and(|s| s.device == principal.device)
            })
            .collect();
        for old in replaced {
            self.close(out, old, CloseCode::Replaced);
        }
        self.share_blocks(slot, principal.user);
        self.sessions.link(slot);
        shift(&self.metrics.sessions, 1);
        out.admitted(slot);
        self.ready(out, slot, r#ref, version);
        let (user, device, gateway) = (principal.user, principal.device, self.settings.gateway);
        out.put_session(
            SessionEntry {
                user,
                device,
                session: id,
                gateway,
            },
            true,
        );
        self.begin_opening(out, slot);
    }

    fn ready<O: Outbound>(&mut self, out: &mut O, slot: Slot, r#ref: u64, version: u32) {
        let Some(session) = self.sessions.get(slot) else {
            return;
        };
        let ready = wire::Ready {
            user: session.user.0,
            device: session.device.0,
            session: session.id.0,
            epoch: self.settings.epoch,
            expires: Micros::from(session.expires) * 1_000_000,
            // Clients that know of version 1 only don't look for it.
            version: if version > 1 { version } else { 0 },
        };
        self.update(out, slot, r#ref, update::Update::Ready(ready));
        self.tell_modes(out, slot);
    }

    /// Tokens of a subject count no more: its sessions close with 4002.
    pub fn revoked<O: Outbound>(&mut self, out: &mut O, revocation: &Revocation) {
        self.now = out.now();
        let is_hit = |s: &super::session::Session| {
            let subject = match revocation.subject {
                RevocationSubject::User(user) => s.user == user,
                RevocationSubject::Device(device) => s.device == device,
                RevocationSubject::SignIn(sign_in) => s.sign_in == sign_in,
            };
            s.is(READY) && subject && Micros::from(s.issued) * 1_000_000 < revocation.not_before
        };
        let slots: Vec<Slot> = match revocation.subject {
            RevocationSubject::User(user) => self.sessions.of_user(user).collect(),
            _ => self.sessions.iter().map(|(slot, _)| slot).collect(),
        };
        for slot in slots {
            if self.sessions.get(slot).is_some_and(is_hit) {
                self.close(out, slot, CloseCode::Revoked);
            }
        }
    }

    /// One session is ended from outside: another worker has the device's newer session (4005), or
    /// an operator says so.
    pub fn end_session<O: Outbound>(&mut self, out: &mut O, session: SessionId, code: CloseCode) {
        self.now = out.now();
        if let Some(slot) = self.sessions.slot_of(session) {
            self.close(out, slot, code);
        }
    }
}

fn failure_refusal(failure: AuthFailure, r#ref: u64) -> Refusal {
    match failure {
        AuthFailure::Unavailable => Refusal {
            retry_after_ms: 1000,
            ..Refusal::new(
                ErrorCode::Unavailable,
                "Tokens cannot be checked now.",
                r#ref,
            )
        },
        AuthFailure::Expired => {
            Refusal::new(ErrorCode::Unauthorized, "The token has expired.", r#ref)
        }
        AuthFailure::Revoked => {
            Refusal::new(ErrorCode::Unauthorized, "The token was revoked.", r#ref)
        }
        AuthFailure::Invalid => {
            Refusal::new(ErrorCode::Unauthorized, "The token is not valid.", r#ref)
        }
    }
}
