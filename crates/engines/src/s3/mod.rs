//! Blobs in S3, or in a service that speaks as it does.
//!
//! An object is made only where there is none, by conditional writes (`If-None-Match: *`), also when it
//! comes in parts. Nothing is kept in the server but the part at hand.

mod metrics;
mod objects;
mod request;
mod settings;
mod signed;
mod start;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};

use crate::StartError;
use crate::breaker::{Breaker, BreakerMetrics};
use request::Requests;

pub use metrics::Metrics;
pub use settings::Settings;
pub use signed::SignedRequest;
pub use start::migrate;

/// The longest [`S3Blobs::check`] takes.
const CHECK_DEADLINE: Duration = Duration::from_secs(1);

/// The blobs of many servers, in one bucket.
pub struct S3Blobs {
    settings: Settings,
    store: Arc<AmazonS3>,
    /// Signs URLs for the address that clients know.
    public: AmazonS3,
    requests: Requests,
    metrics: Arc<Metrics>,
    breaker: Breaker,
}

fn client_options(settings: &Settings) -> Result<ClientOptions, StartError> {
    let mut options = ClientOptions::new()
        .with_allow_http(true)
        .with_connect_timeout(Duration::from_millis(settings.connect_timeout_ms))
        .with_timeout(settings.part_timeout().max(settings.timeout()));
    if !settings.tls_ca_file.is_empty() {
        let path = &settings.tls_ca_file;
        let wrong = |why: &dyn std::fmt::Display| {
            StartError::wrong("s3.tls_ca_file", format!("{path} can't be used: {why}"))
        };
        let pem = std::fs::read(path).map_err(|e| wrong(&e))?;
        for certificate in Certificate::from_pem_bundle(&pem).map_err(|e| wrong(&e))? {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

fn store(
    settings: &Settings,
    endpoint: &str,
    options: ClientOptions,
) -> Result<AmazonS3, StartError> {
    AmazonS3Builder::new()
        .with_endpoint(endpoint)
        .with_region(&settings.region)
        .with_bucket_name(&settings.bucket)
        .with_access_key_id(&settings.access_key)
        .with_secret_access_key(&settings.secret_key.0)
        .with_client_options(options)
        .with_retry(RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(50),
                max_backoff: Duration::from_secs(1),
                base: 2.0,
            },
            max_retries: settings.retries,
            retry_timeout: settings.part_timeout(),
        })
        .build()
        .map_err(|error| StartError::wrong("s3.endpoint", format!("can't be used: {error}")))
}

/// A key that no object of the server has.
fn probe_key() -> String {
    let name = getrandom::u64().unwrap_or_default();
    format!("probe/{name:016x}")
}

impl S3Blobs {
    /// Checks that the service is there, takes these keys and has the bucket.
    pub async fn open(settings: Settings) -> Result<S3Blobs, StartError> {
        settings.checked()?;
        let options = client_options(&settings)?;
        let requests = Requests::new(&settings, &options)?;
        if !start::has_bucket(&settings, &requests).await? {
            return Err(start::no_bucket(&settings));
        }
        let public = if settings.public_endpoint.is_empty() {
            &settings.endpoint
        } else {
            &settings.public_endpoint
        };
        Ok(S3Blobs {
            store: Arc::new(store(&settings, &settings.endpoint, options.clone())?),
            public: store(&settings, public, options)?,
            requests,
            metrics: Arc::new(Metrics::default()),
            // Parts take as long as clients give them; what is slow is what passes its deadline.
            breaker: Breaker::new("s3", settings.part_timeout()),
            settings,
        })
    }

    /// Whether the bucket answers now; at most a second.
    pub async fn check(&self) -> Result<(), String> {
        let question = "?list-type=2&max-keys=1";
        let pass = self.breaker.enter().map_err(|open| open.to_string())?;
        let reply = self
            .requests
            .send("GET", question, &[], String::new(), CHECK_DEADLINE)
            .await
            .map_err(request::NoReply::why);
        pass.end(reply.is_ok());
        let reply = reply?;
        match reply.status {
            200 => Ok(()),
            status => Err(format!("HTTP {status}, {}", reply.code())),
        }
    }

    /// The breaker's figures.
    pub fn breaker(&self) -> Arc<BreakerMetrics> {
        Arc::clone(self.breaker.metrics())
    }

    /// The counters.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }
}
