//! What the operator wants now, as the store keeps it: the file seeds it, each change is a new generation.

use crate::spec::Spec;
use serde::{Deserialize, Serialize};

/// The store's key for it.
pub const SPEC_KEY: &str = "spec";
/// The key of the record: the one key of the take-over protocol.
pub const RECORD_KEY: &str = "record";
/// The key of the history's list of events.
pub const HISTORY_KEY: &str = "history";

/// Every key that a cluster has in its store, but for those of repositories other than `main`: [`crate::vault::archive_key`].
pub const STORE_KEYS: [&str; 9] = [
    RECORD_KEY,
    SPEC_KEY,
    HISTORY_KEY,
    RUNBOOK_KEY,
    crate::vault::ARCHIVE_KEY,
    crate::vault::COMMAND_KEY,
    crate::vault::BACKUP_KEY,
    crate::drill::DRILLS_KEY,
    crate::outcome::RUNS_KEY,
];
/// How many earlier generations' fingerprints are kept, to tell an older file from an edited one.
pub const ANCESTORS_MAX: usize = 64;

/// One generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredSpec {
    /// Rises by one with each change. 0 is a file that no store has taken up yet.
    pub generation: u64,
    /// When it was made, milliseconds since 1970 by the wall clock of the agent that wrote it.
    pub wall_ms: u64,
    /// Who asked for it.
    pub by: String,
    /// What was changed, in words.
    pub change: String,
    /// The whole specification.
    pub spec: Spec,
    /// Set while automatic take-over, restart and rejoin are switched off.
    #[serde(default)]
    pub paused: Option<Paused>,
    /// Earlier generations, oldest first: number and [`fingerprint`].
    #[serde(default)]
    pub ancestors: Vec<(u64, u64)>,
}

/// The store's key of what the last runbook was made from.
pub const RUNBOOK_KEY: &str = "runbook";

/// What the last runbook was made from. `null` in the store: nobody keeps one. Fields are added, never renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunbookMade {
    /// The generation then.
    pub generation: u64,
    /// When, milliseconds since 1970 by the clock of the agent that was told.
    pub wall_ms: u64,
    /// Who made it.
    pub by: String,
    /// The whole specification then: what differs now is what the copy says wrongly.
    pub spec: Spec,
}

/// Who paused the cluster, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// Who.
    pub by: String,
    /// Since when, milliseconds since 1970.
    pub wall_ms: u64,
    /// Why, in the operator's words; may be empty.
    pub note: String,
}

impl StoredSpec {
    /// What a node knows before any store: its file.
    #[must_use]
    pub fn of_file(spec: Spec) -> Self {
        Self {
            generation: 0,
            wall_ms: 0,
            by: "file".to_owned(),
            change: String::new(),
            spec,
            paused: None,
            ancestors: Vec::new(),
        }
    }

    /// The generation that follows, with this specification.
    #[must_use]
    pub fn next(&self, spec: Spec, by: impl Into<String>, change: impl Into<String>, wall_ms: u64) -> Self {
        let mut ancestors = self.ancestors.clone();
        ancestors.push((self.generation, fingerprint(&self.spec)));
        let surplus = ancestors.len().saturating_sub(ANCESTORS_MAX);
        ancestors.drain(..surplus);
        let paused = self.paused.clone();
        Self { generation: self.generation + 1, wall_ms, by: by.into(), change: change.into(), spec, paused, ancestors }
    }

    /// How a node's file relates to this generation.
    #[must_use]
    pub fn compare(&self, file: &Spec) -> FileState {
        let file = file.with_store_of(&self.spec);
        if file == self.spec {
            return FileState::Same;
        }
        let print = fingerprint(&file);
        let older = self.ancestors.iter().rev().find(|(_, known)| *known == print);
        older.map_or(FileState::Differs, |(generation, _)| FileState::Older(*generation))
    }
}

/// How a node's file relates to the generation in force. Neither difference stops a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileState {
    /// It says the same.
    Same,
    /// It is what this earlier generation said.
    Older(u64),
    /// It says what no known generation said: an edit that was never applied.
    Differs,
}

/// A number that differs, in practice, when two specifications differ (FNV-1a over their text).
#[must_use]
pub fn fingerprint(spec: &Spec) -> u64 {
    let text = crate::config::render(spec);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
