//! A folder as a store: one file for each object, linked into place when it is whole and on the disk.

use super::{Committed, Entry, Key, ObjectError, Objects, Removal, Upload};
use rustix::fs::{Advice, RenameFlags, renameat_with};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Where unfinished objects lie.
const UNFINISHED: &str = ".unfinished";
/// So much is written before the disk is asked to begin.
const BEGIN: u64 = 4 << 20;
/// So many half-written pieces are looked at, and removed, by one sweep.
const SWEEP_LOOKS: usize = 10_000;
const SWEEP_MOST: usize = 1_000;
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A folder, on this host or mounted.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

fn failed(path: &Path, error: &std::io::Error) -> ObjectError {
    let says = format!("{}: {error}", path.display());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => ObjectError::Full(says),
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => ObjectError::Refused(says),
        _ => ObjectError::Unreachable(says),
    }
}

fn make_dir(path: &Path) -> Result<(), ObjectError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| failed(path, &e))
}

/// Makes the directories between the folder and a file, and never the folder: one that has just gone away must not come back empty in its place.
fn make_below(root: &Path, dir: &Path) -> Result<(), ObjectError> {
    let below: Vec<&Path> = dir.ancestors().take_while(|dir| *dir != root && dir.starts_with(root)).collect();
    for dir in below.into_iter().rev() {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(dir, &error)),
            _ => {}
        }
    }
    Ok(())
}

fn sync_dir(path: &Path) -> Result<(), ObjectError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| failed(path, &e))
}

impl Folder {
    /// Opens the folder, making it if it is not there. What an earlier process left unfinished stays until `sweep_unfinished`.
    pub fn open(root: impl Into<PathBuf>) -> Result<Folder, ObjectError> {
        let root = root.into();
        make_dir(&root.join(UNFINISHED))?;
        sync_dir(&root)?;
        Ok(Folder { root })
    }

    /// Opens a folder that must be there already.
    pub fn existing(root: impl Into<PathBuf>) -> Result<Folder, ObjectError> {
        let folder = Folder { root: root.into() };
        folder.reached()?;
        Ok(folder)
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    /// An unmounted volume shows an empty directory: its objects are not missing, they are out of reach.
    fn reached(&self) -> Result<(), ObjectError> {
        let root = self.root.display();
        match std::fs::metadata(self.root.join(UNFINISHED)) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound && self.root.is_dir() => {
                Err(ObjectError::Unreachable(format!("{root} holds no repository (is the volume mounted?)")))
            }
            Err(error) => Err(ObjectError::Unreachable(format!("{root}: {error} (is the volume mounted?)"))),
        }
    }

    fn missing_or(&self, key: &Key, error: &std::io::Error) -> ObjectError {
        if error.kind() != ErrorKind::NotFound {
            return failed(&self.path(key), error);
        }
        self.reached().err().unwrap_or_else(|| ObjectError::Missing(key.to_string()))
    }

