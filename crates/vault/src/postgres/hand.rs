//! Who owns a restored tree. The server's user may have put a link wherever the superuser is about to write; so a tree is taken out of
//! its reach first, then filled, and handed over as the last thing. The directory above may stay that user's: what is taken is held open, and
//! reached through that alone, for its name may lead elsewhere by then.

use crate::postgres::way;
use crate::repository::VaultError;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{FileType, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown, lchown};
use std::path::{Path, PathBuf};

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Directories that were taken, as they were before.
pub(crate) struct Taken(Vec<Was>);

struct Was {
    path: PathBuf,
    /// Where it stood, and its name there.
    above: (OwnedFd, OsString),
    dir: OwnedFd,
    /// Its user, group and mode; `None`: it was not there.
    before: Option<(u32, u32, Mode)>,
}

impl Taken {
    /// All of them, or none.
    pub(crate) fn all(paths: &[PathBuf]) -> Result<Taken, VaultError> {
        let mut taken = Taken(Vec::new());
        for path in paths {
            match take(path) {
                Ok(was) => taken.0.push(was),
                Err(error) => {
                    taken.give_back();
                    return Err(error);
                }
            }
        }
        Ok(taken)
    }

    /// Nothing was written: whoever works there goes on. What can not be undone is no worse than before, and the reason for it is told already.
    pub(crate) fn give_back(self) {
        for was in self.0.into_iter().rev() {
            let Some((user, group, mode)) = was.before else {
                let _ = rustix::fs::unlinkat(&was.above.0, &was.above.1, AtFlags::REMOVEDIR);
                continue;
            };
            let _ = fchown(&was.dir, Some(user), Some(group));
            let _ = rustix::fs::fchmod(&was.dir, mode);
        }
    }

    /// The way to a directory that was taken, wherever its name leads by now.
    pub(crate) fn at(&self, path: &Path) -> PathBuf {
        self.0
            .iter()
            .find(|was| was.path == path)
            .map_or_else(|| path.to_owned(), |was| PathBuf::from(way::held(&was.dir)))
    }

    /// The same error, with the names instead of the ways.
    pub(crate) fn named(&self, error: VaultError) -> VaultError {
        let name = |text: String| {
            self.0.iter().fold(text, |text, was| text.replace(&way::held(&was.dir), &was.path.display().to_string()))
        };
        match error {
            VaultError::File { path, error } => VaultError::File { path: name(path), error },
            VaultError::Impossible(says) => VaultError::Impossible(name(says)),
            VaultError::Backup(says) => VaultError::Backup(name(says)),
            other => other,
        }
    }

    /// Each is still what its name leads to: else whoever asked for it would find something else there.
    pub(crate) fn check_in_place(&self) -> Result<(), VaultError> {
        for was in &self.0 {
            let held = rustix::fs::fstat(&was.dir).map_err(|e| VaultError::file(&was.path, e.into()))?;
            let there = was.path.symlink_metadata().is_ok_and(|is| (is.dev(), is.ino()) == (held.st_dev, held.st_ino));
            if !there {
                let says = format!(
                    "{} was moved away while it was being filled: what lies there now was not touched, and what was moved is no whole copy. \
                     Restore into a directory below one that nobody else may write to",
                    was.path.display()
                );
                return Err(VaultError::Impossible(says));
            }
        }
        Ok(())
    }
}

/// The directory, made if it is not there: ours, and nobody else's to look into.
fn take(path: &Path) -> Result<Was, VaultError> {
    let wrong = |e: std::io::Error| VaultError::file(path, e);
    let above = way::above(path)?;
    let there = match rustix::fs::mkdirat(&above.0, &above.1, Mode::from_raw_mode(0o700)) {
        Ok(()) => false,
        Err(Errno::EXIST) => true,
        Err(error) => return Err(wrong(error.into())),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(&above.0, &above.1, flags, Mode::empty()).map_err(|error| match error {
        Errno::NOTDIR | Errno::LOOP => {
            VaultError::Impossible(format!("{} is a link or a file: name the directory itself", path.display()))
        }
        other => wrong(other.into()),
    })?;
    let found = rustix::fs::fstat(&dir).map_err(|e| wrong(e.into()))?;
    if found.st_uid != me() {
        fchown(&dir, Some(me()), None).map_err(wrong)?;
    }
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o700)).map_err(|e| wrong(e.into()))?;
    let before = there.then(|| (found.st_uid, found.st_gid, Mode::from_raw_mode(found.st_mode)));
    Ok(Was { path: path.to_owned(), above, dir, before })
}

/// All below a directory that is taken. Only directories and files remain, and those files only that lie nowhere else as well: what is
/// written to them changes nothing outside.
pub(crate) fn take_below(top: &Path) -> Result<(), VaultError> {
    // A directory is looked into only once it is ours: what was seen in it can not become a link any more.
    below(top, &mut |path, kind| {
        let found = path.symlink_metadata()?;
        if !kind.is_dir() && (!kind.is_file() || found.nlink() > 1) {
            return std::fs::remove_file(path);
        }
        if found.uid() != me() {
            lchown(path, Some(me()), None)?;
        }
        if kind.is_dir() { std::fs::set_permissions(path, Permissions::from_mode(0o700)) } else { Ok(()) }
    })
}

