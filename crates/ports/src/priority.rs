//! The scheduling priority of the threads that keep the lease, above whatever else the host does. The kernel takes the disk's priority
//! from the same number. Nice values belong to threads and are inherited by what a thread starts, so a program that is not meant to
//! have it (a server, a proxy, a copy of the data) is started inside `ordinarily`.
//!
//! Absent: real-time classes. A thread of ours that ran away would take the host with it.

use rustix::process::{getpriority_process, setpriority_process};
use std::sync::OnceLock;

/// Where the threads that keep the lease stand: well before other programs, behind the guard.
const RAISED: i32 = -10;

/// The nice value that the process was started with.
static ORDINARY: OnceLock<i32> = OnceLock::new();

/// Notes what the process was started with. Called before any thread is raised; later calls change nothing.
pub fn note_ordinary() -> i32 {
    *ORDINARY.get_or_init(|| getpriority_process(None).unwrap_or(0))
}

/// Raises the calling thread where the host allows it, and says whether it is raised now. One that stands higher already stays there.
pub fn raise() -> bool {
    note_ordinary();
    let higher = getpriority_process(None).is_ok_and(|nice| nice <= RAISED);
    higher || setpriority_process(None, RAISED).is_ok()
}

/// Where work stands that nobody waits for.
const LOWERED: i32 = 10;

/// Puts the calling thread, and what it starts, below ordinary programs. It does not come back from there.
pub fn lower() {
    // Not allowed nowhere; if it fails, it goes on as it is.
    let _ = setpriority_process(None, LOWERED);
}

/// Does `work` with the calling thread at the process's ordinary priority: what it starts inherits that. Without effect on a thread
/// that was never raised.
pub fn ordinarily<T>(work: impl FnOnce() -> T) -> T {
    let Some(ordinary) = ORDINARY.get() else { return work() };
    let now = getpriority_process(None).unwrap_or(*ordinary);
    if now >= *ordinary || setpriority_process(None, *ordinary).is_err() {
        return work();
    }
    let done = work();
    // Allowed before, so allowed again; if not, the thread goes on as an ordinary one.
    let _ = setpriority_process(None, now);
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn nice_of_a_child() -> i32 {
        let output = Command::new("nice").output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }

    #[test]
    fn a_raised_thread_starts_ordinary_programs() {
        let before = note_ordinary();
        std::thread::spawn(move || {
            if !raise() {
                // Neither root nor a limit that allows it: nothing may have changed.
                assert_eq!(nice_of_a_child(), before);
                return;
            }
            assert_eq!(nice_of_a_child(), RAISED.min(before));
            assert_eq!(ordinarily(nice_of_a_child), before);
            assert_eq!(nice_of_a_child(), RAISED.min(before), "the thread itself stands where it stood");
        })
        .join()
        .unwrap();
        assert_eq!(nice_of_a_child(), before, "other threads are left alone");
    }
}
