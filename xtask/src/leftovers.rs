//! Shared memory that killed servers leave behind. A server that starts again in its data directory takes its own over; a test that kills
//! one and then removes the directory leaves it for ever, and a system has room for a few thousand of these only.

use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The size of PostgreSQL's segment of System V shared memory, in bytes; everything else that it shares lies elsewhere.
const SEGMENT_BYTES: u64 = 56;

/// What was there before. What came since, and is nobody's any more, is removed at the end, also at a bad one.
pub(crate) struct Leftovers {
    segments: BTreeSet<u64>,
    files: BTreeSet<PathBuf>,
}

/// One line of the kernel's list.
struct Segment {
    id: u64,
    size: u64,
    maker: u64,
    attached: u64,
}

/// The tests' clusters archive beside their data, which Mainstay refuses with less than a twentieth of a volume (or 20 GiB) free.
///
/// # Errors
/// When there is less where temporary directories are made.
pub(crate) fn room() -> Result<()> {
    let place = std::env::temp_dir();
    let Ok(volume) = rustix::fs::statvfs(&place) else { return Ok(()) };
    let (free, size) =
        (volume.f_bavail.saturating_mul(volume.f_frsize), volume.f_blocks.saturating_mul(volume.f_frsize));
    let needs = (size / 20).clamp(256 << 20, 20 << 30);
    if free < needs {
        bail!(
            "{} has {} MiB free and the tests' clusters need {}: Mainstay archives nothing onto a nearly full volume; free some, or name another \
             place in TMPDIR",
            place.display(),
            free >> 20,
            needs >> 20
        );
    }
    Ok(())
}

impl Leftovers {
    /// Looks at what is there.
    ///
    /// # Errors
    /// When so many segments are taken that servers would soon not start: the tests would fail for no fault of theirs.
    pub(crate) fn look() -> Result<Self> {
        let there = segments();
        let most: Option<usize> =
            std::fs::read_to_string("/proc/sys/kernel/shmmni").ok().and_then(|text| text.trim().parse().ok());
        if let Some(most) = most
            && there.len() * 4 > 3 * most
        {
            bail!(
                "{} of {most} segments of System V shared memory are taken, and each server needs one; `ipcs -m` lists them, and `ipcrm -m ID` removes \
                 one to which nobody is attached",
                there.len()
            );
        }
        Ok(Self { segments: there.iter().map(|segment| segment.id).collect(), files: files() })
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        let left = segments().into_iter().filter(|segment| {
            let ours = segment.size == SEGMENT_BYTES && !self.segments.contains(&segment.id);
            ours && segment.attached == 0 && !Path::new(&format!("/proc/{}", segment.maker)).exists()
        });
        let ids: Vec<String> = left.map(|segment| segment.id.to_string()).collect();
        for some in ids.chunks(200) {
            let mut remove = Command::new("ipcrm");
            some.iter().for_each(|id| {
                remove.args(["-m", id]);
            });
            // One that somebody else has removed meanwhile is no failure.
            let _ = remove.output();
        }
        // Without root, not every process shows what it uses.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let used = used();
        for file in files().difference(&self.files).filter(|file| !used.contains(*file)) {
            let _ = std::fs::remove_file(file);
        }
    }
}

fn segments() -> Vec<Segment> {
    let list = std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    list.lines().skip(1).filter_map(segment).collect()
}

/// The kernel's columns: key, shmid, perms, size, cpid, lpid, nattch, …
fn segment(line: &str) -> Option<Segment> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let number = |place: usize| columns.get(place)?.parse().ok();
    Some(Segment { id: number(1)?, size: number(3)?, maker: number(4)?, attached: number(6)? })
}

/// PostgreSQL's files of shared memory.
fn files() -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| is_servers(path)).collect()
}

fn is_servers(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("PostgreSQL."))
}

/// Those that a process has mapped.
fn used() -> BTreeSet<PathBuf> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let maps = processes.filter_map(|process| std::fs::read_to_string(process.path().join("maps")).ok());
    let paths = maps.flat_map(|maps| {
        maps.lines().filter_map(|line| Some(PathBuf::from(line.split_whitespace().nth(5)?))).collect::<Vec<_>>()
    });
    paths.filter(|path| is_servers(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn a_line_of_the_kernels_list_is_read() {
        let line = "   1871850     852320   600                    56 28551 28575      0   101   104   101   104 1795740800 1795740800 1795740794";
        let read = segment(line).unwrap();
        assert_eq!((read.id, read.size, read.maker, read.attached), (852_320, 56, 28_551, 0));
        assert!(segment("key shmid perms size cpid lpid nattch").is_none());
    }
}
