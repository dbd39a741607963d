//! The volume of the data, and how long it takes there until a write is durable.

use super::{mounts, why};
use mainstay_plan::doctor::facts::{Reading, Volume, Writing};
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// One page of the server.
const PAGE: usize = 8192;
/// How many small writes there are at most.
const SMALL_MOST: usize = 64;
/// For how long.
const SMALL_TIME: Duration = Duration::from_secs(2);
/// What is written in one go.
const LARGE_BYTES: usize = 32 << 20;
/// In pieces of this size, so that a slow disk is noticed between them.
const PIECE: usize = 1 << 20;
/// For how long.
const LARGE_TIME: Duration = Duration::from_secs(4);
/// Nothing is written to a volume with less room.
const ROOM: u64 = 1 << 30;
/// After that the disk stands still.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the volume of this directory shows, or of what exists above it.
pub(super) fn read(dir: &Path, writing: bool) -> Volume {
    let at = dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let space = mounts::space(at);
    let room = space.as_ref().is_ok_and(|(_, free)| *free >= ROOM);
    Volume {
        at: at.display().to_string(),
        mount: mounts::mount(at),
        inodes: mounts::inodes(at),
        // A nearly full volume is a finding of its own; it is not filled further.
        writing: (writing && room).then(|| measure(at)),
        space,
    }
}

/// Measures in a thread of its own: a write to a disk that stands still can not be ended.
fn measure(at: &Path) -> Reading<Writing> {
    let (answer, told) = mpsc::sync_channel(1);
    let place = at.to_owned();
    let work = move || drop(answer.send(write(&place).map_err(|error| why(&place.display().to_string(), &error))));
    std::thread::Builder::new().name("disk".to_owned()).spawn(work).map_err(|error| error.to_string())?;
    told.recv_timeout(PATIENCE)
        .unwrap_or_else(|_| Err(format!("writes to {} were not durable within {} s", at.display(), PATIENCE.as_secs())))
}

fn write(at: &Path) -> std::io::Result<Writing> {
    let mut file = nameless(at)?;
    // Space that is there already: what is measured is the write, as it is with the server's log, not the making of a file.
    file.write_all(&[0; PAGE])?;
    file.sync_all()?;
    let (mut each, begun) = (Vec::with_capacity(SMALL_MOST), Instant::now());
    while each.len() < SMALL_MOST && (begun.elapsed() < SMALL_TIME || each.is_empty()) {
        let fill = u8::try_from(each.len() + 1).unwrap_or(1);
        let since = Instant::now();
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&[fill; PAGE])?;
        file.sync_data()?;
        each.push(since.elapsed());
    }
    each.sort_unstable();
    let us = |took: Option<&Duration>| took.map_or(0, |took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    Ok(Writing {
        count: each.len() as u64,
        median_us: us(each.get(each.len() / 2)),
        worst_us: us(each.last()),
        bytes_per_s: large(&mut file)?,
    })
}

fn large(file: &mut File) -> std::io::Result<u64> {
    // Not all zero, which some disks do not write at all.
    let piece: Vec<u8> = (0..PIECE).map(|place| u8::try_from(place % 251).unwrap_or(7)).collect();
    let (mut written, begun) = (0_usize, Instant::now());
    while written < LARGE_BYTES && begun.elapsed() < LARGE_TIME {
        file.write_all(&piece)?;
        written += PIECE;
    }
    file.sync_data()?;
    let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
    Ok((written as u64).saturating_mul(1000) / ms)
}

/// A file that nobody sees and that is gone with this process, whatever happens.
fn nameless(at: &Path) -> std::io::Result<File> {
    let path = at.join(format!(".mainstay-doctor-{}", std::process::id()));
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_is_measured_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let found = measure(dir.path()).unwrap();
        assert!(found.count > 0 && found.worst_us >= found.median_us, "{found:?}");
        assert!(found.bytes_per_s > 0, "{found:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let missing = measure(&dir.path().join("nowhere")).unwrap_err();
        assert!(missing.contains("nowhere"), "{missing}");
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_looked_for_above() {
        let dir = tempfile::tempdir().unwrap();
        let volume = read(&dir.path().join("orders/db1"), false);
        assert_eq!(volume.at, dir.path().display().to_string());
        assert!(volume.writing.is_none() && volume.mount.is_ok());
    }
}
