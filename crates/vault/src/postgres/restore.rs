//! A backup and the log after it, brought back to a moment of the past.
//!
//! First a plan, which refuses what can not be had and names what can be had instead; then the files; the control file last, so that a
//! restore that broke off can not be started. All log that the recovery may ask for is fetched before the server starts: what is not
//! there is then known not to be in the repository, and a repository that goes out of reach can not end a recovery early.

use crate::hex;
use crate::postgres::archive::{Held, lineage};
use crate::postgres::backup::{self, Watch};
use crate::postgres::delta::{self, Mark};
use crate::postgres::fetch::{Packs, fetch};
use crate::postgres::hand::{Taken, hand_over, take_below};
use crate::postgres::log::{LogFile, SegmentSize, check_segment, owner};
use crate::postgres::manifest::{Extent, Manifest, NO_FILE};
use crate::postgres::pages;
use crate::postgres::walk::CONTROL;
use crate::repository::{Repository, VaultError};
use mainstay_model::{Lineage, Lsn, SystemId, Timeline};
use rustix::fs::{Advice, Mode, OFlags};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::num::NonZeroU64;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Where the fetched log lies, below the restored directory.
pub const LOG_DIR: &str = "mainstay_log";

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
    /// The first segment that is missing although later ones are there.
    pub hole: Option<String>,
    /// Why other backups could not be considered.
    pub unreadable: Vec<String>,
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
    /// Threads.
    pub threads: usize,
    /// How far it is, and how it is ended.
    pub watch: Arc<Watch>,
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
}

/// Where a tablespace goes that has no place of its own: beside the data directory.
#[must_use]
pub fn tablespace_beside(data: &Path, number: u32) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(format!(".tablespace-{number}"));
    PathBuf::from(name)
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
        return Err(VaultError::Impossible(says));
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
    let plan = Plan { base: (*base).clone(), target, timeline, path, log, reaches, hole, unreadable };
    plan.refuse_impossible(repository, size)?;
    Ok(plan)
}

