//! Users and blocks.

use std::collections::HashSet;

use futures_util::future::try_join;
use tidings_core::ids::{DeviceId, Micros, UserId};
use tidings_core::ports::directory::{
    Accounts, Answer, BLOCKS_PER_USER_MAX, BULK_USERS_MAX, Device, DirectoryError, ExternalSubject,
    NewUser, PAGE_MAX, PasswordHash, Refusal, Revocation, RevocationSubject, StoredPassword, User,
    What,
};
use tokio_postgres::Row;

use super::call::Tx;
use super::faults::Fault;
use super::sql::{get, ids, is_impossible, number, sql, typed, user_id};
use super::{PostgresDirectory, answered, devices};

impl Accounts for PostgresDirectory {
    fn create_users(&self, users: Vec<NewUser>) -> Answer<'_, Vec<Result<UserId, DirectoryError>>> {
        if users.len() > BULK_USERS_MAX {
            return answered(Err(DirectoryError::Refused(Refusal::TooMany(
                BULK_USERS_MAX,
            ))));
        }
        self.calls.call("create_users", users, |tx, users| {
            Box::pin(insert_users(tx, users))
        })
    }

    fn user_of_subject(&self, subject: ExternalSubject, display_name: String) -> Answer<'_, User> {
        let args = (subject, display_name);
        self.calls.call("user_of_subject", args, |tx, (subject, display_name)| {
            Box::pin(async move {
                let (issuer, name) = (subject.issuer.as_str(), subject.subject.as_str());
                let find = "select id, login_name, display_name, issuer, subject, created, disabled from users
                            where issuer = $1 and subject = $2";
                if let Some(row) = tx.row(find, typed![issuer, name]).await? {
                    return user(&row);
                }
                let insert = "insert into users (id, display_name, issuer, subject, created)
                              values ($1, $2, $3, $4, $5) on conflict (issuer, subject) do nothing";
                let (id, now) = (sql(tx.id()?), sql(tx.now));
                tx.alone(insert, typed![id, display_name.as_str(), issuer, name, now]).await?;
                // Ours, or that of whoever was first meanwhile.
                let row = tx.row(find, typed![issuer, name]).await?;
                user(&row.ok_or(DirectoryError::NotFound(What::User))?)
            })
        })
    }

    fn users(&self, ids: Vec<UserId>) -> Answer<'_, Vec<User>> {
        if ids.len() > PAGE_MAX {
            return answered(Err(DirectoryError::Refused(Refusal::TooMany(PAGE_MAX))));
        }
        self.calls.call("users", ids, |tx, users| {
            Box::pin(async move {
                let rows = tx.rows(
                    "select id, login_name, display_name, issuer, subject, created, disabled from users
                     where id = any($1) order by id",
                    typed![super::sql::ids(users)],
                ).await?;
                rows.iter().map(user).collect()
            })
        })
    }

    fn user_by_login(&self, key: String) -> Answer<'_, Option<User>> {
        if is_impossible(&key) {
            return answered(Ok(None));
        }
        self.calls.call("user_by_login", key, |tx, key| {
            Box::pin(async move {
                let row = tx.row(
                    "select id, login_name, display_name, issuer, subject, created, disabled from users
                     where login_key = $1",
                    typed![key.as_str()],
                ).await?;
                row.as_ref().map(user).transpose()
            })
        })
    }

    fn password_of(&self, key: String) -> Answer<'_, Option<StoredPassword>> {
        if is_impossible(&key) {
            return answered(Ok(None));
        }
        self.calls.call("password_of", key, |tx, key| {
            Box::pin(async move {
                let row = tx
                    .row(
                        "select id, password_hash, disabled from users where login_key = $1",
                        typed![key.as_str()],
                    )
                    .await?;
                let Some(row) = row else { return Ok(None) };
                Ok(Some(StoredPassword {
                    user: user_id(&row, 0)?,
                    hash: get::<Option<String>>(&row, 1)?.map(PasswordHash),
                    disabled: get(&row, 2)?,
                }))
            })
        })
    }

    fn set_password(&self, user: UserId, hash: PasswordHash) -> Answer<'_, Revocation> {
        self.calls
            .transaction("set_password", (user, hash), |tx, (user, hash)| {
                Box::pin(async move {
                    let changed = tx
                        .execute(
                            "update users set password_hash = $1 where id = $2",
                            typed![hash.0.as_str(), sql(user.0)],
                        )
                        .await?;
                    found(changed, What::User)?;
                    tx.revoke_and_commit(RevocationSubject::User(*user)).await
                })
            })
    }

    fn set_display_name(&self, user: UserId, display_name: String) -> Answer<'_, ()> {
        self.calls.call(
            "set_display_name",
            (user, display_name),
            |tx, (user, name)| {
                Box::pin(async move {
                    let changed = tx
                        .alone(
                            "update users set display_name = $1 where id = $2",
                            typed![name.as_str(), sql(user.0)],
                        )
                        .await?;
                    Ok(found(changed, What::User)?)
                })
            },
        )
    }

    fn set_disabled(&self, user: UserId, disabled: bool) -> Answer<'_, Option<Revocation>> {
        self.calls
            .transaction("set_disabled", (user, disabled), |tx, (user, disabled)| {
                Box::pin(async move {
                    let changed = tx
                        .execute(
                            "update users set disabled = $1 where id = $2",
                            typed![*disabled, sql(user.0)],
                        )
                        .await?;
                    found(changed, What::User)?;
                    if !disabled {
                        return Ok(None);
                    }
                    let revocation = tx.revoke_and_commit(RevocationSubject::User(*user)).await?;
                    Ok(Some(revocation))
                })
            })
    }

    fn add_device(&self, user: UserId, name: String) -> Answer<'_, Device> {
        self.calls
            .transaction("add_device", (user, name), |tx, (user, name)| {
                Box::pin(devices::add(tx, *user, name, false))
            })
    }

    fn device_named(&self, user: UserId, name: String) -> Answer<'_, Device> {
        let calls = self.calls.clone();
        Box::pin(async move {
            // Nearly always it is there.
            let known = calls.call("device_named", (user, name.clone()), |tx, (user, name)| {
                Box::pin(devices::named(tx, *user, name))
            });
            if let Some(device) = known.await? {
                return Ok(device);
            }
            let add = calls.transaction("device_named (new)", (user, name), |tx, (user, name)| {
                Box::pin(devices::add(tx, *user, name, true))
            });
            add.await
        })
    }

    fn subject_on_device(
        &self,
        subject: ExternalSubject,
        display_name: String,
        device: String,
    ) -> Answer<'_, (User, Device)> {
        // It would fail the statement, and with it the others'.
        let texts = [&subject.issuer, &subject.subject, &device];
        if texts.iter().any(|text| is_impossible(text)) {
            return answered(Err(DirectoryError::Refused(Refusal::Invalid)));
        }
        // Nearly always both are there.
        let known = self.subjects.ask((subject.clone(), device.clone()));
        Box::pin(async move {
            if let Some(known) = known.await? {
                return Ok(known);
            }
            let user = self.user_of_subject(subject, display_name).await?;
            let device = self.device_named(user.id, device).await?;
            Ok((user, device))
        })
    }

    fn devices(&self, user: UserId) -> Answer<'_, Vec<Device>> {
        self.calls.call("devices", user, |tx, user| {
            Box::pin(devices::list(tx, *user))
        })
    }

    fn devices_seen(&self, seen: Vec<(DeviceId, Micros)>) -> Answer<'_, ()> {
        if seen.len() > PAGE_MAX {
            return answered(Err(DirectoryError::Refused(Refusal::TooMany(PAGE_MAX))));
        }
        self.calls.call("devices_seen", seen, |tx, seen| {
            Box::pin(devices::seen(tx, seen))
        })
    }

    fn remove_device(&self, user: UserId, device: DeviceId) -> Answer<'_, Revocation> {
        self.calls
            .transaction("remove_device", (user, device), |tx, (user, device)| {
                Box::pin(devices::remove(tx, *user, *device))
            })
    }

    fn set_block(&self, user: UserId, other: UserId, blocked: bool) -> Answer<'_, ()> {
        if !blocked {
            return self
                .calls
                .call("set_block (off)", (user, other), |tx, (user, other)| {
                    Box::pin(async move {
                        let delete = "delete from blocks where user_id = $1 and blocked = $2";
                        tx.alone(delete, typed![sql(user.0), sql(other.0)]).await?;
                        Ok(())
                    })
                });
        }
        if user == other {
            return answered(Err(DirectoryError::Refused(Refusal::Invalid)));
        }
        self.calls
            .transaction("set_block", (user, other), |tx, (user, other)| {
                Box::pin(block(tx, *user, *other))
            })
    }

    fn has_blocked(&self, user: UserId, other: UserId) -> Answer<'_, bool> {
        self.calls
            .call("has_blocked", (user, other), |tx, (user, other)| {
                Box::pin(async move {
                    let row = tx
                        .row(
                            "select 1::bigint from blocks where user_id = $1 and blocked = $2",
                            typed![sql(user.0), sql(other.0)],
                        )
                        .await?;
                    Ok(row.is_some())
                })
            })
    }

    fn blockers_among(&self, user: UserId, mut among: Vec<UserId>) -> Answer<'_, Vec<UserId>> {
        among.truncate(PAGE_MAX);
        self.calls
            .call("blockers_among", (user, among), |tx, (user, among)| {
                Box::pin(async move {
                    let rows = tx
                        .rows(
                            "select user_id from blocks where user_id = any($1) and blocked = $2",
                            typed![ids(among), sql(user.0)],
                        )
                        .await?;
                    let rows = rows;
                    let blockers: HashSet<UserId> = rows
                        .iter()
                        .map(|row| user_id(row, 0))
                        .collect::<Result<_, _>>()?;
                    Ok(among
                        .iter()
                        .copied()
                        .filter(|other| blockers.contains(other))
                        .collect())
                })
            })
    }
}

