//! The short stage between the guard and the server: the guard's own program, run again as the server's user, which becomes
//! the server.
//!
//! It exists because a change of user clears the parent-death signal: it must be set afterwards, by the process itself. Done
//! here, in an ordinary program, it needs no unsafe code between fork and exec. Absent: anything that lasts.

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// The first two arguments that lead to this stage.
pub(crate) const MARK: [&str; 2] = ["guard", "--exec"];

/// What the stage gives back to the server that the guard had changed for itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ordinary {
    /// The nice value before it was raised.
    pub(crate) nice: i32,
    /// The out-of-memory score adjustment before it was lowered.
    pub(crate) oom_score_adj: i32,
}

/// Call this first in `main`, before any thread or runtime: if the program was run as the stage, it becomes the server and
/// this never returns. Otherwise it does nothing.
pub fn intercept() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let Some(rest) = arguments.strip_prefix(&MARK.map(OsString::from)) else { return };
    // Standard input is the guard's pipe: silence there means success, words mean failure. The copy closes on exec.
    let report = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3);
    let failure = become_server(rest);
    eprintln!("mainstay: the server was not started: {failure}");
    if let Ok(report) = report {
        let _ = std::fs::File::from(report).write_all(failure.as_bytes());
    }
    std::process::exit(127);
}

/// The arguments that make the stage run `program`.
pub(crate) fn arguments(guard: u32, ordinary: &Ordinary, data_dir: &Path, program: &Path) -> Vec<OsString> {
    let numbers = [guard.to_string(), ordinary.nice.to_string(), ordinary.oom_score_adj.to_string()];
    let mut all: Vec<OsString> = MARK.iter().map(OsString::from).chain(numbers.map(OsString::from)).collect();
    all.extend([data_dir.as_os_str().to_owned(), program.as_os_str().to_owned()]);
    all
}

fn number(text: &OsStr) -> Result<i32, String> {
    let parsed = text.to_str().and_then(|t| t.parse().ok());
    parsed.ok_or_else(|| format!("{} is not a number", text.display()))
}

fn become_server(arguments: &[OsString]) -> String {
    let [guard, nice, oom, data_dir, program, rest @ ..] = arguments else {
        return "this stage is for the guard alone; it takes: GUARD-PID NICE OOM-SCORE DATA-DIR PROGRAM [ARGUMENT…]"
            .to_owned();
    };
    match prepare(guard, nice, oom, Path::new(data_dir)) {
        Ok(()) => {
            let error = Command::new(program).args(rest).stdin(Stdio::null()).exec();
            format!("cannot run {}: {error}", program.display())
        }
        Err(failure) => failure,
    }
}

fn prepare(guard: &OsStr, nice: &OsStr, oom: &OsStr, data_dir: &Path) -> Result<(), String> {
    let (guard, nice, oom) = (number(guard)?, number(nice)?, number(oom)?);
    rustix::process::set_parent_process_death_signal(Some(Signal::QUIT))
        .map_err(|e| format!("no parent-death signal: {e}"))?;
    // The guard may have died before the signal was set: then nobody would send it.
    if rustix::process::getppid() != Pid::from_raw(guard) {
        return Err("the guard died meanwhile".to_owned());
    }
    // None of these is worth a server that does not start.
    let _ = rustix::process::setpriority_process(None, nice);
    let _ = std::fs::write("/proc/self/oom_score_adj", oom.to_string());
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let place = rustix::fs::open(data_dir, flags, Mode::empty());
    place
        .and_then(rustix::process::fchdir)
        .map_err(|e| format!("cannot enter the data directory {}: {e}", data_dir.display()))
}
