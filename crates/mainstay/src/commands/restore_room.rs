//! Is there room for a copy? A disk that is too small is found before hours of writing; each volume on its own, for a tablespace's directory beside
//! the data may be another's mount point.

use crate::failure::{Failure, Outcome};
use crate::local::machine;
use crate::output::table::bytes;
use mainstay_vault::postgres::restore::{Plan, tablespace_beside};
use mainstay_vault::postgres::scratch::log_again;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Beside the files and the log: what the recovery itself writes.
const SPARE: u64 = 512 << 20;

/// How much the files and the log take, bytes.
pub(super) fn sizes(made: &Plan) -> (u64, u64) {
    let files = made.base.files.iter().map(|file| file.size).sum();
    (files, made.log.len() as u64 * made.base.server.segment_size)
}

pub(super) fn check_room(data: &Path, made: &Plan, delta: bool) -> Outcome {
    for (place, needs) in by_volume(&places(data, made), delta) {
        match machine::disk_bytes(&place) {
            Some((_, free)) if free < needs => {
                return Err(Failure::not_now(format!(
                    "the volume of {} has {} free, and the copy needs {}",
                    place.display(),
                    bytes(free),
                    bytes(needs)
                ))
                .hint("free space, or name a directory on another volume with --to; nothing was changed"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The directories of a copy, with what comes to lie in each, bytes.
fn places(data: &Path, made: &Plan) -> Vec<(PathBuf, u64)> {
    let (all, log) = sizes(made);
    let spaces: Vec<(PathBuf, u64)> = made
        .base
        .tablespaces
        .keys()
        .map(|number| {
            let prefix = format!("pg_tblspc/{number}/");
            let files = made.base.files.iter().filter(|file| file.path.starts_with(&prefix));
            (tablespace_beside(data, *number), files.map(|file| file.size).sum())
        })
        .collect();
    let beside: u64 = spaces.iter().map(|(_, size)| size).sum();
    let own = all.saturating_sub(beside).saturating_add(log).saturating_add(log_again(made)).saturating_add(SPARE);
    [(data.to_owned(), own)].into_iter().chain(spaces).collect()
}

/// How much each volume must have free: one directory on it, and the bytes. What an old copy holds there is used again.
fn by_volume(places: &[(PathBuf, u64)], delta: bool) -> Vec<(PathBuf, u64)> {
    let mut volumes: BTreeMap<Option<u64>, (PathBuf, u64, u64)> = BTreeMap::new();
    for (place, wanted) in places {
        let device = place.ancestors().find_map(|dir| dir.metadata().ok()).map(|found| found.dev());
        let (_, wants, there) = volumes.entry(device).or_insert_with(|| (place.clone(), 0, 0));
        *wants = wants.saturating_add(*wanted);
        *there = there.saturating_add(if delta { held(place) } else { 0 });
    }
    volumes.into_values().map(|(place, wants, there)| (place, wants.saturating_sub(there))).collect()
}

/// What the files in a directory of an old copy take, bytes.
fn held(dir: &Path) -> u64 {
    let (mut all, mut dirs) = (0_u64, vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else { continue };
            if found.is_dir() {
                dirs.push(entry.path());
            } else if found.is_file() {
                all = all.saturating_add(found.len());
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_old_copy_and_its_tablespaces_hold_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let (data, space) = (dir.path().join("copy"), dir.path().join("copy.tablespace-7"));
        for (place, size) in [(&data, 300), (&space, 700)] {
            std::fs::create_dir_all(place.join("pg_tblspc")).unwrap();
            std::fs::write(place.join("file"), vec![0; size]).unwrap();
        }
        // Counted once, where it lies.
        std::os::unix::fs::symlink(&space, data.join("pg_tblspc/7")).unwrap();
        let places = [(data.clone(), 400), (space, 1000), (dir.path().join("not/there"), 5)];
        assert_eq!(by_volume(&places, true), [(data.clone(), 405)]);
        assert_eq!(by_volume(&places, false), [(data.clone(), 1405)]);
        // Another volume's room is no room here.
        let places = [(data.clone(), 400), (PathBuf::from("/proc/self"), 5)];
        assert_eq!(by_volume(&places, false).len(), 2);
    }
}
