//! The HTTP half of the API and the web page: accounts, conversations, messages for bots.
//!
//! Everything is JSON under `/v1`; errors are `application/problem+json` (RFC 9457) with a
//! stable `code`. docs/http.md tells it to users.

mod accounts;
mod adopt;
mod conversations;
mod error;
mod extract;
mod messages;
mod page;
mod quota;
mod rest;
mod servers;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{delete, get, post, put};
use tidings_core::ids::Micros;
use tidings_core::ports::directory::Directory;
use tidings_core::ports::registry::Registry;
use tidings_gateway::host::Gateways;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;

use crate::auth::Auth;
use crate::config::{Limits, SignUp};
use crate::routed::Routed;

pub use adopt::{Peer, adopter};

/// The largest request body: a bulk request of 1,000 users with long names fits.
const BODY_BYTES_MAX: usize = 512 << 10;

/// No request takes longer than this.
const REQUEST_MAX: Duration = Duration::from_secs(15);

/// What handlers work with.
pub struct App {
    /// Who is who, and who is where.
    pub directory: Arc<dyn Directory>,
    /// Who is speaking.
    pub auth: Arc<Auth>,
    /// Who is there.
    pub registry: Arc<dyn Registry>,
    /// The workers, for revocations and blocks.
    pub gateways: Arc<Gateways>,
    /// The way of a message, without a session.
    pub routed: Arc<Routed>,
    /// Who may sign up.
    pub sign_up: SignUp,
    /// Microseconds since 1970.
    pub clock: fn() -> Micros,
    quotas: quota::Quotas,
    /// Held from a change of blocks in the directory until the workers have been told.
    blocking: tokio::sync::Mutex<()>,
}

impl App {
    /// What handlers work with, limited as configured.
    pub fn new(parts: AppParts, sign_up: SignUp, limits: &Limits) -> App {
        let AppParts {
            directory,
            auth,
            registry,
            gateways,
            routed,
            clock,
        } = parts;
        App {
            directory,
            auth,
            registry,
            gateways,
            routed,
            sign_up,
            clock,
            quotas: quota::Quotas::new(limits),
            blocking: tokio::sync::Mutex::default(),
        }
    }
}

/// The parts an [`App`] is made of.
pub struct AppParts {
    /// See [`App::directory`].
    pub directory: Arc<dyn Directory>,
    /// See [`App::auth`].
    pub auth: Arc<Auth>,
    /// See [`App::registry`].
    pub registry: Arc<dyn Registry>,
    /// See [`App::gateways`].
    pub gateways: Arc<Gateways>,
    /// See [`App::routed`].
    pub routed: Arc<Routed>,
    /// See [`App::clock`].
    pub clock: fn() -> Micros,
}

/// All routes of the public port.
pub fn routes(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/auth/register", post(accounts::register))
        .route("/auth/login", post(accounts::login))
        .route("/auth/refresh", post(accounts::refresh))
        .route("/auth/logout", post(accounts::logout))
        .route("/auth/password", post(accounts::change_password))
        .route("/auth/ticket", post(accounts::ticket))
        .route("/me", get(accounts::me).patch(accounts::rename))
        .route("/devices", get(accounts::devices))
        .route("/devices/{device}", delete(accounts::remove_device))
        .route(
            "/blocks/{user}",
            put(accounts::block).delete(accounts::unblock),
        )
        .route("/users", get(accounts::users).post(servers::create_users))
        .route("/users/search", post(accounts::search))
        .route("/users/{user}/revoke", post(servers::revoke))
        .route(
            "/users/{user}/disabled",
            put(servers::disable).delete(servers::enable),
        )
        .route("/tokens", post(servers::tokens))
        .route("/presence", get(accounts::presence))
        .route(
            "/conversations",
            get(conversations::list).post(conversations::create),
        )
        .route(
            "/conversations/{conversation}",
            get(conversations::one).patch(conversations::rename),
        )
        .route(
            "/conversations/{conversation}/join",
            post(conversations::join),
        )
        .route(
            "/conversations/{conversation}/leave",
            post(conversations::leave),
        )
        .route(
            "/conversations/{conversation}/members",
            get(conversations::members).post(conversations::add),
        )
        .route(
            "/conversations/{conversation}/members/{user}",
            delete(conversations::remove),
        )
        .route(
            "/conversations/{conversation}/members/{user}/role",
            put(conversations::set_role),
        )
        .route(
            "/conversations/{conversation}/bans/{user}",
            put(conversations::ban).delete(conversations::unban),
        )
        .route(
            "/conversations/{conversation}/messages",
            get(messages::list).post(messages::send),
        )
        .fallback(error::not_found);
    Router::new()
        .nest("/v1", api)
        .route("/version", get(page::version))
        .merge(page::routes())
        .fallback(error::not_found)
        .layer(axum::middleware::from_fn(page::headers))
        .layer(RequestBodyLimitLayer::new(BODY_BYTES_MAX))
        .layer(axum::middleware::from_fn(rest::read))
        .layer(TimeoutLayer::with_status_code(
            axum::http::StatusCode::SERVICE_UNAVAILABLE,
            REQUEST_MAX,
        ))
        .layer(CatchPanicLayer::new())
        .with_state(app)
}