pub(super) fn found(rows: u64, what: What) -> Result<(), DirectoryError> {
    if rows == 0 {
        Err(DirectoryError::NotFound(what))
    } else {
        Ok(())
    }
}

/// All in one statement, in the order of their names, so that two batches that share names can't wait
/// for each other; of one batch the earlier entry has the name.
async fn insert_users(
    tx: &Tx,
    users: &[NewUser],
) -> Result<Vec<Result<UserId, DirectoryError>>, Fault> {
    let made: Vec<UserId> = users
        .iter()
        .map(|_| tx.id().map(UserId))
        .collect::<Result<_, _>>()?;
    let logins = || users.iter().map(|user| user.login.as_ref());
    let names: Vec<Option<&str>> = logins().map(|l| l.map(|l| l.name.as_str())).collect();
    let keys: Vec<Option<&str>> = logins().map(|l| l.map(|l| l.key.as_str())).collect();
    let shown: Vec<&str> = users
        .iter()
        .map(|user| user.display_name.as_str())
        .collect();
    let hashes: Vec<Option<&str>> = users
        .iter()
        .map(|user| user.password.as_ref().map(|hash| hash.0.as_str()))
        .collect();
    let rows = tx
        .alone_rows(
            "insert into users (id, login_name, login_key, display_name, password_hash, created)
         select n.id, n.name, n.key, n.shown, n.hash, $6
         from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[]) with ordinality
              as n(id, name, key, shown, hash, place)
         order by n.key nulls first, n.place
         on conflict (login_key) do nothing returning id",
            typed![ids(&made), names, keys, shown, hashes, sql(tx.now)],
        )
        .await?;
    let rows = rows;
    let inserted: HashSet<UserId> = rows
        .iter()
        .map(|row| user_id(row, 0))
        .collect::<Result<_, _>>()?;
    let answer = |id: UserId| {
        if inserted.contains(&id) {
            Ok(id)
        } else {
            Err(DirectoryError::Conflict(What::LoginName))
        }
    };
    Ok(made.into_iter().map(answer).collect())
}

