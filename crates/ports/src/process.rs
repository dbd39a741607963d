//! The database server's process, as its guard keeps it. The engine says *how* to start; the guard starts, ends and fences.
//!
//! Contract:
//! 1. `start` refuses while any process of the old server is left in the data directory, and while the guard does not hold
//!    a deadline ahead if `primary` is set.
//! 2. Once `extend` was called for a term (or `start` with `primary`), the server may serve as primary until the deadline;
//!    when it passes the guard fences at once, by itself. Deadlines only move forward within a term; terms only rise.
//! 3. `fence` returns when no process of the server is left (SIGKILL to the postmaster, then to every descendant), or when all that are
//!    left are doomed: stuck in the kernel with SIGKILL pending. The guard goes on waiting for the end of those, and `start` refuses until
//!    then.
//! 4. `exited` completes when the server's process ends, within milliseconds (pidfd).
//! 5. After the server is gone the deadline is forgotten: the next server starts as a standby without deadline.

use async_trait::async_trait;
use mainstay_model::{Moment, Term};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How to start the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartCommand {
    /// The program, absolute.
    pub program: PathBuf,
    /// Its arguments. Never a secret.
    pub arguments: Vec<String>,
    /// Its whole environment.
    pub environment: Vec<(String, String)>,
    /// Run as this user and group; `None`: as the guard's.
    pub user: Option<(u32, u32)>,
    /// The data directory: the server's working directory, by which orphans are found.
    pub data_dir: PathBuf,
    /// Standard output and error are appended here.
    pub log_file: PathBuf,
}

/// What the guard knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardStatus {
    /// The guard's process.
    pub guard_pid: u32,
    /// The server's process, if one runs.
    pub server_pid: Option<u32>,
    /// When the server was started (boot time).
    pub server_started: Option<Moment>,
    /// The server may serve as primary until then.
    pub deadline: Option<(Term, Moment)>,
    /// How many times it has fenced in this life, and why the last time.
    pub fenced: u64,
    /// Why the server ended last: exit status, signal, or which fence.
    pub last_exit: Option<String>,
}

/// How a stop is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopMode {
    /// SIGINT: end sessions, checkpoint, let replicas receive the last record.
    Fast,
    /// SIGQUIT: end at once; crash recovery at the next start.
    Immediate,
}

/// How a fence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fenced {
    /// No process of the server is left.
    Gone,
    /// Every process that is left is stuck in the kernel (on a disk that does not answer, say) with SIGKILL pending: none of them will ever
    /// run the server's code again, but what they had begun may still reach the data directory.
    Doomed {
        /// Their ids.
        processes: Vec<u32>,
    },
}

impl Fenced {
    /// For who needs the data directory to itself.
    ///
    /// # Errors
    /// When processes are left.
    pub fn gone(self) -> Result<(), ProcessError> {
        match self {
            Self::Gone => Ok(()),
            Self::Doomed { processes } => Err(ProcessError::Os(format!(
                "processes {processes:?} of the server are stuck in the kernel with SIGKILL pending; they end when the disk that they wait \
                 for answers: look at the data volume, or restart the host"
            ))),
        }
    }
}

/// Why the guard did not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ProcessError {
    /// The guard does not answer.
    #[error("the guard does not answer: {0}")]
    GuardGone(String),
    /// It refuses, and says why.
    #[error("the guard refuses: {0}")]
    Refused(String),
    /// The operating system refused.
    #[error("{0}")]
    Os(String),
}

/// The server's process. See the module's contract.
#[async_trait]
pub trait ServerProcess: Send + Sync {
    /// Starts the server. `primary`: it may serve as primary at once, until that moment.
    ///
    /// # Errors
    /// When the guard refuses or the program can not be started.
    async fn start(&self, command: StartCommand, primary: Option<(Term, Moment)>) -> Result<u32, ProcessError>;
    /// Moves the deadline.
    ///
    /// # Errors
    /// When the guard is gone, or the term is older than the one it holds, or no server runs.
    async fn extend(&self, term: Term, deadline: Moment) -> Result<(), ProcessError>;
    /// Asks the server to stop; does not wait.
    ///
    /// # Errors
    /// When the guard is gone or no server runs.
    async fn stop(&self, mode: StopMode) -> Result<(), ProcessError>;
    /// Asks the server to read its configuration again.
    ///
    /// # Errors
    /// When the guard is gone or no server runs.
    async fn reload(&self) -> Result<(), ProcessError>;
    /// Kills the server and every descendant; returns when none is left, or, after about half a second, when those that are left will
    /// never run again.
    ///
    /// # Errors
    /// When the guard is gone (then the agent reaps by itself) or a process can not be killed.
    async fn fence(&self, reason: String) -> Result<Fenced, ProcessError>;
    /// What the guard knows now.
    ///
    /// # Errors
    /// When the guard is gone.
    async fn status(&self) -> Result<GuardStatus, ProcessError>;
    /// Completes when no server process runs (at once if none does).
    async fn exited(&self) -> Result<(), ProcessError>;
}
