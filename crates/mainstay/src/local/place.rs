//! The directory of a cluster on this machine: whose it is, and whether the servers' user can reach it.

use super::user::User;
use crate::failure::{Failure, Outcome};
use mainstay_model::layout::ClusterLayout;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Stands in a directory while a cluster is being made there; gone when it is whole.
pub(crate) const UNFINISHED: &str = ".mainstay-unfinished";

/// What a directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It does not exist.
    Absent,
    /// Nothing.
    Empty,
    /// A cluster of ours.
    Ours,
    /// A cluster of ours whose making was interrupted.
    Unfinished,
}

/// Looks at a directory.
///
/// # Errors
/// When it is no directory, can not be read, or holds what is not ours.
pub(crate) fn look(dir: &Path) -> Outcome<Place> {
    let shown = dir.display();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Place::Absent),
        Err(error) => return Err(Failure::failed(format!("{shown} can not be used: {error}"))),
    };
    let layout = ClusterLayout::new(dir);
    if layout.config().is_file() {
        let ours = layout.pki().is_dir() && layout.run().is_dir();
        return if ours {
            Ok(Place::Ours)
        } else {
            Err(not_ours(dir, "a mainstay.toml that `mainstay up` did not write"))
        };
    }
    if dir.join(UNFINISHED).is_file() {
        return Ok(Place::Unfinished);
    }
    let mut names: Vec<String> =
        entries.flatten().take(4).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    if names.is_empty() { Ok(Place::Empty) } else { Err(not_ours(dir, &names.join(", "))) }
}

fn not_ours(dir: &Path, holds: &str) -> Failure {
    Failure::failed(format!("{} is not empty and holds no cluster of ours: {holds}", dir.display()))
        .hint("choose another directory with --dir; nothing was changed")
}

/// The longest path of a Unix socket that the kernel takes, in bytes.
pub(crate) const SOCKET_PATH_MOST: usize = 107;

/// Do the sockets of its nodes have room below this directory?
///
/// # Errors
/// When the path is too long for them.
pub(crate) fn check_length(dir: &Path) -> Outcome {
    let longest = dir.join("nodes/db1/run/.s.PGSQL.65535");
    let over = longest.as_os_str().len().saturating_sub(SOCKET_PATH_MOST);
    if over == 0 {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "the path {} is {over} bytes too long: Unix sockets below it would not fit",
        dir.display()
    ))
    .hint("choose a shorter directory with --dir; nothing was changed"))
}

/// Can the servers' user pass through every directory above? Root makes the rest with the right modes itself.
///
/// # Errors
/// Names the first directory that it can not pass.
pub(crate) fn check_reachable(dir: &Path, user: Option<&User>) -> Outcome {
    let Some(user) = user else { return Ok(()) };
    let mut above: Vec<PathBuf> = dir.ancestors().skip(1).map(Path::to_owned).collect();
    above.reverse();
    for parent in above {
        let Ok(metadata) = std::fs::metadata(&parent) else { continue };
        if !metadata.is_dir() {
            return Err(Failure::failed(format!("{} is no directory", parent.display())));
        }
        let bit = match (metadata.uid() == user.uid, metadata.gid() == user.gid) {
            (true, _) => 0o100,
            (false, true) => 0o010,
            (false, false) => 0o001,
        };
        if metadata.mode() & bit == 0 {
            return Err(Failure::failed(format!(
                "the database servers run as user {:?}, which may not pass through {} (mode {:03o})",
                user.name,
                parent.display(),
                metadata.mode() & 0o777
            ))
            .hint("choose another directory with --dir, for example below /var/lib or /srv; nothing was changed"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Place, UNFINISHED, check_reachable, look};
    use crate::local::user::User;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_directory_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        assert_eq!(look(&path).unwrap(), Place::Absent);
        std::fs::create_dir(&path).unwrap();
        assert_eq!(look(&path).unwrap(), Place::Empty);
        std::fs::write(path.join("notes.txt"), "mine").unwrap();
        assert!(look(&path).unwrap_err().error.contains("notes.txt"));
        std::fs::write(path.join(UNFINISHED), "").unwrap();
        assert_eq!(look(&path).unwrap(), Place::Unfinished);
        std::fs::write(path.join("mainstay.toml"), "").unwrap();
        assert!(look(&path).is_err());
        std::fs::create_dir(path.join("pki")).unwrap();
        std::fs::create_dir(path.join("run")).unwrap();
        assert_eq!(look(&path).unwrap(), Place::Ours);
    }

    #[test]
    fn a_path_without_room_for_sockets_is_refused() {
        let fits = format!("/{}", "x".repeat(77));
        assert!(super::check_length(fits.as_ref()).is_ok());
        let failure = super::check_length(format!("{fits}yz").as_ref()).unwrap_err();
        assert!(failure.error.contains("2 bytes too long"), "{}", failure.error);
    }

    #[test]
    fn a_closed_parent_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let closed = dir.path().join("closed");
        std::fs::create_dir(&closed).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
        let nobody = User { name: "nobody".into(), uid: 65_533, gid: 65_533 };
        let failure = check_reachable(&closed.join("a/b"), Some(&nobody)).unwrap_err();
        assert!(failure.error.contains("/closed (mode 700)"), "{}", failure.error);
        assert!(check_reachable(&dir.path().join("open"), Some(&nobody)).is_ok());
        assert!(check_reachable(&closed.join("a/b"), None).is_ok());
    }
}