/// The blocker's row is locked: two servers don't both find room for the last block.
async fn block(tx: &Tx, user: UserId, other: UserId) -> Result<(), Fault> {
    let pair = (sql(user.0), sql(other.0));
    let facts = try_join(
        tx.row(
            "select 1::bigint from users where id = $1 for no key update",
            typed![pair.0],
        ),
        tx.row(
            "select exists (select from users where id = $2),
                    exists (select from blocks where user_id = $1 and blocked = $2),
                    (select count(*) from (select from blocks where user_id = $1 limit $3) as b)",
            typed![pair.0, pair.1, BLOCKS_PER_USER_MAX as i64],
        ),
    )
    .await?;
    let (own, facts) = facts;
    let (Some(_), Some(facts)) = (own, facts) else {
        return Err(DirectoryError::NotFound(What::User).into());
    };
    if !get::<bool>(&facts, 0)? {
        return Err(DirectoryError::NotFound(What::User).into());
    }
    if get::<bool>(&facts, 1)? {
        return Ok(());
    }
    if get::<i64>(&facts, 2)? >= BLOCKS_PER_USER_MAX as i64 {
        return Err(DirectoryError::Refused(Refusal::TooMany(BLOCKS_PER_USER_MAX)).into());
    }
    let insert = "insert into blocks (user_id, blocked) values ($1, $2) on conflict do nothing";
    try_join(tx.execute(insert, typed![pair.0, pair.1]), tx.commit()).await?;
    Ok(())
}

fn user(row: &Row) -> Result<User, Fault> {
    user_at(row, 0)
}

/// A user whose columns begin with the one at `first`.
pub(super) fn user_at(row: &Row, first: usize) -> Result<User, Fault> {
    let issuer: Option<String> = get(row, first + 3)?;
    let subject: Option<String> = get(row, first + 4)?;
    Ok(User {
        id: user_id(row, first)?,
        login: get(row, first + 1)?,
        display_name: get(row, first + 2)?,
        external: issuer
            .zip(subject)
            .map(|(issuer, subject)| ExternalSubject { issuer, subject }),
        created: number(row, first + 5)?,
        disabled: get(row, first + 6)?,
    })
}
