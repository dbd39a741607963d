//! What became of a transaction, and which life of the server is asked (docs/adr/0054).
//! Absent: whether its number means the same in this log as it did to whoever asks.

use crate::config::{copy_name, standby_names};
use crate::server::{Postgres, STATEMENT, failed, not_yet};
use crate::sql::Session;
use crate::wal::Wal;
use mainstay_model::outcome::{CommitAnswer, RunId, Started};
use mainstay_model::{Lsn, Timeline};
use mainstay_ports::engine::{EngineError, PrimaryRun};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// So long it is waited for replicas that are on their way to hold a commit, in one question.
const HELD_WITHIN: Duration = Duration::from_millis(400);
/// How often they are looked at.
const HELD_PAUSE: Duration = Duration::from_millis(10);

/// On a primary; a standby writes no timeline of its own.
const RUN: &str = "select (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint, \
    case when pg_is_in_recovery() then null else substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8) end";

impl Postgres {
    /// See [`mainstay_ports::engine::Engine::primary_run`].
    pub(crate) async fn life(&self) -> Result<PrimaryRun, EngineError> {
        let id = run_id(&self.session(STATEMENT).await?).await?;
        let past = if id.timeline == Timeline(1) {
            mainstay_model::Lineage::default()
        } else {
            let wal = Wal::list(&self.data()).map_err(failed)?;
            let past = wal.lineage(id.timeline).cloned();
            past.ok_or_else(|| failed(format!("timeline {} has no history in {}", id.timeline, self.data().display())))?
        };
        let from = self.found_log().filter(|(life, _)| *life == id).map(|(_, at)| at);
        Ok(PrimaryRun { id, from, past })
    }

    /// After a start in place, before anything else: where the log ended that the server found. The first checkpoint of a life is the one at
    /// the end of its recovery, or the last one of the life before, ended in order: no record lies between its redo position and itself, as
    /// in no later one (those are written while others write, at least of the transactions that run).
    pub(crate) async fn note_found_log(&self, session: &Session) {
        let found = async {
            let row =
                session.row("select checkpoint_lsn, redo_lsn from pg_control_checkpoint()", STATEMENT).await.ok()?;
            let at = |column: usize| row.get(column)?.as_deref()?.parse::<Lsn>().ok();
            let checkpoint = at(0).filter(|checkpoint| at(1) == Some(*checkpoint))?;
            Some((run_id(session).await.ok()?, checkpoint))
        };
        self.set_found_log(found.await);
    }

    /// See [`mainstay_ports::engine::Engine::transaction`].
    pub(crate) async fn became_of(&self, number: u64) -> Result<CommitAnswer, EngineError> {
        let session = self.session(STATEMENT).await?;
        let row = session.row(&format!("select pg_xact_status('{number}'::xid8)"), STATEMENT).await?;
        match row.first().and_then(Option::as_deref) {
            Some("aborted") => Ok(CommitAnswer::Aborted),
            Some("committed") => self.held(&session).await,
            Some("in progress") => Ok(CommitAnswer::Later("its transaction is in progress".to_owned())),
            _ => Ok(CommitAnswer::Unknown("the server does not know its transaction any more".to_owned())),
        }
    }

    /// It is committed here. A wait for replicas may have been cancelled, by the end of its session too: they must hold it.
    async fn held(&self, session: &Session) -> Result<CommitAnswer, EngineError> {
        let live = self.live().await;
        if live.blocked {
            return Err(not_yet("the synchronous setting is being changed"));
        }
        let shown = session.value("select current_setting('synchronous_standby_names')", STATEMENT).await?;
        if shown != standby_names(&live) {
            return Err(not_yet("the synchronous setting is not in force"));
        }
        if live.setting.need == 0 {
            return Ok(CommitAnswer::Committed);
        }
        let names: Vec<String> =
            live.setting.copies.iter().map(|(node, copy)| format!("'{}'", copy_name(node, *copy))).collect();
        let names = if names.is_empty() { "null".to_owned() } else { names.join(",") };
        // The end of the log now: what comes after it is not asked for, however much is written meanwhile.
        let ends: Lsn = session.value("select pg_current_wal_flush_lsn()", STATEMENT).await?.parse().map_err(failed)?;
        let sql = format!(
            "select count(distinct application_name) from pg_stat_replication \
             where state = 'streaming' and flush_lsn >= '{ends}' and application_name in ({names})"
        );
        let began = Instant::now();
        while began.elapsed() < HELD_WITHIN {
            let hold = session.value(&sql, STATEMENT).await?;
            if hold.parse::<u32>().is_ok_and(|hold| hold >= live.setting.need) {
                return Ok(CommitAnswer::Committed);
            }
            sleep(HELD_PAUSE).await;
        }
        Ok(CommitAnswer::Later("it is committed, and not held by as many copies as it should be yet".to_owned()))
    }
}

async fn run_id(session: &Session) -> Result<RunId, EngineError> {
    let row = session.row(RUN, STATEMENT).await?;
    let text = |at: usize| row.get(at).and_then(Option::as_deref);
    let started = text(0).and_then(|text| text.parse().ok()).map(Started);
    let timeline = text(1).and_then(|text| u32::from_str_radix(text, 16).ok()).map(Timeline);
    match (started, timeline) {
        (Some(started), Some(timeline)) => Ok(RunId { timeline, started }),
        (_, None) => Err(not_yet("the server is no primary")),
        (None, _) => Err(failed(format!("the server does not say when it started: {row:?}"))),
    }
}
