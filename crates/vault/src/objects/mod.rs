//! Where a repository's objects lie: written once under a name, never changed, listed by prefix.
//!
//! The contract that every store must keep, and that `conformance` tests:
//! * `create` never overwrites. An object becomes visible whole and durable at `commit`, or not at all; of two that commit one name,
//!   one is told [`Committed::Exists`].
//! * [`ObjectError::Missing`] is said only by a store that was reached and answered that the object is not there. Everything else that
//!   keeps an object from being read is another error: a restore must never take one for the other.
//! * Calls block; callers that serve other work use threads of their own.
//!
//! Absent: knowledge of what an object holds.

mod bucket;
mod folder;
mod memory;

pub use bucket::Bucket;
pub use folder::Folder;
use mainstay_model::bucket::is_bucket;
pub use memory::{Fault, Memory};

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// An object's name: parts of letters, digits, `-`, `_` and `.`, joined by `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// A name, if it is one: no empty part, none that begins with a dot.
    pub fn new(name: impl Into<String>) -> Result<Key, ObjectError> {
        let name = name.into();
        if mainstay_model::bucket::is_object_name(&name) {
            Ok(Key(name))
        } else {
            Err(ObjectError::Refused(format!("{name:?} is not a name for an object")))
        }
    }
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// What stands after the last `/`.
    #[must_use]
    pub fn last(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object that is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its name.
    pub key: Key,
    /// Its size in bytes.
    pub size: u64,
}

/// How a commit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// The object is there, durable, and it is ours.
    Created,
    /// Another of that name was there: it is untouched.
    Exists,
}

/// How a removal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is not there any more, or never was.
    Gone,
    /// The store keeps it, whoever asks, by a rule of its own.
    Kept,
}

/// Why a store did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The store was reached and says that there is no such object.
    #[error("the repository holds no object {0}")]
    Missing(String),
    /// The store has no room.
    #[error("the repository is full: {0}; make room there, or shorten the retention")]
    Full(String),
    /// The store could not be reached, or failed; nothing is known about the object.
    #[error("the repository can not be reached: {0}; nothing is known about what it holds")]
    Unreachable(String),
    /// The store will never do this.
    #[error("the repository refused: {0}")]
    Refused(String),
}

/// An object that is being written. Dropped without commit, nothing of it stays visible.
pub trait Upload: Send {
    /// Appends bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), ObjectError>;
    /// Makes the object visible, durable, if none of its name is there.
    fn commit(self: Box<Self>) -> Result<Committed, ObjectError>;
}

/// A store of objects.
pub trait Objects: Send + Sync {
    /// Begins an object.
    fn create(&self, key: &Key) -> Result<Box<dyn Upload>, ObjectError>;
    /// Reads an object, or a range of it. A range that reaches past the end is an error.
    fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<Vec<u8>, ObjectError>;
    /// Its size.
    fn size(&self, key: &Key) -> Result<u64, ObjectError>;
    /// Every object whose name begins with `prefix` (which ends in `/`), sorted by name.
    fn list(&self, prefix: &str) -> Result<Vec<Entry>, ObjectError>;
    /// Removes an object; it is no error if it is not there, nor if the store keeps it for so and so long.
    fn delete(&self, key: &Key) -> Result<Removal, ObjectError>;
    /// Are objects to be locked as they are written?
    fn locks(&self) -> bool {
        false
    }
    /// Locks an object for as long as one that is written now, where that is asked for.
    fn relock(&self, _key: &Key) -> Result<(), ObjectError> {
        Ok(())
    }
    /// What is wrong with the lock of an object that was written to be locked. A store that was asked for none has nothing to tell.
    fn unlocked(&self, _key: &Key) -> Result<Option<String>, ObjectError> {
        Ok(None)
    }
    /// Where this is, for people.
    fn place(&self) -> String;
    /// Removes what processes that are gone left half-written so long ago; says how many pieces. A store that shows nothing of it has nothing
    /// to do.
    fn sweep_unfinished(&self, _age: std::time::Duration) -> Result<usize, ObjectError> {
        Ok(0)
    }
}

