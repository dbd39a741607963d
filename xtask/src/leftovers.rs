//! Shared memory that killed servers leave behind. A server that starts again in its data directory takes its own over; a test that kills
//! one and then removes the directory leaves it for ever, and a system has room for a few thousand of these only.
//!
//! Other servers may run beside the tests, and nothing tells whose a segment is. What is removed therefore is nobody's as far as can be seen: it
//! came while the tests ran, is owned by the user whose servers they are, has PostgreSQL's size and mode or name, its maker is gone, nobody
//! uses it, and no server that runs knows it. Of System V's memory PostgreSQL itself removes the same when it starts.

use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The size of PostgreSQL's segment of System V shared memory, in bytes; everything else that it shares lies elsewhere.
const SEGMENT_BYTES: u64 = 56;
/// Its mode, as the kernel's list shows it.
const SEGMENT_MODE: u64 = 600;
/// How the file begins in which a server lists the others that it uses (PG_DYNSHMEM_CONTROL_MAGIC of its source).
const LIST_MAGIC: [u8; 4] = 0x9a50_3d32_u32.to_ne_bytes();

/// What was there before. What came since, and is nobody's any more, is removed at the end, also at a bad one.
pub(crate) struct Leftovers {
    segments: BTreeSet<u64>,
    files: BTreeSet<PathBuf>,
    owner: Option<u32>,
}

/// One line of the kernel's list.
struct Segment {
    id: u64,
    mode: u64,
    size: u64,
    maker: u64,
    attached: u64,
    owner: u64,
    made_by: u64,
}

impl Segment {
    /// Can it be what a server of this user left?
    fn left_by(&self, owner: u32) -> bool {
        let owner = u64::from(owner);
        // A maker that this system does not show (0: a container's) may live.
        (self.size, self.mode, self.attached) == (SEGMENT_BYTES, SEGMENT_MODE, 0)
            && (self.owner, self.made_by) == (owner, owner)
            && self.maker != 0
    }
}

/// The tests' clusters archive beside their data, which Mainstay refuses where it finds little room: the numbers are those of `Room::of` in
/// `crates/model/src/observation.rs`, and a test holds them together (nothing of the house is built into this program).
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
        Ok(Self { segments: there.iter().map(|segment| segment.id).collect(), files: files(), owner: servers_user() })
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        let Some(owner) = self.owner else { return };
        let left = segments().into_iter().filter(|segment| {
            let new = !self.segments.contains(&segment.id);
            new && segment.left_by(owner) && !Path::new(&format!("/proc/{}", segment.maker)).exists()
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
        // Listed before it is looked who uses what: one that is made in between is not among them.
        let new: BTreeSet<PathBuf> = files().difference(&self.files).cloned().collect();
        let used = used();
        let known: Vec<Vec<u8>> = used.iter().filter_map(|file| std::fs::read(file).ok()).collect();
        let owned = |file: &Path| file.symlink_metadata().is_ok_and(|there| there.is_file() && there.uid() == owner);
        for file in new.iter().filter(|file| !used.contains(*file) && owned(file)) {
            if !known.iter().any(|list| lists(list, file)) {
                let _ = std::fs::remove_file(file);
            }
        }
    }
}

/// Whose the tests' servers are.
fn servers_user() -> Option<u32> {
    let me = rustix::process::geteuid();
    if !me.is_root() {
        return Some(me.as_raw());
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    users.lines().find_map(|user| user.strip_prefix("postgres:")?.split(':').nth(1)?.parse().ok())
}

/// Does a server's list name this file? It may be one that a server keeps for later, while no process of it uses it.
fn lists(list: &[u8], file: &Path) -> bool {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(number) = name.strip_prefix("PostgreSQL.").and_then(|number| number.parse::<u32>().ok()) else {
        // Not a name that a server gives.
        return true;
    };
    list.starts_with(&LIST_MAGIC) && list.chunks_exact(4).any(|word| word == number.to_ne_bytes())
}

fn segments() -> Vec<Segment> {
    let list = std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    list.lines().skip(1).filter_map(segment).collect()
}

/// The kernel's columns: key, shmid, perms, size, cpid, lpid, nattch, uid, gid, cuid, …
fn segment(line: &str) -> Option<Segment> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let number = |place: usize| columns.get(place)?.parse().ok();
    let (id, mode, size, maker) = (number(1)?, number(2)?, number(3)?, number(4)?);
    Some(Segment { id, mode, size, maker, attached: number(6)?, owner: number(7)?, made_by: number(9)? })
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
    use super::*;

    #[test]
    fn only_what_a_server_of_the_tests_can_have_left_is_taken_for_it() {
        let line = |owner: u32, mode: u32, size: u32, maker: u32, attached: u32| {
            let line = format!(
                "1871850     852320   {mode}   {size} {maker} 28575      {attached}   {owner}   104   {owner}   104 1795740800 1795740800 1795740794"
            );
            segment(&line).unwrap()
        };
        assert_eq!(line(101, 600, 56, 28_551, 0).id, 852_320);
        assert!(line(101, 600, 56, 28_551, 0).left_by(101));
        for other in [
            line(102, 600, 56, 28_551, 0),
            line(101, 660, 56, 28_551, 0),
            line(101, 600, 64, 28_551, 0),
            line(101, 600, 56, 0, 0),
            line(101, 600, 56, 28_551, 1),
        ] {
            assert!(!other.left_by(101));
        }
        assert!(segment("key shmid perms size cpid lpid nattch").is_none());
    }

    #[test]
    fn what_a_running_server_keeps_for_later_is_not_removed() {
        let list = [LIST_MAGIC, 2_u32.to_ne_bytes(), 100_u32.to_ne_bytes(), 1_367_135_106_u32.to_ne_bytes()].concat();
        let file = |name: &str| Path::new("/dev/shm").join(name);
        assert!(lists(&list, &file("PostgreSQL.1367135106")));
        assert!(!lists(&list, &file("PostgreSQL.1367135107")));
        assert!(!lists(&list[4..], &file("PostgreSQL.1367135106")), "not a list");
        assert!(lists(&[], &file("PostgreSQL.mine")), "not a server's");
    }

    #[test]
    fn the_room_is_what_the_house_calls_little() {
        let numbers = "(size / 20).clamp(256 << 20, 20 << 30)";
        let of_the_house = include_str!("../../crates/model/src/observation.rs");
        assert!(of_the_house.contains(&format!("let little = {numbers};")));
        assert!(include_str!("leftovers.rs").contains(&format!("let needs = {numbers};")));
    }
}