/// Gives a taken directory and all below it to its user, itself last; no link is followed.
pub(crate) fn hand_over(top: &Path, (user, group): (u32, u32)) -> Result<(), VaultError> {
    let mut all = vec![top.to_owned()];
    below(top, &mut |path, _| {
        all.push(path.to_owned());
        Ok(())
    })?;
    // What is in a directory before the directory: whoever kept it open can do nothing there yet.
    all.iter().rev().try_for_each(|path| lchown(path, Some(user), Some(group)).map_err(|e| VaultError::file(path, e)))
}

fn below(top: &Path, each: &mut dyn FnMut(&Path, FileType) -> std::io::Result<()>) -> Result<(), VaultError> {
    let mut dirs = vec![top.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).map_err(|e| VaultError::file(&dir, e))? {
            let entry = entry.map_err(|e| VaultError::file(&dir, e))?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(|e| VaultError::file(&dir, e))?);
            each(&path, kind).map_err(|e| VaultError::file(&path, e))?;
            if kind.is_dir() {
                dirs.push(path);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tree_is_taken_and_handed_over_without_following_links() {
        let home = tempfile::tempdir().unwrap();
        let (top, other) = (home.path().join("copy"), home.path().join("other"));
        take(&top).unwrap();
        std::fs::write(&other, "another's").unwrap();
        std::fs::create_dir(top.join("base")).unwrap();
        std::fs::write(top.join("base/1"), "").unwrap();
        std::fs::hard_link(&other, top.join("base/2")).unwrap();
        symlink(&other, top.join("backup_label")).unwrap();
        std::fs::set_permissions(&top, Permissions::from_mode(0o755)).unwrap();
        let root = me() == 0;
        let them = if root { (65_533, 65_533) } else { (me(), rustix::process::getegid().as_raw()) };
        for path in [top.clone(), top.join("base"), top.join("base/1")] {
            lchown(path, Some(them.0), None).unwrap();
        }

        take(&top).unwrap();
        take_below(&top).unwrap();
        let owner = |path: &Path| path.symlink_metadata().unwrap().uid();
        assert_eq!(top.metadata().unwrap().mode() & 0o777, 0o700);
        assert!([top.clone(), top.join("base"), top.join("base/1")].iter().all(|path| owner(path) == me()));
        assert!(top.join("base/2").symlink_metadata().is_err() && top.join("backup_label").symlink_metadata().is_err());

        symlink(&other, top.join("link")).unwrap();
        hand_over(&top, them).unwrap();
        assert!([top.clone(), top.join("base/1"), top.join("link")].iter().all(|path| owner(path) == them.0));
        assert_eq!(owner(&other), me());
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "another's");
        symlink(&top, home.path().join("to")).unwrap();

        // All or none, and what was taken is given back as it was.
        std::fs::set_permissions(&top, Permissions::from_mode(0o750)).unwrap();
        let is = |path: &Path| path.symlink_metadata().map(|is| (is.uid(), is.gid(), is.mode() & 0o7777)).ok();
        let (was, new) = (is(&top), home.path().join("new"));
        let refused = Taken::all(&[top.clone(), new.clone(), home.path().join("to")]).err().unwrap();
        assert!(refused.to_string().contains("is a link"));
        assert_eq!((is(&top), is(&new)), (was, None));
        let taken = Taken::all(&[top.clone(), new.clone()]).unwrap();
        assert_eq!(is(&top).map(|is| (is.0, is.2)), Some((me(), 0o700)));
        taken.give_back();
        assert_eq!((is(&top), is(&new)), (was, None));
    }

    #[test]
    fn what_is_taken_is_reached_also_when_its_name_leads_elsewhere() {
        let home = tempfile::tempdir().unwrap();
        let (top, away, other) = (home.path().join("copy"), home.path().join("away"), home.path().join("other"));
        for dir in [&top, &other] {
            std::fs::create_dir_all(dir.join("base")).unwrap();
            std::fs::write(dir.join("base/1"), "").unwrap();
        }
        std::fs::set_permissions(&other, Permissions::from_mode(0o755)).unwrap();
        let taken = Taken::all(std::slice::from_ref(&top)).unwrap();
        taken.check_in_place().unwrap();
        std::fs::rename(&top, &away).unwrap();
        symlink(&other, &top).unwrap();
        let at = taken.at(&top);
        take_below(&at).unwrap();
        std::fs::remove_file(at.join("base/1")).unwrap();
        let them = if me() == 0 { (65_533, 65_533) } else { (me(), rustix::process::getegid().as_raw()) };
        hand_over(&at, them).unwrap();
        assert!(other.join("base/1").exists() && !away.join("base/1").exists());
        let is = |path: &Path| path.metadata().map(|is| (is.uid(), is.mode() & 0o777)).unwrap();
        assert_eq!((is(&other), is(&away)), ((me(), 0o755), (them.0, 0o700)));
        assert!(taken.check_in_place().unwrap_err().to_string().contains("was moved away"));
        let error = VaultError::file(&at.join("base/2"), std::io::ErrorKind::NotFound.into());
        assert!(taken.named(error).to_string().starts_with(&top.join("base/2").display().to_string()));
    }
}
