//! A node's directories: made with the right owners and modes, by `up` and by `join` alike.

use super::user::User;
use crate::failure::{Failure, Outcome};
use mainstay_model::layout::NodeLayout;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The topmost directory on the way to `dir` that does not exist.
pub(crate) fn first_missing(dir: &Path) -> Option<PathBuf> {
    dir.ancestors().take_while(|path| !path.exists()).last().map(Path::to_owned)
}

/// Makes a directory and what is missing above it; servers' users may pass through.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn make_parents(dir: &Path) -> Outcome {
    let mut missing: Vec<&Path> = dir.ancestors().take_while(|path| !path.exists()).collect();
    missing.reverse();
    for path in missing {
        make_dir(path, if path == dir { 0o711 } else { 0o755 }, None)?;
    }
    Ok(())
}

/// A new directory with exactly this mode and owner.
///
/// # Errors
/// When it exists, or the disk refuses.
pub(crate) fn make_dir(path: &Path, mode: u32, owner: Option<&User>) -> Outcome {
    let wrong = |error: std::io::Error| Failure::failed(format!("{} can not be made: {error}", path.display()));
    std::fs::DirBuilder::new().mode(0o700).create(path).map_err(wrong)?;
    if let Some(owner) = owner {
        std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid)).map_err(wrong)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(wrong)
}

/// Which directories a node has: path, mode, whether the servers' user owns it.
pub(crate) fn wanted(node: &NodeLayout, witness: bool) -> Vec<(PathBuf, u32, bool)> {
    let mut list =
        vec![(node.dir().to_owned(), 0o711, false), (node.agent(), 0o700, false), (node.log(), 0o700, false)];
    if !witness {
        // The agent keeps in `diverged` what it takes out of the data directory: the servers' user has no business with it.
        list.push((node.diverged(), 0o700, false));
        list.extend([node.data(), node.conf(), node.run()].map(|path| (path, 0o700, true)));
    }
    list
}

/// Makes a node's directories; those that are there must be directories of the right owner, and get the right mode.
/// Returns those that were made, outermost first.
///
/// # Errors
/// When one can not be made, or is another's; those that were made are removed again.
pub(crate) fn make_node(node: &NodeLayout, witness: bool, user: Option<&User>) -> Outcome<Vec<PathBuf>> {
    let mut made: Vec<PathBuf> = Vec::new();
    let each = wanted(node, witness).into_iter().try_for_each(|(path, mode, of_server)| {
        let owner = user.filter(|_| of_server);
        match std::fs::symlink_metadata(&path) {
            Ok(found) => check(&path, &found, owner).and_then(|()| set_mode(&path, &found, mode)),
            Err(_) => {
                made.push(path.clone());
                make_dir(&path, mode, owner)
            }
        }
    });
    each.map(|()| made.clone()).inspect_err(|_| unmake(&made))
}

/// Removes directories that were made and are still empty, innermost first.
pub(crate) fn unmake(made: &[PathBuf]) {
    for path in made.iter().rev() {
        // One that is not empty any more holds what somebody else has put there.
        let _ = std::fs::remove_dir(path);
    }
}

fn check(path: &Path, found: &std::fs::Metadata, owner: Option<&User>) -> Outcome {
    let shown = path.display();
    if !found.is_dir() {
        return Err(Failure::failed(format!("{shown} is no directory (a link is not followed)"))
            .hint("move it away; nothing was changed"));
    }
    let me = super::user::me();
    let owner = owner.unwrap_or(&me);
    if found.uid() == owner.uid {
        return Ok(());
    }
    Err(Failure::failed(format!("{shown} belongs to user number {}, not to {}", found.uid(), owner.name)).hint(
        format!("if it is this cluster's: chown -R {} {shown}; otherwise set another `dir` for the node", owner.name),
    ))
}

fn set_mode(path: &Path, found: &std::fs::Metadata, mode: u32) -> Outcome {
    if found.mode() & 0o7777 == mode {
        return Ok(());
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|error| Failure::failed(format!("the mode of {} can not be set: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_kept_and_mended_and_a_link_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let node = NodeLayout::new(home.path().join("db1"));
        assert_eq!(make_node(&node, false, None).unwrap().len(), 7);
        std::fs::set_permissions(node.agent(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(node.data().join("PG_VERSION"), "15").unwrap();
        assert!(make_node(&node, false, None).unwrap().is_empty());
        assert_eq!(std::fs::metadata(node.agent()).unwrap().mode() & 0o7777, 0o700);
        assert!(node.data().join("PG_VERSION").is_file());

        let other = NodeLayout::new(home.path().join("db2"));
        std::fs::create_dir(other.dir()).unwrap();
        std::os::unix::fs::symlink(node.data(), other.conf()).unwrap();
        let failure = make_node(&other, false, None).unwrap_err();
        assert!(failure.error.contains("is no directory"), "{}", failure.error);
        assert_eq!(std::fs::read_dir(other.dir()).unwrap().count(), 1, "what was made is removed again");
        let stranger = User { name: "nobody".into(), uid: 65_533, gid: 65_533 };
        let failure = check(&node.data(), &std::fs::metadata(node.data()).unwrap(), Some(&stranger)).unwrap_err();
        assert!(failure.hint.unwrap().contains("chown -R nobody"));
    }

    #[test]
    fn a_witness_has_no_place_for_data() {
        let home = tempfile::tempdir().unwrap();
        let node = NodeLayout::new(home.path().join("w"));
        make_node(&node, true, None).unwrap();
        assert!(node.agent().is_dir() && !node.data().exists() && !node.conf().exists());
    }
}
