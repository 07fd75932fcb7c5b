//! The section `[s3]`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Secret, StartError};

/// The smallest part that S3 takes, but for the last.
const PART_MIN: u64 = 5 << 20;

/// Settings of the section `[s3]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The service's address as `http://host:port` or `https://host`; buckets are named in the path behind it.
    pub endpoint: String,
    /// The address that clients reach it by, for signed URLs; empty: the same.
    pub public_endpoint: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket; `tidings migrate` makes it.
    pub bucket: String,
    /// The access key's id.
    pub access_key: String,
    /// The access key's secret.
    pub secret_key: Secret,
    /// Certificates (PEM) of the authorities that are trusted beside the system's; empty: none.
    pub tls_ca_file: String,
    /// The longest it takes to connect.
    pub connect_timeout_ms: u64,
    /// The longest a call takes with its retries; a put of a part has its own.
    pub timeout_ms: u64,
    /// The longest the transfer of a part of an object takes with its retries.
    pub part_timeout_ms: u64,
    /// How often a request that failed on the way is repeated within its time.
    pub retries: usize,
    /// The size of a part: larger objects go in several, one of which is in memory for each upload.
    pub part_bytes: u64,
    /// The largest object that a client may be given a URL to upload.
    pub upload_bytes_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            endpoint: "http://127.0.0.1:7070".to_owned(),
            public_endpoint: String::new(),
            region: "us-east-1".to_owned(),
            bucket: "tidings".to_owned(),
            access_key: String::new(),
            secret_key: Secret::default(),
            tls_ca_file: String::new(),
            connect_timeout_ms: 2_000,
            timeout_ms: 5_000,
            part_timeout_ms: 30_000,
            retries: 2,
            part_bytes: 8 << 20,
            upload_bytes_max: 100 << 20,
        }
    }
}

impl Settings {
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    pub(super) fn part_timeout(&self) -> Duration {
        Duration::from_millis(self.part_timeout_ms)
    }

    /// What is wrong with the settings by themselves.
    pub(super) fn checked(&self) -> Result<(), StartError> {
        let is_url = |url: &str| {
            let host = url.strip_prefix("http://").or(url.strip_prefix("https://"));
            host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']))
        };
        let is_bucket = (3..=63).contains(&self.bucket.len())
            && self
                .bucket
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'));
        let times = [
            self.connect_timeout_ms,
            self.timeout_ms,
            self.part_timeout_ms,
        ];
        let form = "must be http://host:port or https://host, without a path";
        for (setting, good, reason) in [
            ("s3.endpoint", is_url(&self.endpoint), form),
            (
                "s3.public_endpoint",
                self.public_endpoint.is_empty() || is_url(&self.public_endpoint),
                form,
            ),
            ("s3.region", !self.region.is_empty(), "is empty"),
            (
                "s3.bucket",
                is_bucket,
                "must be 3 to 63 of a-z, 0-9, - and .",
            ),
            ("s3.access_key", !self.access_key.is_empty(), "is empty"),
            ("s3.secret_key", !self.secret_key.0.is_empty(), "is empty"),
            (
                "s3.timeout_ms",
                times.iter().all(|ms| (1..=600_000).contains(ms)),
                "and the other times must be between 1 and 600000",
            ),
            ("s3.retries", self.retries <= 10, "must be at most 10"),
            (
                "s3.part_bytes",
                (PART_MIN..=1 << 30).contains(&self.part_bytes),
                "must be between 5242880 and 1073741824",
            ),
            (
                "s3.upload_bytes_max",
                (1..=5 << 30).contains(&self.upload_bytes_max),
                "must be between 1 and 5368709120: S3 takes no more in one request",
            ),
        ] {
            if !good {
                return Err(StartError::wrong(setting, reason));
            }
        }
        Ok(())
    }
}
