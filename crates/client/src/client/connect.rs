//! Making a connection, within a deadline.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tidings_protocol::Format;
use tidings_protocol::limits::FRAME_BYTES_MAX;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// From the name's look-up to the answered upgrade.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Reading takes this much memory for each connection.
const READ_BUFFER_BYTES: usize = 8 * 1024;
/// A server of another configuration may send larger frames than the published default.
const MESSAGE_BYTES_MAX: usize = 16 * FRAME_BYTES_MAX;

pub(super) type Socket = WebSocketStream<TcpStream>;

/// Why there is no connection; only for the log, the remedy is always to try again later.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("not a ws:// URL with a host")]
    Url,
    #[error("no answer in time")]
    Late,
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    WebSocket(Box<tokio_tungstenite::tungstenite::Error>),
    #[error("the server doesn't speak this format")]
    Format,
}

impl From<tokio_tungstenite::tungstenite::Error> for ConnectError {
    fn from(e: tokio_tungstenite::tungstenite::Error) -> Self {
        ConnectError::WebSocket(Box::new(e))
    }
}

impl ConnectError {
    /// The seconds after which the server wants the client back, if it said so (RFC 9110, section 10.2.3).
    pub(super) fn retry_after(&self) -> Option<u32> {
        use tokio_tungstenite::tungstenite::Error;
        let ConnectError::WebSocket(error) = self else {
            return None;
        };
        let Error::Http(response) = &**error else {
            return None;
        };
        let seconds = response.headers().get(header::RETRY_AFTER)?;
        seconds.to_str().ok()?.parse().ok()
    }
}

pub(super) async fn connect(
    url: String,
    format: Format,
    from: Option<IpAddr>,
) -> Result<Socket, ConnectError> {
    let attempt = attempt(url, format, from);
    tokio::time::timeout(CONNECT_WITHIN, attempt)
        .await
        .unwrap_or(Err(ConnectError::Late))
}

async fn attempt(
    url: String,
    format: Format,
    from: Option<IpAddr>,
) -> Result<Socket, ConnectError> {
    let mut request = url.into_client_request()?;
    let uri = request.uri();
    if uri.scheme_str() != Some("ws") {
        return Err(ConnectError::Url);
    }
    let host = uri
        .host()
        .ok_or(ConnectError::Url)?
        .trim_matches(['[', ']'])
        .to_owned();
    let port = uri.port_u16().unwrap_or(80);
    let protocol = HeaderValue::from_static(format.subprotocol());
    request
        .headers_mut()
        .insert(header::SEC_WEBSOCKET_PROTOCOL, protocol.clone());
    let stream = dial(&host, port, from).await?;
    stream.set_nodelay(true)?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let (socket, response) =
        tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await?;
    if response.headers().get(header::SEC_WEBSOCKET_PROTOCOL) != Some(&protocol) {
        return Err(ConnectError::Format);
    }
    Ok(socket)
}

async fn dial(host: &str, port: u16, from: Option<IpAddr>) -> Result<TcpStream, ConnectError> {
    let mut last = ConnectError::Url;
    for address in lookup_host((host, port)).await? {
        let tried = match from {
            None => TcpStream::connect(address).await,
            Some(from) if from.is_ipv4() == address.is_ipv4() => dial_from(from, address).await,
            Some(_) => continue,
        };
        match tried {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e.into(),
        }
    }
    Err(last)
}

async fn dial_from(from: IpAddr, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if from.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(address).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_server_without_room_says_when_it_has_some() {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("ws://{}", server.local_addr().expect("bound"));
        for (answer, wanted) in [
            ("503 Service Unavailable\r\nRetry-After: 7", Some(7)),
            ("429 Too Many Requests\r\nRetry-After: soon", None),
            ("503 Service Unavailable", None),
        ] {
            let refuse = async {
                let (mut socket, _) = server.accept().await.expect("a connection");
                let mut head = [0; 1024];
                let _ = socket.read(&mut head).await.expect("a request");
                let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                socket.write_all(answer.as_bytes()).await.expect("written");
            };
            let (result, ()) = tokio::join!(connect(url.clone(), Format::Proto, None), refuse);
            let error = result.expect_err("refused");
            assert_eq!(error.retry_after(), wanted, "{answer}");
        }
    }
}
