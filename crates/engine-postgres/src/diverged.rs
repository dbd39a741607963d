//! What a diverged log alone holds: its files are kept outside the data directory, bounded in size, and its content is summed up for
//! the history. Rows can not be decoded without a logical slot older than the fork; transactions and operations can be counted.

use crate::files;
use crate::server::{Postgres, failed, not_yet};
use crate::wal::Wal;
use mainstay_model::{LogEnd, Lost, Position};
use mainstay_ports::clock::wall_now_ms;
use mainstay_ports::engine::EngineError;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// No more than this is kept of all diverged logs together, nor more than a sixteenth of the volume; the oldest go first.
const KEEP: u64 = 512 * 1024 * 1024;
/// But that much on the smallest volume: two files of the log.
const KEEP_LEAST: u64 = 32 * 1024 * 1024;
/// Nor more logs than this.
const KEEP_LOGS: usize = 16;
/// With less free than this nothing is kept, and so nothing is thrown away either.
const LEAST: u64 = 48 * 1024 * 1024;
/// What is known of a kept log, beside it.
const REPORT: &str = "lost.json";
/// Ending of one that is not kept whole yet.
const PART: &str = ".part";
/// How many transactions and relations are named.
const NAMED: usize = 20;
/// How long summing up may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What the lines of `pg_waldump` add up to.
#[derive(Default)]
struct Sum {
    committed: u64,
    first: Vec<String>,
    times: Option<(String, String)>,
    operations: BTreeMap<String, u64>,
    relations: BTreeSet<String>,
    more_relations: bool,
}

impl Sum {
    /// Takes a line such as `rmgr: Heap len (rec/tot): 59/ 59, tx: 735, lsn: 0/0, prev 0/0, desc: INSERT off 1 …, blkref #0: rel 1663/5/16385 …`.
    fn take(&mut self, line: &str) {
        let after = |mark: &str| line.split_once(mark).map(|(_, rest)| rest);
        let Some(manager) = after("rmgr: ").and_then(|rest| rest.split_whitespace().next()) else { return };
        let Some(description) = after("desc: ") else { return };
        let verb = description.split_whitespace().next().unwrap_or_default();
        if manager == "Transaction" && verb.starts_with("COMMIT") {
            self.committed += 1;
            if self.first.len() < NAMED {
                let xid = after("tx:").and_then(|rest| rest.split(',').next()).unwrap_or_default().trim();
                self.first.push(xid.to_owned());
            }
            let when = description.split(';').next().unwrap_or_default().trim_start_matches(verb).trim().to_owned();
            let begin = self.times.take().map_or_else(|| when.clone(), |(begin, _)| begin);
            self.times = Some((begin, when));
        }
        if matches!(manager, "Heap" | "Heap2")
            && ["INSERT", "UPDATE", "DELETE", "HOT_UPDATE", "MULTI_INSERT", "TRUNCATE"]
                .iter()
                .any(|v| verb.starts_with(v))
        {
            *self.operations.entry(verb.to_lowercase()).or_default() += 1;
            for part in description.split("rel ").skip(1) {
                let name = part.split_whitespace().next().unwrap_or_default().trim_end_matches([',', ';']);
                if self.relations.len() < NAMED {
                    self.relations.insert(name.to_owned());
                } else {
                    self.more_relations |= !self.relations.contains(name);
                }
            }
        }
    }

    fn report(&self) -> String {
        let times = self.times.as_ref().map(|(from, to)| format!(" from {from} to {to}")).unwrap_or_default();
        let operations: Vec<String> = self.operations.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let relations: Vec<&str> = self.relations.iter().map(String::as_str).collect();
        let dots = |more: bool| if more { ", …" } else { "" };
        format!(
            "{} committed transactions{times} (ids {}{}); operations: {}; relations (tablespace/database/file): {}{}",
            self.committed,
            self.first.join(", "),
            dots(self.committed > self.first.len() as u64),
            if operations.is_empty() { "none".to_owned() } else { operations.join(", ") },
            if relations.is_empty() { "none".to_owned() } else { relations.join(", ") },
            dots(self.more_relations),
        )
    }
}

