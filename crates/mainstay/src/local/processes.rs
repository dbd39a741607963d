//! The processes of a cluster on this machine, found by what they are and where they work, never by a name alone.
//!
//! Pids are used again by the system, so each is kept with the moment its process began; a signal goes only to that process.

use crate::failure::{Failure, Outcome};
use mainstay_model::layout::ClusterLayout;
use mainstay_ports::clock::boot_now;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A process, as it was when it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its number.
    pub(crate) pid: Pid,
    /// When it began, in the kernel's ticks: tells it from a later one of the same number.
    began: u64,
    /// What it is: `agent db1`, `server db2`, `proxy` …
    pub(crate) what: String,
    /// How soon it is to be ended: agents before guards before servers.
    pub(crate) rank: u8,
}

/// State letter and beginning, from `/proc/PID/stat`; `None` if there is no such process, or only its remains.
fn began(pid: Pid) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

impl Process {
    /// The process of this number as it is now, if its command line is one of ours for this path.
    pub(crate) fn daemon(pid: i32, verb: &str, path: &Path) -> Option<Process> {
        let pid = Pid::from_raw(pid)?;
        let began = began(pid)?;
        let arguments = arguments(pid);
        let ours = arguments.get(1).is_some_and(|word| word == verb)
            && arguments.iter().any(|argument| Path::new(argument) == path);
        ours.then(|| Process { pid, began, what: verb.to_owned(), rank: 0 })
    }

    /// Does it still run?
    pub(crate) fn alive(&self) -> bool {
        began(self.pid) == Some(self.began)
    }

    /// Sends it a signal, if it still runs.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.alive() {
            // It may end in between: then the signal goes nowhere, which is as well.
            let _ = kill_process(self.pid, signal);
        }
    }
}

/// Is that process this program, with this verb, at work on this path? Numbers are used again, and one that is read somewhere proves nothing.
pub(crate) fn works_on(pid: Pid, verb: &str, path: &Path) -> bool {
    let of = |process: &str, what: &str| std::fs::read_link(format!("/proc/{process}/{what}")).ok();
    let name = |exe: std::path::PathBuf| exe.file_name().map(|name| name.to_string_lossy().replace(" (deleted)", ""));
    let number = pid.as_raw_nonzero().to_string();
    let same = of(&number, "exe").and_then(name) == of("self", "exe").and_then(name);
    let (words, at) = (arguments(pid), of(&number, "cwd").unwrap_or_default());
    let named = |word: &String| {
        let word = word.strip_prefix("--to=").unwrap_or(word);
        at.join(word).components().eq(path.components())
    };
    same && words.iter().any(|word| word == verb) && words.iter().any(named)
}

fn arguments(pid: Pid) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    bytes.split(|byte| *byte == 0).take(64).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The agent of a node that goes by this file, whoever started it.
pub(crate) fn running_agent(node: &mainstay_model::NodeId, config: &Path) -> Option<u32> {
    let entries = std::fs::read_dir("/proc").ok()?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let named = |pid: i32| {
        Process::daemon(pid, "agent", config).is_some()
            && Process::daemon(pid, "agent", Path::new(node.as_str())).is_some()
    };
    pids.into_iter().find(|pid| named(*pid)).and_then(|pid| u32::try_from(pid).ok())
}

/// Every process of the cluster in this directory.
pub(crate) fn of_cluster(dir: &Path) -> Vec<Process> {
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let me = rustix::process::getpid();
    let mut found: Vec<Process> = entries
        .flatten()
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .filter(|pid| *pid != me)
        .filter_map(|pid| recognise(pid, dir, &real))
        .collect();
    found.sort_by_key(|process| (process.rank, process.pid.as_raw_nonzero()));
    found
}

fn recognise(pid: Pid, dir: &Path, real: &Path) -> Option<Process> {
    let began = began(pid)?;
    let words = arguments(pid);
    let inside = |path: &Path| path.starts_with(dir) || path.starts_with(real);
    let verb = words.get(1).map_or("", String::as_str);
    let rank = match verb {
        "supervise" => Some(0),
        "agent" => Some(1),
        "proxy" => Some(2),
        "guard" => Some(3),
        _ => None,
    };
    if let Some(rank) = rank
        && let Some(path) = words.iter().map(Path::new).find(|word| word.is_absolute() && inside(word))
        && words.first().is_some_and(|program| is_our_program(program))
    {
        let named = words.iter().skip_while(|word| *word != "--node").nth(1).cloned();
        let node = named.or_else(|| node_in(path, dir, real)).map(|node| format!(" {node}")).unwrap_or_default();
        let verb = if verb == "supervise" { "supervisor" } else { verb };
        return Some(Process { pid, began, what: format!("{verb}{node}"), rank });
    }
    let place = std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok()?;
    let node = inside(&place).then(|| node_in(&place, dir, real)).flatten()?;
    let name = std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).ok()?;
    let name = name.trim();
    let engine = name == "postgres" || name == "initdb" || name.starts_with("pg_");
    engine.then(|| Process { pid, began, what: format!("{name} {node}"), rank: 4 })
}

