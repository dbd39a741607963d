//! How the archive of the log stands, as its owner wrote it into the store.

use crate::{NodeId, Position, SystemId, Term, Timeline};
use serde::{Deserialize, Serialize};

/// The store's key for it.
pub const ARCHIVE_KEY: &str = "archive";
/// So many problems are told at once.
pub const PROBLEMS_MAX: usize = 16;

/// What the owner of the archive wrote last. A contract between agents of different versions: fields are added, never renamed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveState {
    /// Where the repository lies, as the specification said then.
    pub repository: String,
    /// The repository's own name; empty: it was never reached.
    pub id: String,
    /// The database.
    pub system: Option<SystemId>,
    /// The term whose primary wrote this.
    pub term: Term,
    /// That primary.
    pub node: Option<NodeId>,
    /// The timeline that it wrote on.
    #[serde(default)]
    pub timeline: Option<Timeline>,
    /// Bytes of a segment of the log; 0: not known yet.
    pub segment_size: u64,
    /// The archive holds the log up to here without a hole, as far back as `gaps` says.
    pub archived: Option<Position>,
    /// When that last moved on, milliseconds since 1970 by that host's clock.
    pub archived_ms: Option<u64>,
    /// Content that conflicts or is damaged: one sentence each.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Holes: segments that the primary can not bring, first and last. A replica that has them brings them.
    #[serde(default)]
    pub gaps: Vec<(String, String)>,
    /// While nothing can be archived: what the primary has let go of unarchived, to keep its volume free.
    #[serde(default)]
    pub given_up: Option<(String, String)>,
    /// Nothing can be archived since then (milliseconds since 1970), and why.
    #[serde(default)]
    pub failing: Option<(u64, String)>,
}

/// What `GET /v1/archive` answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveAnswer {
    /// Where the specification says that the repository lies; `None`: nothing is archived.
    pub repository: Option<String>,
    /// What the owner wrote last.
    pub state: Option<ArchiveState>,
}
