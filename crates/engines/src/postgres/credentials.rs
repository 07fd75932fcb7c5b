//! Refresh tokens, API keys and revocations.
//!
//! Rows are locked in one order, so that a sign-in and what ends it don't miss each other or wait for
//! each other: user, device, sign-in, token, the counter of revocations. Who signs in shares the
//! user's and the device's row; who revokes holds them.

use futures_util::future::{try_join, try_join3, try_join4};
use tidings_core::ids::{DeviceId, Micros, UserId};
use tidings_core::ports::directory::{
    Answer, ApiKey, ApiKeyId, Credentials, DirectoryError, NewApiKey, NewSignIn, PAGE_MAX,
    Revocation, RevocationSubject, Rotation, SecretHash, SignIn, SignInId, What,
};
use tokio_postgres::Row;

use super::PostgresDirectory;
use super::accounts::found;
use super::call::Tx;
use super::faults::Fault;
use super::sql::{account, behind, corrupt, get, number, page, sql, typed, user_id};

/// How many rows of a table one call of `forget_expired` deletes at most.
const FORGET_MAX: i64 = 5_000;

impl Credentials for PostgresDirectory {
    fn sign_in(&self, new: NewSignIn) -> Answer<'_, SignIn> {
        self.calls
            .transaction("sign_in", new, |tx, new| Box::pin(record_sign_in(tx, new)))
    }

    fn rotate(&self, used: SecretHash, next: SecretHash, expires: Micros) -> Answer<'_, Rotation> {
        let args = (used, next, expires);
        self.calls
            .transaction("rotate", args, |tx, (used, next, expires)| {
                Box::pin(use_token(tx, used, next, *expires))
            })
    }

    fn end_sign_in(&self, user: UserId, id: SignInId) -> Answer<'_, Revocation> {
        self.calls
            .transaction("end_sign_in", (user, id), |tx, (user, id)| {
                Box::pin(async move {
                    let owner = tx
                        .row(
                            "select user_id from sign_ins where id = $1 for update",
                            typed![sql(id.0)],
                        )
                        .await?;
                    if let Some(row) = owner
                        && user_id(&row, 0)? != *user
                    {
                        return Err(DirectoryError::NotFound(What::SignIn).into());
                    }
                    tx.revoke_and_commit(RevocationSubject::SignIn(*id)).await
                })
            })
    }

    fn revoke(&self, subject: RevocationSubject) -> Answer<'_, Revocation> {
        self.calls.transaction("revoke", subject, |tx, subject| {
            Box::pin(tx.revoke_and_commit(*subject))
        })
    }

    fn revocations_after(&self, revision: u64, limit: usize) -> Answer<'_, Vec<Revocation>> {
        self.calls.call(
            "revocations_after",
            (revision, limit),
            |tx, (revision, limit)| {
                Box::pin(async move {
                    let rows = tx.rows(
                    "select revision, kind, subject, not_before from revocations where revision > $1
                     order by revision limit $2",
                    typed![behind(*revision), page(*limit)],
                ).await?;
                    rows.iter().map(revocation).collect()
                })
            },
        )
    }

    fn forget_expired(&self, now: Micros, issued_before: Micros) -> Answer<'_, usize> {
        let args = (now, issued_before);
        self.calls
            .transaction("forget_expired", args, |tx, (now, issued_before)| {
                Box::pin(forget(tx, *now, *issued_before))
            })
    }

    fn create_api_key(&self, new: NewApiKey) -> Answer<'_, ApiKey> {
        self.calls.call("create_api_key", new, |tx, new| {
            Box::pin(async move {
                let key = ApiKey {
                    id: ApiKeyId(tx.id()?),
                    secret: new.secret,
                    name: new.name.clone(),
                    scopes: new.scopes.clone(),
                    created: tx.now,
                };
                let (secret, scopes) = (&key.secret.0[..], key.scopes.join(" "));
                tx.alone(
                    "insert into api_keys (id, secret, name, scopes, created) values ($1, $2, $3, $4, $5)",
                    typed![sql(key.id.0), secret, key.name.as_str(), scopes, sql(key.created)],
                )
                .await?;
                Ok(key)
            })
        })
    }

    fn api_key(&self, id: ApiKeyId) -> Answer<'_, Option<ApiKey>> {
        self.calls.call("api_key", id, |tx, id| {
            Box::pin(async move {
                let row = tx
                    .row(
                        "select id, secret, name, scopes, created from api_keys where id = $1",
                        typed![sql(id.0)],
                    )
                    .await?;
                row.as_ref().map(api_key).transpose()
            })
        })
    }

    fn api_keys(&self) -> Answer<'_, Vec<ApiKey>> {
        self.calls.call("api_keys", (), |tx, ()| {
            Box::pin(async move {
                let rows = tx.rows(
                    "select id, secret, name, scopes, created from api_keys order by created, id limit $1",
                    typed![page(PAGE_MAX)],
                ).await?;
                rows.iter().map(api_key).collect()
            })
        })
    }

    fn remove_api_key(&self, id: ApiKeyId) -> Answer<'_, ()> {
        self.calls.call("remove_api_key", id, |tx, id| {
            Box::pin(async move {
                let gone = tx
                    .alone("delete from api_keys where id = $1", typed![sql(id.0)])
                    .await?;
                Ok(found(gone, What::ApiKey)?)
            })
        })
    }
}

