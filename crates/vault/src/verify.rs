//! Looks at everything in a repository and says what can be restored: nothing is believed because it was written once.

use crate::hex;
use crate::objects::Key;
use crate::postgres::archive::{Held, check_held, gaps, lineage};
use crate::postgres::backup;
use crate::postgres::content::Content;
use crate::postgres::fetch::{Packs, fetch};
use crate::postgres::log::{LogFile, SegmentSize, segments};
use crate::postgres::manifest::Manifest;
use crate::repository::{Repository, VaultError};
use mainstay_model::{Lsn, Position, SystemId};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Backups that are whole, with the time when they ended.
    pub good: Vec<(String, i64)>,
    /// Objects read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// From the end of the oldest good backup (microseconds) to this position on the newest timeline, every moment can be restored.
    pub window: Option<(i64, Position)>,
    /// One sentence each: what is damaged or missing.
    pub problems: Vec<String>,
}

/// Checks a pack against the manifest and the checksum at its end.
fn pack(repository: &Repository, backup: &Manifest, number: usize, report: &mut Report) -> Result<(), VaultError> {
    let Some(pack) = backup.packs.get(number) else { return Ok(()) };
    let key = Key::new(format!("backups/{}/{}/{}", backup.system, backup.label, pack.name))?;
    let bytes = repository.objects().read(&key, None)?;
    let end = crate::seal::check_sum(key.as_str(), &bytes)?;
    let sum = bytes.get(end + 8..).map(hex::encode).unwrap_or_default();
    if bytes.len() as u64 != pack.size || sum != pack.sum {
        return Err(VaultError::Damaged(format!("{key} is whole, and not what its manifest says")));
    }
    report.objects += 1;
    report.bytes += pack.size;
    Ok(())
}

/// A failed look at one thing is a problem of that thing; a repository out of reach ends the whole.
fn note(report: &mut Report, result: Result<(), VaultError>) -> Result<bool, VaultError> {
    match result {
        Ok(()) => Ok(true),
        Err(error @ VaultError::Object(crate::objects::ObjectError::Unreachable(_))) => Err(error),
        Err(error) => {
            // Several backups and the log as a whole may need the same thing.
            let says = error.to_string();
            if !report.problems.contains(&says) {
                report.problems.push(says);
            }
            Ok(false)
        }
    }
}

/// Reads everything of one database back.
pub fn verify(repository: &Repository, system: SystemId) -> Result<Report, VaultError> {
    let mut report = Report::default();
    let (backups, unreadable) = backup::readable(repository, system)?;
    report.problems.extend(unreadable.iter().map(ToString::to_string));
    let Some(size) = backups.last().map(|backup| SegmentSize(backup.server.segment_size)) else {
        report.problems.push(format!("there is no backup of the database {system}"));
        return Ok(report);
    };
    let held = Held::list(repository, system, size)?;
    for file in &held.files {
        let look = match file {
            LogFile::Segment(timeline, number) => check_held(repository, system, size, &[(*timeline, *number)]),
            other => size.key(system, *other).and_then(|key| repository.check(&key).map(drop)),
        };
        report.objects += u64::from(note(&mut report, look)?);
    }
    let mut looked_at = newest(&backups, &held, system, size)?;
    if repository.objects().locks() {
        looked_at.extend(repository.lasting(system)?);
    }
    for key in looked_at {
        let looked = repository.objects().unlocked(&key).map(|says| report.problems.extend(says));
        note(&mut report, looked.map_err(VaultError::from))?;
    }
    let (packs, mut content) = (Packs::new(repository), Content::new());
    for backup in &backups {
        let mut good = true;
        for number in 0..backup.packs.len() {
            let looked = pack(repository, backup, number, &mut report);
            good &= note(&mut report, looked)?;
        }
        // Extents of an incremental backup lie in its base, too: each is read as a restore would.
        for extent in &backup.extents {
            if !good {
                break;
            }
            let looked = fetch(&packs, backup, extent, &mut content);
            good &= note(&mut report, looked)?;
        }
        let own = lineage(repository, system, size, backup.stop.timeline).and_then(|left| {
            let wanted = segments(size, backup.start, backup.stop, &left).map_err(VaultError::Impossible)?;
            check_held(repository, system, size, &wanted)
        });
        // The segment itself is told of as a hole of the log, or as damaged: here it is what that costs.
        let own = own.map_err(|error| match error {
            VaultError::Object(crate::objects::ObjectError::Unreachable(_)) => error,
            other => VaultError::Impossible(format!("the backup {} can not be restored: {other}", backup.label)),
        });
        good &= note(&mut report, own)?;
        for (file, block) in &backup.corrupt {
            report
                .problems
                .push(format!("{}: block {block} of {file} was damaged on the server already", backup.label));
        }
        if good {
            report.good.push((backup.label.clone(), backup.ended));
        }
    }
    window(repository, &backups, &held, size, &mut report)?;
    Ok(report)
}

/// What was written last, by which is seen whether objects are locked as they are written: a segment, and the largest pack of a backup, for a store may
/// lock what is written whole and forget what is written in parts. Of older ones that says nothing.
fn newest(backups: &[Manifest], held: &Held, system: SystemId, size: SegmentSize) -> Result<Vec<Key>, VaultError> {
    let mut keys = Vec::new();
    let segment = held.timelines().iter().rev().find_map(|timeline| Some((*timeline, held.last(*timeline)?)));
    if let Some((timeline, number)) = segment {
        keys.push(size.key(system, LogFile::Segment(timeline, number))?);
    }
    if let Some(backup) = backups.iter().max_by_key(|backup| backup.ended)
        && let Some(pack) = backup.packs.iter().max_by_key(|pack| pack.size)
    {
        keys.push(Key::new(format!("backups/{system}/{}/{}", backup.label, pack.name))?);
    }
    Ok(keys)
}

/// How far the log leads from the oldest good backup on the path of the newest timeline.
fn window(
    repository: &Repository,
    backups: &[Manifest],
    held: &Held,
    size: SegmentSize,
    report: &mut Report,
) -> Result<(), VaultError> {
    let Some((timeline, last)) =
        held.timelines().iter().rev().find_map(|timeline| Some((*timeline, held.last(*timeline)?)))
    else {
        return Ok(());
    };
    let end = Position { timeline, lsn: Lsn((last + 1) * size.0) };
    let path = match lineage(repository, end_system(backups), size, timeline) {
        Ok(path) => path,
        Err(error) => return note(report, Err(error)).map(drop),
    };
    let good = |backup: &&Manifest| report.good.iter().any(|(label, _)| *label == backup.label);
    let first = backups.iter().find(|b| good(b) && path.contains(b.stop, timeline, end.lsn));
    let Some(first) = first else {
        report.problems.push(format!("no good backup leads to timeline {timeline}"));
        return Ok(());
    };
    let holes = gaps(repository, first.system, size, first.start, end)?;
    report.window = holes.is_empty().then_some((first.ended, end));
    report.problems.extend(holes.iter().map(|(from, to)| {
        format!(
            "the log has a hole from {from} to {to}: moments after it can not be restored from the backup {}",
            first.label
        )
    }));
    Ok(())
}

fn end_system(backups: &[Manifest]) -> SystemId {
    backups.last().map_or(SystemId(0), |backup| backup.system)
}
