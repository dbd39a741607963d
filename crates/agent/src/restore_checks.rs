//! What must hold before a restore in place goes on: room, the server's version, and that the copy is what was asked for.

use mainstay_model::vault::RestorePlan;
use mainstay_model::{Lineage, Timeline};
use mainstay_vault::postgres::restore::Plan;
use mainstay_vault::repository::VaultError;
use std::path::Path;

/// What came of the recovery must be exactly what was asked for.
pub(crate) fn checked(
    (timeline, lineage): (Timeline, &Lineage),
    next: Timeline,
    made: &Plan,
) -> Result<mainstay_model::Position, VaultError> {
    let wrong = |says: String| Err(VaultError::Server(format!("the copy is not as it was asked for: {says}")));
    if timeline != next {
        return wrong(format!("it ended its recovery on timeline {timeline} instead of {next}"));
    }
    match lineage.0.last() {
        Some(left) if left.timeline == made.timeline => Ok(*left),
        // A moment before the last fork of the path.
        Some(left) if made.path.0.iter().any(|fork| fork.timeline == left.timeline && left.lsn <= fork.lsn) => {
            Ok(*left)
        }
        left => wrong(format!("its timeline begins at {left:?}, which is not on the path to {}", made.timeline)),
    }
}

/// The volume is the data's own: it must not get into need.
pub(crate) fn check_room(plan: &RestorePlan, dir: &Path) -> Result<(), VaultError> {
    match crate::restore_drill::too_little(plan.needs, dir) {
        None => Ok(()),
        Some(free) => Err(VaultError::Impossible(format!(
            "the copy needs {} MiB beside the data, and {} MiB are free in {}: the old data are kept and the volume must keep room, so make room for both, \
             or restore on another node (--on)",
            plan.needs >> 20,
            free >> 20,
            dir.display()
        ))),
    }
}

/// A server of another major version can not recover the copy.
pub(crate) fn check_version(bin: &Path, major: u32) -> Result<(), VaultError> {
    let ran = std::process::Command::new(bin.join("postgres")).arg("--version").output();
    let text = ran.map(|ran| String::from_utf8_lossy(&ran.stdout).into_owned()).unwrap_or_default();
    let have = text
        .split_whitespace()
        .nth(2)
        .and_then(|version| version.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().ok());
    if have == Some(major) {
        return Ok(());
    }
    let have = have.map_or_else(|| "none that answers".to_owned(), |have| have.to_string());
    Err(VaultError::Impossible(format!("the backup is of PostgreSQL {major}, and this node has {have}")))
}

/// A directory that the server's user may pass.
pub(crate) fn own_dir(path: &Path, owner: Option<(u32, u32)>) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, fchown};
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error),
    }
    let Some((user, group)) = owner else { return Ok(()) };
    // The directory above may be that user's: something else may stand there by now.
    let flags = (rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::NOFOLLOW).bits();
    let made = std::fs::OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)?;
    fchown(&made, Some(user), Some(group))
}