/// Opens the store at a place: a folder that must be there already, or a bucket by its address (`s3://…`, `azure://…`).
pub fn existing(place: &Path) -> Result<Arc<dyn Objects>, ObjectError> {
    Ok(if is_bucket(place) { Arc::new(Bucket::open(place)?) } else { Arc::new(Folder::existing(place)?) })
}

/// The same; a folder is made if it is not there. Buckets are made by whoever owns them.
pub fn make(place: &Path) -> Result<Arc<dyn Objects>, ObjectError> {
    Ok(if is_bucket(place) { Arc::new(Bucket::open(place)?) } else { Arc::new(Folder::open(place)?) })
}

#[cfg(test)]
mod conformance;

#[cfg(test)]
mod tests {
    use super::conformance::{conformance, put};
    use super::*;

    #[test]
    fn p37_stores_never_overwrite_and_show_whole_objects_only() {
        conformance(&Memory::default());
        let dir = tempfile::tempdir().unwrap();
        conformance(&Folder::open(dir.path().join("repository")).unwrap());
    }

    #[test]
    fn what_a_killed_process_left_half_written_is_removed_when_it_is_old() {
        use std::time::Duration;
        let dir = tempfile::tempdir().unwrap();
        let store = Folder::open(dir.path()).unwrap();
        put(&store, "a/one", b"1");
        // One that goes on, and two that somebody began long ago.
        let going = store.create(&Key::new("a/two").unwrap()).unwrap();
        let unfinished = dir.path().join(".unfinished");
        for name in ["7-1-0", "7-1-1"] {
            let file = std::fs::File::create(unfinished.join(name)).unwrap();
            file.set_modified(file.metadata().unwrap().modified().unwrap() - Duration::from_secs(90_000)).unwrap();
        }
        assert_eq!(store.sweep_unfinished(Duration::from_secs(86_400)).unwrap(), 2);
        assert_eq!(std::fs::read_dir(&unfinished).unwrap().count(), 1, "only the one that goes on");
        drop(going);
        assert_eq!(store.list("a/").unwrap().len(), 1);
    }

    #[test]
    fn p21_a_folder_that_goes_away_under_a_write_is_not_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (here, away) = (dir.path().join("here"), dir.path().join("away"));
        let store = Folder::open(&here).unwrap();
        let mut upload = store.create(&Key::new("a/b/one").unwrap()).unwrap();
        upload.write(b"1").unwrap();
        std::fs::rename(&here, &away).unwrap();
        assert!(matches!(upload.commit(), Err(ObjectError::Unreachable(_))));
        assert!(!here.exists(), "an empty repository stands in the place of the one that is away");
        std::fs::rename(&away, &here).unwrap();
        assert_eq!(put(&store, "a/b/one", b"1"), Committed::Created);
    }

    #[test]
    fn p21_a_folder_that_is_not_there_is_unreachable_and_its_objects_are_not_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("repository");
        let store = Folder::open(&path).unwrap();
        put(&store, "a/one", b"1");
        std::fs::rename(&path, dir.path().join("unmounted")).unwrap();
        let key = Key::new("a/one").unwrap();
        for error in [store.read(&key, None).unwrap_err(), store.size(&key).unwrap_err(), store.list("a/").unwrap_err()]
        {
            assert!(matches!(error, ObjectError::Unreachable(_)), "{error}");
        }
        std::fs::create_dir(&path).unwrap();
        assert!(
            matches!(store.read(&key, None), Err(ObjectError::Unreachable(_))),
            "an empty mount point is no repository"
        );
    }

    #[test]
    fn names_that_would_leave_the_repository_are_refused() {
        for bad in ["", "/a", "a//b", "../a", "a/..", "a/.tmp", "a b", "ä"] {
            assert!(Key::new(bad).is_err(), "{bad:?}");
        }
    }
}