impl Postgres {
    /// Copies the log from the fork on, and says what it holds. What was kept before of the same log is not kept again.
    pub(crate) async fn keep_diverged(&self, mine: &LogEnd, fork: Position) -> Result<Lost, EngineError> {
        let data = self.data();
        let aside = self.options.layout.diverged();
        let suffix = format!("-{}", mine.position.to_string().replace('/', "_"));
        if let Some(lost) = kept_before(&aside, &suffix, fork) {
            return Ok(lost);
        }
        let name = format!("{}{suffix}", wall_now_ms());
        let place = aside.join(&name);
        let part = aside.join(format!("{name}{PART}"));
        let say = |error: std::io::Error| {
            not_yet(format!(
                "could not keep the diverged log in {}: {error}; nothing is thrown away before it is kept: free some space",
                place.display()
            ))
        };
        let (end, into, from, all) = (mine.position, part.clone(), data.clone(), aside.clone());
        let copied = tokio::task::spawn_blocking(move || copy_log(&from, &all, &into, end, fork)).await;
        let left_out = copied.map_err(failed)?.map_err(say)?;
        let (sum, failures) = self.sum_up(mine, fork).await?;
        let mut report = format!("the log beyond {fork} is kept in {} and holds {}", place.display(), sum.report());
        if left_out > 0 {
            report.push_str(&format!("; its {left_out} newest files were left out for want of room"));
        }
        if !failures.is_empty() {
            report.push_str(&format!("; not all could be read: {}", failures.join("; ")));
        }
        report.truncate(report.floor_char_boundary(4000));
        let lost = Lost {
            from: fork,
            to: mine.position,
            commits: failures.is_empty().then_some(sum.committed),
            kept: place.display().to_string(),
            report,
            ..Lost::default()
        };
        let json = written(&lost).map_err(failed)?;
        files::write_atomic(&part, REPORT, json.as_bytes(), 0o600, None)
            .and_then(|()| std::fs::rename(&part, &place))
            .and_then(|()| files::sync_dir(&aside))
            .map_err(say)?;
        Ok(lost)
    }

    /// What the log holds beyond the fork, along each timeline of our own since.
    async fn sum_up(&self, mine: &LogEnd, fork: Position) -> Result<(Sum, Vec<String>), EngineError> {
        let wal = self.data().join("pg_wal").display().to_string();
        let mut sum = Sum::default();
        let mut failures = Vec::new();
        let mut from = fork;
        let later = mine.lineage.0.iter().filter(|left| left.timeline >= fork.timeline).chain([&mine.position]);
        for left in later {
            let arguments = [
                "--path".to_owned(),
                wal.clone(),
                format!("--timeline={}", left.timeline),
                format!("--start={}", from.lsn),
                format!("--end={}", left.lsn),
            ];
            if left.lsn > from.lsn {
                let ran = self.run_lines("pg_waldump", &arguments, LIMIT, &mut |line| sum.take(line)).await?;
                if !ran.success {
                    failures.push(ran.err.trim().to_owned());
                }
            }
            from = *left;
        }
        Ok((sum, failures))
    }
}

/// What is known of a log that ends as `suffix` says and left the history at `fork`, if it was kept whole.
fn kept_before(aside: &Path, suffix: &str, fork: Position) -> Option<Lost> {
    let dirs = std::fs::read_dir(aside).ok()?.flatten().map(|entry| entry.path());
    let mut same = dirs.filter(|dir| dir.file_name().is_some_and(|name| name.to_string_lossy().ends_with(suffix)));
    same.find_map(|dir| {
        let lost: Lost = serde_json::from_slice(&std::fs::read(dir.join(REPORT)).ok()?).ok()?;
        (lost.from == fork).then_some(lost)
    })
}

/// What is written beside a kept log. Whether it may have been acknowledged is left out: only the cluster's record tells, and `mainstay history`.
fn written(lost: &Lost) -> serde_json::Result<String> {
    let mut told = serde_json::to_value(lost)?;
    if let Some(fields) = told.as_object_mut() {
        fields.remove("may_be_acknowledged");
    }
    serde_json::to_string_pretty(&told)
}

/// Copies the files of the log from the fork on, and the control file; says how many did not fit.
fn copy_log(data: &Path, aside: &Path, into: &Path, end: Position, fork: Position) -> std::io::Result<usize> {
    files::ensure_dir(aside, 0o700, None)?;
    let mut wal = Wal::list(data).map_err(std::io::Error::other)?;
    wal.follow(end.timeline).map_err(std::io::Error::other)?;
    let segments = wal.segments_from(fork.lsn.0.saturating_sub(1));
    let sizes: Vec<u64> = segments.iter().map(|file| file.metadata().map(|is| is.len())).collect::<Result<_, _>>()?;
    let volume = rustix::fs::statvfs(aside)?;
    let keep = keep_on(volume.f_blocks.saturating_mul(volume.f_frsize));
    make_room(aside, sizes.iter().sum::<u64>().min(keep), keep)?;
    let free = rustix::fs::statvfs(aside).map(|is| is.f_bavail.saturating_mul(is.f_frsize))?;
    if free < LEAST {
        return Err(std::io::Error::new(std::io::ErrorKind::StorageFull, format!("{} MiB are free", free >> 20)));
    }
    files::ensure_dir(into, 0o700, None)?;
    let mut budget = keep.min(free / 2);
    let mut done = 0;
    for (file, size) in segments.iter().zip(sizes) {
        if size > budget {
            break;
        }
        budget -= size;
        copy_durably(file, into)?;
        done += 1;
    }
    for history in std::fs::read_dir(data.join("pg_wal"))?.flatten().map(|entry| entry.path()) {
        if history.extension().is_some_and(|ending| ending == "history") {
            copy_durably(&history, into)?;
        }
    }
    copy_durably(&data.join("global/pg_control"), into)?;
    files::sync_dir(into)?;
    files::sync_dir(aside)?;
    Ok(segments.len() - done)
}

