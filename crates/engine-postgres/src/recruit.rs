//! Cutting the stream, and the exact end of the log.
//!
//! Why a cut is final: `apply` returns a session that was opened after the postmaster had read the empty upstream and had signalled
//! every process. The startup process looks at that signal after each wait and before each record, so from its next wait on it can
//! ask for no walreceiver. When it is seen in the wait between attempts (`RecoveryRetrieveRetryInterval`) after that, no walreceiver
//! was running or starting as it began that wait; with none in the process list either, none can come.
//!
//! Why the end is exact: the walreceiver flushes what it wrote before it ends, so nothing is added to the files any more. Then replay is
//! awaited until the files hold no whole record (by checksum and back-pointer) where replay stands.

use crate::clients::end_clients_once;
use crate::server::{Postgres, STATEMENT, not_yet};
use crate::sql::Session;
use crate::wal::Wal;
use mainstay_model::{LogEnd, Lsn, Position};
use mainstay_ports::engine::EngineError;
use rustix::process::Signal;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a cut may take.
const CUT: Duration = Duration::from_secs(3);
/// How long replay may take to reach the end of the log before the caller must ask again.
const REPLAY: Duration = Duration::from_secs(3);
/// Replay that stands still for this long, and not at the end, is held up by a query.
const HELD_UP: Duration = Duration::from_millis(20);

const STATE: &str = "select
  (select pid from pg_stat_activity where backend_type = 'walreceiver'),
  coalesce((select wait_event from pg_stat_activity where backend_type = 'startup'), ''),
  pg_last_wal_replay_lsn(), pg_is_wal_replay_paused(), pg_is_in_recovery()";

/// What the server says about its replay.
struct Replay {
    receiver: Option<u32>,
    waits_for: String,
    at: Lsn,
    paused: bool,
}

impl Replay {
    async fn ask(session: &Session) -> Result<Replay, EngineError> {
        let row = session.row(STATE, STATEMENT).await?;
        let text = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
        if text(4) != "t" {
            return Err(not_yet("the server is not in recovery"));
        }
        let at = text(2).parse().map_err(|_| not_yet("the server has replayed nothing yet"))?;
        Ok(Replay { receiver: text(0).parse().ok(), waits_for: text(1).to_owned(), at, paused: text(3) == "t" })
    }
}

impl Postgres {
    /// See [`mainstay_ports::engine::Engine::recruit`].
    pub(crate) async fn cut_and_read(&self) -> Result<LogEnd, EngineError> {
        let began = Instant::now();
        let session = self.apply(None, |live| live.upstream = None).await?;
        let mut ended = None;
        loop {
            let state = Replay::ask(&session).await?;
            match state.receiver {
                Some(pid) if ended != Some(pid) => {
                    self.signal(pid, Signal::TERM)?;
                    ended = Some(pid);
                }
                // Held up or paused, replay can not ask for a receiver either; it is set free below and looked at again there.
                None if state.waits_for == "RecoveryRetrieveRetryInterval" || ended.is_none() => break,
                None if began.elapsed() > HELD_UP => break,
                _ => {}
            }
            if began.elapsed() > CUT {
                return Err(not_yet(format!("the walreceiver {ended:?} has not ended within {CUT:?}")));
            }
            sleep(Duration::from_millis(1)).await;
        }
        self.read_to_end(&session).await
    }

