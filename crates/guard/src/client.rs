//! The agent's end of the guard's socket: questions with numbers, answers in any order, a new connection after a lost one.

use crate::frames::{Answer, Ask, Lines, Request, Response, encode};
use crate::socket::{make_private, short};
use async_trait::async_trait;
use mainstay_model::layout::NodeLayout;
use mainstay_model::{Moment, Span, Term};
use mainstay_ports::priority::ordinarily;
use mainstay_ports::process::{Fenced, GuardStatus, ProcessError, ServerProcess, StartCommand, StopMode};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

/// A guard that lives answers a simple question within this.
const SOON: Duration = Duration::from_secs(2);
/// A start waits for fork and exec, perhaps on a slow disk.
const START: Duration = Duration::from_secs(15);
/// A fence is answered after ten seconds at the latest, by the guard itself.
const FENCE: Duration = Duration::from_secs(15);
/// How long a new guard may take until its socket answers.
const COME_UP: Duration = Duration::from_secs(10);
/// Questions without an answer yet, at most.
const MAX_PENDING: usize = 64;

type Pending = Arc<Mutex<Option<BTreeMap<u64, oneshot::Sender<Answer>>>>>;

/// One connection.
struct Link {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    /// `None`: the connection has ended.
    pending: Pending,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A guard, seen from its agent. Cheap to share behind an `Arc`; connects anew by itself when the guard was replaced.
pub struct GuardClient {
    socket: PathBuf,
    link: tokio::sync::Mutex<Option<Arc<Link>>>,
    next: AtomicU64,
}

/// Ends the connection if a frame was written in part only, because its asker gave up or the socket failed.
struct Whole<'a> {
    pending: &'a Pending,
    written: bool,
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        if !self.written {
            *lock(self.pending) = None;
        }
    }
}

fn gone(text: impl std::fmt::Display) -> ProcessError {
    ProcessError::GuardGone(text.to_string())
}

impl GuardClient {
    /// A client for the guard on this socket. Connects at the first question.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> GuardClient {
        GuardClient { socket: socket.into(), link: tokio::sync::Mutex::new(None), next: AtomicU64::new(1) }
    }

    /// Stops the server fast, fences what is left after `within`, and ends the guard. Returns when it has ended its work.
    ///
    /// # Errors
    /// When the guard is gone.
    pub async fn shutdown(&self, within: Span) -> Result<(), ProcessError> {
        done(self.ask(Ask::Shutdown { within }, Some(within.to_std() + FENCE)).await?)
    }

    async fn link(&self) -> Result<Arc<Link>, ProcessError> {
        let mut held = self.link.lock().await;
        if let Some(link) = held.as_ref().filter(|link| lock(&link.pending).is_some()) {
            return Ok(link.clone());
        }
        let short = short(&self.socket).map_err(gone)?;
        let connecting = tokio::time::timeout(SOON, UnixStream::connect(&short.path));
        let stream = connecting.await.map_err(|_| gone("no connection within 2 s"))?;
        let stream = stream.map_err(|e| gone(format!("cannot connect to {}: {e}", self.socket.display())))?;
        let (read, write) = stream.into_split();
        let pending: Pending = Arc::new(Mutex::new(Some(BTreeMap::new())));
        let reader = tokio::spawn(read_answers(read, pending.clone()));
        let link = Arc::new(Link { writer: tokio::sync::Mutex::new(write), pending, reader });
        *held = Some(link.clone());
        Ok(link)
    }

    async fn ask(&self, ask: Ask, within: Option<Duration>) -> Result<Answer, ProcessError> {
        let asking = self.ask_without_end(ask);
        match within {
            None => asking.await,
            Some(within) => tokio::time::timeout(within, asking).await.unwrap_or_else(|_| {
                Err(gone(format!("no answer within {} ms; is it stopped or starved?", within.as_millis())))
            }),
        }
    }

    async fn ask_without_end(&self, ask: Ask) -> Result<Answer, ProcessError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let frame = encode(&Request { id, ask }).map_err(ProcessError::Refused)?;
        let link = self.link().await?;
        let (sender, receiver) = oneshot::channel();
        {
            let mut pending = lock(&link.pending);
            let pending = pending.as_mut().ok_or_else(|| gone("the connection ended"))?;
            pending.retain(|_, waiting| !waiting.is_closed());
            if pending.len() >= MAX_PENDING {
                return Err(gone(format!("{MAX_PENDING} questions wait for an answer")));
            }
            pending.insert(id, sender);
        }
        let mut writer = link.writer.lock().await;
        let mut whole = Whole { pending: &link.pending, written: false };
        if let Err(error) = writer.write_all(&frame).await {
            return Err(gone(format!("cannot write to its socket: {error}")));
        }
        whole.written = true;
        drop((whole, writer));
        receiver.await.map_err(|_| gone("it closed the connection"))
    }
}

