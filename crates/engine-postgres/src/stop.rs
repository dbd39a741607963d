//! Stopping in order for a switchover: bounded at each step, so that the caller can undo or fence.

use crate::config::parse_copy_name;
use crate::server::{Postgres, STATEMENT, failed, not_yet};
use mainstay_model::{LogEnd, NodeId};
use mainstay_ports::engine::EngineError;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long each step may take.
const STEP: Duration = Duration::from_secs(3);

/// How long a standby may take to stop in order before it is killed, which a standby survives.
const STANDBY: Duration = Duration::from_secs(10);

impl Postgres {
    /// See [`mainstay_ports::engine::Engine::stop_standby`].
    pub(crate) async fn stop_replica(&self) -> Result<(), EngineError> {
        if self.server_pid().await?.is_none() {
            return Ok(());
        }
        // One that does not answer yet reads its log; the guard's deadline says whether it could be anything else.
        if let Ok(session) = self.session(STEP).await
            && !session.in_recovery(STATEMENT).await?
        {
            return Err(failed("the server is primary; a primary stops for a switchover only"));
        }
        match self.stop(STANDBY).await {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, "the standby does not stop in order; killing it");
                self.fence("a standby did not stop in order".into()).await
            }
        }
    }

    /// See [`mainstay_ports::engine::Engine::checkpoint`].
    pub(crate) async fn checkpoint_early(&self) -> Result<(), EngineError> {
        let session = self.session(STEP).await?;
        if session.in_recovery(STATEMENT).await? {
            return Err(not_yet("the server is not primary"));
        }
        // The second has to write what clients changed while the first, which may be long, was written; the third, that of the stop, then
        // has only what they changed during the short second. One that takes longer goes on in the server, and the next request finds the
        // less to write.
        for _ in 0..2 {
            let done = session.rows("checkpoint", STEP).await;
            done.map_err(|error| not_yet(format!("no checkpoint within {STEP:?} ({error})")))?;
        }
        Ok(())
    }

    /// See [`mainstay_ports::engine::Engine::stop_clean`].
    pub(crate) async fn step_down(&self, keep: &BTreeSet<NodeId>) -> Result<LogEnd, EngineError> {
        let session = self.session(STEP).await?;
        if session.in_recovery(STATEMENT).await? {
            return Err(not_yet("the server is not primary"));
        }
        // Short after the one before the hold, and once more, so that the one at the end of the shutdown has next to nothing to write.
        session.rows("checkpoint", STEP).await?;
        let session = self.keep_out().await?;
        // A fast shutdown waits until every walsender's replica has received the last record, also the one that does not answer.
        let rows = session.rows("select pid, application_name from pg_stat_replication", STATEMENT).await?;
        for row in rows {
            let text = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
            if parse_copy_name(text(1)).is_none_or(|(node, _)| !keep.contains(&node)) {
                session.value(&format!("select pg_terminate_backend({})", text(0)), STATEMENT).await?;
            }
        }
        drop(session);
        self.stop(STEP).await?;
        self.end_of_stopped().await
    }
}
