//! A repository: objects, the keys to them, and the names under which things lie.
//!
//! ```text
//! vault.json                                  what this is, for whom it is sealed
//! terms/SYSTEM/TERM                           who owned the archive in which term
//! log/SYSTEM/TIMELINE/SEGMENT                 the log; also its history and partial segments
//! conflicts/SYSTEM/NAME-SUM                   what was offered under a name that holds something else
//! backups/SYSTEM/LABEL/manifest               a backup that is whole: written last
//! backups/SYSTEM/LABEL/pack-N                 its content
//! ```
//! Everything lies below the database's system identifier, so that no lineage is ever taken for another's by name.

use crate::hex;
use crate::keys::{SecretKey, WriteKey};
use crate::objects::{Committed, Key, ObjectError, Objects};
use crate::seal::{self, CHUNK, Header, Sealer, Written, compressor};
use mainstay_model::SystemId;
use mainstay_ports::clock::wall_now_ms;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// Why something about a repository did not work.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The store.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// What was read is not what was written.
    #[error("damaged: {0}; take it from another repository, and look at the rest of this one")]
    Damaged(String),
    /// Sealed for another key.
    #[error(
        "this key ({have}) does not open the repository: it is sealed for {needs}; use the key file of this repository"
    )]
    WrongKey {
        /// The fingerprint of the key at hand.
        have: String,
        /// Those of the keys that open it.
        needs: String,
    },
    /// Sealed, and no key at hand.
    #[error("the repository is sealed for the key {needs}, and no secret key was given")]
    NoKey {
        /// The fingerprints of the keys that open it.
        needs: String,
    },
    /// Keys, randomness, compression.
    #[error("{0}")]
    Crypto(String),
    /// A newer primary owns the archive.
    #[error("term {ours} no longer owns the archive: term {newer} does; nothing was written")]
    Deposed {
        /// Ours.
        ours: u64,
        /// The highest that is there.
        newer: u64,
    },
    /// The same name holds something else.
    #[error(
        "{name} is in the archive with other content; nothing was overwritten, what was offered is kept as {kept}: two servers wrote one log"
    )]
    Conflict {
        /// The name.
        name: String,
        /// Where the other content lies.
        kept: String,
    },
    /// The server or its files.
    #[error("{0}")]
    Server(String),
    /// A backup that can not count as one.
    #[error("the backup failed: {0}")]
    Backup(String),
    /// What was asked for can not be had.
    #[error("{0}")]
    Impossible(String),
    /// What was asked for lies behind the end of the archive, which may grow.
    #[error("{0}")]
    NotArchived(String),
    /// The log ends before the moment was met, and nothing later is archived that would prove it complete.
    #[error("{0}; nothing later than the target is archived yet: wait for it, or restore the latest moment")]
    NothingLater(String),
    /// A local file.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: String,
        /// Why.
        error: std::io::Error,
    },
}

impl VaultError {
    pub(crate) fn file(path: &std::path::Path, error: std::io::Error) -> VaultError {
        VaultError::File { path: path.display().to_string(), error }
    }
    /// Is it not there, said by a store that was reached?
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, VaultError::Object(ObjectError::Missing(_)))
    }
}

/// What stands in `vault.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Charter {
    format: u32,
    id: String,
    /// Public keys of those who may read; none: not encrypted.
    readers: Vec<String>,
}

/// An open repository. Clones share the store.
#[derive(Clone)]
pub struct Repository {
    objects: Arc<dyn Objects>,
    id: String,
    readers: Vec<WriteKey>,
    secret: Option<SecretKey>,
}

/// SHA-256 of some content, as a header names it.
pub(crate) fn sum_of(content: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, content).as_ref())
}

const CHARTER: &str = "vault.json";

impl Repository {
    /// Makes a repository in a store that holds none, or opens the one that is there.
    /// `readers` says for whom it is sealed; one that is there must be sealed for the same.
    pub fn create(objects: Arc<dyn Objects>, readers: &[WriteKey]) -> Result<Repository, VaultError> {
        let texts: Vec<String> = readers.iter().map(WriteKey::to_text).collect();
        let charter = Charter { format: 1, id: hex::encode(&crate::keys::random::<8>()?), readers: texts.clone() };
        let text = serde_json::to_vec_pretty(&charter).map_err(|e| VaultError::Crypto(e.to_string()))?;
        let mut upload = objects.create(&Key::new(CHARTER)?)?;
        upload.write(&text)?;
        upload.commit()?;
        let open = Repository::open(objects, None)?;
        if open.readers != readers {
            let says = format!("{} holds a repository that is sealed for other keys", open.objects.place());
            return Err(VaultError::Impossible(says));
        }
        Ok(open)
    }

