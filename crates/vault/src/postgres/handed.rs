//! How far a command of the operator's own (`postgres.archive_command`) has brought the log, by the marks that the server keeps beside it; and, after a
//! take-over, the marks of what the dead primary may not have handed over. Absent: running the command. The server does that.
//!
//! `pg_wal/archive_status/NAME.ready`: the file waits for the command; `NAME.done`: the command has succeeded. A standby marks what it receives as done,
//! whatever became of it on the primary: that is the hole which archiving by a command leaves at each failover (rule P19).

use crate::postgres::log::{LogFile, SegmentSize, owner};
use crate::postgres::owner::{on_path, path_to};
use crate::repository::VaultError;
use mainstay_model::{Lineage, Lsn, Position, Timeline};
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;

/// More marks or files are not looked at: that is an error, since what was not seen could be taken for handed over.
const MARKS_MAX: usize = 1 << 18;
/// A mark before it has its name; the server looks at no such one.
const HALF: &str = "mainstay.mark";

/// How the server's own archiving stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handed {
    /// Everything before is handed over, but for `gaps`.
    pub reached: Option<Position>,
    /// The oldest segment that waits for the command, and since when, milliseconds since 1970 by this host's clock.
    pub waiting: Option<(String, u64)>,
    /// What was neither handed over by the primary before nor is here any more, first and last segment.
    pub gaps: Vec<(String, String)>,
    /// So many segments were marked to be handed over by this server.
    pub marked: usize,
}

/// The marks and segments of a server's log.
#[derive(Default)]
struct Marks {
    files: BTreeSet<LogFile>,
    ready: BTreeSet<LogFile>,
    done: BTreeSet<LogFile>,
}

/// Looks at the log of a primary, which is flushed up to `end`. `reached`: how far the command was known to have brought it. `anew`: this server was
/// not primary then, so its marks of what came before its own timeline say nothing, and what may be missing is handed over by it.
///
/// # Errors
/// The log or its marks can not be read or written.
pub fn look(
    pg_wal: &Path,
    size: SegmentSize,
    (reached, end): (Option<Position>, Position),
    anew: bool,
) -> Result<Handed, VaultError> {
    let wrong = |error: Errno| VaultError::file(pg_wal, error.into());
    let left = path_to(pg_wal, end)?;
    let last = size.holding(end.lsn);
    // The first look: what came before the command was set is not the command's.
    let next = reached.and_then(|at| on_path(at, end.timeline, &left)).map_or(last, |lsn| size.holding(lsn));
    let status = open_status(pg_wal).map_err(wrong)?;
    let marks = Marks { files: segments(pg_wal, size)?, ..read(&status, size).map_err(wrong)? };
    let segment = |number: u64| LogFile::Segment(owner(size, number, end.timeline, &left), number);
    let mut handed = Handed::default();
    if anew {
        let from = reached.map_or(end.timeline, |at| at.timeline);
        let wanted = histories(from, end.timeline, &left, &marks).into_iter().chain((next..last).map(segment));
        remark(&status, size, wanted, end, &marks, &mut handed).map_err(wrong)?;
    }
    let marks =
        if handed.marked > 0 { Marks { files: marks.files, ..read(&status, size).map_err(wrong)? } } else { marks };
    let next = (next..last).find(|number| waits(&marks, &segment(*number))).unwrap_or(last);
    handed.reached = Some(position(size, next, end, &left));
    handed.waiting = (next < last && marks.ready.contains(&segment(next))).then(|| {
        let name = size.file_name(segment(next));
        let since = since(&status, &format!("{name}.ready"));
        (name, since)
    });
    Ok(handed)
}

/// Is it still to be handed over? Without a mark and without the file the server has removed it, which it does only once the command has succeeded; with
/// the file, its mark is still to come.
fn waits(marks: &Marks, file: &LogFile) -> bool {
    marks.ready.contains(file) || (!marks.done.contains(file) && marks.files.contains(file))
}

