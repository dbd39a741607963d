//! Starting as a standby and following an upstream; starting a crashed primary again. What a dropped promotion left behind is put
//! aside before a start, because a server reads it as the way to go on.

use crate::files;
use crate::held::Floors;
use crate::inspect::Finding;
use crate::server::{Postgres, STATEMENT, failed, not_yet};
use crate::wal::{Wal, history_name};
use mainstay_model::position::RESERVED;
use mainstay_model::record::RecoveryEnd;
use mainstay_model::{CopyId, NodeId, Timeline};
use mainstay_ports::engine::{Deadline, EngineError};
use std::path::Path;

const SIGNAL: &str = "standby.signal";

impl Postgres {
    /// See [`mainstay_ports::engine::Engine::start_standby`].
    pub(crate) async fn run_standby(&self, copy: CopyId, upstream: Option<&NodeId>) -> Result<(), EngineError> {
        if let Some(node) = upstream {
            self.peer(node)?;
        }
        let edit = |live: &mut crate::config::Live| {
            live.copy = Some(copy);
            live.upstream = upstream.cloned();
        };
        let session = if self.server_pid().await?.is_some() {
            // An earlier start that was given up while the server still read its log.
            let session = self.wait_for_answers().await?;
            if !session.in_recovery(STATEMENT).await? {
                return self.not_a_standby().await;
            }
            self.apply(Some(true), edit).await?
        } else {
            self.refuse_bad_start(Finding::blocks).await?;
            self.require_data()?;
            self.clear_dropped_promotion().await?;
            self.put_label_aside().await?;
            self.mark_standby(&self.data())?;
            self.forget_taken()?;
            self.launch_standby(Some(true), edit).await?
        };
        if session.in_recovery(STATEMENT).await? {
            self.forget_unfinished()?;
            self.provide_slots(&session).await;
            return Ok(());
        }
        self.not_a_standby().await
    }

    /// A primary where a standby was ordered has no right to be one.
    pub(crate) async fn not_a_standby(&self) -> Result<(), EngineError> {
        let reason = "it was to be a standby and is a primary";
        self.fence(reason.into()).await?;
        Err(failed("the server was a primary although it was to be a standby; it was killed"))
    }

    /// See [`mainstay_ports::engine::Engine::follow`].
    pub(crate) async fn follow_upstream(&self, copy: CopyId, upstream: &NodeId) -> Result<(), EngineError> {
        self.peer(upstream)?;
        if !self.session(STATEMENT).await?.in_recovery(STATEMENT).await? {
            return Err(failed("the server is primary; it can not follow"));
        }
        // Readers may enter a standby, also one whose promotion was given up after they had been put out.
        let edit = |live: &mut crate::config::Live| {
            live.copy = Some(copy);
            live.upstream = Some(upstream.clone());
        };
        self.apply(Some(true), edit).await.map(drop)
    }

    /// See [`mainstay_ports::engine::Engine::restart_in_place`].
    pub(crate) async fn run_primary_again(&self, deadline: Deadline) -> Result<RecoveryEnd, EngineError> {
        if self.server_pid().await?.is_some() {
            return Err(not_yet("a server runs already"));
        }
        self.refuse_bad_start(Finding::blocks).await?;
        self.require_data()?;
        let control = self.control().await?;
        if !matches!(control.state.as_str(), "in production" | "shutting down" | "shut down" | "in crash recovery") {
            return Err(failed(format!(
                "the data is not that of a primary ({}); start it as a standby",
                control.state
            )));
        }
        let data = self.data();
        if data.join("backup_label").exists() {
            // Its control file says "in production", because that is what its source was.
            let what = "the data is a clone that was never started (it holds a backup_label); start it as a standby";
            return Err(failed(what));
        }
        files::remove(&data, SIGNAL)
            .and_then(|_| files::sync_dir(&data))
            .map_err(|error| failed(format!("could not remove {}/{SIGNAL}: {error}", data.display())))?;
        self.set_floors(Floors::default());
        self.write(Some(false), |live| live.upstream = None).await?;
        let session = self.launch(deadline).await?;
        if session.in_recovery(STATEMENT).await? {
            return Err(failed("the server came up as a standby although it was to be primary"));
        }
        self.note_found_log(&session).await;
        self.reserve_log(&session).await;
        self.prove_waiting(&session).await?;
        self.recovery_end(&session).await
    }

