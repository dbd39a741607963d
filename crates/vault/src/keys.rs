//! The keys of a repository: whoever has the public one can write, only whoever has the secret one can read.
//!
//! So a database host may hold the public key alone; what it wrote yesterday it can not read today. Each object has a data key of its
//! own, wrapped for the repository's public key: X25519 with an ephemeral key, HKDF-SHA-256, AES-256-GCM (docs/vault-format.md).

use crate::hex;
use crate::repository::VaultError;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use x25519_dalek::{PublicKey, StaticSecret};

const SECRET_TAG: &str = "mainstay-vault-secret-1:";
const PUBLIC_TAG: &str = "mainstay-vault-public-1:";
const WRAP: &[u8] = b"mainstay-vault 1 wrap";

/// With it objects can be read.
#[derive(Clone)]
pub struct SecretKey(StaticSecret);

/// With it objects can be written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WriteKey([u8; 32]);

/// A data key, wrapped for one reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wrap {
    /// Fingerprint of the key for which it is wrapped.
    pub(crate) key: String,
    ephemeral: String,
    sealed: String,
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.public().fingerprint())
    }
}

impl fmt::Debug for WriteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteKey({})", self.fingerprint())
    }
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], VaultError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| VaultError::Crypto("the system gives no random bytes".into()))?;
    Ok(bytes)
}

struct Len32;
impl KeyType for Len32 {
    fn len(&self) -> usize {
        32
    }
}

/// The key that wraps, from what both sides know.
fn wrapping(shared: &[u8; 32], ephemeral: &[u8; 32], reader: &[u8; 32]) -> Result<LessSafeKey, VaultError> {
    let broken = |_| VaultError::Crypto("key derivation failed".into());
    let salt: Vec<u8> = ephemeral.iter().chain(reader).copied().collect();
    let mut key = [0; 32];
    let material = Salt::new(HKDF_SHA256, &salt).extract(shared);
    material.expand(&[WRAP], Len32).and_then(|okm| okm.fill(&mut key)).map_err(broken)?;
    cipher(&key)
}

pub(crate) fn cipher(key: &[u8; 32]) -> Result<LessSafeKey, VaultError> {
    let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| VaultError::Crypto("a key of the wrong length".into()))?;
    Ok(LessSafeKey::new(key))
}

impl SecretKey {
    /// A new one.
    pub fn generate() -> Result<SecretKey, VaultError> {
        Ok(SecretKey(StaticSecret::from(random::<32>()?)))
    }
    /// What may be given to those who write.
    #[must_use]
    pub fn public(&self) -> WriteKey {
        WriteKey(PublicKey::from(&self.0).to_bytes())
    }
    /// As it stands in a file. Keep it where the database's hosts can not lose it together with the data.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{SECRET_TAG}{}\n", hex::encode(self.0.as_bytes()))
    }
    /// From a file's text.
    pub fn parse(text: &str) -> Result<SecretKey, VaultError> {
        let key = text.trim().strip_prefix(SECRET_TAG).and_then(hex::array::<32>);
        let says = || VaultError::Crypto(format!("this is no secret key of a vault: it begins with {SECRET_TAG}"));
        key.map(|bytes| SecretKey(StaticSecret::from(bytes))).ok_or_else(says)
    }
    /// The data key, if it is wrapped for us.
    pub(crate) fn unwrap(&self, wraps: &[Wrap]) -> Result<[u8; 32], VaultError> {
        let ours = self.public();
        let Some(wrap) = wraps.iter().find(|wrap| wrap.key == ours.fingerprint()) else {
            let for_whom = wraps.iter().map(|wrap| wrap.key.as_str()).collect::<Vec<_>>().join(", ");
            return Err(VaultError::WrongKey { have: ours.fingerprint(), needs: for_whom });
        };
        let damaged = || VaultError::Damaged("the wrapped key of an object".into());
        let ephemeral = hex::array::<32>(&wrap.ephemeral).ok_or_else(damaged)?;
        let mut sealed = hex::decode(&wrap.sealed).ok_or_else(damaged)?;
        let shared = self.0.diffie_hellman(&PublicKey::from(ephemeral));
        let key = wrapping(shared.as_bytes(), &ephemeral, &ours.0)?;
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let plain = key.open_in_place(nonce, Aad::empty(), &mut sealed).map_err(|_| damaged())?;
        <[u8; 32]>::try_from(&*plain).map_err(|_| damaged())
    }
}

