//! Refresh tokens, API keys and revocations in SQL.

use rusqlite::{Row, params};
use tidings_core::ids::{DeviceId, Micros, UserId};
use tidings_core::ports::directory::{
    Answer, ApiKey, ApiKeyId, Credentials, DirectoryError, NewApiKey, NewSignIn, Revocation,
    RevocationSubject, Rotation, SecretHash, SignIn, SignInId, What,
};

use super::SqliteDirectory;
use super::accounts::found;
use super::rows::{behind, number, page, sql};
use super::tx::Tx;

/// How many rows of a table one call of `forget_expired` deletes at most.
const FORGET_MAX: i64 = 5_000;

impl Credentials for SqliteDirectory {
    fn sign_in(&self, new: NewSignIn) -> Answer<'_, SignIn> {
        self.threads.write(move |tx| {
            let known = tx.row(
                "select s.id, s.user_id, s.device_id from refresh_tokens t join sign_ins s on s.id = t.sign_in
                 where t.hash = $1",
                params![&new.refresh.0[..]],
                sign_in,
            )?;
            if let Some(known) = known {
                return Ok(known);
            }
            tx.must_be_active(new.user)?;
            let own = tx.exists(
                "select 1 from devices where id = $1 and user_id = $2",
                params![sql(new.device.0), sql(new.user.0)],
            )?;
            if !own {
                return Err(DirectoryError::NotFound(What::Device));
            }
            let made = SignIn { id: SignInId(tx.id()), user: new.user, device: new.device };
            tx.execute(
                "insert into sign_ins (id, user_id, device_id, expires) values ($1, $2, $3, $4)",
                params![sql(made.id.0), sql(made.user.0), sql(made.device.0), sql(new.expires)],
            )?;
            insert_token(tx, &new.refresh, made.id, new.expires)?;
            Ok(made)
        })
    }

    fn rotate(&self, used: SecretHash, next: SecretHash, expires: Micros) -> Answer<'_, Rotation> {
        self.threads.write(move |tx| {
            // Counting in the update itself makes the use single, whatever runs beside it.
            let token = tx.row(
                "update refresh_tokens set uses = uses + 1 where hash = $1 returning sign_in, expires, uses",
                params![&used.0[..]],
                |row| Ok((number(row, 0)?, number(row, 1)?, number(row, 2)?)),
            )?;
            let Some((family, token_expires, uses)) = token else { return Ok(Rotation::Refused) };
            if uses > 1 {
                return Ok(Rotation::Reused(tx.revoke(RevocationSubject::SignIn(SignInId(family)))?));
            }
            if token_expires <= tx.now {
                return Ok(Rotation::Refused);
            }
            insert_token(tx, &next, SignInId(family), expires)?;
            let family = tx.row(
                "update sign_ins set expires = $1 where id = $2 returning id, user_id, device_id",
                params![sql(expires), sql(family)],
                sign_in,
            )?;
            Ok(family.map_or(Rotation::Refused, Rotation::Rotated))
        })
    }

    fn end_sign_in(&self, user: UserId, id: SignInId) -> Answer<'_, Revocation> {
        self.threads.write(move |tx| {
            let owner = tx.row(
                "select user_id from sign_ins where id = $1",
                [sql(id.0)],
                |row| number(row, 0),
            )?;
            if owner.is_some_and(|owner| owner != user.0) {
                return Err(DirectoryError::NotFound(What::SignIn));
            }
            tx.revoke(RevocationSubject::SignIn(id))
        })
    }

    fn revoke(&self, subject: RevocationSubject) -> Answer<'_, Revocation> {
        self.threads.write(move |tx| tx.revoke(subject))
    }

    fn revocations_after(&self, revision: u64, limit: usize) -> Answer<'_, Vec<Revocation>> {
        self.threads.read(move |tx| {
            tx.rows(
                "select revision, kind, subject, not_before from revocations where revision > $1
                 order by revision limit $2",
                params![behind(revision), page(limit)],
                revocation,
            )
        })
    }

    fn forget_expired(&self, now: Micros, issued_before: Micros) -> Answer<'_, usize> {
        self.threads.write(move |tx| {
            let tokens = tx.execute(
                "delete from refresh_tokens where hash in
                 (select hash from refresh_tokens where expires < $1 limit $2)",
                params![sql(now), FORGET_MAX],
            )?;
            // A family's last token is gone with its expiry; what is left is an empty row.
            tx.execute(
                "delete from sign_ins where id in (select id from sign_ins where expires < $1 limit $2)",
                params![sql(now), FORGET_MAX],
            )?;
            let revocations = tx.execute(
                "delete from revocations where revision in
                 (select revision from revocations where kind > 0 and not_before < $1 limit $2)",
                params![sql(issued_before), FORGET_MAX],
            )?;
            Ok(tokens + revocations)
        })
    }

    fn create_api_key(&self, new: NewApiKey) -> Answer<'_, ApiKey> {
        self.threads.write(move |tx| {
            let key = ApiKey {
                id: ApiKeyId(tx.id()),
                secret: new.secret,
                name: new.name,
                scopes: new.scopes,
                created: tx.now,
            };
            tx.execute(
                "insert into api_keys (id, secret, name, scopes, created) values ($1, $2, $3, $4, $5)",
                params![sql(key.id.0), &key.secret.0[..], key.name, key.scopes.join(" "), sql(key.created)],
            )?;
            Ok(key)
        })
    }

    fn api_key(&self, id: ApiKeyId) -> Answer<'_, Option<ApiKey>> {
        self.threads.read(move |tx| {
            tx.row(
                "select id, secret, name, scopes, created from api_keys where id = $1",
                [sql(id.0)],
                api_key,
            )
        })
    }

    fn api_keys(&self) -> Answer<'_, Vec<ApiKey>> {
        self.threads.read(move |tx| {
            tx.rows(
                "select id, secret, name, scopes, created from api_keys order by created, id limit $1",
                [page(usize::MAX)],
                api_key,
            )
        })
    }

    fn remove_api_key(&self, id: ApiKeyId) -> Answer<'_, ()> {
        self.threads.write(move |tx| {
            found(
                tx.execute("delete from api_keys where id = $1", [sql(id.0)])?,
                What::ApiKey,
            )
        })
    }
}

