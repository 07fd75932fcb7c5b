//! The section `[peers]`.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::StartError;

/// How this server meets the others of its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address and port the other servers connect to, e.g. `0.0.0.0:7400`. Empty: a cluster of one,
    /// and nothing else of this section counts. Where it is an IPv4 address, servers meet over IPv4.
    pub listen: String,
    /// Where the servers are, as `host:port`, this one included or not. A name may stand for many
    /// addresses and is looked up again and again, so one name for all servers is enough.
    pub servers: Vec<String>,
    /// The cluster's name: servers of another one are refused.
    pub cluster: String,
    /// PEM file with this server's certificate, and those between it and the CA. It must be good for
    /// both sides of a connection, and for the host that others have in `servers`.
    pub certificate: String,
    /// PEM file with the certificate's private key.
    pub key: String,
    /// PEM file with the cluster's own CA: whoever has a certificate of it is taken for a server.
    pub ca: String,
    /// The name that other servers' certificates are checked for. Empty: the host in `servers`.
    pub server_name: String,
    /// No TLS. For tests: every address must be a loopback one.
    pub insecure_loopback: bool,
    /// How long connecting may take, and then the handshake.
    pub connect_timeout_ms: u64,
    /// How often a link says that it is alive.
    pub ping_interval_ms: u64,
    /// A link that is silent for so long is dead.
    pub silence_max_ms: u64,
    /// How often the names in `servers` are looked up.
    pub resolve_interval_ms: u64,
    /// The first wait before another try to connect; it doubles, and is drawn between a half and the whole.
    pub retry_min_ms: u64,
    /// The longest wait before another try to connect.
    pub retry_max_ms: u64,
    /// Messages that wait for one link. What doesn't fit is dropped.
    pub queue_messages: usize,
    /// Bytes, about, that wait for one link. What doesn't fit is dropped.
    pub queue_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            listen: String::new(),
            servers: Vec::new(),
            cluster: "tidings".to_owned(),
            certificate: String::new(),
            key: String::new(),
            ca: String::new(),
            server_name: String::new(),
            insecure_loopback: false,
            connect_timeout_ms: 2_000,
            ping_interval_ms: 500,
            silence_max_ms: 2_000,
            resolve_interval_ms: 5_000,
            retry_min_ms: 100,
            retry_max_ms: 2_000,
            queue_messages: 64 << 10,
            queue_bytes: 16 << 20,
        }
    }
}

impl Settings {
    /// Whether there are no other servers.
    pub fn is_alone(&self) -> bool {
        self.listen.is_empty()
    }

    /// What can be said without asking anybody; the address to listen on.
    pub(super) fn checked(&self) -> Result<SocketAddr, StartError> {
        let listen: SocketAddr = self.listen.parse().map_err(|_| {
            let example = "an IP address and a port, as 0.0.0.0:7400";
            StartError::wrong("peers.listen", format!("{:?} isn't {example}", self.listen))
        })?;
        for server in &self.servers {
            host_of(server).ok_or_else(|| {
                let reason = format!("{server:?} isn't host:port");
                StartError::wrong("peers.servers", reason)
            })?;
        }
        if self.servers.is_empty() {
            let reason =
                "names no servers, though peers.listen waits for them: list all as host:port";
            return Err(StartError::wrong("peers.servers", reason));
        }
        if self.cluster.is_empty() || self.cluster.len() > 100 {
            return Err(StartError::wrong(
                "peers.cluster",
                "must have 1 to 100 bytes",
            ));
        }
        if self.ping_interval_ms == 0 || self.silence_max_ms < 2 * self.ping_interval_ms {
            let reason = "must be at least twice peers.ping_interval_ms, which must be above 0";
            return Err(StartError::wrong("peers.silence_max_ms", reason));
        }
        if self.retry_min_ms == 0 || self.retry_max_ms < self.retry_min_ms {
            let reason = "must be at least peers.retry_min_ms, which must be above 0";
            return Err(StartError::wrong("peers.retry_max_ms", reason));
        }
        for (setting, value) in [
            ("peers.connect_timeout_ms", self.connect_timeout_ms),
            ("peers.resolve_interval_ms", self.resolve_interval_ms),
            ("peers.queue_messages", self.queue_messages as u64),
            ("peers.queue_bytes", self.queue_bytes as u64),
        ] {
            if value == 0 {
                return Err(StartError::wrong(setting, "must be above 0"));
            }
        }
        if self.insecure_loopback && !may_be_plain(listen.ip()) {
            let reason = "goes with loopback addresses only: servers elsewhere need peers.certificate, peers.key and peers.ca";
            return Err(StartError::wrong("peers.insecure_loopback", reason));
        }
        Ok(listen)
    }
}

/// The host of `host:port`; brackets of an IPv6 address are taken off.
pub(super) fn host_of(server: &str) -> Option<&str> {
    let (host, port) = server.rsplit_once(':')?;
    port.parse::<u16>().ok().filter(|port| *port != 0)?;
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let is_ambiguous = bare.contains(':') && bare.len() == host.len();
    (!bare.is_empty() && !is_ambiguous).then_some(bare)
}

/// Whether a connection to there may go without TLS, where the settings say so.
pub(super) fn may_be_plain(address: IpAddr) -> bool {
    address.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_told_apart() {
        assert_eq!(host_of("chat.internal:7400"), Some("chat.internal"));
        assert_eq!(host_of("10.0.0.1:7400"), Some("10.0.0.1"));
        assert_eq!(host_of("[::1]:7400"), Some("::1"));
        for bad in ["chat", "chat:", "chat:0", ":7400", "::1:7400", "chat:74000"] {
            assert_eq!(host_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_setting_that_cannot_work_is_named() {
        let good = Settings {
            listen: "127.0.0.1:0".to_owned(),
            servers: vec!["localhost:1".to_owned()],
            ..Settings::default()
        };
        assert!(good.checked().is_ok());
        type Change<'a> = &'a dyn Fn(&mut Settings);
        let bad: [(&str, Change<'_>); 6] = [
            ("peers.listen", &|s| s.listen = "localhost".to_owned()),
            ("peers.servers", &|s| s.servers = vec!["a".to_owned()]),
            ("peers.servers", &|s| s.servers.clear()),
            ("peers.silence_max_ms", &|s| s.silence_max_ms = 600),
            ("peers.queue_bytes", &|s| s.queue_bytes = 0),
            ("peers.insecure_loopback", &|s| {
                s.insecure_loopback = true;
                s.listen = "0.0.0.0:0".to_owned();
            }),
        ];
        for (setting, change) in bad {
            let mut settings = good.clone();
            change(&mut settings);
            assert_eq!(settings.checked().expect_err(setting).setting, setting);
        }
    }
}
