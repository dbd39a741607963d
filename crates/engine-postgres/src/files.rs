//! Files in directories that belong to the server's user: written whole or not at all, and never through a symbolic link, because
//! the agent may run as root where that user may not. Absent: reading large files (see `wal`), removing trees.

use rustix::fs::{AtFlags, Mode, OFlags};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// To whom files are given; `None`: whoever the agent runs as.
pub(crate) type Owner = Option<(u32, u32)>;

/// Opens a directory itself, not what a link of its name points to.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Makes what was written to the directory itself (names) durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::fsync(open_dir(path)?)?)
}

/// Makes everything durable that was written to the volumes on which a data directory lies: its own, its log's, and its tablespaces'.
pub(crate) fn sync_volumes(data: &Path) -> io::Result<()> {
    let spaces = match std::fs::read_dir(data.join("pg_tblspc")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        entries => entries?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?,
    };
    // Links lead there.
    let flush = |place: &Path| Ok(rustix::fs::syncfs(std::fs::File::open(place)?)?);
    [data.to_owned(), data.join("pg_wal")].iter().chain(&spaces).try_for_each(|place| flush(place))
}

/// Writes a file so that after a crash either the old or the new content is there; returns when it is durable.
pub(crate) fn write_atomic(dir: &Path, name: &str, bytes: &[u8], mode: u32, owner: Owner) -> io::Result<()> {
    let dir = open_dir(dir)?;
    replace(&dir, name, bytes, mode, owner, true)?;
    Ok(rustix::fs::fsync(dir)?)
}

/// Replaces a file whole for every reader; after a crash of the host its content is unknown. For what is written anew before use.
pub(crate) fn write_quickly(dir: &Path, name: &str, bytes: &[u8], mode: u32, owner: Owner) -> io::Result<()> {
    replace(&open_dir(dir)?, name, bytes, mode, owner, false)
}

fn replace(dir: &OwnedFd, name: &str, bytes: &[u8], mode: u32, owner: Owner, durable: bool) -> io::Result<()> {
    let temporary = format!(".{name}.new");
    match rustix::fs::unlinkat(dir, &temporary, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    let mut file = File::from(rustix::fs::openat(dir, &temporary, flags, Mode::from_raw_mode(mode))?);
    file.write_all(bytes)?;
    give(&file, owner)?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    if durable {
        file.sync_all()?;
    }
    Ok(rustix::fs::renameat(dir, &temporary, dir, name)?)
}

/// Makes sure that an (empty, or already there) file of this name exists; not durable unless `sync_dir` follows.
pub(crate) fn touch(dir: &Path, name: &str, owner: Owner) -> io::Result<()> {
    let dir = open_dir(dir)?;
    let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    let file = File::from(rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o600))?);
    give(&file, owner)
}

/// Opens a file for writing over, made if absent.
pub(crate) fn open_scratch(dir: &Path, name: &str, owner: Owner) -> io::Result<File> {
    let dir = open_dir(dir)?;
    let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    let file = File::from(rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o600))?);
    give(&file, owner)?;
    Ok(file)
}

/// Removes a file; says whether it was there.
pub(crate) fn remove(dir: &Path, name: &str) -> io::Result<bool> {
    match rustix::fs::unlinkat(open_dir(dir)?, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes sure that a directory exists, is no link, and belongs to `owner` with this mode.
pub(crate) fn ensure_dir(path: &Path, mode: u32, owner: Owner) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let dir = File::from(open_dir(path)?);
    let is = dir.metadata()?;
    let (uid, gid) = owner.unwrap_or_else(me);
    if is.uid() != uid && is.uid() != me().0 {
        return Err(io::Error::other(format!("{} belongs to user {}, not to {uid}", path.display(), is.uid())));
    }
    if (is.uid(), is.gid()) != (uid, gid) {
        give(&dir, owner)?;
    }
    if is.mode() & 0o7777 != mode {
        dir.set_permissions(std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// User and group of this process.
pub(crate) fn me() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

fn give(file: &File, owner: Owner) -> io::Result<()> {
    match owner {
        Some((uid, gid)) if (uid, gid) != me() => std::os::unix::fs::fchown(file, Some(uid), Some(gid)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_whole_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        write_atomic(dir.path(), "a", b"first and long", 0o600, None).unwrap();
        write_atomic(dir.path(), "a", b"second", 0o600, None).unwrap();
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("real"), dir.path().join("link")).unwrap();
        assert!(write_atomic(&dir.path().join("link"), "a", b"x", 0o600, None).is_err());
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("real/promote")).unwrap();
        assert!(touch(&dir.path().join("real"), "promote", None).is_err());
    }
}