/// How much is kept of all diverged logs together on a volume of this size.
fn keep_on(volume: u64) -> u64 {
    (volume / 16).clamp(KEEP_LEAST, KEEP)
}

fn copy_durably(file: &Path, into: &Path) -> std::io::Result<()> {
    let name = file.file_name().ok_or_else(|| std::io::Error::other("a file without a name"))?;
    let copy = into.join(name);
    std::fs::copy(file, &copy)?;
    std::fs::File::open(copy)?.sync_all()
}

/// Removes what a keeping that broke off left, and the oldest kept logs until there is room for one more of this size within both
/// bounds.
fn make_room(aside: &Path, wanted: u64, keep: u64) -> std::io::Result<()> {
    let dirs = std::fs::read_dir(aside)?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let (parts, mut kept): (Vec<PathBuf>, Vec<PathBuf>) =
        dirs.partition(|dir| dir.file_name().is_some_and(|name| name.to_string_lossy().ends_with(PART)));
    parts.iter().try_for_each(std::fs::remove_dir_all)?;
    // Names begin with the time in milliseconds, of equal length for the next two centuries.
    kept.sort();
    let size = |dir: &PathBuf| -> u64 {
        let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|is| is.len()).sum()
    };
    let mut total: u64 = kept.iter().map(size).sum();
    let mut left = kept.len();
    for dir in kept {
        if total + wanted <= keep && left < KEEP_LOGS {
            break;
        }
        total -= size(&dir);
        left -= 1;
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_beside_a_kept_log_judges_nothing_and_is_read_again() {
        let lost = Lost { commits: Some(7), kept: "/kept".to_owned(), ..Lost::default() };
        let text = written(&lost).unwrap();
        assert!(text.contains("/kept") && !text.contains("may_be_acknowledged"), "{text}");
        assert_eq!(serde_json::from_str::<Lost>(&text).unwrap(), lost);
    }

    #[test]
    fn commits_operations_and_relations_are_summed_up() {
        let mut sum = Sum::default();
        sum.take("rmgr: Heap        len (rec/tot):     59/    59, tx:        735, lsn: 0/015A5B38, prev 0/015A5B00, desc: INSERT off 1 flags 0x08, blkref #0: rel 1663/5/16385 blk 0");
        sum.take("rmgr: Transaction len (rec/tot):     34/    34, tx:        735, lsn: 0/015A5B78, prev 0/015A5B38, desc: COMMIT 2026-11-22 23:41:20.123 UTC");
        sum.take("rmgr: Standby     len (rec/tot):     50/    50, tx:          0, lsn: 0/015A5BA0, prev 0/015A5B78, desc: RUNNING_XACTS nextXid 736");
        let report = sum.report();
        assert!(report.contains("1 committed transactions from 2026-11-22 23:41:20.123 UTC"), "{report}");
        assert!(
            report.contains("ids 735") && report.contains("insert 1") && report.contains("1663/5/16385"),
            "{report}"
        );
    }

    #[test]
    fn what_is_kept_follows_the_size_of_the_volume() {
        assert_eq!([300 << 20, 1 << 30, 1 << 40].map(keep_on), [32 << 20, 64 << 20, 512 << 20]);
        let place = tempfile::tempdir().unwrap();
        for name in ["0000000000001-1_0_5", "0000000000002-1_0_6"] {
            std::fs::create_dir(place.path().join(name)).unwrap();
            std::fs::write(place.path().join(name).join("a"), vec![0; 20 << 20]).unwrap();
        }
        make_room(place.path(), 16 << 20, keep_on(600 << 20)).unwrap();
        let left: Vec<_> = std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["0000000000002-1_0_6"]);
    }

    #[test]
    fn old_logs_make_room_and_halves_go() {
        let place = tempfile::tempdir().unwrap();
        let dir = |name: &str| {
            let dir = place.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("a"), vec![0; 1000]).unwrap();
        };
        (0..KEEP_LOGS).for_each(|number| dir(&format!("{:013}-1_0_5", 10 + number)));
        dir("0000000000099-1_0_9.part");
        make_room(place.path(), 1, KEEP).unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!((left.len(), left[0].to_str().unwrap()), (KEEP_LOGS - 1, "0000000000011-1_0_5"));
        make_room(place.path(), KEEP - 2500, KEEP).unwrap();
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 2);
    }
}
