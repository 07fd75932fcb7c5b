//! Users, devices and blocks in SQL.

use rusqlite::{Row, params};
use tidings_core::ids::{DeviceId, Micros, UserId};
use tidings_core::ports::directory::{
    Accounts, Answer, BLOCKS_PER_USER_MAX, BULK_USERS_MAX, DEVICES_PER_USER_MAX, Device,
    DirectoryError, ExternalSubject, NewUser, PAGE_MAX, PasswordHash, Refusal, Revocation,
    RevocationSubject, StoredPassword, User, What,
};

use super::SqliteDirectory;
use super::rows::{number, sql};
use super::tx::Tx;

impl Accounts for SqliteDirectory {
    fn create_users(&self, users: Vec<NewUser>) -> Answer<'_, Vec<Result<UserId, DirectoryError>>> {
        self.threads.write(move |tx| {
            if users.len() > BULK_USERS_MAX {
                return Err(DirectoryError::Refused(Refusal::TooMany(BULK_USERS_MAX)));
            }
            let mut answers = Vec::with_capacity(users.len());
            for user in users {
                answers.push(match insert_user(tx, &user) {
                    Ok(id) => Ok(id),
                    Err(error @ DirectoryError::Conflict(_)) => Err(error),
                    Err(error) => return Err(error),
                });
            }
            Ok(answers)
        })
    }

    fn user_of_subject(&self, subject: ExternalSubject, display_name: String) -> Answer<'_, User> {
        self.threads.write(move |tx| {
            tx.execute(
                "insert into users (id, display_name, issuer, subject, created) values ($1, $2, $3, $4, $5)
                 on conflict (issuer, subject) do nothing",
                params![sql(tx.id()), display_name, subject.issuer, subject.subject, sql(tx.now)],
            )?;
            tx.row(
                "select id, login_name, display_name, issuer, subject, created, disabled from users
                 where issuer = $1 and subject = $2",
                params![subject.issuer, subject.subject],
                user,
            )?
            .ok_or(DirectoryError::NotFound(What::User))
        })
    }

    fn users(&self, mut ids: Vec<UserId>) -> Answer<'_, Vec<User>> {
        self.threads.read(move |tx| {
            if ids.len() > PAGE_MAX {
                return Err(DirectoryError::Refused(Refusal::TooMany(PAGE_MAX)));
            }
            ids.sort_unstable();
            ids.dedup();
            let mut users = Vec::with_capacity(ids.len());
            for id in ids {
                users.extend(tx.row(
                    "select id, login_name, display_name, issuer, subject, created, disabled from users where id = $1",
                    [sql(id.0)],
                    user,
                )?);
            }
            Ok(users)
        })
    }

    fn user_by_login(&self, key: String) -> Answer<'_, Option<User>> {
        self.threads.read(move |tx| {
            tx.row(
                "select id, login_name, display_name, issuer, subject, created, disabled from users
                 where login_key = $1",
                [key],
                user,
            )
        })
    }

    fn password_of(&self, key: String) -> Answer<'_, Option<StoredPassword>> {
        self.threads.read(move |tx| {
            tx.row(
                "select id, password_hash, disabled from users where login_key = $1",
                [key],
                |row| {
                    Ok(StoredPassword {
                        user: UserId(number(row, 0)?),
                        hash: row.get::<_, Option<String>>(1)?.map(PasswordHash),
                        disabled: row.get::<_, i64>(2)? != 0,
                    })
                },
            )
        })
    }

    fn set_password(&self, user: UserId, hash: PasswordHash) -> Answer<'_, Revocation> {
        self.threads.write(move |tx| {
            let changed = tx.execute(
                "update users set password_hash = $1 where id = $2",
                params![hash.0, sql(user.0)],
            )?;
            found(changed, What::User)?;
            tx.revoke(RevocationSubject::User(user))
        })
    }

    fn set_display_name(&self, user: UserId, display_name: String) -> Answer<'_, ()> {
        self.threads.write(move |tx| {
            let changed = tx.execute(
                "update users set display_name = $1 where id = $2",
                params![display_name, sql(user.0)],
            )?;
            found(changed, What::User)
        })
    }

    fn set_disabled(&self, user: UserId, disabled: bool) -> Answer<'_, Option<Revocation>> {
        self.threads.write(move |tx| {
            let changed = tx.execute(
                "update users set disabled = $1 where id = $2",
                params![i64::from(disabled), sql(user.0)],
            )?;
            found(changed, What::User)?;
            disabled
                .then(|| tx.revoke(RevocationSubject::User(user)))
                .transpose()
        })
    }

    fn add_device(&self, user: UserId, name: String) -> Answer<'_, Device> {
        self.threads.write(move |tx| insert_device(tx, user, name))
    }

    fn device_named(&self, user: UserId, name: String) -> Answer<'_, Device> {
        self.threads.write(move |tx| {
            let known = tx.row(
                "select id, user_id, name, created, last_seen from devices where user_id = $1 and name = $2
                 order by created, id limit 1",
                params![sql(user.0), name],
                device,
            )?;
            match known {
                Some(device) => Ok(device),
                None => insert_device(tx, user, name),
            }
        })
    }

    fn devices(&self, user: UserId) -> Answer<'_, Vec<Device>> {
        self.threads.read(move |tx| {
            tx.rows(
                "select id, user_id, name, created, last_seen from devices where user_id = $1 order by created, id",
                [sql(user.0)],
                device,
            )
        })
    }

    fn devices_seen(&self, seen: Vec<(DeviceId, Micros)>) -> Answer<'_, ()> {
        self.threads.write(move |tx| {
            if seen.len() > PAGE_MAX {
                return Err(DirectoryError::Refused(Refusal::TooMany(PAGE_MAX)));
            }
            for (device, at) in seen {
                tx.execute(
                    "update devices set last_seen = $1 where id = $2 and last_seen < $1",
                    params![sql(at), sql(device.0)],
                )?;
            }
            Ok(())
        })
    }

    fn remove_device(&self, user: UserId, device: DeviceId) -> Answer<'_, Revocation> {
        self.threads.write(move |tx| {
            let own = tx.exists(
                "select 1 from devices where id = $1 and user_id = $2",
                params![sql(device.0), sql(user.0)],
            )?;
            if !own {
                return Err(DirectoryError::NotFound(What::Device));
            }
            delete_device(tx, device)
        })
    }

    fn set_block(&self, user: UserId, other: UserId, blocked: bool) -> Answer<'_, ()> {
        self.threads.write(move |tx| {
            let pair = params![sql(user.0), sql(other.0)];
            if !blocked {
                tx.execute(
                    "delete from blocks where user_id = $1 and blocked = $2",
                    pair,
                )?;
                return Ok(());
            }
            if user == other {
                return Err(DirectoryError::Refused(Refusal::Invalid));
            }
            for id in [user, other] {
                if !tx.exists("select 1 from users where id = $1", [sql(id.0)])? {
                    return Err(DirectoryError::NotFound(What::User));
                }
            }
            let rows = tx.execute(
                "insert into blocks (user_id, blocked) values ($1, $2) on conflict do nothing",
                pair,
            )?;
            // One more than there may be is undone by the error.
            let is_over = tx.exists(
                "select 1 from blocks where user_id = $1 order by blocked limit 1 offset $2",
                params![sql(user.0), BLOCKS_PER_USER_MAX as i64],
            )?;
            if rows > 0 && is_over {
                return Err(DirectoryError::Refused(Refusal::TooMany(
                    BLOCKS_PER_USER_MAX,
                )));
            }
            Ok(())
        })
    }

    fn has_blocked(&self, user: UserId, other: UserId) -> Answer<'_, bool> {
        self.threads.read(move |tx| {
            tx.exists(
                "select 1 from blocks where user_id = $1 and blocked = $2",
                params![sql(user.0), sql(other.0)],
            )
        })
    }

    fn blockers_among(&self, user: UserId, mut among: Vec<UserId>) -> Answer<'_, Vec<UserId>> {
        among.truncate(PAGE_MAX);
        self.threads.read(move |tx| {
            let mut blockers = Vec::new();
            for other in among {
                let has_blocked = tx.exists(
                    "select 1 from blocks where user_id = $1 and blocked = $2",
                    params![sql(other.0), sql(user.0)],
                )?;
                if has_blocked {
                    blockers.push(other);
                }
            }
            Ok(blockers)
        })
    }
}

