//! The way to a directory: one name after the other, each below what is open already.
//!
//! Where the superuser walks through a directory of somebody else, a link that was put there would take along whatever is made, filled and given away
//! at its end. Such a link is not followed, also if it comes while somebody walks there.

use crate::repository::VaultError;
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// So many links as the kernel follows, too.
const LINKS_MAX: usize = 40;

/// The directory in which the last name of a path stands, open, and that name. What is missing above it is made; the servers' user may pass there.
pub(crate) fn above(path: &Path) -> Result<(OwnedFd, OsString), VaultError> {
    let wrong = |error: Errno| VaultError::file(path, error.into());
    let whole = std::path::absolute(path).map_err(|error| VaultError::file(path, error))?;
    let mut todo = names(&whole);
    let last = (!todo.is_empty()).then(|| todo.remove(0)).filter(|last| last != "..");
    let last = last.ok_or_else(|| VaultError::Impossible(format!("{} names no directory", path.display())))?;
    let (mut dir, mut links) = (root().map_err(wrong)?, 0);
    while let Some(name) = todo.pop() {
        let Some(target) = link(&dir, &name).map_err(wrong)? else {
            dir = enter(&dir, &name).map_err(wrong)?;
            continue;
        };
        links += 1;
        if links > LINKS_MAX {
            return Err(wrong(Errno::LOOP));
        }
        if !settled(&dir, &name).map_err(wrong)? {
            return Err(VaultError::Impossible(format!(
                "{} leads over a link ({} to {}) in a directory where others than the superuser may put one: name the directory where that leads",
                path.display(),
                name.display(),
                target.display()
            )));
        }
        if target.is_absolute() {
            dir = root().map_err(wrong)?;
        }
        todo.extend(names(&target));
    }
    Ok((dir, last))
}

/// A link of the kernel's that leads to what is open, whatever its name leads to by now. The dot: it is a directory also to those who follow no link,
/// and no other such text begins like this one.
pub(crate) fn held(dir: &OwnedFd) -> String {
    format!("/proc/self/fd/{}/.", dir.as_raw_fd())
}

/// The names of a path, the last one first.
fn names(path: &Path) -> Vec<OsString> {
    let names = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    names.rev().map(|part| part.as_os_str().to_owned()).collect()
}

fn root() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Where a link leads; `None`: it is none.
fn link(dir: &OwnedFd, name: &OsStr) -> Result<Option<PathBuf>, Errno> {
    match rustix::fs::readlinkat(dir, name, Vec::new()) {
        Ok(target) => Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes())))),
        Err(Errno::INVAL | Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Nobody can put another link there before the superuser, who is the one that has something to lose. Another user follows links as ever.
fn settled(dir: &OwnedFd, name: &OsStr) -> Result<bool, Errno> {
    if !rustix::process::geteuid().is_root() {
        return Ok(true);
    }
    let is = rustix::fs::fstat(dir)?;
    let mode = Mode::from_raw_mode(is.st_mode);
    if is.st_uid != 0 || !mode.intersects(Mode::WGRP | Mode::WOTH) {
        return Ok(is.st_uid == 0);
    }
    // As in /tmp: everybody may write there, and change only what is his.
    let link = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(mode.contains(Mode::SVTX) && link.st_uid == 0)
}

/// The directory of this name, made if it is missing.
fn enter(dir: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    // Whoever may pass a directory need not be able to read it.
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, OFlags::PATH | flags, Mode::empty()) {
        Err(Errno::NOENT) => {}
        entered => return entered,
    }
    let mode = Mode::from_raw_mode(0o755);
    match rustix::fs::mkdirat(dir, name, mode) {
        Ok(()) => {
            let made = rustix::fs::openat(dir, name, OFlags::RDONLY | flags, Mode::empty())?;
            // Whose directory the other is may have put something else of ours there since: that is not opened to everybody.
            if is_empty(&made)? {
                rustix::fs::fchmod(&made, mode)?;
            }
            Ok(made)
        }
        Err(Errno::EXIST) => rustix::fs::openat(dir, name, OFlags::PATH | flags, Mode::empty()),
        Err(error) => Err(error),
    }
}

fn is_empty(dir: &OwnedFd) -> Result<bool, Errno> {
    for entry in Dir::read_from(dir)? {
        if ![&b"."[..], b".."].contains(&entry?.file_name().to_bytes()) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    #[test]
    fn a_link_leads_only_where_nobody_else_can_have_put_it() {
        let home = tempfile::tempdir().unwrap();
        let (ours, theirs) = (home.path().join("ours"), home.path().join("theirs"));
        let mode = |path: &Path, mode: u32| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        std::fs::create_dir(&theirs).unwrap();
        let (dir, name) = above(&ours.join("deep/er/copy")).unwrap();
        assert_eq!(name, "copy");
        let is = rustix::fs::fstat(&dir).unwrap();
        let there = ours.join("deep/er").metadata().unwrap();
        assert_eq!((is.st_ino, there.mode() & 0o777), (there.ino(), 0o755));
        assert!(!ours.join("deep/er/copy").exists());
        symlink("../ours/deep", theirs.join("near")).unwrap();
        symlink(ours.join("deep"), theirs.join("far")).unwrap();
        symlink("round", theirs.join("round")).unwrap();
        let same = |name: &str| {
            let (dir, _) = above(&theirs.join(name).join("er/copy")).unwrap();
            rustix::fs::fstat(&dir).unwrap().st_ino == is.st_ino
        };
        assert!(same("near") && same("far") && same("../ours/deep"));
        assert!(above(&theirs.join("round/copy")).unwrap_err().to_string().contains("symbolic links"));
        for none in ["/", "..", "/x/.."] {
            assert!(above(Path::new(none)).unwrap_err().to_string().contains("names no directory"), "{none}");
        }
        std::fs::write(theirs.join("file"), "").unwrap();
        assert!(above(&theirs.join("file/er/copy")).is_err());
        if !rustix::process::geteuid().is_root() {
            return;
        }
        mode(&theirs, 0o1777);
        assert!(same("near"));
        let refused = || above(&theirs.join("near/er/copy")).unwrap_err().to_string();
        mode(&theirs, 0o775);
        assert!(refused().contains("near to ../ours/deep"), "{}", refused());
        mode(&theirs, 0o1777);
        std::os::unix::fs::lchown(theirs.join("near"), Some(65_533), None).unwrap();
        assert!(refused().contains("over a link"));
        mode(&theirs, 0o755);
        chown(&theirs, Some(65_533), None).unwrap();
        assert!(refused().contains("over a link"));
        // What is no link is passed, whosesoever it is.
        assert_eq!(above(&theirs.join("copy")).unwrap().1, "copy");
    }
}
