//! How the archive of the log and the backups stand, as whoever makes them wrote it into the store.

use crate::{Lsn, NodeId, Position, RepositoryName, SystemId, Term, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The store's key for that of the repository `main`.
pub const ARCHIVE_KEY: &str = "archive";
/// The store's key for how far a command of the operator's own has brought the log: an [`ArchiveState`] without a repository.
pub const COMMAND_KEY: &str = "archived-by-command";

/// The store's key for that of this repository. In an etcd a key of a cluster has no `/`.
#[must_use]
pub fn archive_key(name: &RepositoryName) -> String {
    if *name == RepositoryName::main() { ARCHIVE_KEY.to_owned() } else { format!("{ARCHIVE_KEY}-{name}") }
}

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
    /// All repositories in the order of preference, where there are several; what stands above is the first one's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<RepositoryAnswer>,
}

/// How one of several repositories stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryAnswer {
    /// By what it is called.
    pub name: RepositoryName,
    /// Where the specification says that it lies.
    pub place: String,
    /// The servers keep no log for it.
    #[serde(default)]
    pub optional: bool,
    /// What the owner of the archive wrote last.
    pub state: Option<ArchiveState>,
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
    /// In which of several repositories; `None`: the first one, and of drills whose turn it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepositoryName>,
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
    /// The same of each repository, where there are several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub each: BTreeMap<RepositoryName, BackupsOf>,
}

/// How backups stand in one repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupsOf {
    /// The last one that counts.
    pub last: Option<BackupMade>,
    /// The last full one that counts.
    pub last_full: Option<BackupMade>,
    /// The last one that failed.
    #[serde(default)]
    pub failed: Option<BackupFailed>,
    /// The last restore drill.
    #[serde(default)]
    pub drill: Option<DrillDone>,
}

/// So many repositories are remembered, those that are named no more included.
const EACH_MAX: usize = 16;

impl BackupState {
    /// How backups stand in one repository. `id`: its own name, where it is known; `alone`: there is no other one, and there never was.
    #[must_use]
    pub fn of(&self, name: &RepositoryName, id: Option<&str>, alone: bool) -> BackupsOf {
        if alone && self.each.is_empty() {
            let (last, last_full) = (self.last.clone(), self.last_full.clone());
            return BackupsOf { last, last_full, failed: self.failed.clone(), drill: self.drill.clone() };
        }
        let own = self.each.get(name).cloned().unwrap_or_default();
        // What lies in another repository than the one that has this name now can not be restored from it; what lies in this one can, whatever it was
        // called then.
        let there = |made: &&BackupMade| id.is_some_and(|id| made.repository == id);
        let newest = |of: fn(&BackupsOf) -> &Option<BackupMade>, last: &Option<BackupMade>| {
            let all = self.each.values().filter_map(|each| of(each).as_ref()).chain(last);
            all.filter(there).max_by_key(|made| made.ended_ms).cloned()
        };
        let ours = |to: &Option<RepositoryName>| to.as_ref().map_or(*name == RepositoryName::main(), |to| to == name);
        BackupsOf {
            last: newest(|of| &of.last, &self.last),
            last_full: newest(|of| &of.last_full, &self.last_full),
            failed: own.failed.or_else(|| self.failed.clone().filter(|failed| ours(&failed.to))),
            drill: own.drill.or_else(|| self.drill.clone().filter(|drill| ours(&drill.repository))),
        }
    }

