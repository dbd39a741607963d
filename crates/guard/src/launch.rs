//! How the server's process is made. Absent: when it may be made (`keeper`), and what it does to itself first (`stage`).

use crate::journal::open_log;
use crate::keeper::Ticket;
use crate::processes::{Home, is_zombie};
use crate::stage::{self, Ordinary};
use mainstay_model::Moment;
use mainstay_ports::clock::boot_now;
use mainstay_ports::process::StartCommand;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// The longest word of a stage that failed, in bytes.
const MAX_REPORT: usize = 1024;

/// A server that was started.
pub(crate) struct Server {
    pub(crate) pid: Pid,
    /// Readable when the process ends; names that very process and no later one of the same number.
    pub(crate) pidfd: OwnedFd,
    pub(crate) started: Moment,
    pub(crate) home: Home,
    /// While the stage has not become the server yet.
    pub(crate) stage: Option<Stage>,
    /// How and when the main process ended; descendants may be left.
    pub(crate) ended: Option<(String, Moment)>,
    /// Why the stage did not become the server.
    pub(crate) failure: Option<String>,
}

/// A stage that has not reported yet.
pub(crate) struct Stage {
    pub(crate) report: Report,
    pub(crate) ticket: Ticket,
}

/// The reading end of the stage's pipe.
pub(crate) struct Report {
    pipe: std::io::PipeReader,
    heard: Vec<u8>,
}

impl Server {
    pub(crate) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }
}

impl AsFd for Report {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl Report {
    /// `None`: nothing yet. Silence until the pipe closed means that the stage became the server.
    pub(crate) fn hear(&mut self) -> Option<Result<(), String>> {
        let mut buffer = [0u8; MAX_REPORT];
        loop {
            match self.pipe.read(&mut buffer) {
                Ok(0) if self.heard.is_empty() => return Some(Ok(())),
                Ok(0) => return Some(Err(String::from_utf8_lossy(&self.heard).into_owned())),
                Ok(count) => {
                    let room = MAX_REPORT.saturating_sub(self.heard.len());
                    self.heard.extend(buffer.iter().take(count.min(room)));
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
                Err(error) => return Some(Err(format!("the stage's pipe: {error}"))),
            }
        }
    }
}

/// PostgreSQL's lock file.
const LOCK_FILE: &str = "postmaster.pid";

/// Removes the server's lock file if it names a process that has ended but was never collected. In a container whose first
/// process collects nobody, the orphan of a killed guard stays such a zombie for ever, and the server would wait for
/// it as for a living one. The caller has made sure that nobody works in the data directory.
fn clear_lock_of_zombie(data_dir: &Path) {
    let path = data_dir.join(LOCK_FILE);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(opened) = rustix::fs::open(&path, flags, Mode::empty()) else { return };
    let mut text = String::new();
    let _ = std::fs::File::from(opened).take(64).read_to_string(&mut text);
    let named = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok());
    if named.is_some_and(is_zombie) {
        let _ = std::fs::remove_file(&path);
    }
}

/// Starts the stage that becomes the server.
///
/// # Errors
/// When the log can not be opened or the process not be made.
pub(crate) fn launch(
    command: &StartCommand,
    home: Home,
    ordinary: &Ordinary,
    ticket: Ticket,
) -> Result<Server, String> {
    let log = open_log(&command.log_file, command.user)
        .map_err(|e| format!("cannot open the server's log {}: {e}", command.log_file.display()))?;
    let log_too = log.try_clone().map_err(|e| format!("cannot duplicate the log's descriptor: {e}"))?;
    let (reader, writer) = std::io::pipe().map_err(|e| format!("cannot make a pipe: {e}"))?;
    rustix::io::ioctl_fionbio(&reader, true).map_err(|e| format!("cannot make a pipe non-blocking: {e}"))?;
    // The running program, even if the file was replaced meanwhile or lies where the server's user may not look.
    let mut stage = Command::new("/proc/self/exe");
    stage.arg0("mainstay-guard-stage");
    stage.args(stage::arguments(std::process::id(), ordinary, &command.data_dir, &command.program));
    stage.args(&command.arguments).env_clear().envs(command.environment.iter().cloned());
    stage.stdin(Stdio::from(OwnedFd::from(writer))).stdout(log).stderr(log_too);
    if let Some((user, group)) = command.user.filter(|(user, _)| *user != rustix::process::geteuid().as_raw()) {
        // The standard library drops the supplementary groups too when root changes the user.
        stage.uid(user).gid(group);
    }
    clear_lock_of_zombie(&command.data_dir);
    let started = boot_now();
    let mut child = stage.spawn().map_err(|e| format!("cannot start a process: {e}"))?;
    drop(stage);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or("a process without a number")?;
    // The child can not vanish before it is reaped here, so its number is still its own.
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            let _ = child.kill();
            return Err(format!("cannot watch process {pid:?}: {error}"));
        }
    };
    let report = Report { pipe: reader, heard: Vec::new() };
    Ok(Server { pid, pidfd, started, home, stage: Some(Stage { report, ticket }), ended: None, failure: None })
}
