//! A user's devices. They are counted, and made at first sight, under the user's row lock.

use futures_util::future::{try_join, try_join3};
use tidings_core::ids::{DeviceId, Micros, UserId};
use tidings_core::ports::directory::{
    DEVICES_PER_USER_MAX, Device, DirectoryError, Revocation, RevocationSubject, User, What,
};
use tokio_postgres::Row;

use super::SubjectOnDevice;
use super::accounts::user_at;
use super::call::Tx;
use super::faults::Fault;
use super::sql::{account, get, number, place, sql, typed, user_id};

/// Records a device; with `at_first_sight` answers with the one that has the name, if there is one by now.
pub(super) async fn add(
    tx: &Tx,
    user: UserId,
    name: &str,
    at_first_sight: bool,
) -> Result<Device, Fault> {
    let id = sql(user.0);
    let known = async {
        if at_first_sight {
            named(tx, user, name).await
        } else {
            Ok(None)
        }
    };
    let facts = try_join3(
        tx.row("select disabled from users where id = $1 for no key update", typed![id]),
        tx.row(
            "select count(*), (array_agg(id order by last_seen, id))[1] from devices where user_id = $1",
            typed![id],
        ),
        known,
    ).await?;
    let (own, counted, known) = facts;
    if let Some(device) = known {
        return Ok(device);
    }
    let disabled = own.map(|row| get::<bool>(&row, 0)).transpose()?;
    account(disabled).must_be_open()?;
    let (count, seen_first) = match counted {
        Some(row) => (get::<i64>(&row, 0)?, get::<Option<i64>>(&row, 1)?),
        None => (0, None),
    };
    let device = Device {
        id: DeviceId(tx.id()?),
        user,
        name: name.to_owned(),
        created: tx.now,
        last_seen: tx.now,
    };
    let evict = async {
        match seen_first {
            Some(oldest) if count >= DEVICES_PER_USER_MAX as i64 => {
                delete(tx, DeviceId(oldest as u64)).await.map(Some)
            }
            _ => Ok(None),
        }
    };
    let now = sql(tx.now);
    try_join3(
        evict,
        tx.execute(
            "insert into devices (id, user_id, name, created, last_seen) values ($1, $2, $3, $4, $5)",
            typed![sql(device.id.0), id, name, now, now],
        ),
        tx.commit(),
    )
    .await?;
    Ok(device)
}

/// The device of this name, the oldest if there are several.
pub(super) async fn named(tx: &Tx, user: UserId, name: &str) -> Result<Option<Device>, Fault> {
    let row = tx.row(
        "select id, user_id, name, created, last_seen from devices where user_id = $1 and name = $2
         order by created, id limit 1",
        typed![sql(user.0), name],
    ).await?;
    row.as_ref().map(device).transpose()
}

/// The account of each subject, and its device of that name, if both are there.
pub(super) async fn of_subjects(
    tx: &Tx,
    asked: &[SubjectOnDevice],
) -> Result<Vec<Option<(User, Device)>>, Fault> {
    let issuers: Vec<&str> = asked.iter().map(|(of, _)| of.issuer.as_str()).collect();
    let subjects: Vec<&str> = asked.iter().map(|(of, _)| of.subject.as_str()).collect();
    let names: Vec<&str> = asked.iter().map(|(_, name)| name.as_str()).collect();
    let rows = tx
        .rows(
            "select a.place, u.id, u.login_name, u.display_name, u.issuer, u.subject, u.created, u.disabled,
                d.id, d.user_id, d.name, d.created, d.last_seen
         from unnest($1::text[], $2::text[], $3::text[]) with ordinality as a(issuer, subject, name, place)
         join users u on u.issuer = a.issuer and u.subject = a.subject
         cross join lateral (select * from devices where user_id = u.id and name = a.name
                             order by created, id limit 1) d",
            typed![issuers, subjects, names],
        )
        .await?;
    let mut found = vec![None; asked.len()];
    for row in &rows {
        *place(&mut found, row)? = Some((user_at(row, 1)?, device_at(row, 8)?));
    }
    Ok(found)
}

pub(super) async fn list(tx: &Tx, user: UserId) -> Result<Vec<Device>, Fault> {
    let rows = tx.rows(
        "select id, user_id, name, created, last_seen from devices where user_id = $1 order by created, id",
        typed![sql(user.0)],
    ).await?;
    rows.iter().map(device).collect()
}

/// The rows are locked in the order of their ids, so that the reports of two servers can't wait for each other.
pub(super) async fn seen(tx: &Tx, seen: &[(DeviceId, Micros)]) -> Result<(), Fault> {
    let devices: Vec<i64> = seen.iter().map(|(device, _)| sql(device.0)).collect();
    let times: Vec<i64> = seen.iter().map(|(_, at)| sql(*at)).collect();
    tx.alone(
        "with report as (
             select id, max(at) as at from unnest($1::bigint[], $2::bigint[]) as r(id, at) group by id),
         later as (
             select d.id, report.at from devices d join report on report.id = d.id
             where d.last_seen < report.at order by d.id for no key update of d)
         update devices set last_seen = later.at from later where devices.id = later.id",
        typed![devices, times],
    )
    .await?;
    Ok(())
}

pub(super) async fn remove(tx: &Tx, user: UserId, device: DeviceId) -> Result<Revocation, Fault> {
    let own = tx
        .row(
            "select 1::bigint from devices where id = $1 and user_id = $2 for update",
            typed![sql(device.0), sql(user.0)],
        )
        .await?;
    if own.is_none() {
        return Err(DirectoryError::NotFound(What::Device).into());
    }
    let (revocation, ()) = try_join(delete(tx, device), tx.commit()).await?;
    Ok(revocation)
}

/// Revokes first, since that names the device; its sign-ins and their tokens go with the row.
async fn delete(tx: &Tx, device: DeviceId) -> Result<Revocation, Fault> {
    let (revocation, _) = try_join(
        tx.revoke(RevocationSubject::Device(device)),
        tx.execute("delete from devices where id = $1", typed![sql(device.0)]),
    )
    .await?;
    Ok(revocation)
}

fn device(row: &Row) -> Result<Device, Fault> {
    device_at(row, 0)
}

/// A device whose columns begin with the one at `first`.
fn device_at(row: &Row, first: usize) -> Result<Device, Fault> {
    Ok(Device {
        id: DeviceId(number(row, first)?),
        user: user_id(row, first + 1)?,
        name: get(row, first + 2)?,
        created: number(row, first + 3)?,
        last_seen: number(row, first + 4)?,
    })
}
