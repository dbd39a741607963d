//! A backup and the log after it, brought back to a moment of the past.
//!
//! First a plan, which refuses what can not be had and names what can be had instead; then the files; the control file last, so that a
//! restore that broke off can not be started. All log that the recovery may ask for is fetched before the server starts: what is not
//! there is then known not to be in the repository, and a repository that goes out of reach can not end a recovery early.

use crate::postgres::archive::{Held, SWEEP_MAX, lineage};
use crate::postgres::backup::{self, Watch};
use crate::postgres::log::{LogFile, SegmentSize, owner};
use crate::postgres::manifest::Manifest;
use crate::postgres::several::Elsewhere;
use crate::repository::{Repository, VaultError};
use mainstay_model::{Lineage, Lsn, SystemId, Timeline};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the fetched log lies, below the restored directory.
pub const LOG_DIR: &str = "mainstay_log";

/// Beside the files and the log: what the recovery itself writes.
const SPARE: u64 = 512 << 20;

pub use crate::postgres::fill::{check_path, restore};
pub use mainstay_model::vault::RestoreTarget as Target;

/// How it will be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// From this backup.
    pub base: Manifest,
    /// To this moment.
    pub target: Target,
    /// Along the path of this timeline.
    pub timeline: Timeline,
    /// The path to it.
    pub path: Lineage,
    /// The log that recovery may ask for.
    pub log: Vec<(Timeline, u64)>,
    /// The log without a hole ends here.
    pub reaches: Lsn,
    /// When its last segment was brought, microseconds since 1970: nothing that the log holds was committed later.
    pub brought: i64,
    /// Where the log stops although it goes on later.
    pub hole: Option<Hole>,
    /// Why other backups could not be considered.
    pub unreadable: Vec<String>,
}

/// The first segment that is missing although later ones, or the history of a later timeline, are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hole {
    /// Its name.
    pub segment: String,
    /// Files are brought side by side, and histories first: so near to the end it may be on its way.
    pub on_its_way: bool,
}

/// Where a restore goes.
#[derive(Clone, Debug, Default)]
pub struct Destination {
    /// The new data directory: not there, or empty; with `delta`, an old copy that is brought to the backup's state.
    pub data: PathBuf,
    /// Where tablespaces go, by number; others go beside the data directory.
    pub tablespaces: BTreeMap<u32, PathBuf>,
    /// To whom files belong.
    pub owner: Option<(u32, u32)>,
    /// Take over what the files there hold already.
    pub delta: bool,
    /// It goes on as a standby: the log lies where the server reads its own, and no end of the recovery is asked for.
    pub standby: bool,
    /// It goes on as a standby that is fed through its folder of the log (docs/adr/0051): what its mark says.
    pub follows: Option<Vec<u8>>,
    /// Threads.
    pub threads: usize,
    /// How far it is, and how it is ended.
    pub watch: Arc<Watch>,
    /// The cluster's other repositories.
    pub elsewhere: Elsewhere,
}

/// What a restore did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Bytes of files written.
    pub written: u64,
    /// Bytes that were there already.
    pub kept: u64,
    /// Segments of the log fetched.
    pub log: usize,
    /// Files of the log that were damaged or gone and came from another repository.
    pub healed: usize,
}

/// Where a tablespace goes that has no place of its own: beside the data directory.
#[must_use]
pub fn tablespace_beside(data: &Path, number: u32) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(format!(".tablespace-{number}"));
    PathBuf::from(name)
}

/// The command by which a copy's server takes its log from the folder there.
pub(crate) fn takes(data: &Path) -> String {
    // Found but not readable must stop recovery, and only an exit status above 125 does.
    format!("test -e '{0}/%f' || exit 1; cp '{0}/%f' '%p' || exit 200", data.join(LOG_DIR).display())
}

/// A time as people write it.
#[must_use]
pub fn time_text(micros: i64) -> String {
    jiff::Timestamp::from_microsecond(micros).map_or_else(|_| micros.to_string(), |time| time.to_string())
}

/// Chooses backup, path and log for a target. `timeline`: along its path; none: the newest that the archive knows.
pub fn plan(
    repository: &Repository,
    system: SystemId,
    target: Target,
    timeline: Option<Timeline>,
) -> Result<Plan, VaultError> {
    plan_from(repository, system, target, timeline, None)
}

