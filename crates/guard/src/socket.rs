//! Unix sockets at paths of any length: the kernel takes 107 bytes, a data directory may lie deeper. The directory is opened
//! and the socket is named through `/proc/self/fd`.

use rustix::fs::{Mode, OFlags};
use std::ffi::OsStr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// The directory, kept open as long as the short path is used, and the short path.
pub(crate) struct Short {
    _directory: OwnedFd,
    pub(crate) path: PathBuf,
}

/// A short name for a socket's path.
///
/// # Errors
/// When its directory can not be opened.
pub(crate) fn short(socket: &Path) -> Result<Short, String> {
    let (directory, name) = parts(socket)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(directory, flags, Mode::empty())
        .map_err(|e| format!("cannot open {}: {e}", directory.display()))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd())).join(name);
    Ok(Short { _directory: opened, path })
}

fn parts(socket: &Path) -> Result<(&Path, &OsStr), String> {
    let parts = socket.parent().zip(socket.file_name());
    parts.ok_or_else(|| format!("{} is not the path of a socket", socket.display()))
}

/// Makes the directory if need be, checks that it is private, and listens there, replacing what a dead guard left. Call it
/// with the node's lock held.
///
/// # Errors
/// When the directory is not private, or the socket can not be made.
pub(crate) fn listen(socket: &Path) -> Result<UnixListener, String> {
    let (directory, _) = parts(socket)?;
    check_private(directory)?;
    let short = short(socket)?;
    match std::fs::remove_file(&short.path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("cannot remove the old socket {}: {error}", socket.display()));
        }
        _ => {}
    }
    let listen = || -> std::io::Result<UnixListener> {
        let listener = UnixListener::bind(&short.path)?;
        std::fs::set_permissions(&short.path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().map_err(|e| format!("cannot listen on {}: {e}", socket.display()))
}

/// Makes a directory that only this user may enter.
///
/// # Errors
/// When it can not be made.
pub(crate) fn make_private(directory: &Path) -> Result<(), String> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|e| format!("cannot make {}: {e}", directory.display()))
}

fn check_private(directory: &Path) -> Result<(), String> {
    make_private(directory)?;
    let name = directory.display();
    let facts = std::fs::metadata(directory).map_err(|e| format!("cannot look at {name}: {e}"))?;
    if facts.uid() != rustix::process::geteuid().as_raw() {
        return Err(format!("{name} belongs to user {}, not to the guard's; give it to the guard's user", facts.uid()));
    }
    if facts.mode() & 0o022 != 0 {
        return Err(format!("others may write in {name}; run: chmod 700 {name}"));
    }
    Ok(())
}
