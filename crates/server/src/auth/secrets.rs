//! Random secrets and their hashes, and the server's own key.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use tidings_core::ports::directory::SecretHash;
use zeroize::Zeroizing;

use super::AuthError;

/// A fresh 256-bit secret.
pub(super) fn fresh() -> Result<Zeroizing<[u8; 32]>, AuthError> {
    let mut secret = Zeroizing::new([0u8; 32]);
    getrandom::fill(&mut *secret).map_err(|_| AuthError::busy())?;
    Ok(secret)
}

/// Bytes as they stand in tokens.
pub(super) fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Bytes back from a token: exactly `N` in canonical base64url.
pub(super) fn bytes<const N: usize>(text: &str) -> Option<Zeroizing<[u8; N]>> {
    // 4 characters for 3 bytes; compared first so that nothing long is decoded.
    if text.len() != (N * 4).div_ceil(3) {
        return None;
    }
    let mut out = Zeroizing::new([0u8; N]);
    let written = URL_SAFE_NO_PAD.decode_slice(text, &mut *out).ok()?;
    (written == N).then_some(out)
}

/// Bytes of any length from canonical base64url.
pub(super) fn any(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// What is stored of a secret.
pub(super) fn stored(secret: &[u8]) -> SecretHash {
    SecretHash(Sha256::digest(secret).into())
}

/// Makes the key that own tokens are signed with, unless the folder has one.
///
/// # Errors
/// When it can't be read or written, or others may read it.
#[cfg(feature = "cluster")]
pub fn make_server_key(folder: &Path) -> io::Result<()> {
    ServerKey::open(folder).map(drop)
}

/// The key that the server's own tokens are signed with; wiped when dropped, never printed.
pub(super) struct ServerKey(Zeroizing<[u8; 32]>);

impl ServerKey {
    /// Reads the key from `folder` (file `token.key`), or makes one at the first start.
    ///
    /// A file that others may read is refused: who has the key can sign in as anybody.
    pub(super) fn open(folder: &Path) -> io::Result<ServerKey> {
        fs::create_dir_all(folder)?;
        let path = folder.join("token.key");
        match File::open(&path) {
            Ok(mut file) => {
                let metadata = file.metadata()?;
                if metadata.mode() & 0o077 != 0 {
                    return Err(io::Error::other(
                        "token.key may be read by others: chmod 600 it",
                    ));
                }
                let mut key = Zeroizing::new([0u8; 32]);
                if metadata.len() != 32 {
                    return Err(io::Error::other("token.key doesn't hold 32 bytes"));
                }
                file.read_exact(&mut *key)?;
                Ok(ServerKey(key))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut key = Zeroizing::new([0u8; 32]);
                getrandom::fill(&mut *key).map_err(io::Error::other)?;
                // Under another name first, so that a crash leaves no half of a key.
                let part = folder.join("token.key.part");
                let mut file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&part)?;
                file.write_all(&*key)?;
                file.sync_all()?;
                fs::rename(&part, &path)?;
                File::open(folder)?.sync_all()?;
                Ok(ServerKey(key))
            }
            Err(error) => Err(error),
        }
    }

    fn mac(&self, message: &[u8]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&*self.0).expect("HMAC takes a key of any length");
        mac.update(message);
        mac
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 32] {
        self.mac(message).finalize().into_bytes().into()
    }

    /// Compares in constant time.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.mac(message).verify_slice(signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_outlives_a_start_and_is_nobody_elses_to_read() {
        let folder = tempfile::tempdir().unwrap();
        let signature = ServerKey::open(folder.path()).unwrap().sign(b"x");
        let again = ServerKey::open(folder.path()).unwrap();
        assert!(again.verify(b"x", &signature));
        assert!(!again.verify(b"y", &signature));
        let path = folder.path().join("token.key");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(ServerKey::open(folder.path()).is_err());
    }
}
