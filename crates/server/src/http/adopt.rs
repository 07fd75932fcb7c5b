//! Connections that asked a gateway worker for something else than a session.
//!
//! A worker reads a request's head to see whether it is an upgrade. If not, socket, bytes
//! and TLS state come here, and an HTTP server goes on as if it had read them itself.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConnection;
use tidings_gateway::http_head::forwarded_for;
use tidings_gateway::worker::{HandedOver, HttpHandoff};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tower::ServiceExt;

/// Whose request it is.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Marks requests that came over TLS.
#[derive(Clone, Copy, Debug)]
pub struct OverTls;

/// Connections served at once; beyond it new ones are closed before anything is done for them.
const CONNECTIONS_MAX: usize = 4096;

/// How long a connection may take over a request's head, or wait between requests.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// The same for a proxy's connections: longer than it keeps them without a request itself, since one that is closed
/// under its next request is an error for whoever made that.
const PROXIED_IDLE_MAX: Duration = Duration::from_secs(90);

/// What workers are given: it hands connections to `router` on `runtime`.
pub fn adopter(router: Router, runtime: tokio::runtime::Handle) -> impl Fn() -> HttpHandoff {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    move || {
        let (router, runtime, places) = (router.clone(), runtime.clone(), places.clone());
        Box::new(move |connection: HandedOver| {
            let Ok(place) = places.clone().try_acquire_owned() else {
                return;
            };
            let router = router.clone();
            runtime.spawn(async move {
                if let Err(error) = serve(connection, router).await {
                    tracing::debug!(%error, "an HTTP connection ended");
                }
                drop(place);
            });
        })
    }
}

async fn serve(
    connection: HandedOver,
    router: Router,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let HandedOver {
        stream,
        peer,
        is_proxied,
        received,
        tls,
    } = connection;
    stream.set_nonblocking(true)?;
    let stream = TcpStream::from_std(stream)?;
    let is_tls = tls.is_some();
    let socket = match tls {
        None => Socket::Plain(stream),
        Some(tls) => Socket::Tls(stream, tls),
    };
    let io = TokioIo::new(Adopted {
        received,
        read: 0,
        socket,
    });
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        // A proxy's connections carry requests of many clients, one after the other.
        let named = match is_proxied {
            true => request
                .headers()
                .get_all("x-forwarded-for")
                .iter()
                .next_back(),
            false => None,
        };
        let named = named.and_then(|value| forwarded_for(value.as_bytes()));
        let peer = named.map_or(peer, |ip| (ip, 0).into());
        request.extensions_mut().insert(Peer(peer));
        if is_tls {
            request.extensions_mut().insert(OverTls);
        }
        router.clone().oneshot(request)
    });
    let idle_max = if is_proxied {
        PROXIED_IDLE_MAX
    } else {
        IDLE_MAX
    };
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle_max)
        .max_buf_size(64 << 10)
        .serve_connection(io, service)
        .await?;
    Ok(())
}

enum Socket {
    Plain(TcpStream),
    Tls(TcpStream, Box<ServerConnection>),
}

/// A socket without waiting, as TLS reads and writes it.
struct Raw<'a>(&'a TcpStream);

impl Read for Raw<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection whose first bytes were read by somebody else.
struct Adopted {
    received: Vec<u8>,
    read: usize,
    socket: Socket,
}

impl AsyncRead for Adopted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.read < this.received.len() {
            let n = buf.remaining().min(this.received.len() - this.read);
            buf.put_slice(&this.received[this.read..this.read + n]);
            this.read += n;
            if this.read == this.received.len() {
                this.received = Vec::new();
                this.read = 0;
            }
            return Poll::Ready(Ok(()));
        }
        match &mut this.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Tls(socket, tls) => read_tls(socket, tls, cx, buf),
        }
    }
}

fn read_tls(
    socket: &TcpStream,
    tls: &mut ServerConnection,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    loop {
        match tls.reader().read(buf.initialize_unfilled()) {
            Ok(n) => {
                buf.advance(n);
                return Poll::Ready(Ok(()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
        ready!(socket.poll_read_ready(cx))?;
        match tls.read_tls(&mut Raw(socket)) {
            Ok(0) => return Poll::Ready(Ok(())),
            Ok(_) => _ = tls.process_new_packets().map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

fn flush_tls(
    socket: &TcpStream,
    tls: &mut ServerConnection,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while tls.wants_write() {
        ready!(socket.poll_write_ready(cx))?;
        match tls.write_tls(&mut Raw(socket)) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                return Poll::Ready(Err(error));
            }
            _ => {}
        }
    }
    Poll::Ready(Ok(()))
}

impl AsyncWrite for Adopted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Tls(socket, tls) => {
                // What is buffered goes first, so that the buffer stays small.
                ready!(flush_tls(socket, tls, cx))?;
                let n = tls.writer().write(bytes)?;
                _ = flush_tls(socket, tls, cx)?;
                Poll::Ready(Ok(n))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(socket, tls) => flush_tls(socket, tls, cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(socket, tls) => {
                tls.send_close_notify();
                ready!(flush_tls(socket, tls, cx))?;
                Pin::new(socket).poll_shutdown(cx)
            }
        }
    }
}