/// The same from the backup of this label; none: from the newest that fits. A damaged one, and one that is newer than a restore point, are
/// gone around so.
pub fn plan_from(
    repository: &Repository,
    system: SystemId,
    target: Target,
    timeline: Option<Timeline>,
    backup: Option<&str>,
) -> Result<Plan, VaultError> {
    let (backups, unreadable) = backup::readable(repository, system)?;
    let unreadable: Vec<String> = unreadable.iter().map(ToString::to_string).collect();
    // What can not be had may lie in one of these.
    let but = || unreadable.iter().map(|says| format!("; a backup can not be read: {says}")).collect::<String>();
    let none =
        || VaultError::Impossible(format!("{} holds no backup of the database {system}{}", repository.place(), but()));
    let size = SegmentSize(backups.last().ok_or_else(none)?.server.segment_size);
    let held = Held::list(repository, system, size)?;
    let timelines = held.timelines();
    let newest = timelines.last().copied().unwrap_or(Timeline(1));
    let timeline = timeline.unwrap_or(newest);
    if timeline != newest && !timelines.contains(&timeline) {
        let known: Vec<String> = timelines.iter().map(ToString::to_string).collect();
        let says = format!("the archive knows no timeline {timeline}; it holds {}", known.join(", "));
        // A take-over's history may be on its way.
        let newer = timeline > newest;
        return Err(if newer { VaultError::NotArchived(says) } else { VaultError::Impossible(says) });
    }
    let path = lineage(repository, system, size, timeline)?;
    let on_path: Vec<&Manifest> =
        backups.iter().filter(|backup| path.contains(backup.stop, timeline, Lsn(u64::MAX))).collect();
    let Some(first) = on_path.first() else {
        let has: Vec<String> = backups.iter().map(|backup| backup.stop.timeline.to_string()).collect();
        let says = format!(
            "no backup lies on the path to timeline {timeline}; there are backups on {}{}",
            has.join(", "),
            but()
        );
        return Err(VaultError::Impossible(says));
    };
    let fits = |backup: &&&Manifest| match target {
        Target::Time(time) => backup.ended <= time,
        Target::Position(lsn) => backup.stop.lsn <= lsn,
        _ => true,
    };
    if let Some(label) = backup.filter(|label| !on_path.iter().any(|backup| backup.label == *label)) {
        let has: Vec<&str> = on_path.iter().map(|backup| backup.label.as_str()).collect();
        let says = format!(
            "there is no backup {label} on the path to timeline {timeline}; there are {}{}",
            has.join(", "),
            but()
        );
        return Err(VaultError::Impossible(says));
    }
    let named = |of: &&&Manifest| backup.is_none_or(|label| of.label == label);
    let Some(base) = on_path.iter().rev().filter(named).find(fits) else {
        let first = on_path.iter().find(named).unwrap_or(first);
        let (time, lsn) = (time_text(first.ended), first.stop.lsn);
        let says = format!(
            "that is before the end of {}: the earliest moment is {time}, position {lsn}{}",
            if backup.is_some() { "that backup" } else { "the first backup" },
            but()
        );
        return Err(VaultError::Impossible(says));
    };
    let (log, hole) = reach(&held, size, base, timeline, &path);
    let reaches = Lsn(log.last().map_or(0, |(_, number)| (number + 1) * size.0));
    let brought = match log.last() {
        Some((timeline, number)) => {
            let segment = size.key(system, LogFile::Segment(*timeline, *number))?;
            i64::try_from(repository.check(&segment)?.written).unwrap_or(i64::MAX).saturating_mul(1000)
        }
        None => 0,
    };
    let plan = Plan { base: (*base).clone(), target, timeline, path, log, reaches, brought, hole, unreadable };
    plan.refuse_impossible()?;
    Ok(plan)
}