/// The log from a backup on, as far as there is no hole; and the first segment that is missing although later ones are there.
fn reach(
    held: &Held,
    size: SegmentSize,
    base: &Manifest,
    timeline: Timeline,
    path: &Lineage,
) -> (Vec<(Timeline, u64)>, Option<String>) {
    let last = held.last(timeline);
    let mut log = Vec::new();
    for number in size.holding(base.start.lsn).. {
        let segment = (owner(size, number, timeline, path), number);
        if held.files.contains(&LogFile::Segment(segment.0, number)) {
            log.push(segment);
            continue;
        }
        let hole = last.is_some_and(|last| last > number)
            || path.0.iter().any(|fork| fork.lsn.0 > number * size.0 && segment.0 < timeline);
        return (log, hole.then(|| size.name(segment.0, number)));
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

    fn refuse_impossible(&self, repository: &Repository, size: SegmentSize) -> Result<(), VaultError> {
        let refuse = |says: String| Err(VaultError::Impossible(says));
        if self.reaches < self.base.stop.lsn {
            return refuse(format!(
                "the log of the backup {} is not whole: {}",
                self.base.label,
                self.hole.clone().unwrap_or_default()
            ));
        }
        let written = match self.log.last() {
            Some((timeline, number)) => {
                repository.check(&size.key(self.base.system, LogFile::Segment(*timeline, *number))?)?.written
            }
            None => 0,
        };
        // When the last segment was brought: nothing that it holds was committed later.
        let latest = i64::try_from(written).unwrap_or(i64::MAX).saturating_mul(1000);
        let nearest =
            format!("the latest position that can be had is {}, archived at {}", self.reaches, time_text(latest));
        let gap =
            self.hole.as_ref().map(|name| format!("the segment {name} is missing, and the log goes on after it; "));
        let gap = gap.unwrap_or_default();
        // What is archived later fills no hole.
        let refuse_end = |says| if self.hole.is_some() { refuse(says) } else { Err(VaultError::NotArchived(says)) };
        match self.target {
            Target::Time(time) if time > latest => {
                refuse_end(format!("{gap}that moment is not in the archive: {nearest}"))
            }
            Target::Position(lsn) if lsn > self.reaches => {
                refuse_end(format!("{gap}that position is not in the archive: {nearest}"))
            }
            // What lies behind the hole would be left out silently.
            Target::Latest if self.hole.is_some() => {
                refuse(format!("{gap}{nearest}; ask for that position, if it is enough"))
            }
            _ => Ok(()),
        }
    }

    /// What is written: the files and the log, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let files: u64 = self.base.files.iter().map(|file| file.size).sum();
        files.saturating_add((self.log.len() as u64).saturating_mul(self.base.server.segment_size))
    }

    /// The settings with which a server recovers to the target. It ends recovery there by itself and opens a new timeline.
    #[must_use]
    pub fn settings(&self, data: &Path) -> Vec<(String, String)> {
        let log = data.join(LOG_DIR);
        // Found but not readable must stop recovery, and only an exit status above 125 does.
        let command = format!("test -e '{0}/%f' || exit 1; cp '{0}/%f' '%p' || exit 200", log.display());
        let mut all = vec![
            ("restore_command".to_owned(), command),
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

struct Work<'a> {
    repository: &'a Repository,
    packs: Packs<'a>,
    base: &'a Manifest,
    to: &'a Destination,
    written: Mutex<Restored>,
}

/// Does it: files, log, `backup_label`, `recovery.signal`. The server is not started.
pub fn restore(repository: &Repository, plan: &Plan, to: &Destination) -> Result<Restored, VaultError> {
    let work = Work { repository, packs: Packs::new(repository), base: &plan.base, to, written: Mutex::default() };
    to.watch.total.store(plan.bytes(), Ordering::Relaxed);
    work.prepare()?;
    let control = plan.base.files.iter().position(|file| file.path == CONTROL);
    let of_control = |extent: &Extent| extent.pieces.iter().any(|piece| Some(piece.0 as usize) == control);
    let (last, first): (Vec<&Extent>, Vec<&Extent>) = plan.base.extents.iter().partition(|extent| of_control(extent));
    // From two places of the backup in turn: threads that write into one file wait for each other.
    let half = first.len().div_ceil(2);
    let turn = |at: usize| first.get(if at.is_multiple_of(2) { at / 2 } else { half + at / 2 });
    work.in_threads(first.len(), |at| turn(at).map_or(Ok(()), |extent| work.extent(extent)))?;
    work.in_threads(plan.log.len(), |at| plan.log.get(at).map_or(Ok(()), |segment| work.segment(*segment)))?;
    work.histories(plan)?;
    work.cut()?;
    let label = hex::decode(&plan.base.backup_label).unwrap_or_default();
    work.write_new("backup_label", &label)?;
    if !to.standby {
        work.write_new("recovery.signal", b"")?;
    }
    work.sync()?;
    for extent in last {
        work.extent(extent)?;
    }
    work.cut_one(control)?;
    work.sync()?;
    delta::remove(&to.data)?;
    if let Some(owner) = to.owner {
        // The data directory last: before, nobody comes to the rest.
        let spaces: Vec<PathBuf> = work.spaces().collect();
        spaces.iter().chain([&to.data]).try_for_each(|top| hand_over(top, owner))?;
    }
    work.sync()?;
    let mut done = *work.written.lock().unwrap_or_else(PoisonError::into_inner);
    done.log = plan.log.len();
    Ok(done)
}

impl Work<'_> {
    fn directory(&self, path: &Path, mode: u32) -> Result<(), VaultError> {
        let made = DirBuilder::new().recursive(true).mode(mode).create(path);
        made.map_err(|e| VaultError::file(path, e))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(|e| VaultError::file(path, e))
    }

    /// An empty place, or an old copy whose start is made impossible before anything else of it is touched.
    fn prepare(&self) -> Result<(), VaultError> {
        let data = &self.to.data;
        // The server hands the path of the log to a shell, from a directory of its own.
        let text = data.display().to_string();
        if !data.is_absolute() || text.chars().any(|c| matches!(c, '\'' | '%' | '\\') || c.is_control()) {
            let says = format!("{text:?} can not be restored into: take an absolute path without ', % and \\");
            return Err(VaultError::Impossible(says));
        }
        let tops: Vec<PathBuf> = [data.clone()].into_iter().chain(self.spaces()).collect();
        let mark =
            Mark::of(self.base, self.base.tablespaces.keys().map(|number| (*number, self.space(*number))).collect());
        // Before anything is taken from a server that may run there, and once more when nobody else can change it.
        self.refuse_place(&tops, &mark)?;
        let taken = Taken::all(&tops)?;
        if let Err(refused) = self.refuse_place(&tops, &mark) {
            taken.give_back();
            return Err(refused);
        }
        mark.write(data)?;
        delta::end_of_control(data)?;
        if self.to.delta {
            tops.iter().try_for_each(|top| take_below(top))?;
            delta::clear(self.base, (data, ""))?;
            for number in self.base.tablespaces.keys() {
                delta::clear(self.base, (&self.space(*number), &format!("pg_tblspc/{number}")))?;
            }
        }
        for (path, mode) in &self.base.directories {
            let number = path.strip_prefix("pg_tblspc/").and_then(|rest| rest.split('/').next()?.parse::<u32>().ok());
            if let Some(number) = number.filter(|number| self.base.tablespaces.contains_key(number)) {
                self.link(number)?;
            }
            self.directory(&data.join(safe(path)?), *mode)?;
        }
        for number in self.base.tablespaces.keys() {
            self.link(*number)?;
        }
        self.directory(&data.join("pg_wal/archive_status"), 0o700)?;
        self.directory(&data.join(self.log_dir()), 0o700)
    }

    fn refuse_place(&self, tops: &[PathBuf], mark: &Mark) -> Result<(), VaultError> {
        let data = &self.to.data;
        self.check_empty(tops)?;
        delta::refuse_server(data)?;
        if self.to.delta { mark.check_spaces(data, Mark::read(data)?.as_ref()) } else { Ok(()) }
    }

    fn log_dir(&self) -> &'static str {
        if self.to.standby { "pg_wal" } else { LOG_DIR }
    }

    /// Nothing is written over what is there, unless that was asked for.
    fn check_empty(&self, tops: &[PathBuf]) -> Result<(), VaultError> {
        let occupied = |top: &&PathBuf| std::fs::read_dir(top).is_ok_and(|mut entries| entries.next().is_some());
        match tops.iter().find(occupied).filter(|_| !self.to.delta) {
            Some(top) => Err(VaultError::Impossible(format!(
                "{} is not empty; restore into an empty directory, or ask for a delta restore",
                top.display()
            ))),
            None => Ok(()),
        }
    }

    /// Where a tablespace goes.
    fn space(&self, number: u32) -> PathBuf {
        self.to.tablespaces.get(&number).cloned().unwrap_or_else(|| tablespace_beside(&self.to.data, number))
    }

    fn spaces(&self) -> impl Iterator<Item = PathBuf> {
        self.base.tablespaces.keys().map(|number| self.space(*number))
    }

    fn link(&self, number: u32) -> Result<(), VaultError> {
        let target = self.space(number);
        self.directory(&self.to.data.join("pg_tblspc"), 0o700)?;
        let link = self.to.data.join(format!("pg_tblspc/{number}"));
        match symlink(&target, &link) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(VaultError::file(&link, error)),
            _ => Ok(()),
        }
    }

    fn open(&self, number: u32) -> Result<(File, PathBuf), VaultError> {
        let unknown =
            || VaultError::Damaged(format!("the manifest of {} names a file that it does not have", self.base.label));
        let file = self.base.files.get(number as usize).filter(|file| !file.path.is_empty()).ok_or_else(unknown)?;
        let path = self.to.data.join(safe(&file.path)?);
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(file.mode)
            .custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0))
            .open(&path);
        Ok((opened.map_err(|e| VaultError::file(&path, e))?, path))
    }

    fn count(&self, written: u64, kept: u64) {
        let mut all = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        all.written += written;
        all.kept += kept;
        self.to.watch.done.fetch_add(written + kept, Ordering::Relaxed);
    }

    /// Do the files hold this extent already, by its fingerprints?
    fn there(&self, extent: &Extent) -> Result<bool, VaultError> {
        let mut map = Vec::new();
        for (number, at, len) in &extent.pieces {
            if *number == NO_FILE {
                return Ok(false);
            }
            let (file, path) = self.open(*number)?;
            let mut content = vec![0; *len as usize];
            if file.metadata().map_err(|e| VaultError::file(&path, e))?.len() < at + u64::from(*len) {
                return Ok(false);
            }
            file.read_exact_at(&mut content, *at).map_err(|e| VaultError::file(&path, e))?;
            pages::fingerprints(&content, &mut map);
        }
        Ok(pages::sum(&map) == extent.sum)
    }

    fn extent(&self, extent: &Extent) -> Result<(), VaultError> {
        let ours = extent.pieces.iter().filter(|piece| piece.0 != NO_FILE);
        let size: u64 = ours.map(|piece| u64::from(piece.2)).sum();
        if self.to.delta && self.there(extent)? {
            self.count(0, size);
            return Ok(());
        }
        let content = fetch(&self.packs, self.base, extent)?;
        let (mut written, mut rest) = (0, content.as_slice());
        for (number, at, len) in &extent.pieces {
            let short = || VaultError::Damaged(format!("an extent of the backup {} is too short", self.base.label));
            let (piece, after) = rest.split_at_checked(*len as usize).ok_or_else(short)?;
            if *number == NO_FILE {
                rest = after;
                continue;
            }
            let (file, path) = self.open(*number)?;
            let parts = if self.to.delta { differing(&file, piece, *at) } else { vec![(0, piece)] };
            for (from, part) in parts {
                file.write_all_at(part, at + from).map_err(|e| VaultError::file(&path, e))?;
                written += part.len() as u64;
            }
            // Let the disk begin while the next parts are read; what can not be begun is written at the end.
            let _ = rustix::fs::fadvise(&file, *at, NonZeroU64::new(u64::from(*len)), Advice::DontNeed);
            rest = after;
        }
        self.count(written, size - written);
        Ok(())
    }

    fn segment(&self, (timeline, number): (Timeline, u64)) -> Result<(), VaultError> {
        let size = SegmentSize(self.base.server.segment_size);
        let key = size.key(self.base.system, LogFile::Segment(timeline, number))?;
        let (_, content) = self.repository.get(&key)?;
        check_segment(&content, self.base.system, size, timeline, number)
            .map_err(|says| VaultError::Damaged(format!("{key}: {says}")))?;
        self.to.watch.done.fetch_add(content.len() as u64, Ordering::Relaxed);
        self.write_new(&format!("{}/{}", self.log_dir(), key.last()), &content)
    }

    fn histories(&self, plan: &Plan) -> Result<(), VaultError> {
        let size = SegmentSize(self.base.server.segment_size);
        let all = plan.path.0.iter().map(|fork| fork.timeline).chain([plan.timeline]);
        for timeline in all.filter(|timeline| timeline.0 > 1) {
            let key = size.key(self.base.system, LogFile::History(timeline))?;
            let (_, content) = self.repository.get(&key)?;
            self.write_new(&format!("{}/{}", self.log_dir(), key.last()), &content)?;
        }
        Ok(())
    }

    fn write_new(&self, name: &str, content: &[u8]) -> Result<(), VaultError> {
        let path = self.to.data.join(name);
        std::fs::write(&path, content).map_err(|e| VaultError::file(&path, e))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(|e| VaultError::file(&path, e))
    }

    /// Gives every file the size that it had.
    fn cut(&self) -> Result<(), VaultError> {
        (0..self.base.files.len())
            .filter(|at| self.base.files.get(*at).is_some_and(|file| file.path != CONTROL))
            .try_for_each(|at| self.cut_one(Some(at)))
    }

    fn cut_one(&self, at: Option<usize>) -> Result<(), VaultError> {
        let Some((number, file)) = at.and_then(|at| Some((at, self.base.files.get(at)?))) else { return Ok(()) };
        if file.path.is_empty() {
            return Ok(());
        }
        let (open, path) = self.open(u32::try_from(number).unwrap_or(u32::MAX))?;
        open.set_len(file.size).map_err(|e| VaultError::file(&path, e))
    }

    /// Everything written is on the disk.
    fn sync(&self) -> Result<(), VaultError> {
        let places = self.base.tablespaces.keys().map(|number| self.to.data.join(format!("pg_tblspc/{number}")));
        for place in places.chain([self.to.data.clone()]) {
            let dir = rustix::fs::open(&place, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
            dir.and_then(rustix::fs::syncfs).map_err(|e| VaultError::file(&place, e.into()))?;
        }
        Ok(())
    }

    fn in_threads(&self, count: usize, one: impl Fn(usize) -> Result<(), VaultError> + Sync) -> Result<(), VaultError> {
        let (turn, stop, failed) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
        std::thread::scope(|scope| {
            for _ in 0..self.to.threads.clamp(1, 16) {
                scope.spawn(|| {
                    loop {
                        let at = turn.fetch_add(1, Ordering::Relaxed);
                        if at >= count || stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let ended = || VaultError::Impossible("the restore was ended before it was done".into());
                        let asked = self.to.watch.stop.load(Ordering::Relaxed);
                        if let Err(error) = if asked { Err(ended()) } else { one(at) } {
                            stop.store(true, Ordering::Relaxed);
                            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        }
                    }
                });
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// The parts of a piece that a file does not hold at its place, by pages: where each begins in the piece.
fn differing<'p>(file: &File, piece: &'p [u8], at: u64) -> Vec<(u64, &'p [u8])> {
    let mut there = vec![0; piece.len()];
    if file.read_exact_at(&mut there, at).is_err() {
        return vec![(0, piece)];
    }
    let pages = piece.chunks(pages::PAGE).zip(there.chunks(pages::PAGE)).enumerate();
    let other = pages.filter(|(_, (wanted, is))| wanted != is);
    other.map(|(number, (wanted, _))| ((number * pages::PAGE) as u64, wanted)).collect()
}

/// A path of a manifest must stay below its directory.
fn safe(path: &str) -> Result<&str, VaultError> {
    let fits = !path.starts_with('/') && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    fits.then_some(path).ok_or_else(|| VaultError::Damaged(format!("a manifest names the path {path:?}")))
}