impl Tx<'_> {
    /// Revokes what was issued to a subject until now, and deletes its refresh tokens.
    pub(super) fn revoke(&self, subject: RevocationSubject) -> Result<Revocation, DirectoryError> {
        let (kind, id) = match subject {
            RevocationSubject::User(user) => {
                self.execute("delete from sign_ins where user_id = $1", [sql(user.0)])?;
                (0, user.0)
            }
            RevocationSubject::Device(device) => {
                self.execute("delete from sign_ins where device_id = $1", [sql(device.0)])?;
                (1, device.0)
            }
            RevocationSubject::SignIn(sign_in) => {
                self.execute("delete from sign_ins where id = $1", [sql(sign_in.0)])?;
                (2, sign_in.0)
            }
        };
        let revision = self
            .row(
                "update counters set value = value + 1 where name = 'revocations' returning value",
                [],
                |row| number(row, 0),
            )?
            .ok_or_else(|| {
                DirectoryError::Corrupt("the counter of revocations is missing".into())
            })?;
        // A clock that was set back must not take a revocation back.
        let not_before = self
            .row(
                "insert into revocations (kind, subject, not_before, revision) values ($1, $2, $3, $4)
                 on conflict (kind, subject) do update set revision = excluded.revision, not_before =
                 case when excluded.not_before > revocations.not_before then excluded.not_before
                      else revocations.not_before end
                 returning not_before",
                params![kind, sql(id), sql(self.now), sql(revision)],
                |row| number(row, 0),
            )?
            .unwrap_or(self.now);
        Ok(Revocation {
            revision,
            subject,
            not_before,
        })
    }
}

fn insert_token(
    tx: &Tx<'_>,
    hash: &SecretHash,
    family: SignInId,
    expires: Micros,
) -> Result<(), DirectoryError> {
    tx.execute(
        "insert into refresh_tokens (hash, sign_in, expires) values ($1, $2, $3)",
        params![&hash.0[..], sql(family.0), sql(expires)],
    )?;
    Ok(())
}

fn sign_in(row: &Row<'_>) -> rusqlite::Result<SignIn> {
    Ok(SignIn {
        id: SignInId(number(row, 0)?),
        user: UserId(number(row, 1)?),
        device: DeviceId(number(row, 2)?),
    })
}

fn revocation(row: &Row<'_>) -> rusqlite::Result<Revocation> {
    let subject = number(row, 2)?;
    Ok(Revocation {
        revision: number(row, 0)?,
        subject: match row.get::<_, i64>(1)? {
            0 => RevocationSubject::User(UserId(subject)),
            1 => RevocationSubject::Device(DeviceId(subject)),
            2 => RevocationSubject::SignIn(SignInId(subject)),
            other => return Err(rusqlite::Error::IntegralValueOutOfRange(1, other)),
        },
        not_before: number(row, 3)?,
    })
}

fn api_key(row: &Row<'_>) -> rusqlite::Result<ApiKey> {
    let scopes: String = row.get(3)?;
    Ok(ApiKey {
        id: ApiKeyId(number(row, 0)?),
        secret: SecretHash(row.get(1)?),
        name: row.get(2)?,
        scopes: scopes.split_whitespace().map(str::to_owned).collect(),
        created: number(row, 4)?,
    })
}
