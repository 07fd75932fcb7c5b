//! How a connection comes about, and what is said when it doesn't.

use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClientBuilder, TlsMode};
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, Pipeline,
    RedisConnectionInfo, RedisError, RedisFuture, RedisResult, ServerErrorKind, TlsCertificates,
    Value,
};

use super::link::lock;
use super::settings::{Mode, Settings, host_and_port};
use crate::StartError;

/// A connection that many calls share; they are answered in one stream, and written together.
#[derive(Clone)]
pub(super) enum Conn {
    /// To one server.
    One(MultiplexedConnection),
    /// To all primaries of a cluster.
    Many(ClusterConnection),
}

impl ConnectionLike for Conn {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Conn::One(conn) => conn.req_packed_command(cmd),
            Conn::Many(conn) => conn.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Conn::One(conn) => conn.req_packed_commands(pipeline, offset, count),
            Conn::Many(conn) => conn.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Conn::One(conn) => conn.get_db(),
            Conn::Many(conn) => conn.get_db(),
        }
    }
}

/// A connection that answered, and where to subscribe.
pub(super) struct Connected {
    pub conn: Conn,
    /// Any of these hears all messages.
    pub subscribe_at: Vec<Client>,
    /// The primary's address; none for a cluster.
    pub address: Option<String>,
}

/// What connections are made with.
pub(super) struct Connector {
    settings: Settings,
    ca: Option<Vec<u8>>,
    /// To the Sentinels, kept from one question to the next; the locks are held for a look only.
    sentinels: Vec<Mutex<Option<MultiplexedConnection>>>,
}

impl Connector {
    pub fn new(settings: &Settings) -> Result<Connector, StartError> {
        settings.checked()?;
        let path = &settings.tls_ca_file;
        let ca = if settings.tls && !path.is_empty() {
            let read = fs::read(path).map_err(|error| {
                StartError::wrong(
                    "redis.tls_ca_file",
                    format!("{path} can't be read: {error}"),
                )
            })?;
            Some(read)
        } else {
            None
        };
        Ok(Connector {
            settings: settings.clone(),
            ca,
            sentinels: settings.nodes.iter().map(|_| Mutex::default()).collect(),
        })
    }

    fn info(&self, node: &str, of_sentinel: bool) -> Result<ConnectionInfo, StartError> {
        let Some((host, port)) = host_and_port(node) else {
            let reason = format!("`{node}` isn't of the form host:port");
            return Err(StartError::wrong("redis.nodes", reason));
        };
        let host = host.to_owned();
        let address = if self.settings.tls {
            ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let (user, password) = if of_sentinel {
            (
                &self.settings.sentinel_user,
                &self.settings.sentinel_password.0,
            )
        } else {
            (&self.settings.user, &self.settings.password.0)
        };
        let mut login = RedisConnectionInfo::default();
        if !user.is_empty() {
            login = login.set_username(user);
        }
        if !password.is_empty() {
            login = login.set_password(password);
        }
        if !of_sentinel {
            login = login.set_db(self.settings.database);
        }
        let info = redis::IntoConnectionInfo::into_connection_info(address)
            .map_err(|error| sort(&error, node, of_sentinel))?;
        Ok(info.set_redis_settings(login))
    }

    fn client(&self, node: &str, of_sentinel: bool) -> Result<Client, StartError> {
        let info = self.info(node, of_sentinel)?;
        let client = if self.settings.tls {
            Client::build_with_tls(info, self.certificates())
        } else {
            Client::open(info)
        };
        client.map_err(|error| match self.ca {
            Some(_) => StartError::wrong(
                "redis.tls_ca_file",
                format!("holds no usable certificates: {}", said(&error)),
            ),
            None => sort(&error, node, of_sentinel),
        })
    }

    fn certificates(&self) -> TlsCertificates {
        TlsCertificates {
            client_tls: None,
            root_cert: self.ca.clone(),
        }
    }

    /// Connects in one round of tries; a bounded time.
    pub async fn connect(&self) -> Result<Connected, StartError> {
        match self.settings.mode {
            Mode::Standalone => self.connect_to(&self.settings.nodes[0]).await,
            Mode::Sentinel => {
                let primary = self.primary().await?;
                self.connect_to(&primary).await
            }
            Mode::Cluster => self.connect_cluster().await,
        }
    }

    /// Who the primary is, by the Sentinel that has seen the latest failover. Always asked anew: an old
    /// primary that comes back says of itself that it is one until a Sentinel corrects it.
    pub async fn primary(&self) -> Result<String, StartError> {
        let sentinels = self.settings.nodes.iter().zip(&self.sentinels);
        let answers = join_all(sentinels.map(|(node, kept)| self.ask(node, kept))).await;
        let mut latest: Option<(u64, String)> = None;
        let (mut unknown, mut trouble) = (false, None);
        for answer in answers {
            match answer {
                Ok(Some(named)) => latest = latest.max(Some(named)),
                Ok(None) => unknown = true,
                // What has to be changed says more than what may pass.
                Err(error) if trouble.as_ref().is_none_or(|t: &StartError| t.may_pass) => {
                    trouble = Some(error);
                }
                Err(_) => {}
            }
        }
        match latest {
            Some((_, address)) => Ok(address),
            None if unknown => Err(StartError::wrong(
                "redis.service",
                format!(
                    "the Sentinels at {} monitor nothing of the name `{}`; give the name of their `sentinel monitor` line",
                    self.settings.nodes.join(", "),
                    self.settings.service
                ),
            )),
            None => {
                Err(trouble
                    .unwrap_or_else(|| StartError::away("redis.nodes", "no Sentinel answered")))
            }
        }
    }

    /// One Sentinel's word: epoch and address; `None`: it doesn't know the service.
    async fn ask(
        &self,
        node: &str,
        kept: &Mutex<Option<MultiplexedConnection>>,
    ) -> Result<Option<(u64, String)>, StartError> {
        let client = self.client(node, true)?;
        // Put back when it has answered: one that doesn't isn't used again.
        let known = lock(kept).take();
        let work = async {
            let mut conn = match known {
                Some(conn) => conn,
                None => {
                    client
                        .get_multiplexed_async_connection_with_config(&self.config())
                        .await?
                }
            };
            let service = &self.settings.service;
            let address: Option<(String, String)> = redis::cmd("SENTINEL")
                .arg("GET-MASTER-ADDR-BY-NAME")
                .arg(service)
                .query_async(&mut conn)
                .await?;
            let Some((host, port)) = address else {
                return Ok(None);
            };
            let fields: Vec<String> = redis::cmd("SENTINEL")
                .arg("MASTER")
                .arg(service)
                .query_async(&mut conn)
                .await?;
            let epoch = fields
                .chunks_exact(2)
                .find(|pair| pair[0] == "config-epoch")
                .and_then(|pair| pair[1].parse().ok())
                .unwrap_or(0);
            let host = if host.contains(':') {
                format!("[{host}]")
            } else {
                host
            };
            *lock(kept) = Some(conn);
            RedisResult::Ok(Some((epoch, format!("{host}:{port}"))))
        };
        match tokio::time::timeout(self.settings.connect_timeout(), work).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if said(&error).contains("unknown command") => Err(StartError::wrong(
                "redis.mode",
                format!(
                    "{node} is no Sentinel; name the Sentinels in redis.nodes, or use `standalone` or `cluster`"
                ),
            )),
            Ok(Err(error)) => Err(sort(&error, node, true)),
            Err(_) => Err(away(node, self.settings.connect_timeout())),
        }
    }

