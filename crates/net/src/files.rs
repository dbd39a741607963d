//! Writing keys and certificates: mode set at creation, no link followed in the last two steps of the path, durable.
//!
//! Some of these files lie in directories that the database's user owns, and the writer may be root: a link planted there must
//! not make root write elsewhere.

use crate::NetError;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchmod, fchown, fsync, open, openat, renameat, unlinkat};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

fn failed(what: &'static str, path: &Path, source: impl Into<std::io::Error>) -> NetError {
    NetError::File { what, path: path.to_owned(), source: source.into() }
}

/// Writes a file with exactly these permission bits (`0o600` for keys) and owner (`None`: ours), durably. With `replace` an old
/// file of that name gives way in one step; without, an existing one is an error.
///
/// # Errors
/// When the directory is a link or is missing, the file exists (without `replace`), or the disk refuses.
pub fn write_file(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    owner: Option<(u32, u32)>,
    replace: bool,
) -> Result<(), NetError> {
    let name = path.file_name().ok_or_else(|| failed("write", path, std::io::ErrorKind::InvalidInput))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = open(parent, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| failed("open the directory", parent, error))?;
    let mut written_name = name.to_owned();
    if replace {
        written_name.push(".new");
        // A leftover of an interrupted write; its absence is the usual case.
        let _ = unlinkat(&dir, &written_name, AtFlags::empty());
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&dir, &written_name, flags, Mode::from_raw_mode(0o600))
        .map_err(|error| failed("create", path, error))?;
    let filled = fill(file, bytes, mode, owner).and_then(|()| {
        if replace {
            renameat(&dir, &written_name, &dir, name)?;
        }
        Ok(fsync(&dir)?)
    });
    filled.map_err(|error| {
        // What is half-written must not be taken for a key later.
        let _ = unlinkat(&dir, &written_name, AtFlags::empty());
        failed("write", path, error)
    })
}

fn fill(file: OwnedFd, bytes: &[u8], mode: u32, owner: Option<(u32, u32)>) -> std::io::Result<()> {
    let mut file = std::fs::File::from(file);
    if let Some((user, group)) = owner {
        fchown(file.as_fd(), Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    fchmod(file.as_fd(), Mode::from_raw_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_key_is_made_closed_and_never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        write_file(&path, b"one", 0o600, None, false).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert!(write_file(&path, b"two", 0o600, None, false).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        write_file(&path, b"three", 0o640, None, true).unwrap();
        assert_eq!((std::fs::read(&path).unwrap().as_slice(), mode(&path)), (b"three".as_slice(), 0o640));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        std::fs::write(&precious, b"keep").unwrap();
        let link = dir.path().join("a.key");
        symlink(&precious, &link).unwrap();
        assert!(write_file(&link, b"bad", 0o600, None, false).is_err());
        write_file(&link, b"new", 0o600, None, true).unwrap();
        assert_eq!(std::fs::read(&precious).unwrap(), b"keep", "the link gave way, its target stays");
        let elsewhere = dir.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        let dir_link = dir.path().join("conf");
        symlink(&elsewhere, &dir_link).unwrap();
        assert!(write_file(&dir_link.join("a.key"), b"bad", 0o600, None, true).is_err());
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
    }
}