impl Tx {
    /// Revokes what was issued to a subject until now, and deletes its refresh tokens.
    ///
    /// The counter's row is held until the commit, so that revisions become visible in their order.
    pub(super) async fn revoke(&self, subject: RevocationSubject) -> Result<Revocation, Fault> {
        let (kind, id, lock, delete): (i64, u64, &str, &str) = match subject {
            RevocationSubject::User(user) => (
                0,
                user.0,
                "select 1::bigint from users where id = $1 for no key update",
                "delete from sign_ins where user_id = $1",
            ),
            RevocationSubject::Device(device) => (
                1,
                device.0,
                "select 1::bigint from devices where id = $1 for no key update",
                "delete from sign_ins where device_id = $1",
            ),
            RevocationSubject::SignIn(sign_in) => (
                2,
                sign_in.0,
                "select 1::bigint from sign_ins where id = $1 for update",
                "delete from sign_ins where id = $1",
            ),
        };
        let id = sql(id);
        let steps = try_join3(
            self.rows(lock, typed![id]),
            self.execute(delete, typed![id]),
            // A clock that was set back must not take a revocation back.
            self.row(
                "with next as (
                     update counters set value = value + 1 where name = 'revocations' returning value)
                 insert into revocations as r (kind, subject, not_before, revision)
                 select $1, $2, $3, next.value from next
                 on conflict (kind, subject) do update set revision = excluded.revision,
                     not_before = greatest(r.not_before, excluded.not_before)
                 returning revision, not_before",
                typed![kind, id, sql(self.now)],
            ),
        ).await?;
        let (_, _, row) = steps;
        let row = row.ok_or_else(|| corrupt("the counter of revocations is missing"))?;
        Ok(Revocation {
            revision: number(&row, 0)?,
            subject,
            not_before: number(&row, 1)?,
        })
    }

    /// [`Tx::revoke`] as a transaction's last step: the counter is held for no round trip.
    pub(super) async fn revoke_and_commit(
        &self,
        subject: RevocationSubject,
    ) -> Result<Revocation, Fault> {
        let (revocation, ()) = try_join(self.revoke(subject), self.commit()).await?;
        Ok(revocation)
    }
}

async fn record_sign_in(tx: &Tx, new: &NewSignIn) -> Result<SignIn, Fault> {
    let (user, device) = (sql(new.user.0), sql(new.device.0));
    let hash = &new.refresh.0[..];
    let facts = try_join3(
        tx.row("select disabled from users where id = $1 for share", typed![user]),
        tx.row(
            "select 1::bigint from devices where id = $1 and user_id = $2 for share",
            typed![device, user],
        ),
        tx.row(
            "select s.id, s.user_id, s.device_id from refresh_tokens t join sign_ins s on s.id = t.sign_in
             where t.hash = $1",
            typed![hash],
        ),
    ).await?;
    let (owner, own, known) = facts;
    if let Some(row) = known {
        return sign_in(&row);
    }
    let disabled = owner.map(|row| get::<bool>(&row, 0)).transpose()?;
    account(disabled).must_be_open()?;
    if own.is_none() {
        return Err(DirectoryError::NotFound(What::Device).into());
    }
    let made = SignIn {
        id: SignInId(tx.id()?),
        user: new.user,
        device: new.device,
    };
    try_join(
        tx.execute(
            "with family as (
             insert into sign_ins (id, user_id, device_id, expires) values ($1, $2, $3, $4))
         insert into refresh_tokens (hash, sign_in, expires) values ($5, $1, $4)",
            typed![sql(made.id.0), user, device, sql(new.expires), hash],
        ),
        tx.commit(),
    )
    .await?;
    Ok(made)
}

