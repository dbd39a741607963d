//! What a node keeps of the etcd it has seen, so that it also notices after a start that etcd knows less than before.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

/// The key under a cluster's prefix that says which cluster's keys these are. It is no key of the store's users.
pub(crate) const ORIGIN_KEY: &str = "origin";

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

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Which store it was.
    pub(crate) origin: Origin,
    /// At which revision that key was.
    pub(crate) origin_revision: u64,
    /// The highest revision of each key that this node has seen.
    pub(crate) seen: BTreeMap<String, u64>,
}

impl Kept {
    /// What was kept; `None`: this node has never seen the cluster's keys.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, String> {
        match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| format!("{}: {error}", path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
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
