use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tidings_gateway::tls::Tls;
use tidings_gateway::worker::{CloseReason, PoolLimits};

use crate::support::*;

struct Identity {
    certificate: CertificateDer<'static>,
    pem: String,
    key_pem: String,
}

fn identity() -> Identity {
    let made = rcgen::generate_simple_self_signed(["localhost".into()]).expect("a certificate");
    Identity {
        certificate: made.cert.der().clone(),
        pem: made.cert.pem(),
        key_pem: made.signing_key.serialize_pem(),
    }
}

fn start_tls(identity: &Identity) -> (Server, Tls) {
    let tls = Tls::from_pem(identity.pem.as_bytes(), identity.key_pem.as_bytes()).expect("TLS");
    (start_with(config(), limits(), Some(tls.clone())), tls)
}

fn limits() -> PoolLimits {
    PoolLimits {
        exempt_loopback: true,
        ..PoolLimits::of(1000)
    }
}

/// How clients see the server: trusting one certificate, remembering sessions.
fn trusting(identity: &Identity) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.certificate.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

type TlsClient = StreamOwned<ClientConnection, TcpStream>;

fn connect(server: &Server, config: &Arc<ClientConfig>) -> TlsClient {
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::clone(config), name).expect("a client");
    StreamOwned::new(connection, server.connect().stream)
}

fn open(server: &Server, config: &Arc<ClientConfig>) -> TlsClient {
    let mut client = connect(server, config);
    client
        .write_all(UPGRADE.as_bytes())
        .expect("the server reads");
    assert!(read_head(&mut client).starts_with("HTTP/1.1 101 "));
    client
}

fn echo(client: &mut TlsClient, text: &str) {
    client
        .write_all(&client_frame(0x81, text.as_bytes()))
        .expect("the server reads");
    let (first, payload) = read_frame(client);
    assert_eq!((first, payload == text.as_bytes()), (0x81, true));
}

#[test]
fn a_tls_session_echoes_large_and_small_and_ends_properly() {
    let identity = identity();
    let (server, _) = start_tls(&identity);
    let mut client = open(&server, &trusting(&identity));
    assert!(matches!(server.saw(), Seen::Open(..)));
    for size in [1, 1000, 60_000, 3] {
        echo(&mut client, &"x".repeat(size));
        assert!(matches!(server.saw(), Seen::Message(..)));
    }
    client
        .write_all(&client_frame(0x88, &1000u16.to_be_bytes()))
        .expect("the server reads");
    assert_eq!(
        read_frame(&mut client),
        (0x88, 1000u16.to_be_bytes().to_vec())
    );
    assert_eq!(
        client
            .read(&mut [0])
            .expect("close_notify, not a torn connection"),
        0
    );
    assert!(matches!(
        server.saw(),
        Seen::Close(_, CloseReason::Peer(Some(1000)))
    ));
}

#[test]
fn a_slow_tls_reader_gets_all_that_fits_the_queue() {
    let identity = identity();
    let tls = Tls::from_pem(identity.pem.as_bytes(), identity.key_pem.as_bytes()).expect("TLS");
    let config = tidings_gateway::worker::WorkerConfig {
        queue_bytes_max: 64 << 20,
        queue_frames_max: 10_000,
        ..config()
    };
    let server = start_with(config, limits(), Some(tls));
    let mut client = open(&server, &trusting(&identity));
    let Seen::Open(token, ..) = server.saw() else {
        panic!("not open")
    };
    for i in 0..400 {
        let text = format!("{i:040000}");
        assert!(server.run(move |io| io.send(token, text_frame(&text))));
    }
    assert!(
        server.run(move |io| io.queued_bytes(token)) > 0,
        "the socket is full"
    );
    for i in 0..400 {
        let (_, payload) = read_frame(&mut client);
        assert_eq!(payload, format!("{i:040000}").as_bytes());
    }
    assert_eq!(server.saw(), Seen::Drained(token));
}

#[test]
fn a_client_that_comes_back_resumes() {
    let identity = identity();
    let (server, _) = start_tls(&identity);
    let config = trusting(&identity);
    let mut first = open(&server, &config);
    // The ticket comes before the echo.
    echo(&mut first, "hello");
    let mut second = open(&server, &config);
    echo(&mut second, "again");
    assert_eq!(
        first.conn.handshake_kind(),
        Some(rustls::HandshakeKind::Full)
    );
    assert_eq!(
        second.conn.handshake_kind(),
        Some(rustls::HandshakeKind::Resumed)
    );
}

#[test]
fn a_new_certificate_is_used_for_new_sessions_and_a_bad_one_is_refused() {
    let (old, new) = (identity(), identity());
    let (server, tls) = start_tls(&old);
    let mut before = open(&server, &trusting(&old));
    assert!(tls.reload(b"no PEM", new.key_pem.as_bytes()).is_err());
    assert!(
        tls.reload(new.pem.as_bytes(), old.key_pem.as_bytes())
            .is_err(),
        "another's key"
    );
    echo(&mut open(&server, &trusting(&old)), "unchanged");
    tls.reload(new.pem.as_bytes(), new.key_pem.as_bytes())
        .expect("a good pair");
    echo(&mut open(&server, &trusting(&new)), "new");
    echo(&mut before, "still there");
    let mut distrusting = connect(&server, &trusting(&old));
    assert!(
        distrusting
            .write_all(b"GET")
            .and_then(|()| distrusting.flush())
            .is_err()
    );
}

#[test]
fn a_tls_request_is_handed_over_with_its_state() {
    let identity = identity();
    let (server, _) = start_tls(&identity);
    let mut client = connect(&server, &trusting(&identity));
    // Longer than the buffer that sockets are read into.
    let body = vec![b'b'; 200 << 10];
    let head = format!(
        "POST /media HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let sent = [head.as_bytes(), &body].concat();
    let expected = sent.clone();
    let writer = std::thread::spawn(move || {
        client.write_all(&sent).expect("the server reads");
        client.flush().expect("the server reads");
        let mut answer = [0; 2];
        client.read_exact(&mut answer).expect("an answer");
        answer
    });
    let connection = server
        .handed_over
        .recv_timeout(DEADLINE)
        .expect("handed over");
    connection.stream.set_nonblocking(false).expect("a setting");
    let tls = *connection.tls.expect("a TLS state");
    let mut stream = StreamOwned::new(tls, connection.stream);
    let mut received = connection.received;
    let mut rest = vec![0; expected.len() - received.len()];
    stream.read_exact(&mut rest).expect("the rest");
    received.extend(rest);
    assert!(received == expected, "every byte, in order");
    stream
        .write_all(b"ok")
        .and_then(|()| stream.flush())
        .expect("the client reads");
    assert_eq!(&writer.join().expect("no panic"), b"ok");
}

#[test]
fn plain_bytes_at_a_tls_port_open_nothing() {
    let identity = identity();
    let (server, _) = start_tls(&identity);
    let mut client = server.connect();
    client.write(UPGRADE.as_bytes());
    let mut answer = Vec::new();
    let _ = client.stream.read_to_end(&mut answer);
    assert!(
        answer.first().is_none_or(|&kind| kind == 21),
        "an alert at most"
    );
    assert!(server.seen.try_recv().is_err());
}