    /// Does the store hold a repository? Said by a store that was reached.
    pub fn is_in(objects: &dyn Objects) -> Result<bool, VaultError> {
        match objects.size(&Key::new(CHARTER)?) {
            Ok(_) => Ok(true),
            Err(ObjectError::Missing(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the repository of a store. Without `secret` what is sealed can be written and checked, not read.
    pub fn open(objects: Arc<dyn Objects>, secret: Option<SecretKey>) -> Result<Repository, VaultError> {
        let text = objects.read(&Key::new(CHARTER)?, None)?;
        let charter: Charter =
            serde_json::from_slice(&text).map_err(|e| VaultError::Damaged(format!("{CHARTER}: {e}")))?;
        if charter.format != 1 {
            let says = format!("{} has format {}; this program reads format 1", objects.place(), charter.format);
            return Err(VaultError::Impossible(says));
        }
        let readers = charter.readers.iter().map(|r| WriteKey::parse(r)).collect::<Result<Vec<_>, _>>()?;
        if let Some(secret) = &secret
            && !readers.is_empty()
            && !readers.contains(&secret.public())
        {
            let needs = readers.iter().map(WriteKey::fingerprint).collect::<Vec<_>>().join(", ");
            return Err(VaultError::WrongKey { have: secret.public().fingerprint(), needs });
        }
        Ok(Repository { objects, id: charter.id, readers, secret })
    }

    /// Opens the repository of a folder, which must be there already, or of a bucket. `key_file`: see [`crate::keys::read_file`].
    pub fn at(place: &Path, key_file: Option<&Path>) -> Result<Repository, VaultError> {
        let (secret, _) = crate::keys::read_file(key_file)?;
        Repository::open(crate::objects::existing(place)?, secret)
    }

    /// The databases of which it holds anything.
    pub fn systems(&self) -> Result<Vec<SystemId>, VaultError> {
        let entries = self.objects.list("terms/")?;
        let system = |key: &Key| key.as_str().split('/').nth(1)?.parse().ok().map(SystemId);
        let all: std::collections::BTreeSet<SystemId> = entries.iter().filter_map(|entry| system(&entry.key)).collect();
        Ok(all.into_iter().collect())
    }

    /// The repository's own random name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
    /// Where it is, for people.
    #[must_use]
    pub fn place(&self) -> String {
        self.objects.place()
    }
    /// Is it sealed?
    #[must_use]
    pub fn encrypted(&self) -> bool {
        !self.readers.is_empty()
    }
    /// Is it sealed for the reader of this key, and for nobody else? Whoever can write to the store can name readers of his own there.
    #[must_use]
    pub fn sealed_for(&self, key: &WriteKey) -> bool {
        self.readers == [*key]
    }
    /// Can what lies in it be read, or only written and checked?
    #[must_use]
    pub fn readable(&self) -> bool {
        self.readers.is_empty() || self.secret.is_some()
    }
    /// What opens it and leads through the log of a database: written once, and needed for as long as anything is in it.
    pub(crate) fn lasting(&self, system: SystemId) -> Result<Vec<Key>, VaultError> {
        let mut keys = vec![Key::new(CHARTER)?];
        let terms = self.objects.list(&format!("terms/{system}/"))?;
        let log = self.objects.list(&format!("log/{system}/"))?;
        let histories = log.into_iter().filter(|entry| entry.key.as_str().ends_with(".history"));
        keys.extend(terms.into_iter().chain(histories).map(|entry| entry.key));
        Ok(keys)
    }
    /// Where objects are locked as they are written: locks what must outlast all others anew. The error is the first one's that could not be;
    /// the others are tried all the same, unless the store is away.
    pub fn relock(&self, system: SystemId) -> Result<(), VaultError> {
        if !self.objects.locks() {
            return Ok(());
        }
        let mut failed = None;
        for key in self.lasting(system)? {
            let Err(error) = self.objects.relock(&key) else { continue };
            let away = matches!(error, ObjectError::Unreachable(_));
            failed.get_or_insert(error);
            // The others would be waited for as long.
            if away {
                break;
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
    pub(crate) fn objects(&self) -> &dyn Objects {
        &*self.objects
    }
    pub(crate) fn secret(&self) -> Option<&SecretKey> {
        self.secret.as_ref()
    }

    /// Begins an object of many chunks.
    pub(crate) fn begin(&self, key: &Key, mut header: Header) -> Result<Sealer, VaultError> {
        header.name = key.to_string();
        header.written = wall_now_ms();
        Sealer::begin(self.objects.create(key)?, header, &self.readers)
    }

    /// Writes a whole object, never over another.
    pub(crate) fn put(&self, key: &Key, header: Header, content: &[u8]) -> Result<Written, VaultError> {
        self.put_summed(key, header, content, sum_of(content))
    }

    fn put_summed(&self, key: &Key, header: Header, content: &[u8], sum: String) -> Result<Written, VaultError> {
        let mut sealer = self.begin(key, Header { size: Some(content.len() as u64), sum: Some(sum), ..header })?;
        let mut zstd = compressor()?;
        let mut rest = content;
        loop {
            let (chunk, after) = rest.split_at(rest.len().min(CHUNK));
            sealer.chunk(chunk, &mut zstd, after.is_empty())?;
            if after.is_empty() {
                return sealer.commit();
            }
            rest = after;
        }
    }

    /// Reads a whole object, checked.
    pub(crate) fn get(&self, key: &Key) -> Result<(Header, Vec<u8>), VaultError> {
        seal::open(key.as_str(), self.objects.read(key, None)?, self.secret())
    }

    /// Reads a whole object's bytes and checks them without a key.
    pub(crate) fn check(&self, key: &Key) -> Result<Header, VaultError> {
        let bytes = self.objects.read(key, None)?;
        seal::check_sum(key.as_str(), &bytes)?;
        seal::read_header(key.as_str(), &bytes).map(|(header, _, _)| header)
    }

    /// Writes, then reads back what is there and compares: what this returns has been in the repository when it was looked at.
    /// `sum`: [`sum_of`] the content.
    pub(crate) fn put_checked(
        &self,
        key: &Key,
        header: Header,
        (content, sum): (&[u8], &str),
    ) -> Result<Committed, VaultError> {
        let written = self.put_summed(key, header, content, sum.to_owned())?;
        let there = self.check(key)?;
        match (written.committed, there.sum.as_deref() == Some(sum)) {
            (Committed::Created, true) => Ok(Committed::Created),
            (Committed::Created, false) => Err(VaultError::Damaged(format!("{key} was read back with other content"))),
            (Committed::Exists, _) => Ok(Committed::Exists),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{Fault, Memory};

    fn sealed() -> (Memory, Repository, SecretKey) {
        let (memory, secret) = (Memory::default(), SecretKey::generate().unwrap());
        Repository::create(Arc::new(memory.clone()), &[secret.public()]).unwrap();
        let repository = Repository::open(Arc::new(memory.clone()), Some(secret.clone())).unwrap();
        (memory, repository, secret)
    }

    fn content() -> Vec<u8> {
        (0..(CHUNK as u32 / 2)).flat_map(|n| (n / 7).to_le_bytes()).collect()
    }

    #[test]
    fn what_is_written_is_read_and_the_write_key_alone_reads_nothing() {
        let (memory, repository, secret) = sealed();
        let key = Key::new("log/1/one").unwrap();
        let writer = Repository::open(Arc::new(memory.clone()), None).unwrap();
        assert!(!writer.readable() && repository.readable());
        assert_eq!(
            writer.put_checked(&key, Header::default(), (&content(), &sum_of(&content()))).unwrap(),
            Committed::Created
        );
        assert_eq!(repository.get(&key).unwrap().1, content());
        assert!(matches!(writer.get(&key), Err(VaultError::NoKey { .. })));
        assert!(writer.check(&key).is_ok(), "checked without a key");
        let raw = memory.read(&key, None).unwrap();
        let plain = content();
        assert!(!raw.windows(64).any(|window| window == &plain[..64]));
        let parsed = SecretKey::parse(&secret.to_text()).unwrap();
        assert_eq!(parsed.public(), secret.public());
        let other = SecretKey::generate().unwrap();
        assert!(matches!(Repository::open(Arc::new(memory), Some(other)), Err(VaultError::WrongKey { .. })));
    }

    #[test]
    fn every_changed_byte_is_noticed_and_no_object_passes_for_another() {
        for encrypted in [true, false] {
            let (memory, mut repository, _) = sealed();
            if !encrypted {
                repository.readers.clear();
            }
            let (one, two) = (Key::new("log/1/one").unwrap(), Key::new("log/1/two").unwrap());
            repository.put(&one, Header::default(), b"some content that is short").unwrap();
            let good = memory.read(&one, None).unwrap();
            for at in 0..good.len() {
                memory.tamper(&one, |bytes| bytes[at] ^= 1);
                assert!(repository.get(&one).is_err(), "byte {at}");
                memory.tamper(&one, |bytes| *bytes = good.clone());
            }
            memory.tamper(&one, |bytes| bytes.truncate(good.len() / 2));
            assert!(matches!(repository.get(&one), Err(VaultError::Damaged(_))));
            repository.put(&two, Header::default(), b"other").unwrap();
            memory.tamper(&two, |bytes| *bytes = good.clone());
            assert!(repository.get(&two).unwrap_err().to_string().contains("written as log/1/one"));
        }
    }

    #[test]
    fn chunks_can_not_be_left_out_or_swapped_even_with_the_checksum_made_anew() {
        let (memory, repository, _) = sealed();
        let key = Key::new("log/1/one").unwrap();
        repository.put(&key, Header::default(), &content()).unwrap();
        let good = memory.read(&key, None).unwrap();
        let (_, _, start) = seal::read_header(key.as_str(), &good).unwrap();
        let length = 8 + u32::from_le_bytes(good[start + 4..start + 8].try_into().unwrap()) as usize;
        let body = &good[..good.len() - 40];
        let again = |parts: &[&[u8]]| {
            let bytes = parts.concat();
            let sum = ring::digest::digest(&ring::digest::SHA256, &bytes);
            [&bytes[..], &0x184D_2A52u32.to_le_bytes(), &32u32.to_le_bytes(), sum.as_ref()].concat()
        };
        let (head, first, rest) = (&body[..start], &body[start..start + length], &body[start + length..]);
        for forged in [again(&[head, first]), again(&[head, rest]), again(&[head, rest, first])] {
            memory.tamper(&key, |bytes| *bytes = forged);
            assert!(matches!(repository.get(&key), Err(VaultError::Damaged(_))));
        }
        memory.tamper(&key, |bytes| *bytes = again(&[head, first, rest]));
        assert_eq!(repository.get(&key).unwrap().1, content());
    }

    #[test]
    fn without_encryption_the_zstd_program_reads_an_object() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(crate::objects::Folder::open(dir.path().join("r")).unwrap());
        let repository = Repository::create(store, &[]).unwrap();
        let key = Key::new("log/1/one").unwrap();
        repository.put(&key, Header::default(), &content()).unwrap();
        assert_eq!(repository.get(&key).unwrap().1, content());
        let ran = std::process::Command::new("zstd").arg("-dcq").arg(dir.path().join("r/log/1/one")).output().unwrap();
        assert!(ran.status.success() && ran.stdout == content());
    }

    #[test]
    fn p21_out_of_reach_is_not_missing() {
        let (memory, repository, _) = sealed();
        let key = Key::new("log/1/one").unwrap();
        assert!(repository.get(&key).unwrap_err().is_missing());
        memory.set_fault(Fault::Unreachable);
        assert!(!repository.get(&key).unwrap_err().is_missing());
        memory.set_fault(Fault::Full);
        let error = repository.put(&key, Header::default(), b"x").unwrap_err();
        assert!(matches!(error, VaultError::Object(ObjectError::Full(_))));
        memory.set_fault(Fault::None);
        assert!(repository.get(&key).unwrap_err().is_missing(), "a repository that was full holds no half object");
    }
}
