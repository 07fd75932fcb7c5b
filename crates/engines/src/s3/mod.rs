//! Blobs in S3.
