//! What a node keeps of the etcd it has seen, so that it also notices after a start that etcd knows less than before.

use super::wire::Pair;
use mainstay_model::Revision;
use mainstay_model::stored_spec::{HISTORY_KEY, RECORD_KEY, SPEC_KEY, STORE_KEYS};
use mainstay_model::vault::ARCHIVE_KEY;
use mainstay_ports::store::Versioned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

/// The key under a cluster's prefix that says which cluster's keys these are. It is no key of the store's users.
pub(crate) const ORIGIN_KEY: &str = "origin";

/// May this key never go back? Those of repositories have their names in them. What else stands there is not this program's: whoever put it there
/// may take it away.
fn has_floor(name: &str) -> bool {
    let of_repository = || name.strip_prefix(ARCHIVE_KEY).is_some_and(|rest| rest.starts_with('-'));
    STORE_KEYS.contains(&name) || of_repository()
}

/// What a store is made anew from is kept with its value: etcd may have lost it, and the agent may have been started since.
const VALUES: [&str; 3] = [RECORD_KEY, SPEC_KEY, HISTORY_KEY];

/// The value of that key. It is written when a cluster is founded, and when `recover` makes its store anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Which store: 0 is the one a cluster begins with, another number was drawn by `recover`.
    pub group: u64,
    /// The incarnation of that store.
    pub incarnation: u64,
    /// The fingerprint of the cluster's authority: two clusters of one name are told apart by it.
    pub authority: String,
}

/// The newest state of a key that this node has seen, or another one of which it has heard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// The revision of its last write.
    pub(crate) revision: u64,
    /// The revision of its first write.
    pub(crate) created: u64,
    /// How often it was written. Revisions of a restored copy can be raised (`--bump-revision`), this can not.
    pub(crate) version: u64,
    /// Its value, where that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<String>,
}

impl Floor {
    pub(crate) fn of(name: &str, pair: &Pair) -> Self {
        let value = VALUES.contains(&name).then(|| String::from_utf8(pair.value.clone()).ok()).flatten();
        Self { revision: pair.mod_revision, created: pair.create_revision, version: pair.version, value }
    }

    /// Can the key have come from this state to that one? It is never removed, and each write raises its revision by one at least. A pair
    /// without value was asked for without.
    pub(crate) fn may_become(&self, now: Option<&Pair>) -> bool {
        now.is_some_and(|now| {
            let value = Some(now.value.as_slice()).filter(|value| !value.is_empty());
            self.reaches(now.mod_revision, now.create_revision, now.version) && self.agrees(now.mod_revision, value)
        })
    }

    /// The same, for a state that another node has seen.
    pub(crate) fn may_become_floor(&self, later: &Self) -> bool {
        self.reaches(later.revision, later.created, later.version)
            && self.agrees(later.revision, later.value.as_ref().map(String::as_bytes))
    }

    /// One revision has one value: an etcd that was brought back by one write, and has got another one since, has the same numbers.
    fn agrees(&self, revision: u64, value: Option<&[u8]>) -> bool {
        let both = self.value.as_ref().map(String::as_bytes).zip(value);
        revision != self.revision || both.is_none_or(|(mine, theirs)| mine == theirs)
    }

    fn reaches(&self, revision: u64, created: u64, version: u64) -> bool {
        let (Some(writes), Some(revisions)) = (version.checked_sub(self.version), revision.checked_sub(self.revision))
        else {
            return false;
        };
        created == self.created && writes <= revisions && (writes == 0) == (revisions == 0)
    }
}

impl std::fmt::Display for Floor {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "revision {}, made at {}, version {}", self.revision, self.created, self.version)
    }
}

/// It is written whole or not at all: this is damage from outside. To begin without it would forget what etcd must not lack.
fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!(
        "{}, where this node keeps what it has seen of etcd, can not be read: {error}. Put the file back. If it is lost, and it is certain that etcd was not \
         restored from an older copy, remove what is left of it: the node then begins with what etcd shows",
        path.display()
    )
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Which store it was.
    pub(crate) origin: Origin,
    /// At which revision that key was.
    pub(crate) origin_revision: u64,
    /// The value of that key, as etcd has it: a newer version may have written more than is read here. `None`: not seen yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) origin_value: Option<String>,
    /// Each key's newest state that this node has seen.
    pub(crate) seen: BTreeMap<String, Floor>,
    /// Why this node does not believe etcd any more. Only a later incarnation ends that: what etcd lacks may be caught up with by
    /// other nodes' writes, and does not show any more then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<String>,
}

impl Kept {
    /// What was kept; `None`: this node has never seen the cluster's keys.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, String> {
        match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| unreadable(path, &error)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(path, &error)),
        }
    }

    /// Notes what was seen of a key. False: etcd can not have come there from what was seen before.
    pub(crate) fn note(&mut self, name: &str, pair: &Pair) -> bool {
        if !has_floor(name) {
            return true;
        }
        match self.seen.get(name) {
            // Late, not wrong.
            Some(floor) if pair.mod_revision < floor.revision => true,
            // Also at the same revision: it has one value.
            Some(floor) if !floor.may_become(Some(pair)) => false,
            Some(floor) if pair.mod_revision == floor.revision && floor.value.is_some() => true,
            _ => {
                self.seen.insert(name.to_owned(), Floor::of(name, pair));
                true
            }
        }
    }

    /// Notes what another node has seen of a key. True: that is newer. `Err`: what this node has seen, if neither state can have come from the other.
    pub(crate) fn hear(&mut self, name: &str, theirs: &Floor) -> Result<bool, Floor> {
        if !has_floor(name) {
            return Ok(false);
        }
        match self.seen.get(name) {
            Some(mine) if theirs.may_become_floor(mine) => return Ok(false),
            Some(mine) if !mine.may_become_floor(theirs) => return Err(mine.clone()),
            _ => drop(self.seen.insert(name.to_owned(), theirs.clone())),
        }
        Ok(true)
    }

    /// Is this the origin that this node knows, at the same revision and with the same value?
    pub(crate) fn is_origin(&self, pair: &Pair) -> bool {
        let same = match &self.origin_value {
            Some(value) => value.as_bytes() == pair.value,
            None => serde_json::from_slice::<Origin>(&pair.value).is_ok_and(|origin| origin == self.origin),
        };
        same && pair.mod_revision == self.origin_revision
    }

    /// Keeps its value.
    pub(crate) fn note_origin(&mut self, pair: &Pair) {
        if self.origin_value.is_none() && self.is_origin(pair) {
            self.origin_value = String::from_utf8(pair.value.clone()).ok();
        }
    }

    /// Does an answer show this key as this node has seen it, or newer?
    pub(crate) fn allows(&self, name: &str, now: Option<&Pair>) -> bool {
        self.seen.get(name).is_none_or(|floor| floor.may_become(now))
    }

    /// The values that are kept.
    pub(crate) fn values(&self) -> impl Iterator<Item = (String, Versioned)> {
        self.seen.iter().filter_map(|(name, floor)| {
            let value = floor.value.clone()?.into_bytes();
            Some((name.clone(), Versioned { revision: Revision(floor.revision), value }))
        })
    }

    /// Writes it, whole or not at all.
    pub(crate) fn save(&self, path: &Path) -> std::io::Result<()> {
        let new = path.with_extension("json.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}
