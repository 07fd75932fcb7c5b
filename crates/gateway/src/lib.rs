//! Listeners, sessions, WebSocket and HTTP.
