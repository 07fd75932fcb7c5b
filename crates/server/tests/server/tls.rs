//! TLS on a port of its own, with a certificate made here.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::support::http::{connect, request_over};
use crate::support::{Server, Session, Setup};

struct Identity {
    certificate: CertificateDer<'static>,
    pem: String,
    key: String,
}

impl Identity {
    fn new() -> Identity {
        let made = rcgen::generate_simple_self_signed(["localhost".into()]).expect("made");
        Identity {
            certificate: made.cert.der().clone(),
            pem: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
        }
    }

    fn put(&self, setup: &Setup) {
        setup.file("chain.pem", &self.pem, 0o644);
        setup.file("key.pem", &self.key, 0o600);
    }
}

type TlsStream = StreamOwned<ClientConnection, std::net::TcpStream>;

/// A connection that trusts this identity only; none if the server has another one.
fn open(
    server: &Server,
    trusted: &Identity,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<TlsStream, std::io::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.certificate.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut stream = StreamOwned::new(connection, connect(server.tls()));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

fn setup() -> Setup {
    Setup::new()
        .set("server.listen_tls=127.0.0.1:0")
        .set("server.tls_certificate=chain.pem")
        .set("server.tls_key=key.pem")
}

#[test]
fn http_and_websocket_work_over_tls_and_certificates_change_on_sighup() {
    let (first, second) = (Identity::new(), Identity::new());
    let setup = setup();
    first.put(&setup);
    let mut server = setup.start();
    let [anna, ben] = server.people();
    let direct = server.direct(&anna, &ben);

    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    for version in versions {
        let stream = open(&server, &first, &[version]).expect("trusted");
        let me = request_over(stream, "GET", "/v1/me", &anna.token, Value::Null, &[]);
        assert_eq!((me.status, &me.body["id"]), (200, &json!(anna.id)));
        let hsts = me.header("strict-transport-security").expect("over TLS");
        assert!(hsts.starts_with("max-age="), "{hsts}");
    }
    let plain = server.call("GET", "/v1/me", &anna.token, Value::Null);
    assert!(plain.header("strict-transport-security").is_none());

    let stream = open(&server, &first, &versions).expect("trusted");
    let mut session = Session::over(Box::new(stream), "ws://localhost/v1/ws");
    session.auth(&anna.token);
    session.ready = session.until("ready");
    session.sync(&json!([]), 10);
    let mut other = server.session(&ben);
    session.send(&direct, "over TLS");
    assert_eq!(other.event(&direct)["body"], "over TLS");
    other.send(&direct, "in plain");
    assert_eq!(session.event(&direct)["body"], "in plain");
    assert!(
        open(&server, &second, &versions).is_err(),
        "not trusted, as it isn't there yet"
    );

    // The files change, and then the server is told; what is open stays open.
    server.file("chain.pem", &second.pem, 0o644);
    server.file("key.pem", &second.key, 0o600);
    assert!(open(&server, &first, &versions).is_ok(), "not told yet");
    server.signal("HUP");
    server.says("certificates reloaded");
    assert!(open(&server, &second, &versions).is_ok());
    assert!(open(&server, &first, &versions).is_err());
    session.send(&direct, "still here");
    // Files that don't belong together are refused, and the last good ones stay.
    server.file("key.pem", &first.key, 0o600);
    server.signal("HUP");
    server.says("certificates not reloaded");
    assert!(open(&server, &second, &versions).is_ok());
    session.drain();
}

#[test]
fn a_key_that_others_may_read_is_refused_at_the_start() {
    let setup = setup();
    Identity::new().put(&setup);
    setup.file("key.pem", &Identity::new().key, 0o644);
    let (status, said) = setup.fails();
    assert_eq!(status.code(), Some(69));
    assert!(
        said.contains("server.tls_key") && said.contains("600"),
        "{said}"
    );
    assert!(!said.contains("PRIVATE"));
}

#[test]
fn old_protocols_and_plain_bytes_get_nothing_from_the_tls_port() {
    let setup = setup();
    Identity::new().put(&setup);
    let server = setup.start();
    // A hello of TLS 1.0 as far as its versions go.
    let mut hello = vec![0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 1];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0x00, 0x2f, 1, 0]);
    for bytes in [
        &hello[..],
        b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let mut stream = connect(server.tls());
        stream.write_all(bytes).expect("written");
        let mut answer = Vec::new();
        _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
        // At most an alert: type 21.
        assert!(answer.first().is_none_or(|&kind| kind == 21), "{answer:?}");
    }
}