fn lock(pending: &Pending) -> std::sync::MutexGuard<'_, Option<BTreeMap<u64, oneshot::Sender<Answer>>>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read_answers(mut read: OwnedReadHalf, pending: Pending) {
    let mut lines = Lines::default();
    let mut buffer = vec![0u8; 16 * 1024];
    while let Ok(count @ 1..) = read.read(&mut buffer).await {
        if lines.push(buffer.get(..count).unwrap_or_default()).is_err() {
            break;
        }
        while let Some(line) = lines.next_line() {
            let Ok(response) = serde_json::from_slice::<Response>(&line) else { continue };
            let waiting = lock(&pending).as_mut().and_then(|pending| pending.remove(&response.id));
            // An asker that gave up needs no answer.
            waiting.map(|waiting| waiting.send(response.answer));
        }
    }
    *lock(&pending) = None;
}

fn done(answer: Answer) -> Result<(), ProcessError> {
    match answer {
        Answer::Done => Ok(()),
        Answer::Failed(error) => Err(error),
        other => Err(gone(format!("an answer to another question: {other:?}"))),
    }
}

#[async_trait]
impl ServerProcess for GuardClient {
    async fn start(&self, command: StartCommand, primary: Option<(Term, Moment)>) -> Result<u32, ProcessError> {
        match self.ask(Ask::Start { command, primary }, Some(START)).await? {
            Answer::Started(pid) => Ok(pid),
            Answer::Failed(error) => Err(error),
            other => Err(gone(format!("an answer to another question: {other:?}"))),
        }
    }

    async fn extend(&self, term: Term, deadline: Moment) -> Result<(), ProcessError> {
        done(self.ask(Ask::Extend { term, deadline }, Some(SOON)).await?)
    }

    async fn stop(&self, mode: StopMode) -> Result<(), ProcessError> {
        done(self.ask(Ask::Stop { mode }, Some(SOON)).await?)
    }

    async fn reload(&self) -> Result<(), ProcessError> {
        done(self.ask(Ask::Reload, Some(SOON)).await?)
    }

    async fn fence(&self, reason: String) -> Result<Fenced, ProcessError> {
        match self.ask(Ask::Fence { reason }, Some(FENCE)).await? {
            Answer::Doomed(processes) => Ok(Fenced::Doomed { processes }),
            other => done(other).map(|()| Fenced::Gone),
        }
    }

    async fn status(&self) -> Result<GuardStatus, ProcessError> {
        match self.ask(Ask::Status, Some(SOON)).await? {
            Answer::Status(status) => Ok(status),
            Answer::Failed(error) => Err(error),
            other => Err(gone(format!("an answer to another question: {other:?}"))),
        }
    }

    async fn exited(&self) -> Result<(), ProcessError> {
        done(self.ask(Ask::Exited, None).await?)
    }
}

/// Connects to the node's guard, or starts one: `program arguments… --socket … --log …`, with no tie to this process, so that it outlives
/// a kill of the agent. Needs a tokio runtime (which also collects the guard's exit status should it end first).
///
/// # Errors
/// When no guard answers within ten seconds; the guard's log says more.
pub async fn ensure_guard(
    layout: &NodeLayout,
    program: &Path,
    arguments: &[OsString],
) -> Result<GuardClient, ProcessError> {
    let client = GuardClient::new(layout.guard_socket());
    if client.status().await.is_ok() {
        return Ok(client);
    }
    let os = |error: std::io::Error| ProcessError::Os(format!("cannot start the guard {}: {error}", program.display()));
    make_private(&layout.agent()).map_err(ProcessError::Os)?;
    std::fs::create_dir_all(layout.log()).map_err(os)?;
    let output = crate::journal::open_log(&layout.guard_log(), None).map_err(os)?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).arg("--socket").arg(layout.guard_socket()).arg("--log").arg(layout.guard_log());
    command
        .stdin(std::process::Stdio::null())
        .stdout(output.try_clone().map_err(os)?)
        .stderr(output)
        .kill_on_drop(false);
    // It raises itself, and gives its server what it was started with.
    let mut guard = ordinarily(|| command.spawn()).map_err(os)?;
    let answers = async {
        loop {
            match client.status().await {
                Ok(_) => return Ok(()),
                // It ended: perhaps another one won the lock; that one answers soon, or nobody does.
                Err(error) if guard.try_wait().is_ok_and(|ended| ended.is_some()) => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    return client.status().await.map(drop).map_err(|_| error);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let answered = tokio::time::timeout(COME_UP, answers).await;
    answered.unwrap_or_else(|_| Err(gone("a new guard did not answer within 10 s")))?;
    Ok(client)
}
