//! Signed requests for what the driver has no call for: buckets, and completing an upload only
//! where there is no object yet.

use std::time::Duration;

use object_store::ClientOptions;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    ReqwestConnector,
};

use super::settings::Settings;
use crate::StartError;

/// An answer, whatever its status.
pub(super) struct Reply {
    pub status: u16,
    pub body: String,
}

impl Reply {
    /// S3's word for what is wrong; empty when it says none.
    pub fn code(&self) -> &str {
        let code = self.body.split_once("<Code>").map_or("", |(_, rest)| rest);
        code.split_once("</Code>").map_or("", |(code, _)| code)
    }
}

/// Why there was no answer.
pub(super) enum NoReply {
    /// Nobody is there, or not in time.
    Away(String),
    /// The request can't be made.
    Bad(String),
}

impl NoReply {
    pub fn why(self) -> String {
        match self {
            NoReply::Away(why) | NoReply::Bad(why) => why,
        }
    }
}

pub(super) struct Requests {
    client: HttpClient,
    credential: AwsCredential,
    region: String,
    bucket_url: String,
}

impl Requests {
    pub fn new(settings: &Settings, options: &ClientOptions) -> Result<Requests, StartError> {
        let client = ReqwestConnector::default()
            .connect(options)
            .map_err(|e| StartError::wrong("s3.endpoint", format!("no client can be made: {e}")))?;
        Ok(Requests {
            client,
            credential: AwsCredential {
                key_id: settings.access_key.clone(),
                secret_key: settings.secret_key.0.clone(),
                token: None,
            },
            region: settings.region.clone(),
            bucket_url: format!("{}/{}", settings.endpoint, settings.bucket),
        })
    }

    /// One request about what lies at `rest` behind the bucket's URL, within the deadline.
    pub async fn send(
        &self,
        method: &str,
        rest: &str,
        headers: &[(&'static str, &'static str)],
        body: String,
        deadline: Duration,
    ) -> Result<Reply, NoReply> {
        let bad = |error: &dyn std::fmt::Display| NoReply::Bad(error.to_string());
        let body = if body.is_empty() {
            HttpRequestBody::empty()
        } else {
            body.into()
        };
        let mut request = HttpRequest::new(body);
        *request.method_mut() = method.parse().map_err(|e| bad(&e))?;
        *request.uri_mut() = format!("{}{rest}", self.bucket_url)
            .parse()
            .map_err(|e| bad(&e))?;
        for (name, value) in headers {
            let value = object_store::HeaderValue::from_static(value);
            request.headers_mut().insert(*name, value);
        }
        AwsAuthorizer::new(&self.credential, "s3", &self.region)
            .try_authorize(&mut request, None)
            .map_err(|e| bad(&e))?;
        let work = async {
            let response = self.client.execute(request).await?;
            let status = response.status().as_u16();
            let body = response.into_body().bytes().await?;
            Ok((status, body))
        };
        match tokio::time::timeout(deadline, work).await {
            Ok(Ok((status, body))) => Ok(Reply {
                status,
                body: String::from_utf8_lossy(&body).into_owned(),
            }),
            Ok(Err(error)) => Err(sort(&error)),
            Err(_) => Err(NoReply::Away(format!(
                "no answer in {} ms",
                deadline.as_millis()
            ))),
        }
    }
}

fn sort(error: &HttpError) -> NoReply {
    // The innermost cause says what happened; the outer ones that something did.
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match error.kind() {
        HttpErrorKind::Decode => NoReply::Bad(cause.to_string()),
        _ => NoReply::Away(cause.to_string()),
    }
}