    /// The end of a running standby's log whose stream is cut: replays to the end first.
    pub(crate) async fn read_to_end(&self, session: &Session) -> Result<LogEnd, EngineError> {
        let began = Instant::now();
        let mut last = (Lsn(0), Instant::now());
        let mut freed = Instant::now();
        loop {
            let state = Replay::ask(session).await?;
            if let Some(pid) = state.receiver {
                self.signal(pid, Signal::TERM)?;
            } else if state.waits_for == "RecoveryRetrieveRetryInterval"
                && let Some(end) = self.end_at(state.at).await?
            {
                // Seen twice: no receiver came between, and nothing was replayed.
                let again = Replay::ask(session).await?;
                if again.receiver.is_none() && again.at == state.at {
                    return Ok(end);
                }
            }
            if state.at != last.0 {
                last = (state.at, Instant::now());
            }
            if state.paused {
                session.value("select pg_wal_replay_resume()", STATEMENT).await?;
            }
            let held_up = last.1.elapsed() > HELD_UP && freed.elapsed() > HELD_UP;
            if held_up && state.waits_for != "RecoveryRetrieveRetryInterval" {
                // A query that conflicts with replay would hold it up for as long as max_standby_streaming_delay.
                end_clients_once(session).await?;
                freed = Instant::now();
            }
            if began.elapsed() > REPLAY {
                let text = format!("replay has reached {} and waits for {:?}", state.at, state.waits_for);
                return Err(not_yet(format!("the log has not been read to its end yet: {text}")));
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// The end of the log, if it is here.
    async fn end_at(&self, at: Lsn) -> Result<Option<LogEnd>, EngineError> {
        let data = self.data();
        let found = tokio::task::spawn_blocking(move || {
            let mut wal = Wal::list(&data)?;
            let timeline = wal.timeline_of(at).ok_or_else(|| format!("no log file covers {at}"))?;
            let position = Position { timeline, lsn: at };
            wal.follow(wal.newest_through(position))?;
            if !wal.is_end(at)? {
                return Ok(None);
            }
            let lineage = wal.lineage(timeline).cloned().unwrap_or_default();
            Ok(Some(LogEnd { position, lineage }))
        });
        found.await.map_err(not_yet)?.map_err(|error: String| not_yet(error))
    }

    /// See [`mainstay_ports::engine::Engine::log_end`].
    pub(crate) async fn end_of_log(&self) -> Result<LogEnd, EngineError> {
        if self.server_pid().await?.is_none() {
            return self.end_of_stopped().await;
        }
        if let Some(upstream) = self.live().await.upstream {
            return Err(not_yet(format!("the log still grows: it is streamed from {upstream}")));
        }
        let session = self.session(STATEMENT).await?;
        if session.generation(STATEMENT).await? < self.live().await.generation {
            return Err(not_yet("the server has not read yet that it streams from nobody"));
        }
        self.read_to_end(&session).await
    }

    /// The end of a log whose server ended in order. After a crash the end is only known once recovery has read it.
    pub(crate) async fn end_of_stopped(&self) -> Result<LogEnd, EngineError> {
        let control = self.control().await?;
        if !control.is_clean() {
            return Err(not_yet(format!(
                "the server did not end in order ({}); start it as a standby first",
                control.state
            )));
        }
        let end = self.scan_from(control.checkpoint, control.newest_timeline()).await?;
        if end.position.lsn < control.min_recovery {
            return Err(not_yet(format!("the log ends at {}, before {}", end.position, control.min_recovery)));
        }
        Ok(end)
    }

    /// Reads the log from a checkpoint's record on to its end, record by record.
    pub(crate) async fn scan_from(&self, at: Lsn, timeline: mainstay_model::Timeline) -> Result<LogEnd, EngineError> {
        self.scan_in(self.data(), at, timeline).await
    }

    /// The same of other data than this node's.
    pub(crate) async fn scan_in(
        &self,
        data: PathBuf,
        at: Lsn,
        timeline: mainstay_model::Timeline,
    ) -> Result<LogEnd, EngineError> {
        let found = tokio::task::spawn_blocking(move || {
            let mut wal = Wal::list(&data)?;
            let from = Position { timeline, lsn: at };
            wal.follow(wal.newest_through(from))?;
            let last = wal.walk(at.0).ok_or_else(|| format!("no whole record of the log at {at}"))?;
            let lsn = Lsn(last.end);
            let timeline = wal.timeline_of(lsn).ok_or_else(|| format!("no log file covers {lsn}"))?;
            let lineage = wal.lineage(timeline).cloned().unwrap_or_default();
            Ok(LogEnd { position: Position { timeline, lsn }, lineage })
        });
        found.await.map_err(not_yet)?.map_err(|error: String| not_yet(error))
    }
}
