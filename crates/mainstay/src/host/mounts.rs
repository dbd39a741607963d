//! The mount table, and how full volumes are.

use super::{text, why};
use mainstay_plan::doctor::facts::{Mount, Reading};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

const TABLE: &str = "/proc/self/mountinfo";

/// Where this path, which exists, is mounted.
pub(super) fn mount(path: &Path) -> Reading<Mount> {
    let real = path.canonicalize().map_err(|error| why(&path.display().to_string(), &error))?;
    find(&text(TABLE)?, &real).ok_or_else(|| format!("{TABLE} names no mount of {}", real.display()))
}

/// Where something is mounted.
pub(crate) fn points() -> Reading<Vec<PathBuf>> {
    Ok(points_in(&text(TABLE)?).collect())
}

fn points_in(table: &str) -> impl Iterator<Item = PathBuf> {
    table.lines().filter_map(|line| Some(plain(line.split(' ').nth(4)?)))
}

/// Of the mounts above a path the deepest; of several at one place the last, which covers the others.
fn find(table: &str, path: &Path) -> Option<Mount> {
    let mounts = table.lines().filter_map(line).filter(|mount| path.starts_with(&mount.point));
    mounts.max_by_key(|mount| PathBuf::from(&mount.point).components().count())
}

/// `36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/sda1 rw,errors=continue`
fn line(line: &str) -> Option<Mount> {
    let (first, second) = line.split_once(" - ")?;
    let mut first = first.split(' ').skip(4);
    let (point, options) = (plain(first.next()?).to_string_lossy().into_owned(), first.next()?);
    let mut second = second.split(' ');
    let (kind, more) = (second.next()?, second.nth(1)?);
    let options = options.split(',').chain(more.split(',')).map(str::to_owned).collect();
    Some(Mount { point, kind: kind.to_owned(), options })
}

/// The kernel writes blanks and their like as three octal digits.
fn plain(field: &str) -> PathBuf {
    let (bytes, mut found, mut at) = (field.as_bytes(), Vec::new(), 0);
    while let Some(byte) = bytes.get(at) {
        let digits = field.get(at + 1..at + 4).filter(|_| *byte == b'\\');
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(meant) => {
                found.push(meant);
                at += 4;
            }
            None => {
                found.push(*byte);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(found))
}

/// Size and free space in bytes.
pub(super) fn space(path: &Path) -> Reading<(u64, u64)> {
    let found = rustix::fs::statvfs(path).map_err(|error| why(&path.display().to_string(), &error))?;
    Ok((found.f_blocks.saturating_mul(found.f_frsize), found.f_bavail.saturating_mul(found.f_frsize)))
}

/// Files that may still be made, of how many.
pub(super) fn inodes(path: &Path) -> Reading<(u64, u64)> {
    let found = rustix::fs::statvfs(path).map_err(|error| why(&path.display().to_string(), &error))?;
    Ok((found.f_favail, found.f_files))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,errors=remount-ro\n\
        30 22 0:30 / /srv/pg\\040data rw,noatime - xfs /dev/vdb rw,nobarrier\n\
        31 22 0:31 / /srv rw - tmpfs tmpfs rw,size=1k\n\
        32 22 0:32 / /srv ro - nfs4 host:/x rw,hard\n";

    #[test]
    fn the_deepest_and_last_mount_is_found() {
        let at = |path: &str| find(MOUNTS, Path::new(path)).unwrap();
        assert_eq!((at("/var/lib").point.as_str(), at("/var/lib").kind.as_str()), ("/", "ext4"));
        assert_eq!(at("/srv/other").kind, "nfs4");
        assert!(at("/srv/other").options.contains(&"ro".to_owned()));
        let data = at("/srv/pg data/orders");
        assert_eq!((data.point.as_str(), data.kind.as_str()), ("/srv/pg data", "xfs"));
        assert!(data.options.contains(&"nobarrier".to_owned()) && data.options.contains(&"noatime".to_owned()));
        assert_eq!(points_in(MOUNTS).nth(1), Some("/srv/pg data".into()));
        assert_eq!([r"/a\011\134b", r"/a\04", r"/é\040"].map(plain), ["/a\t\\b", r"/a\04", "/é "].map(PathBuf::from));
        assert_eq!(at("/srvx").kind, "ext4", "a name that begins alike is another");
    }

    #[test]
    fn this_host_has_a_root() {
        assert!(!mount(Path::new("/")).unwrap().kind.is_empty());
        let (size, free) = space(Path::new("/")).unwrap();
        assert!(size >= free && size > 0);
    }
}