/// The histories of the timelines from there up to the one before this server's: those on its path, and whatever stands under the other numbers. Whoever
/// restores asks for one number after the other and takes the last before the first that is missing for the newest timeline.
fn histories(from: Timeline, own: Timeline, left: &Lineage, marks: &Marks) -> Vec<LogFile> {
    let on_path = |timeline: Timeline| left.0.iter().any(|fork| fork.timeline == timeline);
    // Of a timeline that this path has left behind the real history was handed over long ago: what stands there now keeps the number.
    let wanted = |timeline: Timeline| {
        timeline.0 > 1 && timeline < own && (timeline > from || (timeline == from && on_path(timeline)))
    };
    let path = left.0.iter().map(|fork| LogFile::History(fork.timeline));
    let all: BTreeSet<LogFile> = marks.files.iter().copied().chain(path).collect();
    all.into_iter().filter(|file| matches!(file, LogFile::History(timeline) if wanted(*timeline))).collect()
}

/// Has what lies on an older timeline handed over by this server, and tells what is not there to be.
fn remark(
    status: &OwnedFd,
    size: SegmentSize,
    wanted: impl Iterator<Item = LogFile>,
    end: Position,
    marks: &Marks,
    handed: &mut Handed,
) -> Result<(), Errno> {
    let mut missing: Option<(String, String)> = None;
    for file in wanted {
        // Both marks are there after a failure of power between the two: the other one counts for the server.
        let waits = marks.ready.contains(&file) && !marks.done.contains(&file);
        let own = matches!(file, LogFile::Segment(timeline, _) if timeline == end.timeline);
        let name = size.file_name(file);
        if own || waits || marks.files.contains(&file) {
            handed.gaps.extend(missing.take());
        }
        if own || waits {
            continue;
        }
        if !marks.files.contains(&file) {
            missing = Some((missing.map_or_else(|| name.clone(), |(first, _)| first), name));
            continue;
        }
        mark(status, &name)?;
        handed.marked += 1;
    }
    handed.gaps.extend(missing);
    if handed.marked > 0 {
        rustix::fs::fsync(status)?;
    }
    Ok(())
}

/// As the server itself marks a segment that was just finished: an empty file. The mark that it is done goes first: without any the server asks its
/// command anew at the next checkpoint, so whatever ends between the steps, nothing counts as handed over. Never through a link, and as the server's own.
fn mark(status: &OwnedFd, name: &str) -> Result<(), Errno> {
    let gone = |name: &str| match rustix::fs::unlinkat(status, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    };
    gone(&format!("{name}.done"))?;
    // What an attempt that was interrupted has left.
    gone(HALF)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(status, HALF, flags, Mode::from_raw_mode(0o600))?;
    let of = rustix::fs::fstat(status)?;
    if of.st_uid != rustix::process::geteuid().as_raw() {
        let (user, group) = (rustix::fs::Uid::from_raw(of.st_uid), rustix::fs::Gid::from_raw(of.st_gid));
        rustix::fs::fchown(&made, Some(user), Some(group))?;
    }
    rustix::fs::renameat(status, HALF, status, format!("{name}.ready"))
}

fn open_status(pg_wal: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let log = rustix::fs::open(pg_wal, flags, Mode::empty())?;
    rustix::fs::openat(&log, "archive_status", flags | OFlags::NOFOLLOW, Mode::empty())
}

fn read(status: &OwnedFd, size: SegmentSize) -> Result<Marks, Errno> {
    let mut marks = Marks::default();
    for (count, entry) in Dir::read_from(status)?.enumerate() {
        let entry = entry?;
        if count >= MARKS_MAX {
            return Err(Errno::NOBUFS);
        }
        let Ok(name) = entry.file_name().to_str() else { continue };
        if let Some(file) = name.strip_suffix(".ready").and_then(|name| size.parse(name)) {
            marks.ready.insert(file);
        } else if let Some(file) = name.strip_suffix(".done").and_then(|name| size.parse(name)) {
            marks.done.insert(file);
        }
    }
    Ok(marks)
}

fn segments(pg_wal: &Path, size: SegmentSize) -> Result<BTreeSet<LogFile>, VaultError> {
    let wrong = |error| VaultError::file(pg_wal, error);
    let mut found = BTreeSet::new();
    for (count, entry) in std::fs::read_dir(pg_wal).map_err(wrong)?.enumerate() {
        let name = entry.map_err(wrong)?.file_name();
        if count >= MARKS_MAX {
            return Err(wrong(Errno::NOBUFS.into()));
        }
        found.extend(name.to_str().and_then(|name| size.parse(name)));
    }
    Ok(found)
}

