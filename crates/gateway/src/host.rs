//! The host: a worker's handler that gives [`GatewayCore`] its sockets and ports.
//!
//! A port's call is polled once, right where it is made: the embedded ones are ready at once, and
//! then nothing is spawned, woken or locked. What isn't ready runs on the runtime under the port's
//! deadline and comes back through the worker's inbox.
//!
//! [`worker`] puts everything together; run what it gives on a thread of its own.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tidings_core::ids::Micros;
use tidings_core::in_process::{GatewayInbox, InProcessPeers, REST_AFTER, rest};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::directory::{Directory, Revocation};
use tidings_core::ports::log::Log;
use tidings_core::ports::peers::{Peers, ToGateway};
use tidings_core::ports::registry::Registry;
use tidings_core::ports::store::Store;
use tidings_protocol::Format;

use crate::logic::{AuthFailure, GatewayCore, GatewayMetrics, Principal, Settings};
use crate::worker::{self, CloseReason, Handler, Io, OpenInfo, Token, Worker};
use crate::ws::Opcode;

mod calls;
mod gateways;
mod inbox;
mod probe;
mod users;

pub use gateways::Gateways;
pub use inbox::Inbox;
pub use users::UserCache;

use calls::{Link, Out};
use inbox::Input;

/// Checks tokens.
pub trait Authenticator: Send + Sync {
    /// What can be said of a token without waiting; none: [`Authenticator::verify`] must be asked.
    fn verify_now(&self, token: &str, device: &str) -> Option<Result<Principal, AuthFailure>>;

    /// Says who a token speaks for. `device` is the client's name for its device, which counts when
    /// the token names none.
    fn verify(
        &self,
        token: String,
        device: String,
    ) -> BoxFuture<'_, Result<Principal, AuthFailure>>;

    /// Another server has revoked something: its tokens are refused from now on. Told by each worker.
    fn revoked(&self, revocation: &Revocation);
}

/// What all workers of a process share.
#[derive(Clone)]
pub struct Ports {
    /// Where sends are appended.
    pub log: Arc<dyn Log>,
    /// Where events are read.
    pub store: Arc<dyn Store>,
    /// Who is a member of what.
    pub directory: Arc<dyn Directory>,
    /// Who is connected where.
    pub registry: Arc<dyn Registry>,
    /// The way to the routers.
    pub peers: Arc<dyn Peers>,
    /// Where their messages for the workers here come in.
    pub local: Arc<InProcessPeers>,
    /// Who a token speaks for.
    pub authenticator: Arc<dyn Authenticator>,
    /// The lists of users' conversations that are remembered.
    pub users: Arc<UserCache>,
    /// The workers.
    pub gateways: Arc<Gateways>,
    /// Where calls run that aren't ready at once.
    pub runtime: tokio::runtime::Handle,
    /// Microseconds since 1970.
    pub clock: fn() -> Micros,
}

/// The subprotocols that [`crate::ws::handshake::Policy`] must offer, in the host's order.
pub fn subprotocols() -> Vec<String> {
    Format::ALL
        .iter()
        .map(|format| format.subprotocol().to_owned())
        .collect()
}

/// Messages of routers handled in one turn; the sockets have their turn in between.
const MESSAGES_PER_TURN: usize = 1_000;

/// How long a drain may take, beside the time over which sessions leave, before the worker stops whatever is left.
const DRAIN_MAX: Duration = Duration::from_secs(9);

/// A worker with its logic, known to the routers and to [`Gateways`]. Until when a session must be signed in the
/// settings say, not [`worker::WorkerConfig::auth_ms`].
///
/// # Errors
/// When epoll or a descriptor isn't to be had.
pub fn worker(
    mut parts: worker::Parts,
    settings: Settings,
    ports: Ports,
    metrics: Arc<GatewayMetrics>,
) -> io::Result<Worker<Host>> {
    // The logic tells silent ones from those whom it lets wait, and closes the silent ones sooner.
    parts.config.auth_ms = (settings.signed_in_within() / 1_000) as u32 + parts.config.tick_ms;
    let inbox = Arc::new(Inbox::default());
    let (gateway, peers, gateways) = (
        settings.gateway,
        Arc::clone(&ports.local),
        Arc::clone(&ports.gateways),
    );
    let wake = Arc::clone(&inbox);
    let messages = peers.add_gateway(gateway, Box::new(move || wake.wake()));
    let host = Host {
        core: GatewayCore::new(settings, metrics),
        link: Link::new(gateway, ports, Arc::clone(&inbox), parts.config.tick_ms),
        messages,
        pending: VecDeque::new(),
        inputs: Vec::new(),
        batch: Vec::new(),
        drain_until: None,
        rest_at: 0,
    };
    let worker = Worker::new(parts, host)?;
    inbox.attach(worker.waker());
    gateways.add(gateway, inbox);
    Ok(worker)
}

/// The handler of one worker.
pub struct Host {
    core: GatewayCore,
    link: Link,
    messages: GatewayInbox,
    /// Messages of routers that wait for the next turn.
    pending: VecDeque<ToGateway>,
    inputs: Vec<Input>,
    batch: Vec<ToGateway>,
    drain_until: Option<u64>,
    /// When memory is given back next.
    rest_at: u64,
}

