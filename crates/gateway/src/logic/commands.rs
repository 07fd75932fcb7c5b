//! What a client asks, one command at a time.

use tidings_protocol::wire::command::Command;
use tidings_protocol::wire::{self, update};
use tidings_protocol::{CloseCode, ErrorCode, Request, commands_decode};

use super::outbound::{Outbound, Slot};
use super::session::{CLOSING, OPENED, READY, WAITING_MAX};
use super::{GatewayCore, Refusal, frames};
use crate::ws::Opcode;

impl GatewayCore {
    /// A whole WebSocket message came from a session.
    pub fn message<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        opcode: Opcode,
        payload: &[u8],
    ) {
        self.now = out.now();
        let Some(session) = self.sessions.get(slot) else {
            return;
        };
        if session.is(CLOSING) {
            return;
        }
        let (format, ready) = (session.format, session.is(READY));
        if frames::opcode(format) != opcode {
            return self.close(out, slot, CloseCode::WrongType);
        }
        let commands = match commands_decode(format, payload) {
            Ok(commands) => commands,
            Err(_) if !ready => return self.close(out, slot, CloseCode::Policy),
            Err(error) => return self.malformed(out, slot, &error),
        };
        for command in commands {
            // A stranger's commands end at the first that isn't `auth` (checklist row 5); those
            // sent before the answer to `auth` are a stranger's.
            let Some(session) = self.sessions.get(slot) else {
                return;
            };
            let (ready, closing) = (session.is(READY), session.is(CLOSING));
            if closing {
                return;
            }
            let command = match command {
                Ok(command) => command,
                Err(_) if !ready => return self.close(out, slot, CloseCode::Policy),
                Err(error) => return self.malformed(out, slot, &error),
            };
            match command.request {
                Request::Other(Command::Auth(auth))
                    if ready || !session.is(super::session::AUTHENTICATING) =>
                {
                    self.auth(out, slot, command.r#ref, auth);
                }
                _ if !ready => return self.close(out, slot, CloseCode::Policy),
                Request::Send(send) => self.send(out, slot, command.r#ref, &send),
                Request::Other(other) => self.command(out, slot, command.r#ref, other),
            }
        }
    }

    fn malformed<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        error: &tidings_protocol::DecodeError,
    ) {
        self.metrics.refused(error.code);
        let update = error.to_update();
        if let Some(content) = update.update {
            self.update(out, slot, update.r#ref, content);
        }
    }

    /// A command other than `send`. Those that need to know the user's conversations, or whom the
    /// user blocks, wait until these are opened.
    pub(super) fn command<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        command: Command,
    ) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let must_wait = matches!(
            command,
            Command::Delivered(_) | Command::Read(_) | Command::Typing(_) | Command::History(_)
        );
        if must_wait && !session.is(OPENED) {
            let waiting = &mut session.rare().waiting;
            if waiting.len() < WAITING_MAX {
                waiting.push((r#ref, command));
            } else {
                let refusal = Refusal::new(
                    ErrorCode::Unavailable,
                    "The conversations are being opened.",
                    r#ref,
                );
                self.refuse(
                    out,
                    slot,
                    Refusal {
                        retry_after_ms: 1000,
                        ..refusal
                    },
                );
            }
            return;
        }
        match command {
            Command::Auth(auth) => self.auth(out, slot, r#ref, auth),
            Command::Delivered(delivered) => self.delivered(out, slot, r#ref, &delivered),
            Command::Read(read) => self.read_up_to(out, slot, r#ref, &read),
            Command::Typing(typing) => self.type_on(out, slot, r#ref, &typing),
            Command::Presence(presence) => self.set_presence(out, slot, r#ref, &presence),
            Command::Watch(watch) => self.watch(out, slot, r#ref, &watch),
            Command::Sync(sync) => self.sync(out, slot, r#ref, sync),
            Command::History(history) => self.history(out, slot, r#ref, &history),
            Command::Ping(_) => {
                let server_time = self.now;
                self.update(
                    out,
                    slot,
                    r#ref,
                    update::Update::Pong(wire::Pong { server_time }),
                );
            }
            // Sends are taken apart before, without a copy of their bodies.
            Command::Send(_) => {}
        }
    }
}
