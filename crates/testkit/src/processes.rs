//! Processes from outside: pinned by a descriptor before they are killed, and watched until they are gone.

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::Timespec;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a killed process may take to be gone.
const DYING: Duration = Duration::from_secs(20);

/// The state letter of a process (`R`, `S`, `T`, `Z` …); `None`: there is none of this number.
#[must_use]
pub fn state(pid: u32) -> Option<char> {
    stat(pid)?.first()?.chars().next()
}

/// The fields of `/proc/PID/stat` from the third on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(')')?.1.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Processor time that a process has used so far, in clock ticks (of which there are a hundred in a second).
#[must_use]
pub fn ticks(pid: u32) -> Option<u64> {
    let fields = stat(pid)?;
    let field = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok());
    Some(field(11)? + field(12)?)
}

/// Memory that is really there, in bytes.
#[must_use]
pub fn resident(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// Every process of this machine.
pub(crate) fn all() -> Vec<u32> {
    let Ok(list) = std::fs::read_dir("/proc") else { return Vec::new() };
    list.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn cwd(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// Every process that works in exactly this directory: a server and its backends.
#[must_use]
pub fn working_in(dir: &Path) -> Vec<u32> {
    all().into_iter().filter(|pid| cwd(*pid).is_some_and(|cwd| cwd == dir)).collect()
}

/// Every process of a cluster: it works below the directory, or names it on its command line. Never this process or one
/// of its ancestors.
#[must_use]
pub fn of_cluster(dir: &Path) -> Vec<u32> {
    let text = dir.display().to_string();
    let mut ours = BTreeSet::new();
    let mut pid = std::process::id();
    while pid > 0 && ours.insert(pid) {
        pid = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()).unwrap_or(0);
    }
    let belongs = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&text) || cwd(*pid).is_some_and(|cwd| cwd.starts_with(dir))
    };
    all().into_iter().filter(|pid| !ours.contains(pid) && belongs(pid)).collect()
}

/// A process, pinned: its number may be used again, this may not.
pub struct Pinned {
    /// Its number.
    pub pid: u32,
    descriptor: OwnedFd,
}

impl Pinned {
    /// Pins a process.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(pid: u32) -> Result<Pinned> {
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process has the number 0")?;
        let descriptor = pidfd_open(id, PidfdFlags::empty()).with_context(|| format!("there is no process {pid}"))?;
        Ok(Pinned { pid, descriptor })
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it is gone or not ours.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        pidfd_send_signal(&self.descriptor, signal).with_context(|| format!("cannot signal process {}", self.pid))
    }

    /// Waits until it has ended. Returns whether it has.
    #[must_use]
    pub fn ended_within(&self, patience: Duration) -> bool {
        let begun = Instant::now();
        loop {
            let left = patience.saturating_sub(begun.elapsed());
            let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
            let timeout = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), ..timeout };
            let mut watched = [PollFd::new(&self.descriptor, PollFlags::IN)];
            match poll(&mut watched, Some(&timeout)) {
                // A child of ours that ends meanwhile ends the wait as well.
                Err(Errno::INTR) if !left.is_zero() => {}
                ready => return ready.is_ok_and(|ready| ready > 0),
            }
        }
    }
}

/// Kills these at one moment and makes sure that each is gone. Those that were gone already count as failed: a fault that
/// did not happen proves nothing. Returns the moment of the first signal.
///
/// # Errors
/// When one of `required` is not there, or one is still there after twenty seconds.
pub fn kill_all(required: &[u32], others: &[u32]) -> Result<Instant> {
    let mut pinned = required.iter().map(|pid| Pinned::new(*pid)).collect::<Result<Vec<_>>>()?;
    pinned.extend(others.iter().filter_map(|pid| Pinned::new(*pid).ok()));
    let begun = Instant::now();
    for (index, process) in pinned.iter().enumerate() {
        let sent = process.signal(Signal::KILL);
        if index < required.len() {
            sent?;
        }
    }
    for process in &pinned {
        if !process.ended_within(DYING) {
            bail!("process {} lives {} s after SIGKILL", process.pid, DYING.as_secs());
        }
    }
    Ok(begun)
}
