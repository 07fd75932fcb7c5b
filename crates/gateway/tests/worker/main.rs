//! A real worker, real sockets: what clients and handlers see.

mod limits;
mod sessions;
mod slow_readers;
mod support;
mod tls;