    /// Changes what stands of one of several repositories; first what stood of the only one gets its place among them.
    pub fn note(&mut self, name: &RepositoryName, change: impl FnOnce(&mut BackupsOf)) {
        if self.each.is_empty() {
            let (last, last_full) = (self.last.clone(), self.last_full.clone());
            let was = BackupsOf { last, last_full, failed: self.failed.clone(), drill: self.drill.clone() };
            if was != BackupsOf::default() {
                self.each.insert(RepositoryName::main(), was);
            }
        }
        change(self.each.entry(name.clone()).or_default());
        while self.each.len() > EACH_MAX {
            let ended = |of: &BackupsOf| of.last.as_ref().map(|made| made.ended_ms);
            let others = self.each.iter().filter(|(other, _)| *other != name);
            let Some(oldest) = others.min_by_key(|(_, of)| ended(of)).map(|(other, _)| other.clone()) else { return };
            self.each.remove(&oldest);
        }
    }
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
    /// In which of several repositories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepositoryName>,
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
    /// In which of several repositories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<RepositoryName>,
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
    /// By its name, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<RepositoryName>,
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
    /// In which of several repositories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<RepositoryName>,
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
    /// From this of several repositories; `None`: the first one that can be reached and has the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepositoryName>,
    /// The open segment of the log was archived after clients were put out: what is archived is all there is.
    #[serde(default)]
    pub complete: bool,
    /// What is archived is all there is in a repository whose log reaches so far; `None`: in the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_to: Option<Lsn>,
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
    /// From this of several repositories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepositoryName>,
    /// Why others were passed over, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<String>,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn made(repository: &str, ended_ms: u64) -> BackupMade {
        serde_json::from_value(serde_json::json!({
            "token": ended_ms, "label": "L", "system": 1, "repository": repository, "node": "db1", "incremental": false,
            "start": { "timeline": 1, "lsn": "0/1" }, "stop": { "timeline": 1, "lsn": "0/2" }, "begun_ms": 1, "ended_ms": ended_ms,
            "bytes": 0, "stored": 0, "corrupt": 0,
        }))
        .unwrap()
    }

    #[test]
    fn each_repository_has_backups_of_its_own_and_what_was_there_before_stays_the_first_ones() {
        let (main, far) = (RepositoryName::main(), RepositoryName::new("far").unwrap());
        assert_eq!((archive_key(&main).as_str(), archive_key(&far).as_str()), ("archive", "archive-far"));
        let mut state =
            BackupState { last: Some(made("one", 5)), last_full: Some(made("one", 5)), ..BackupState::default() };
        assert_eq!(state.of(&main, None, true).last.unwrap().ended_ms, 5, "as it was before there could be several");
        assert_eq!(state.of(&main, Some("one"), false).last.unwrap().ended_ms, 5);
        assert_eq!(state.of(&far, Some("two"), false), BackupsOf::default());
        // A backup in the second one takes nothing away from the first.
        state.note(&far, |of| of.last = Some(made("two", 9)));
        state.last = Some(made("two", 9));
        assert_eq!(state.of(&main, Some("one"), false).last.unwrap().ended_ms, 5);
        assert_eq!(state.of(&far, Some("two"), false).last.unwrap().ended_ms, 9);
        assert_eq!(state.of(&main, Some("one"), true).last.unwrap().ended_ms, 5, "the second one was taken away");
        assert_eq!(state.of(&far, Some("three"), false).last, None, "another repository stands there now");
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<BackupState>(&text).unwrap(), state);
        let near = RepositoryName::new("near").unwrap();
        assert_eq!(state.of(&near, Some("one"), false).last.unwrap().ended_ms, 5, "it was called otherwise");
        let mut named = BackupState::default();
        named.note(&near, |of| of.last = Some(made("one", 5)));
        assert!(!named.each.contains_key(&main), "nothing was there before");
        for number in 0..40 {
            let name = RepositoryName::new(format!("r{number}")).unwrap();
            state.note(&name, |of| of.last = Some(made("x", number)));
            assert!(state.each.len() <= EACH_MAX && state.each.contains_key(&name));
        }
    }

    #[test]
    fn what_older_agents_do_not_know_is_written_only_where_there_are_several() {
        let wish = BackupWish { incremental: true, by: "ann".to_owned(), ..BackupWish::default() };
        assert_eq!(serde_json::to_string(&wish).unwrap(), r#"{"incremental":true,"by":"ann"}"#);
        let text =
            serde_json::to_string(&BackupState { last: Some(made("one", 5)), ..BackupState::default() }).unwrap();
        assert!(!text.contains("each") && !text.contains("\"to\""), "{text}");
    }
}
