//! A restore onto an old copy: which directories are one, what tells a restore that broke off, and what of the old copy goes.
//!
//! Before anything is written the directory gets a mark, and its control file goes; the mark goes when everything is there again. So one that broke
//! off is no database to any server, and the next attempt knows whose it is.

use crate::postgres::control;
use crate::postgres::manifest::Manifest;
use crate::postgres::restore::LOG_DIR;
use crate::postgres::walk::CONTROL;
use crate::repository::VaultError;
use mainstay_model::SystemId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The mark of a restore that has not ended.
const MARK: &str = "mainstay_unfinished";
/// One that is being written.
const NEW_MARK: &str = "mainstay_unfinished.new";
/// Nothing larger is a mark.
const MARK_MAX: u64 = 1 << 20;

/// What the mark says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mark {
    /// Of which database.
    system: SystemId,
    /// From which backup.
    backup: String,
    /// Where its tablespaces lie.
    tablespaces: BTreeMap<u32, PathBuf>,
}

/// Has a restore begun there, and not ended?
#[must_use]
pub fn is_begun(data: &Path) -> bool {
    data.join(MARK).symlink_metadata().is_ok()
}

impl Mark {
    /// Of a restore from this backup, to these tablespaces.
    pub(crate) fn of(base: &Manifest, tablespaces: BTreeMap<u32, PathBuf>) -> Mark {
        Mark { system: base.system, backup: base.label.clone(), tablespaces }
    }

    /// The one that an earlier restore left.
    pub(crate) fn read(data: &Path) -> Result<Option<Mark>, VaultError> {
        let path = data.join(MARK);
        match path.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Ok(found) if found.is_file() && found.len() <= MARK_MAX => {}
            Ok(_) => return Err(VaultError::Impossible(format!("{} is no mark of a restore", path.display()))),
            Err(error) => return Err(VaultError::file(&path, error)),
        }
        let text = std::fs::read(&path).map_err(|e| VaultError::file(&path, e))?;
        let wrong = |e| VaultError::Impossible(format!("{} can not be understood: {e}", path.display()));
        serde_json::from_slice(&text).map(Some).map_err(wrong)
    }

    /// Writes it into a directory that nobody else may change now. One that is there stays until the new one is whole: without any, what broke off
    /// before would be nobody's copy for ever.
    pub(crate) fn write(&self, data: &Path) -> Result<(), VaultError> {
        let text = serde_json::to_vec(self).map_err(|e| VaultError::Crypto(e.to_string()))?;
        let (path, new) = (data.join(MARK), data.join(NEW_MARK));
        gone(&new)?;
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
        let written = written.and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()));
        if let Err(error) = written.and_then(|()| std::fs::rename(&new, &path)) {
            let _ = std::fs::remove_file(&new);
            return Err(VaultError::file(&new, error));
        }
        sync_dir(data)
    }

    /// A tablespace's directory that holds anything must be the old copy's: nothing else is written over.
    /// `spaces`: where these are looked into.
    pub(crate) fn check_spaces(
        &self,
        data: &Path,
        before: Option<&Mark>,
        spaces: &BTreeMap<u32, PathBuf>,
    ) -> Result<(), VaultError> {
        for (number, place) in &self.tablespaces {
            let linked = std::fs::read_link(data.join(format!("pg_tblspc/{number}"))).is_ok_and(|to| to == *place);
            let noted = before.is_some_and(|before| before.tablespaces.get(number) == Some(place));
            let looked = spaces.get(number).unwrap_or(place);
            let empty = std::fs::read_dir(looked).map_or(true, |mut entries| entries.next().is_none());
            if !linked && !noted && !empty {
                let says = format!(
                    "{} holds something, and is no tablespace of {}: move it away",
                    place.display(),
                    data.display()
                );
                return Err(VaultError::Impossible(says));
            }
        }
        Ok(())
    }
}

/// Names in a directory are on the disk.
fn sync_dir(dir: &Path) -> Result<(), VaultError> {
    std::fs::File::open(dir).and_then(|open| open.sync_all()).map_err(|e| VaultError::file(dir, e))
}

/// Takes the control file away: no server starts there any more. Durable, because after a loss of power the files written next may be on the disk,
/// and a control file that came back would have a server start on them.
pub(crate) fn end_of_control(data: &Path) -> Result<(), VaultError> {
    let control = data.join(CONTROL);
    let Some(dir) = control.parent() else { return Ok(()) };
    match dir.symlink_metadata() {
        Ok(found) if found.is_dir() => {
            gone(&control)?;
            sync_dir(dir)?;
        }
        // Through a link it would be another's.
        Ok(_) => gone(dir)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(VaultError::file(dir, error)),
    }
    sync_dir(data)
}

/// Everything is there.
pub(crate) fn remove(data: &Path) -> Result<(), VaultError> {
    gone(&data.join(MARK))
}

/// Removes a file that may not be there.
fn gone(path: &Path) -> Result<(), VaultError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(VaultError::file(path, error)),
        _ => Ok(()),
    }
}

/// Of which database a directory is a copy that `restore` made, or began. Nothing else is ever written over.
///
/// # Errors
/// When it is none, or a server may run there.
pub fn copy_at(data: &Path) -> Result<SystemId, VaultError> {
    let none = |why: &str| VaultError::Impossible(format!("{} is no copy that a restore made: {why}", data.display()));
    match data.symlink_metadata() {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(none("it is no directory")),
        Err(error) => return Err(none(&error.to_string())),
    }
    let mark = Mark::read(data)?;
    if mark.is_none() && !data.join(LOG_DIR).symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return Err(none(&format!("it has no {LOG_DIR}")));
    }
    refuse_server(data)?;
    if let Some(mark) = mark {
        return Ok(mark.system);
    }
    let control = data.join(CONTROL);
    let first = control::read(&control)?.first_chunk::<8>().map(|bytes| SystemId(u64::from_le_bytes(*bytes)));
    first.ok_or_else(|| none("its control file is too short"))
}

