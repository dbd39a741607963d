//! Promotion: clients out and the synchronous setting in force before, timeline numbers below the reserved one kept free of use, the
//! request repeated until it is heard, and what came of it verified.

use crate::clients::end_clients_once;
use crate::files;
use crate::server::{Postgres, STATEMENT, failed, not_yet};
use crate::sql::Session;
use crate::sync::end_of_log;
use crate::wal::{Wal, history_name};
use mainstay_model::position::RESERVED;
use mainstay_model::record::RecoveryEnd;
use mainstay_model::{Position, SyncSetting, Timeline};
use mainstay_ports::engine::EngineError;
use rustix::process::Signal;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const PROMOTE: &str = "promote";
/// How often the request is repeated: told at the wrong moment the startup process sleeps a whole retry interval.
const REPEAT: Duration = Duration::from_millis(10);
/// How long a promotion may take before it is given up, the server killed.
const LIMIT: Duration = Duration::from_secs(20);
/// No more numbers than this are skipped at once.
const SKIP: u32 = 10_000;

impl Postgres {
    /// See [`mainstay_ports::engine::Engine::promote`].
    pub(crate) async fn become_primary(
        &self,
        setting: &SyncSetting,
        timeline: Timeline,
        fork: Position,
    ) -> Result<RecoveryEnd, EngineError> {
        if let Some(upstream) = self.live().await.upstream {
            return Err(not_yet(format!("the stream from {upstream} is not cut")));
        }
        self.reserve(fork, timeline)?;
        // From here on the operator's values count again: the server has the higher ones until its next start.
        self.set_floors(crate::held::Floors::default());
        let setting = setting.clone();
        let session = self
            .apply(Some(false), |live| {
                live.setting = setting;
                live.blocked = false;
            })
            .await?;
        self.check_fork(&session, fork).await?;
        self.end_unauthenticated().await?;
        let done = self.promote_now(&session).await;
        let removed = files::remove(&self.data(), PROMOTE);
        if let Err(error) = done {
            // A request that was heard can come true at any time.
            self.fence("the promotion did not end".into()).await?;
            return Err(error);
        }
        removed.map_err(|error| failed(format!("could not remove the promote file: {error}")))?;
        match self.settle(&session, timeline, fork).await {
            Ok(end) => Ok(end),
            Err(error) => {
                let reason = format!("a promotion went wrong: {error}");
                self.fence(reason).await?;
                Err(error)
            }
        }
    }

    /// What must hold before the promotion counts.
    async fn settle(&self, session: &Session, timeline: Timeline, fork: Position) -> Result<RecoveryEnd, EngineError> {
        let end = self.verify(session, timeline, fork).await?;
        self.end_clients(session).await?;
        self.reserve_log(session).await;
        self.prove_waiting(session).await?;
        Ok(end)
    }

    /// Replay stands at the fork, so the new timeline will leave the old one there.
    async fn check_fork(&self, session: &Session, fork: Position) -> Result<(), EngineError> {
        let row = session.row("select pg_is_in_recovery(), pg_last_wal_replay_lsn()", STATEMENT).await?;
        let text = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
        if text(0) != "t" || text(1) != fork.lsn.to_string() {
            return Err(failed(format!("the log ends at {} (in recovery: {}), not at {fork}", text(1), text(0))));
        }
        let on = Wal::list(&self.data()).map_err(failed)?.timeline_of(fork.lsn);
        if on != Some(fork.timeline) {
            return Err(failed(format!("the log ends on timeline {on:?}, not at {fork}")));
        }
        Ok(())
    }

    /// Puts a placeholder for each number between, so that the server takes exactly `timeline`: it takes the first number that has no
    /// history file. A placeholder says nothing (a comment), so no server can take it for a path to follow.
    fn reserve(&self, fork: Position, timeline: Timeline) -> Result<(), EngineError> {
        let dir = self.data().join("pg_wal");
        if timeline <= fork.timeline || timeline.0 - fork.timeline.0 > SKIP {
            return Err(failed(format!("timeline {timeline} can not follow {fork}")));
        }
        if dir.join(history_name(timeline)).exists() {
            return Err(failed(format!("timeline {timeline} exists already in {}", dir.display())));
        }
        let between = (fork.timeline.0 + 1..timeline.0).map(|number| history_name(Timeline(number)));
        for name in between.filter(|name| !dir.join(name).exists()) {
            let text = format!("{RESERVED}: timeline {timeline} was handed out\n");
            files::write_atomic(&dir, &name, text.as_bytes(), 0o600, self.owner())
                .map_err(|error| failed(format!("{}/{name}: {error}", dir.display())))?;
        }
        Ok(())
    }

    /// Asks again and again until the server is out of recovery, and keeps ending clients meanwhile: a query that conflicts with
    /// replay would hold the promotion up.
    async fn promote_now(&self, session: &Session) -> Result<(), EngineError> {
        let postmaster = self.postmaster().await?;
        let began = Instant::now();
        let mut asked: Option<Instant> = None;
        loop {
            if asked.is_none_or(|at| at.elapsed() >= REPEAT) {
                asked = Some(Instant::now());
                files::touch(&self.data(), PROMOTE, self.owner())
                    .and_then(|()| postmaster.signal(Signal::USR1))
                    .map_err(|error| failed(format!("could not ask for the promotion: {error}")))?;
                end_clients_once(session).await?;
            }
            if !session.in_recovery(STATEMENT).await? {
                return Ok(());
            }
            if began.elapsed() > LIMIT {
                return Err(failed(format!("the server is still in recovery after {LIMIT:?}; {}", self.log_tail())));
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn verify(&self, session: &Session, timeline: Timeline, fork: Position) -> Result<RecoveryEnd, EngineError> {
        let end = self.recovery_end(session).await?;
        if end.timeline != timeline {
            return Err(failed(format!("the server came up on timeline {} instead of {timeline}", end.timeline)));
        }
        let wal = Wal::list(&self.data()).map_err(failed)?;
        let left = wal.lineage(timeline).and_then(|lineage| lineage.0.last().copied());
        if left != Some(fork) {
            return Err(failed(format!("timeline {timeline} forked at {left:?} instead of {fork}")));
        }
        Ok(end)
    }

    /// Where a primary's recovery ended.
    pub(crate) async fn recovery_end(&self, session: &Session) -> Result<RecoveryEnd, EngineError> {
        let lsn = end_of_log(session).await?;
        let file = session.value("select pg_walfile_name(pg_current_wal_flush_lsn())", STATEMENT).await?;
        let timeline = file.get(..8).and_then(|number| u32::from_str_radix(number, 16).ok());
        let timeline = timeline.ok_or_else(|| failed(format!("{file:?} is no name of a log file")))?;
        Ok(RecoveryEnd { timeline: Timeline(timeline), lsn })
    }
}
