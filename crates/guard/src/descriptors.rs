//! Closes the file descriptors that a careless parent left open, so that no socket or lock of a dead agent lives on in its guard.
//!
//! The only unsafe code of this crate: a descriptor that nobody in this process opened has no owner that safe code could
//! ask for it. Which descriptors those are is certain: everything that this process opens carries close-on-exec (the
//! standard library, rustix and tokio set it always), while what came through `exec` cannot carry it.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// `O_CLOEXEC` as `/proc/self/fdinfo` shows it.
const CLOSE_ON_EXEC: u32 = 0o2_000_000;

/// Closes what was inherited, standard input, output and error excepted. Returns how many that were.
pub(crate) fn close_inherited() -> usize {
    let Ok(list) = std::fs::read_dir("/proc/self/fd") else { return 0 };
    let open: Vec<RawFd> = list.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let inherited = open.into_iter().filter(|fd| *fd > 2 && is_inherited(*fd));
    inherited
        .map(|fd| {
            // SAFETY: without close-on-exec the descriptor came through `exec` (module doc), so no object of this
            // process owns it, and it is open: its flags were read a moment ago and nothing else closes descriptors here.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        })
        .count()
}

fn is_inherited(fd: RawFd) -> bool {
    let Ok(info) = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")) else { return false };
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).is_some_and(|flags| flags & CLOSE_ON_EXEC == 0)
}
