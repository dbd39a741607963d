//! Pages that people ask for in a file of their own: plans, runbooks, what came of a drill.

use crate::failure::{Failure, Outcome};
use crate::target::absolute;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

/// Writes a page; an old one is replaced whole or not at all, and its mode and owner stay. A link stays a link. What is no file (`/dev/null`, a
/// pipe) is written into: a page in the place of a device would break the host.
///
/// # Errors
/// When it can not be written: where, and why. Nothing else is left there.
pub(crate) fn write(path: &Path, text: &str) -> Outcome<String> {
    let path = absolute(path)?;
    put(&path, text).map_err(|error| Failure::failed(format!("{} can not be written: {error}", path.display())))?;
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

fn put(path: &Path, text: &str) -> std::io::Result<()> {
    let place = match std::fs::canonicalize(path) {
        Ok(place) => place,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => path.to_owned(),
        Err(error) => return Err(error),
    };
    let old = std::fs::metadata(&place).ok();
    if old.as_ref().is_some_and(|old| !old.is_file()) {
        return OpenOptions::new().write(true).open(&place)?.write_all(text.as_bytes());
    }
    let (mut file, fresh) = beside(&place)?;
    let done = fill(&mut file, text, old.as_ref()).and_then(|()| std::fs::rename(&fresh, &place));
    if done.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    done
}

/// A file that is nobody's, in the directory of the page.
fn beside(place: &Path) -> std::io::Result<(File, PathBuf)> {
    let mut last = None;
    for number in 0..100 {
        let fresh = place.with_file_name(format!(".mainstay-page-{}-{number}", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&fresh) {
            Ok(file) => return Ok((file, fresh)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| std::io::ErrorKind::AlreadyExists.into()))
}

fn fill(file: &mut File, text: &str, old: Option<&Metadata>) -> std::io::Result<()> {
    if let Some(old) = old {
        // Only root can give it to another.
        let _ = fchown(&*file, Some(old.uid()), Some(old.gid()));
        file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileTypeExt as _;

    #[test]
    fn a_page_replaces_a_page_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let page = dir.path().join("page.html");
        write(&page, "one").unwrap();
        std::fs::set_permissions(&page, Permissions::from_mode(0o640)).unwrap();
        std::fs::write(dir.path().join("page.html.new"), "somebody's").unwrap();
        let link = dir.path().join("link.html");
        std::os::unix::fs::symlink("page.html", &link).unwrap();
        write(&link, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&page).unwrap(), "two");
        assert_eq!(page.metadata().unwrap().mode() & 0o7777, 0o640);
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left beside it");
        assert!(write(&dir.path().join("none/page.html"), "x").unwrap_err().error.contains("can not be written"));
    }

    #[test]
    fn what_is_no_file_is_written_into_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        write(&link, "gone").unwrap();
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("/dev/full", &link).unwrap();
        assert!(write(&link, "no room").unwrap_err().error.contains("No space left"));
        assert!(std::fs::metadata("/dev/full").unwrap().file_type().is_char_device());
    }
}
