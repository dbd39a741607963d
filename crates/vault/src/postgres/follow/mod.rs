//! A copy that is fed from a repository alone: a standby of a cluster to which nothing else leads (docs/adr/0051).
//!
//! `step.rs` decides what comes next, `feed.rs` brings it, `server.rs` starts the server and asks it, `state.rs` says how it stands. Here: what
//! marks a directory as such a copy. Nothing is ever written to the repository.

mod feed;
mod server;
mod state;
mod step;

pub use feed::{Fed, Feed, Seen};
pub use server::{Contact, Control, Listen, Look, Promoted, Server, beyond, control, promote, settle};
pub use state::{Promotes, State};

use crate::postgres::delta::is_begun;
use crate::postgres::log::{LogFile, SegmentSize, parse_history};
use crate::postgres::place::Place;
use crate::postgres::restore::{Plan, Target, plan_from};
use crate::postgres::scratch::{at_least, placeholder};
use crate::repository::{Repository, VaultError};
use mainstay_model::{Lineage, Lsn, Position, SystemId, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Says that a directory is such a copy, and what it is fed from.
pub const MARK: &str = "mainstay_follow.json";
/// How it stands.
pub(crate) const STATE: &str = "mainstay_follow_state.json";
/// In the folder of the log: which file the server took last.
pub(crate) const TAKEN: &str = "taken";
/// The server's own: it is a standby. The server takes it away when it is promoted.
pub(crate) const SIGNAL: &str = "standby.signal";
/// Nothing larger is a mark.
const MARK_MAX: u64 = 1 << 20;
/// So many timelines are tried for a beginning, the newest first.
const TIMELINES_MOST: usize = 16;

/// What stands in the mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// Of which database.
    pub system: SystemId,
    /// The repository that it comes from.
    pub repository: PathBuf,
    /// The file of its secret key.
    pub key_file: Option<PathBuf>,
    /// Made of this backup.
    pub backup: String,
    /// The log is needed from here on, as long as no server has started.
    pub start: Position,
    /// The backup holds all that was committed up to here, microseconds since 1970.
    pub ended: i64,
    /// The server's version, as in `server_version_num`.
    pub version: u32,
    /// How long segments are.
    pub segment_size: u64,
    /// Settings that must not be undercut.
    pub settings: BTreeMap<String, String>,
    /// The timeline that it follows. No history of a later one was ever offered.
    pub timeline: Timeline,
    /// The text of its history; empty for the first one.
    pub history: String,
}

/// What a directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Not there, or empty.
    Nothing,
    /// A copy that was begun, and not ended.
    Begun,
    /// A copy that follows.
    Follows(Box<Mark>),
    /// One that was promoted: a database of its own.
    Promoted(Box<Mark>),
    /// Anything else.
    Other,
}

impl Mark {
    /// Of a copy by this plan.
    pub fn of(
        repository: &Repository,
        plan: &Plan,
        (place, key_file): (&Path, Option<&Path>),
    ) -> Result<Mark, VaultError> {
        let size = SegmentSize(plan.base.server.segment_size);
        let history = if plan.timeline.0 > 1 {
            let (_, text) = repository.get(&size.key(plan.base.system, LogFile::History(plan.timeline))?)?;
            String::from_utf8_lossy(&text).into_owned()
        } else {
            String::new()
        };
        Ok(Mark {
            system: plan.base.system,
            repository: place.to_owned(),
            key_file: key_file.map(Path::to_owned),
            backup: plan.base.label.clone(),
            start: plan.base.start,
            ended: plan.base.ended,
            version: plan.base.server.version,
            segment_size: plan.base.server.segment_size,
            settings: at_least(&plan.base.server.settings).into_iter().collect(),
            timeline: plan.timeline,
            history,
        })
    }

    /// As it is written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, VaultError> {
        serde_json::to_vec_pretty(self).map_err(|e| VaultError::Crypto(e.to_string()))
    }

    /// How long segments are.
    #[must_use]
    pub fn size(&self) -> SegmentSize {
        SegmentSize(self.segment_size)
    }

    /// The path to its timeline.
    pub fn path(&self) -> Result<Lineage, VaultError> {
        let parsed = parse_history(&self.history).map_err(|says| VaultError::Damaged(format!("{MARK}: {says}")))?;
        Ok(parsed.unwrap_or_default())
    }

    /// Writes it into the copy.
    ///
    /// # Errors
    /// When it can not be written.
    pub fn write(&self, data: &Path, user: Option<(u32, u32)>) -> Result<(), VaultError> {
        Place::open(data, user)?.whole(MARK, &self.to_bytes()?, true)
    }

    /// The history of a timeline at or before this one: cut from this one's if it lies on the way; else what only keeps the number.
    fn history_of(&self, timeline: Timeline) -> String {
        if timeline == self.timeline {
            return self.history.clone();
        }
        let number = |line: &&str| line.split_whitespace().next().and_then(|word| word.parse::<u32>().ok());
        let lines = || self.history.lines().filter(|line| number(line).is_some());
        if !lines().any(|line| number(&line) == Some(timeline.0)) {
            return placeholder(self.timeline);
        }
        let before = lines().filter(|line| number(line).is_some_and(|number| number < timeline.0));
        before.map(|line| format!("{line}\n")).collect()
    }
}

