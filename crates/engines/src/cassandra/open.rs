//! What is checked before the store is used.

use std::sync::Arc;
use std::time::Duration;

use scylla::client::session::Session;
use scylla::cluster::Node;
use scylla::errors::{DbError, PrepareError, RequestAttemptError};
use scylla::policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy};
use scylla::statement::Consistency;
use scylla::statement::unprepared::Statement;

use super::connect::{connect, copies, local_datacenter, nodes};
use super::requests::Client;
use super::schema::{SCHEMA, check_copies, failed, stored_version};
use super::{CassandraStore, Settings};
use crate::StartError;

/// How long [`CassandraStore::check`] may take.
const CHECK: Duration = Duration::from_secs(1);
/// How long a node may take to say how it is set.
const ASK: Duration = Duration::from_secs(2);

impl CassandraStore {
    /// Connects, and checks that everything is as the promises need it: hosts, login, keyspace,
    /// copies, nodes alive, durable nodes, tables of this version.
    pub async fn open(settings: Settings) -> Result<CassandraStore, StartError> {
        let session = connect(&settings).await?;
        let datacenter = local_datacenter(&session, &settings)?;
        let keyspace = &settings.keyspace;
        let Some(have) = copies(&session, keyspace, &datacenter) else {
            return Err(StartError::wrong(
                "cassandra.keyspace",
                format!("there is no keyspace {keyspace}: run `tidings migrate`"),
            ));
        };
        check_copies(have, &settings, &datacenter)?;
        check_alive(&session, &datacenter, have)?;
        check_version(&session, &settings).await?;
        if settings.require_durable_commitlog {
            check_durable(&session, &datacenter).await?;
        }
        let (known, _) = nodes(&session, &datacenter);
        let client = Client::new(session, settings.clone(), known)
            .await
            .map_err(|error| not_prepared(&error, &settings))?;
        Ok(CassandraStore {
            client: Arc::new(client),
        })
    }

    /// Whether a quorum answers, within a second.
    pub async fn check(&self) -> Result<(), String> {
        let client = &self.client;
        let pass = client.breakers.reads.enter();
        let pass = pass.map_err(|open| open.to_string())?;
        let asked = stored_version(&client.session, &client.settings);
        let answer = tokio::time::timeout(CHECK, asked).await;
        pass.end(matches!(answer, Ok(Ok(_))));
        match answer {
            Ok(Ok(Some(_))) => Ok(()),
            Ok(Ok(None)) => Err("the table schema_version is gone".into()),
            Ok(Err(error)) => Err(error.reason),
            Err(_) => Err(format!("no answer within {} ms", CHECK.as_millis())),
        }
    }
}

/// A quorum of the copies must be there, wherever they are.
fn check_alive(session: &Session, datacenter: &str, copies: usize) -> Result<(), StartError> {
    let (known, connected) = nodes(session, datacenter);
    let may_miss = copies - (copies / 2 + 1);
    if known.saturating_sub(connected) <= may_miss {
        return Ok(());
    }
    Err(StartError::away(
        "cassandra.hosts",
        format!(
            "only {connected} of {known} nodes of {datacenter} can be reached; {copies} copies allow {may_miss} to be away"
        ),
    ))
}

async fn check_version(session: &Session, settings: &Settings) -> Result<(), StartError> {
    let wrong = |reason| Err(StartError::wrong("cassandra.keyspace", reason));
    let keyspace = &settings.keyspace;
    match stored_version(session, settings).await? {
        None => wrong(format!(
            "the tables in {keyspace} aren't made: run `tidings migrate`"
        )),
        Some((version, _)) if version < SCHEMA => wrong(format!(
            "the tables in {keyspace} are of version {version}, {SCHEMA} is needed: run `tidings migrate`"
        )),
        Some((version, compatible_from)) if compatible_from > SCHEMA => wrong(format!(
            "the tables in {keyspace} are of version {version}, which this program ({SCHEMA}) is too old for: upgrade it"
        )),
        Some(_) => Ok(()),
    }
}

/// Asks each node when it acknowledges. One that isn't there can't say, nor acknowledge; one that
/// doesn't let this user ask is believed, with a warning.
async fn check_durable(session: &Session, datacenter: &str) -> Result<(), StartError> {
    let state = session.get_cluster_state();
    let local = state
        .get_nodes_info()
        .iter()
        .filter(|node| node.datacenter.as_deref() == Some(datacenter) && node.is_connected());
    for node in local {
        match commitlog_sync(session, node).await {
            Ok(Some(mode)) if mode == "periodic" => {
                return Err(StartError::wrong(
                    "cassandra.require_durable_commitlog",
                    format!(
                        "node {} acknowledges writes before they are on disk (commitlog_sync: periodic): set it to group with a window of 10ms, or this to false and lose what the nodes' memory held when all lose power",
                        node.address
                    ),
                ));
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                tracing::warn!(node = %node.address, "the node doesn't say its commitlog_sync")
            }
            Err(error) => {
                tracing::warn!(node = %node.address, %error, "can't ask the node for its commitlog_sync");
            }
        }
    }
    Ok(())
}

async fn commitlog_sync(session: &Session, node: &Arc<Node>) -> Result<Option<String>, StartError> {
    let mut ask =
        Statement::new("SELECT value FROM system_views.settings WHERE name = 'commitlog_sync'");
    let node = NodeIdentifier::Node(Arc::clone(node));
    ask.set_load_balancing_policy(Some(SingleTargetLoadBalancingPolicy::new(node, None)));
    ask.set_consistency(Consistency::One);
    ask.set_request_timeout(Some(ASK));
    let answer = session
        .query_unpaged(ask, ())
        .await
        .map_err(|error| failed(&error))?
        .into_rows_result()
        .map_err(|error| failed(&error))?;
    let row = answer
        .maybe_first_row::<(Option<String>,)>()
        .map_err(|error| failed(&error))?;
    Ok(row.and_then(|(mode,)| mode))
}

/// Statements aren't taken: rights, or tables that aren't ours.
fn not_prepared(error: &PrepareError, settings: &Settings) -> StartError {
    let PrepareError::AllAttemptsFailed {
        first_attempt: RequestAttemptError::DbError(kind, reason),
    } = error
    else {
        return StartError::away("cassandra.hosts", error.to_string());
    };
    match kind {
        DbError::Unauthorized => StartError::wrong(
            "cassandra.username",
            format!("{} lacks rights: {reason}", settings.username),
        ),
        DbError::Invalid | DbError::SyntaxError => StartError::wrong(
            "cassandra.keyspace",
            format!(
                "the tables in {} aren't as this program needs them: {reason}",
                settings.keyspace
            ),
        ),
        _ => StartError::away("cassandra.hosts", error.to_string()),
    }
}
