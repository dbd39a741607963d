//! What keeps a copy for a restore in place from being removed (docs/adr/0031): a mark beside it, written before anybody may name it in the
//! record, and links of data directories into its tablespaces. A marked copy is removed by people alone.

use mainstay_model::CopyId;
use mainstay_model::layout::{NodeLayout, RESTORED_PREFIX};
use std::fs::File;
use std::io::{ErrorKind, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Says durably that the copy is handed over.
///
/// # Errors
/// When that can not be written: then it may not be handed over.
pub fn mark(layout: &NodeLayout, copy: CopyId) -> Result<()> {
    File::create(layout.given(copy))?.sync_all()?;
    File::open(layout.dir())?.sync_all()
}

/// The decisions refused it: nothing was written that names it.
///
/// # Errors
/// When it stays; so does the copy then.
pub fn unmark(layout: &NodeLayout, copy: CopyId) -> Result<()> {
    match std::fs::remove_file(layout.given(copy)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => File::open(layout.dir())?.sync_all(),
    }
}

/// Was it handed over, or can that not be known?
#[must_use]
pub fn marked(layout: &NodeLayout, copy: CopyId) -> bool {
    !layout.given(copy).symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Copies that lie in the node's directory.
///
/// # Errors
/// When it can not be read.
pub fn copies(layout: &NodeLayout) -> Result<Vec<CopyId>> {
    let names = std::fs::read_dir(layout.dir())?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter_map(|name| CopyId::try_from(name.strip_prefix(RESTORED_PREFIX)?.to_owned()).ok()).collect())
}

/// Why nothing of a copy may be removed; `None`: it was never handed over, and no other data directory uses its tablespaces.
#[must_use]
pub fn in_use(layout: &NodeLayout, copy: CopyId) -> Option<String> {
    if marked(layout, copy) {
        return Some("it was handed over".to_owned());
    }
    linked(layout, copy)
        .unwrap_or_else(|error| Some(format!("whether its tablespaces are in use is not known: {error}")))
}

fn linked(layout: &NodeLayout, copy: CopyId) -> Result<Option<String>> {
    let (own, spaces) = (layout.restored(copy), layout.tablespaces(copy));
    let real = match spaces.canonicalize() {
        Ok(real) => real,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in std::fs::read_dir(layout.dir())? {
        let (entry, data) = entry.map(|entry| (entry.file_name(), entry.path()))?;
        if data == own || !entry.to_string_lossy().starts_with("data") {
            continue;
        }
        let links = match std::fs::read_dir(data.join("pg_tblspc")) {
            Ok(links) => links,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
            Err(error) => return Err(error),
        };
        for link in links {
            let link = link?;
            if !link.file_type()?.is_symlink() {
                continue;
            }
            let to = std::fs::read_link(link.path())?;
            if to.starts_with(&spaces) || to.starts_with(&real) || leads(&link.path(), &real)? {
                return Ok(Some(format!("{} has its tablespaces there", data.display())));
            }
        }
    }
    Ok(None)
}

fn leads(link: &Path, into: &Path) -> Result<bool> {
    match link.canonicalize() {
        Ok(to) => Ok(to.starts_with(into)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Why a copy could not take the data's place later on, when everything else is void already.
///
/// # Errors
/// When the files can not be looked at.
pub fn hindered(layout: &NodeLayout) -> Result<Option<String>> {
    let data: PathBuf = layout.data();
    match data.symlink_metadata() {
        Ok(is) if is.dev() != layout.dir().metadata()?.dev() => {
            return Ok(Some(format!(
                "{} is a volume of its own, which can not be moved aside: restore on another node (--on), or put the node's whole directory on one volume",
                data.display()
            )));
        }
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for place in layout.kept() {
        match place.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    let dir = layout.dir().display();
    Ok(Some(format!("no place is left for the old data: remove those of earlier restores in {dir} that nobody needs")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(number: u64) -> CopyId {
        CopyId::new(number).unwrap()
    }

    #[test]
    fn a_marked_copy_and_tablespaces_in_use_are_kept() {
        let place = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(place.path());
        std::fs::create_dir(layout.restored(copy(7))).unwrap();
        assert_eq!(in_use(&layout, copy(7)), None);
        mark(&layout, copy(7)).unwrap();
        assert!(marked(&layout, copy(7)) && in_use(&layout, copy(7)).is_some());
        assert_eq!(copies(&layout).unwrap(), [copy(7)], "the mark is no copy");
        unmark(&layout, copy(7)).unwrap();
        unmark(&layout, copy(7)).unwrap();
        assert_eq!(in_use(&layout, copy(7)), None);

        std::fs::create_dir_all(layout.tablespaces(copy(7)).join("1")).unwrap();
        std::fs::create_dir_all(layout.data().join("pg_tblspc")).unwrap();
        assert_eq!(in_use(&layout, copy(7)), None);
        let link = layout.data().join("pg_tblspc/1");
        for to in [layout.tablespaces(copy(7)).join("1"), PathBuf::from("../../tablespaces").join(copy(7).to_string())]
        {
            std::os::unix::fs::symlink(to, &link).unwrap();
            assert!(in_use(&layout, copy(7)).is_some());
            std::fs::remove_file(&link).unwrap();
        }
        // Its own links, and those elsewhere, do not count.
        std::os::unix::fs::symlink(layout.tablespaces(copy(8)), &link).unwrap();
        std::fs::create_dir(layout.restored(copy(7)).join("pg_tblspc")).unwrap();
        let own = layout.restored(copy(7)).join("pg_tblspc/1");
        std::os::unix::fs::symlink(layout.tablespaces(copy(7)).join("1"), own).unwrap();
        assert_eq!(in_use(&layout, copy(7)), None);
    }

    #[test]
    fn there_must_be_a_place_for_the_old_data() {
        let place = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(place.path());
        assert_eq!(hindered(&layout).unwrap(), None);
        std::fs::create_dir(layout.data()).unwrap();
        assert_eq!(hindered(&layout).unwrap(), None);
        layout.kept().for_each(|place| std::fs::create_dir(place).unwrap());
        assert!(hindered(&layout).unwrap().is_some());
    }
}