/// What a directory is. `user`: whose it must be.
///
/// # Errors
/// When it can not be read, or its mark not understood.
pub fn found(data: &Path, user: Option<(u32, u32)>) -> Result<Found, VaultError> {
    match std::fs::read_dir(data).map(|mut entries| entries.next().is_some()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(VaultError::file(data, error)),
        Ok(false) => return Ok(Found::Nothing),
        Ok(true) if is_begun(data) => return Ok(Found::Begun),
        Ok(true) => {}
    }
    if data.join(MARK).symlink_metadata().is_err() {
        return Ok(Found::Other);
    }
    let is = data.metadata().map_err(|e| VaultError::file(data, e))?.uid();
    if user.is_some_and(|(uid, _)| uid != is) && is == rustix::process::geteuid().as_raw() {
        // Whole, and not handed over to its user.
        return Ok(Found::Begun);
    }
    let place = Place::open(data, user)?;
    let text = place.read(MARK, MARK_MAX)?.unwrap_or_default();
    let wrong = |e| VaultError::Damaged(format!("{}: {e}", data.join(MARK).display()));
    let mark: Mark = serde_json::from_slice(&text).map_err(wrong)?;
    let follows = data.join(SIGNAL).symlink_metadata().is_ok();
    Ok(if follows { Found::Follows(Box::new(mark)) } else { Found::Promoted(Box::new(mark)) })
}

/// From where a copy begins: the newest backup, along the newest timeline whose own log has begun to be archived. The log is not part of the plan: it
/// is fetched while the server runs.
pub fn begin(repository: &Repository, system: SystemId, backup: Option<&str>) -> Result<Plan, VaultError> {
    let first = plan_from(repository, system, Target::Immediate, None, backup);
    let mut newest = match &first {
        Ok(plan) => plan.timeline,
        Err(_) => return first,
    };
    let mut tried = first;
    for _ in 0..TIMELINES_MOST {
        match tried {
            Ok(plan) if has_begun(&plan) => return Ok(Plan { log: Vec::new(), ..plan }),
            // With the history of a timeline and not its beginning a recovery that is ended now would say a wrong past of itself.
            Ok(plan) => newest = plan.path.0.last().map_or(newest, |left| left.timeline),
            Err(error) => return Err(error),
        }
        tried = plan_from(repository, system, Target::Immediate, Some(newest), backup);
    }
    Err(VaultError::NotArchived(format!(
        "none of the newest {TIMELINES_MOST} timelines has begun to be archived: wait for the archive, and look at it (`mainstay verify`)"
    )))
}

fn has_begun(plan: &Plan) -> bool {
    plan.path.0.last().is_none_or(|fork| fork.lsn < plan.reaches)
}

/// The highest position that is known to be needed of the log: where a server begins that starts on this copy now.
#[must_use]
pub fn needed(data: &Path, mark: &Mark, control: Option<&Control>) -> Lsn {
    let fresh = data.join("backup_label").symlink_metadata().is_ok();
    control.filter(|_| !fresh).map_or(mark.start.lsn, |control| control.redo)
}

/// Takes away a server's own note that it runs. None does: that was looked at.
///
/// # Errors
/// When it can not be removed.
pub fn unnoted(data: &Path, user: Option<(u32, u32)>) -> Result<(), VaultError> {
    Place::open(data, user)?.remove("postmaster.pid")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn mark(timeline: u32, history: &str) -> Mark {
        Mark {
            system: SystemId(7),
            repository: "/r".into(),
            key_file: None,
            backup: "b".into(),
            start: Position::default(),
            ended: 0,
            version: 150_000,
            segment_size: 1 << 20,
            settings: BTreeMap::new(),
            timeline: Timeline(timeline),
            history: history.into(),
        }
    }

    #[test]
    fn histories_on_the_way_are_cut_from_the_newest_and_other_numbers_only_kept() {
        let text = "1\t0/3000000\tno reason\n\n3\t0/5000000\tno reason\n";
        let mark = mark(4, text);
        assert_eq!(mark.history_of(Timeline(4)), text);
        assert_eq!(mark.history_of(Timeline(3)), "1\t0/3000000\tno reason\n");
        assert_eq!(parse_history(&mark.history_of(Timeline(2))), Ok(None));
        assert_eq!(mark.path().unwrap().0.len(), 2);
        assert_eq!(super::tests::mark(1, "").path().unwrap(), Lineage::default());
    }

    #[test]
    fn a_directory_tells_what_it_is_and_a_promoted_one_is_no_follower() {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("copy");
        assert_eq!(found(&data, None).unwrap(), Found::Nothing);
        std::fs::create_dir(&data).unwrap();
        assert_eq!(found(&data, None).unwrap(), Found::Nothing);
        std::fs::write(data.join("PG_VERSION"), "15").unwrap();
        assert_eq!(found(&data, None).unwrap(), Found::Other);
        let mark = mark(1, "");
        mark.write(&data, None).unwrap();
        assert_eq!(found(&data, None).unwrap(), Found::Promoted(Box::new(mark.clone())));
        std::fs::write(data.join(SIGNAL), "").unwrap();
        assert_eq!(found(&data, None).unwrap(), Found::Follows(Box::new(mark.clone())));
        assert_eq!(needed(&data, &mark, Some(&Control { redo: Lsn(9), ..Control::default() })), Lsn(9));
        let another = rustix::process::geteuid().as_raw() + 1;
        assert_eq!(found(&data, Some((another, another))).unwrap(), Found::Begun, "not handed over");
        std::fs::write(data.join("backup_label"), "").unwrap();
        assert_eq!(needed(&data, &mark, Some(&Control { redo: Lsn(9), ..Control::default() })), mark.start.lsn);
        std::fs::write(data.join("mainstay_unfinished"), "").unwrap();
        assert_eq!(found(&data, None).unwrap(), Found::Begun);
        std::fs::remove_file(data.join("mainstay_unfinished")).unwrap();
        std::fs::write(data.join(MARK), "{}").unwrap();
        assert!(found(&data, None).unwrap_err().to_string().contains(MARK));
    }
}