fn position(size: SegmentSize, next: u64, end: Position, left: &Lineage) -> Position {
    Position {
        timeline: owner(size, next.saturating_sub(1), end.timeline, left),
        lsn: Lsn(next.saturating_mul(size.0)),
    }
}

/// When a mark was made; 0: it is not known.
fn since(status: &OwnedFd, name: &str) -> u64 {
    let made = rustix::fs::statat(status, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| stat.st_mtime).unwrap_or(0);
    u64::try_from(made).unwrap_or(0).saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize(1 << 20);

    struct Log(tempfile::TempDir);

    impl Log {
        fn new() -> Log {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("archive_status")).unwrap();
            Log(dir)
        }
        fn put(&self, timeline: u32, number: u64, mark: &str) {
            let name = SIZE.name(Timeline(timeline), number);
            std::fs::write(self.0.path().join(&name), b"").unwrap();
            self.mark(&name, mark);
        }
        fn mark(&self, name: &str, mark: &str) {
            if !mark.is_empty() {
                std::fs::write(self.0.path().join(format!("archive_status/{name}.{mark}")), b"").unwrap();
            }
        }
        fn marks(&self) -> Vec<String> {
            let entries = std::fs::read_dir(self.0.path().join("archive_status")).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
        fn look(&self, reached: Option<Position>, end: Position, anew: bool) -> Handed {
            look(self.0.path(), SIZE, (reached, end), anew).unwrap()
        }
    }

    fn at(timeline: u32, segment: u64) -> Position {
        Position { timeline: Timeline(timeline), lsn: Lsn(segment << 20) }
    }

    fn within(timeline: u32, segment: u64) -> Position {
        Position { timeline: Timeline(timeline), lsn: Lsn((segment << 20) + 9) }
    }

    #[test]
    fn it_reaches_up_to_the_first_segment_that_waits() {
        let log = Log::new();
        assert_eq!(log.look(None, within(1, 7), false).reached, Some(at(1, 7)), "from here on");
        for (number, mark) in [(4, "done"), (5, "ready"), (6, "ready"), (7, "")] {
            log.put(1, number, mark);
        }
        let handed = log.look(Some(at(1, 3)), within(1, 7), false);
        // The third is gone and unmarked: it was handed over and recycled.
        assert_eq!((handed.reached, handed.marked, handed.gaps.len()), (Some(at(1, 5)), 0, 0));
        let (name, since) = handed.waiting.unwrap();
        assert!(name == SIZE.name(Timeline(1), 5) && since > 1_600_000_000_000, "{name} {since}");
        // Finished, and its mark is still to come.
        for number in [5, 6] {
            std::fs::remove_file(log.0.path().join(format!("archive_status/{}.ready", SIZE.name(Timeline(1), number))))
                .unwrap();
            log.mark(&SIZE.name(Timeline(1), number), "done");
        }
        log.put(1, 8, "");
        let handed = log.look(Some(at(1, 5)), within(1, 8), false);
        assert_eq!((handed.reached, handed.waiting), (Some(at(1, 7)), None));
    }

    #[test]
    fn p19_after_a_take_over_what_the_dead_primary_may_not_have_handed_over_is_handed_over() {
        let log = Log::new();
        let history = log.0.path().join("00000002.history");
        std::fs::write(history, "1\t0/700010\tno recovery target specified\n").unwrap();
        // A standby's marks: all done. The third is not there any more.
        for number in [2, 4, 5, 6] {
            log.put(1, number, "done");
        }
        log.put(2, 7, "done");
        log.put(2, 8, "");
        let name = |number| SIZE.name(Timeline(1), number);
        let handed = log.look(Some(at(1, 3)), within(2, 8), true);
        assert_eq!((handed.marked, handed.gaps), (3, vec![(name(3), name(3))]));
        assert_eq!(handed.reached, Some(at(1, 4)));
        assert_eq!(handed.waiting.unwrap().0, name(4));
        let own = SIZE.name(Timeline(2), 7);
        let ready = |number| format!("{}.ready", name(number));
        assert_eq!(log.marks(), [format!("{}.done", name(2)), ready(4), ready(5), ready(6), format!("{own}.done")]);
        let owner = |path: &Path| std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path).unwrap());
        let status = log.0.path().join("archive_status");
        assert_eq!(owner(&status.join(ready(4))), owner(&status));
        // Again, as after an agent that was killed before it told anybody: nothing new.
        assert_eq!(log.look(Some(at(1, 3)), within(2, 8), true).marked, 0);
        for number in [4, 5, 6] {
            std::fs::rename(status.join(ready(number)), status.join(format!("{}.done", name(number)))).unwrap();
        }
        let handed = log.look(handed.reached, within(2, 8), false);
        assert_eq!((handed.reached, handed.waiting, handed.marked), (Some(at(2, 8)), None, 0));
    }

    #[test]
    fn p22_the_histories_before_this_timeline_are_handed_over_without_a_missing_number() {
        let log = Log::new();
        let put = |timeline: u32, text: &str| {
            let name = format!("{timeline:08X}.history");
            std::fs::write(log.0.path().join(&name), text).unwrap();
            log.mark(&name, "done");
        };
        // The second was opened by a primary that died before its tool was back, the fourth only reserved, the third never reached this server.
        put(2, "1\t0/700010\tno reason\n");
        put(4, "# reserved by mainstay for term 4\n");
        put(5, "1\t0/700010\tno reason\n2\t0/800010\tno reason\n3\t0/900010\tno reason\n");
        let handed = log.look(Some(at(1, 7)), within(5, 10), true);
        let ready: Vec<String> = log.marks().into_iter().filter(|name| name.ends_with(".ready")).collect();
        assert_eq!(ready, ["00000002.history.ready", "00000004.history.ready"]);
        assert_eq!(handed.gaps[0], ("00000003.history".to_owned(), "00000003.history".to_owned()));
        // What lies before the place that was reached was handed over then.
        for name in ready {
            std::fs::remove_file(log.0.path().join("archive_status").join(name)).unwrap();
        }
        put(2, "1\t0/700010\tno reason\n");
        log.look(Some(at(4, 9)), within(5, 10), true);
        assert!(!log.marks().contains(&"00000002.history.ready".to_owned()), "{:?}", log.marks());
        // Nor does what only keeps a number now go out under the name of a history that was.
        assert!(!log.marks().contains(&"00000004.history.ready".to_owned()), "{:?}", log.marks());
    }

    #[test]
    fn whatever_ends_between_the_two_marks_nothing_counts_as_handed_over() {
        let log = Log::new();
        std::fs::write(log.0.path().join("00000002.history"), "1\t0/700010\tno reason\n").unwrap();
        let name = SIZE.name(Timeline(1), 6);
        // The first step only; half of the second; and both marks after a failure of power.
        log.put(1, 6, "");
        assert_eq!(log.look(Some(at(1, 6)), within(2, 7), false).reached, Some(at(1, 6)));
        std::fs::write(log.0.path().join("archive_status").join(HALF), b"").unwrap();
        for marks in [&["done"][..], &["ready", "done"], &[]] {
            marks.iter().for_each(|mark| log.mark(&name, mark));
            let handed = log.look(Some(at(1, 6)), within(2, 7), true);
            assert_eq!((handed.reached, handed.marked), (Some(at(1, 6)), 1), "{marks:?}");
            assert_eq!(log.marks(), [format!("{name}.ready")], "{marks:?}");
            std::fs::remove_file(log.0.path().join(format!("archive_status/{name}.ready"))).unwrap();
        }
    }

    #[test]
    fn a_mark_goes_through_no_link() {
        let log = Log::new();
        std::fs::write(log.0.path().join("00000002.history"), "1\t0/700010\tno reason\n").unwrap();
        log.put(1, 5, "done");
        let elsewhere = log.0.path().join("elsewhere");
        std::os::unix::fs::symlink(
            &elsewhere,
            log.0.path().join(format!("archive_status/{}.ready", SIZE.name(Timeline(1), 5))),
        )
        .unwrap();
        log.look(Some(at(1, 5)), within(2, 8), true);
        assert!(!elsewhere.exists());
        let real = log.0.path().join("real");
        std::fs::rename(log.0.path().join("archive_status"), &real).unwrap();
        std::os::unix::fs::symlink(&real, log.0.path().join("archive_status")).unwrap();
        assert!(look(log.0.path(), SIZE, (None, within(2, 8)), true).is_err());
    }
}
