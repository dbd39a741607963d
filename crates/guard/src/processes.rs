//! Which processes belong to a server, from `/proc`: our descendants, and those whose working directory is the data directory.
//!
//! A database server's backends change into the data directory once and stay there; each is a session of its own, and an
//! orphan may have any parent, so neither process groups nor parents alone find them all.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Servers that are recognised by the name of their program even on a terminal.
const SERVERS: [&str; 6] = ["postgres", "postmaster", "mysqld", "mariadbd", "mongod", "mongos"];

/// A data directory, known by its device and inode: a renamed or removed directory is still the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl Home {
    /// Looks the directory up now. One that does not exist is known by its path alone.
    pub(crate) fn of(path: &Path) -> Home {
        let identity = std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        Home { path, identity }
    }

    fn is_cwd_of(&self, pid: u32) -> bool {
        let link = format!("/proc/{pid}/cwd");
        if let (Some(ours), Ok(facts)) = (self.identity, std::fs::metadata(&link)) {
            return ours == (facts.dev(), facts.ino());
        }
        std::fs::read_link(&link).is_ok_and(|cwd| cwd == self.path || is_removed(&cwd, &self.path))
    }
}

fn is_removed(cwd: &Path, path: &Path) -> bool {
    cwd.to_str().and_then(|text| text.strip_suffix(" (deleted)")).is_some_and(|text| Path::new(text) == path)
}

/// What `/proc/PID/stat` tells.
struct Stat {
    state: char,
    parent: u32,
    terminal: i64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and parentheses: what follows begins after the last one.
    let mut rest = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = rest.next()?.chars().next()?;
    let parent = rest.next()?.parse().ok()?;
    let terminal = rest.nth(2)?.parse().ok()?;
    Some(Stat { state, parent, terminal })
}

/// It has ended, and nobody has collected its exit status.
pub(crate) fn is_zombie(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.state == 'Z')
}

/// Will it never run its own code again? It is stuck in the kernel, and SIGKILL is pending: the kernel delivers that before it lets the
/// process return to its program, whenever that may be. A fork that is under way fails for the same reason.
pub(crate) fn is_doomed(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| says_doomed(&text))
}

fn says_doomed(status: &str) -> bool {
    const KILL: u64 = 1 << (9 - 1);
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let pending = |name: &str| {
        field(name).and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask & KILL != 0)
    };
    // The process's own mask stays set until it is gone, also once its end has begun; a thread's is cleared then.
    field("State:").is_some_and(|state| state.starts_with('D')) && (pending("ShdPnd:") || pending("SigPnd:"))
}

/// Every process id there is now.
fn all() -> Vec<u32> {
    let Ok(list) = std::fs::read_dir("/proc") else { return Vec::new() };
    list.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A person's shell in the data directory is not a server: on a terminal, and not by its program's name.
fn is_person(pid: u32, terminal: i64) -> bool {
    if terminal == 0 {
        return false;
    }
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let name = program.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    !SERVERS.contains(&name)
}

fn ancestors(mut pid: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    while pid > 0 && found.insert(pid) {
        pid = stat(pid).map_or(0, |s| s.parent);
    }
    found
}

/// Living processes whose working directory is `home`; never the caller or one of its ancestors.
pub(crate) fn at_home(home: &Home) -> Vec<u32> {
    let ours = ancestors(std::process::id());
    let candidates = all().into_iter().filter(|pid| !ours.contains(pid) && home.is_cwd_of(*pid));
    candidates
        .filter(|pid| stat(*pid).is_some_and(|s| !matches!(s.state, 'Z' | 'X') && !is_person(*pid, s.terminal)))
        .collect()
}

/// Living descendants of this process.
pub(crate) fn descendants() -> Vec<u32> {
    let me = std::process::id();
    let family: Vec<(u32, u32, char)> =
        all().into_iter().filter_map(|pid| stat(pid).map(|s| (pid, s.parent, s.state))).collect();
    let mut found = BTreeSet::from([me]);
    // Each round finds at least one more generation; it ends when a round finds none.
    loop {
        let before = found.len();
        for (pid, parent, _) in &family {
            if found.contains(parent) {
                found.insert(*pid);
            }
        }
        if found.len() == before {
            break;
        }
    }
    let living =
        family.iter().filter(|(pid, _, state)| *pid != me && found.contains(pid) && !matches!(state, 'Z' | 'X'));
    living.map(|(pid, _, _)| *pid).collect()
}

/// What became of an attempt to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kill {
    /// The signal is on its way.
    Sent,
    /// It was gone already.
    Gone,
    /// It belongs to another user: not ours, since our server runs as a user that we may signal.
    Foreign,
}

