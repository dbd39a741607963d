//! Making a diverged copy a copy of the primary again: what it alone holds is kept and reported, then `pg_rewind`, then proof that it
//! worked, which does not rest on the tool's word.

use crate::server::{Postgres, failed, not_yet};
use crate::source::Source;
use mainstay_model::{LogEnd, Lost, Lsn, NodeId, Position, Timeline};
use mainstay_ports::engine::EngineError;
use std::time::Duration;

/// How long a clean stop may take.
const STOP: Duration = Duration::from_secs(10);
/// How long a rewind may take.
const REWIND: Duration = Duration::from_secs(3600);

/// Where two logs parted: the last position that both hold.
pub(crate) fn parted(mine: &LogEnd, source: &Source) -> Option<Position> {
    let mut theirs = source.lineage.0.clone();
    theirs.push(Position { timeline: source.timeline, lsn: source.end });
    let mut ours = mine.lineage.0.clone();
    ours.push(mine.position);
    let mut common = None;
    for (their, our) in theirs.iter().zip(&ours) {
        if their.timeline != our.timeline {
            break;
        }
        common = Some(Position { timeline: our.timeline, lsn: their.lsn.min(our.lsn) });
        if their.lsn != our.lsn {
            break;
        }
    }
    common
}

impl Postgres {
    /// See [`mainstay_ports::engine::Engine::rewind`].
    pub(crate) async fn rewind_to(&self, source: &NodeId) -> Result<Option<Lost>, EngineError> {
        // Nothing was touched, and the copy is as good as before.
        self.refuse_bad_start(crate::inspect::Finding::blocks).await.map_err(not_yet)?;
        self.require_data()?;
        let there = self.source(source).await?;
        if crate::tools::system_id(&self.data()) != Some(there.system) {
            return Err(EngineError::Broken(format!("the data is of another cluster than that of {source}")));
        }
        self.stop_in_order().await?;
        let mine = self.end_of_stopped().await?;
        if there.lineage.contains(mine.position, there.timeline, there.end) {
            self.mark_standby(&self.data())?;
            // Rewound before, and nobody was told.
            return Ok(self.untold());
        }
        let fork = parted(&mine, &there).ok_or_else(|| {
            EngineError::Broken(format!("the log to {} has nothing in common with that of {source}", mine.position))
        })?;
        let before = self.untold();
        let lost = self.keep_diverged(&mine, fork).await?.and(before.clone());
        self.checkpoint_on(mine.position.timeline).await?;
        // A second try, because a checkpoint may have been under way when the first was asked for.
        for last in [false, true] {
            self.checkpoint_at(source).await?;
            self.note_unfinished(true, Some(&lost))?;
            let said = self.run_rewind(source).await;
            if matches!(said, Err(EngineError::NotYet(_))) {
                self.note_unfinished(false, before.as_ref())?;
            }
            let said = said?;
            match self.verify_rewound(&there, &mine).await {
                Ok(()) => break,
                Err(error) if last => return Err(EngineError::Broken(format!("{error}; pg_rewind said: {said}"))),
                Err(_) => {}
            }
        }
        self.make_ours(&self.data()).await?;
        self.complete(source).await?;
        self.note_unfinished(false, Some(&lost))?;
        Ok(Some(lost))
    }

    /// Reads the source's log until the copy is consistent by itself, then stops. `pg_rewind` notes how far the source had written after
    /// it copied the log's files: without the tail in between, a server started with no upstream would answer nobody, ever.
    /// It streams under a name that counts for no commit, because this copy is not whole and answers no election yet.
    async fn complete(&self, source: &NodeId) -> Result<(), EngineError> {
        let copy = self.live().await.copy;
        let upstream = source.clone();
        let edit = |live: &mut crate::config::Live| {
            live.copy = None;
            live.upstream = Some(upstream.clone());
        };
        let ran = match self.launch_standby(Some(false), edit).await {
            Ok(session) => {
                drop(session);
                self.stop(STOP).await
            }
            Err(error) => Err(error),
        };
        let back = |live: &mut crate::config::Live| {
            live.copy = copy;
            live.upstream = None;
        };
        self.write(Some(false), back).await?;
        // Half a rewind can not be done again: only a new clone helps.
        ran.map_err(|error| {
            EngineError::Broken(format!("rewound, but not consistent from the log of {source}: {error}"))
        })
    }

    /// Stops the server so that recovery is complete: after a crash it runs as a standby first.
    pub(crate) async fn stop_in_order(&self) -> Result<(), EngineError> {
        if self.server_pid().await?.is_some() {
            // Nothing was touched: the caller may kill it and come again.
            self.stop(STOP).await.map_err(not_yet)?;
        }
        if self.control().await?.is_clean() {
            return Ok(());
        }
        self.clear_dropped_promotion().await?;
        self.mark_standby(&self.data())?;
        let session = self.launch_standby(Some(false), |live| live.upstream = None).await?;
        if !session.in_recovery(crate::server::STATEMENT).await? {
            return self.not_a_standby().await;
        }
        // Everything must be read, or what was lost would be reported too small.
        self.read_to_end(&session).await?;
        drop(session);
        self.stop(STOP).await
    }