    fn walk(&self, dir: &Path, found: &mut Vec<Entry>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let path = entry.path();
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.walk(&path, found)?;
            } else if kind.is_file()
                && let Ok(name) = path.strip_prefix(&self.root)
                && let Ok(key) = Key::new(name.to_string_lossy())
            {
                match entry.metadata() {
                    Ok(meta) => found.push(Entry { key, size: meta.len() }),
                    Err(gone) if gone.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

impl Objects for Folder {
    fn create(&self, key: &Key) -> Result<Box<dyn Upload>, ObjectError> {
        self.reached()?;
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{}-{number}", std::process::id(), mainstay_ports::clock::wall_now_ms());
        let temporary = self.root.join(UNFINISHED).join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let file = file.map_err(|e| failed(&temporary, &e))?;
        let (target, root) = (self.path(key), self.root.clone());
        Ok(Box::new(FolderUpload { file, temporary, target, root, written: 0, begun: 0 }))
    }

    fn sweep_unfinished(&self, age: Duration) -> Result<usize, ObjectError> {
        self.reached()?;
        let dir = self.root.join(UNFINISHED);
        let wrong = |e: std::io::Error| failed(&dir, &e);
        // By the clock of whoever keeps the folder, as the others' times are: a new file tells it.
        let probe = dir.join(format!("now-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        let now = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe);
        let now = now.and_then(|file| file.metadata()?.modified());
        let _ = std::fs::remove_file(&probe);
        let now = now.map_err(wrong)?;
        let mut removed = 0;
        for entry in std::fs::read_dir(&dir).map_err(wrong)?.take(SWEEP_LOOKS) {
            let Ok(entry) = entry else { continue };
            let Ok(meta) = entry.metadata() else { continue };
            let old = meta.modified().is_ok_and(|at| now.duration_since(at).is_ok_and(|since| since > age));
            if old && meta.is_file() && removed < SWEEP_MOST && std::fs::remove_file(entry.path()).is_ok() {
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<Vec<u8>, ObjectError> {
        let path = self.path(key);
        let file = File::open(&path).map_err(|e| self.missing_or(key, &e))?;
        let size = file.metadata().map_err(|e| failed(&path, &e))?.len();
        let range = range.unwrap_or(0..size);
        if range.start > range.end || range.end > size {
            let says = format!("{key} has {size} bytes, and bytes {} to {} are asked for", range.start, range.end);
            return Err(ObjectError::Refused(says));
        }
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut bytes, range.start).map_err(|e| failed(&path, &e))?;
        Ok(bytes)
    }

    fn size(&self, key: &Key) -> Result<u64, ObjectError> {
        std::fs::metadata(self.path(key)).map(|meta| meta.len()).map_err(|e| self.missing_or(key, &e))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Entry>, ObjectError> {
        self.reached()?;
        let mut found = Vec::new();
        let start = self.root.join(prefix.trim_end_matches('/'));
        match self.walk(&start, &mut found) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => self.reached()?,
            Err(error) => return Err(failed(&start, &error)),
        }
        found.sort();
        Ok(found)
    }

    fn delete(&self, key: &Key) -> Result<Removal, ObjectError> {
        self.reached()?;
        match std::fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(&self.path(key), &error)),
            _ => Ok(Removal::Gone),
        }
    }

    fn place(&self) -> String {
        self.root.display().to_string()
    }
}

struct FolderUpload {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    root: PathBuf,
    written: u64,
    /// Up to here the disk was asked to begin.
    begun: u64,
}

impl Drop for FolderUpload {
    fn drop(&mut self) {
        // After a commit the name is gone already.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

impl Upload for FolderUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ObjectError> {
        self.file.write_all(bytes).map_err(|e| failed(&self.temporary, &e))?;
        self.written += bytes.len() as u64;
        if self.written - self.begun >= BEGIN {
            // Let the disk begin; `commit` waits for all of it.
            let length = NonZeroU64::new(self.written - self.begun);
            let _ = rustix::fs::fadvise(&self.file, self.begun, length, Advice::DontNeed);
            self.begun = self.written;
        }
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<Committed, ObjectError> {
        self.file.sync_all().map_err(|e| failed(&self.temporary, &e))?;
        let parent = self.target.parent().unwrap_or(&self.root).to_owned();
        let new_dirs = !parent.exists();
        make_below(&self.root, &parent)?;
        let here = rustix::fs::CWD;
        let outcome = match renameat_with(here, &self.temporary, here, &self.target, RenameFlags::NOREPLACE) {
            Ok(()) => Committed::Created,
            Err(rustix::io::Errno::EXIST) => Committed::Exists,
            // A filesystem without that call (NFS): a hard link does not replace either.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
                match std::fs::hard_link(&self.temporary, &self.target) {
                    Ok(()) => Committed::Created,
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => Committed::Exists,
                    Err(error) => return Err(failed(&self.target, &error)),
                }
            }
            Err(error) => return Err(failed(&self.target, &error.into())),
        };
        sync_dir(&parent)?;
        if new_dirs {
            let above = parent.ancestors().skip(1).take_while(|dir| dir.starts_with(&self.root));
            above.map(sync_dir).collect::<Result<Vec<()>, _>>()?;
        }
        Ok(outcome)
    }
}