impl Host {
    /// Calls the core, and then for every answer that was ready at once.
    fn call(&mut self, io: &mut Io, call: impl FnOnce(&mut GatewayCore, &mut Out<'_>)) {
        call(
            &mut self.core,
            &mut Out {
                link: &mut self.link,
                io,
            },
        );
        while let Some(input) = self.link.ready.pop_front() {
            self.input(io, input);
        }
    }

    fn input(&mut self, io: &mut Io, input: Input) {
        let out = &mut Out {
            link: &mut self.link,
            io,
        };
        match input {
            Input::Appended(batch, result) => self.core.appended(out, batch, result),
            Input::Authenticated(session, result) => self.core.authenticated(out, session, result),
            Input::UserLoaded(user, listed) => self.core.user_loaded(out, user, listed),
            Input::EventsRead(request, result) => self.core.events_read(out, request, result),
            Input::PresenceAnswered(request, users, blockers) => {
                let blockers = blockers.as_deref();
                self.core.presence_answered(out, request, &users, blockers);
            }
            Input::PresenceChanged(users) => self.core.presence_changed(out, &users),
            Input::BlockChanged(user, other, is_blocked) => {
                self.core.block_changed(out, user, other, is_blocked);
            }
            Input::Mode(mode) => self.core.mode_changed(out, mode),
            Input::Probe(asked) => self.link.probed(asked),
            Input::Revoked(revocation) => self.core.revoked(out, &revocation),
            Input::End(session, code) => self.core.end_session(out, session, code),
            Input::Delayed(user, conversation, seq) => {
                self.core.delayed(out, user, conversation, seq);
            }
            Input::Drain(in_turn) => {
                let served_ms = self.core.drain_begin(out, in_turn) / 1000;
                io.begin_drain();
                let until = io.now_ms() + served_ms + DRAIN_MAX.as_millis() as u64;
                self.drain_until.get_or_insert(until);
            }
        }
    }

    /// Everything that came from other threads.
    fn take_inputs(&mut self, io: &mut Io) {
        let mut inputs = std::mem::take(&mut self.inputs);
        self.link.inbox.take(&mut inputs);
        for input in inputs.drain(..) {
            self.link.ready.push_back(input);
            self.call(io, |_, _| {});
        }
        self.inputs = inputs;
        if self.messages.take(&mut self.batch) {
            self.call(io, |core, out| core.messages_lost(out));
        }
        self.pending.extend(self.batch.drain(..));
        for _ in 0..MESSAGES_PER_TURN {
            let Some(message) = self.pending.pop_front() else {
                break;
            };
            if let ToGateway::Revoked(revocation) = &message {
                self.link.revoked(revocation);
            }
            self.call(io, |core, out| core.from_router(out, message));
        }
        if self.pending.capacity() > 4 * MESSAGES_PER_TURN && self.pending.is_empty() {
            self.pending = VecDeque::new();
        }
    }
}

impl Handler for Host {
    fn on_open(&mut self, io: &mut Io, token: Token, info: &OpenInfo<'_>) {
        // A client that names no subprotocol most likely writes its JSON by hand.
        let format = info
            .subprotocol
            .and_then(|i| Format::ALL.get(usize::from(i)).copied())
            .unwrap_or(Format::Json);
        let slot = self.link.admit(token);
        self.call(io, |core, out| {
            core.opened(out, slot, format);
            if let Some(ticket) = info.ticket {
                core.ticket(out, slot, ticket);
            }
        });
    }

    fn on_message(&mut self, io: &mut Io, token: Token, opcode: Opcode, payload: &mut [u8]) {
        self.call(io, |core, out| {
            core.message(out, token.slot() as u32, opcode, payload)
        });
    }

    fn on_close(&mut self, io: &mut Io, token: Token, reason: CloseReason) {
        tracing::debug!(?token, ?reason, "connection ended");
        self.call(io, |core, out| core.closed(out, token.slot() as u32));
    }

    fn on_overflow(&mut self, io: &mut Io, token: Token) {
        self.call(io, |core, out| core.overflow(out, token.slot() as u32));
    }

    fn on_drained(&mut self, io: &mut Io, token: Token) {
        self.call(io, |core, out| core.drained(out, token.slot() as u32));
    }

    fn on_wake(&mut self, io: &mut Io) {
        self.call(io, |core, out| core.turn_start(out));
        self.take_inputs(io);
    }

    fn on_turn_end(&mut self, io: &mut Io) {
        self.call(io, |core, out| core.turn_end(out));
        if self.core.wants_turn() || !self.pending.is_empty() {
            self.link.inbox.wake();
        }
    }

    fn on_tick(&mut self, io: &mut Io) {
        self.take_inputs(io);
        self.call(io, |core, out| core.tick(out));
        self.link.tell_presence();
        if io.now_ms() >= self.rest_at {
            self.rest_at = io.now_ms() + REST_AFTER.as_millis() as u64;
            rest();
        }
        if let Some(until) = self.drain_until
            && (self.core.is_drained() || io.now_ms() >= until)
        {
            io.stop();
        }
    }
}