    pub(crate) fn require_data(&self) -> Result<(), EngineError> {
        let data = self.data();
        if self.unfinished().is_some_and(|unfinished| unfinished.half) {
            return Err(EngineError::Broken(format!("a rewind of {} broke off half-way", data.display())));
        }
        match crate::tools::system_id(&data) {
            Some(_) if data.join("pg_wal").is_dir() => Ok(()),
            _ => Err(EngineError::Broken(format!("{} holds no whole data directory", data.display()))),
        }
    }

    /// The next start of this data directory is a standby's, whatever happens.
    pub(crate) fn mark_standby(&self, data: &Path) -> Result<(), EngineError> {
        files::write_atomic(data, SIGNAL, b"", 0o600, self.owner())
            .map_err(|error| failed(format!("could not write {}/{SIGNAL}: {error}", data.display())))
    }

    /// Puts aside what a promotion left that did not get as far as a record of its own: a server that starts with it takes that
    /// timeline for its future, and can then follow no other. Placeholders at the end of the row go as well.
    pub(crate) async fn clear_dropped_promotion(&self) -> Result<(), EngineError> {
        let data = self.data();
        let wal = Wal::list(&data).map_err(failed)?;
        let control = self.control().await?;
        let known = control.newest_timeline();
        if wal.above(known).iter().any(|timeline| wal.lineage(Timeline(*timeline)).is_some()) {
            match self.scan_from(control.checkpoint, control.timeline).await {
                Ok(end) => self.put_aside_above(&wal, end.position.timeline.max(known))?,
                // A standby that starts from a base copy may have no log yet.
                Err(error) => tracing::debug!(%error, "the end of the log is not known before the start"),
            }
        }
        self.drop_trailing_placeholders(known)
    }

    /// A backup label belongs to a copy that was never started; one beside data that were shut down in order is left over, and would
    /// have the server begin at a place whose log is long gone.
    async fn put_label_aside(&self) -> Result<(), EngineError> {
        let data = self.data();
        if !data.join("backup_label").exists() || !self.control().await?.is_clean() {
            return Ok(());
        }
        tracing::warn!("a backup_label is left over in {}; it becomes backup_label.old", data.display());
        std::fs::rename(data.join("backup_label"), data.join("backup_label.old"))
            .and_then(|()| files::sync_dir(&data))
            .map_err(|error| failed(format!("{}/backup_label: {error}", data.display())))
    }

    fn put_aside_above(&self, wal: &Wal, keep: Timeline) -> Result<(), EngineError> {
        let aside = self.options.layout.diverged();
        let say = |error: std::io::Error| failed(format!("could not put an unused timeline aside: {error}"));
        files::ensure_dir(&aside, 0o700, None).map_err(say)?;
        let dir = self.data().join("pg_wal");
        for timeline in wal.above(keep) {
            let prefix = format!("{timeline:08X}");
            for entry in std::fs::read_dir(&dir).map_err(say)?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with(&prefix) && name.ends_with(".history") {
                    std::fs::copy(entry.path(), aside.join(&name)).map_err(say)?;
                }
                // Its log files hold nothing of their own beyond the fork, which the older timeline's files hold too.
                if name.starts_with(&prefix) {
                    files::remove(&dir, &name).map_err(say)?;
                }
            }
        }
        files::sync_dir(&dir).map_err(say)
    }

    fn drop_trailing_placeholders(&self, known: Timeline) -> Result<(), EngineError> {
        let dir = self.data().join("pg_wal");
        let say = |error: std::io::Error| failed(format!("{}: {error}", dir.display()));
        let newest_real = Wal::list(&self.data()).map_err(failed)?.above(known).into_iter().max().unwrap_or(known.0);
        for entry in std::fs::read_dir(&dir).map_err(say)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = name.strip_suffix(".history").and_then(|number| u32::from_str_radix(number, 16).ok());
            let Some(number) = number.filter(|number| *number > newest_real) else { continue };
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            if text.starts_with(RESERVED) {
                files::remove(&dir, &history_name(Timeline(number))).map_err(say)?;
            }
        }
        Ok(())
    }
}