    /// Makes the last checkpoint of the stopped server one of this timeline, on which its log ends. `pg_rewind` before version 16 looks for
    /// the log on the timeline of the last checkpoint, and a server that was promoted and ended at once has none on its own.
    /// Recovery in single-user mode ends with one. What that adds to the log goes in the rewind, and what was to be kept is kept.
    async fn checkpoint_on(&self, timeline: Timeline) -> Result<(), EngineError> {
        if self.control().await?.timeline >= timeline {
            return Ok(());
        }
        tracing::info!(%timeline, "the last checkpoint is of an older timeline: one is written before the rewind");
        let data = self.data();
        let say = |error: std::io::Error| not_yet(format!("{}: {error}", data.display()));
        // No standby in single-user mode; whatever comes of it, the next start is a standby's again.
        crate::files::remove(&data, "standby.signal").map_err(say)?;
        let conf = self.options.layout.conf();
        let arguments = [
            "--single".to_owned(),
            "-D".to_owned(),
            data.display().to_string(),
            "-c".to_owned(),
            format!("config_file={}", conf.join("postgresql.conf").display()),
            "postgres".to_owned(),
        ];
        let ran = self.run("postgres", &arguments, REWIND).await;
        self.mark_standby(&data)?;
        let ran = ran?;
        let stands = self.control().await?;
        if ran.success && stands.timeline == timeline && stands.is_clean() {
            return Ok(());
        }
        // It is not certain to be needed: the rewind itself is verified.
        let said = ran.err.trim().replace('\n', " | ");
        tracing::warn!(on = %stands.timeline, %said, "no checkpoint on the newest timeline; the rewind may not succeed");
        Ok(())
    }

    async fn run_rewind(&self, source: &NodeId) -> Result<String, EngineError> {
        let server = self.source_conninfo(source, "mainstay_rewind", "dbname=postgres")?;
        let arguments = [
            "--target-pgdata".into(),
            self.data().display().to_string(),
            format!("--source-server={server}"),
            "--no-ensure-shutdown".into(),
        ];
        let ran = self.run_durably("pg_rewind", &arguments, REWIND, &self.data()).await?;
        let said = ran.err.trim().replace('\n', " | ");
        if ran.success {
            return Ok(said);
        }
        // Before this line nothing is written.
        if !said.contains("rewinding from last common checkpoint") && said.contains("connection to server") {
            return Err(not_yet(format!("pg_rewind: {said}")));
        }
        Err(EngineError::Broken(format!("pg_rewind: {said}")))
    }

    /// The control file must say that recovery goes along the source's timeline now, and its history must be here.
    async fn verify_rewound(&self, there: &Source, before: &LogEnd) -> Result<(), EngineError> {
        let control = self.control().await?;
        let begins = Position { timeline: control.timeline, lsn: control.checkpoint };
        let moved = control.min_recovery_timeline == there.timeline && control.min_recovery > Lsn(0);
        let on_path =
            control.timeline == there.timeline || there.lineage.contains(begins, there.timeline, Lsn(u64::MAX));
        let recovering = control.state == "in archive recovery";
        let history = crate::wal::Wal::list(&self.data()).map_err(failed)?.lineage(there.timeline).cloned();
        let knows = there.timeline == Timeline(1) || history.as_ref() == Some(&there.lineage);
        if moved && on_path && recovering && knows && control.system == there.system {
            return Ok(());
        }
        Err(failed(format!(
            "the copy that ended at {} was not rewound: control file {control:?}, history of timeline {} {}",
            before.position,
            there.timeline,
            if knows { "present" } else { "missing" }
        )))
    }

    /// The source's settings came along: the next start must be a standby's with ours.
    pub(crate) async fn make_ours(&self, data: &std::path::Path) -> Result<(), EngineError> {
        let say = |error: std::io::Error| failed(format!("{}: {error}", data.display()));
        self.mark_standby(data)?;
        for name in ["recovery.signal", "promote", "postmaster.pid"] {
            crate::files::remove(data, name).map_err(say)?;
        }
        crate::server::neutralise_auto(data, self.owner()).map_err(say)?;
        crate::files::sync_dir(data).map_err(say)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::{Lineage, SystemId};

    fn at(timeline: u32, lsn: u64) -> Position {
        Position { timeline: Timeline(timeline), lsn: Lsn(lsn) }
    }

    #[test]
    fn logs_part_where_the_shorter_stay_on_a_shared_timeline_ends() {
        let source = Source {
            system: SystemId(1),
            timeline: Timeline(4),
            end: Lsn(900),
            lineage: Lineage(vec![at(1, 100), at(2, 300)]),
        };
        let mine = |lineage: Vec<Position>, position| LogEnd { position, lineage: Lineage(lineage) };
        assert_eq!(parted(&mine(vec![at(1, 100)], at(2, 350)), &source), Some(at(2, 300)));
        assert_eq!(parted(&mine(vec![at(1, 100), at(2, 250)], at(3, 400)), &source), Some(at(2, 250)));
        assert_eq!(parted(&mine(vec![], at(1, 170)), &source), Some(at(1, 100)));
        assert_eq!(parted(&mine(vec![at(7, 10)], at(8, 170)), &source), None);
    }
}
