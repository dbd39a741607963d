//! The directory as a whole: what it is, moved aside, and rebuilt into a new store when the majority of the old one is lost.
//!
//! Nothing is ever deleted here: what is replaced is moved aside as `raft.old-N`. Each step leaves something from which the same call
//! goes on:
//! ```text
//! raft.new is written and synced  →  raft becomes raft.old-N  →  raft.new becomes raft
//! ```
//! A `raft.new` without a `raft` is whole, for it was synced before `raft` was moved; beside a `raft` it is begun again.

use crate::journal::{Contents, Journal, OpenError, Sync};
use crate::mirror::initial_snapshot;
use crate::raft_store::random;
use crate::state::{STATE_BYTES_MAX, State, raft_id};
use mainstay_model::{NodeId, Revision};
use mainstay_ports::store::Versioned;
use raft::eraftpb::EntryType;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directories that were moved aside, at most; then somebody must look at them.
const OLD_MAX: u32 = 32;
/// The rebuilt store's log begins this far above the old one's: above every revision that another old member may have seen.
const INDEX_STEP: u64 = 1_000_000_000;

/// Why a directory could not be looked at, moved or rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The journal can not be read.
    #[error(
        "the store's journal in {dir}: {why}; nothing was changed. If it can not be mended: stop this agent, move that directory aside, run \
         `mainstay node replace NAME` with this node's name (another node carries it out), and start the agent again"
    )]
    Journal {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The operating system refused.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it answered.
        source: io::Error,
    },
    /// Too many old directories.
    #[error("{0} old stores are kept beside {dir}: move the directories raft.old-* away that nobody needs", dir = .1.display())]
    Full(u32, PathBuf),
    /// The caller did not like the state.
    #[error("{0}")]
    Refused(String),
}

/// What a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// There is nothing in it.
    Empty,
    /// It waits to be added to this store.
    Joining {
        /// Which.
        group: u64,
    },
    /// It is, or was, a member of this store.
    Member {
        /// Which.
        group: u64,
    },
}

/// What came of a rebuilding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// Where the old directory is; `None`: it had been rebuilt before.
    pub old: Option<PathBuf>,
}

type Values = BTreeMap<String, Vec<u8>>;

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RebuildError {
    let path = path.to_owned();
    move |source| RebuildError::Io { what, path, source }
}

fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    dir.with_file_name(format!("{name}.{suffix}"))
}

fn sync_parent(dir: &Path) -> Result<(), RebuildError> {
    let parent = dir.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed("sync", parent))
}

fn sync() -> Sync {
    Arc::new(File::sync_data)
}

fn is_empty(dir: &Path) -> Result<bool, RebuildError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(failed("list", dir)(error)),
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(!names.into_iter().any(|name| name.starts_with("journal-") && !name.ends_with(".new")))
}

fn open(dir: &Path) -> Result<(Journal, Contents), RebuildError> {
    let wrong = |error: OpenError| RebuildError::Journal { dir: dir.to_owned(), why: error.to_string() };
    Journal::open(dir, sync(), Contents::default).map_err(wrong)
}

/// Finishes a rebuilding that was interrupted between its last two steps.
fn resume(dir: &Path) -> Result<(), RebuildError> {
    let new = beside(dir, "new");
    if is_empty(dir)? && !is_empty(&new)? {
        // An empty directory may have been made meanwhile; a lock file is all that it holds.
        let _ = std::fs::remove_file(dir.join("lock"));
        let _ = std::fs::remove_dir(dir);
        std::fs::rename(&new, dir).map_err(failed("rename", &new))?;
        sync_parent(dir)?;
    }
    Ok(())
}

/// What this directory is. No member may run on it.
///
/// # Errors
/// When it can not be read.
pub fn look(dir: &Path) -> Result<Look, RebuildError> {
    resume(dir)?;
    if is_empty(dir)? {
        return Ok(Look::Empty);
    }
    let (_, contents) = open(dir)?;
    let group = contents.group;
    Ok(if contents.is_nobodys() { Look::Joining { group } } else { Look::Member { group } })
}

/// Moves the directory aside, so that the next start finds none. Returns where it is now; `None`: there was none.
///
/// # Errors
/// When it can not be moved, or a member runs on it.
pub fn set_aside(dir: &Path) -> Result<Option<PathBuf>, RebuildError> {
    resume(dir)?;
    if is_empty(dir)? {
        return Ok(None);
    }
    let old = old_place(dir)?;
    std::fs::rename(dir, &old).map_err(failed("rename", dir))?;
    sync_parent(dir)?;
    Ok(Some(old))
}

