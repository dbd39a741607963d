//! A restored directory, written into while it belongs to the servers' user: through what was opened, as new files, through no link.

use crate::postgres::way;
use crate::repository::VaultError;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::fchown;
use std::path::Path;

/// How a file is called that is being written.
pub(crate) const NEW: &str = ".new";

/// The restored directory. It belongs to the server's user, who may have put a link wherever the superuser is about to write: so
/// nothing in it is opened by its path, no link is followed, and every file is a new one.
pub(crate) struct Place<'a> {
    pub(crate) dir: OwnedFd,
    pub(crate) path: &'a Path,
    user: Option<(u32, u32)>,
}

impl Place<'_> {
    pub(crate) fn open(path: &Path, user: Option<(u32, u32)>) -> Result<Place<'_>, VaultError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let wrong = |e: Errno| VaultError::file(path, e.into());
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(wrong)?;
        let is = rustix::fs::fstat(&dir).map_err(wrong)?;
        // What lies there may be another's by now. In that user's own directory nothing is done that the user could not do.
        if user.is_some_and(|(uid, _)| is.st_uid != uid) {
            let says = format!("{} is not the servers' user's any more: nothing was changed there", path.display());
            return Err(VaultError::Impossible(says));
        }
        Ok(Place { dir, path, user })
    }

    pub(crate) fn wrong(&self, name: &str, error: std::io::Error) -> VaultError {
        VaultError::file(&self.path.join(name), error)
    }

    fn own(&self, name: &str, file: &OwnedFd) -> Result<(), VaultError> {
        let Some((uid, gid)) = self.user else { return Ok(()) };
        fchown(file, Some(uid), Some(gid)).map_err(|e| self.wrong(name, e))
    }

    /// A new file in the place of what was there. What is written to it later goes to its end.
    pub(crate) fn file(&self, name: &str, text: &str) -> Result<File, VaultError> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(self.wrong(name, error.into())),
            _ => {}
        }
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened =
            rustix::fs::openat(&self.dir, name, OFlags::RDWR | OFlags::APPEND | new, Mode::from_raw_mode(0o600));
        let opened = opened.map_err(|e| self.wrong(name, e.into()))?;
        self.own(name, &opened)?;
        let mut file = File::from(opened);
        file.write_all(text.as_bytes()).map_err(|e| self.wrong(name, e))?;
        Ok(file)
    }

    /// A file that is seen whole or not at all; `durable`: it is on the disk before it is seen. One of that name is replaced.
    pub(crate) fn whole(&self, name: &str, content: &[u8], durable: bool) -> Result<(), VaultError> {
        let new = format!("{name}{NEW}");
        let mut file = self.file(&new, "")?;
        let written = file.write_all(content).and_then(|()| if durable { file.sync_all() } else { Ok(()) });
        let renamed = written.and_then(|()| Ok(rustix::fs::renameat(&self.dir, &new, &self.dir, name)?));
        renamed.map_err(|error| {
            let _ = rustix::fs::unlinkat(&self.dir, &new, AtFlags::empty());
            self.wrong(name, error)
        })
    }

    /// Removes a file that may not be there.
    pub(crate) fn remove(&self, name: &str) -> Result<(), VaultError> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.wrong(name, error.into())),
            _ => Ok(()),
        }
    }

    /// What a file says, up to `most` bytes; `None`: it is not there. A link would show a file that is none of that user's.
    pub(crate) fn read(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, VaultError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|e| self.wrong(name, e.into()))?,
        };
        let mut content = Vec::new();
        File::from(opened).take(most).read_to_end(&mut content).map_err(|e| self.wrong(name, e))?;
        Ok(Some(content))
    }

    /// The names in it.
    pub(crate) fn names(&self) -> Result<Vec<String>, VaultError> {
        let entries = std::fs::read_dir(way::held(&self.dir)).map_err(|e| self.wrong(".", e))?;
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_string_lossy().into_owned()).map_err(|e| self.wrong(".", e))
        };
        entries.map(name).collect()
    }

    /// A directory in it.
    pub(crate) fn directory(&self, name: &str) -> Result<(), VaultError> {
        match rustix::fs::mkdirat(&self.dir, name, Mode::from_raw_mode(0o700)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(self.wrong(name, error.into())),
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.dir, name, flags, Mode::empty());
        self.own(name, &opened.map_err(|e| self.wrong(name, e.into()))?)
    }

    /// What was set on the source with ALTER SYSTEM overrides the configuration with which the copy starts: it is put aside.
    pub(crate) fn disarm(&self) -> Result<(), VaultError> {
        const SET: &str = "postgresql.auto.conf";
        let armed = match rustix::fs::statat(&self.dir, SET, AtFlags::SYMLINK_NOFOLLOW) {
            // Empty: put aside by an earlier start.
            Ok(found) => found.st_size > 0 || FileType::from_raw_mode(found.st_mode) != FileType::RegularFile,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(self.wrong(SET, error.into())),
        };
        if armed {
            let aside = format!("{SET}.restored");
            rustix::fs::renameat(&self.dir, SET, &self.dir, aside).map_err(|e| self.wrong(SET, e.into()))?;
        }
        self.file(SET, "").map(drop)
    }
}