/// The family's row is locked first: its tokens are used one at a time, and not while it is revoked.
async fn use_token(
    tx: &Tx,
    used: &SecretHash,
    next: &SecretHash,
    expires: Micros,
) -> Result<Rotation, Fault> {
    let hash = &used.0[..];
    let facts = try_join(
        tx.row(
            "select s.id, s.user_id, s.device_id from sign_ins s
             where s.id = (select sign_in from refresh_tokens where hash = $1) for update",
            typed![hash],
        ),
        // Counting in the update itself makes the use single, whatever runs beside it.
        tx.row(
            "update refresh_tokens set uses = uses + 1 where hash = $1 returning expires, uses",
            typed![hash],
        ),
    )
    .await?;
    let (Some(family), Some(token)) = facts else {
        return Ok(Rotation::Refused);
    };
    let family = sign_in(&family)?;
    if get::<i64>(&token, 1)? > 1 {
        let revocation = tx
            .revoke_and_commit(RevocationSubject::SignIn(family.id))
            .await?;
        return Ok(Rotation::Reused(revocation));
    }
    if number(&token, 0)? <= tx.now {
        return Ok(Rotation::Refused);
    }
    try_join(
        tx.execute(
            "with family as (update sign_ins set expires = $3 where id = $2)
         insert into refresh_tokens (hash, sign_in, expires) values ($1, $2, $3)",
            typed![&next.0[..], sql(family.id.0), sql(expires)],
        ),
        tx.commit(),
    )
    .await?;
    Ok(Rotation::Rotated(family))
}

/// Leaves out what somebody else is at: it is found again at the next call.
async fn forget(tx: &Tx, now: Micros, issued_before: Micros) -> Result<usize, Fault> {
    let now = sql(now);
    let steps = try_join4(
        tx.execute(
            "delete from refresh_tokens where hash in
             (select hash from refresh_tokens where expires < $1 limit $2 for update skip locked)",
            typed![now, FORGET_MAX],
        ),
        // A family's last token is gone with its expiry; what is left is an empty row.
        tx.execute(
            "delete from sign_ins where id in
             (select id from sign_ins where expires < $1 limit $2 for update skip locked)",
            typed![now, FORGET_MAX],
        ),
        tx.execute(
            "delete from revocations where (kind, subject) in
             (select kind, subject from revocations where kind > 0 and not_before < $1 limit $2
              for update skip locked)",
            typed![sql(issued_before), FORGET_MAX],
        ),
        tx.commit(),
    )
    .await?;
    let (tokens, _, revocations, ()) = steps;
    Ok((tokens + revocations) as usize)
}

fn sign_in(row: &Row) -> Result<SignIn, Fault> {
    Ok(SignIn {
        id: SignInId(number(row, 0)?),
        user: user_id(row, 1)?,
        device: DeviceId(number(row, 2)?),
    })
}

fn revocation(row: &Row) -> Result<Revocation, Fault> {
    let subject = number(row, 2)?;
    Ok(Revocation {
        revision: number(row, 0)?,
        subject: match get::<i64>(row, 1)? {
            0 => RevocationSubject::User(UserId(subject)),
            1 => RevocationSubject::Device(DeviceId(subject)),
            2 => RevocationSubject::SignIn(SignInId(subject)),
            other => return Err(corrupt(format!("no kind of revocation has number {other}"))),
        },
        not_before: number(row, 3)?,
    })
}

fn api_key(row: &Row) -> Result<ApiKey, Fault> {
    let secret: &[u8] = get(row, 1)?;
    let scopes: &str = get(row, 3)?;
    Ok(ApiKey {
        id: ApiKeyId(number(row, 0)?),
        secret: SecretHash(
            secret
                .try_into()
                .map_err(|_| corrupt("an API key's hash isn't 32 bytes"))?,
        ),
        name: get(row, 2)?,
        scopes: scopes.split_whitespace().map(str::to_owned).collect(),
        created: number(row, 4)?,
    })
}
