//! The guard as the agent sees it: found or started, and started again when it died, after what it left has been killed.

use async_trait::async_trait;
use mainstay_guard::{GuardClient, ensure_guard, reap_data_dir};
use mainstay_model::layout::NodeLayout;
use mainstay_model::{Moment, Span, Term};
use mainstay_ports::process::{Fenced, GuardStatus, ProcessError, ServerProcess, StartCommand, StopMode};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tokio::sync::Mutex;
use tracing::{error, info, warn};

/// How long the server may take to stop in order when the agent ends.
const STOP_WITHIN: Span = Span::seconds(10);

/// Keeps a guard running and passes calls on to it.
pub struct Keeper {
    layout: NodeLayout,
    program: PathBuf,
    guard: GuardClient,
    /// The guard's process when last heard; 0 = never.
    last_pid: AtomicU32,
    /// The guard was asked to end: it is not replaced any more.
    ended: AtomicBool,
    /// One replacement at a time.
    replacing: Mutex<()>,
    /// There was no guard: this agent started it.
    own: bool,
}

fn arguments() -> [OsString; 1] {
    [OsString::from("guard")]
}

impl Keeper {
    /// Adopts the running guard, or starts one with this program (`mainstay guard …`).
    ///
    /// # Errors
    /// When a guard neither runs nor can be started.
    pub async fn start(layout: NodeLayout, program: PathBuf) -> Result<Self, ProcessError> {
        let own = GuardClient::new(layout.guard_socket()).status().await.is_err();
        let guard = ensure_guard(&layout, &program, &arguments()).await?;
        let keeper = Self {
            layout,
            program,
            guard,
            last_pid: AtomicU32::new(0),
            ended: AtomicBool::new(false),
            replacing: Mutex::new(()),
            own,
        };
        let status = keeper.status().await?;
        info!(guard = status.guard_pid, server = ?status.server_pid, "the guard answers");
        if status.server_pid.is_none() {
            // A guard that died together with the last agent may have left processes; nothing may start beside them.
            keeper.reap().await?;
        }
        Ok(keeper)
    }

    async fn reap(&self) -> Result<(), ProcessError> {
        let data = self.layout.data();
        match tokio::task::spawn_blocking(move || reap_data_dir(&data)).await {
            Ok(Ok(0)) => Ok(()),
            Ok(Ok(count)) => {
                warn!(count, "killed what a dead guard left of its server");
                Ok(())
            }
            Ok(Err(problem)) => {
                error!(%problem, "what a dead guard left of its server can not be killed");
                Err(ProcessError::Os(problem.to_string()))
            }
            Err(_) => Err(ProcessError::Os("killing what a dead guard left broke off".to_owned())),
        }
    }

    /// The guard does not answer: kill its server, then it, if it only hangs, and start another. The order matters: a guard that hangs
    /// does not watch the deadline.
    async fn replace(&self) -> Result<(), ProcessError> {
        let _one = self.replacing.lock().await;
        if self.ended.load(Ordering::Relaxed) {
            return Err(ProcessError::GuardGone("this agent is ending".to_owned()));
        }
        if self.guard.status().await.is_ok() {
            return Ok(());
        }
        self.reap().await?;
        self.end_hung_guard();
        ensure_guard(&self.layout, &self.program, &arguments()).await.map(drop)
    }

    fn end_hung_guard(&self) {
        let number = self.last_pid.load(Ordering::Relaxed);
        let socket = self.layout.guard_socket();
        // A number may have been given to another process since: its arguments must name our socket.
        let ours = std::fs::read(format!("/proc/{number}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&*socket.to_string_lossy()));
        if let (true, Some(pid)) = (ours, i32::try_from(number).ok().and_then(Pid::from_raw)) {
            warn!(guard = number, "the guard hangs; killing it");
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// After a call: replaces a guard that turned out to be gone. The call itself has failed: the server is gone too.
    async fn checked<T>(&self, result: Result<T, ProcessError>) -> Result<T, ProcessError> {
        if let Err(ProcessError::GuardGone(why)) = &result {
            warn!(%why, "the guard does not answer");
            self.replace().await?;
        }
        result
    }

    /// The agent can not go on: ends a guard that it started and that has no server. One that was there before it, or has a server, is left
    /// to the next agent, or to its deadline.
    pub async fn end_if_of_no_use(&self) {
        let idle = matches!(self.guard.status().await, Ok(status) if status.server_pid.is_none());
        if self.own && idle && self.shut_down().await.is_err() {
            warn!("the guard without a server did not end");
        }
    }

    /// Ends the server in order and then the guard.
    ///
    /// # Errors
    /// When the guard is gone or the server does not end.
    pub async fn shut_down(&self) -> Result<(), ProcessError> {
        self.ended.store(true, Ordering::Relaxed);
        self.guard.shutdown(STOP_WITHIN).await
    }
}

#[async_trait]
impl ServerProcess for Keeper {
    async fn start(&self, command: StartCommand, primary: Option<(Term, Moment)>) -> Result<u32, ProcessError> {
        self.checked(self.guard.start(command, primary).await).await
    }
    async fn extend(&self, term: Term, deadline: Moment) -> Result<(), ProcessError> {
        let endless = mainstay_ports::sabotage::on("endless-lease");
        let deadline = if endless { deadline + Span::seconds(3600) } else { deadline };
        self.checked(self.guard.extend(term, deadline).await).await
    }
    async fn stop(&self, mode: StopMode) -> Result<(), ProcessError> {
        self.checked(self.guard.stop(mode).await).await
    }
    async fn reload(&self) -> Result<(), ProcessError> {
        self.checked(self.guard.reload().await).await
    }
    async fn fence(&self, reason: String) -> Result<Fenced, ProcessError> {
        match self.guard.fence(reason).await {
            // The server of a guard that is gone is killed when the guard is replaced: that is the fence.
            Err(ProcessError::GuardGone(_)) => self.replace().await.map(|()| Fenced::Gone),
            result => result,
        }
    }
    async fn status(&self) -> Result<GuardStatus, ProcessError> {
        let status = self.checked(self.guard.status().await).await?;
        self.last_pid.store(status.guard_pid, Ordering::Relaxed);
        Ok(status)
    }
    async fn exited(&self) -> Result<(), ProcessError> {
        self.checked(self.guard.exited().await).await
    }
}
