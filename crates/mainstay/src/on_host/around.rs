//! What is mounted in an existing server's directory, and who works there.

use crate::host::mounts::points;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Programs that write to a data directory, also from a terminal.
const SERVERS: [&str; 6] = ["postgres", "postmaster", "pg_rewind", "pg_basebackup", "pg_ctl", "initdb"];

/// File systems that are mounted on this directory or in it: a rename leaves them behind, or is refused, after the stop.
pub(super) fn mounts(directory: &Path) -> Vec<String> {
    match points() {
        Ok(points) => within(points, directory),
        Err(why) => vec![format!("a place that nobody knows ({why})")],
    }
}

fn within(points: Vec<PathBuf>, directory: &Path) -> Vec<String> {
    let found: BTreeSet<PathBuf> = points.into_iter().filter(|point| point.starts_with(directory)).collect();
    found.into_iter().map(|point| point.display().to_string()).collect()
}

/// Of a process: its parent, and the number of its terminal (0: none).
#[derive(Clone, Copy)]
struct Process {
    parent: u32,
    terminal: i64,
}

fn process(pid: u32) -> Option<Process> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name, in parentheses, may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    Some(Process { parent, terminal: fields.nth(2)?.parse().ok()? })
}

/// Is one of them a process's ancestor, or the process itself?
fn descends(pid: u32, from: u32, parents: &BTreeMap<u32, u32>) -> bool {
    let (mut at, mut seen) = (pid, BTreeSet::new());
    while at != from {
        match parents.get(&at) {
            Some(parent) if seen.insert(at) => at = *parent,
            _ => return false,
        }
    }
    true
}

fn parents() -> BTreeMap<u32, u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, process(pid)?.parent))).collect()
}

/// Processes that work in this directory; not this one, nor who has started it.
pub(super) fn working_in(directory: &Path) -> Vec<u32> {
    let parents = parents();
    let there = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory);
    parents.keys().copied().filter(|pid| !descends(std::process::id(), *pid, &parents)).filter(there).collect()
}

/// Those of them that are not the server's, in words: its stop does not end them.
pub(super) fn strangers(directory: &Path, server: u32) -> Vec<String> {
    let working = working_in(directory);
    let parents = parents();
    // One that has ended meanwhile is nobody's.
    let others = working.into_iter().filter(|pid| parents.contains_key(pid) && !descends(*pid, server, &parents));
    others.map(shown).collect()
}

fn shown(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{} (process {pid})", name.trim())
}

/// Those that must have ended before the data are moved: a person's shell that came meanwhile writes nothing of the server's.
pub(super) fn at_work(directory: &Path) -> Vec<u32> {
    let person = |pid: &u32| {
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = name.strip_suffix(" (deleted)").unwrap_or(name);
        process(*pid).is_some_and(|process| process.terminal != 0) && !SERVERS.contains(&name)
    };
    working_in(directory).into_iter().filter(|pid| !person(pid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_on_a_directory_or_in_it_is_seen() {
        let points = ["/", "/srv", "/srv/my data/pg_wal", "/srv/my data2"].map(PathBuf::from);
        let found = |directory: &str| within(points.to_vec(), Path::new(directory));
        assert_eq!(found("/srv/my data"), ["/srv/my data/pg_wal"]);
        assert_eq!(found("/srv/my data2"), ["/srv/my data2"]);
        assert!(found("/srv/other").is_empty());
    }

    #[test]
    fn who_works_there_and_is_not_the_servers_is_named() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().canonicalize().unwrap();
        assert!(working_in(&directory).is_empty());
        let mut other = std::process::Command::new("sleep").arg("60").current_dir(&directory).spawn().unwrap();
        let pid = other.id();
        // The program's name is there once it was executed.
        while !std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().starts_with("sleep") {
            std::thread::yield_now();
        }
        assert_eq!(working_in(&directory), [pid]);
        assert_eq!(strangers(&directory, 1_000_000_000), [format!("sleep (process {pid})")]);
        // It is its own, or its parent's.
        assert!(strangers(&directory, pid).is_empty() && strangers(&directory, std::process::id()).is_empty());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
