//! What the guard does to itself before it serves: a session of its own, the subreaper, locked memory, raised priority, and the
//! lock that keeps a second guard away. What the host does not allow is written down, not fatal.

use crate::stage::Ordinary;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mm::MlockAllFlags;
use std::os::fd::OwnedFd;
use std::path::Path;

/// What was changed, and what the host refused.
pub(crate) struct Prepared {
    /// What the server gets back.
    pub(crate) ordinary: Ordinary,
    /// For the log.
    pub(crate) notes: Vec<String>,
}

/// Prepares this process.
pub(crate) fn prepare() -> Prepared {
    let mut notes = Vec::new();
    let closed = crate::descriptors::close_inherited();
    if closed > 0 {
        notes.push(format!("closed {closed} inherited file descriptors"));
    }
    // Fails if the starter did it already.
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let _ = rustix::process::chdir("/");
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        notes.push(format!("not a subreaper ({error}): orphans are found by their working directory alone"));
    }
    let ordinary = Ordinary {
        nice: rustix::process::getpriority_process(None).unwrap_or(0),
        oom_score_adj: std::fs::read_to_string("/proc/self/oom_score_adj")
            .ok()
            .and_then(|t| t.trim().parse().ok())
            .unwrap_or(0),
    };
    if let Err(error) = rustix::process::setpriority_process(None, -20) {
        notes.push(format!("priority not raised: {error}"));
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        notes.push(format!("out-of-memory score not lowered: {error}"));
    }
    notes.extend(lock_memory());
    Prepared { ordinary, notes }
}

/// Keeps what is in memory there. Pages come in when they are first touched (the whole program would be tens of
/// megabytes); the rehearsal at the start touches those that fencing needs.
fn lock_memory() -> Option<String> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    // Under a limit, a later allocation would fail instead of a page going out: worse.
    if limit.is_some() && !rustix::process::geteuid().is_root() {
        return Some("memory not locked: the limit `memlock` is finite and this is not root".to_owned());
    }
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    rustix::mm::mlockall(flags).err().map(|error| format!("memory not locked: {error}"))
}

/// Takes the lock of this node's guard; it is held as long as the descriptor lives, and never inherited by the server.
///
/// # Errors
/// When another guard holds it, or the file can not be opened.
pub(crate) fn lock(path: &Path) -> Result<OwnedFd, String> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let name = path.display();
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))
        .map_err(|e| format!("cannot open the lock {name}: {e}"))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(format!("another guard of this node runs: it holds the lock {name}")),
        Err(error) => Err(format!("cannot lock {name}: {error}")),
    }
}