fn old_place(dir: &Path) -> Result<PathBuf, RebuildError> {
    let free = (1..=OLD_MAX).map(|number| beside(dir, &format!("old-{number}"))).find(|path| !path.exists());
    free.ok_or_else(|| RebuildError::Full(OLD_MAX, dir.to_owned()))
}

/// Makes a new store of what this member knows, with this member as the only one. `change` gets the present values and returns those
/// that are to be written. `group` is the new store's number, drawn by the caller, kept by it until this has returned: a call for a
/// store that was rebuilt already does nothing. No member may run on the directory.
///
/// # Errors
/// When something can not be read or written: the same call goes on later.
pub fn rebuild(
    dir: &Path,
    me: &NodeId,
    group: u64,
    change: impl FnOnce(&BTreeMap<String, Versioned>) -> Result<Values, String>,
) -> Result<Rebuilt, RebuildError> {
    resume(dir)?;
    let (held, old) = open(dir)?;
    if old.group == group {
        return Ok(Rebuilt { old: None });
    }
    let contents = next_contents(dir, &old, me, group, change)?;
    let new = beside(dir, "new");
    if new.exists() {
        std::fs::remove_dir_all(&new).map_err(failed("remove", &new))?;
    }
    let written = Journal::open(&new, sync(), || contents);
    written.map_err(|error| RebuildError::Journal { dir: new.clone(), why: error.to_string() })?;
    sync_parent(dir)?;
    let place = old_place(dir)?;
    drop(held);
    std::fs::rename(dir, &place).map_err(failed("rename", dir))?;
    sync_parent(dir)?;
    resume(dir)?;
    Ok(Rebuilt { old: Some(place) })
}

/// The first contents of the rebuilt store.
fn next_contents(
    dir: &Path,
    old: &Contents,
    me: &NodeId,
    group: u64,
    change: impl FnOnce(&BTreeMap<String, Versioned>) -> Result<Values, String>,
) -> Result<Contents, RebuildError> {
    let wrong = |why: String| RebuildError::Journal { dir: dir.to_owned(), why };
    if old.is_nobodys() {
        return Err(wrong("this node was never a member of the store and knows nothing of it".to_owned()));
    }
    let known = known_state(old).map_err(wrong)?;
    let last = old.trimmed.0 + old.entries.len() as u64;
    let index = last.max(known.applied) + INDEX_STEP;
    let changed = change(&known.values).map_err(RebuildError::Refused)?;
    let mut state = State::initial(index, std::slice::from_ref(me));
    let copy = random().map_err(wrong)?;
    state.copies.insert(raft_id(me), copy);
    let mut values = known.values;
    for (key, value) in changed {
        values.insert(key, Versioned { revision: Revision(index), value });
    }
    state.set_values(values);
    if state.encode().len() > STATE_BYTES_MAX {
        return Err(RebuildError::Refused("the changed values are too large".to_owned()));
    }
    let term = old.hard.term.max(old.snapshot.get_metadata().term) + 1;
    let mut snapshot = initial_snapshot(vec![raft_id(me)], state.encode());
    let meta = snapshot.mut_metadata();
    (meta.index, meta.term) = (index, term);
    let mut contents =
        Contents { copy, group, owner: me.to_string(), trimmed: (index, term), snapshot, ..Contents::default() };
    (contents.hard.term, contents.hard.commit) = (term, index);
    Ok(contents)
}

