//! Guard: the small process that owns the database server and its deadline.
//!
//! The guard is the parent of the server. It starts it, holds the deadline until which it may serve as primary, and kills
//! it with everything that descends from it when that moment passes or when it is told to. It never decides who is
//! primary, never speaks SQL, and knows nothing of other nodes.
//!
//! * **The agent dies, hangs or is replaced**: its socket closes, nothing else. The server runs on until the deadline, a
//!   server without deadline for ever; the next agent connects and asks for the status.
//! * **The guard dies**: the server gets SIGQUIT from the kernel (parent-death signal). What survives that (a stopped or
//!   stuck process) is the agent's to kill: [`reap_data_dir`]. A new guard refuses to start a server until then.
//! * **The guard is stopped or starved**: nobody watches the deadline until it runs again; then it fences at once. With a
//!   synchronous cluster that costs stale reads, never an acknowledged write; an asynchronous one needs the hardware
//!   watchdog. An agent whose guard does not answer may call [`reap_data_dir`] as well.
//! * **SIGTERM or SIGINT to the guard** (a host that shuts down, a person): the server is stopped fast, what is left after 20 s is
//!   killed, and the guard ends. SIGHUP, SIGUSR1 and SIGUSR2 are ignored.
//!
//! One thread runs the loop; a second does nothing but write the log, because a stalled disk must not stall the deadline.

#![deny(unsafe_code)]

#[cfg(feature = "client")]
mod client;
mod deadline;
mod descriptors;
mod frames;
mod journal;
mod keeper;
mod launch;
mod prepare;
mod processes;
mod reap;
mod serve;
mod socket;
mod stage;

#[cfg(feature = "client")]
pub use client::{GuardClient, ensure_guard};
pub use frames::{Answer, Ask, MAX_FRAME, Request, Response};
pub use reap::reap_data_dir;
pub use stage::intercept;

use std::path::PathBuf;

/// Where a guard listens and writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardOptions {
    /// Its Unix socket. Its directory must belong to this user, and nobody else may enter it.
    pub socket: PathBuf,
    /// Its log: JSON lines, begun anew at 4 MiB with one older file kept.
    pub log: PathBuf,
}

/// Why a guard does not run.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Its socket can not be used, or another guard runs.
    #[error("{0}")]
    Socket(String),
    /// Its log can not be opened.
    #[error("cannot open the guard's log {path}: {source}")]
    Log {
        /// The log.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It must run in the program's first thread: the server's parent-death signal is bound to the thread that made it.
    #[error("the guard must run in the program's first thread")]
    NotFirstThread,
    /// The operating system refused something without which it can not work.
    #[error("the guard cannot work: {0}")]
    Os(#[from] std::io::Error),
}

/// Runs a guard until it is told to end. Call it from the program's first thread, with no runtime started, and call
/// [`intercept`] first in `main`.
///
/// # Errors
/// When another guard of this node runs, or the host refuses what it needs.
pub fn run(options: &GuardOptions) -> Result<(), GuardError> {
    if rustix::thread::gettid() != rustix::process::getpid() {
        return Err(GuardError::NotFirstThread);
    }
    let absolute = |path: &PathBuf| std::path::absolute(path);
    let (socket, log) = (absolute(&options.socket)?, absolute(&options.log)?);
    let prepared = prepare::prepare();
    let _lock = prepare::lock(&socket.with_extension("lock")).map_err(GuardError::Socket)?;
    let mut journal = journal::Journal::open(&log).map_err(|source| GuardError::Log { path: log, source })?;
    let signals = serve::Signals::new()?;
    let listener = socket::listen(&socket).map_err(GuardError::Socket)?;
    journal.say(&format!("listens on {}", socket.display()));
    for note in &prepared.notes {
        journal.say(note);
    }
    // A rehearsal of killing, so that its code is in memory when the disk is not there to load it from.
    let _ = (processes::kill_descendants(), processes::at_home(&processes::Home::of(&socket)));
    let mut keeper = keeper::Keeper::new(journal, prepared.ordinary);
    let served = serve::serve(&listener, &signals, &mut keeper);
    keeper.finish();
    let _ = std::fs::remove_file(&socket);
    Ok(served?)
}
