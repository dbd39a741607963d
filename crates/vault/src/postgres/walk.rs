//! Which files and directories of a data directory a backup holds.

use crate::repository::VaultError;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Directories whose content a server makes anew or must not inherit.
const EMPTIED: [&str; 8] =
    ["pg_wal", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"];
/// Files that belong to the running process, or to another backup.
const LEFT_OUT: [&str; 10] = [
    "postmaster.pid",
    "postmaster.opts",
    "backup_label",
    "tablespace_map",
    "backup_label.old",
    "tablespace_map.old",
    "standby.signal",
    "recovery.signal",
    "backup_manifest",
    "current_logfiles",
];
/// The control file: copied last, restored last.
pub(crate) const CONTROL: &str = "global/pg_control";

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) directories: Vec<(String, u32)>,
    /// Path, mode, size.
    pub(crate) files: Vec<(String, u32, u64)>,
    pub(crate) tablespaces: BTreeMap<u32, String>,
}

fn temporary(name: &str) -> bool {
    name.starts_with("pgsql_tmp") || name.starts_with("pg_internal.init")
}

impl Tree {
    /// Walks a data directory. `version` is the server's major version: in a tablespace only its own part is taken.
    pub(crate) fn walk(data: &Path, version: u32) -> Result<Tree, VaultError> {
        let mut tree = Tree::default();
        tree.directory(data, "", version)?;
        Ok(tree)
    }

    fn directory(&mut self, data: &Path, below: &str, version: u32) -> Result<(), VaultError> {
        let dir = data.join(below);
        let failed = |e| VaultError::file(&dir, e);
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            // Dropped while we look: its end is in the log.
            Err(error) if error.kind() == ErrorKind::NotFound && !below.is_empty() => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
            if temporary(&name) || (below.is_empty() && LEFT_OUT.contains(&name.as_str())) {
                continue;
            }
            let link = match std::fs::symlink_metadata(data.join(&path)) {
                Ok(meta) => meta,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(VaultError::file(&data.join(&path), error)),
            };
            let tablespace = (below == "pg_tblspc").then(|| name.parse::<u32>().ok()).flatten();
            if link.is_symlink()
                && let Some(number) = tablespace
            {
                self.tablespace(data, &path, number, version)?;
            } else if link.is_dir() || (link.is_symlink() && path == "pg_wal") {
                self.directories.push((path.clone(), link.permissions().mode() & 0o777));
                if !(below.is_empty() && EMPTIED.contains(&name.as_str())) {
                    self.directory(data, &path, version)?;
                }
            } else if link.is_file() {
                self.files.push((path, link.permissions().mode() & 0o777, link.len()));
            }
        }
        Ok(())
    }

    fn tablespace(&mut self, data: &Path, path: &str, number: u32, version: u32) -> Result<(), VaultError> {
        let link = data.join(path);
        let target = std::fs::read_link(&link).map_err(|e| VaultError::file(&link, e))?;
        self.tablespaces.insert(number, target.display().to_string());
        let ours = format!("PG_{version}_");
        for entry in std::fs::read_dir(&link).map_err(|e| VaultError::file(&link, e))? {
            let name = entry.map_err(|e| VaultError::file(&link, e))?.file_name().to_string_lossy().into_owned();
            if name.starts_with(&ours) {
                let below = format!("{path}/{name}");
                self.directories.push((below.clone(), 0o700));
                self.directory(data, &below, version)?;
            }
        }
        Ok(())
    }
}

/// The number of the file's first page, if the file's pages carry checksums: the main forks and others of relations.
pub(crate) fn first_page(path: &str) -> Option<u32> {
    let mut parts = path.split('/');
    let relations = matches!(parts.next(), Some("base" | "global" | "pg_tblspc"));
    let name = path.rsplit('/').next()?;
    let (stem, segment) = match name.split_once('.') {
        Some((stem, segment)) => (stem, segment.parse::<u32>().ok()?),
        None => (name, 0),
    };
    let (number, fork) = stem.split_once('_').unwrap_or((stem, "main"));
    let fits = relations && number.parse::<u32>().is_ok() && matches!(fork, "main" | "fsm" | "vm" | "init");
    // A file of a relation holds a gigabyte.
    fits.then(|| segment.saturating_mul(131_072))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p09_what_belongs_to_the_process_stays_behind_and_directories_stay() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        for name in ["base/1", "pg_wal", "pg_replslot/one", "global", "pg_tblspc"] {
            std::fs::create_dir_all(data.join(name)).unwrap();
        }
        let kept = ["PG_VERSION", "base/1/16384", "base/1/16384_vm", CONTROL];
        let left = [
            "postmaster.pid",
            "backup_label",
            "base/1/pgsql_tmp1.0",
            "base/1/pg_internal.init",
            "pg_wal/000000010000000000000001",
            "pg_replslot/one/state",
            "standby.signal",
        ];
        for name in kept.iter().chain(&left) {
            std::fs::write(data.join(name), name).unwrap();
        }
        let tree = Tree::walk(data, 15).unwrap();
        let mut found: Vec<&str> = tree.files.iter().map(|file| file.0.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, ["PG_VERSION", "base/1/16384", "base/1/16384_vm", CONTROL]);
        assert!(
            tree.directories.iter().any(|d| d.0 == "pg_replslot") && tree.directories.iter().any(|d| d.0 == "pg_wal")
        );
    }

    #[test]
    fn pages_with_checksums_are_those_of_relations() {
        assert_eq!(first_page("base/5/16384.2"), Some(262_144));
        assert_eq!(first_page("pg_tblspc/1/PG_15_202209061/5/16384_fsm"), Some(0));
        for other in ["pg_xact/0000", CONTROL, "base/5/PG_VERSION", "base/5/pg_filenode.map", "base/5/t3_16384"] {
            assert_eq!(first_page(other), None, "{other}");
        }
    }
}