/// The state with every entry of the log: what this member holds may have been acknowledged by a leader that is lost, and what was
/// not acknowledged to anybody may have happened.
fn known_state(old: &Contents) -> Result<State, String> {
    let mut state = match &old.snapshot.data {
        data if data.is_empty() => State::default(),
        data => State::decode(data).map_err(|error| format!("its snapshot: {error}"))?,
    };
    let from = old.snapshot.get_metadata().index;
    for entry in old.entries.iter().filter(|entry| entry.index > from) {
        if entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty() {
            state.apply(entry.index, &entry.data);
        }
        state.applied = entry.index;
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::journal::Records;
    use raft::eraftpb::Entry;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    /// A directory of one of three members, with two values.
    fn member(dir: &Path) {
        let voters = ["a", "b", "c"].map(node);
        let state = State::initial(1, &voters);
        let ids = voters.iter().map(raft_id).collect();
        let first = Contents {
            copy: 7,
            owner: "a".to_owned(),
            trimmed: (1, 1),
            snapshot: initial_snapshot(ids, state.encode()),
            ..Contents::default()
        };
        let (mut journal, _) = Journal::open(dir, sync(), || first).unwrap();
        let mut records = Records::default();
        for (index, key) in [(2, "record"), (3, "spec")] {
            let data = Command { key: key.into(), expected: None, value: b"old".to_vec() }.encode();
            records.entry(&Entry { index, term: 5, data: data.into(), ..Entry::default() });
        }
        journal.append(&records).unwrap();
    }

    fn change(values: &BTreeMap<String, Versioned>) -> Result<Values, String> {
        assert_eq!(values["record"].value, b"old");
        Ok(BTreeMap::from([("record".to_owned(), b"new".to_vec())]))
    }

    fn check(dir: &Path, group: u64) {
        assert_eq!(look(dir).unwrap(), Look::Member { group });
        let (_, contents) = open(dir).unwrap();
        let state = State::decode(&contents.snapshot.data).unwrap();
        assert_eq!(state.values["record"].value, b"new");
        assert_eq!(state.values["spec"].value, b"old");
        assert!(state.values["record"].revision > state.values["spec"].revision);
        assert_eq!(state.members.into_values().collect::<Vec<_>>(), [node("a")]);
        assert_ne!(contents.copy, 7, "a new directory has a number of its own");
    }

    #[test]
    fn a_rebuilt_store_keeps_the_values_and_has_one_member() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("raft");
        member(&dir);
        let rebuilt = rebuild(&dir, &node("a"), 99, change).unwrap();
        assert_eq!(rebuilt.old, Some(place.path().join("raft.old-1")));
        assert_eq!(look(&place.path().join("raft.old-1")).unwrap(), Look::Member { group: 0 });
        check(&dir, 99);
        let again = rebuild(&dir, &node("a"), 99, |_| panic!("it is done")).unwrap();
        assert_eq!(again.old, None);
    }

    #[test]
    fn an_interruption_at_any_step_leaves_something_that_goes_on() {
        // Before the first rename: a raft.new, whole or not, beside the old store.
        for half in [true, false] {
            let place = tempfile::tempdir().unwrap();
            let dir = place.path().join("raft");
            member(&dir);
            let new = place.path().join("raft.new");
            if half {
                std::fs::create_dir(&new).unwrap();
                std::fs::write(new.join("journal-00000000000000000001.new"), b"half").unwrap();
            } else {
                member(&new);
            }
            assert_eq!(look(&dir).unwrap(), Look::Member { group: 0 }, "the old store counts");
            rebuild(&dir, &node("a"), 99, change).unwrap();
            check(&dir, 99);
        }
        // Between the renames: as a whole one does it, then its last step undone. An agent may have made an empty directory.
        for empty_made in [true, false] {
            let place = tempfile::tempdir().unwrap();
            let dir = place.path().join("raft");
            member(&dir);
            rebuild(&dir, &node("a"), 99, change).unwrap();
            std::fs::rename(&dir, place.path().join("raft.new")).unwrap();
            if empty_made {
                std::fs::create_dir(&dir).unwrap();
                std::fs::write(dir.join("lock"), b"").unwrap();
            }
            check(&dir, 99);
            assert!(!place.path().join("raft.new").exists());
        }
    }

    #[test]
    fn what_is_moved_aside_is_kept_and_bounded() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("raft");
        assert_eq!(set_aside(&dir).unwrap(), None);
        for number in 1..=OLD_MAX {
            member(&dir);
            assert_eq!(set_aside(&dir).unwrap(), Some(place.path().join(format!("raft.old-{number}"))));
            assert_eq!(look(&dir).unwrap(), Look::Empty);
        }
        member(&dir);
        assert!(matches!(set_aside(&dir), Err(RebuildError::Full(..))));
        assert_eq!(look(&dir).unwrap(), Look::Member { group: 0 }, "what can not be moved stays");
    }

    #[test]
    fn a_node_that_never_was_a_member_has_nothing_to_rebuild_from() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("raft");
        drop(Journal::open(&dir, sync(), || Contents { copy: 1, ..Contents::default() }).unwrap());
        assert_eq!(look(&dir).unwrap(), Look::Joining { group: 0 });
        assert!(matches!(rebuild(&dir, &node("a"), 9, change), Err(RebuildError::Journal { .. })));
    }
}
