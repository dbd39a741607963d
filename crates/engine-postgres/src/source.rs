//! Asking another node's server, with this node's replication certificate, through `psql`: the same library, the same path as the tools
//! that follow.

use crate::config::conninfo;
use crate::server::{Postgres, failed, not_yet};
use crate::wal::parse_history;
use mainstay_model::{Lineage, Lsn, NodeId, SystemId, Timeline};
use mainstay_ports::engine::EngineError;
use std::time::Duration;

/// How long a question may take.
pub(crate) const ASK: Duration = Duration::from_secs(10);
/// How long a checkpoint over there may take.
const CHECKPOINT: Duration = Duration::from_secs(120);

/// What a primary says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) system: SystemId,
    pub(crate) timeline: Timeline,
    pub(crate) end: Lsn,
    pub(crate) lineage: Lineage,
}

impl Postgres {
    /// How to reach `node`; `extra` as in `dbname=postgres`.
    pub(crate) fn source_conninfo(&self, node: &NodeId, name: &str, extra: &str) -> Result<String, EngineError> {
        let (host, port) = self.peer(node)?;
        Ok(format!("{} {extra}", conninfo(&self.options.layout, &host, port, name)))
    }

    pub(crate) async fn ask_source(
        &self,
        node: &NodeId,
        extra: &str,
        what: &str,
        limit: Duration,
    ) -> Result<String, EngineError> {
        let conninfo = self.source_conninfo(node, "mainstay_question", extra)?;
        let arguments = ["-X", "-A", "-t", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-c", what, &conninfo];
        let ran = self.run("psql", &arguments.map(str::to_owned), limit).await?;
        if ran.success {
            return Ok(ran.out.trim_end().to_owned());
        }
        Err(not_yet(format!("{node} does not answer {what:?}: {}", ran.err.trim())))
    }

    /// Who `node`'s server is and what its past is. It must be primary.
    pub(crate) async fn source(&self, node: &NodeId) -> Result<Source, EngineError> {
        let recovering = self.ask_source(node, "dbname=postgres", "select pg_is_in_recovery()", ASK).await?;
        if recovering != "f" {
            return Err(not_yet(format!("the server of {node} is not primary")));
        }
        let said = self.ask_source(node, "replication=true", "IDENTIFY_SYSTEM", ASK).await?;
        let bad = || failed(format!("{node} says {said:?} of itself, which is not understood"));
        let mut parts = said.split('|');
        let system = SystemId(parts.next().and_then(|part| part.parse().ok()).ok_or_else(bad)?);
        let timeline = Timeline(parts.next().and_then(|part| part.parse().ok()).ok_or_else(bad)?);
        let end = parts.next().and_then(|part| part.parse().ok()).ok_or_else(bad)?;
        let mut lineage = Lineage::default();
        if timeline > Timeline(1) {
            let what = format!("TIMELINE_HISTORY {timeline}");
            let file = self.ask_source(node, "replication=true", &what, ASK).await?;
            let text = file.split_once('|').map_or("", |(_, text)| text);
            lineage =
                parse_history(text).ok_or_else(|| failed(format!("{node} sends no history of timeline {timeline}")))?;
        }
        Ok(Source { system, timeline, end, lineage })
    }

    /// Has `node` write a checkpoint: without one after its promotion, `pg_rewind` takes it for being on the old timeline still, and
    /// says that nothing is to be done.
    pub(crate) async fn checkpoint_at(&self, node: &NodeId) -> Result<(), EngineError> {
        self.ask_source(node, "dbname=postgres", "CHECKPOINT", CHECKPOINT).await.map(drop)
    }
}