fn is_our_program(program: &str) -> bool {
    let name = |path: &Path| path.file_name().map(std::ffi::OsStr::to_owned);
    let own = std::env::current_exe().ok().and_then(|path| name(&path));
    let theirs = name(Path::new(program));
    theirs.is_some() && (theirs == own || theirs.as_deref() == Some("mainstay".as_ref()))
}

fn node_in(path: &Path, dir: &Path, real: &Path) -> Option<String> {
    let rest = path.strip_prefix(dir).or_else(|_| path.strip_prefix(real)).ok()?;
    let mut parts = rest.components();
    (parts.next()?.as_os_str() == "nodes").then_some(())?;
    Some(parts.next()?.as_os_str().to_string_lossy().into_owned())
}

/// Waits until none of them runs, at most this long; returns those that still do.
pub(crate) fn wait_gone(mut processes: Vec<Process>, at_most: Duration) -> Vec<Process> {
    let begun = boot_now();
    loop {
        processes.retain(Process::alive);
        if processes.is_empty() || boot_now().since(begun).to_std() >= at_most {
            return processes;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Kills what is left of a cluster, outermost first, and again until nothing new appears. Returns what was killed, and what lives.
pub(crate) fn kill_leftovers(dir: &Path) -> (Vec<Process>, Vec<Process>) {
    let mut killed: Vec<Process> = Vec::new();
    for _ in 0..20 {
        let found = of_cluster(dir);
        if found.is_empty() {
            return (killed, Vec::new());
        }
        for process in &found {
            process.signal(Signal::KILL);
            if !killed.contains(process) {
                killed.push(process.clone());
            }
        }
        wait_gone(found, Duration::from_millis(500));
    }
    (killed, of_cluster(dir))
}

/// An exclusive lock, held as long as this lives.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Locks a directory; `None` if somebody else holds it.
    pub(crate) fn directory(dir: &Path) -> Outcome<Option<Lock>> {
        let file = File::open(dir).map_err(|error| Failure::failed(format!("{}: {error}", dir.display())))?;
        Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(Lock { file }))
    }

    /// Locks a pid file and writes our number into it; `None` if somebody else holds it.
    pub(crate) fn pid_file(path: &Path) -> Outcome<Option<Lock>> {
        let wrong = |error: std::io::Error| Failure::failed(format!("{}: {error}", path.display()));
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(wrong)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let mut lock = Lock { file };
        lock.file.set_len(0).map_err(wrong)?;
        writeln!(lock.file, "{}", std::process::id()).map_err(wrong)?;
        Ok(Some(lock))
    }
}

/// The number in a pid file.
pub(crate) fn read_pid(path: &Path) -> Option<i32> {
    let mut text = String::new();
    File::open(path).ok()?.take(64).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 1)
}

/// The supervisor of the cluster in this directory, if one runs: it holds its pid file locked.
pub(crate) fn supervisor(dir: &Path) -> Option<Process> {
    let path = ClusterLayout::new(dir).supervisor_pid();
    let file = File::open(&path).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    of_cluster(dir).into_iter().find(|process| Some(process.pid.as_raw_nonzero().get()) == read_pid(&path))
}

/// Where the pid of a node's agent stands.
pub(crate) fn agent_pid_file(layout: &ClusterLayout, node: &mainstay_model::NodeId) -> PathBuf {
    layout.run().join(format!("agent-{node}.pid"))
}

#[cfg(test)]
mod tests {
    use super::{Lock, Process, began, node_in, of_cluster, read_pid, wait_gone};
    use rustix::process::{Pid, Signal};
    use std::path::Path;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn a_server_is_found_by_its_working_directory_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("nodes/db1/data");
        std::fs::create_dir_all(&data).unwrap();
        let fake = dir.path().join("postgres");
        std::fs::copy("/bin/sleep", &fake).unwrap();
        let mut server = Command::new(&fake).arg("60").current_dir(&data).spawn().unwrap();
        let mut other = Command::new("/bin/sleep").arg("60").current_dir(&data).spawn().unwrap();
        let pid = Pid::from_child(&server);
        let mut found = of_cluster(dir.path());
        for _ in 0..3000 {
            if !found.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            found = of_cluster(dir.path());
        }
        assert_eq!(found.iter().map(|p| (p.pid, p.what.as_str())).collect::<Vec<_>>(), [(pid, "postgres db1")]);
        found[0].signal(Signal::KILL);
        server.wait().unwrap();
        assert!(wait_gone(found, Duration::from_secs(60)).is_empty());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_signal_never_reaches_a_later_process_of_the_same_number() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let earlier = Process { pid, began: began(pid).unwrap() - 1, what: String::new(), rank: 0 };
        earlier.signal(Signal::KILL);
        assert!(!earlier.alive());
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_pid_file_is_held_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        let lock = Lock::pid_file(&path).unwrap().unwrap();
        assert!(Lock::pid_file(&path).unwrap().is_none());
        assert_eq!(read_pid(&path), i32::try_from(std::process::id()).ok());
        drop(lock);
        assert!(Lock::pid_file(&path).unwrap().is_some());
    }

    #[test]
    fn a_node_is_read_from_a_path() {
        let dir = Path::new("/c");
        assert_eq!(node_in(Path::new("/c/nodes/db2/data"), dir, dir).as_deref(), Some("db2"));
        assert_eq!(node_in(Path::new("/c/log"), dir, dir), None);
    }
}