/// Nothing is written below a server.
pub(crate) fn refuse_server(data: &Path) -> Result<(), VaultError> {
    if data.join("postmaster.pid").symlink_metadata().is_ok() {
        let says = format!(
            "{} has a postmaster.pid: a server may run there. Stop it first (kill -INT, the process in that file's first line); if none \
             runs there, remove that file",
            data.display()
        );
        return Err(VaultError::Impossible(says));
    }
    Ok(())
}

/// Removes what the backup does not hold: other files, all of the old log, directories that are empty then. `below`: the data directory itself, or a
/// tablespace's, with what its files are called in the manifest.
pub(crate) fn clear(base: &Manifest, (dir, name): (&Path, &str)) -> Result<(), VaultError> {
    let files: BTreeSet<&str> = base.files.iter().map(|file| file.path.as_str()).collect();
    let dirs: BTreeSet<&str> = base.directories.iter().map(|(path, _)| path.as_str()).collect();
    let (mut todo, mut seen) = (vec![(dir.to_owned(), name.to_owned())], Vec::new());
    while let Some((dir, name)) = todo.pop() {
        for entry in std::fs::read_dir(&dir).map_err(|e| VaultError::file(&dir, e))? {
            let entry = entry.map_err(|e| VaultError::file(&dir, e))?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(|e| VaultError::file(&dir, e))?);
            let file = entry.file_name().to_string_lossy().into_owned();
            let name = if name.is_empty() { file } else { format!("{name}/{file}") };
            if kind.is_dir() {
                todo.push((path.clone(), name.clone()));
                seen.push((path, name));
            } else if name != MARK && (kind.is_symlink() || !files.contains(name.as_str())) {
                std::fs::remove_file(&path).map_err(|e| VaultError::file(&path, e))?;
            }
        }
    }
    // The innermost first. One that is not empty holds what the backup has.
    for (path, _) in seen.iter().rev().filter(|(_, name)| !dirs.contains(name.as_str())) {
        match std::fs::remove_dir(path) {
            Err(error) if !matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound) => {
                return Err(VaultError::file(path, error));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_copy_is_written_over_and_a_mark_tells_whose_it_is() {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("copy");
        let says = |data: &Path| copy_at(data).unwrap_err().to_string();
        assert!(says(&data).contains("is no copy"));
        std::fs::create_dir(&data).unwrap();
        assert!(says(&data).contains("mainstay_log"), "{}", says(&data));
        std::os::unix::fs::symlink(&data, home.path().join("link")).unwrap();
        assert!(says(&home.path().join("link")).contains("no directory"));
        let space = home.path().join("space");
        let mark = Mark { system: SystemId(7), backup: "b".into(), tablespaces: [(9, space.clone())].into() };
        mark.write(&data).unwrap();
        mark.write(&data).unwrap();
        assert_eq!(copy_at(&data).unwrap(), SystemId(7));
        assert_eq!(Mark::read(&data).unwrap().as_ref(), Some(&mark));
        // No room for another one.
        std::fs::create_dir_all(data.join(NEW_MARK).join("full")).unwrap();
        Mark { system: SystemId(8), ..mark.clone() }.write(&data).unwrap_err();
        assert_eq!(Mark::read(&data).unwrap().as_ref(), Some(&mark));
        std::fs::remove_dir_all(data.join(NEW_MARK)).unwrap();
        // A tablespace's directory that is another's.
        mark.check_spaces(&data, None, &mark.tablespaces).unwrap();
        std::fs::create_dir(&space).unwrap();
        std::fs::write(space.join("file"), "").unwrap();
        assert!(mark.check_spaces(&data, None, &mark.tablespaces).unwrap_err().to_string().contains("no tablespace"));
        mark.check_spaces(&data, Some(&mark), &mark.tablespaces).unwrap();
        std::fs::create_dir(data.join("pg_tblspc")).unwrap();
        std::os::unix::fs::symlink(&space, data.join("pg_tblspc/9")).unwrap();
        mark.check_spaces(&data, None, &mark.tablespaces).unwrap();
        std::fs::write(data.join("postmaster.pid"), "1\n").unwrap();
        assert!(says(&data).contains("a server may run there"));
        std::fs::remove_file(data.join("postmaster.pid")).unwrap();
        remove(&data).unwrap();
        remove(&data).unwrap();
        assert!(copy_at(&data).is_err());
        std::os::unix::fs::symlink("/etc/hostname", data.join(MARK)).unwrap();
        assert!(says(&data).contains("no mark"));
    }

    #[test]
    fn the_control_file_goes_and_never_another_s() {
        let home = tempfile::tempdir().unwrap();
        let (data, other) = (home.path().join("copy"), home.path().join("other"));
        for dir in [&data, &other] {
            std::fs::create_dir_all(dir.join("global")).unwrap();
            std::fs::write(dir.join(CONTROL), "control").unwrap();
        }
        end_of_control(&data).unwrap();
        assert!(!data.join(CONTROL).exists());
        end_of_control(&data).unwrap();
        std::fs::remove_dir(data.join("global")).unwrap();
        end_of_control(&data).unwrap();
        std::os::unix::fs::symlink(other.join("global"), data.join("global")).unwrap();
        end_of_control(&data).unwrap();
        assert!(!data.join(CONTROL).exists() && other.join(CONTROL).exists());
    }
}
