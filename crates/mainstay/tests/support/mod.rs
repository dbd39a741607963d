//! What tests of bad input and bad days share: everything below a directory, to see that nothing was changed.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Of each path below a directory: mode and owner, and its content, or where it points.
pub(crate) type Everything = BTreeMap<PathBuf, (u32, u32, Vec<u8>)>;

/// Everything below it; nothing, if it is not there. Links are not followed.
pub(crate) fn everything(dir: &Path) -> Everything {
    let mut found = BTreeMap::new();
    gather(dir, &mut found);
    found
}

fn gather(dir: &Path, found: &mut Everything) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let (path, metadata) = (entry.path(), entry.metadata().unwrap());
        let content = if metadata.is_file() {
            std::fs::read(&path).unwrap()
        } else {
            let to = std::fs::read_link(&path).unwrap_or_default();
            to.into_os_string().into_encoded_bytes()
        };
        found.insert(path.clone(), (metadata.permissions().mode(), metadata.uid(), content));
        if metadata.is_dir() {
            gather(&path, found);
        }
    }
}
