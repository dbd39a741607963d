//! Files that people name for a command to write: plans, runbooks, what came of a drill, a cluster's own file. Each is there whole or not at
//! all, and nothing beside it is touched: what is written first has a name that nobody knows beforehand and is made anew, so that no link is
//! followed and no file of somebody else is emptied.

use crate::failure::{Failure, Outcome};
use crate::target::absolute;
use rustix::fs::{Access, access};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{Error, ErrorKind, Result, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

/// Writes a page; an old one is replaced whole or not at all, and its mode and owner stay. A link stays a link. What is no file (`/dev/null`, a
/// pipe) is written into: a page in the place of a device would break the host.
///
/// # Errors
/// When it can not be written: where, and why. Nothing else is left there.
pub(crate) fn write(path: &Path, text: &str) -> Outcome<String> {
    let path = absolute(path)?;
    put(&path, text).map_err(|error| unwritable(&path, &error))?;
    Ok(path.display().to_string())
}

/// Writes those that are asked for, and says where they are.
///
/// # Errors
/// When two of them are one file (usage; nothing is written then), or one can not be written.
pub(crate) fn write_all<const N: usize>(pages: [(&Option<PathBuf>, String); N]) -> Outcome<Vec<String>> {
    let mut wanted: Vec<(PathBuf, String)> = Vec::new();
    for (path, text) in pages {
        let Some(path) = path.as_deref().map(absolute).transpose()? else { continue };
        if wanted.iter().any(|(other, _)| *other == path) {
            return Err(Failure::usage(format!("{} is named for two pages: give each its own file", path.display())));
        }
        wanted.push((path, text));
    }
    wanted.iter().map(|(path, text)| write(path, text)).collect()
}

/// Can a page be written there? Tried out by a file that is removed again.
///
/// # Errors
/// When it can not.
pub(crate) fn try_out(path: &Path) -> Result<()> {
    let place = place(path)?;
    if others(&place).is_some() {
        return Ok(access(&place, Access::WRITE_OK)?);
    }
    let (_, fresh) = beside(&place)?;
    std::fs::remove_file(&fresh)
}

/// The same as far as it can be told without a change.
///
/// # Errors
/// When it can not.
pub(crate) fn may_be_written(path: &Path) -> Result<()> {
    let place = place(path)?;
    if others(&place).is_some() {
        return Ok(access(&place, Access::WRITE_OK)?);
    }
    let dir = place.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(access(dir, Access::WRITE_OK | Access::EXEC_OK)?)
}

/// That a file which is never replaced is there.
pub(crate) fn is_there(path: &Path) -> Failure {
    Failure::not_now(format!("{} is there already", path.display())).hint("nothing was changed; say another file")
}

/// Writes a cluster's file where none is.
///
/// # Errors
/// When one is there (not now), or it can not be written; then nothing of it stays.
pub(crate) fn write_new_spec(path: &Path, text: &str) -> Outcome {
    make(path, text).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => is_there(path),
        _ => unwritable(path, &error),
    })
}

fn unwritable(path: &Path, error: &Error) -> Failure {
    Failure::failed(format!("{} can not be written: {error}", path.display()))
}

/// Where a page goes: the end of a link.
fn place(path: &Path) -> Result<PathBuf> {
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(path.to_owned()),
        found => found,
    }
}

/// What is there and is no file.
fn others(place: &Path) -> Option<Metadata> {
    std::fs::metadata(place).ok().filter(|there| !there.is_file())
}

fn put(path: &Path, text: &str) -> Result<()> {
    let place = place(path)?;
    if others(&place).is_some() {
        return OpenOptions::new().write(true).open(&place)?.write_all(text.as_bytes());
    }
    let old = std::fs::metadata(&place).ok();
    let (mut file, fresh) = beside(&place)?;
    let done = fill(&mut file, text, old.as_ref()).and_then(|()| std::fs::rename(&fresh, &place));
    done.inspect_err(|_| drop(std::fs::remove_file(&fresh)))
}

/// A new hidden file in the same directory; its name is 64 random bits long.
fn beside(place: &Path) -> Result<(File, PathBuf)> {
    let mut bytes = [0u8; 8];
    if getrandom(&mut bytes, GetRandomFlags::empty())? != bytes.len() {
        return Err(Error::other("no randomness from the operating system"));
    }
    let fresh = place.with_file_name(format!(".mainstay-{:016x}.new", u64::from_ne_bytes(bytes)));
    let file = OpenOptions::new().write(true).create_new(true).open(&fresh)?;
    Ok((file, fresh))
}

fn fill(file: &mut File, text: &str, old: Option<&Metadata>) -> Result<()> {
    if let Some(old) = old {
        // Only root can give it to another.
        let _ = fchown(&*file, Some(old.uid()), Some(old.gid()));
        file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn make(path: &Path, text: &str) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    // Half a file would be read as one, or stand in the way of the next attempt.
    fill(&mut file, text, None).inspect_err(|_| drop(std::fs::remove_file(path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt as _, symlink};

    #[test]
    fn a_page_replaces_a_page_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (page, link) = (dir.path().join("page.html"), dir.path().join("link.html"));
        write(&page, "one").unwrap();
        std::fs::set_permissions(&page, Permissions::from_mode(0o640)).unwrap();
        symlink("page.html", &link).unwrap();
        // What a name that can be guessed would run into.
        let (others, guessed) = (dir.path().join("somebody's"), dir.path().join("page.html.new"));
        std::fs::write(&others, "theirs").unwrap();
        symlink(&others, &guessed).unwrap();
        try_out(&link).unwrap();
        may_be_written(&link).unwrap();
        write(&link, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&page).unwrap(), "two");
        assert_eq!(page.metadata().unwrap().mode() & 0o7777, 0o640);
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read_to_string(&guessed).unwrap(), "theirs");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4, "nothing is left beside it");
    }

    #[test]
    fn a_page_that_can_not_be_written_is_known_beforehand() {
        let dir = tempfile::tempdir().unwrap();
        let page = dir.path().join("none/page.html");
        assert!(write(&page, "x").unwrap_err().error.contains("can not be written"));
        assert!(try_out(&page).is_err() && may_be_written(&page).is_err());
    }

    #[test]
    fn what_is_no_file_is_written_into_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("null");
        symlink("/dev/null", &link).unwrap();
        try_out(&link).unwrap();
        may_be_written(&link).unwrap();
        write(&link, "gone").unwrap();
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        std::fs::remove_file(&link).unwrap();
        symlink("/dev/full", &link).unwrap();
        assert!(write(&link, "no room").unwrap_err().error.contains("No space left"));
        assert!(std::fs::metadata("/dev/full").unwrap().file_type().is_char_device());
    }

    #[test]
    fn a_cluster_file_is_never_replaced_and_never_half() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mainstay.toml");
        write_new_spec(&path, "one").unwrap();
        assert!(write_new_spec(&path, "two").unwrap_err().error.contains("is there already"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one");
    }
}
