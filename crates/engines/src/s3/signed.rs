//! URLs that let a client upload or download one object itself, for a time.

use std::time::Duration;

use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};
use tidings_core::ports::blobs::{BlobError, BlobKey, Blobs};

use super::S3Blobs;
use super::metrics::add;
use super::objects::unavailable;

/// The longest life of a signed URL: S3 takes no longer one.
const LIFE_MAX: Duration = Duration::from_secs(7 * 86_400);

/// A request that a client may make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRequest {
    /// `PUT` or `GET`.
    pub method: &'static str,
    /// The URL. Whoever has it may use it until its life ends.
    pub url: String,
    /// Headers that it must be sent with, name and value.
    pub headers: Vec<(&'static str, String)>,
}

/// Types that a browser shows as a picture and never runs; SVG isn't one.
const SAFE_IMAGES: [&str; 5] = [
    "image/png",
    "image/jpeg",
    "image/gif",
    "image/webp",
    "image/avif",
];

impl S3Blobs {
    /// A request to upload an object of `bytes` bytes under a key that has none yet.
    ///
    /// The size isn't bound by the signature, so the object counts only after
    /// [`S3Blobs::complete`].
    pub async fn presign_upload(
        &self,
        key: &BlobKey,
        bytes: u64,
        life: Duration,
    ) -> Result<SignedRequest, BlobError> {
        let max = self.settings.upload_bytes_max;
        if bytes > max {
            add(&self.metrics.too_large, 1);
            return Err(BlobError::TooLarge { max });
        }
        let mut options = SignedUrlOptions::new();
        options
            .signed_headers
            .insert("if-none-match", object_store::HeaderValue::from_static("*"));
        Ok(SignedRequest {
            method: "PUT",
            url: self.sign("PUT", key, life, &options).await?,
            headers: vec![
                ("if-none-match", "*".to_owned()),
                ("content-length", bytes.to_string()),
            ],
        })
    }

    /// A request to download an object. Only pictures of a safe type are shown by a browser in their place;
    /// everything else is offered as a file of this name, and as bytes of no type.
    pub async fn presign_download(
        &self,
        key: &BlobKey,
        life: Duration,
        file_name: &str,
        content_type: &str,
    ) -> Result<SignedRequest, BlobError> {
        let safe = SAFE_IMAGES
            .iter()
            .find(|safe| safe.eq_ignore_ascii_case(content_type));
        let how = if safe.is_some() {
            "inline"
        } else {
            "attachment"
        };
        let options = SignedUrlOptions::new().with_query([
            ("response-content-disposition", disposition(how, file_name)),
            (
                "response-content-type",
                safe.map_or("application/octet-stream", |safe| safe)
                    .to_owned(),
            ),
        ]);
        Ok(SignedRequest {
            method: "GET",
            url: self.sign("GET", key, life, &options).await?,
            headers: Vec::new(),
        })
    }

    /// Ends a client's upload: the object's size, if it is at most `bytes`. A larger one is removed.
    pub async fn complete(&self, key: &BlobKey, bytes: u64) -> Result<u64, BlobError> {
        match self.head(key).await? {
            None => Err(BlobError::NotFound),
            Some(size) if size > bytes => {
                self.delete(key).await?;
                add(&self.metrics.too_large, 1);
                Err(BlobError::TooLarge { max: bytes })
            }
            Some(size) => Ok(size),
        }
    }

    async fn sign(
        &self,
        method: &str,
        key: &BlobKey,
        life: Duration,
        options: &SignedUrlOptions,
    ) -> Result<String, BlobError> {
        let method = method
            .parse()
            .map_err(|_| unavailable("no such method".to_owned()))?;
        let life = life.clamp(Duration::from_secs(1), LIFE_MAX);
        self.public
            .signed_url_opts(method, &Path::from(key.as_str()), life, options)
            .await
            .map(String::from)
            .map_err(|error| unavailable(error.to_string()))
    }
}

/// The header's value: the name as plain ASCII for old programs, and as it is in UTF-8.
fn disposition(how: &str, file_name: &str) -> String {
    // No separators, no controls, nothing that turns the direction of writing: `exe.gpj` isn't a picture.
    let is_kept = |c: &char| {
        !c.is_control()
            && !matches!(c, '/' | '\\' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let name: String = file_name.chars().filter(is_kept).take(120).collect();
    let name = name.trim().trim_start_matches('.');
    let name = if name.is_empty() { "file" } else { name };
    let ascii: String = name
        .chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_' | ' ' => c,
            _ => '_',
        })
        .collect();
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' => {
                encoded.push(byte.into())
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    format!("{how}; filename=\"{ascii}\"; filename*=UTF-8''{encoded}")
}

#[cfg(test)]
mod tests {
    use super::disposition;

    #[test]
    fn a_file_name_can_neither_end_the_header_nor_name_a_folder() {
        for (name, expected) in [
            (
                "a b.txt",
                "inline; filename=\"a b.txt\"; filename*=UTF-8''a%20b.txt",
            ),
            (
                "x\"\r\nX: 1",
                "inline; filename=\"x_X_ 1\"; filename*=UTF-8''x%22X%3A%201",
            ),
            (
                "../../etc",
                "inline; filename=\"etc\"; filename*=UTF-8''etc",
            ),
            (
                "é.png",
                "inline; filename=\"_.png\"; filename*=UTF-8''%C3%A9.png",
            ),
            (
                "\u{202e}gpj.exe",
                "inline; filename=\"gpj.exe\"; filename*=UTF-8''gpj.exe",
            ),
            ("", "inline; filename=\"file\"; filename*=UTF-8''file"),
        ] {
            assert_eq!(disposition("inline", name), expected);
        }
    }
}
