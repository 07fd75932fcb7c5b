//! What went wrong, sorted by remedy: for the runner of calls, and for the caller.

use std::time::Duration;

use tidings_core::ports::directory::{DirectoryError, Refusal};
use tokio_postgres::error::SqlState;

use super::connect::in_full;

/// When a caller may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How an attempt of a call ended without its answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// This is the answer.
    Answer(DirectoryError),
    /// Another call was first: looking again shows what it did.
    Again,
    /// The database or the driver says so.
    Sql(tokio_postgres::Error),
}

impl From<DirectoryError> for Fault {
    fn from(error: DirectoryError) -> Fault {
        Fault::Answer(error)
    }
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Fault {
        Fault::Sql(error)
    }
}

impl Fault {
    /// The attempt changed nothing for certain, and another one may go better: a deadlock, or a row
    /// that somebody else made or removed at the same time.
    pub(super) fn was_undone(&self) -> bool {
        match self {
            Fault::Answer(_) => false,
            Fault::Again => true,
            Fault::Sql(error) => error.code().is_some_and(|code| {
                *code == SqlState::T_R_SERIALIZATION_FAILURE
                    || *code == SqlState::T_R_DEADLOCK_DETECTED
                    || *code == SqlState::UNIQUE_VIOLATION
                    || *code == SqlState::FOREIGN_KEY_VIOLATION
            }),
        }
    }

    /// The connection is of no use any more, and whether the statement took effect isn't known.
    pub(super) fn is_loss(&self) -> bool {
        let Fault::Sql(error) = self else {
            return false;
        };
        error.is_closed()
            || error.code().is_some_and(|code| {
                class(code) == "08"
                    || *code == SqlState::ADMIN_SHUTDOWN
                    || *code == SqlState::CRASH_SHUTDOWN
            })
            || error.code().is_none() && is_io(error)
    }

    /// What the caller is told.
    pub(super) fn answer(self) -> DirectoryError {
        match self {
            Fault::Answer(error) => error,
            Fault::Again => unavailable(),
            Fault::Sql(error) => sort(&error),
        }
    }
}

pub(super) fn unavailable() -> DirectoryError {
    DirectoryError::Unavailable {
        retry_after: RETRY_AFTER,
    }
}

fn class(code: &SqlState) -> &str {
    code.code().get(..2).unwrap_or_default()
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.is::<std::io::Error>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// By the class of the state (PostgreSQL, appendix A).
fn sort(error: &tokio_postgres::Error) -> DirectoryError {
    let Some(code) = error.code() else {
        let lost = error.is_closed() || is_io(error);
        return if lost {
            unavailable()
        } else {
            // An answer that the driver can't read as what the tables should hold.
            DirectoryError::Corrupt(in_full(error))
        };
    };
    if *code == SqlState::DISK_FULL {
        return DirectoryError::Full;
    }
    // A deadline passed on the server's side, or a standby took over as what it isn't yet.
    if *code == SqlState::QUERY_CANCELED || *code == SqlState::READ_ONLY_SQL_TRANSACTION {
        return unavailable();
    }
    match class(code) {
        // A text that a database can't hold: with a NUL, or longer than an index takes.
        "22" | "54" => DirectoryError::Refused(Refusal::Invalid),
        // Connections, resources, operators, concurrency, transactions ended by a timeout.
        "08" | "53" | "55" | "57" | "40" | "25" | "23" => unavailable(),
        _ => DirectoryError::Corrupt(in_full(error)),
    }
}