    fn config(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.settings.connect_timeout()))
            // Calls have their own deadline, one clock for waiting and for the answer.
            .set_response_timeout(None)
            .set_concurrency_limit(self.settings.in_flight_max)
    }

    async fn connect_to(&self, node: &str) -> Result<Connected, StartError> {
        let client = self.client(node, false)?;
        let config = self.config();
        let work = async {
            let mut conn = client
                .get_multiplexed_async_connection_with_config(&config)
                .await?;
            redis::cmd("PING").query_async::<()>(&mut conn).await?;
            let about = info(&mut conn).await?;
            RedisResult::Ok((conn, about))
        };
        let (conn, about) = match tokio::time::timeout(self.settings.connect_timeout(), work).await
        {
            Ok(answer) => answer.map_err(|error| sort(&error, node, false))?,
            Err(_) => return Err(away(node, self.settings.connect_timeout())),
        };
        match field(&about, "redis_mode") {
            Some("cluster") => {
                return Err(StartError::wrong(
                    "redis.mode",
                    format!("{node} is a member of a Redis Cluster; use `cluster`"),
                ));
            }
            Some("sentinel") => {
                return Err(StartError::wrong(
                    "redis.mode",
                    format!("{node} is a Sentinel; use `sentinel`"),
                ));
            }
            _ => {}
        }
        if field(&about, "role") == Some("slave") {
            return Err(if self.settings.mode == Mode::Sentinel {
                StartError::away(
                    "redis.nodes",
                    format!(
                        "{node} is said to be the primary and isn't yet: a failover is on its way"
                    ),
                )
            } else {
                StartError::wrong(
                    "redis.nodes",
                    format!("{node} is a replica; name the primary, or use the mode `sentinel`"),
                )
            });
        }
        warn_of_eviction(node, &about);
        Ok(Connected {
            conn: Conn::One(conn),
            subscribe_at: vec![client],
            address: Some(node.to_owned()),
        })
    }

    async fn connect_cluster(&self) -> Result<Connected, StartError> {
        let nodes = &self.settings.nodes;
        let (mut infos, mut subscribe_at) = (Vec::new(), Vec::new());
        for node in nodes {
            infos.push(self.info(node, false)?);
            subscribe_at.push(self.client(node, false)?);
        }
        let mut builder = ClusterClientBuilder::new(infos)
            .connection_timeout(self.settings.connect_timeout())
            .response_timeout(self.settings.timeout())
            // Enough to follow a slot that has moved; whoever waits has gone by then anyway.
            .retries(3)
            .min_retry_wait(10)
            .max_retry_wait(50)
            .connection_concurrency_limit(self.settings.in_flight_max);
        if self.settings.tls {
            builder = builder.tls(TlsMode::Secure).certs(self.certificates());
        }
        let named = nodes.join(", ");
        let client = builder
            .build()
            .map_err(|error| sort(&error, &named, false))?;
        let work = async {
            let mut conn = client.get_async_connection().await?;
            redis::cmd("PING").query_async::<()>(&mut conn).await?;
            RedisResult::Ok(conn)
        };
        let deadline = self.settings.connect_timeout() * 2;
        let conn = match tokio::time::timeout(deadline, work).await {
            Ok(Ok(conn)) => conn,
            failed => return Err(self.why_no_cluster(failed.ok().and_then(Result::err)).await),
        };
        Ok(Connected {
            conn: Conn::Many(conn),
            subscribe_at,
            address: None,
        })
    }

    /// The cluster's driver says little about why: its members are asked one by one.
    async fn why_no_cluster(&self, error: Option<RedisError>) -> StartError {
        let mut trouble = None;
        for node in &self.settings.nodes {
            let client = match self.client(node, false) {
                Ok(client) => client,
                Err(error) => return error,
            };
            let work = async {
                let mut conn = client
                    .get_multiplexed_async_connection_with_config(&self.config())
                    .await?;
                redis::cmd("PING").query_async::<()>(&mut conn).await?;
                info(&mut conn).await
            };
            match tokio::time::timeout(self.settings.connect_timeout(), work).await {
                Ok(Ok(about)) if field(&about, "redis_mode").is_some_and(|m| m != "cluster") => {
                    return StartError::wrong(
                        "redis.mode",
                        format!(
                            "{node} belongs to no Redis Cluster; use `standalone` or `sentinel`"
                        ),
                    );
                }
                Ok(Ok(_)) => {
                    let why = error.as_ref().map_or("no answer in time".to_owned(), said);
                    trouble = Some(StartError::away(
                        "redis.nodes",
                        format!("{node} answers, but the cluster doesn't: {why}"),
                    ));
                }
                Ok(Err(error)) => {
                    let sorted = sort(&error, node, false);
                    if !sorted.may_pass {
                        return sorted;
                    }
                    trouble.get_or_insert(sorted);
                }
                Err(_) => {
                    trouble.get_or_insert(away(node, self.settings.connect_timeout()));
                }
            }
        }
        trouble
            .unwrap_or_else(|| StartError::away("redis.nodes", "no member of the cluster answered"))
    }
}

