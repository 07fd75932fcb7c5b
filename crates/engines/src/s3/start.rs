//! What is looked at when a server starts, and what `tidings migrate` makes.

use std::time::Duration;

use super::request::{NoReply, Reply, Requests};
use super::settings::Settings;
use super::{client_options, probe_key};
use crate::StartError;

/// How long each question may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Whether the bucket is there and these keys may use it.
pub(super) async fn has_bucket(
    settings: &Settings,
    requests: &Requests,
) -> Result<bool, StartError> {
    let question = "?list-type=2&max-keys=1";
    let reply = requests
        .send("GET", question, &[], String::new(), DEADLINE)
        .await;
    let reply = answered(settings, reply)?;
    match (reply.status, reply.code()) {
        (200, _) => Ok(true),
        (404, "NoSuchBucket") => Ok(false),
        _ => Err(refusal(settings, &reply)),
    }
}

pub(super) fn no_bucket(settings: &Settings) -> StartError {
    StartError::wrong(
        "s3.bucket",
        format!(
            "{} has no bucket `{}`; run `tidings migrate` to make it, or correct its name",
            settings.endpoint, settings.bucket
        ),
    )
}

fn answered(settings: &Settings, reply: Result<Reply, NoReply>) -> Result<Reply, StartError> {
    reply.map_err(|no| match no {
        NoReply::Away(why) => StartError::away(
            "s3.endpoint",
            format!(
                "{} can't be reached ({why}); is it up, and is this its address?",
                settings.endpoint
            ),
        ),
        NoReply::Bad(why) => {
            StartError::wrong("s3.endpoint", format!("{}: {why}", settings.endpoint))
        }
    })
}

/// An answer that isn't the hoped-for one, in the words of the setting behind it.
fn refusal(settings: &Settings, reply: &Reply) -> StartError {
    let (at, code) = (&settings.endpoint, reply.code());
    match (reply.status, code) {
        (_, "InvalidAccessKeyId") => StartError::wrong(
            "s3.access_key",
            format!("{at} knows no such key; correct it"),
        ),
        (_, "SignatureDoesNotMatch") => StartError::wrong(
            "s3.secret_key",
            format!("{at} says that this isn't the secret of s3.access_key; correct it"),
        ),
        (_, "RequestTimeTooSkewed") => StartError::wrong(
            "s3.endpoint",
            format!("{at} refuses requests of this machine's time; set its clock"),
        ),
        (_, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException")
        | (301 | 307, _) => StartError::wrong(
            "s3.region",
            format!(
                "{at} has the bucket `{}` in another region than `{}` (HTTP {}, {code}); correct it",
                settings.bucket, settings.region, reply.status
            ),
        ),
        (401 | 403, _) => StartError::wrong(
            "s3.access_key",
            format!(
                "{at} doesn't allow this key the use of the bucket `{}` (HTTP {}, {code}); grant it",
                settings.bucket, reply.status
            ),
        ),
        (429 | 500.., _) => StartError::away(
            "s3.endpoint",
            format!("{at} can't answer now (HTTP {}, {code})", reply.status),
        ),
        (status, _) => StartError::wrong(
            "s3.endpoint",
            format!("{at} doesn't answer as S3 does (HTTP {status}, {code}); is this its address?"),
        ),
    }
}

/// Makes the bucket where it is missing, and tries that the service keeps the promise that everything rests on: an object
/// is made only where there is none. Repeatable; what was done, in lines.
///
/// Set a lifecycle rule on the bucket that aborts incomplete multipart uploads after a day: a
/// server that dies amid an upload leaves one, which is never listed but takes room.
pub async fn migrate(settings: &Settings) -> Result<Vec<String>, StartError> {
    settings.checked()?;
    let requests = Requests::new(settings, &client_options(settings)?)?;
    let mut done = Vec::new();
    if !has_bucket(settings, &requests).await? {
        let body = if settings.region == "us-east-1" {
            String::new() // The one region that mustn't be named.
        } else {
            format!(
                "<CreateBucketConfiguration><LocationConstraint>{}</LocationConstraint></CreateBucketConfiguration>",
                settings.region
            )
        };
        let reply = requests.send("PUT", "", &[], body, DEADLINE).await;
        let reply = answered(settings, reply)?;
        match (reply.status, reply.code()) {
            (200..=204, _) => done.push(format!("s3: made the bucket {}", settings.bucket)),
            // Another one's migration was quicker.
            (_, "BucketAlreadyOwnedByYou") => {}
            (_, "BucketAlreadyExists") => {
                let reason = format!(
                    "`{}` belongs to somebody else; choose another name",
                    settings.bucket
                );
                return Err(StartError::wrong("s3.bucket", reason));
            }
            _ => return Err(refusal(settings, &reply)),
        }
    }
    keeps_the_first(settings, &requests).await?;
    done.push(format!("s3: the bucket {} is ready", settings.bucket));
    Ok(done)
}

async fn keeps_the_first(settings: &Settings, requests: &Requests) -> Result<(), StartError> {
    let place = format!("/{}", probe_key());
    let only_new = [("if-none-match", "*")];
    let mut statuses = [0; 2];
    for status in &mut statuses {
        let body = "probe".to_owned();
        let reply = requests
            .send("PUT", &place, &only_new, body, DEADLINE)
            .await;
        let reply = answered(settings, reply)?;
        *status = reply.status;
        if !matches!(reply.status, 200 | 409 | 412) {
            return Err(refusal(settings, &reply));
        }
    }
    let removed = requests
        .send("DELETE", &place, &[], String::new(), DEADLINE)
        .await;
    answered(settings, removed)?;
    if statuses[1] == 200 {
        return Err(StartError::wrong(
            "s3.endpoint",
            format!(
                "{} overwrites objects in spite of If-None-Match: *; use a service that knows conditional writes",
                settings.endpoint
            ),
        ));
    }
    Ok(())
}
