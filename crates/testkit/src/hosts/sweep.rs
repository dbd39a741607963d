//! The directory of one run, and what runs that died without cleaning up have left.
//!
//! A host ends by itself when its run's program ends, however that ended; files stay, and are removed by the next run.

use crate::processes::{Pinned, all, state};
use anyhow::{Context as _, Result};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// `PREFIX` + process number + `-` + a count.
const PREFIX: &str = "mainstay-hosts-";

/// A directory that is removed when dropped.
pub(crate) struct RunDir(PathBuf);

impl RunDir {
    /// Makes one, after sweeping up after dead runs.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn new() -> Result<RunDir> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let place = std::env::temp_dir();
        sweep(&place);
        let name = format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = place.join(name);
        std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(RunDir(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{} could not be removed: {error}", self.0.display());
        }
    }
}

/// The run's process number in the name of its directory.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn sweep(place: &Path) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(owner) else { continue };
        if state(pid).is_some() {
            continue;
        }
        // First processes whose host could not end: something in it was stuck.
        for left in all().into_iter().filter(|pid| names_dir(*pid, &entry.path())) {
            let _ = Pinned::new(left).and_then(|process| process.signal(Signal::KILL));
        }
        std::thread::sleep(Duration::from_millis(100));
        if let Err(error) = std::fs::remove_dir_all(entry.path()) {
            eprintln!("{}, left by a dead run, could not be removed: {error}", entry.path().display());
        }
    }
}

fn names_dir(pid: u32, dir: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).into_owned();
    line.contains("host-init") && line.contains(&*dir.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_dead_runs_are_removed() {
        let place = tempfile::tempdir().unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        let gone = dead.id();
        dead.wait().unwrap();
        let names = [format!("{PREFIX}{}-0", std::process::id()), format!("{PREFIX}{gone}-3"), "other".to_owned()];
        names.iter().for_each(|name| std::fs::create_dir(place.path().join(name)).unwrap());
        sweep(place.path());
        let left: Vec<bool> = names.iter().map(|name| place.path().join(name).exists()).collect();
        assert_eq!(left, [true, false, true]);
    }
}
