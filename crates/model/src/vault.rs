//! How the archive of the log and the backups stand, as whoever makes them wrote it into the store.

use crate::{Lsn, NodeId, Position, SystemId, Term, Timeline};
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
    /// How backups stand.
    #[serde(default)]
    pub backup: Option<BackupState>,
}

/// The store's key for backups: the lock of the one that runs, and how the last ones went.
pub const BACKUP_KEY: &str = "backup";

/// Asks a node to make a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupWish {
    /// Only what differs from the newest full backup; a full one, if there is none.
    pub incremental: bool,
    /// Who asks, for the record.
    #[serde(default)]
    pub by: String,
}

/// What stands in the store of backups. A contract between agents of different versions: fields are added, never renamed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupState {
    /// The one that runs: nobody else begins one.
    pub running: Option<BackupRunning>,
    /// The last one that counts.
    pub last: Option<BackupMade>,
    /// The last full one that counts.
    pub last_full: Option<BackupMade>,
    /// The last one that failed.
    pub failed: Option<BackupFailed>,
}

/// A backup that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRunning {
    /// Which: a random number.
    pub token: u64,
    /// Who makes it.
    pub node: NodeId,
    /// In which term it began.
    pub term: Term,
    /// Is it one on top of a full one?
    pub incremental: bool,
    /// Who asked.
    pub by: String,
    /// When it began, milliseconds since 1970 by its host's clock.
    pub begun_ms: u64,
    /// Bytes to read, once known.
    pub total: u64,
    /// Bytes read.
    pub done: u64,
    /// Rises with every sign of life.
    pub beat: u64,
}

/// A backup that counts: all of its log was read back from the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupMade {
    /// Which.
    pub token: u64,
    /// Its name in the repository.
    pub label: String,
    /// The database.
    pub system: SystemId,
    /// In which repository, by its id.
    pub repository: String,
    /// Who made it.
    pub node: NodeId,
    /// Is it one on top of a full one?
    pub incremental: bool,
    /// Its log is needed from here.
    pub start: Position,
    /// Up to here.
    pub stop: Position,
    /// Milliseconds since 1970 by its host's clock.
    pub begun_ms: u64,
    /// See `begun_ms`.
    pub ended_ms: u64,
    /// Bytes of the database's files.
    pub bytes: u64,
    /// Bytes that it added to the repository.
    pub stored: u64,
    /// Blocks whose checksum does not hold on the server.
    pub corrupt: u64,
    /// Backups that the retention removed afterwards.
    #[serde(default)]
    pub removed: Vec<String>,
    /// What went wrong after it was whole: the retention, say.
    #[serde(default)]
    pub remark: Option<String>,
}

/// A backup that does not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupFailed {
    /// Which.
    pub token: u64,
    /// Whose.
    pub node: NodeId,
    /// Was it one on top of a full one?
    pub incremental: bool,
    /// Milliseconds since 1970 by that host's clock.
    pub at_ms: u64,
    /// Why.
    pub why: String,
}

/// A backup was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupBegun {
    /// Which.
    pub token: u64,
    /// Who makes it.
    pub node: NodeId,
}

/// The primary has ended the segment that was open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentEnded {
    /// What was committed before lies before this.
    pub end: Lsn,
    /// On this timeline; `None`: an agent of an earlier version.
    #[serde(default)]
    pub timeline: Option<Timeline>,
}