/// The log from a backup on, as far as there is no hole; and the hole.
fn reach(
    held: &Held,
    size: SegmentSize,
    base: &Manifest,
    timeline: Timeline,
    path: &Lineage,
) -> (Vec<(Timeline, u64)>, Option<Hole>) {
    let of = |number| owner(size, number, timeline, path);
    let mut log = Vec::new();
    for number in size.holding(base.start.lsn).. {
        let segment = (of(number), number);
        if held.files.contains(&LogFile::Segment(segment.0, number)) {
            log.push(segment);
            continue;
        }
        let later = |file: &&LogFile| matches!(**file, LogFile::Segment(is, at) if at > number && is == of(at));
        let later = held.files.iter().filter(later).count();
        let goes_on = later > 0 || path.0.iter().any(|fork| fork.lsn.0 > number * size.0 && segment.0 < timeline);
        let hole = Hole { segment: size.name(segment.0, number), on_its_way: later <= SWEEP_MAX };
        return (log, goes_on.then_some(hole));
    }
    (log, None)
}

impl Plan {
    /// The same up to the end of the log, for a time after which the log turned out to hold no commit: then its end is that moment. `None`: the
    /// target is no time, or the log goes on behind a hole and what was committed there would be left out silently.
    #[must_use]
    pub fn latest_instead(&self) -> Option<Plan> {
        let whole = matches!(self.target, Target::Time(_)) && self.hole.is_none();
        whole.then(|| Plan { target: Target::Latest, ..self.clone() })
    }

    fn refuse_impossible(&self) -> Result<(), VaultError> {
        let refuse = |says: String| Err(VaultError::Impossible(says));
        if self.reaches < self.base.stop.lsn {
            return refuse(format!(
                "the log of the backup {} is not whole: {}",
                self.base.label,
                self.hole.as_ref().map(|hole| hole.segment.clone()).unwrap_or_default()
            ));
        }
        let nearest =
            format!("the latest position that can be had is {}, archived at {}", self.reaches, time_text(self.brought));
        let gap = self
            .hole
            .as_ref()
            .map(|hole| format!("the segment {} is missing, and the log goes on after it; ", hole.segment));
        let gap = gap.unwrap_or_default();
        // What is archived later fills no old hole.
        let never = self.hole.as_ref().is_some_and(|hole| !hole.on_its_way);
        let refuse_end = |says| if never { refuse(says) } else { Err(VaultError::NotArchived(says)) };
        match self.target {
            Target::Time(time) if time > self.brought => {
                refuse_end(format!("{gap}that moment is not in the archive: {nearest}"))
            }
            Target::Position(lsn) if lsn > self.reaches => {
                refuse_end(format!("{gap}that position is not in the archive: {nearest}"))
            }
            // What lies behind the hole would be left out silently.
            Target::Latest if self.hole.is_some() => {
                refuse_end(format!("{gap}{nearest}; ask for that position, if it is enough"))
            }
            _ => Ok(()),
        }
    }

    /// How much the files take, bytes.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.base.files.iter().fold(0, |all, file| all.saturating_add(file.size))
    }

    /// How much the log takes, bytes.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        (self.log.len() as u64).saturating_mul(self.base.server.segment_size)
    }

    /// What is written: the files and the log, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files().saturating_add(self.log_bytes())
    }

    /// How much must be free for it, bytes.
    #[must_use]
    pub fn needs(&self) -> u64 {
        self.bytes().saturating_add(SPARE)
    }

    /// The settings with which a server recovers to the target. It ends recovery there by itself and opens a new timeline.
    #[must_use]
    pub fn settings(&self, data: &Path) -> Vec<(String, String)> {
        let mut all = vec![
            ("restore_command".to_owned(), takes(data)),
            ("recovery_target_timeline".to_owned(), self.timeline.to_string()),
            ("recovery_target_action".to_owned(), "promote".to_owned()),
        ];
        let target = match &self.target {
            Target::Latest => None,
            Target::Immediate => Some(("recovery_target", "immediate".to_owned())),
            // The server takes a zone as an offset only: where it reads its settings, it knows no zone by name.
            Target::Time(time) => Some(("recovery_target_time", time_text(*time).replace('Z', "+00"))),
            Target::Position(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
            Target::Name(name) => Some(("recovery_target_name", name.clone())),
            Target::Transaction(id) => Some(("recovery_target_xid", id.to_string())),
        };
        all.extend(target.map(|(name, value)| (name.to_owned(), value)));
        all
    }
}