/// SIGKILL, to the very process that `still` confirms after it was pinned: a number may be reused.
pub(crate) fn kill(pid: u32, still: impl Fn(u32) -> bool) -> Kill {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Kill::Gone };
    let pinned = match pidfd_open(id, PidfdFlags::empty()) {
        Ok(pinned) => pinned,
        Err(_) => return Kill::Gone,
    };
    if !still(pid) {
        return Kill::Gone;
    }
    match pidfd_send_signal(&pinned, Signal::KILL) {
        Ok(()) => Kill::Sent,
        Err(rustix::io::Errno::PERM) => Kill::Foreign,
        Err(_) => Kill::Gone,
    }
}

/// SIGKILL to every descendant of this process. Returns how many signals were sent.
pub(crate) fn kill_descendants() -> usize {
    let ours = |pid: u32| ancestors(pid).contains(&std::process::id());
    descendants().into_iter().filter(|pid| kill(*pid, ours) == Kill::Sent).count()
}

/// SIGKILL to everything at `home`. Returns how many signals were sent: 0 means that nobody is left there.
pub(crate) fn kill_at_home(home: &Home) -> usize {
    at_home(home).into_iter().filter(|pid| kill(*pid, |pid| home.is_cwd_of(pid)) == Kill::Sent).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    struct Sleeper(Child);
    impl Sleeper {
        fn at(dir: &Path) -> Sleeper {
            let child = Command::new("sleep").arg("60").current_dir(dir).spawn().unwrap();
            let link = format!("/proc/{}/exe", child.id());
            while !std::fs::read_link(&link).is_ok_and(|exe| exe.ends_with("sleep") || exe.ends_with("coreutils")) {
                std::thread::yield_now();
            }
            Sleeper(child)
        }
    }
    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn finds_who_works_in_a_directory_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let (inside, _outside) = (Sleeper::at(dir.path()), Sleeper::at(other.path()));
        assert_eq!(at_home(&Home::of(dir.path())), vec![inside.0.id()]);
        assert!(descendants().contains(&inside.0.id()));
    }

    #[test]
    fn a_renamed_or_removed_directory_is_still_the_same() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        std::fs::create_dir(&dir).unwrap();
        let home = Home::of(&dir);
        let inside = Sleeper::at(&dir);
        let moved = parent.path().join("moved");
        std::fs::rename(&dir, &moved).unwrap();
        assert_eq!(at_home(&home), vec![inside.0.id()]);
        std::fs::remove_dir(&moved).unwrap();
        assert_eq!(at_home(&home), vec![inside.0.id()]);
        assert_eq!(at_home(&Home::of(&moved)), vec![inside.0.id()], "known by the path alone");
    }

    #[test]
    fn kills_and_then_finds_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let mut inside = Sleeper::at(dir.path());
        let home = Home::of(dir.path());
        assert_eq!(kill_at_home(&home), 1);
        inside.0.wait().unwrap();
        assert_eq!(kill_at_home(&home), 0);
    }

    #[test]
    fn only_who_is_stuck_with_a_kill_pending_is_doomed() {
        let status = |state: &str, thread: &str, shared: &str| {
            format!(
                "Name:\tpostgres\nState:\t{state}\nSigQ:\t1/9\nSigPnd:\t{thread}\nShdPnd:\t{shared}\nSigBlk:\t0000000000000100\n"
            )
        };
        let (none, kill, term) = ("0000000000000000", "0000000000000100", "0000000000004000");
        assert!(says_doomed(&status("D (disk sleep)", none, kill)));
        assert!(says_doomed(&status("D (disk sleep)", kill, none)));
        for (state, thread, shared) in [
            ("D (disk sleep)", none, none),
            ("D (disk sleep)", term, term),
            ("R (running)", kill, kill),
            ("S (sleeping)", none, kill),
            ("T (stopped)", none, none),
        ] {
            assert!(!says_doomed(&status(state, thread, shared)), "{state} {thread} {shared}");
        }
        assert!(!is_doomed(std::process::id()) && !says_doomed(""));
    }

    #[test]
    fn never_finds_the_caller() {
        let cwd = std::env::current_dir().unwrap();
        assert!(!at_home(&Home::of(&cwd)).contains(&std::process::id()));
    }
}
