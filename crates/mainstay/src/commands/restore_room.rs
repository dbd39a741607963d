//! Is there room for a copy? A disk that is too small is found before hours of writing; each volume on its own, for a tablespace's directory beside
//! the data may be another's mount point.

use crate::failure::{Failure, Outcome};
use crate::local::machine;
use crate::output::table::bytes;
use mainstay_vault::postgres::restore::{Plan, tablespace_beside};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The room for a copy at one place.
pub(super) struct Room<'a> {
    data: &'a Path,
    /// An old copy is there.
    delta: bool,
    /// What that holds in each directory, bytes: every file is looked at, so once.
    held: BTreeMap<PathBuf, u64>,
}

impl Room<'_> {
    pub(super) fn at(data: &Path, delta: bool) -> Room<'_> {
        Room { data, delta, held: BTreeMap::new() }
    }

    /// Is there enough?
    pub(super) fn check(&mut self, made: &Plan) -> Outcome {
        self.by_volume(&places(self.data, made)).into_iter().try_for_each(|(place, needs)| enough(&place, needs))
    }

    /// How much each volume must have free: one directory on it, and the bytes. What an old copy holds there is used again.
    fn by_volume(&mut self, places: &[(PathBuf, u64)]) -> Vec<(PathBuf, u64)> {
        let mut volumes: BTreeMap<Option<u64>, (PathBuf, u64, u64)> = BTreeMap::new();
        for (place, wanted) in places {
            let device = place.ancestors().find_map(|dir| dir.metadata().ok()).map(|found| found.dev());
            let (_, wants, there) = volumes.entry(device).or_insert_with(|| (place.clone(), 0, 0));
            *wants = wants.saturating_add(*wanted);
            if self.delta {
                let held = *self.held.entry(place.clone()).or_insert_with(|| held(place));
                *there = there.saturating_add(held);
            }
        }
        volumes.into_values().map(|(place, wants, there)| (place, wants.saturating_sub(there))).collect()
    }
}

fn enough(place: &Path, needs: u64) -> Outcome {
    match machine::disk_bytes(place) {
        Some((_, free)) if free < needs => Err(Failure::not_now(format!(
            "the volume of {} has {} free, and the copy needs {}",
            place.display(),
            bytes(free),
            bytes(needs)
        ))
        .hint("free space, or name a directory on another volume with --to; nothing was changed")),
        _ => Ok(()),
    }
}

/// The directories of a copy, with what comes to lie in each, bytes.
fn places(data: &Path, made: &Plan) -> Vec<(PathBuf, u64)> {
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
    let own = made.needs().saturating_sub(beside);
    [(data.to_owned(), own)].into_iter().chain(spaces).collect()
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
        assert_eq!(Room::at(&data, true).by_volume(&places), [(data.clone(), 405)]);
        assert_eq!(Room::at(&data, false).by_volume(&places), [(data.clone(), 1405)]);
        // Another volume's room is no room here.
        let places = [(data.clone(), 400), (PathBuf::from("/proc/self"), 5)];
        assert_eq!(Room::at(&data, false).by_volume(&places).len(), 2);
    }
}