/// What a server says of itself; nothing where its ACL doesn't allow the question.
async fn info(conn: &mut MultiplexedConnection) -> RedisResult<String> {
    match redis::cmd("INFO").query_async(conn).await {
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) => {
            Ok(String::new())
        }
        answer => answer,
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

fn warn_of_eviction(node: &str, info: &str) {
    if let Some(policy) = field(info, "maxmemory_policy")
        && policy != "noeviction"
    {
        tracing::warn!(
            node,
            policy,
            "redis evicts keys when full: sessions can vanish silently; set maxmemory-policy noeviction"
        );
    }
}

fn away(node: &str, waited: Duration) -> StartError {
    StartError::away(
        "redis.nodes",
        format!(
            "{node} didn't answer in {} ms; is it up, and is this its address?",
            waited.as_millis()
        ),
    )
}

/// One line of what the driver or Redis says; neither repeats a password.
pub(super) fn said(error: &RedisError) -> String {
    let mut line = error.to_string().replace(['\r', '\n'], " ");
    if line.len() > 300 {
        let end = (0..=300)
            .rev()
            .find(|&i| line.is_char_boundary(i))
            .unwrap_or(0);
        line.truncate(end);
    }
    line
}

fn sort(error: &RedisError, node: &str, of_sentinel: bool) -> StartError {
    let what = said(error);
    let refused = error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
        || what.contains("NOAUTH")
        || what.contains("WRONGPASS");
    if refused {
        let (setting, user) = if of_sentinel {
            ("redis.sentinel_password", "redis.sentinel_user")
        } else {
            ("redis.password", "redis.user")
        };
        let reason = format!("{node} refused the log-in ({what}); correct this or {user}");
        return StartError::wrong(setting, reason);
    }
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::NoPerm) => StartError::wrong(
            "redis.user",
            format!("{node} doesn't allow this user what is needed ({what}); grant it"),
        ),
        ErrorKind::Server(ServerErrorKind::ResponseError) if what.contains("DB index") => {
            StartError::wrong(
                "redis.database",
                format!("{node} has no such database ({what})"),
            )
        }
        ErrorKind::InvalidClientConfig => {
            StartError::wrong("redis.nodes", format!("{node} can't be used: {what}"))
        }
        _ => StartError::away(
            "redis.nodes",
            format!("{node} can't be reached ({what}); is it up, and is this its address?"),
        ),
    }
}