pub(super) fn found(rows: usize, what: What) -> Result<(), DirectoryError> {
    if rows == 0 {
        Err(DirectoryError::NotFound(what))
    } else {
        Ok(())
    }
}

fn insert_user(tx: &Tx<'_>, user: &NewUser) -> Result<UserId, DirectoryError> {
    let id = tx.id();
    let inserted = tx.execute(
        "insert into users (id, login_name, login_key, display_name, password_hash, created)
         values ($1, $2, $3, $4, $5, $6) on conflict (login_key) do nothing",
        params![
            sql(id),
            user.login.as_ref().map(|login| &login.name),
            user.login.as_ref().map(|login| &login.key),
            user.display_name,
            user.password.as_ref().map(|hash| &hash.0),
            sql(tx.now),
        ],
    )?;
    if inserted == 0 {
        Err(DirectoryError::Conflict(What::LoginName))
    } else {
        Ok(UserId(id))
    }
}

fn insert_device(tx: &Tx<'_>, user: UserId, name: String) -> Result<Device, DirectoryError> {
    tx.must_be_active(user)?;
    let count = tx
        .row(
            "select count(*) from devices where user_id = $1",
            [sql(user.0)],
            |row| row.get::<_, i64>(0),
        )?
        .unwrap_or(0);
    if count >= DEVICES_PER_USER_MAX as i64 {
        let oldest = tx.row(
            "select id from devices where user_id = $1 order by last_seen, id limit 1",
            [sql(user.0)],
            |row| number(row, 0),
        )?;
        if let Some(oldest) = oldest {
            delete_device(tx, DeviceId(oldest))?;
        }
    }
    let device = Device {
        id: DeviceId(tx.id()),
        user,
        name,
        created: tx.now,
        last_seen: tx.now,
    };
    tx.execute(
        "insert into devices (id, user_id, name, created, last_seen) values ($1, $2, $3, $4, $5)",
        params![
            sql(device.id.0),
            sql(user.0),
            device.name,
            sql(device.created),
            sql(device.last_seen)
        ],
    )?;
    Ok(device)
}

/// Revokes first, since that names the device; its sign-ins and their tokens go with the row.
fn delete_device(tx: &Tx<'_>, device: DeviceId) -> Result<Revocation, DirectoryError> {
    let revocation = tx.revoke(RevocationSubject::Device(device))?;
    tx.execute("delete from devices where id = $1", [sql(device.0)])?;
    Ok(revocation)
}

fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    let issuer: Option<String> = row.get(3)?;
    let subject: Option<String> = row.get(4)?;
    Ok(User {
        id: UserId(number(row, 0)?),
        login: row.get(1)?,
        display_name: row.get(2)?,
        external: issuer
            .zip(subject)
            .map(|(issuer, subject)| ExternalSubject { issuer, subject }),
        created: number(row, 5)?,
        disabled: row.get::<_, i64>(6)? != 0,
    })
}

fn device(row: &Row<'_>) -> rusqlite::Result<Device> {
    Ok(Device {
        id: DeviceId(number(row, 0)?),
        user: UserId(number(row, 1)?),
        name: row.get(2)?,
        created: number(row, 3)?,
        last_seen: number(row, 4)?,
    })
}
