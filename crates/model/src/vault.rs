//! How the archive of the log and the backups stand, as whoever makes them wrote it into the store.

use crate::{Lsn, NodeId, Position, SystemId, Term, Timeline};
use serde::{Deserialize, Serialize};

/// The store's key for it.
pub const ARCHIVE_KEY: &str = "archive";
/// The store's key for how far a command of the operator's own has brought the log: an [`ArchiveState`] without a repository.
pub const COMMAND_KEY: &str = "archive-command";
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
    /// What the server runs for each segment, as the specification says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_command: Option<String>,
    /// How far that has come, as the primary wrote last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<ArchiveState>,
}

/// The store's key for backups: the lock of the one that runs, and how the last ones went.
pub const BACKUP_KEY: &str = "backup";

/// Asks a node to make a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupWish {
    /// Only what differs from the newest full backup; a full one, if there is none.
    pub incremental: bool,
    /// No backup: a restore drill, which proves that one can be restored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drill: bool,
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
    /// The last restore drill, whatever it showed.
    #[serde(default)]
    pub drill: Option<DrillDone>,
    /// The last one whose agent ended before it was done, if none was held to its end since: it showed nothing, and what was due is due still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill_cut: Option<DrillDone>,
    /// When the last one ended that showed what it should, milliseconds since 1970.
    #[serde(default)]
    pub drill_passed_ms: Option<u64>,
}

/// A restore drill: a moment of the past was recovered in a directory of its own, looked at, and removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillDone {
    /// Which.
    pub token: u64,
    /// Who did it; `None`: it is not known.
    pub node: Option<NodeId>,
    /// Who asked.
    #[serde(default)]
    pub by: String,
    /// Milliseconds since 1970 by that host's clock.
    pub begun_ms: u64,
    /// See `begun_ms`.
    pub ended_ms: u64,
    /// From this backup.
    #[serde(default)]
    pub backup: String,
    /// The moment, microseconds since 1970; `None`: the end of the backup.
    #[serde(default)]
    pub asked: Option<i64>,
    /// The log was recovered up to here.
    #[serde(default)]
    pub reached: Option<Lsn>,
    /// Bytes written.
    #[serde(default)]
    pub bytes: u64,
    /// How long writing the files took, milliseconds.
    #[serde(default)]
    pub write_ms: u64,
    /// How long the recovery took.
    #[serde(default)]
    pub recover_ms: u64,
    /// What was looked at, one sentence each.
    #[serde(default)]
    pub checked: Vec<String>,
    /// What is wrong; `None`: nothing.
    #[serde(default)]
    pub problem: Option<String>,
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
    /// Is it a restore drill, and no backup?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drill: bool,
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

/// Which moment to go back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreTarget {
    /// All that the archive holds.
    Latest,
    /// The end of the newest backup.
    Immediate,
    /// The last commit up to this time, microseconds since 1970.
    Time(i64),
    /// Up to this position, inclusive.
    Position(Lsn),
    /// A restore point that was given a name.
    Name(String),
    /// Up to this transaction, inclusive.
    Transaction(u32),
}

/// The longest name of a restore point that PostgreSQL takes, bytes.
const POINT_BYTES_MAX: usize = 63;

impl RestoreTarget {
    /// Can a server be told so? It takes an empty name as no target at all, and recovers to the end; a name that is too long stops it only once
    /// everything is written.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        match self {
            RestoreTarget::Name(name) => check_point(name),
            _ => Ok(()),
        }
    }
}

/// Can a restore point have this name?
///
/// # Errors
/// Why not.
pub fn check_point(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("the name of a restore point is not empty".to_owned());
    }
    if name.len() > POINT_BYTES_MAX {
        return Err(format!(
            "the name of a restore point has at most {POINT_BYTES_MAX} bytes, and this has {}",
            name.len()
        ));
    }
    if name.chars().any(char::is_control) {
        return Err(format!("{name:?} holds control characters: no restore point is named so"));
    }
    Ok(())
}

/// A restore of the whole cluster in place, as it is wanted of the node that is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreWish {
    /// The moment.
    pub target: RestoreTarget,
    /// Along the path of this timeline; `None`: the newest that is archived.
    #[serde(default)]
    pub timeline: Option<Timeline>,
    /// From the backup of this label; `None`: from the newest that fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// The open segment of the log was archived after clients were put out: what is archived is all there is.
    #[serde(default)]
    pub complete: bool,
    /// How long the recovery may take, seconds.
    pub wait_s: u64,
}

/// What `POST /v1/restore` asks for. Each step is asked for by whoever carries the restore out; one that nobody asks about any more is dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RestoreAsk {
    /// Can it be had, from what, and is there room? Changes nothing.
    Plan(RestoreWish),
    /// Make the copy beside the data.
    Prepare(RestoreWish),
    /// Make the copy that lies ready the cluster's data: everything behind the moment is void then.
    Commit {
        /// Which.
        token: u64,
        /// Who asks.
        by: String,
    },
    /// Let it be; the copy is removed.
    Drop {
        /// Which.
        token: u64,
    },
}

/// What a restore in place comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// The backup.
    pub backup: String,
    /// Along the path of this timeline.
    pub timeline: Timeline,
    /// Bytes of the files.
    pub files: u64,
    /// Bytes of the log.
    pub log: u64,
    /// The log without a hole ends here.
    pub reaches: Lsn,
    /// Bytes that are free on the data's volume.
    pub free: Option<u64>,
    /// Bytes that are needed there.
    pub needs: u64,
    /// Why other backups could not be considered.
    #[serde(default)]
    pub unreadable: Vec<String>,
}

/// How far a restore in place is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestorePhase {
    /// The repository is looked at.
    #[default]
    Planning,
    /// It could be had.
    Planned,
    /// The files are written.
    Writing,
    /// A server recovers them.
    Recovering,
    /// The copy lies ready.
    Ready,
    /// It came to nothing; nothing of the cluster was changed.
    Failed,
}

/// What `GET /v1/restore` answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreState {
    /// Which: a random number.
    pub token: u64,
    /// How far it is.
    pub phase: RestorePhase,
    /// What it comes from, once known.
    pub plan: Option<RestorePlan>,
    /// Bytes to write.
    pub total: u64,
    /// Bytes written.
    pub done: u64,
    /// The moment, once a server has recovered up to there.
    pub moment: Option<Position>,
    /// When the last commit was made that the copy holds, microseconds since 1970.
    #[serde(default)]
    pub last_commit: Option<i64>,
    /// Why it came to nothing.
    pub failure: Option<String>,
    /// It can not be had; else: it can perhaps be had later.
    #[serde(default)]
    pub impossible: bool,
}