impl WriteKey {
    /// Names the key without giving it away.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex::encode(ring::digest::digest(&ring::digest::SHA256, &self.0).as_ref().get(..8).unwrap_or_default())
    }
    /// As it stands in `vault.json`.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{PUBLIC_TAG}{}", hex::encode(&self.0))
    }
    /// From its text.
    pub fn parse(text: &str) -> Result<WriteKey, VaultError> {
        let key = text.trim().strip_prefix(PUBLIC_TAG).and_then(hex::array::<32>);
        key.map(WriteKey).ok_or_else(|| VaultError::Crypto("this is no public key of a vault".into()))
    }
    /// Wraps a data key. The ephemeral key is new each time, so the key that wraps is used once.
    pub(crate) fn wrap(&self, data_key: &[u8; 32]) -> Result<Wrap, VaultError> {
        let secret = StaticSecret::from(random::<32>()?);
        let ephemeral = PublicKey::from(&secret).to_bytes();
        let shared = secret.diffie_hellman(&PublicKey::from(self.0));
        let key = wrapping(shared.as_bytes(), &ephemeral, &self.0)?;
        let mut sealed = data_key.to_vec();
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        key.seal_in_place_append_tag(nonce, Aad::empty(), &mut sealed)
            .map_err(|_| VaultError::Crypto("wrapping a key failed".into()))?;
        Ok(Wrap { key: self.fingerprint(), ephemeral: hex::encode(&ephemeral), sealed: hex::encode(&sealed) })
    }
}

/// No file with a key is larger.
const KEY_BYTES_MAX: u64 = 64 << 10;

/// A file with the secret key, or with the public one alone: then this host writes and does not read.
pub fn read_file(file: Option<&Path>) -> Result<(Option<SecretKey>, Option<WriteKey>), VaultError> {
    let Some(file) = file else { return Ok((None, None)) };
    let wrong = |error| VaultError::file(file, error);
    let mut open = File::open(file).map_err(wrong)?;
    let mut text = String::new();
    (&mut open).take(KEY_BYTES_MAX).read_to_string(&mut text).map_err(wrong)?;
    if let Ok(writer) = WriteKey::parse(&text) {
        return Ok((None, Some(writer)));
    }
    let secret = SecretKey::parse(&text).map_err(|_| {
        VaultError::Crypto(format!(
            "{} holds no key of a vault: one begins with {SECRET_TAG} or {PUBLIC_TAG}",
            file.display()
        ))
    })?;
    let mode = open.metadata().map_err(wrong)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let shown = file.display();
        let says = format!("{shown} can be read by others than its owner (mode {mode:o}): run `chmod 600 {shown}`");
        return Err(VaultError::Crypto(says));
    }
    let public = secret.public();
    Ok((Some(secret), Some(public)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_key_that_others_can_read_is_refused_and_a_public_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (file, secret) = (dir.path().join("vault.key"), SecretKey::generate().unwrap());
        let write = |text: &str, mode: u32| {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            read_file(Some(&file))
        };
        for mode in [0o640, 0o604, 0o660] {
            let error = write(&secret.to_text(), mode).unwrap_err().to_string();
            assert!(error.contains("chmod 600") && !error.contains(SECRET_TAG), "{error}");
        }
        for mode in [0o600, 0o400] {
            assert!(write(&secret.to_text(), mode).unwrap().0.is_some());
        }
        let error = write("root:x:0:0\n", 0o600).unwrap_err().to_string();
        assert!(error.contains(&file.display().to_string()) && !error.contains("root:x"), "{error}");
        let (read, writer) = write(&secret.public().to_text(), 0o644).unwrap();
        assert!(read.is_none() && writer == Some(secret.public()));
    }
}
